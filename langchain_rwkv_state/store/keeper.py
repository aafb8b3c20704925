"""Renews the places of turns that run: one thread a process, which sleeps while there are none.

A turn that waits renews its own place as it looks whether it is next; one that runs is busy with a
model, so somebody else has to. The easy mistake is to forget a place here: it holds up its session
until the process ends.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from dataclasses import dataclass

from langchain_rwkv_state.store.base import StateStore
from langchain_rwkv_state.store.forks import ForkLock

logger = logging.getLogger(__name__)
_A_LEASE = 3  # renewals in the time that a place holds: one may fail


@dataclass
class _Kept:
    """A place that is renewed."""

    store: StateStore
    session: str
    seconds: float
    ending: bool = False
    renewed_late: bool = False


def place_of(store: StateStore) -> object:
    """Returns what all objects of one store share in this process; else the object itself."""
    return getattr(getattr(store, "_resources", None), "value", store)


class Keeper:
    """Renews places until it is told not to."""

    def __init__(self) -> None:
        self._lock = ForkLock(self._forked)
        self._wake = threading.Event()
        self._kept: dict[str, _Kept] = {}
        self._due: list[tuple[float, str]] = []
        self._running = False

    def keep(self, store: StateStore, session: str, token: str, seconds: float) -> None:
        """Renews a place from now on, as `StateStore.enter_queue` does."""
        with self._lock:
            self._kept[token] = _Kept(store, session, seconds)
            self._schedule(token)
            first = self._due[0][1] == token
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="rwkv-state-turns", daemon=True).start()
        if first:
            self._wake.set()

    def ending(self, token: str) -> None:
        """Begins no renewal of a place any more: its turn is being committed."""
        with self._lock:
            if token in self._kept:
                self._kept[token].ending = True

    def let_go(self, token: str) -> bool:
        """Forgets a place; says whether it was renewed after `ending`, and so perhaps made anew."""
        with self._lock:
            kept = self._kept.pop(token, None)
            return kept is not None and kept.renewed_late

    def _schedule(self, token: str) -> None:
        renewal = time.monotonic() + self._kept[token].seconds / _A_LEASE
        heapq.heappush(self._due, (renewal, token))

    def _run(self) -> None:
        while True:
            self._wake.clear()
            self._wake.wait(self._renew_due())

    def _renew_due(self) -> float | None:
        """Renews what is due; returns the seconds until something is, ``None`` for never."""
        while True:
            with self._lock:
                while self._due and self._settled(self._due[0][1]):
                    heapq.heappop(self._due)
                if not self._due:
                    return None
                left = self._due[0][0] - time.monotonic()
                if left > 0:
                    return left
                _, token = heapq.heappop(self._due)
                kept = self._kept[token]
            self._ask(kept, token, leave=False)
            with self._lock:
                forgotten = token not in self._kept
                kept.renewed_late = kept.ending
                if not forgotten and not kept.ending:
                    self._schedule(token)
            if forgotten:  # while it was renewed, which may have made it anew
                self._ask(kept, token, leave=True)

    def _settled(self, token: str) -> bool:
        return token not in self._kept or self._kept[token].ending

    @staticmethod
    def _ask(kept: _Kept, token: str, *, leave: bool) -> None:
        try:
            if leave:
                kept.store.leave_queue(kept.session, token)
            else:
                kept.store.enter_queue(kept.session, token, kept.seconds)
        except Exception:  # it is tried again, or runs out by itself
            logger.info("The place of a turn of %r was not renewed", kept.session, exc_info=True)

    def _forked(self) -> None:
        """In a forked child: the turns that run are the parent's, and so is the thread."""
        self._wake = threading.Event()
        self._kept, self._due, self._running = {}, [], False


KEEPER = Keeper()
"""This process's keeper."""
