"""Scales and colours: every figure has a place, and the ends are the ends."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_rwkv_state.state import HeadMap
from langchain_rwkv_state.views.colour_scale import Scale, colour, ticks

figures = st.floats(0, 1e30, allow_nan=False)


def the_map(row, *, name="norm", log=True):
    return HeadMap(name, "Title", "head", (tuple(row),), log)


@given(st.lists(figures, min_size=1), st.booleans())
def test_every_figure_has_a_place_and_larger_ones_are_not_lower(row, log):
    scale = Scale.of(the_map(row, log=log))
    places = [scale.place(x) for x in sorted(row)]
    assert all(0 <= x <= 1 for x in places)
    assert places == sorted(places)
    assert scale.low < scale.high


@given(st.lists(figures, min_size=1), st.booleans())
def test_marks_lie_on_the_scale(row, log):
    scale = Scale.of(the_map(row, log=log))
    marks = scale.marks()
    assert marks == sorted(marks)
    assert all(scale.low * 0.99 <= x <= scale.high * 1.01 for x in marks)
    assert 1 <= len(marks) <= 7


def test_sizes_have_even_steps_for_even_factors():
    scale = Scale.of(the_map([0.01, 0.1, 1.0]))
    assert scale.place(0.1) == pytest.approx(0.5)
    assert scale.place(0) == scale.place(-1) == 0
    assert scale.place(50) == 1


def test_differences_begin_at_0_and_ranks_at_the_least():
    assert Scale.of(the_map([0.5, 1.0], name="difference", log=False)).low == 0
    assert Scale.of(the_map([15.0, 20.0], name="rank", log=False)).low == 15


def test_one_figure_none_and_what_is_not_finite_still_make_a_scale():
    for row in ([1.0], [0.0, 0.0], [math.nan], [math.nan, 2.0]):
        for log in (True, False):
            scale = Scale.of(the_map(row, log=log))
            assert math.isfinite(scale.low)
            assert scale.low < scale.high


def test_colours_go_from_dark_to_bright():
    assert colour(0) == ("#440154", False)
    assert colour(1) == ("#fde725", True)
    assert colour(-3) == colour(0)
    assert colour(0.55)[0] not in (colour(0.5)[0], colour(0.6)[0])


@given(st.integers(1, 5_000))
def test_at_most_17_numbers_stand_along_an_axis(count):
    found = ticks(count)
    assert found[0] == 0
    assert 1 <= len(found) <= 17
    assert max(found) < count
