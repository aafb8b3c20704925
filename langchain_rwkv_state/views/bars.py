"""Recall figures for a terminal: a table for each section, with a bar for each share.

Values in, something to print out. The easy mistake is a bar without its counts: of 40 cases, one
answer is 2.5 points.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from langchain_rwkv_state.toolbox.recall.result import Point, Recall, Section

_LINE_CELLS = 80  # a usual terminal
_AXIS_CELLS, _COUNT_CELLS = 12, 11  # with the gaps beside them
_BAR_CELLS = 20


def recall_tables(found: Recall) -> RenderableType:
    """Returns all sections of a recall run, one table each."""
    return Group(*_parts(found))


def _parts(found: Recall) -> Iterator[RenderableType]:
    for place, section in enumerate(found):
        if place:
            yield Text()
        yield Text(section.title, style="bold")
        yield _table(section)


def _table(section: Section) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    room = (_LINE_CELLS - _AXIS_CELLS) // len(section.series) - _COUNT_CELLS
    width = max(3, min(_BAR_CELLS, room))
    table.add_column(section.axis.upper(), max_width=2 * _AXIS_CELLS)
    for series in section.series:
        table.add_column(series.name.upper(), width=width, overflow="fold")
        table.add_column("", justify="right", no_wrap=True)
    for row, first in enumerate(section.series[0].points):
        cells: list[RenderableType] = [str(first.at)]
        for series in section.series:
            cells += _cells(series.points[row], width)
        table.add_row(*cells)
    return table


def _cells(point: Point, width: int) -> tuple[RenderableType, str]:
    bar = Bar(1, 0, point.share, width=width, color="cyan", bgcolor="grey23")
    return bar, f"{point.right}/{point.n}"
