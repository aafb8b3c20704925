"""How the command line prints: two consoles, safe text, and (from `words`) numbers for people.

Nothing here knows a store or a model. The easy mistake is to print a text that somebody typed, or
a model wrote, as it stands: rich would read ``[red]`` as markup, and a terminal would obey an
escape sequence in it; `plain` makes it harmless.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from langchain_rwkv_state.views.words import (
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
    "clock_time",
    "duration",
    "err",
    "error",
    "in_one_line",
    "note",
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


def table(first: str, *others: str) -> Table:
    """Returns an empty table: names to the left, figures to the right."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    made.add_column(first, no_wrap=True)
    for name in others:
        made.add_column(name, justify="right", no_wrap=True)
    return made
