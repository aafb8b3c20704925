"""Wakes each event loop once a step, however many of its tasks wait for what the step brought.

To wake a loop from another thread is a write to a socket, which costs more than all else that is
done for a token. So what a worker's step wakes is gathered, by loop, and goes out together when the
step is over; on any other thread, and between steps, nothing is gathered.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import TypeAlias

Waiter: TypeAlias = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


@contextlib.contextmanager
def gathered(worker: threading.local) -> Iterator[None]:
    """Gathers what the calling thread, a worker's, wakes within; wakes it at the end."""
    woken: list[Waiter] = []
    worker.woken = woken
    try:
        yield
    finally:
        worker.woken = None
        _send(woken)


def wake(waiters: Sequence[Waiter], worker: threading.local | None) -> None:
    """Has tasks go on, in their own loops: now, or with all that the worker's step wakes.

    Args:
        waiters: What they wait for.
        worker: Marks the thread that serves them.
    """
    woken: list[Waiter] | None = getattr(worker, "woken", None)
    if woken is None:
        _send(waiters)
    else:
        woken += waiters


def _send(waiters: Sequence[Waiter]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for loop, future in waiters:
        by_loop.setdefault(loop, []).append(future)
    for loop, futures in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(_resolve, futures)


def _resolve(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
