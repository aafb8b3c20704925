"""The live view as text: figures, bars, sparklines, and what a small window leaves out."""

import io
import math

import pytest
from rich.console import Console

from langchain_rwkv_state.state import LayerMotion, Motion
from langchain_rwkv_state.views.terminal.live_view import (
    Frame,
    bar,
    frame_line,
    sparkline,
    watch_view,
)

SOUND = "Sound: all is well."


def frame(turn=3, *, layers=2, moved=0.5, rank=4.0, verdict=SOUND):
    each = LayerMotion(1.25, moved, rank)
    return Frame(turn, 10 * turn, 1_000.0, math.inf, Motion((each,) * layers, moved, verdict))


def text(frames, *, note="", columns=88, rows=24, session="bob"):
    console = Console(file=io.StringIO(), width=columns, record=True)
    view = watch_view(session, frames, note=note, now_seconds=0.0, columns=columns, rows=rows)
    console.print(view)
    return console.export_text()


def test_it_shows_the_session_its_turn_and_every_layer():
    shown = text([frame(1, moved=None), frame(2)])
    assert "bob" in shown
    for each in ("turn 2", "tokens 20", "expires never", SOUND):
        assert each in shown
    rows = [line.split() for line in shown.splitlines() if " 1.25 " in line]
    assert [row[1] for row in rows] == ["0", "1"]
    assert all("0.500" in row and "4.0" in row for row in rows)
    assert all("\u00b7\u2588" in "".join(row) for row in rows)  # no move, then the largest


def test_no_state_before_and_no_ranks_are_dashes():
    shown = text([frame(moved=None, rank=None)])
    rows = [line.split()[1:5] for line in shown.splitlines() if " 1.25 " in line]
    assert rows == [[str(n), "1.25", "-", "-"] for n in range(2)]


def test_a_state_that_had_gone_is_said_and_the_view_goes_on():
    gone = Frame(4, 40, 1_000.0, math.inf, None)
    assert "had gone before it was read" in text([frame(), gone])
    assert "turn 5" in text([frame(), gone, frame(5)])


def test_a_note_is_shown_with_and_without_heads():
    assert "was deleted" in text([], note="The session was deleted.")
    assert "was deleted" in text([frame()], note="The session was deleted.")


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (80, 10), (130, 24), (130, 10)])
def test_layers_that_find_no_room_are_counted(columns, rows):
    shown = text([frame(layers=61)], columns=columns, rows=rows)
    lines = shown.splitlines()
    assert len(lines) <= max(rows, 13)
    drawn = shown.count(" 1.25 ")
    if drawn < 61:
        assert f"and {61 - drawn} more layers" in shown
    else:
        assert "more layers" not in shown
    if columns == 130:
        assert "LAYER" in lines[3].replace("LAYER", "", 1)  # two halves, side by side


def test_a_name_with_markup_and_control_characters_does_no_harm():
    shown = text([frame()], session="[red]x[/]\x1b[2J\n\u202ey")
    assert "[red]x[/]" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_figures_that_are_not_finite_are_shown():
    shown = text([frame(moved=math.nan, verdict="Broken: a NaN.")])
    assert "nan" in shown
    assert "Broken" in shown


def test_a_line_for_a_pipe_has_the_same_figures():
    line = frame_line(frame())
    assert line.startswith("turn 3  30 tokens  ")
    assert line.endswith(f"rms 1.25  moved 0.500  rank 4.0  {SOUND}")
    assert "moved -" in frame_line(frame(moved=None))
    assert "rank" not in frame_line(frame(rank=None))
    assert frame_line(Frame(4, 40, 0.0, 0.0, None)).endswith("gone before it was read")


def test_bars_and_sparklines():
    assert bar(0) == ""
    assert bar(1) == bar(7) == "\u2588" * 12
    assert len(bar(0.5)) == 6
    assert bar(math.nan) == "?" * 12
    assert sparkline([]) == ""
    assert sparkline([0.0, 0.0]) == "\u2581\u2581"
    assert sparkline([math.nan, 1.0, None]) == "\u00b7\u2588\u00b7"
