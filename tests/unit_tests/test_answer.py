"""From what a model says to a message: text, calls, and what was cut off, however it is cut up."""

from __future__ import annotations

import functools
import itertools
import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_rwkv_state.prompt.answer import AnswerStream, read_answer
from langchain_rwkv_state.prompt.template import G1Template
from langchain_rwkv_state.prompt.tools import ToolFormat
from langchain_rwkv_state.tokenizer import WorldTokenizer

FORMAT = ToolFormat()
G1 = G1Template(WorldTokenizer())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(st.text(min_size=1), st.dictionaries(st.text(), JSON, max_size=3)), max_size=3
)
WORDS = st.lists(
    st.sampled_from(["Well", " ", "\n", "\n\n", "```json\n", "```", '{"name":', "[", "- a", "x"])
).map(lambda parts: "".join(parts).strip())


def streamed(text: str, cuts: list[int]):
    """Returns the message that the pieces of a text add up to."""
    stream = AnswerStream(FORMAT)
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    chunks = []
    for start, end in itertools.pairwise(places):
        chunks += stream.push(text[start:end])
    chunks += stream.end()
    return functools.reduce(operator.add, chunks) if chunks else None


@given(words=WORDS, calls=CALLS, cuts=st.lists(st.integers(0, 500)))
def test_what_was_written_is_read_and_streamed_whole(words, calls, cuts):
    text = "\n".join(part for part in (words, FORMAT.calls(calls) if calls else "") if part)
    answer = read_answer(text, FORMAT)
    assert (answer.text, list(answer.calls), answer.cut) == (words, calls, None)
    assert answer.canonical(G1) == text
    message = streamed(text, cuts)
    if message is None:
        assert not text
        return
    assert message.content == words
    assert [(call["name"], call["args"]) for call in message.tool_calls] == calls


@given(words=WORDS, calls=CALLS, end=st.integers(0, 500), cuts=st.lists(st.integers(0, 500)))
def test_what_was_cut_off_is_no_call(words, calls, end, cuts):
    whole = "\n".join(part for part in (words, FORMAT.calls(calls) if calls else "") if part)
    text = whole[:end].rstrip()
    answer = read_answer(text, FORMAT)
    assert list(answer.calls) == calls[: len(answer.calls)]
    message = answer.message()
    assert len(message.tool_calls) == len(answer.calls)
    assert [(call["name"], call["args"]) for call in message.invalid_tool_calls] == (
        [] if answer.cut is None else [answer.cut]
    )
    pieces = streamed(text, cuts)
    assert (pieces.content if pieces else "").strip() == answer.text.strip()


@pytest.mark.parametrize(
    "text",
    [
        'As in ```json\n{"name":"f","arguments":{}}\n```',  # no line of its own
        '```json\n{"a":1}\n```',
        '```json\n{"name": "f", "arguments": {}}\n```',
        '```python\n{"name":"f","arguments":{}}\n```',
    ],
)
def test_other_json_is_text(text):
    assert read_answer(text, FORMAT).message().content == text
    assert read_answer(text, FORMAT).message().tool_calls == []


def test_without_tools_nothing_is_a_call():
    text = FORMAT.calls([("f", {})])
    assert read_answer(text, None).text == text


def test_each_call_has_an_id_and_a_thought_stands_apart():
    answer = read_answer(FORMAT.calls([("f", {}), ("f", {})]), FORMAT)
    message = answer.message(thought="Hm.")
    assert len({call["id"] for call in message.tool_calls}) == 2
    assert message.additional_kwargs == {"reasoning_content": "Hm."}
    assert message.content_blocks[0] == {"type": "reasoning", "reasoning": "Hm."}
