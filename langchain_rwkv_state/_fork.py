"""What a forked child must do before it goes on: one hook of the system's, and who asked for it.

A lock that another thread holds at the moment of a fork stays held in the child for good, and
threads do not come along: so locks are taken before a fork and let go on both sides of it, and
whoever has threads or files of its own is called in the child.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType

_registry_lock = threading.Lock()
_locks: weakref.WeakSet[ForkLock] = weakref.WeakSet()
_held: list[ForkLock] = []
_callbacks: list[Callable[[], Callable[[], None] | None]] = []


def in_forked_child(callback: Callable[[], None]) -> None:
    """Calls a function in each child that is forked from now on.

    Args:
        callback: What to call, in the order of registration, after the locks of `ForkLock` are
            free; a bound method is held weakly, and forgotten with its object.

    Example:
        >>> in_forked_child(lambda: None)
    """
    if hasattr(callback, "__self__") and hasattr(callback, "__func__"):
        _callbacks.append(weakref.WeakMethod(callback))
    else:
        _callbacks.append(lambda: callback)


class ForkLock:
    """A re-entrant lock that is free in a forked child.

    A fork takes all of them in no particular order: take none while holding another.

    Args:
        in_child: Called in the child, before the lock is let go; a bound method is held weakly.
    """

    def __init__(self, in_child: Callable[[], None] | None = None) -> None:
        self._lock = threading.RLock()
        self._in_child = weakref.WeakMethod(in_child) if in_child is not None else None
        with _registry_lock:
            _locks.add(self)

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
    for lock in list(_locks):
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
    for each in list(_callbacks):
        callback = each()
        if callback is None:
            _callbacks.remove(each)
        else:
            callback()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
