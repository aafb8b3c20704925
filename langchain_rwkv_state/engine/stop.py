r"""Finds what ends an answer that arrives in pieces, and lets out nothing that may be an end.

It deals in whole characters and knows no tokens. An end may begin in one piece and stop two later,
so what may still become one is held back. What comes out does not depend on where the text was cut:
the end that *ends* first counts, of several that end at one character the longest.

An end is a stop text, or the beginning of another's turn: ``"\n"``, one or more lines with nothing
but white space in them, and then a role and a colon at the beginning of a line. A role after a
single line end is text, and so is a blank line with anything else behind it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class _Found(NamedTuple):
    """Where an end ends, and where it begins: the least is the one that counts."""

    end: int
    start: int


class StopMatcher:
    r"""Watches the text of one answer.

    Args:
        stops: The stop texts, none of them empty.
        roles: Who may take the turn, behind a blank line.
        strip: Whether white space at both ends of the answer is left out; it is held back until
            more text follows it.
        before: What the answer begins with already. It is not let out again, stop texts in it do
            not count, and white space behind it is no beginning.

    Attributes:
        skipped: Number of characters that were left out before the answer's first.

    Example:
        >>> matcher = StopMatcher(["END"], strip=True)
        >>> [matcher.push(piece) for piece in (" Hel", "lo E", "xit EN", "D and")]
        ['Hel', 'lo', ' Exit', '']
        >>> matcher.stopped
        True
        >>> matcher = StopMatcher([], roles=["User"], strip=True)
        >>> [matcher.push(piece) for piece in ("One.\n\nTwo.\n", "\nUse", "d.\n\nUs", "er: Hi")]
        ['One.\n\nTwo.', '', '\n\nUsed.', '']
        >>> matcher.stopped
        True
    """

    def __init__(
        self, stops: Sequence[str], *, roles: Sequence[str] = (), strip: bool, before: str = ""
    ) -> None:
        self._stops = tuple(stops)
        self._turns = _turn_patterns(roles) if roles else None
        self._firsts = frozenset(stop[0] for stop in stops) | ({"\n"} if roles else set())
        self._strip = strip
        half = self._turns.begun.search(before) if self._turns else None
        self._held = half.group() if half else ""
        self._known = len(self._held)  # characters of what is held that were said before
        self._started = bool(before)
        self.skipped = 0
        self._end: str | None = None
        self._rest = ""

    @property
    def stopped(self) -> bool:
        """Whether an end was found; what comes after it is ignored."""
        return self._end is not None

    @property
    def end(self) -> str | None:
        """The end that was found, as it stands in the text."""
        return self._end

    @property
    def rest(self) -> str:
        """What the piece that held the end has behind it."""
        return self._rest

    @property
    def held(self) -> str:
        """Text that is not let out yet."""
        return self._held[self._known :]

    def ignore_stops(self) -> None:
        """Lets no stop text end what comes from here on; what is held back may still be text."""
        self._stops = ()

    def push(self, text: str) -> str:
        """Takes the next piece and returns what is sure to belong to the answer."""
        if self._end is not None or not text:
            return ""
        if not self._held and self._firsts.isdisjoint(text):  # as with most words
            sure = text.rstrip() if self._strip else text
            self._held = text[len(sure) :]
            return self._let_out(sure)
        buffer = self._held + text
        found = self._find(buffer)
        if found is not None:
            self._end, self._rest = buffer[found.start : found.end], buffer[found.end :]
            self._held = ""
            return self._let_out(buffer[: found.start])
        sure = buffer[: self._first_doubt(buffer)]
        if self._strip:
            sure = sure.rstrip()
        self._held = buffer[len(sure) :]
        return self._let_out(sure)

    def flush(self, *, whole: bool = True) -> str:
        """Returns what was held back, now that no more text comes.

        Args:
            whole: Whether the beginning of a stop text, at the end, belongs to the answer.
        """
        rest, self._held = self._held, ""
        if not whole:
            rest = rest[: len(rest) - self._half_stop(rest)]
        return self._let_out(rest)

    def _let_out(self, text: str) -> str:
        known = min(self._known, len(text))
        self._known -= known
        text = text[known:]
        if self._strip:
            text = text.rstrip()
            if not self._started:
                known, text = len(text), text.lstrip()
                self.skipped = known - len(text)
        self._started = self._started or bool(text)
        return text

    def _find(self, buffer: str) -> _Found | None:
        """Returns the end that ends first."""
        places = ((buffer.find(stop, self._known), len(stop)) for stop in self._stops)
        found = [_Found(at + size, at) for at, size in places if at >= 0]
        if self._turns is not None and (turn := self._turns.whole.search(buffer)):
            found.append(_Found(turn.end(), turn.start()))
        return min(found, default=None)

    def _first_doubt(self, buffer: str) -> int:
        """Returns where that begins which may become an end."""
        doubt = len(buffer) - self._half_stop(buffer[self._known :])
        if self._turns is not None and (half := self._turns.begun.search(buffer)):
            doubt = min(doubt, half.start())
        return doubt

    def _half_stop(self, text: str) -> int:
        """Returns how many characters at the end may be the beginning of a stop text."""
        return max(
            (
                size
                for stop in self._stops
                for size in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:size])
            ),
            default=0,
        )


class _Turns(NamedTuple):
    """What another's turn begins with, and what may become that at the end of a text."""

    whole: re.Pattern[str]
    begun: re.Pattern[str]


def _turn_patterns(roles: Sequence[str]) -> _Turns:
    blank = r"(?:[^\S\n]*\n)"
    names = "|".join(map(re.escape, roles))
    halves = {role[:size] for role in roles for size in range(1, len(role) + 1)}
    begun = "|".join(map(re.escape, halves))
    return _Turns(
        re.compile(rf"\n{blank}+(?:{names}):"),
        re.compile(rf"\n(?:{blank}*[^\S\n]*|{blank}+(?:{begun}))\Z"),
    )
