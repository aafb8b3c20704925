"""A turn's place in the line of its session: to wait for it, to hold it, to give it up.

What the store keeps is in `store.queue`; this is the waiting, as steps for both forms. It reads no
head and commits nothing. The easy mistake is to begin a turn of a session inside another one of it,
as in a callback: it would wait for a turn that waits for it, and is refused instead.
"""

from __future__ import annotations

import os
import time
import uuid
import weakref
from collections.abc import Sequence
from contextlib import suppress
from contextvars import ContextVar

from langchain_rwkv_state.errors import SessionConflict
from langchain_rwkv_state.store import StateStore
from langchain_rwkv_state.store import queue as places
from langchain_rwkv_state.store.keeper import KEEPER, place_of
from langchain_rwkv_state.store.records import QueuedTurn
from langchain_rwkv_state.store_calls import LastCall, SettledCall, Sleep, Steps, StoreCall

WAIT_SECONDS = 600.0
"""How long a turn waits for those before it, where nobody says otherwise."""

_FIRST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.05
_SLOWER = 1.5

_turns_here: ContextVar[tuple[weakref.ref[Line], ...]] = ContextVar("rwkv_turns", default=())
"""Held weakly: a context outlives its turns, and would keep their stores."""


class Line:
    """One turn's place in the line of a session's turns.

    Args:
        store: Where the session lives.
        session: Its name.
        wait_seconds: How long to wait for the turns before it.
    """

    def __init__(self, store: StateStore, session: str, wait_seconds: float) -> None:
        self.token = uuid.uuid4().hex
        self._store = store
        self._session = session
        self._wait_seconds = wait_seconds
        self._lease_seconds = places.LEASE_SECONDS
        self._process = os.getpid()
        self._held = False
        self._over = False

    def wait(self) -> Steps[None]:
        """Takes a place and waits until no turn stands before it.

        Raises:
            SessionConflict: The time to wait is over; or a turn of the same session is under way
                around this one, which would have to wait for itself.
        """
        self._refuse_to_wait_for_oneself()
        self._held = True
        try:
            yield from self._wait()
        except BaseException:
            yield from self.leave()
            raise
        _turns_here.set((*map(weakref.ref, _open_turns()), weakref.ref(self)))
        KEEPER.keep(self._store, self._session, self.token, self._lease_seconds)

    def committing(self) -> None:
        """Notes that the turn is being committed, under `token`."""
        KEEPER.ending(self.token)

    def committed(self) -> None:
        """Notes that the commit gave the place up; `leave` then has nothing more to ask."""
        self._held = False

    def leave(self) -> Steps[None]:
        """Gives the place up, if the turn still has one.

        The garbage collector runs this, too, wherever it comes: so no context variable is set here
        (in the midst of another's `set` that crashes CPython 3.11), and no lock taken that the
        interrupted code may hold.
        """
        self._over = True
        if self._process != os.getpid():  # a forked child's copy: the turn is the parent's
            return
        if KEEPER.let_go(self.token) or self._held:
            self._held = False
            with suppress(Exception):  # where the store cannot do it now, the place runs out
                yield LastCall("leave_queue", self._session, self.token)

    def _wait(self) -> Steps[None]:
        enter = SettledCall("enter_queue", self._session, self.token, self._lease_seconds)
        ahead = yield enter
        begun = renewed = time.monotonic()
        pause = _FIRST_PAUSE_SECONDS
        while ahead:
            left = begun + self._wait_seconds - time.monotonic()
            if left <= 0:
                raise self._waited_long_enough((yield StoreCall("queue", self._session)))
            yield Sleep(min(pause, left))
            pause = min(pause * _SLOWER, _LONGEST_PAUSE_SECONDS)
            line: list[QueuedTurn] = yield StoreCall("queue", self._session)
            place = next((at for at, turn in enumerate(line) if turn.token == self.token), None)
            if place is None or time.monotonic() - renewed > self._lease_seconds / 3:
                place = yield enter
                renewed = time.monotonic()
            ahead = place

    def _refuse_to_wait_for_oneself(self) -> None:
        for line in _open_turns():
            if line._session == self._session and _same(line._store, self._store):
                raise SessionConflict(
                    f"A turn of session {self._session!r} is under way around this one, so it "
                    "would wait for itself: a callback or a tool may not talk in the session that "
                    "it serves, and a stream is to be read to its end, or closed, before the next "
                    'turn. Use a session of its own, or on_conflict="fork".'
                )

    def _waited_long_enough(self, line: Sequence[QueuedTurn]) -> SessionConflict:
        own = next((at for at, turn in enumerate(line) if turn.token == self.token), len(line))
        waiting = "no turn" if own == 0 else "1 turn" if own == 1 else f"{own} turns"
        first = line[0].process if line else os.getpid()
        where = "this process" if first == os.getpid() else f"process {first}"
        return SessionConflict(
            f"After {self._wait_seconds:g} seconds there is still {waiting} before this one in "
            f"session {self._session!r}; the one that runs is in {where}. Try again, give it a "
            'longer wait_timeout, or use on_conflict="fork".'
        )


def _open_turns() -> tuple[Line, ...]:
    """Returns the turns that are under way around the caller, in its thread or task."""
    lines = (ref() for ref in _turns_here.get())
    here = os.getpid()
    return tuple(
        line for line in lines if line is not None and not line._over and line._process == here
    )


def _same(one: StateStore, other: StateStore) -> bool:
    """Says whether two objects are one store, by whatever name its directory was given."""
    if place_of(one) is place_of(other):
        return True
    paths = [getattr(store, "path", None) for store in (one, other)]
    return None not in paths and os.path.realpath(paths[0]) == os.path.realpath(paths[1])
