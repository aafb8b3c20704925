"""Recall figures on a terminal and in a picture: nothing is cut off, nothing is left out."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from langchain_rwkv_state.toolbox.recall import Point, Recall, Section, Series
from langchain_rwkv_state.views.bars import recall_tables
from langchain_rwkv_state.views.recall import draw_recall


def section(name, places, count):
    series = (
        Series(f"a series of a long name, {n}", tuple(Point(at, 250 + n, 300) for at in places))
        for n in range(count)
    )
    return Section(name, f"Section {name}", "an axis that has a long name", tuple(series))


FOUND = Recall(
    "models/demo",
    "model",
    (
        section("distance", (0, 4, 100), 2),
        section("blends", (0.0, 0.5, 1.0), 4),
        section("codecs", ("exact", "another conversation"), 1),
    ),
)


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_every_count(width):
    console = Console(file=io.StringIO(), width=width)
    console.print(recall_tables(FOUND))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for each in FOUND:
        assert each.title in shown
    for n in range(4):
        assert shown.count(f"{250 + n}/300") == 3 * (n < 2) + 3 + 2 * (n < 1)
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture_is_the_same_for_the_same_figures(tmp_path, ending):
    paths = [tmp_path / f"{n}.{ending}" for n in range(2)]
    for path in paths:
        draw_recall(FOUND, path)
    assert paths[0].stat().st_size > 5_000
    assert ending == "svg" or paths[0].read_bytes() == paths[1].read_bytes()


def test_some_sections_are_drawn_alone(tmp_path):
    draw_recall(FOUND, tmp_path / "one.svg", only=["codecs"])
    text = (tmp_path / "one.svg").read_text()
    assert "Section codecs" in text
    assert "Section blends" not in text
    with pytest.raises(ValueError, match="no section to draw"):
        draw_recall(FOUND, tmp_path / "none.svg", only=["facts"])
    assert not (tmp_path / "none.svg").exists()
