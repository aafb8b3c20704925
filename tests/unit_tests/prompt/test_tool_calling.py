"""Tools: bound in every form, called in every way, fed back, and all of it in one state."""

from __future__ import annotations

import functools
import json
import operator
from typing import Literal, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from langchain_rwkv_state.errors import SchemaError, UnsupportedContentError
from langchain_rwkv_state.prompt.answer_message import read_answer
from langchain_rwkv_state.prompt.markers import STATE_KEY, marker
from langchain_rwkv_state.prompt.template import DemoTemplate, G1Template, WorldTemplate
from langchain_rwkv_state.prompt.tools import ToolFormat
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
JSON = {"type": "json_object"}
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
    _, plan = scripted.chat.plan_call(
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
    asked = bound(scripted, words, tools=[now], messages="A?", tool_choice="any")
    answer = asked.invoke("A?", max_tokens=200)
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
    assert {(0, 0), (0, 1), (1, 1)} <= seen


def test_what_is_cut_off_early_is_not_told_as_words(scripted):
    runnable = bound(scripted, fenced(ADD), messages="Cut?", tool_choice="any")
    for most in range(1, 12):
        answer = runnable.invoke("Cut?", max_tokens=most)
        assert answer.content == ""
        listing = SystemMessage(ToolFormat().listing(runnable.kwargs["tools"]))
        ref = scripted.chat.prefill([listing, HumanMessage("Cut?"), answer])
        assert answer.response_metadata[STATE_KEY] == ref
        chunks = list(runnable.stream("Cut?", max_tokens=most))
        assert "".join(chunk.content for chunk in chunks) == ""


def test_stop_texts_end_words_alone(scripted):
    runnable = bound(scripted, fenced(ADD), messages="Stop?", tool_choice="any")
    for stop in ("\n", "```", ',"b"', "add"):
        assert runnable.invoke("Stop?", stop=[stop]).tool_calls[0]["args"] == {"a": 3, "b": 4}
    free = bound(scripted, f" Well.\n{fenced(ADD).strip()}", messages="Stop.")
    assert free.invoke("Stop.", stop=['"b"']).tool_calls[0]["args"] == {"a": 3, "b": 4}
    assert free.invoke("Stop.", stop=["l."]).content == "Wel"
    with pytest.raises(ValueError, match=r"'\\n' stands in what calls of tools begin with"):
        free.invoke("Stop.", stop=["\n"])


def test_an_answer_that_was_begun_goes_on_with_tools(scripted):
    given = [HumanMessage("Go?"), AIMessage("We")]
    runnable = bound(scripted, f"ll.\n{fenced(ADD).strip()}", messages=given)
    answer = runnable.invoke(given)
    assert answer.content == "Well."
    assert answer.tool_calls[0]["args"] == {"a": 3, "b": 4}
    listing = SystemMessage(ToolFormat().listing(runnable.kwargs["tools"]))
    ref = scripted.chat.prefill([listing, HumanMessage("Go?"), answer])
    assert answer.response_metadata[STATE_KEY] == ref
    with pytest.raises(ValueError, match="holds the answer to JSON from its beginning"):
        runnable.invoke(given, tool_choice="any")


def test_a_conversation_reads_its_tools_once(scripted):
    runnable = bound(scripted, fenced(ADD), messages=[HumanMessage("Hi.")])
    answer = runnable.invoke([HumanMessage("Hi.")])
    known = marker(answer.response_metadata[STATE_KEY])
    result = ToolMessage("7", tool_call_id="x")
    _, plan = scripted.chat.plan_call([known, result], None, dict(runnable.kwargs))
    assert WORLD.decode(plan.request.prompt) == "\n\nUser: Function output:\n7\n\nAssistant:"
    other = scripted.chat.bind_tools([now])
    with pytest.warns(UserWarning, match="messages before the state marker"):
        _, plan = scripted.chat.plan_call([known, result], None, dict(other.kwargs))
    assert "- now()" in WORLD.decode(plan.request.prompt)


def test_tokens_are_counted_with_tools(scripted):
    said = [HumanMessage("Hi.")]
    bare = scripted.chat.get_num_tokens_from_messages(said)
    listed = scripted.chat.get_num_tokens_from_messages(said, tools=TOOLS)
    runnable = scripted.chat.bind_tools(TOOLS)
    _, plan = scripted.chat.plan_call(said, None, dict(runnable.kwargs))
    assert bare < listed == len(plan.request.prompt)


@pytest.mark.parametrize(
    ("tools", "options", "error", "match"),
    [
        ([add], {"tool_choice": "sub"}, ValueError, r"tool_choice is 'sub'.*\(add\)"),
        ([], {"tool_choice": "any"}, ValueError, "there are no tools"),
        ([add], {"tool_choice": "any", "response_format": JSON}, ValueError, "one or the other"),
        ([add], {"parallel_tool_calls": "no"}, ValueError, "parallel_tool_calls is True, False"),
        ([add], {"response_format": {**JSON, "schema": {}}}, ValueError, "response_format is"),
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


@pytest.mark.parametrize(
    "ways",
    [
        lambda chat: chat.with_session("tools", ttl=60).bind_tools([add]),
        lambda chat: chat.bind_tools([add]).with_session("tools", ttl=60),
    ],
)
def test_a_session_takes_tools_and_reads_results_alone(scripted, ways):
    talk = ways(scripted.chat)
    said = [HumanMessage("3 and 4?")]
    scripted.will_say(fenced(ADD), said, **talk.kwargs)
    answer = talk.invoke(said)
    assert answer.tool_calls[0]["args"] == {"a": 3, "b": 4}
    result = ToolMessage("7", tool_call_id=answer.tool_calls[0]["id"])
    scripted.will_say(" 7.", [*said, answer, result], **talk.kwargs)
    assert talk.invoke([result]).content == "7."
    scripted.chat.store.delete_session("tools")


def test_what_python_does_not_read_is_no_call(scripted):
    class Big(BaseModel):
        n: int = 0

    huge = "9" * 5000
    said = fenced(f'{{"name":"Big","arguments":{{"n":{huge}}}}}')
    answer = read_answer(said.strip(), ToolFormat())
    assert (answer.calls, answer.cut) == ((), ("Big", f'{{"n":{huge}}}'))


def test_a_picture_in_a_system_prompt_is_refused_with_tools_too(scripted):
    said = [SystemMessage([{"type": "image_url", "image_url": "x"}]), HumanMessage("Hi.")]
    with pytest.raises(UnsupportedContentError, match="image_url"):
        scripted.chat.bind_tools([add]).invoke(said)


class Node(BaseModel):
    """A node."""

    n: int
    children: list[Node] = []


def test_a_schema_that_refers_to_itself_is_held(scripted):
    said = '{"n":1,"children":[{"n":2,"children":[]}]}'
    call = fenced(f'{{"name":"Node","arguments":{said}}}')
    runnable = bound(scripted, call, tools=[Node], messages="Node?", tool_choice="Node")
    assert runnable.invoke("Node?").tool_calls[0]["args"] == json.loads(said)
    chain = scripted.chat.with_structured_output(Node)
    scripted.will_say(f" {said}", "Node?", **chain.first.kwargs)
    assert chain.invoke("Node?") == Node.model_validate_json(said)
    for schema in (Node.model_json_schema(), {"name": "Node", "schema": Node.model_json_schema()}):
        chain = scripted.chat.with_structured_output(schema)
        scripted.will_say(f" {said}", "Node?", **chain.first.kwargs)
        assert chain.invoke("Node?") == json.loads(said)


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
