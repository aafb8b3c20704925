"""The figures of a recall run: counts with names, to JSON and back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_rwkv_state.errors import StateCorrupt
from langchain_rwkv_state.toolbox.recall import Point, Recall, Section, Series

PLACES = st.one_of(st.floats(0, 1), st.integers(0, 100), st.text(max_size=5))
POINTS = st.builds(
    lambda at, right, more: Point(at, right, right + more),
    PLACES,
    st.integers(0, 9),
    st.integers(0, 9),
)
SERIES = st.builds(Series, st.text(max_size=5), st.lists(POINTS, max_size=3).map(tuple))
SECTIONS = st.builds(
    Section,
    st.text(max_size=5),
    st.text(max_size=5),
    st.text(max_size=5),
    st.lists(SERIES, max_size=2).map(tuple),
)
FOUND = Recall(
    "demo",
    "model",
    (Section("distance", "Far", "turns", (Series("state", (Point(0, 3, 4), Point(4, 0, 0))),)),),
    {"n": 4},
)


@given(st.builds(Recall, st.text(), st.text(), st.lists(SECTIONS, max_size=2).map(tuple)))
def test_figures_come_back_from_json(found):
    assert Recall.from_json(found.to_json()) == found


def test_a_share_is_of_what_was_asked():
    points = FOUND.sections[0].series[0].points
    assert [point.share for point in points] == [0.75, 0.0]


def test_a_section_is_found_by_its_name():
    assert FOUND.section("distance") is FOUND.sections[0]
    assert FOUND.section("facts") is None
    assert list(FOUND) == list(FOUND.sections)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "something else"},
        {"sections": [{"name": "a"}]},
        {"sections": 3},
        {"settings": None},
        {
            "sections": [
                {"name": "", "title": "", "axis": "", "series": [{"name": "", "points": [1]}]}
            ]
        },
    ],
)
def test_other_texts_are_refused(change):
    text = json.dumps({**FOUND.as_dict(), **change})
    with pytest.raises(StateCorrupt, match="no recall figures"):
        Recall.from_json(text)


@pytest.mark.parametrize(
    "point", [{"at": 0, "right": 3, "n": 2}, {"at": None, "right": 0, "n": 2},
              {"at": 0, "right": True, "n": 2}, {"at": 0, "right": -1, "n": 2}]
)  # fmt: skip
def test_counts_that_cannot_be_are_refused(point):
    raw = json.loads(FOUND.to_json())
    raw["sections"][0]["series"][0]["points"] = [point]
    with pytest.raises(StateCorrupt, match="are right at"):
        Recall.from_json(json.dumps(raw))
