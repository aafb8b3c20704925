"""Thought and answer are told apart, however the text is cut, and no tag is ever shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_rwkv_state.engine import Delta, Request, Thought
from langchain_rwkv_state.engine.answer import Answer
from tests.helpers.fake_runtime import FakeRuntime
from tests.unit_tests.engine.test_stop import cut, ends, expected

ZERO = FakeRuntime().zero_state()
ROLES = ("User", "Assistant")
THOUGHT = Thought(">", "</think>")
PARTS = ["a", "\n", " ", ">", "<", "</", "think", "</think>", "User:", "\n\n", "END"]
SAID = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)


def request(**settings: object) -> Request:
    return Request(ZERO, (1,), max_tokens=9, **{"roles": ROLES, **settings})  # type: ignore[arg-type]


def told_apart(said: str, stops: list[str], thought: Thought) -> tuple[str, str, bool]:
    """The whole-text rule: thought, text, and whether there was an end."""
    if said != thought.opening and thought.opening.startswith(said):
        return "", "", False
    said = said.removeprefix(thought.opening)
    end = min(ends(said, [thought.closing], ROLES), default=None)
    if end is None:
        half = max(n for n in range(len(thought.closing)) if said.endswith(thought.closing[:n]))
        return said[: len(said) - half].strip(), "", False
    if said[end[1] : end[0]] != thought.closing:
        return said[: end[1]].strip(), "", True
    text, stopped = expected(said[end[0] :], stops, strip=True, roles=ROLES)
    return said[: end[1]].strip(), text, stopped


@given(
    said=SAID,
    stops=st.sampled_from([(), ("END",), ("a>", "<")]),
    thought=st.sampled_from([THOUGHT, Thought("", "</think>"), Thought("<a>", "</a>")]),
    data=st.data(),
)
def test_thought_and_text_do_not_depend_on_the_borders(said, stops, thought, data):
    want = told_apart(said, stops, thought)
    for pieces in (cut(said, data), list(said), [said]):
        answer, deltas, pushed = Answer(request(stop=stops, thought=thought)), [], ""
        for piece in pieces:
            deltas.append(answer.push(piece))
            pushed += piece
            if answer.stopped:
                break
        deltas.append(answer.flush(cut=False))
        shown = [delta for delta in deltas if delta is not None]
        assert (answer.thought, answer.text, answer.stopped) == want
        assert "".join(delta.thought for delta in shown) == answer.thought
        assert "".join(delta.text for delta in shown) == answer.text
        assert not answer.text or pushed[answer.begins :].startswith(answer.text)
        first_text = next((n for n, delta in enumerate(shown) if delta.text), len(shown))
        assert not any(delta.thought for delta in shown[first_text + 1 :])


def test_a_piece_may_end_the_thought_and_begin_the_text():
    answer = Answer(request(thought=THOUGHT))
    assert answer.push("> Hm. </th") == Delta("", "Hm.")
    assert (answer.thinks, answer.held) == (True, " </th")
    assert answer.push("ink>\n\nHi") == Delta("Hi")
    assert (answer.thinks, answer.held) == (False, "")
    assert answer.push(" there") == Delta(" there")


def test_a_stop_text_counts_in_the_answer_only():
    answer = Answer(request(thought=THOUGHT, stop=("END",)))
    assert answer.push("> the END </think> Hi END") == Delta("Hi", "the END")
    assert answer.stopped


def test_half_a_tag_at_the_end_is_left_out():
    answer = Answer(request(thought=THOUGHT))
    answer.push(">a < b </thin")
    answer.flush(cut=False)
    assert (answer.thought, answer.text) == ("a < b", "")


@pytest.mark.parametrize(("said", "text"), [("> a", "a"), (">", ""), ("a >", "a >"), ("", "")])
def test_an_opening_alone_is_left_out(said, text):
    for opening in (">", "?>"):
        answer = Answer(request(thought=Thought(opening, "")))
        whole = said.replace(">", opening, 1) if said.startswith(">") else said
        for character in whole:
            answer.push(character)
        answer.flush(cut=False)
        assert (answer.text, answer.thought) == (text, None)


def test_without_a_thought_all_is_text():
    answer = Answer(request())
    assert answer.push("> a</think> b") == Delta("> a</think> b")
    assert answer.thought is None


@pytest.mark.parametrize("before", ["Hi", "Hi\n\nUs"])
def test_a_turn_may_begin_in_what_is_continued(before):
    answer = Answer(request(continued=before, settled=(1,)))
    answer.push("\n\nUser: x" if before == "Hi" else "er: x")
    assert answer.stopped
    assert answer.text == ""
