"""Tools: bound in every form, called in every way, fed back, and all of it in one state."""

from __future__ import annotations

import functools
import operator
from typing import Literal, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from langchain_rwkv_state.errors import SchemaError
from langchain_rwkv_state.messages import STATE_KEY, marker
from langchain_rwkv_state.template import DemoTemplate, G1Template, WorldTemplate
from tests.helpers.scripted_chat import WORLD, ScriptedChat, in_bytes


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def now() -> str:
    """The time."""
    return "noon"


class Paint(BaseModel):
    """Paint a thing."""

    thing: str
    colour: Literal["red", "blue"] = "red"


class Note(TypedDict):
    """Write a note."""

    text: str


SEARCH = {
    "title": "search",
    "description": "Search.",
    "type": "object",
    "properties": {"query": {"type": "string"}},
    "required": ["query"],
}
TOOLS = [add, now, Paint, Note, SEARCH]
ADD = '{"name":"add","arguments":{"a":3,"b":4}}'
NOW = '{"name":"now","arguments":{}}'


def fenced(*calls: str) -> str:
    body = calls[0] if len(calls) == 1 else f"[{','.join(calls)}]"
    return f" ```json\n{body}\n```"


@pytest.fixture(scope="module", params=[G1Template, WorldTemplate, DemoTemplate])
def scripted(request):
    scripted = ScriptedChat(request.param)
    yield scripted
    scripted.close()


def bound(scripted, said, tools=TOOLS, messages="Hi.", **options):
    """Returns a model with tools that will say something."""
    runnable = scripted.chat.bind_tools(tools, **options)
    scripted.will_say(said, messages, **runnable.kwargs)
    return runnable


def test_the_tools_stand_below_the_system_prompt(scripted):
    runnable = scripted.chat.bind_tools(TOOLS)
    plan = scripted.chat._prepare(
        [SystemMessage("Be kind."), HumanMessage("Hi.")], None, dict(runnable.kwargs)
    )
    assert WORLD.decode(plan.request.prompt) == (
        "System: Be kind.\nTools:\n"
        "- add(a: integer, b: integer) - Add two numbers.\n"
        "- now() - The time.\n"
        '- Paint(thing: string, colour?: "red" | "blue") - Paint a thing.\n'
        "- Note(text: string) - Write a note.\n"
        "- search(query: string) - Search.\n"
        "Return only a JSON function call.\n\n"
        "User: Hi.\n\nAssistant:"
    )


@pytest.mark.parametrize("spelling", [WORLD.encode, in_bytes])
@pytest.mark.parametrize("choice", ["auto", "any", "add", True])
def test_a_call_is_heard_and_is_in_the_state_as_its_message_is(scripted, spelling, choice):
    runnable = bound(scripted, spelling(fenced(ADD)), tool_choice=choice)
    answer = runnable.invoke("Hi.")
    assert answer.content == ""
    (call,) = answer.tool_calls
    # Spelt in bytes the call is led back to canonical ids, and off the script behind them.
    assert call["name"] == "add"
    assert set(map(type, call["args"].values())) == {int}
    assert spelling is in_bytes or call["args"] == {"a": 3, "b": 4}
    assert answer.response_metadata["finish_reason"] == "stop"
    listing = SystemMessage(scripted.chat.loaded().template.tools.listing(runnable.kwargs["tools"]))
    ref = scripted.chat.prefill([listing, HumanMessage("Hi."), answer])
    assert answer.response_metadata[STATE_KEY] == ref
    result = [
        HumanMessage("Hi."),
        answer,
        ToolMessage("7", tool_call_id=answer.tool_calls[0]["id"]),
    ]
    scripted.will_say(" The result is 7.", result, ends=True, **runnable.kwargs)
    if choice == "auto":
        assert runnable.invoke(result).content == "The result is 7."


def test_words_and_calls_in_one_answer(scripted):
    both = bound(scripted, f" Well.\n{fenced(ADD, NOW).strip()}").invoke("Hi.")
    assert both.content == "Well."
    assert [call["name"] for call in both.tool_calls] == ["add", "now"]
    assert len({call["id"] for call in both.tool_calls}) == 2
    words = bound(scripted, " Not with ```json\n{}\n``` nor {}.").invoke("Hi.")
    assert (words.content, words.tool_calls) == ("Not with ```json\n{}\n``` nor {}.", [])


def test_calls_are_streamed_as_they_are_written(scripted):
    runnable = bound(scripted, fenced(NOW, ADD))
    chunks = list(runnable.stream("Hi."))
    whole = functools.reduce(operator.add, chunks)
    assert [(c["name"], c["args"]) for c in whole.tool_calls] == [
        ("now", {}),
        ("add", {"a": 3, "b": 4}),
    ]
    assert "".join(chunk.content for chunk in chunks) == ""
    assert len([chunk for chunk in chunks if chunk.tool_call_chunks]) >= 4
    assert whole.response_metadata[STATE_KEY] == runnable.invoke("Hi.").response_metadata[STATE_KEY]


