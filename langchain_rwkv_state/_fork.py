"""What a forked child must do before it goes on: one hook of the system's, and who asked for it.

A lock that another thread holds at the moment of a fork stays held in the child for good, and
threads do not come along: so locks are taken before a fork and let go on both sides of it, and
whoever has threads or files of its own is called in the child.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

_registry_lock = threading.Lock()
_locks: weakref.WeakSet[ForkLock] = weakref.WeakSet()
_held: list[ForkLock] = []
_callbacks: list[Callable[[], Callable[[], None] | None]] = []
_quiet = threading.RLock()  # held by a fork, and by whoever must be done before one
_forking = threading.Event()
_LOOK_AGAIN_SECONDS = 0.001


class _Mine(threading.local):
    """How many of `ForkLock` the calling thread holds: a fork waits for it then anyway."""

    locks = 0


_mine = _Mine()


@contextmanager
def not_amid_a_fork() -> Iterator[None]:
    """Keeps a fork waiting for a short block, which itself waits for a fork under way.

    SQLite opens a connection under locks of its own, which a child would inherit as held.
    """
    if _mine.locks:
        yield
        return
    with _quiet:
        yield


def done_before_a_fork(work: Callable[[], None]) -> bool:
    """Runs short work that a fork waits for; says whether it did, which it does not amid a fork.

    SQLite closes a connection under locks of its own, which a child would inherit as held. A
    finaliser may call this in a thread that holds any lock, so it never waits for a fork.
    """
    if _mine.locks:
        work()
        return True
    while not _quiet.acquire(timeout=_LOOK_AGAIN_SECONDS):
        if _forking.is_set():
            return False
    try:
        work()
    finally:
        _quiet.release()
    return True


class _Statements:
    """What a fork waits for, a second at most: a thread inside SQLite may hold a lock of its.

    Whoever enters takes no lock of ours before it leaves; enter it once at a time. A fork takes all
    of those locks first, so nobody who holds one waits here for it.
    """

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._inside: set[int] = set()

    def __enter__(self) -> None:
        with self._gate:
            self._inside.add(threading.get_ident())

    def __exit__(self, *_: object) -> None:
        self._inside.discard(threading.get_ident())

    def close(self) -> None:
        """Lets nobody in, and waits for those inside."""
        self._gate.acquire()
        deadline = time.monotonic() + _STATEMENT_SECONDS
        while self._inside and time.monotonic() < deadline:
            time.sleep(_LOOK_AGAIN_SECONDS / 10)

    def open(self, *, in_child: bool) -> None:
        """Lets everybody in again; in a child nobody is inside."""
        if in_child:
            self._inside.clear()
        self._gate.release()


_STATEMENT_SECONDS = 1.0
inside_sqlite = _Statements()


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
        _mine.locks += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _mine.locks -= 1
        self._lock.release()

    def after_fork(self) -> None:
        """Runs what the owner has to do in the child."""
        action = self._in_child() if self._in_child is not None else None
        if action is not None:
            action()


def _before_fork() -> None:
    _quiet.acquire()
    _forking.set()  # not before: another fork that ends now would take it back
    _registry_lock.acquire()
    for lock in list(_locks):
        lock.__enter__()
        _held.append(lock)
    inside_sqlite.close()


def _after_fork_in_parent() -> None:
    inside_sqlite.open(in_child=False)
    _let_go()


def _let_go() -> None:
    while _held:
        _held.pop().__exit__(None, None, None)
    _registry_lock.release()
    _forking.clear()
    _quiet.release()


def _after_fork_in_child() -> None:
    inside_sqlite.open(in_child=True)
    for lock in _held:
        lock.after_fork()
    _let_go()
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
