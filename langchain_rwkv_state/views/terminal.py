"""The live view of a session in a terminal: how its state moved, layer by layer, turn by turn.

Values in, something that rich can print out; it follows nothing and measures nothing. The easy
mistake is to hand rich a session's name as it stands: it would read markup in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from langchain_rwkv_state._text import clock_time, in_one_line, until
from langchain_rwkv_state.state import Motion

SPARK_TURNS = 16
_SPARKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_BAR_CELLS = 12
_EIGHTHS = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589"
_FULL = "\u2588"
_WIDE_COLUMNS = 126  # from here on two halves of the layers stand side by side
_FRAME_LINES = 8  # of the view, beside the layers
_FEWEST_ROWS = 4
_COLOURS = {"Sound": "green", "Finite": "cyan", "Empty": "yellow", "Unusual": "yellow"}


@dataclass(frozen=True)
class Frame:
    """One head of a session, as the view shows it.

    Attributes:
        turn: Number of the turn.
        n_tokens: Tokens that the state stands for.
        at_seconds: Unix time of the commit.
        expires_seconds: Unix time at which the session expires.
        motion: What the state looks like; ``None`` where it had gone before it was read.
    """

    turn: int
    n_tokens: int
    at_seconds: float
    expires_seconds: float
    motion: Motion | None


def watch_view(
    session: str,
    frames: Sequence[Frame],
    *,
    note: str = "",
    now_seconds: float,
    columns: int = 80,
    rows: int = 24,
) -> RenderableType:
    """Returns the view of a session.

    Args:
        session: Its name.
        frames: Its heads, oldest first; the last is the one shown.
        note: What is to be said below, such as that the session has gone.
        now_seconds: Unix time of now.
        columns: Width of the terminal.
        rows: Its height; layers that find no room are counted, not shown.
    """
    parts: list[RenderableType] = [_facts(frames[-1], now_seconds)] if frames else []
    seen = [each.motion for each in frames if each.motion is not None]
    if frames and frames[-1].motion is None:
        parts.append(Text("The state had gone before it was read.", style="yellow"))
    elif seen:
        parts += [Text(""), _layers(seen, columns, rows), Text(""), _verdict(seen[-1])]
    if note:
        parts.append(Text(note, style="yellow"))
    title = Text(in_one_line(session), style="bold")
    return Panel(Group(*parts), title=title, title_align="left", border_style="dim")


def frame_line(frame: Frame) -> str:
    """Returns a head in one line, for a pipe."""
    told = [
        f"turn {frame.turn}",
        f"{frame.n_tokens} tokens",
        clock_time(frame.at_seconds),
    ]
    if frame.motion is None:
        return "  ".join((*told, "the state had gone before it was read"))
    rank = frame.motion.rank
    told += [
        f"rms {frame.motion.rms:.3g}",
        "moved -" if frame.motion.moved is None else f"moved {frame.motion.moved:.3f}",
        *([] if rank is None else [f"rank {rank:.1f}"]),
        frame.motion.verdict,
    ]
    return "  ".join(told)


def sparkline(figures: Sequence[float | None]) -> str:
    """Returns a line of small bars, from 0 to the largest figure; a dot where there is none.

    Example:
        >>> sparkline([0.0, 0.5, 1.0, None])
        '\u2581\u2585\u2588\u00b7'
    """
    high = max((x for x in figures if x is not None and math.isfinite(x)), default=0.0)
    return "".join(
        "\u00b7" if x is None or not math.isfinite(x) else _SPARKS[_step(x, high)] for x in figures
    )


def bar(share: float, cells: int = _BAR_CELLS) -> str:
    """Returns a bar of as many cells for 1, and less, by eighths of a cell, for less."""
    if not math.isfinite(share):
        return "?" * cells
    eighths = round(min(max(share, 0.0), 1.0) * cells * 8)
    whole, rest = divmod(eighths, 8)
    return _FULL * whole + (_EIGHTHS[rest] if rest else "")


def _step(x: float, high: float) -> int:
    return min(int(x / high * len(_SPARKS)), len(_SPARKS) - 1) if high > 0 else 0


def _facts(frame: Frame, now: float) -> Text:
    facts = (
        ("turn", str(frame.turn)),
        ("tokens", str(frame.n_tokens)),
        ("at", clock_time(frame.at_seconds)),
        ("expires", until(frame.expires_seconds, now)),
    )
    return Text("   ").join(Text.assemble((f"{name} ", "dim"), value) for name, value in facts)


def _layers(seen: Sequence[Motion], columns: int, rows: int) -> RenderableType:
    count = len(seen[-1].layers)
    room = max(rows - _FRAME_LINES, _FEWEST_ROWS)
    halves = 2 if columns >= _WIDE_COLUMNS and count > room else 1
    shown = min(count, room * halves)
    if shown < count:
        shown = max(shown - halves, 1)
    length = math.ceil(shown / halves)
    grid = Table.grid(padding=(0, 3))
    for _ in range(halves):
        grid.add_column()
    starts = range(0, shown, length)
    grid.add_row(*(_table(seen, range(at, min(at + length, shown))) for at in starts))
    if shown == count:
        return grid
    more = f"and {count - shown} more layers: a larger window shows them"
    return Group(grid, Text(more, style="dim"))


def _table(seen: Sequence[Motion], numbers: range) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("LAYER", justify="right")
    table.add_column("RMS", justify="right", min_width=5)
    table.add_column("MOVED", justify="right", min_width=5)
    table.add_column("", width=_BAR_CELLS, no_wrap=True, style="cyan")
    table.add_column("RANK", justify="right", min_width=4)
    table.add_column("LAST TURNS", min_width=SPARK_TURNS, no_wrap=True, style="green")
    for number in numbers:
        now = seen[-1].layers[number]
        moves = [
            each.layers[number].moved if number < len(each.layers) else None
            for each in seen[-SPARK_TURNS:]
        ]
        table.add_row(
            str(number),
            f"{now.rms:.3g}",
            "-" if now.moved is None else f"{now.moved:.3f}",
            "" if now.moved is None else bar(now.moved / 2),
            "-" if now.rank is None else f"{now.rank:.1f}",
            sparkline(moves),
        )
    return table


def _verdict(now: Motion) -> Text:
    word = now.verdict.partition(":")[0]
    return Text.assemble((word, f"bold {_COLOURS.get(word, 'red')}"), now.verdict[len(word) :])
