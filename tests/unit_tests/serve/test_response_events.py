"""The events of a streamed response: their order, their numbers, and what clients add up."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from langchain_rwkv_state.serve.answers import Answered, CallPiece, Piece
from langchain_rwkv_state.serve.errors import ApiError
from langchain_rwkv_state.serve.response_events import ResponseDocument, ResponseEvents
from langchain_rwkv_state.serve.response_output import Output

TEXT = [Piece("Good "), Piece("morning\n☕.")]
THOUGHT = [Piece(thought="H"), Piece(thought="m.")]
CALLS = [
    Piece(call=CallPiece(0, "call_a", "add", "")),
    Piece(call=CallPiece(0, None, None, '{"a"')),
    Piece(call=CallPiece(0, None, None, ":1}")),
    Piece(call=CallPiece(1, "call_b", "mul", "{}")),
]


def answered(reason="stop"):
    return Answered(AIMessage(""), reason, 10, 4, 5, 2)


def streamed(pieces, reason="stop", *, summarised=False, fails=None):
    output = Output(summarised=summarised)
    document = ResponseDocument("resp_1", 7.5, "demo", {"metadata": {}})
    events = ResponseEvents(document, output)
    raw = events.begin() + b"".join(map(events.piece, pieces))
    raw += events.end(answered(reason)) if fails is None else events.fail(fails)
    found: list[Any] = []
    for each in raw.decode().split("\n\n")[:-1]:
        name, data = each.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def names(events):
    found: list[str] = []
    for event in events:
        name = event["type"].removeprefix("response.")
        if not found or found[-1] != name:
            found.append(name)
    return found


def whole(pieces, reason="stop", *, summarised=False):
    output = Output(summarised=summarised)
    for piece in pieces:
        output.take(piece)
    output.begin_empty()
    return ResponseDocument("resp_1", 7.5, "demo", {"metadata": {}}).ended(output, answered(reason))


def without_ids(document):
    return [{k: v for k, v in item.items() if k != "id"} for item in document["output"]]


def test_a_text_comes_in_the_order_that_clients_rely_on():
    assert names(streamed(TEXT)) == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.done", "content_part.done", "output_item.done"),
        "completed",
    ]


def test_calls_come_in_the_order_that_clients_rely_on():
    each = ["output_item.added", "function_call_arguments.delta"]
    each += ["function_call_arguments.done", "output_item.done"]
    assert names(streamed(CALLS)) == ["created", "in_progress", *each, *each, "completed"]


@pytest.mark.parametrize(
    ("summarised", "part", "text"),
    [
        (False, "content_part", "reasoning_text"),
        (True, "reasoning_summary_part", "reasoning_summary_text"),
    ],
)
def test_a_thought_is_told_before_the_text(summarised, part, text):
    assert names(streamed([*THOUGHT, *TEXT], summarised=summarised))[:8] == [
        *("created", "in_progress", "output_item.added", f"{part}.added"),
        *(f"{text}.delta", f"{text}.done", f"{part}.done", "output_item.done"),
    ]


@pytest.mark.parametrize("pieces", [TEXT, CALLS, [*TEXT, *CALLS], [*THOUGHT, *TEXT, *CALLS], []])
@pytest.mark.parametrize("summarised", [False, True])
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_a_stream_adds_up_to_the_whole_answer(pieces, summarised, reason):
    events = streamed(pieces, reason, summarised=summarised)
    items: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for event in events:
        if event["type"] == "response.output_item.added":
            item = event["item"]
            assert event["output_index"] == len(items)
            items[item["id"]] = item
            texts[item["id"]] = item.get("arguments", "")
        elif event["type"].endswith("part.added"):
            texts[event["item_id"]] += event["part"]["text"]
        elif event["type"].endswith(".delta"):
            assert event["output_index"] == len(items) - 1
            texts[event["item_id"]] += event["delta"]
        elif event["type"] == "response.output_item.done":
            done = event["item"]
            holds = done.get("content") or done.get("summary") or [{"text": done.get("arguments")}]
            assert texts[done["id"]] == holds[0]["text"]
            assert items[done["id"]].get("call_id") == done.get("call_id")
            items[done["id"]] = done
    last = events[-1]["response"]
    assert list(items.values()) == last["output"]
    assert without_ids(last) == without_ids(whole(pieces, reason, summarised=summarised))


def test_what_was_cut_is_incomplete_and_says_why():
    last = streamed([*TEXT, *CALLS], "length")[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in last["response"]["output"]] == [
        *("completed", "completed", "incomplete")
    ]


def test_what_failed_ends_with_its_error_and_with_what_was_said():
    last = streamed(TEXT, fails=ApiError(504, "Too late.", code="deadline_exceeded"))[-1]
    assert last["type"] == "response.failed"
    response = last["response"]
    assert response["error"] == {"code": "deadline_exceeded", "message": "Too late."}
    assert response["output"][0]["content"][0]["text"] == "Good morning\n☕."
    assert (response["status"], response["usage"]) == ("failed", None)


def test_where_nothing_was_said_there_is_an_empty_message():
    events = streamed([])
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == ""
    assert "response.content_part.added" in [event["type"] for event in events]


def test_usage_tells_what_was_cached_and_what_was_thought():
    assert whole(TEXT)["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 15,
    }


def test_log_probabilities_go_with_their_text():
    entries = [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}]
    pieces = [Piece("Hi", logprobs={"content": entries}), Piece(".")]
    events = streamed(pieces)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [event.get("logprobs") for event in deltas] == [entries, []]
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == entries


def test_half_a_surrogate_pair_breaks_no_stream():
    assert streamed([Piece("a\ud83d")])[4]["delta"] == "a?"
