"""Responses and conversations, asked for by the stock ``openai`` package and by ChatOpenAI."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import Response
from pydantic import BaseModel

from langchain_rwkv_state.serve import ServeSettings
from tests.helpers.server import serving

GREEDY: Any = {"model": "demo", "temperature": 0}
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Tell the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Paris"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}

LONG: Any = {
    "text": {
        "format": {
            "type": "json_schema",
            "name": "Long",
            "schema": {
                "type": "object",
                "properties": {"text": {"type": "string", "minLength": 1000}},
                "required": ["text"],
            },
        }
    },
    "max_output_tokens": 1000,
}
"""Asks for an answer that takes a while."""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    store = tmp_path_factory.mktemp("served") / "states"
    with serving(ServeSettings(model="demo", store=str(store))) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client(url):
    with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def bob(client):
    return client.responses.create(**GREEDY, input="My name is Bob.")


def read(usage):
    return usage.input_tokens - usage.input_tokens_details.cached_tokens


def test_a_response_has_all_that_the_package_requires(bob):
    Response.model_validate_json(bob.model_dump_json(warnings=False))
    assert "Bob" in bob.output_text


def test_an_answer_goes_on_from_an_earlier_one(client, bob):
    answer = client.responses.create(
        **GREEDY, input="What is my name?", previous_response_id=bob.id
    )
    assert answer.output_text == "Your name is Bob."
    assert read(answer.usage) < answer.usage.input_tokens


def test_a_stream_says_what_the_whole_answer_says(client, bob):
    asked = {**GREEDY, "input": "What is my name?", "previous_response_id": bob.id}
    with client.responses.create(**asked, stream=True) as events:
        raw = list(events)
    assert (raw[0].type, raw[-1].type) == ("response.created", "response.completed")
    deltas = [event.delta for event in raw if event.type == "response.output_text.delta"]
    assert "".join(deltas) == raw[-1].response.output_text == "Your name is Bob."
    with client.responses.stream(**asked) as stream:
        snapshots = [event.snapshot for event in stream if event.type.endswith("text.delta")]
        final = stream.get_final_response()
    assert snapshots[-1] == final.output_text == "Your name is Bob."
    again = client.responses.create(**GREEDY, input="Thank you.", previous_response_id=final.id)
    assert again.status == "completed"


def test_any_turn_can_be_branched(client, bob):
    talk = client.responses.create(**GREEDY, input="I live in Paris.", previous_response_id=bob.id)
    for before, said in ((bob, "My name is Ann."), (talk, "Good morning.")):
        branch = client.responses.create(**GREEDY, input=said, previous_response_id=before.id)
        name = client.responses.create(
            **GREEDY, input="What is my name?", previous_response_id=branch.id
        )
        assert ("Ann" if before is bob else "Bob") in name.output_text


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_output_is_read(client, stream):
    asked = {**GREEDY, "input": "Weather in Rome?", "tools": [WEATHER], "tool_choice": "required"}
    if stream:
        with client.responses.stream(**asked) as events:
            first = events.until_done().get_final_response()
    else:
        first = client.responses.create(**asked)
    call = next(item for item in first.output if item.type == "function_call")
    assert json.loads(call.arguments)["city"] in ("Rome", "Paris")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    second = client.responses.create(
        **GREEDY, input=[result], previous_response_id=first.id, tools=[WEATHER]
    )
    assert second.status == "completed"
    replayed = [{"role": "user", "content": "Weather in Rome?"}]
    replayed += [item.model_dump(exclude_none=True) for item in first.output]
    whole = client.responses.create(
        **GREEDY, input=[*replayed, result], tools=[WEATHER], store=False
    )
    assert whole.output_text == second.output_text


class Person(BaseModel):
    name: str
    age: int


def test_an_answer_in_a_form_is_parsed(client):
    answer = client.responses.parse(
        **GREEDY, input="Ann is 31.", text_format=Person, max_output_tokens=200
    )
    assert isinstance(answer.output_parsed, Person)
    with client.responses.stream(
        **GREEDY, input="Ann is 31.", text_format=Person, max_output_tokens=200
    ) as events:
        assert events.get_final_response().output_parsed == answer.output_parsed


def test_log_probabilities_are_told(client):
    answer = client.responses.create(
        **GREEDY,
        input="Hi.",
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )
    (part,) = answer.output[0].content
    assert "".join(entry.token for entry in part.logprobs).strip() == part.text
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in part.logprobs)


def test_what_was_cut_says_so(client):
    with client.responses.stream(**GREEDY, input="Good morning.", max_output_tokens=1) as stream:
        types = [event.type for event in stream]
    assert types[-1] == "response.incomplete"


def test_a_deleted_one_is_gone(client):
    one = client.responses.create(**GREEDY, input="My name is Bob.")
    client.responses.delete(one.id)
    for ask in (
        lambda: client.responses.delete(one.id),
        lambda: client.responses.create(**GREEDY, input="Who?", previous_response_id=one.id),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert caught.value.code == "not_found"
    with pytest.raises(openai.BadRequestError, match="words"):
        client.responses.retrieve(one.id)


def test_what_was_not_kept_cannot_be_gone_on_from(client):
    one = client.responses.create(**GREEDY, input="Hi.", store=False)
    with pytest.raises(openai.NotFoundError, match="store=false"):
        client.responses.create(**GREEDY, input="Who?", previous_response_id=one.id)


def test_what_ran_out_says_so(tmp_path):
    settings = ServeSettings(model="demo", store=str(tmp_path / "states"), ttl=0.5)
    with (
        serving(settings) as address,
        OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        one = client.responses.create(**GREEDY, input="Hi.")
        time.sleep(1.1)  # an id tells whole seconds
        with pytest.raises(openai.NotFoundError) as caught:
            client.responses.create(**GREEDY, input="Who?", previous_response_id=one.id)
    assert caught.value.code == "expired"


def test_a_turn_goes_on_at_any_server_over_the_store(tmp_path):
    settings = ServeSettings(model="demo", store=str(tmp_path / "states"))
    with serving(settings) as one, serving(settings) as other:
        before = None
        for turn in range(4):
            url = (one, other)[turn % 2]
            with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
                said = "What is my name?" if turn else "My name is Bob."
                answer = client.responses.create(**GREEDY, input=said, previous_response_id=before)
            assert "Bob" in answer.output_text
            before = answer.id


def test_an_id_of_another_key_is_as_one_that_never_was(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("ann sk-ann-0123456789abcdef\nbob sk-bob-0123456789abcdef\n")
    keys.chmod(0o600)
    settings = ServeSettings(model="demo", store=str(tmp_path / "s"), api_key_file=str(keys))
    with serving(settings) as address:
        ann, bob = (
            OpenAI(base_url=f"{address}/v1", api_key=f"sk-{name}-0123456789abcdef", max_retries=0)
            for name in ("ann", "bob")
        )
        with ann, bob:
            one = ann.responses.create(**GREEDY, input="My name is Ann.")
            talk = ann.conversations.create()
            told = []
            for known in (one.id, one.id[:-32] + "0" * 32):
                with pytest.raises(openai.NotFoundError) as caught:
                    bob.responses.create(**GREEDY, input="Who?", previous_response_id=known)
                told.append(caught.value.message.replace(known, "ID"))
                with pytest.raises(openai.NotFoundError):
                    bob.responses.delete(known)
            assert told[0] == told[1]
            with pytest.raises(openai.NotFoundError):
                bob.conversations.retrieve(talk.id)
            again = ann.responses.create(
                **GREEDY, input="What is my name?", previous_response_id=one.id
            )
    assert again.output_text == "Your name is Ann."


def test_a_conversation_is_made_used_and_deleted(client):
    made = client.conversations.create()
    assert client.conversations.retrieve(made.id) == made
    for said, expected in (("My name is Bob.", "Bob"), ("What is my name?", "Bob")):
        answer = client.responses.create(**GREEDY, input=said, conversation=made.id)
        assert expected in answer.output_text
        assert answer.conversation is not None
        assert answer.conversation.id == made.id
    assert client.conversations.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(**GREEDY, input="Hi.", conversation=made.id)
    # A response of it lives on its own.
    branch = client.responses.create(
        **GREEDY, input="What is my name?", previous_response_id=answer.id
    )
    assert branch.output_text == "Your name is Bob."


async def test_who_was_slower_is_told_and_tries_no_more(url):
    sent = []

    async def note(request):
        sent.append(json.loads(request.content).get("text"))

    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=2) as client:
        client._client.event_hooks["request"].append(note)
        asked = {**GREEDY, "input": "Good morning.", "conversation": "race"}
        slow = asyncio.ensure_future(client.responses.create(**asked, **LONG))
        while not slow.done():
            await client.responses.create(**asked)
        with pytest.raises(openai.ConflictError) as caught:
            await slow
        assert caught.value.code == "conversation_conflict"
        assert sent.count(LONG["text"]) == 1
        waits = {**asked, "extra_body": {"on_conflict": "wait"}}
        waiting = [client.responses.create(**waits) for _ in range(3)]
        assert [each.status for each in await asyncio.gather(*waiting)] == ["completed"] * 3


async def test_a_stream_that_is_left_commits_nothing_and_frees_the_model(url):
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        asked = {**GREEDY, "input": "Tell me a story.", "conversation": "left", **LONG}
        stream = await client.responses.create(**asked, stream=True)
        async for event in stream:
            if event.type == "response.output_text.delta":
                break
        await stream.close()
        answer = await client.responses.create(**GREEDY, input="Good morning.")
        assert answer.status == "completed"
        with pytest.raises(openai.NotFoundError):
            await client.conversations.retrieve("left")


# -- LangChain's stock client ----------------------------------------------------------------------


def chat_over(url, **settings):
    known = {"base_url": url, "api_key": "none", "max_retries": 0, "temperature": 0}
    return ChatOpenAI(model="demo", use_responses_api=True, **known | settings)


@pytest.mark.parametrize("stream", [False, True])
def test_five_turns_by_previous_response_id_read_what_is_new_alone(url, stream):
    chat = chat_over(url, use_previous_response_id=True)
    said: list = [HumanMessage("My name is Bob.")]
    counts = []
    for _turn in range(5):
        if stream:
            chunks = list(chat.stream(said))
            answer = sum(chunks[1:], start=chunks[0])
        else:
            answer = chat.invoke(said)
        assert isinstance(answer, AIMessage)
        usage: Any = answer.usage_metadata
        counts.append(usage["input_tokens"] - usage["input_token_details"]["cache_read"])
        said += [answer, HumanMessage("What is my name?")]
    assert "Bob" in said[-2].text
    assert len(set(counts[1:])) == 1


def test_a_thinker_is_refused_where_the_model_does_not_think(url):
    with pytest.raises(openai.BadRequestError, match="reasoning"):
        chat_over(url, reasoning={"effort": "low"}).invoke("Hi.")
