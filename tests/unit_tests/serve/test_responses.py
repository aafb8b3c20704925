"""Responses asked of the application: what goes on from what, and what is kept for how long."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from langchain_rwkv_state import MemoryStateStore
from langchain_rwkv_state.errors import StoreError, StoreFull
from langchain_rwkv_state.messages import marker
from langchain_rwkv_state.serve.response_ids import ResponseId
from tests.helpers.asgi_client import AsgiClient
from tests.helpers.one_tenant import app_over
from tests.helpers.scripted_chat import ScriptedChat

PATH = "/v1/responses"
ADD = {
    "type": "function",
    "name": "add",
    "description": "Add two numbers.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
}
CHANGED = pytest.mark.filterwarnings("ignore:The messages before the state marker")


class Served:
    """A scripted model, and a client of it."""

    def __init__(self, scripted, client):
        self.scripted, self.client = scripted, client
        self.store = scripted.chat.store

    def will_say(self, said, messages, **options):
        self.scripted.will_say(f" {said}", messages, **options)

    async def ask(self, said="Hi.", **fields):
        fields = {"model": "demo", "input": said, "max_output_tokens": 12, **fields}
        return await self.client.post(PATH, fields)

    async def answer(self, said="Hi.", **fields):
        reply = await self.ask(said, **fields)
        assert reply.status == 200, reply.body
        return reply.json()

    async def events(self, said="Hi.", **fields):
        known = {"model": "demo", "input": said, "stream": True, "max_output_tokens": 12}
        fields = known | fields
        async with self.client.stream(PATH, fields) as stream:
            return [event async for event in stream.data()]

    def held(self, response):
        known = ResponseId.parse(response["id"])
        assert known is not None
        return self.store.kept(known.owner)


@pytest.fixture
async def served():
    scripted = ScriptedChat(store=MemoryStateStore())
    async with AsgiClient(app_over(scripted.chat)) as client:
        served = Served(scripted, client)
        served.will_say("Hello.", "Hi.")
        yield served
    scripted.close()


def text_of(response):
    return "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    )


def read(response):
    usage = response["usage"]
    return usage["input_tokens"] - usage["input_tokens_details"]["cached_tokens"]


async def test_an_answer_goes_on_from_the_state_of_an_earlier_one(served):
    served.will_say("Bob.", [HumanMessage("Hi."), AIMessage("Hello."), HumanMessage("Who?")])
    first = await served.answer()
    second = await served.answer("Who?", previous_response_id=first["id"])
    assert (text_of(first), text_of(second)) == ("Hello.", "Bob.")
    assert second["previous_response_id"] == first["id"] != second["id"]
    assert (
        second["usage"]["input_tokens"] > second["usage"]["input_tokens_details"]["cached_tokens"]
    )
    assert read(second) == len(
        served.scripted.prompt([marker(served.held(first)[0]), HumanMessage("Who?")])
    )


async def test_any_turn_can_be_branched_any_number_of_times(served):
    talk = [HumanMessage("Hi."), AIMessage("Hello.")]
    first = await served.answer()
    for word in ("A", "B", "A"):
        served.will_say(f"To {word}.", [*talk, HumanMessage(word)])
        branch = await served.answer(word, previous_response_id=first["id"])
        assert text_of(branch) == f"To {word}."


async def test_the_state_is_kept_before_the_end_is_told(served):
    fields = {"model": "demo", "input": "Hi.", "stream": True}
    async with served.client.stream(PATH, fields) as stream:
        async for event in stream.data():
            if event["type"] == "response.completed":
                assert len(served.held(event["response"])) == 1


async def test_what_is_not_to_be_kept_is_not_and_cannot_be_gone_on_from(served):
    first = await served.answer(store=False)
    assert (first["store"], served.held(first)) == (False, [])
    reply = await served.ask("Who?", previous_response_id=first["id"])
    assert (reply.status, reply.error["code"]) == (404, "not_found")
    assert "store=false" in reply.error["message"]


async def test_of_two_answers_alike_one_is_deleted_and_the_other_lives(served):
    one, other = await served.answer(), await served.answer()
    assert served.held(one) == served.held(other)
    path = f"{PATH}/{one['id']}"
    assert (await served.client.request("DELETE", path)).json() == {
        "id": one["id"],
        "object": "response",
        "deleted": True,
    }
    assert (await served.client.request("DELETE", path)).error["code"] == "not_found"
    gone = await served.ask("Who?", previous_response_id=one["id"])
    assert (gone.status, gone.error["param"]) == (404, "previous_response_id")
    assert (await served.ask("Who?", previous_response_id=other["id"])).status == 200


async def test_an_id_that_ran_out_says_so():
    now = [1_796_000_000.0]
    scripted = ScriptedChat(store=MemoryStateStore(clock=lambda: now[0]))
    async with AsgiClient(app_over(scripted.chat, ttl=0.001)) as client:
        served = Served(scripted, client)
        served.will_say("Hello.", "Hi.")
        first = await served.answer()
        now[0] += 1
        await asyncio.sleep(0.002)
        reply = await served.ask("Who?", previous_response_id=first["id"])
        deleted = await client.request("DELETE", f"{PATH}/{first['id']}")
    scripted.close()
    assert (reply.status, reply.error["code"]) == (404, "expired")
    assert (deleted.status, deleted.error["code"]) == (404, "expired")


async def test_the_words_of_a_response_cannot_be_had(served):
    first = await served.answer()
    for path in (f"{PATH}/{first['id']}", f"{PATH}/{first['id']}/input_items"):
        reply = await served.client.get(path)
        assert (reply.status, reply.error["code"]) == (400, "unsupported")


# -- instructions ----------------------------------------------------------------------------------


async def test_instructions_stand_before_the_input(served):
    served.will_say("Ahoy.", [SystemMessage("A."), SystemMessage("B."), HumanMessage("Hi.")])
    given = [{"role": "developer", "content": "B."}, {"role": "user", "content": "Hi."}]
    assert text_of(await served.answer(given, instructions="A.")) == "Ahoy."


async def test_instructions_that_are_the_same_are_not_read_again(served):
    first = await served.answer(instructions="Be kind.", tools=[ADD])
    same = {"previous_response_id": first["id"], "tools": [ADD]}
    without = await served.answer("Who?", previous_response_id=first["id"])
    again = await served.answer("Who?", instructions="Be kind.", **same)
    assert read(again) == read(without)


@CHANGED
async def test_other_instructions_are_read_behind_what_was_said(served):
    first = await served.answer(instructions="Be kind.")
    other = await served.answer("Who?", previous_response_id=first["id"], instructions="Be short.")
    third = await served.answer("Who?", previous_response_id=other["id"], instructions="Be short.")
    assert read(other) > read(third)


# -- tools, JSON and thoughts ----------------------------------------------------------------------


async def test_a_call_goes_out_and_its_output_comes_back(served):
    scripted = served.scripted
    in_chat = {"type": "function", "function": {k: v for k, v in ADD.items() if k != "type"}}
    call = '```json\n{"name":"add","arguments":{"a":1,"b":2}}\n```'
    served.will_say(call, "Add.", tools=[in_chat])
    first = await served.answer("Add.", tools=[ADD], max_output_tokens=60)
    (item,) = first["output"]
    assert (item["type"], item["name"]) == ("function_call", "add")
    assert item["arguments"] == '{"a":1,"b":2}'
    before = len(scripted.runtime.calls)
    result = {"type": "function_call_output", "call_id": item["call_id"], "output": "3"}
    second = await served.answer([result], previous_response_id=first["id"], tools=[ADD])
    assert len(scripted.runtime.calls) > before
    assert read(second) < first["usage"]["input_tokens"]
    streamed = await served.events("Add.", tools=[ADD], max_output_tokens=60)
    (same,) = streamed[-1]["response"]["output"]
    assert (same["name"], same["arguments"]) == (item["name"], item["arguments"])


async def test_a_form_is_kept_to(served):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "name": "N", "schema": schema, "strict": True}
    answer = await served.answer(text={"format": form}, max_output_tokens=20)
    assert answer["text"]["format"] == form
    assert text_of(answer).startswith('{"n":')


@pytest.mark.parametrize("summary", [None, "auto"])
async def test_a_thought_is_an_item_of_its_own(served, summary):
    served.scripted.will_say(">Hm.</think>\nSeven.", "Hi.", reasoning="low")
    asked = {"effort": "low", "summary": summary}
    answer = await served.answer(reasoning=asked)
    thought, message = answer["output"]
    holds = "summary" if summary else "content"
    assert (thought["type"], thought[holds][0]["text"]) == ("reasoning", "Hm.")
    assert message["content"][0]["text"] == "Seven."
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    last = (await served.events(reasoning=asked))[-1]["response"]
    assert last["output"][0][holds] == thought[holds]
    again = await served.answer([thought, {"role": "user", "content": "Hi."}])
    assert again["status"] == "completed"


async def test_log_probabilities_come_with_the_text(served):
    answer = await served.answer(include=["message.output_text.logprobs"], top_logprobs=2)
    entries = answer["output"][0]["content"][0]["logprobs"]
    assert "".join(entry["token"] for entry in entries).strip() == "Hello."
    assert {len(entry["top_logprobs"]) for entry in entries} == {2}
    assert (await served.answer())["output"][0]["content"][0]["logprobs"] == []


# -- how answers end -------------------------------------------------------------------------------


async def test_an_answer_that_was_cut_is_incomplete_and_can_be_gone_on_from(served):
    events = await served.events(max_output_tokens=1)
    last = events[-1]
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "incomplete")
    follow = await served.ask("On.", previous_response_id=last["response"]["id"])
    assert follow.status == 200


def failing(scripted, after, error):
    """Has the model fail once it has said some tokens."""
    calls = []

    def fail(tokens):
        calls.append(tokens)
        if len(calls) > after:
            raise error

    scripted.runtime.before_forward = fail


async def test_a_model_that_fails_at_once_gives_a_status(served):
    failing(served.scripted, 0, RuntimeError("a fuse"))
    reply = await served.ask(stream=True)
    assert (reply.status, reply.error["code"]) == (503, "engine_unavailable")


async def test_a_model_that_fails_in_the_middle_ends_the_stream_with_the_failure(served):
    served.will_say("One two three four five.", "Go.")
    failing(served.scripted, 3, RuntimeError("a fuse"))
    events = await served.events("Go.")
    assert events[0]["type"] == "response.created"
    last = events[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["code"] == "engine_unavailable"
    assert last["response"]["id"] == events[0]["response"]["id"]
    assert served.held(last["response"]) == []


async def test_a_store_that_is_full_ends_the_stream_with_the_failure(served, monkeypatch):
    def full(*args, **options):
        raise StoreFull("No room.")

    monkeypatch.setattr(served.store, "keep", full)
    last = (await served.events())[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {
        "code": "store_full",
        "message": "The server's store failed (StoreFull); its log says more.",
    }
    assert (await served.ask()).status == 507


async def test_who_leaves_frees_the_model_and_keeps_nothing(served):
    served.scripted.runtime.script(served.scripted.prompt("Go."), [66] * 5000)
    fields = {"model": "demo", "input": "Go.", "stream": True, "max_output_tokens": 5000}
    async with served.client.stream(PATH, fields) as stream:
        created = await anext(stream.data())
    assert (await served.answer("Next."))["status"] == "incomplete"  # a step later at most
    assert len(served.scripted.runtime.calls) < 4000
    assert served.held(created["response"]) == []


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"text": {"verbosity": "low"}}, "verbosity"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "N"}}}, "text.format.schema"),
        ({"reasoning": {"effort": "xhigh"}}, "reasoning.effort"),
        ({"truncation": "middle"}, "truncation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"on_conflict": "fork"}, "on_conflict"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"conversation": {"name": "x"}}, "conversation"),
        ({"conversation": "x" * 513}, "conversation"),
        ({"conversation": "c", "previous_response_id": "r"}, "previous_response_id"),
        ({"previous_response_id": "r"}, "previous_response_id"),
    ],
)
async def test_what_cannot_be_had_is_named(served, fields, param):
    reply = await served.ask(**fields)
    assert (reply.status, reply.error["param"]) == (400, param)


async def test_a_field_that_nobody_knows_is_told_with_the_nearest(served):
    reply = await served.ask(previous_reponse_id="x")
    assert reply.status == 400
    assert "previous_response_id" in reply.error["message"]


async def test_another_model_is_not_found(served):
    reply = await served.client.post(PATH, {"model": "gpt-5", "input": "Hi."})
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")


async def test_what_says_nothing_is_taken_and_labels_come_back(served):
    neutral = {
        "background": False,
        "service_tier": "auto",
        "truncation": "auto",
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "prompt_cache_key": "k",
        "user": "u",
        "max_tool_calls": None,
        "conversation": None,
        "metadata": {"a": "b"},
    }
    answer = await served.answer(**neutral)
    assert (answer["metadata"], answer["user"], answer["truncation"]) == ({"a": "b"}, "u", "auto")


@pytest.mark.parametrize(("fields", "again"), [({"conversation": "talk"}, "false"), ({}, None)])
async def test_a_turn_that_may_have_been_committed_is_not_to_be_sent_again(
    served, monkeypatch, fields, again
):
    async def lost(*_, **__):
        raise StoreError("The connection is lost.")

    for name in ("acommit", "akeep", "to_its_end"):
        monkeypatch.setattr(type(served.store), name, lost)
    reply = await served.ask(**fields)
    assert reply.status == 503
    assert reply.headers.get("x-should-retry") == again
    figures = served.client._app.state.metrics.text().decode()
    assert 'store_errors_total{error="StoreError"} 1.0' in figures
    assert "broken_streams_total{" not in figures, "it was no stream"
