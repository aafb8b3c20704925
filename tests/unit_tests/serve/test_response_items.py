"""Items of the Responses API as messages of LangChain's."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from langchain_rwkv_state.serve.errors import ApiError
from langchain_rwkv_state.serve.response_items import read_items

CALL = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a":1}'}


def output_of(text, call_id="c1"):
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def said(role, text, **more):
    return {"role": role, "content": text, **more}


def test_a_text_is_what_the_user_says():
    assert read_items("Hi.") == [HumanMessage("Hi.")]


def test_roles_are_those_of_the_api_and_a_message_needs_no_type():
    items = [
        said("developer", "Be kind."),
        said("system", "Be short.", type="message"),
        said("user", [{"type": "input_text", "text": "A"}, {"type": "input_text", "text": "B"}]),
        said("assistant", [{"type": "output_text", "text": "C", "annotations": []}], id="msg_1"),
    ]
    assert read_items(items) == [
        SystemMessage("Be kind."),
        SystemMessage("Be short."),
        HumanMessage("AB"),
        AIMessage("C"),
    ]


def test_a_thought_a_text_and_calls_that_follow_one_another_are_one_answer():
    thought = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "H"}],
    }
    other = {**CALL, "call_id": "c2", "name": "mul", "arguments": '{"b": [2]}'}
    items = [said("user", "Go."), thought, said("assistant", "Well."), CALL, other]
    items += [output_of("3"), output_of([{"type": "input_text", "text": "4"}], "c2")]
    _, answer, first, second = read_items(items)
    assert isinstance(answer, AIMessage)
    assert answer.content == "Well."
    assert answer.additional_kwargs == {"reasoning_content": "H"}
    assert [(c["name"], c["args"], c["id"]) for c in answer.tool_calls] == [
        ("add", {"a": 1}, "c1"),
        ("mul", {"b": [2]}, "c2"),
    ]
    assert first == ToolMessage("3", tool_call_id="c1")
    assert second == ToolMessage("4", tool_call_id="c2")


def test_two_answers_in_a_row_stay_two():
    items = [said("assistant", "One."), said("assistant", "Two."), CALL, said("assistant", "3.")]
    answers: list[Any] = read_items(items)
    one, two, three = answers
    assert (one.content, two.content, three.content) == ("One.", "Two.", "3.")
    assert (len(one.tool_calls), len(two.tool_calls), len(three.tool_calls)) == (0, 1, 0)


def test_an_answer_that_said_nothing_is_said_and_a_thought_alone_is_not():
    thought = {"type": "reasoning", "summary": [], "content": "Hm."}
    items = [said("user", "A"), said("assistant", ""), thought, said("user", "B")]
    assert read_items(items) == [HumanMessage("A"), AIMessage(""), HumanMessage("B")]


@pytest.mark.parametrize("arguments", ['{"a":', "[1]", "7", "[" * 100_000])
def test_a_call_that_was_cut_off_stays_so(arguments):
    answer: Any = read_items([{**CALL, "arguments": arguments}])[0]
    assert not answer.tool_calls
    assert answer.invalid_tool_calls[0]["args"] == arguments


def test_an_output_needs_its_call_where_all_is_there_and_nowhere_else():
    with pytest.raises(ApiError, match=r"input\[0\]\.call_id is 'c9'.*previous_response_id"):
        read_items([output_of("3", "c9")])
    assert read_items([output_of("3", "c9")], whole=False)[0].content == "3"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (7, "input"),
        ([], "input"),
        (["Hi."], "input[0]"),
        ([said("robot", "Hi.")], "input[0].role"),
        ([said("user", 7)], "input[0].content"),
        ([said("user", ["Hi."])], "input[0].content[0]"),
        ([said("user", [{"type": "input_image"}])], "input[0].content[0].type"),
        ([said("user", [{"type": "input_text"}])], "input[0].content[0].text"),
        ([said("user", "Hi."), {"type": "item_reference", "id": "x"}], "input[1].type"),
        ([{"type": "web_search_call"}], "input[0].type"),
        ([{"type": ["message"]}], "input[0].type"),
        ([{"content": "Hi."}], "input[0].type"),
        ([{**CALL, "arguments": {"a": 1}}], "input[0].arguments"),
        ([{**CALL, "name": None}], "input[0].name"),
        ([CALL, {"type": "function_call_output", "call_id": "c1"}], "input[1].output"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_place(given, param):
    with pytest.raises(ApiError) as caught:
        read_items(given)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_no_item_becomes_a_marker():
    from langchain_rwkv_state.messages import STATE_KEY

    items = [said("system", "x", additional_kwargs={STATE_KEY: "rwkv1-" + "0" * 64})]
    assert not read_items(items)[0].additional_kwargs
