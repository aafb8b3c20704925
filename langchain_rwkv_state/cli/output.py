"""How the command line prints: two consoles, safe text, and numbers for people.

Nothing here knows a store or a model. The easy mistake is to print a text that somebody typed, or
a model wrote, as it stands: rich would read ``[red]`` as markup, and a terminal would obey an
escape sequence in it; `plain` makes it harmless.
"""

from __future__ import annotations

import math
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_TAB_OR_LINE_END = re.compile(r"[\t\n\r]+")
_PIPE_WIDTH = 1_000
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def out() -> Console:
    """Returns a console on standard output as it is now (tests and pipes replace it)."""
    return _console(sys.stdout)


def err() -> Console:
    """Returns a console on standard error."""
    return _console(sys.stderr)


def _console(file: TextIO) -> Console:
    """Returns a console; one that is no terminal is wide, so that no line is folded or cut."""
    return Console(file=file, highlight=False, width=None if file.isatty() else _PIPE_WIDTH)


def plain(text: str) -> str:
    """Returns a text with every control character but tab and line end made visible."""
    return _CONTROLS.sub("\ufffd", text)


def one_line(text: str) -> Text:
    """Returns a text, such as a session's name, for one line: no markup, no controls."""
    return Text(plain(_TAB_OR_LINE_END.sub(" ", text)))


def error(message: object) -> None:
    """Prints an error as a sentence on standard error."""
    err().print(Text.assemble(("error: ", "bold red"), plain(str(message))), soft_wrap=True)


def note(message: object) -> None:
    """Prints a remark on standard error."""
    err().print(Text.assemble(("note: ", "yellow"), plain(str(message))), soft_wrap=True)


def written(file: Path) -> None:
    """Says that a file was written, and how large it is."""
    out().print(Text(f"Wrote {plain(str(file))}, {size(file.stat().st_size)}."), soft_wrap=True)


def size(nbytes: int) -> str:
    """Returns a number of bytes in the unit that suits it.

    Example:
        >>> size(270_336), size(2_400_000), size(12)
        ('270.3 kB', '2.4 MB', '12 B')
    """
    if nbytes < 1_000:
        return f"{nbytes} B"
    amount, unit = nbytes / 1e3, "kB"
    for larger in ("MB", "GB", "TB"):
        if amount < 999.95:
            break
        amount, unit = amount / 1e3, larger
    return f"{amount:.1f} {unit}"


def duration(seconds: float) -> str:
    """Returns a length of time in its two largest units.

    Example:
        >>> duration(93_784), duration(59), duration(2_591_990), duration(float("inf"))
        ('1 d 2 h', '59 s', '30 d', 'never ends')
    """
    if math.isinf(seconds):
        return "never ends"
    largest = next((unit for unit in _UNITS if seconds >= unit[1]), _UNITS[-1])
    place = _UNITS.index(largest)
    name, length = _UNITS[min(place + 1, len(_UNITS) - 1)]
    left = max(0, round(seconds / length)) * length  # whole smaller units: 29 d 23.99 h is 30 d
    count, rest = divmod(left, largest[1])
    return f"{count} {largest[0]}" + (f" {rest // length} {name}" if rest else "")


def ago(then_seconds: float, now_seconds: float) -> str:
    """Returns how long ago something was."""
    passed = now_seconds - then_seconds
    return "now" if passed < 1 else f"{duration(passed)} ago"


def until(then_seconds: float, now_seconds: float) -> str:
    """Returns how long something lasts yet.

    Example:
        >>> until(3_600, 0), until(float("inf"), 0)
        ('in 1 h', 'never')
    """
    if math.isinf(then_seconds):
        return "never"
    return f"in {duration(then_seconds - now_seconds)}"


def clock_time(seconds: float) -> str:
    """Returns a Unix time as the local date and time."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def short(ref: str | None) -> str:
    """Returns the first digits of a reference."""
    return "-" if ref is None else f"{ref[:14]}\u2026"
