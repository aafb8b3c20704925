"""Finds stop texts in an answer that arrives in pieces, and lets out nothing that may be one.

It deals in whole characters and knows no tokens. The easy mistake is to look for a stop text in
each piece: it may begin in one and end two later, so what may still become one is held back. What
comes out does not depend on where the text was cut: the stop text that *ends* first counts, of
several that end at one character the longest.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Watches the text of one answer.

    Args:
        stops: The stop texts, none of them empty.
        strip: Whether white space at both ends of the answer is left out; it is held back until
            more text follows it.

    Example:
        >>> matcher = StopMatcher(["END"], strip=True)
        >>> [matcher.push(piece) for piece in (" Hel", "lo E", "xit EN", "D and")]
        ['Hel', 'lo', ' Exit', '']
        >>> matcher.stopped
        True
    """

    def __init__(self, stops: Sequence[str], *, strip: bool) -> None:
        self._stops = tuple(stops)
        self._strip = strip
        self._held = ""
        self._started = False
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop text was found; what comes after it is ignored."""
        return self._stopped

    @property
    def held(self) -> str:
        """Text that is not let out yet."""
        return self._held

    def push(self, text: str) -> str:
        """Takes the next piece and returns what is sure to belong to the answer."""
        if self._stopped or not text:
            return ""
        buffer = self._held + text
        start = self._find(buffer)
        if start is not None:
            self._stopped = True
            self._held = ""
            return self._let_out(buffer[:start])
        sure = buffer[: len(buffer) - self._longest_beginning(buffer)]
        if self._strip:
            sure = sure.rstrip()
        self._held = buffer[len(sure) :]
        return self._let_out(sure)

    def flush(self) -> str:
        """Returns what was held back, now that no more text comes."""
        rest, self._held = self._held, ""
        return self._let_out(rest)

    def _let_out(self, text: str) -> str:
        if self._strip:
            text = text.rstrip() if self._started else text.strip()
        self._started = self._started or bool(text)
        return text

    def _find(self, buffer: str) -> int | None:
        """Returns where the stop text begins that ends first."""
        places = ((buffer.find(stop), len(stop)) for stop in self._stops)
        found = min(((at + size, at) for at, size in places if at >= 0), default=None)
        return found[1] if found else None

    def _longest_beginning(self, buffer: str) -> int:
        """Returns how many characters at the end may be the beginning of a stop text."""
        return max(
            (
                size
                for stop in self._stops
                for size in range(1, min(len(stop), len(buffer) + 1))
                if buffer.endswith(stop[:size])
            ),
            default=0,
        )
