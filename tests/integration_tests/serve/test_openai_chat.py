"""The stock `openai` package over chat completions and completions, by HTTP, on the demo model."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from langchain_rwkv_state import ChatRWKV, MemoryStateStore
from langchain_rwkv_state.errors import EngineError
from tests.helpers.one_tenant import app_over
from tests.helpers.scripted_chat import ScriptedChat
from tests.helpers.server import serving

HI: Any = [{"role": "user", "content": "Good morning."}]
ADD: Any = {
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
MANY = {"type": "array", "items": {"type": "boolean"}, "minItems": 2000}
LONG = {"type": "object", "properties": {"all": MANY}, "required": ["all"]}
ENDLESS: Any = {
    "model": "demo",
    "messages": HI,
    "max_tokens": 100_000,
    "response_format": {"type": "json_schema", "json_schema": {"name": "Long", "schema": LONG}},
}
SUM: Any = [{"role": "user", "content": "Add 3 and 4."}]


class Mood(BaseModel):
    """How somebody is."""

    mood: Literal["good", "bad"]


@pytest.fixture(scope="module")
def chat():
    model = ChatRWKV(model="demo", store=MemoryStateStore(), temperature=0, max_tokens=64)
    model.loaded()
    yield model
    model.unload()


@pytest.fixture(scope="module")
def url(chat):
    with serving(app_over(chat)) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
async def aclient(url):
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def none_active(chat):
    """Says whether the engine has nothing to do within a second."""
    for _ in range(100):
        if not chat.stats().active:
            return True
        time.sleep(0.01)
    return False


def test_a_conversation_by_its_transcript(client):
    messages: Any = [{"role": "user", "content": "My name is Bob."}]
    first = client.chat.completions.create(model="demo", messages=messages)
    answer = first.choices[0].message
    messages += [answer.model_dump(), {"role": "user", "content": "What is my name?"}]
    second = client.chat.completions.create(model="demo", messages=messages)
    assert "Bob" in second.choices[0].message.content
    assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens
    assert second.usage.completion_tokens_details.reasoning_tokens == 0


def test_a_stream_says_what_the_whole_answer_does(client):
    whole = client.chat.completions.create(model="demo", messages=HI)
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model="demo", messages=HI, stream=True, stream_options=options
    )
    *chunks, last = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == whole.choices[0].message.content
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_helper_for_streams_adds_up(client):
    with client.chat.completions.stream(model="demo", messages=SUM, tools=[ADD]) as stream:
        kinds = {event.type for event in stream}
        found = stream.get_final_completion()
    assert "chunk" in kinds
    assert found.choices[0].finish_reason in ("stop", "tool_calls")


async def test_asynchronously_whole_and_streamed(aclient):
    whole = await aclient.chat.completions.create(model="demo", messages=HI)
    stream = await aclient.chat.completions.create(model="demo", messages=HI, stream=True)
    said = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(said) == whole.choices[0].message.content
    assert len([piece for piece in said if piece]) > 2


def test_tools_are_called_and_answered(client):
    asked: Any = {"model": "demo", "tools": [ADD], "tool_choice": "required"}
    answer = client.chat.completions.create(messages=SUM, **asked).choices[0]
    assert answer.finish_reason == "tool_calls"
    [call] = answer.message.tool_calls
    assert call.function.name == "add"
    assert set(json.loads(call.function.arguments)) == {"a", "b"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "7"}
    messages = [*SUM, answer.message.model_dump(exclude_none=True), result]
    last = client.chat.completions.create(model="demo", messages=messages, tools=[ADD])
    assert "7" in last.choices[0].message.content


def test_a_streamed_call_is_the_whole_ones(client):
    asked: Any = {"model": "demo", "messages": SUM, "tools": [ADD], "tool_choice": "required"}
    [whole] = client.chat.completions.create(**asked).choices[0].message.tool_calls
    parts = [
        part
        for chunk in client.chat.completions.create(**asked, stream=True)
        for part in chunk.choices[0].delta.tool_calls or ()
    ]
    assert parts[0].function.name == "add"
    assert [part.id for part in parts if part.id] == [parts[0].id]
    arguments = "".join(part.function.arguments for part in parts)
    assert arguments == whole.function.arguments


def test_structured_output_is_parsed(client):
    found = client.chat.completions.parse(model="demo", messages=HI, response_format=Mood)
    assert found.choices[0].message.parsed.mood in ("good", "bad")
    with client.chat.completions.stream(model="demo", messages=HI, response_format=Mood) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.parsed == found.choices[0].message.parsed


def test_log_probabilities(client):
    found = client.chat.completions.create(
        model="demo", messages=HI, logprobs=True, top_logprobs=3
    ).choices[0]
    tokens = found.logprobs.content
    assert "".join(token.token for token in tokens).strip() == found.message.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in tokens)


def test_a_seed_repeats_an_answer(client):
    asked: Any = {"model": "demo", "messages": HI, "temperature": 9, "top_p": 1, "max_tokens": 12}
    said = [
        client.chat.completions.create(**asked, seed=seed).choices[0].message.content
        for seed in (1, 1, 2, 3, 4)
    ]
    assert said[0] == said[1]
    assert len(set(said)) > 1


def test_a_stream_that_is_closed_frees_its_slot(client, chat):
    stream = client.chat.completions.create(**ENDLESS, stream=True)
    next(iter(stream))
    assert chat.stats().active == 1
    stream.close()
    assert none_active(chat)


async def test_a_cancelled_call_frees_its_slot(aclient, chat):
    with pytest.raises(openai.APITimeoutError):
        await aclient.chat.completions.create(**ENDLESS, timeout=0.3)
    assert none_active(chat)


def test_errors_are_the_clients_own(client):
    with pytest.raises(openai.NotFoundError, match="'gpt-4o' is not served here"):
        client.chat.completions.create(model="gpt-4o", messages=HI)
    with pytest.raises(openai.BadRequestError, match="n is not supported") as caught:
        client.chat.completions.create(model="demo", messages=HI, n=2)
    assert (caught.value.param, caught.value.code) == ("n", "unsupported_parameter")


def test_an_error_in_the_middle_of_a_stream_is_raised():
    scripted = ScriptedChat(max_tokens=48)
    scripted.will_say(" One, two, three.", ends=False)

    def before(_):
        if len(scripted.runtime.calls) == 4:
            raise EngineError("The device is gone.")

    scripted.runtime.before_forward = before
    with (
        serving(app_over(scripted.chat)) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client,
    ):
        said: Any = [{"role": "user", "content": "Hi."}]
        stream = client.chat.completions.create(model="demo", messages=said, stream=True)
        first = next(iter(stream))
        with pytest.raises(openai.APIError, match="The device is gone"):
            list(stream)
    assert first.choices[0].delta.role == "assistant"
    scripted.close()


def test_texts_are_completed(client):
    text = "User: My name is Bob.\n\nAssistant:"
    asked: Any = {"model": "demo", "temperature": 0, "stop": "\n\n"}
    found = client.completions.create(prompt=[text, text], **asked)
    assert [choice.index for choice in found.choices] == [0, 1]
    assert "Bob" in found.choices[0].text
    stream = client.completions.create(prompt=text, stream=True, **asked)
    assert "".join(chunk.choices[0].text for chunk in stream) == found.choices[0].text


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").object == "model"


def test_a_stream_on_the_wire(url):
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    connection = http.client.HTTPConnection(host, int(port))
    body = json.dumps({"model": "demo", "messages": HI, "stream": True})
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    lines = answer.read().decode().split("\n\n")
    connection.close()
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: {") for line in lines[:-2])
