"""Writes numbers and times as people read them, and texts that do no harm where they are shown.

Plain functions of values; nothing is printed here. What somebody typed is shown through `plain`
alone: a terminal obeys the escape sequences in a text, and marks of direction turn a line around.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from datetime import datetime

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, formats, surrogates, ends of lines
_HARMLESS = set("\t\n\u00ad\u200c\u200d")  # soft hyphen, and what Persian and emoji are joined with
_TAB_OR_LINE_END = re.compile(r"[\t\n\r]+")
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


class _Shown(dict[int, str]):
    """What is shown in the place of each character, found when it is first met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        hidden = unicodedata.category(character) in _HIDDEN and character not in _HARMLESS
        # The formats that stand with Arabic numbers are signs that one sees.
        hidden = hidden and unicodedata.bidirectional(character) != "AN"
        self[code] = "\ufffd" if hidden else character
        return self[code]


_SHOWN = _Shown()


def plain(text: str) -> str:
    """Returns a text in which what a terminal would obey, not show, is made visible.

    These are by Unicode's own categories all controls but tab and line end, all formats that turn
    or hide text (marks and overrides of direction, byte order marks, tags), surrogates, and the
    separators of lines and paragraphs.

    Example:
        >>> plain("a" + chr(0x1B) + "[31m" + chr(0x200F)) == f"a{chr(0xFFFD)}[31m{chr(0xFFFD)}"
        True
    """
    return text.translate(_SHOWN)


def in_one_line(text: str) -> str:
    """Returns a text, such as a session's name, with no line ends and no control characters."""
    return plain(_TAB_OR_LINE_END.sub(" ", text))


def counted(count: int, thing: str) -> str:
    """Returns a number of things in words.

    Example:
        >>> counted(1, "turn"), counted(2, "turn")
        ('1 turn', '2 turns')
    """
    return f"{count} {thing}" + "s" * (count != 1)


def model_shape(version: object, n_layer: int, n_embd: int) -> str:
    """Returns a model's version, layers and width in a word.

    Example:
        >>> model_shape(7, 24, 2048)
        'RWKV-7 24x2048'
    """
    return f"RWKV-{version} {n_layer}x{n_embd}"


def span(figures: Sequence[float]) -> str:
    """Returns the least and the largest of some figures; nothing for none.

    Example:
        >>> span([2.0, 1.25]), span([])
        ('1.2 to 2.0', '')
    """
    return f"{min(figures):.1f} to {max(figures):.1f}" if figures else ""


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
    """Returns a Unix time as the local date and time; in words where no calendar reaches."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return "after the year 9999" if seconds > 0 else "before the year 1"


def short(ref: str | None) -> str:
    """Returns the first digits of a reference."""
    return "-" if ref is None else f"{ref[:14]}\u2026"
