"""Ends what many threads wait for, once Ctrl-C has reached the thread that waits for them all.

Python raises `KeyboardInterrupt` in the main thread alone: without this, a batch would go on
decoding until its last answer. Only what waits is ended; what computes or writes is left to its
end. Those who take part are found by context, so that nothing between a batch and an engine has to
hand anything on.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Waiting(Protocol):
    """Something that is waited for, or that sleeps."""

    def interrupt(self) -> None:
        """Ends the wait; after its end, does nothing."""


class Interruption:
    """One work of many threads that may be interrupted; part of the one that it is made in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: weakref.WeakSet[Waiting] = weakref.WeakSet()
        self.happened = False
        join(self)

    @contextmanager
    def part(self) -> Iterator[None]:
        """Has all that is waited for within, and in contexts copied there, end with this.

        Only as long as the block runs: a copied context may outlive it.
        """
        part = _Part(self)
        token = _current.set(part)
        try:
            yield
        finally:
            part.over = True
            _current.reset(token)

    def interrupt(self) -> None:
        """Ends every wait of those who take part, also of waits to come."""
        with self._lock:
            self.happened = True
            waiting = list(self._waiting)
        for each in waiting:
            each.interrupt()

    def add(self, waiting: Waiting) -> None:
        """Has a wait end with this; at once, if it is interrupted already."""
        with self._lock:
            self._waiting.add(waiting)
            late = self.happened
        if late:
            waiting.interrupt()


class _Part:
    """One thread's part in a work."""

    def __init__(self, work: Interruption) -> None:
        self.work = work
        self.over = False


_current: ContextVar[_Part | None] = ContextVar("rwkv_interruption", default=None)


def _work() -> Interruption | None:
    part = _current.get()
    return None if part is None or part.over else part.work


def join(waiting: Waiting) -> None:
    """Has a wait end with the work that the caller takes part in, if there is one."""
    work = _work()
    if work is not None:
        work.add(waiting)


def raise_if_interrupted() -> None:
    """Raises where the work that the caller takes part in was interrupted.

    Raises:
        KeyboardInterrupt: It was.
    """
    work = _work()
    if work is not None and work.happened:
        raise KeyboardInterrupt
