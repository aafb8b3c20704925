"""Ends what many threads wait for, once Ctrl-C has reached the thread that waits for them all.

Python raises `KeyboardInterrupt` in the main thread alone: without this, a batch would go on
decoding until its last answer. Only what waits is ended; what computes or writes is left to its
end. Those who take part are found by context, so that nothing between a batch and an engine has to
hand anything on.
"""

from __future__ import annotations

import threading
import weakref
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

    def take_part(self) -> None:
        """Has all that is waited for in the caller's context, from now on, end with this."""
        _current.set(self)

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


_current: ContextVar[Interruption | None] = ContextVar("rwkv_interruption", default=None)


def join(waiting: Waiting) -> None:
    """Has a wait end with the work that the caller takes part in, if there is one."""
    current = _current.get()
    if current is not None:
        current.add(waiting)


def raise_if_interrupted() -> None:
    """Raises where the work that the caller takes part in was interrupted.

    Raises:
        KeyboardInterrupt: It was.
    """
    current = _current.get()
    if current is not None and current.happened:
        raise KeyboardInterrupt
