"""Log-probabilities as LangChain has OpenAI's: of the content, whole or in a stream's pieces."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage

from langchain_rwkv_state import RWKVLLM, MemoryStateStore
from langchain_rwkv_state.loaded import Loaded
from langchain_rwkv_state.prompt.template import G1Template
from tests.helpers.scripted_chat import WORLD, ScriptedChat, in_bytes

CALL = '{"name":"add","arguments":{"a":3,"b":4}}'
JSON = {"type": "json_object"}


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.fixture
def scripted() -> Iterator[ScriptedChat]:
    made = ScriptedChat()
    yield made
    made.close()


@pytest.fixture
def llm(scripted: ScriptedChat) -> RWKVLLM:
    made = RWKVLLM(
        model="demo", store=MemoryStateStore(), prefix_cache=False, temperature=0, max_tokens=9
    )
    engine, zero = scripted.engine, scripted.runtime.zero_state()
    made._loaded = Loaded(scripted.runtime, WORLD, G1Template(WORLD), engine, zero)
    return made


def content_of(about: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = about["logprobs"]["content"]
    assert all([*each] == ["token", "bytes", "logprob", "top_logprobs"] for each in found)
    return found


def joined(content: list[dict[str, Any]]) -> str:
    return bytes(byte for each in content for byte in each["bytes"] or ()).decode()


def streamed(scripted: ScriptedChat, messages: Any, **options: Any) -> AIMessageChunk:
    chunks = list(scripted.chat.stream(messages, **options))
    for chunk in chunks[:-1]:
        if "logprobs" in chunk.response_metadata:
            assert chunk.text
            assert content_of(chunk.response_metadata)
    whole = functools.reduce(operator.add, chunks)
    assert isinstance(whole, AIMessageChunk)
    return whole


async def both_ways(scripted: ScriptedChat, messages: Any = "Hi.", **options: Any) -> AIMessage:
    """Asks in every way, which must say the same; returns the answer of `invoke`."""
    options = {"logprobs": True, **options}
    answer = scripted.chat.invoke(messages, **options)
    content = content_of(answer.response_metadata)
    stream = streamed(scripted, messages, **options)
    assert stream.text == answer.text
    assert content_of(stream.response_metadata) == content
    again = await scripted.chat.ainvoke(messages, **options)
    assert content_of(again.response_metadata) == content
    pieces = [chunk async for chunk in scripted.chat.astream(messages, **options)]
    whole = functools.reduce(operator.add, pieces)
    assert content_of(whole.response_metadata) == content
    return answer


@pytest.mark.parametrize("spelling", [WORLD.encode, in_bytes])
async def test_an_answer_has_those_of_its_content(scripted, spelling):
    scripted.will_say(spelling(" Hé, 漢字!\n\nWell."))
    answer = await both_ways(scripted)
    content = content_of(answer.response_metadata)
    assert answer.text == "Hé, 漢字!\n\nWell."
    assert joined(content).strip() == answer.text
    assert all(each["logprob"] <= 0 and not each["top_logprobs"] for each in content)


async def test_the_likeliest_stand_beside_each(scripted):
    scripted.will_say(" Hello.")
    answer = await both_ways(scripted, top_logprobs=3)
    content = content_of(answer.response_metadata)
    read = list(scripted.prompt("Hi."))
    for each in content:
        logits, _ = scripted.runtime.forward(read, scripted.runtime.zero_state())
        values, ids = torch.log_softmax(logits.double(), 0).topk(3)
        assert each["logprob"] == pytest.approx(values[0].item(), abs=1e-5)
        assert [one["logprob"] for one in each["top_logprobs"]] == pytest.approx(
            values.tolist(), abs=1e-5
        )
        assert [one["token"] for one in each["top_logprobs"]] == [
            WORLD.decode([one]) for one in ids.tolist()
        ]
        read.append(int(ids[0]))


async def test_a_call_and_a_thought_are_no_content(scripted):
    said = f"<think>Hm, hm.</think>\nWell.\n```json\n{CALL}\n```"
    options = {"tools": [add]}
    scripted.will_say(said, **options)
    answer = await both_ways(scripted, **options)
    assert [call["name"] for call in answer.tool_calls] == ["add"]
    assert joined(content_of(answer.response_metadata)).strip() == answer.text == "Well."


async def test_where_there_is_only_a_call_the_list_is_empty(scripted):
    scripted.will_say(f"```json\n{CALL}\n```", tools=[add])
    answer = await both_ways(scripted, tools=[add], tool_choice="any")
    assert answer.tool_calls
    assert content_of(answer.response_metadata) == []


async def test_json_has_all_of_its_tokens(scripted):
    scripted.will_say(' {"a":[1,2]}', response_format=JSON)
    answer = await both_ways(scripted, response_format=JSON, top_logprobs=1)
    content = content_of(answer.response_metadata)
    assert joined(content).strip() == answer.text == '{"a":[1,2]}'


async def test_of_an_answer_that_is_continued_only_what_is_new_has_some(scripted):
    messages = [HumanMessage("Hi."), AIMessage("Good mor")]
    scripted.will_say("ning, you.", messages)
    answer = await both_ways(scripted, messages)
    assert answer.text == "Good morning, you."
    assert joined(content_of(answer.response_metadata)) == "ning, you."


async def test_of_an_answer_that_is_continued_up_to_a_call_the_call_has_none(scripted):
    messages = [HumanMessage("Hi."), AIMessage("Good morning to you, and")]
    scripted.will_say(f" on.\n```json\n{CALL}\n```", messages, tools=[add])
    answer = await both_ways(scripted, messages, tools=[add])
    assert answer.tool_calls
    assert joined(content_of(answer.response_metadata)) == " on."


async def test_a_session_hands_them_on(scripted):
    bob = scripted.chat.with_session("bob")
    scripted.will_say(" Hello.")
    answer = bob.invoke("Hi.", logprobs=True)
    assert joined(content_of(answer.response_metadata)).strip() == "Hello."


def test_nobody_gets_what_was_not_asked_for(scripted, llm):
    assert "logprobs" not in scripted.chat.invoke("Hi.").response_metadata
    assert "logprobs" not in streamed(scripted, "Hi.", logprobs=False).response_metadata
    assert "logprobs" not in llm.generate(["Hi."]).generations[0][0].generation_info


async def test_a_completion_has_them_in_its_generation_info(llm, scripted):
    prompts = ["Once", "There was"]
    for prompt, said in zip(prompts, ["upon a é", " one."], strict=True):
        scripted.runtime.script(WORLD.encode(prompt), [*in_bytes(f" {said}"), 0])
    options = {"logprobs": True, "top_logprobs": 2}
    found = llm.generate(prompts, **options).generations
    for prompt, [whole] in zip(prompts, found, strict=True):
        content = content_of(whole.generation_info)
        assert joined(content) == whole.text
        assert {len(each["top_logprobs"]) for each in content} == {2}
        stream = functools.reduce(operator.add, llm._stream(prompt, **options))
        assert stream.generation_info == whole.generation_info
        pieces = [each async for each in llm._astream(prompt, **options)]
        assert functools.reduce(operator.add, pieces).generation_info == whole.generation_info


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_logprobs": 2}, "top_logprobs=2 .* logprobs=None .* pass logprobs=True"),
        ({"logprobs": False, "top_logprobs": 0}, "logprobs=False"),
        ({"logprobs": True, "top_logprobs": 21}, "whole number from 0 to 20, or None, got 21"),
        ({"logprobs": True, "top_logprobs": -1}, "whole number from 0 to 20, or None, got -1"),
        ({"logprobs": True, "top_logprobs": True}, "got True"),
        ({"logprobs": 5}, "logprobs is True, False or None, got 5: .* is top_logprobs"),
    ],
)
def test_what_cannot_be_asked_for_is_said(scripted, llm, options, message):
    with pytest.raises(ValueError, match=message):
        scripted.chat.invoke("Hi.", **options)
    with pytest.raises(ValueError, match=message):
        llm.invoke("Hi.", **options)
