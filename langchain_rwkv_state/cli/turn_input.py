"""Reads a turn that is typed at a terminal: a line, a paste, or lines between triple quotes.

It reads lines from whoever has a prompt, and knows no model. Not every newline ends a turn: a text
that is pasted would be as many turns as it has lines. A terminal marks a paste where it was asked
to; GNU readline, asked as well, hands over the paste as one line with newlines in it, and without
readline the marks are seen here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_QUOTES = '"""'
_PASTE_BEGINS, _PASTE_ENDS = "\x1b[200~", "\x1b[201~"
_MARK_PASTES, _MARK_NO_PASTES = "\x1b[?2004h", "\x1b[?2004l"


@dataclass(frozen=True)
class Typed:
    """What was typed as one turn.

    Attributes:
        text: Without the space around it.
        is_line: Whether it is one line, and not a block or a paste of several: a command may be.
    """

    text: str
    is_line: bool


def typed_turn(read: Callable[[bool], str]) -> Typed:
    """Returns the next turn.

    Args:
        read: Reads a line; is told whether a turn goes on with it.

    Raises:
        EOFError: As `read` raises it, also in the middle of a turn, which is lost then.
        KeyboardInterrupt: Likewise.
    """
    text = _line_or_paste(read, more=False).strip()
    if not text.startswith(_QUOTES):
        return Typed(text, is_line="\n" not in text)
    text = text.removeprefix(_QUOTES)
    while not text.rstrip().endswith(_QUOTES):
        text += "\n" + _line_or_paste(read, more=True)
    return Typed(text.rstrip().removesuffix(_QUOTES).strip(), is_line=False)


@contextmanager
def marked_pastes() -> Iterator[None]:
    """Asks for pastes to be marked, by readline where it is there, else by the terminal itself."""
    try:
        import readline
    except ImportError:
        if os.environ.get("TERM", "dumb") == "dumb":
            yield
            return
        _send(_MARK_PASTES)
        try:
            yield
        finally:
            _send(_MARK_NO_PASTES)
        return
    if "libedit" not in (readline.__doc__ or ""):  # which knows no marks: there three quotes help
        readline.parse_and_bind("set enable-bracketed-paste on")  # Python switches it off
    yield


def _line_or_paste(read: Callable[[bool], str], *, more: bool) -> str:
    text = read(more)
    while _PASTE_BEGINS in text:
        before, _, pasted = text.partition(_PASTE_BEGINS)
        while _PASTE_ENDS not in pasted:
            pasted += "\n" + read(True)
        text = before + pasted.replace(_PASTE_ENDS, "", 1)
    return text


def _send(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
