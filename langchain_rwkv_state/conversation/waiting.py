"""Takes a turn's place in the queue of its session, waits for the turns before it, and leaves.

What the store keeps is in `store.queue`; this is the waiting, as steps for both forms. Who stands
behind a turn of another process looks every so often; who stands behind one of this process is
woken, since a look reads the whole queue. A turn that begins inside another one of its session, as
in a callback, would wait for a turn that waits for it, and is refused.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar

from langchain_rwkv_state.conversation.filings import filings_of
from langchain_rwkv_state.conversation.leases import LEASES
from langchain_rwkv_state.conversation.steps import (
    LastCall,
    SettledCall,
    Signal,
    Sleep,
    Steps,
    StoreCall,
)
from langchain_rwkv_state.errors import SessionConflict
from langchain_rwkv_state.store import StateStore, turns
from langchain_rwkv_state.store.records import QueuedTurn

WAIT_SECONDS = 600.0
"""How long a turn waits for those before it, where nobody says otherwise."""

_FIRST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.05
_SLOWER = 1.5
_A_LEASE = 3  # renewals in the time that a place holds

_turns_here: ContextVar[tuple[weakref.ref[Place], ...]] = ContextVar("rwkv_turns", default=())
"""Held weakly: a context outlives its turns, and would keep their stores."""

_places_here: weakref.WeakValueDictionary[str, Place] = weakref.WeakValueDictionary()
"""This process's turns by token: who stands behind one of them is woken, and need not look."""


class Place:
    """One turn's place in the queue of a session's turns.

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
        self._lease_seconds = turns.LEASE_SECONDS
        self._process = os.getpid()
        self._held = False
        self._over = False
        self._left = False
        self._followers: list[Signal] = []
        self._renewed = 0.0
        self._enter = SettledCall("enter_queue", session, self.token, self._lease_seconds)

    def wait(self) -> Steps[None]:
        """Takes a place and waits until no turn stands before it.

        Raises:
            SessionConflict: The time to wait is over; or a turn of the same session is under way
                around this one, which would have to wait for itself.
        """
        self._refuse_to_wait_for_oneself()
        self._held = True
        _places_here[self.token] = self
        try:
            yield from self._wait()
        except BaseException:
            yield from self.leave()
            raise
        _turns_here.set((*map(weakref.ref, _open_turns()), weakref.ref(self)))
        LEASES.keep(
            self._store, self._session, self.token, self._lease_seconds, self._goes_on_in(_loop())
        )

    def _goes_on_in(self, loop: asyncio.AbstractEventLoop | None) -> Callable[[], bool]:
        """Returns what says whether the turn can still go on: it and its loop are there."""
        ref = weakref.ref(self)

        def goes_on() -> bool:
            return ref() is not None and not (loop is not None and loop.is_closed())

        return goes_on

    def committing(self) -> None:
        """Notes that the turn is being committed, under `token`."""
        LEASES.ending(self.token)

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
        try:
            if LEASES.let_go(self.token) or self._held:
                self._held = False
                with suppress(Exception):  # where the store cannot do it now, the place runs out
                    yield LastCall("leave_queue", self._session, self.token)
        finally:
            self._left = True
            for signal in tuple(self._followers):
                signal.give()

    def _wait(self) -> Steps[None]:
        ahead = yield self._enter
        begun = self._renewed = time.monotonic()
        pause = _FIRST_PAUSE_SECONDS
        while ahead:
            queue: list[QueuedTurn] = yield StoreCall("queue", self._session)
            at = next((at for at, turn in enumerate(queue) if turn.token == self.token), None)
            if at is None:  # it ran out; nothing was begun in it, so another one will do
                ahead = yield from self._renew()
            elif at == 0:
                ahead = at
            elif (left := begun + self._wait_seconds - time.monotonic()) <= 0:
                raise self._waited_long_enough(queue)
            elif (before := _here(queue[at - 1].token)) is not None:
                yield from self._follow(before, at, begun + self._wait_seconds)
            else:
                yield Sleep(min(pause * at, left, self._lease_seconds / 4))
                pause = min(pause * _SLOWER, _LONGEST_PAUSE_SECONDS)
                if self._is_due():
                    ahead = yield from self._renew()

    def _follow(self, before: weakref.ref[Place], ahead: int, end: float) -> Steps[None]:
        """Sleeps until the turn before this one has left or run out; renews meanwhile."""
        signal = Signal()
        if (place := before()) is not None:
            place._followers.append(signal)
        del place
        while _is_there(before) and (left := end - time.monotonic()) > 0:
            yield Sleep(min(left, self._lease_seconds / _A_LEASE), signal)
            if self._is_due() and (yield from self._renew()) != ahead:
                return  # one before ran out: its turn is here, and will never leave

    def _is_due(self) -> bool:
        return time.monotonic() - self._renewed > 0.9 * self._lease_seconds / _A_LEASE

    def _renew(self) -> Steps[int]:
        ahead: int = yield self._enter
        self._renewed = time.monotonic()
        return ahead

    def _refuse_to_wait_for_oneself(self) -> None:
        for place in _open_turns():
            if place._session == self._session and _same(place._store, self._store):
                raise SessionConflict(
                    f"A turn of session {self._session!r} is under way around this one, so it "
                    "would wait for itself: a callback or a tool may not talk in the session that "
                    "it serves, and a stream is to be read to its end, or closed, before the next "
                    'turn. Use a session of its own, or on_conflict="fork".'
                )

    def _waited_long_enough(self, queue: Sequence[QueuedTurn]) -> SessionConflict:
        own = next((at for at, turn in enumerate(queue) if turn.token == self.token), len(queue))
        waiting = "no turn" if own == 0 else "1 turn" if own == 1 else f"{own} turns"
        first = queue[0].process if queue else os.getpid()
        where = "this process" if first == os.getpid() else f"process {first}"
        return SessionConflict(
            f"After {self._wait_seconds:g} seconds there is still {waiting} before this one in "
            f"session {self._session!r}; the one that runs is in {where}. Try again, give it a "
            'longer wait_timeout, or use on_conflict="fork".'
        )


def _loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _here(token: str) -> weakref.ref[Place] | None:
    """Returns a turn of this process that has not left; weakly, since nobody here may keep it."""
    place = _places_here.get(token)
    return weakref.ref(place) if place is not None and _is_there(weakref.ref(place)) else None


def _is_there(ref: weakref.ref[Place]) -> bool:
    place = ref()
    return place is not None and not place._left and place._process == os.getpid()


def _open_turns() -> tuple[Place, ...]:
    """Returns the turns that are under way around the caller, in its thread or task."""
    places = (ref() for ref in _turns_here.get())
    here = os.getpid()
    return tuple(
        place
        for place in places
        if place is not None and not place._over and place._process == here
    )


def _same(one: StateStore, other: StateStore) -> bool:
    """Says whether two objects are one store, by whatever name its directory was given."""
    if filings_of(one) is filings_of(other):
        return True
    mine, its = (str(getattr(store, "path", None) or "") for store in (one, other))
    return bool(mine and its) and os.path.realpath(mine) == os.path.realpath(its)
