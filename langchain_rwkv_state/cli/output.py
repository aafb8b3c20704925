"""Prints for the command line: two consoles, and safe text.

Nothing here knows a store or a model. A text that somebody typed, or a model wrote, goes through
`plain`: rich would read ``[red]`` as markup, and a terminal would obey an escape sequence in it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from langchain_rwkv_state._text import (
    ago,
    clock_time,
    duration,
    in_one_line,
    plain,
    short,
    size,
    until,
)

__all__ = [
    "ago",
    "as_json",
    "clock_time",
    "duration",
    "err",
    "error",
    "in_one_line",
    "iso_time",
    "note",
    "number",
    "one_line",
    "out",
    "plain",
    "short",
    "size",
    "table",
    "until",
    "written",
]

_PIPE_WIDTH = 1_000


def out() -> Console:
    """Returns a console on standard output as it is now (tests and pipes replace it)."""
    return _console(sys.stdout)


def err() -> Console:
    """Returns a console on standard error."""
    return _console(sys.stderr)


def _console(file: TextIO) -> Console:
    """Returns a console; one that is no terminal is wide, so that no line is folded or cut."""
    return Console(file=file, highlight=False, width=None if file.isatty() else _PIPE_WIDTH)


def one_line(text: str) -> Text:
    """Returns a text, such as a session's name, for one line: no markup, no controls."""
    return Text(in_one_line(text))


def error(message: object) -> None:
    """Prints an error as a sentence on standard error."""
    err().print(Text.assemble(("error: ", "bold red"), plain(str(message))), soft_wrap=True)


def note(message: object) -> None:
    """Prints a remark on standard error."""
    err().print(Text.assemble(("note: ", "yellow"), plain(str(message))), soft_wrap=True)


def written(file: Path, *, as_note: bool = False) -> None:
    """Says that a file was written, and how large it is.

    Args:
        file: The file.
        as_note: Whether the output itself is for programs.
    """
    told = f"Wrote {plain(str(file))}, {size(file.stat().st_size)}."
    if as_note:
        note(told)
    else:
        out().print(Text(told), soft_wrap=True)


def as_json(document: Mapping[str, Any]) -> None:
    """Prints a document for programs, by itself on standard output; `json_schemas` has its form.

    Raises:
        ValueError: It holds NaN or infinity, which are no JSON: give `number` of them.
    """
    sys.stdout.write(f"{json.dumps(document, indent=1, allow_nan=False)}\n")


def number(value: float | None) -> float | None:
    """Returns a figure as JSON can hold it: ``None`` for NaN and infinity."""
    return None if value is None or not math.isfinite(value) else value


def iso_time(seconds: float) -> str | None:
    """Returns a Unix time as ISO 8601 in UTC, to the second; ``None`` for never.

    Example:
        >>> iso_time(1_764_428_400.7), iso_time(float("inf"))
        ('2025-11-29T15:00:00Z', None)
    """
    if math.isinf(seconds):
        return None
    try:
        return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return "9999-12-31T23:59:59Z"  # no calendar reaches further


def table(first: str, *others: str) -> Table:
    """Returns an empty table: names to the left, figures to the right."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    made.add_column(first, no_wrap=True)
    for name in others:
        made.add_column(name, justify="right", no_wrap=True)
    return made
