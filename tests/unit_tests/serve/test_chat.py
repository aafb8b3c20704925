"""Chat completions asked of the application: whole and streamed, tools, thoughts, errors."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest

from langchain_rwkv_state.errors import EngineError
from langchain_rwkv_state.prompt.template import WorldTemplate
from tests.helpers.asgi_client import AsgiClient
from tests.helpers.one_tenant import app_over
from tests.helpers.scripted_chat import WORLD, ScriptedChat

PATH = "/v1/chat/completions"
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
CALLED = '```json\n{"name":"add","arguments":{"a":1,"b":2}}\n```'
JSON = {"type": "json_object"}


class Served:
    """A scripted model, and a client of it."""

    def __init__(self, scripted, app, client):
        self.scripted, self.app, self.client = scripted, app, client
        self.usage = app.state.tenants.usage

    def will_say(self, said, messages="Hi.", **options):
        self.scripted.will_say(said, messages, **options)

    async def ask(self, said="Hi.", **fields):
        known = {"model": "demo", "messages": [{"role": "user", "content": said}]}
        return await self.client.post(PATH, known | fields)

    async def answer(self, said="Hi.", **fields):
        reply = await self.ask(said, **fields)
        assert reply.status == 200, reply.body
        return reply.json()

    def stream(self, said="Hi.", **fields):
        known = {"model": "demo", "messages": [{"role": "user", "content": said}], "stream": True}
        return self.client.stream(PATH, known | fields)

    async def chunks(self, said="Hi.", **fields):
        async with self.stream(said, **fields) as stream:
            assert stream.status == 200
            found = [each async for each in stream.data()]
        assert found.pop() == "[DONE]"
        return found

    def paused(self, after):
        """Has the model wait once it has read so many times; returns what lets it go on."""
        loop, held, go = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        seen = []

        def before(_):
            seen.append(1)
            if len(seen) == after:
                loop.call_soon_threadsafe(held.set)
                go.wait(10)

        self.scripted.runtime.before_forward = before
        return held, go


@pytest.fixture
async def served():
    scripted = ScriptedChat(max_tokens=48)
    app = app_over(scripted.chat)
    async with AsgiClient(app) as client:
        yield Served(scripted, app, client)
    scripted.close()


def joined(chunks, name="content"):
    return "".join(
        chunk["choices"][0]["delta"].get(name) or "" for chunk in chunks if chunk["choices"]
    )


def calls_of(chunks):
    """Adds up calls as OpenAI's clients do."""
    calls: dict = {}
    for chunk in chunks:
        for part in chunk["choices"][0]["delta"].get("tool_calls", ()):
            call = calls.setdefault(part["index"], {"ids": [], "name": "", "arguments": ""})
            call["ids"] += [part["id"]] if "id" in part else []
            call["name"] += part["function"].get("name") or ""
            call["arguments"] += part["function"]["arguments"]
    return [calls[index] for index in sorted(calls)]


# -- texts -----------------------------------------------------------------------------------------


async def test_an_answer_has_all_that_clients_read(served):
    served.will_say(" Hello.")
    found = await served.answer()
    assert found["object"] == "chat.completion"
    assert found["id"].startswith("chatcmpl-")
    assert found["model"] == "demo"
    assert found["system_fingerprint"].startswith("fp_")
    [choice] = found["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "Hello.",
        "refusal": None,
        "annotations": [],
    }
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    usage = found["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0


async def test_a_stream_has_the_role_first_and_the_reason_last(served):
    served.will_say(" Hello, Bob.")
    chunks = await served.chunks()
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert deltas[-1] == {}
    assert joined(chunks) == "Hello, Bob."
    assert len(deltas) > 4
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


async def test_a_stream_tells_its_cost_where_it_was_asked_for(served):
    served.will_say(" Hello.")
    whole = await served.answer()
    *chunks, last = await served.chunks(stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]


async def test_texts_of_every_kind_arrive_as_they_are(served):
    text = 'A "quote", a \\, two\nlines, 你好, 🦙, \u2028 and \u0007.'
    served.will_say(f" {text}")
    assert (await served.answer())["choices"][0]["message"]["content"] == text
    assert joined(await served.chunks()) == text


async def test_a_stop_text_and_a_limit_end_an_answer(served):
    served.will_say(" One, two, three.")
    found = await served.answer(stop=", three")
    assert found["choices"][0]["message"]["content"] == "One, two"
    assert found["choices"][0]["finish_reason"] == "stop"
    for name in ("max_tokens", "max_completion_tokens"):
        found = await served.answer(**{name: 2})
        assert found["choices"][0]["finish_reason"] == "length"
        assert found["usage"]["completion_tokens"] == 2


async def test_sampling_reaches_the_engine(served, monkeypatch):
    seen: list = []
    submit = served.scripted.engine.submit

    def watched(request):
        seen.append(request)
        return submit(request)

    monkeypatch.setattr(served.scripted.engine, "submit", watched)
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3}
    fields |= {"presence_penalty": 0.1, "frequency_penalty": 0.2, "penalty_decay": 0.9}
    await served.answer(**fields, max_tokens=1)
    assert {name: getattr(seen[0].sampling, name) for name in fields} == fields


