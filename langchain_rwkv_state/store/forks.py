"""A lock that a forked child can use again.

A lock held by another thread at the moment of a fork stays held in the child for good. These
locks are all taken before a fork and let go on both sides of it. The easy mistake is to take one
of them while holding another: a fork takes them in no particular order.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType

_registry_lock = threading.Lock()
_registry: weakref.WeakSet[ForkLock] = weakref.WeakSet()
_held: list[ForkLock] = []


class ForkLock:
    """A re-entrant lock that is free in a forked child.

    Args:
        in_child: Called in the child, before the lock is let go; a bound method is held weakly.
    """

    def __init__(self, in_child: Callable[[], None] | None = None) -> None:
        self._lock = threading.RLock()
        self._in_child = weakref.WeakMethod(in_child) if in_child is not None else None
        with _registry_lock:
            _registry.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def after_fork(self) -> None:
        """Runs what the owner has to do in the child."""
        action = self._in_child() if self._in_child is not None else None
        if action is not None:
            action()


def _before_fork() -> None:
    _registry_lock.acquire()
    for lock in list(_registry):
        lock.__enter__()
        _held.append(lock)


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().__exit__(None, None, None)
    _registry_lock.release()


def _after_fork_in_child() -> None:
    for lock in _held:
        lock.after_fork()
    _after_fork_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
