"""Stop texts: never let out, found across any borders."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from langchain_rwkv_state.engine.stop import StopMatcher

STOPS = st.lists(st.text("ab \n", min_size=1, max_size=4), max_size=3)
TEXT = st.text("ab \né", max_size=24)


def expected(text: str, stops: list[str], *, strip: bool) -> tuple[str, bool]:
    """The whole-text rule: the stop text that ends first, of those the longest."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            cut = text[: min(starts)]
            return (cut.strip() if strip else cut), True
    return (text.strip() if strip else text), False


def run(pieces: list[str], stops: list[str], *, strip: bool) -> tuple[list[str], bool]:
    matcher = StopMatcher(stops, strip=strip)
    out = []
    for piece in pieces:
        out.append(matcher.push(piece))
        if matcher.stopped:
            break
    return [*out, matcher.flush()], matcher.stopped


@given(text=TEXT, stops=STOPS, strip=st.booleans(), data=st.data())
def test_what_comes_out_does_not_depend_on_the_borders(text, stops, strip, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[low:high] for low, high in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    out, stopped = run(pieces, stops, strip=strip)
    assert ("".join(out), stopped) == expected(text, stops, strip=strip)


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