async def test_log_probabilities_come_whole_and_piece_by_piece(served):
    served.will_say(" Hello, Bob.")
    asked = {"logprobs": True, "top_logprobs": 2}
    whole = (await served.answer(**asked))["choices"][0]["logprobs"]
    assert whole["refusal"] is None
    assert b"".join(bytes(each["bytes"]) for each in whole["content"]).strip() == b"Hello, Bob."
    assert {len(each["top_logprobs"]) for each in whole["content"]} == {2}
    chunks = await served.chunks(**asked)
    found = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    pieces = [entry for each in found if each for entry in each["content"]]
    assert pieces == whole["content"]
    assert joined(chunks) == "Hello, Bob."


# -- tools and JSON --------------------------------------------------------------------------------


async def test_a_call_has_its_id_name_and_arguments(served):
    served.will_say(f" {CALLED}", tools=[ADD])
    found = (await served.answer(tools=[ADD]))["choices"][0]
    assert found["finish_reason"] == "tool_calls"
    assert found["message"]["content"] is None
    [call] = found["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    assert call["function"] == {"name": "add", "arguments": '{"a":1,"b":2}'}


async def test_a_call_is_streamed_as_it_is_written(served):
    served.will_say(f" {CALLED}", tools=[ADD])
    chunks = await served.chunks(tools=[ADD])
    [call] = calls_of(chunks)
    assert (call["name"], json.loads(call["arguments"])) == ("add", {"a": 1, "b": 2})
    assert len(call["ids"]) == 1
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    parts = [c for c in chunks if c["choices"][0]["delta"].get("tool_calls")]
    assert len(parts) > 2
    assert joined(chunks) == ""


async def test_a_call_that_is_cut_off_is_told_as_far_as_it_came(served):
    said = ' ```json\n{"name":"add","arguments":{"a":1'
    served.will_say(said, tools=[ADD], ends=False)
    most = len(WORLD.encode(said))
    whole = (await served.answer(tools=[ADD], max_tokens=most))["choices"][0]
    chunks = await served.chunks(tools=[ADD], max_tokens=most)
    [call] = whole["message"]["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": '{"a":1'}
    assert calls_of(chunks)[0]["arguments"] == '{"a":1'
    assert whole["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("required", True),
        ("none", False),
        ({"type": "function", "function": {"name": "add"}}, True),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "add"}}],
                },
            },
            True,
        ),
    ],
)
async def test_which_tool_must_be_called_is_heeded(served, choice, called):
    other = {"type": "function", "function": {"name": "now"}}
    most = 400 if called else 20
    found = await served.answer(tools=[ADD, other], tool_choice=choice, max_tokens=most)
    names = [
        each["function"]["name"] for each in found["choices"][0]["message"].get("tool_calls", ())
    ]
    assert bool(names) == called
    if choice != "required":
        assert set(names) <= {"add"}


