"""Renews the places of turns that run: one thread a store, which ends when there are none.

A turn that waits renews its own place as it looks whether it is next; one that runs is busy with a
model, so somebody else has to. A store that keeps its thread waiting keeps no other's. A place goes
with its turn, even where the turn was dropped without an end: else it would hold up its session.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

from langchain_rwkv_state._fork import ForkLock
from langchain_rwkv_state.conversation.filings import filings_of
from langchain_rwkv_state.store.base import StateStore

logger = logging.getLogger(__name__)
_A_LEASE = 3  # renewals in the time that a place holds: one may fail
_IDLE_SECONDS = 2.0  # turns come in numbers, and a thread is not to be made for each


@dataclass
class _Kept:
    """A place that is renewed."""

    store: StateStore
    session: str
    seconds: float
    goes_on: Callable[[], bool]
    ending: bool = False
    renewed_late: bool = False


@dataclass
class _Round:
    """What one thread renews: the places in one store, by the time when each is due."""

    of: weakref.ref[object]
    due: list[tuple[float, str]] = field(default_factory=list)
    wake: threading.Event = field(default_factory=threading.Event)


class Leases:
    """Renews places until it is told not to, or their turns are gone."""

    def __init__(self) -> None:
        self._lock = ForkLock(self._forked)
        self._kept: dict[str, _Kept] = {}
        self._rounds: dict[int, _Round] = {}

    def keep(
        self,
        store: StateStore,
        session: str,
        token: str,
        seconds: float,
        goes_on: Callable[[], bool],
    ) -> None:
        """Renews a place from now on, as `StateStore.enter_queue` does.

        Args:
            store: The store.
            session: The session's name.
            token: The turn's own.
            seconds: How long the place holds from each renewal on.
            goes_on: Says whether there still is a turn that can end; where not, the place is left
                to run out.
        """
        shared = filings_of(store)  # the same for all objects of one store
        with self._lock:
            self._kept[token] = _Kept(store, session, seconds, goes_on)
            own = self._rounds.get(id(shared))
            if own is None or own.of() is not shared:
                own = self._rounds[id(shared)] = _Round(weakref.ref(shared))
                threading.Thread(
                    target=self._run, args=(id(shared), own), name="rwkv-state-turns", daemon=True
                ).start()
            self._schedule(own, token, seconds)
            first = own.due[0][1] == token
        if first:
            own.wake.set()

    def ending(self, token: str) -> None:
        """Begins no renewal of a place any more: its turn is being committed."""
        with self._lock:
            if token in self._kept:
                self._kept[token].ending = True

    def let_go(self, token: str) -> bool:
        """Forgets a place; says whether it was renewed after `ending`, and so perhaps made anew.

        A finaliser may call it, in a thread that holds the lock already.
        """
        with self._lock:
            kept = self._kept.pop(token, None)
            return kept is not None and kept.renewed_late

    @staticmethod
    def _schedule(own: _Round, token: str, seconds: float) -> None:
        heapq.heappush(own.due, (time.monotonic() + seconds / _A_LEASE, token))

    def _run(self, key: int, own: _Round) -> None:
        while True:
            own.wake.clear()
            left = self._renew_due(own)
            if own.wake.wait(_IDLE_SECONDS if left is None else left) or left is not None:
                continue
            with self._lock:
                if not own.due:
                    if self._rounds.get(key) is own:
                        del self._rounds[key]
                    return

    def _renew_due(self, own: _Round) -> float | None:
        """Renews what is due; returns the seconds until something is, ``None`` for never."""
        while True:
            with self._lock:
                kept = None
                while own.due and (kept := self._still_kept(own.due[0][1])) is None:
                    heapq.heappop(own.due)
                if kept is None:
                    return None
                left = own.due[0][0] - time.monotonic()
                if left > 0:
                    return left
                _, token = heapq.heappop(own.due)
            self._ask(kept, token, leave=False)
            with self._lock:
                forgotten = token not in self._kept
                kept.renewed_late = kept.ending
                if not forgotten and not kept.ending:
                    self._schedule(own, token, kept.seconds)
            if forgotten:  # while it was renewed, which may have made it anew
                self._ask(kept, token, leave=True)

    def _still_kept(self, token: str) -> _Kept | None:
        """Returns a place that is to be renewed; one whose turn is gone is forgotten."""
        kept = self._kept.get(token)
        if kept is None or kept.ending:
            return None
        if not kept.goes_on():
            self._kept.pop(token, None)
            return None
        return kept

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
        """In a forked child: the turns that run are the parent's, and so are the threads."""
        self._kept, self._rounds = {}, {}


LEASES = Leases()
"""Those of this process."""
