"""Runs an engine's callbacks in their callers' context, and says who must not wait within one.

A callback runs on the engine's worker, so an answer of that engine that is waited for in it never
comes, on whatever thread the waiting is done. The check also looks at the context, since
a pool that the callback waits for has threads of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import ParamSpec

P = ParamSpec("P")


class _Running:
    """A callback as it runs, on a worker's thread."""

    def __init__(self, worker: threading.local) -> None:
        self.worker = worker
        self.over = False


class _Thread(threading.local):
    """Which engine's worker a thread is, if it is one."""

    worker: threading.local | None = None


_thread = _Thread()
_running: ContextVar[tuple[_Running, ...]] = ContextVar("rwkv_callbacks", default=())


def begin_work(worker: threading.local) -> None:
    """Notes that the calling thread is an engine's worker, from now on."""
    worker.here = True
    _thread.worker = worker


def must_not_wait(worker: threading.local | None) -> bool:
    """Says whether the caller is in a callback of a worker, and would wait for itself.

    Threads and tasks that inherit the callback's context, as LangChain's do, count as it does for
    as long as it runs.
    """
    if worker is None:
        return False
    if getattr(worker, "here", False):
        return True
    return any(running.worker is worker and not running.over for running in _running.get())


def in_own_context(callback: Callable[P, None]) -> Callable[P, None]:
    """Returns a callback that runs in the context of who calls this, wherever it is called."""
    context = copy_context()

    def run(worker: threading.local, *args: P.args, **kwargs: P.kwargs) -> None:
        running = _Running(worker)
        token = _running.set((*_running.get(), running))
        try:
            callback(*args, **kwargs)
        finally:
            running.over = True
            _running.reset(token)

    def called(*args: P.args, **kwargs: P.kwargs) -> None:
        worker = _thread.worker
        if worker is None:
            context.run(callback, *args, **kwargs)
        else:
            context.run(run, worker, *args, **kwargs)

    return called