async def test_one_call_at_a_time_where_it_is_asked_for(served):
    call = '{"name":"add","arguments":{"a":1,"b":2}}'
    served.will_say(f" ```json\n[{call},{call}]\n```", tools=[ADD])
    found = await served.answer(tools=[ADD])
    assert len(found["choices"][0]["message"]["tool_calls"]) == 2
    found = await served.answer(tools=[ADD], parallel_tool_calls=False, max_tokens=200)
    assert len(found["choices"][0]["message"].get("tool_calls", ())) < 2


async def test_json_is_what_was_asked_for(served):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "Found", "schema": schema}}
    found = await served.answer(response_format=wanted)
    assert set(json.loads(found["choices"][0]["message"]["content"])) == {"ok"}
    chunks = await served.chunks(response_format=wanted)
    assert set(json.loads(joined(chunks))) == {"ok"}
    served.will_say(" {}", response_format=JSON)
    found = await served.answer(response_format=JSON)
    assert json.loads(found["choices"][0]["message"]["content"]) == {}
    served.will_say(" Words.")
    found = await served.answer(response_format={"type": "text"})
    assert found["choices"][0]["message"]["content"] == "Words."


# -- thoughts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effort", "reasoning"), [("minimal", "low"), ("low", "low"), ("high", "high")]
)
async def test_a_thought_stands_beside_the_answer(served, effort, reasoning):
    served.will_say(">Hm, well.</think>\nYes.", reasoning=reasoning)
    found = await served.answer(reasoning_effort=effort)
    message = found["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm, well.", "Yes.")
    tokens = found["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < tokens < found["usage"]["completion_tokens"]
    chunks = await served.chunks(reasoning_effort=effort)
    assert joined(chunks, "reasoning_content") == "Hm, well."
    assert joined(chunks) == "Yes."


async def test_no_effort_is_no_thought(served):
    served.will_say(">Yes.", reasoning=False)
    message = (await served.answer(reasoning_effort="none"))["choices"][0]["message"]
    assert message["content"] == "Yes."
    assert "reasoning_content" not in message


async def test_a_model_that_cannot_think_says_so():
    scripted = ScriptedChat(WorldTemplate)
    async with AsgiClient(app_over(scripted.chat)) as client:
        messages = [{"role": "user", "content": "Hi."}]
        asked = {"model": "demo", "messages": messages, "reasoning_effort": "high"}
        reply = await client.post(PATH, asked)
    scripted.close()
    assert reply.status == 400
    assert "asks for a thought" in reply.error["message"]


# -- what is wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"logit_bias": {"5": 10}}, "logit_bias"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "none"}, "function_call"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"verbosity": "low"}, "verbosity"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "include_obfuscation"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"reasoning_effort": "xhigh"}, "reasoning_effort"),
        ({"temperature": "hot"}, "temperature"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [ADD], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": 3}}]}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [ADD], "tool_choice": {"type": "function"}}, "tools"),
        ({"tools": [ADD], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        (
            {
                "tools": [ADD],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": 3},
                },
            },
            "tool_choice",
        ),
        ({"messages": []}, "messages"),
        ({"model": "gpt-4o"}, "model"),
    ],
)
async def test_what_is_not_supported_is_named(served, fields, param):
    reply = await served.ask(**fields)
    assert reply.status == (404 if param == "model" else 400)
    assert reply.error["param"] == param
    assert reply.error["type"] == "invalid_request_error"
    assert param.rpartition(".")[2] in reply.error["message"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"temperature": -1}, "temperature must be 0 or more"),
        ({"top_p": 0}, "top_p must be"),
        ({"max_tokens": 0}, "max_tokens must be 1 or more"),
        ({"stop": [""]}, "stop must be texts"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"response_format": {"type": "xml"}}, "response_format is"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"temprature": 1}, "did you mean temperature?"),
    ],
)
async def test_what_cannot_be_says_why(served, fields, says):
    reply = await served.ask(**fields)
    assert reply.status == 400
    assert says in reply.error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "logit_bias": {}, "modalities": ["text"], "service_tier": "auto"},
        {"store": True, "metadata": {"a": "b"}, "user": "bob", "safety_identifier": "x"},
        {"prompt_cache_key": "x", "prediction": {"type": "content", "content": "Hi."}},
        {"functions": None, "audio": None, "n": None, "stop": None, "seed": None, "tools": None},
        {"tools": [], "tool_choice": "none"},
    ],
)
async def test_what_asks_for_nothing_is_let_pass(served, fields):
    served.will_say(" Hello.")
    found = await served.answer(**fields)
    assert found["choices"][0]["message"]["content"] == "Hello."


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"Hi."', b'{"model": "demo"}', b"\xff"])
async def test_a_malformed_body_is_a_400(served, body):
    reply = await served.client.post(PATH, body=body)
    assert reply.status == 400
    assert reply.error["message"]


