"""Steps that ask a store: one text for the sync and the async form of what needs a store.

A function of steps is a generator that yields calls of a store's verbs and gets back what they
return, or has raised in it what they raise. It says what is asked, not how: `run` calls the verb,
`arun` awaits its async twin. The easy mistake is to call the store inside of steps, or to sleep
there: that blocks the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias, TypeVar

from langchain_rwkv_state.store.base import StateStore

T = TypeVar("T")


class StoreCall:
    """One verb of a store with what it is given.

    Args:
        verb: Its name, such as ``commit``; the async twin is ``acommit``.
        args: By position.
        options: By name.
    """

    __slots__ = ("args", "options", "verb")

    def __init__(self, verb: str, *args: Any, **options: Any) -> None:
        self.verb = verb
        self.args = args
        self.options = options


class WholeCall(StoreCall):
    """A call whose outcome is known even to a task that is cancelled as it runs.

    Cancelled before it began, it never happens. Cancelled later, it happens, and its outcome stands
    in the place of the cancellation: see `StateStore.to_its_end`.
    """

    __slots__ = ()


class SettledCall(StoreCall):
    """A call that has ended, or never begins, when the cancellation of its task is raised."""

    __slots__ = ()


class LastCall(StoreCall):
    """A call that happens even if the task is cancelled."""

    __slots__ = ()


class Signal:
    """Ends one sleep early.

    It may be given from any thread, and in a finaliser: nothing in `give` waits for a lock.
    """

    def __init__(self) -> None:
        self._given: SimpleQueue[None] = SimpleQueue()
        self._sleeper: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def give(self) -> None:
        """Wakes who sleeps, or will."""
        self._given.put(None)
        if self._sleeper is not None:
            loop, future = self._sleeper
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(_settle, future)

    def wait(self, seconds: float) -> None:
        """Sleeps in the calling thread."""
        with suppress(Empty):
            self._given.get(timeout=seconds)

    async def wait_in_loop(self, seconds: float) -> None:
        """Sleeps on the event loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._sleeper = loop, future
        if self._given.empty():  # looked at after the sleeper is known, so that none is missed
            await asyncio.wait([future], timeout=seconds)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Sleep:
    """A pause.

    Args:
        seconds: How long.
        signal: Ends it early.
    """

    __slots__ = ("seconds", "signal")

    def __init__(self, seconds: float, signal: Signal | None = None) -> None:
        self.seconds = seconds
        self.signal = signal


Steps: TypeAlias = Generator[StoreCall | Sleep, Any, T]


def run(steps: Steps[T], store: StateStore) -> T:
    """Runs steps to their end in the calling thread and returns what they return.

    Args:
        steps: The steps, not yet begun.
        store: The store that they ask.
    """
    try:
        call = next(steps)
        while True:
            try:
                answer = _do(call, store)
            except BaseException as error:  # noqa: BLE001 - the steps decide
                call = steps.throw(error)
            else:
                call = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


async def arun(steps: Steps[T], store: StateStore) -> T:
    """Runs steps to their end on the event loop and returns what they return.

    Args:
        steps: The steps, not yet begun.
        store: The store that they ask, by the async twins of its verbs.
    """
    try:
        call = next(steps)
        while True:
            try:
                answer = await _ado(call, store)
            except BaseException as error:  # noqa: BLE001 - the steps decide
                call = steps.throw(error)
            else:
                call = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def _do(call: StoreCall | Sleep, store: StateStore) -> Any:
    if isinstance(call, Sleep):
        wait = time.sleep if call.signal is None else call.signal.wait
        return wait(call.seconds)
    return getattr(store, call.verb)(*call.args, **call.options)


async def _ado(call: StoreCall | Sleep, store: StateStore) -> Any:
    if isinstance(call, Sleep):
        pause = asyncio.sleep if call.signal is None else call.signal.wait_in_loop
        return await pause(call.seconds)
    if isinstance(call, WholeCall):
        return await store.to_its_end(call.verb, *call.args, **call.options)
    if isinstance(call, SettledCall):
        return await store.to_its_end(call.verb, *call.args, tell=True, **call.options)
    if isinstance(call, LastCall):
        return await store.to_its_end(call.verb, *call.args, revoke=False, **call.options)
    return await getattr(store, f"a{call.verb}")(*call.args, **call.options)
