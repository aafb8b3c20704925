"""Stop texts: never let out, found across any borders."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_rwkv_state.engine.stop import StopMatcher

STOPS = st.lists(st.text("ab \n", min_size=1, max_size=4), max_size=3)
TEXT = st.text("ab \né", max_size=24)


TURNS = st.lists(
    st.sampled_from(["a", "\n", " ", "\t", "User", "Us", ":", "User:", "Bot:", "\n\n", "b", "\r"]),
    max_size=14,
).map("".join)
ROLES = st.sampled_from([(), ("User",), ("User", "Bot", "Users")])


def ends(text: str, stops: list[str], roles: tuple[str, ...]) -> list[tuple[int, int]]:
    """Where ends end, and where each begins, found line by line."""
    found = [
        (at + len(stop), at)
        for stop in stops
        for at in range(len(text))
        if text.startswith(stop, at)
    ]
    lines = text.split("\n")
    for number, line in enumerate(lines):
        first = number
        while first > 1 and not lines[first - 1].strip():
            first -= 1
        for role in roles:
            if first < number and line.startswith(f"{role}:"):
                start = len("\n".join(lines[:first]))
                found.append((len("\n".join([*lines[:number], f"{role}:"])), start))
    return found


def expected(
    text: str, stops: list[str], *, strip: bool, roles: tuple[str, ...] = ()
) -> tuple[str, bool]:
    """The whole-text rule: the end that ends first, of those the longest."""
    end = min(ends(text, stops, roles), default=None)
    cut = text if end is None else text[: end[1]]
    return (cut.strip() if strip else cut), end is not None


def run(
    pieces: list[str], stops: list[str], *, strip: bool, roles: tuple[str, ...] = ()
) -> tuple[list[str], bool]:
    matcher = StopMatcher(stops, roles=roles, strip=strip)
    out = []
    for piece in pieces:
        out.append(matcher.push(piece))
        if matcher.stopped:
            break
    return [*out, matcher.flush()], matcher.stopped


def cut(text: str, data: st.DataObject) -> list[str]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[low:high] for low, high in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(text=TEXT, stops=STOPS, strip=st.booleans(), data=st.data())
def test_what_comes_out_does_not_depend_on_the_borders(text, stops, strip, data):
    out, stopped = run(cut(text, data), stops, strip=strip)
    assert ("".join(out), stopped) == expected(text, stops, strip=strip)


@given(text=TURNS, stops=STOPS, roles=ROLES, strip=st.booleans(), data=st.data())
def test_a_turn_is_found_wherever_the_text_is_cut(text, stops, roles, strip, data):
    for pieces in (cut(text, data), list(text), [text]):
        out, stopped = run(pieces, stops, strip=strip, roles=roles)
        assert ("".join(out), stopped) == expected(text, stops, strip=strip, roles=roles)


@given(text=TURNS)
def test_only_what_may_become_a_turn_is_held_back(text):
    matcher = StopMatcher([], roles=("User",), strip=False)
    may_be = re.compile(r"\n(\s*\n)?[^\S\n]*|\n\s*\n(U|Us|Use|User)")
    for character in text:
        matcher.push(character)
        if matcher.stopped:
            return
        assert not matcher.held or may_be.fullmatch(matcher.held)


@given(before=TURNS, text=TURNS, strip=st.booleans(), data=st.data())
def test_a_text_that_is_continued_is_not_said_again(before, text, strip, data):
    roles = ("User", "Bot")
    if ends(before, [], roles):
        return  # it would have ended there
    matcher = StopMatcher([], roles=roles, strip=strip, before=before)
    out = "".join([*map(matcher.push, cut(text, data)), matcher.flush()])
    whole, stopped = expected(before + text, [], strip=False, roles=roles)
    new = whole[len(before) :]
    if strip:
        new = new.rstrip() if before else new.strip()
    assert (out, matcher.stopped) == (new, stopped)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("One.\n\nTwo.\n\nUser: no", "One.\n\nTwo."),
        ("One.\nUser: a line", "One.\nUser: a line"),
        ("One.\n \t\n\n  \nUser: no", "One."),
        ("One.\n\n User: indented", "One.\n\n User: indented"),
        ("One.\n\nUsers: many", "One.\n\nUsers: many"),
        ("\n\nUser: at once", ""),
        ("One.\r\n\r\nUser: no", "One."),
    ],
)
def test_a_blank_line_and_a_role_end_an_answer_and_nothing_else(text, kept):
    out, stopped = run(list(text), [], strip=True, roles=("User",))
    assert ("".join(out), stopped) == (kept, kept != text)


@given(text=TEXT, stops=STOPS, strip=st.booleans())
def test_no_stop_text_is_let_out(text, stops, strip):
    out, _ = run(list(text), stops, strip=strip)
    assert not any(stop in "".join(out) for stop in stops)


@given(text=TEXT, stops=STOPS)
def test_nothing_is_held_back_that_cannot_become_a_stop_text(text, stops):
    matcher = StopMatcher(stops, strip=False)
    for character in text:
        matcher.push(character)
        if matcher.stopped:
            return
        held = matcher.held
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_the_longest_of_two_that_end_together_counts():
    assert run(["xab"], ["b", "ab"], strip=False) == (["x", ""], True)


def test_what_follows_a_stop_text_is_ignored():
    matcher = StopMatcher(["END"], strip=True)
    assert matcher.push("aEND b") == "a"
    assert matcher.push("c") == ""
    assert matcher.flush() == ""


def test_leading_white_space_goes_and_trailing_waits():
    matcher = StopMatcher([], strip=True)
    assert [matcher.push(piece) for piece in ("\n ", " a", " ", "\n", "b ")] == [
        "",
        "a",
        "",
        "",
        " \nb",
    ]
    assert matcher.flush() == ""


def test_a_stop_text_in_leading_white_space_ends_an_empty_answer():
    assert run([" ", "\n", "\n", "a"], ["\n\n"], strip=True) == (["", "", "", ""], True)
