"""Hands a caller the events of a request as they come, its end, and the way to cancel it.

It computes nothing; a worker thread puts events in, one caller (of threads or of an event loop)
takes them out. Iterators cancel their request when they are closed; a handle that nobody iterates
over or awaits runs to its end.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator

from langchain_rwkv_state.engine.callbacks import must_not_wait
from langchain_rwkv_state.engine.interruption import join
from langchain_rwkv_state.engine.request import Done, Event
from langchain_rwkv_state.engine.wakeups import Waiter, wake
from langchain_rwkv_state.errors import EngineError, RWKVStateError


class RequestHandle:
    """The events of one request: deltas, and `Done` last.

    Iterating (``for`` or ``async for``) takes the events; closing the iterator, or cancelling the
    task that runs it, cancels the request. `result` and `aresult` wait for the end and leave the
    deltas where they are. A cancelled request delivers nothing more, and no `Done`.

    Args:
        worker: Marks the thread that serves the request (`callbacks.begin_work`): to wait there, or
            within a callback that it runs, would be to wait for oneself, and is an error.
    """

    def __init__(self, worker: threading.local | None = None) -> None:
        self._worker = worker
        self._new_lock()
        self._waiters: list[Waiter] = []
        self._events: deque[Event] = deque()
        self._over = False
        self._done: Done | None = None
        self._error: BaseException | None = None
        join(self)

    def _new_lock(self) -> None:
        # Taken itself, and never through the condition, which Ctrl-C may leave as it has it.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    @property
    def over(self) -> bool:
        """Whether the request ended, failed or was cancelled."""
        return self._over

    def cancel(self) -> None:
        """Gives the request up: it is left within one step. After the end, does nothing."""
        with self._lock:
            if not self._over:
                self._over = True
                self._events.clear()
                self._wake()

    def result(self) -> Done:
        """Waits for the end.

        Raises:
            EngineError: The request failed or was cancelled, or this is the thread that serves it.
        """
        try:
            self._refuse_worker()
            with self._lock:
                self._changed.wait_for(lambda: self._over)
                return self._outcome()
        finally:
            self.cancel()

    async def aresult(self) -> Done:
        """Waits for the end without blocking the event loop; raises as `result` does."""
        try:
            await self._until(lambda: self._over)
            return self._outcome()
        finally:
            self.cancel()

    def __iter__(self) -> Iterator[Event]:
        """Yields the events as they come."""
        try:
            while (event := self._next()) is not None:
                yield event
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yields the events as they come, without blocking the event loop."""
        try:
            while True:
                await self._until(lambda: bool(self._events) or self._over)
                if (event := self._next()) is None:
                    return
                yield event
        finally:
            self.cancel()

    async def batches(self) -> AsyncGenerator[list[Event]]:
        """Yields the events in lists: all that are there each time, and one at least."""
        try:
            while True:
                await self._until(lambda: bool(self._events) or self._over)
                if not (events := self._take()):
                    return
                yield events
        finally:
            self.cancel()

    def put(self, event: Event) -> None:
        """Hands an event to the caller; the worker's side. After the end, does nothing."""
        with self._lock:
            if self._over:
                return
            self._events.append(event)
            if isinstance(event, Done):
                self._done = event
                self._over = True
            self._wake()

    def fail(self, error: BaseException) -> None:
        """Ends the request with an error; the worker's side. After the end, does nothing."""
        with self._lock:
            if not self._over:
                self._error = error
                self._over = True
                self._wake()

    def interrupt(self) -> None:
        """Gives the request up, and has `KeyboardInterrupt` raised where it is waited for."""
        self.fail(KeyboardInterrupt())

    def orphan(self) -> None:
        """Ends the request in a forked child, where no worker serves it."""
        self._new_lock()  # the parent's may have been held at the fork
        self._waiters = []
        self.fail(EngineError("The process was forked, and requests stay with the parent."))

    def _refuse_worker(self) -> None:
        if must_not_wait(self._worker):
            raise EngineError(
                "A callback of the engine waits for an answer of the same engine, which would "
                "never come, on whatever thread: put the work into a queue, and do it once the "
                "callback has returned."
            )

    def _next(self) -> Event | None:
        self._refuse_worker()
        with self._lock:
            self._changed.wait_for(lambda: self._events or self._over)
            if self._events:
                return self._events.popleft()
            if self._error is not None:
                raise _reason(self._error)
            return None

    def _take(self) -> list[Event]:
        with self._lock:
            events = list(self._events)
            self._events.clear()
        if not events and self._error is not None:
            raise _reason(self._error)
        return events

    def _outcome(self) -> Done:
        if self._error is not None:
            raise _reason(self._error)
        if self._done is None:
            raise EngineError("The request was cancelled, so it has no result.")
        return self._done

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._waiters:
            wake(self._waiters, self._worker)
            self._waiters.clear()

    async def _until(self, ready: Callable[[], bool]) -> None:
        """Waits in the event loop until something that was put in makes `ready` true."""
        self._refuse_worker()
        loop = asyncio.get_running_loop()
        while True:
            with self._lock:
                if ready():
                    return
                future: asyncio.Future[None] = loop.create_future()
                self._waiters.append((loop, future))
            await future


def _reason(error: BaseException) -> RWKVStateError | KeyboardInterrupt:
    """Returns an error of this package for whatever a request failed with."""
    if isinstance(error, (RWKVStateError, KeyboardInterrupt)):
        return error
    reason = EngineError(f"The request failed: {type(error).__name__}: {error}")
    reason.__cause__ = error
    return reason