async def test_what_fails_before_the_first_piece_has_a_status(served):
    served.scripted.engine.close()
    for stream in (False, True):
        reply = await served.ask(stream=stream)
        assert reply.status == 503
        assert reply.headers["retry-after"]
        assert reply.error["code"] == "engine_unavailable"


async def test_what_fails_in_the_middle_is_an_event_and_the_end(served):
    served.will_say(" One, two, three.", ends=False)
    seen = []

    def before(_):
        seen.append(1)
        if len(seen) == 4:
            raise EngineError("The device is gone.")

    served.scripted.runtime.before_forward = before
    async with served.stream() as stream:
        found = [each async for each in stream.data()]
    assert found[-1]["error"]["message"] == "The device is gone."
    assert found[-1]["error"]["type"] == "server_error"
    assert joined(found[:-1]).startswith("One")
    assert "[DONE]" not in found


# -- who leaves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_whoever_leaves_frees_the_slot(served, stream):
    served.will_say(" One, two, three, four, five, six, seven.", ends=False)
    held, go = served.paused(after=4)
    asked = {"model": "demo", "messages": [{"role": "user", "content": "Hi."}], "stream": stream}
    exchange = served.client.send("POST", PATH, asked)
    await held.wait()
    assert served.scripted.engine.stats().active == 1
    await exchange.leave()
    go.set()
    for _ in range(100):
        if not served.scripted.engine.stats().active:
            break
        await asyncio.sleep(0.01)
    assert served.scripted.engine.stats().active == 0
    assert len(served.scripted.runtime.calls) <= 6  # within a step
    [(read, cached, answered)] = served.usage.answers
    assert (read > 0, cached) == (True, 0)
    assert 0 < answered < 5


async def test_an_answer_is_counted_once(served):
    served.will_say(" Hello.")
    found = await served.answer()
    chunks = await served.chunks(stream_options={"include_usage": True})
    usage = found["usage"]
    cost = (usage["prompt_tokens"], 0, usage["completion_tokens"])
    assert served.usage.answers == [cost, cost]
    assert chunks[-1]["usage"] == usage


async def test_pieces_that_are_there_already_go_in_one_write(served):
    served.will_say(" One, two, three, four.")
    held, go = served.paused(after=2)
    exchange = served.client.send(
        "POST",
        PATH,
        {"model": "demo", "messages": [{"role": "user", "content": "Hi."}], "stream": True},
    )
    await held.wait()
    go.set()
    time.sleep(0.2)  # noqa: ASYNC251 # it says all, and nobody listens
    events = [event async for event in (await exchange.start()).events()]
    await exchange.task
    assert len(events) > 8
    assert exchange.sent <= 4


# -- schemas that ask for too much -----------------------------------------------------------------


def nested(depth):
    schema: dict[str, object] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


WIDE = {"type": "object", "properties": {f"p{at}": {"type": "string"} for at in range(3000)}}


@pytest.mark.parametrize("schema", [nested(400), WIDE], ids=["deep", "wide"])
async def test_a_schema_that_cannot_be_held_is_the_clients_fault(served, schema):
    served.will_say(" Hi.")
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    answer = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    for fields in ({"tools": [tool], "tool_choice": "required"}, {"response_format": answer}):
        reply = await served.ask(**fields)
        assert reply.status == 400, reply.body


async def test_the_name_of_an_unknown_field_is_told_in_short(served):
    reply = await served.ask(**{"x" * 100_000: 1})
    assert reply.status == 400
    assert len(reply.body) < 2000
