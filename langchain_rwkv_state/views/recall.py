"""Recall figures as a picture: a curve for what has an axis, bars for what has labels.

It draws what `recall.measure` counted. The easy mistake is an axis that starts above zero: a loss
of two points would look like all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_rwkv_state.toolbox.recall.result import Recall, Section, Series
from langchain_rwkv_state.views.figure import EXTRA, QUIET, STATE, TRANSCRIPT, figure, save
from langchain_rwkv_state.views.figure import without_frame as plain

_PANEL_INCHES = (5.6, 3.3)
_LOOKS: tuple[dict[str, Any], ...] = (
    {"color": STATE, "marker": "o"},
    {"color": TRANSCRIPT, "marker": "s", "linestyle": "--"},
    {"color": EXTRA, "marker": "^", "linestyle": "-."},
    {"color": QUIET, "marker": "v", "linestyle": ":"},
)


def draw_recall(found: Recall, path: Path, *, only: Sequence[str] = ()) -> None:
    """Draws a recall run, one panel for each section.

    Args:
        found: The figures.
        path: A .png, .svg or .pdf file.
        only: Names of sections; none for all that were measured.

    Raises:
        ValueError: matplotlib is not installed, or nothing is left to draw.
    """
    sections = [section for section in found if not only or section.name in only]
    if not sections:
        raise ValueError(f"There is no section to draw: {[each.name for each in found]} are there.")
    columns = min(2, len(sections))
    rows = -(-len(sections) // columns)
    width, height = _PANEL_INCHES
    drawn = figure(columns * width, rows * height)
    panels = drawn.subplots(rows, columns, squeeze=False).flatten()
    for axes, section in zip(panels, sections, strict=False):
        _panel(axes, section)
    for axes in panels[len(sections) :]:
        axes.set_axis_off()
    if len(sections) > 1:
        drawn.suptitle(f"What {Path(found.model).name} recalls", fontsize=11)
    save(drawn, path)


def _panel(axes: Any, section: Section) -> None:
    labels = [point.at for point in section.series[0].points]
    if all(isinstance(at, str) for at in labels):
        _bars(axes, section.series, [str(at) for at in labels])
    else:
        _curves(axes, section.series)
        axes.set_xticks([at for at in labels if not isinstance(at, str)])
    axes.set(xlabel=section.axis, ylabel="recalled exactly, %", ylim=(0, 105))
    asked = {point.n for series in section.series for point in series.points}
    axes.set_title(f"{section.title} ({_counts(asked)})", fontsize=9)
    plain(axes)
    if len(section.series) > 1:
        axes.legend(fontsize=8, framealpha=0.8, edgecolor="none")


def _curves(axes: Any, series: Sequence[Series]) -> None:
    for each, look in zip(series, _cycle(len(series)), strict=True):
        at = [point.at for point in each.points]
        shares = [100 * point.share for point in each.points]
        axes.plot(at, shares, label=each.name, markersize=5, **look)


def _bars(axes: Any, series: Sequence[Series], labels: Sequence[str]) -> None:
    width = 0.8 / len(series)
    for place, (each, look) in enumerate(zip(series, _cycle(len(series)), strict=True)):
        at = [number + place * width for number in range(len(labels))]
        shares = [100 * point.share for point in each.points]
        drawn = axes.bar(at, shares, width, label=each.name, color=look["color"])
        axes.bar_label(drawn, fmt="%.0f", fontsize=8)
    middle = [number + 0.4 - width / 2 for number in range(len(labels))]
    axes.set_xticks(middle, [label.replace(" ", "\n", 1) for label in labels], fontsize=8)


def _cycle(count: int) -> list[dict[str, Any]]:
    return [_LOOKS[place % len(_LOOKS)] for place in range(count)]


def _counts(asked: set[int]) -> str:
    low, high = min(asked), max(asked)
    return f"n = {low}" if low == high else f"n = {low} to {high}"
