"""Curves and bars for a page, as SVG text.

They are as wide as a phone and grow with the page. The easy mistake is to tell curves apart by
colour alone: each also has dashes of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from langchain_rwkv_state._markup import escaped
from langchain_rwkv_state.views.scale import Scale
from langchain_rwkv_state.views.svg import box, drawing, letters, stroke, upright

SERIES = 5  # how many have a look of their own; others begin anew
_WIDTH, _HEIGHT = 380.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 66.0, 16.0, 10.0, 40.0
_BAR, _BAR_GAP, _GROUP_GAP, _NAMES = 12.0, 2.0, 9.0, 130.0
_NAME_CHARS = 21
_COUNTS = 62.0  # room behind the longest bar


@dataclass(frozen=True)
class Axis:
    """One axis: what it is, its ends, and marks with their names."""

    label: str
    scale: Scale
    marks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: What it is.
        points: ``(x, y, what a tooltip says)``, from left to right.
    """

    name: str
    points: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Bars:
    """The bars of one label, one for each series: ``(share from 0 to 1, what stands behind)``."""

    label: str
    bars: tuple[tuple[float, str], ...]


def line_chart(lines: Sequence[Line], x: Axis, y: Axis, *, name: str) -> str:
    """Returns curves over an axis.

    Args:
        lines: The curves; the page's legend names them in this order.
        x: The axis below.
        y: The axis to the left.
        name: What a screen reader says of it.
    """
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    bottom = _TOP + height

    def at(here: float, there: float) -> tuple[float, float]:
        return _LEFT + x.scale.place(here) * width, bottom - y.scale.place(there) * height

    parts = []
    for mark, text in y.marks:
        _, level = at(x.scale.low, mark)
        parts.append(stroke(_LEFT, level, _LEFT + width, level, "rule"))
        parts.append(letters(_LEFT - 6, level + 3.5, text, anchor="end"))
    for mark, text in x.marks:
        place, _ = at(mark, y.scale.low)
        parts.append(stroke(place, bottom, place, bottom + 4, "tick"))
        parts.append(letters(place, bottom + 16, text))
    parts.append(stroke(_LEFT, bottom, _LEFT + width, bottom, "tick"))
    parts.append(letters(_LEFT + width / 2, _HEIGHT - 5, x.label, kind="axis"))
    parts.append(upright(12, _TOP + height / 2, y.label))
    for number, line in enumerate(lines):
        look = f"s{number % SERIES}"
        places = [(*at(here, there), tip) for here, there, tip in line.points]
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top, _ in places)
        parts.append(f'<polyline class="line {look}" points="{path}"/>')
        parts += [
            f'<circle class="dot {look}" cx="{left:.1f}" cy="{top:.1f}" r="3.4">'
            f"<title>{escaped(f'{line.name}: {tip}')}</title></circle>"
            for left, top, tip in places
        ]
    return drawing(parts, width=_WIDTH, height=_HEIGHT, name=name, kind="chart")


def bar_chart(groups: Sequence[Bars], *, name: str) -> str:
    """Returns groups of bars from left to right, a group for each label."""
    room = _WIDTH - _NAMES - _COUNTS
    parts, y = [], _TOP / 2
    for group in groups:
        tall = len(group.bars) * (_BAR + _BAR_GAP)
        cut = (
            group.label
            if len(group.label) <= _NAME_CHARS
            else group.label[: _NAME_CHARS - 1] + "\u2026"
        )
        parts.append(letters(_NAMES - 8, y + tall / 2 + 3, cut, anchor="end"))
        for number, (share, text) in enumerate(group.bars):
            top = y + number * (_BAR + _BAR_GAP)
            tip = f"{group.label}: {text}"
            parts.append(box(_NAMES, top, room, _BAR, kind="trough"))
            parts.append(
                box(_NAMES, top, share * room, _BAR, kind=f"bar s{number % SERIES}", tip=tip)
            )
            parts.append(letters(_NAMES + room + 6, top + _BAR - 2.5, text, anchor="start"))
        y += tall + _GROUP_GAP
    return drawing(parts, width=_WIDTH, height=y, name=name, kind="chart")
