"""A store's clock and its times to live, in seconds.

The clock turns what the machine says into a time that only moves forward and never leaps, so that
a wrong date cannot expire a store. It is not a timer: nothing happens because time passes. The
easy mistake is to compare an expiry with `time.time()`: it must be compared with this clock.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from langchain_rwkv_state._fork import ForkLock

TTL = float | int | timedelta | str | None
"""Seconds, a `timedelta`, or a text such as ``"90"``, ``"30m"``, ``"1h30m"``, ``"7d"``, ``"2w"``
and ``"never"``; ``None`` means the store's default; `math.inf` never expires."""

_NUMBER = r"(\d+(?:\.\d+)?)\s*"
_SECONDS, _PART = re.compile(_NUMBER), re.compile(_NUMBER + r"([smhdw])\s*")
_UNITS = {"w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}  # largest first

LONGEST_TTL_SECONDS = 1e12
"""The longest time to live but never: 31,700 years."""

_SLACK_SECONDS = 3600.0  # a correction by a time server, or a process that was stopped for a while
_LEAP_SECONDS = 180 * 86400.0  # no store is unused for half a year and missed by nobody
_SAVE_EVERY_SECONDS = 3600.0


def read_duration(text: str) -> float:
    """Reads a time to live: seconds, or numbers with w, d, h, m, s in this order; or ``never``.

    Raises:
        ValueError: The text is none of these.

    Example:
        >>> read_duration("90"), read_duration("1h30m"), read_duration("never")
        (90.0, 5400.0, inf)
    """
    given = text.strip().lower()
    if given == "never":
        return math.inf
    plain = _SECONDS.fullmatch(given)
    parts = [(given, "s")] if plain else _PART.findall(given)
    places = [list(_UNITS).index(unit) for _, unit in parts]
    whole = plain or "".join(_PART.split(given)[::3]) == ""  # nothing stands between the parts
    if not parts or not whole or places != sorted(set(places)):
        raise ValueError(
            f"{text!r} is no time to live: use seconds, 30m, 12h, 1h30m, 7d, 2w or never."
        )
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds == 0:
        raise ValueError(f"{text!r} is no time to live: it must be more than 0 seconds.")
    return seconds


def ttl_seconds(ttl: TTL, default: float) -> float:
    """Returns a time to live in seconds.

    Args:
        ttl: Seconds, a `timedelta`, a text as `read_duration` reads it, or ``None`` for `default`.
        default: The store's own time to live.

    Raises:
        ValueError: It is not a positive number, and no such text.
    """
    if ttl is None:
        return default
    if isinstance(ttl, str):
        ttl = read_duration(ttl)
    wrong = isinstance(ttl, bool) or not isinstance(ttl, (int, float, timedelta))
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if not wrong and LONGEST_TTL_SECONDS < seconds < math.inf:
        raise ValueError(
            f"A time to live of {ttl!r} is longer than 30,000 years: give math.inf for a session "
            "that never expires."
        )
    if wrong or not seconds > 0:
        raise ValueError(
            f"A time to live of {ttl!r} is not possible: give a positive number of seconds, a "
            "timedelta, or math.inf for a session that never expires."
        )
    return float(seconds)


def steady_seconds() -> float:
    """Returns a clock that nobody can set; on Linux it goes on while the machine sleeps."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


@dataclass(frozen=True)
class ClockMark:
    """What a store remembers of its clock between processes.

    Attributes:
        wall: What the machine's clock said.
        offset: What had to be added to it to give the store's time.
    """

    wall: float
    offset: float


class StoreClock:
    """The store's time: the machine's clock without its leaps.

    A step back counts as standing still. A step forward counts as time, except where it cannot
    be: with the machine's own clock, where the machine was up and its steady clock disagrees by
    more than an hour; with any clock, and across restarts, where it is longer than half a year
    and than twice the store's time to live. Such a leap counts as no time at all.

    Args:
        clock: Gives Unix time.
        ttl: The store's time to live in seconds.
        load: Reads the mark that another process or an earlier one left.
        steady: Gives a time that nobody sets, ``None`` where there is none to compare with.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        ttl: float,
        load: Callable[[], ClockMark | None],
        steady: Callable[[], float] | None = None,
    ) -> None:
        self._clock = clock
        self._load = load
        self._lock = ForkLock()
        self._steady = steady
        self._leap = max(_LEAP_SECONDS, 2 * ttl if math.isfinite(ttl) else 0.0)
        mark = load()
        self._saved = mark
        wall = float(clock())
        self._offset = 0.0 if mark is None else mark.offset
        if mark is not None and not self._plausible(wall - mark.wall):
            self._offset -= wall - mark.wall
        self._wall = wall
        self._steady_at = steady() if steady else 0.0
        self._now = wall + self._offset

    def now(self) -> float:
        """Returns the store's time, never less than it returned before."""
        wall = float(self._clock())
        steady_at = self._steady() if self._steady else 0.0
        with self._lock:
            if not self._leapt(wall, steady_at):
                return self._moved(wall, steady_at)
        mark = self._load()  # outside of the lock: it reads the store
        with self._lock:
            leap = self._leapt(wall, steady_at)
            if leap:
                self._follow(wall, leap, mark)
            return self._moved(wall, steady_at)

    def _moved(self, wall: float, steady_at: float) -> float:
        self._wall, self._steady_at = wall, steady_at
        self._now = max(self._now, wall + self._offset)
        return self._now

    def mark_to_save(self) -> ClockMark | None:
        """Returns a mark where it is time to save one, with the next thing written."""
        saved = self._saved
        if (
            saved is not None
            and saved.offset == self._offset
            and abs(self._wall - saved.wall) < _SAVE_EVERY_SECONDS
        ):
            return None
        return ClockMark(self._wall, self._offset)

    def saved(self, mark: ClockMark) -> None:
        """Notes that a mark was written."""
        self._saved = mark

    def _plausible(self, step: float) -> bool:
        return -_SLACK_SECONDS <= step <= self._leap

    def _leapt(self, wall: float, steady_at: float) -> float:
        """Returns by how much the clock leapt since it was last looked at; 0 for an honest step."""
        step = wall - self._wall
        if self._steady is None:
            return 0.0 if self._plausible(step) else step
        surprise = step - (steady_at - self._steady_at)
        return surprise if abs(surprise) > _SLACK_SECONDS else 0.0

    def _follow(self, wall: float, leap: float, mark: ClockMark | None) -> None:
        """Takes a leap out, or takes over what another process made of the same one."""
        if mark is not None and abs(wall - mark.wall) <= 2 * _SAVE_EVERY_SECONDS:
            self._offset, self._saved = mark.offset, mark
        else:
            self._offset -= leap