def test_what_the_model_would_say_else_is_no_call_where_one_is_asked_for(scripted):
    words = " I would rather not."
    answer = bound(scripted, words, messages="A?", tool_choice="any").invoke("A?", max_tokens=2000)
    assert len(answer.tool_calls) >= 1
    assert answer.content == ""
    named = bound(scripted, fenced(ADD), messages="B?", tool_choice="now").invoke("B?")
    assert [(c["name"], c["args"]) for c in named.tool_calls] == [("now", {})]
    options = {"tool_choice": "any", "parallel_tool_calls": False}
    one = bound(scripted, fenced(ADD, NOW), messages="C?", **options)
    assert len(one.invoke("C?").tool_calls) == 1


def test_no_call_where_none_is_wanted(scripted):
    answer = bound(scripted, fenced(ADD), tool_choice="none").invoke("Hi.", max_tokens=30)
    assert answer.tool_calls == []
    assert '{"name":"' not in answer.content


def test_a_call_that_is_cut_off_is_none(scripted):
    runnable = bound(scripted, fenced(NOW, ADD))
    seen = set()
    for most in range(1, 24):
        answer = runnable.invoke("Hi.", max_tokens=most)
        calls = [(c["name"], c["args"]) for c in answer.tool_calls]
        assert calls == [("now", {}), ("add", {"a": 3, "b": 4})][: len(calls)]
        if answer.response_metadata["finish_reason"] == "length":
            seen.add((len(calls), len(answer.invalid_tool_calls)))
    assert {(0, 0), (1, 1)} <= seen


def test_a_conversation_reads_its_tools_once(scripted):
    runnable = bound(scripted, fenced(ADD), messages=[HumanMessage("Hi.")])
    answer = runnable.invoke([HumanMessage("Hi.")])
    known = marker(answer.response_metadata[STATE_KEY])
    result = ToolMessage("7", tool_call_id="x")
    plan = scripted.chat._prepare([known, result], None, dict(runnable.kwargs))
    assert WORLD.decode(plan.request.prompt) == "\n\nUser: Function output:\n7\n\nAssistant:"
    other = scripted.chat.bind_tools([now])
    with pytest.warns(UserWarning, match="messages before the state marker"):
        plan = scripted.chat._prepare([known, result], None, dict(other.kwargs))
    assert "- now()" in WORLD.decode(plan.request.prompt)


def test_tokens_are_counted_with_tools(scripted):
    said = [HumanMessage("Hi.")]
    bare = scripted.chat.get_num_tokens_from_messages(said)
    listed = scripted.chat.get_num_tokens_from_messages(said, tools=TOOLS)
    runnable = scripted.chat.bind_tools(TOOLS)
    plan = scripted.chat._prepare(said, None, dict(runnable.kwargs))
    prompt = len(scripted.chat.loaded().template.segments([], start=False, answer=True)[0].ids)
    assert bare < listed == len(plan.request.prompt) - prompt


@pytest.mark.parametrize(
    ("tools", "options", "error", "match"),
    [
        ([add], {"tool_choice": "sub"}, ValueError, r"tool_choice is 'sub'.*\(add\)"),
        ([], {"tool_choice": "any"}, ValueError, "there are no tools"),
        ([add, {"name": "add", "parameters": {}}], {}, ValueError, "Two tools are called 'add'"),
        ([3], {}, ValueError, "A tool is 3"),
        (add, {}, ValueError, "tools is a list"),
        ([{"name": "f", "parameters": {"not": {}}}], {}, SchemaError, "not"),
    ],
)
def test_what_cannot_be_bound_says_why(scripted, tools, options, error, match):
    with pytest.raises(error, match=match):
        scripted.chat.bind_tools(tools, **options)


def test_an_unknown_option_is_an_error(scripted):
    with pytest.raises(ValueError, match="parallel_tool_calls"):
        scripted.chat.bind_tools([add], parallel_tool_cals=True).invoke("Hi.")


def test_a_session_takes_tools_and_reads_results_alone(scripted):
    talk = scripted.chat.with_session("tools", ttl=60).bind_tools([add])
    said = [HumanMessage("3 and 4?")]
    scripted.will_say(fenced(ADD), said, **talk.kwargs)
    answer = talk.invoke(said)
    assert answer.tool_calls[0]["args"] == {"a": 3, "b": 4}
    result = ToolMessage("7", tool_call_id=answer.tool_calls[0]["id"])
    scripted.will_say(" 7.", [*said, answer, result], **talk.kwargs)
    assert talk.invoke([result]).content == "7."
    scripted.chat.store.delete_session("tools")


def test_a_history_commits_the_call_that_was_answered(scripted):
    from langchain_rwkv_state import RWKVStateHistory

    history = RWKVStateHistory("calls", scripted.chat.store)
    runnable = scripted.chat.bind_tools([add])
    said = HumanMessage("3 and 4?")
    scripted.will_say(fenced(ADD), [said], **runnable.kwargs)
    answer = runnable.invoke([*history.messages, said])
    history.add_messages([said, answer])
    assert scripted.chat.store.head("calls") == answer.response_metadata[STATE_KEY]
    scripted.will_say(fenced(ADD), [said], **runnable.kwargs)
    other = RWKVStateHistory("others", scripted.chat.store)
    answer = runnable.invoke([*other.messages, said])
    other.add_messages([said, AIMessage("")])  # a step that dropped the call
    assert scripted.chat.store.head("others") is None
    for name in ("calls", "others"):
        scripted.chat.store.delete_session(name)
