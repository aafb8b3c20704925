"""Counts the users of what a process has once: loaded models, open stores, the default cache.

Registries are the package's only global mutable state: several chat models over one file must not
load it twice, nor two objects over one directory disagree. They know nothing of files or tensors:
keys and values are anything. The easy mistake is to take a lock in a finaliser: the garbage
collector may run one in the very thread that holds the lock, so what is given back is queued and
settled by whoever can.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from langchain_rwkv_state._fork import in_forked_child

T = TypeVar("T")


_registries: weakref.WeakSet[Registry[Any]] = weakref.WeakSet()


class _Slot(Generic[T]):
    """One key's value, its users, and the lock under which it is made."""

    def __init__(self) -> None:
        self.users = 0
        self.making = threading.Lock()
        self.value: T | None = None


class Hold(Generic[T]):
    """One user's hold on a value, given back when it is released or collected.

    Attributes:
        value: What is held.
    """

    def __init__(self, value: T, give_back: Callable[..., None]) -> None:
        self.value = value
        self._give_back = weakref.finalize(self, give_back)
        self._give_back.atexit = False  # then all is freed anyway, and in an order of its own
        self._now = functools.partial(give_back, now=True)

    def release(self) -> None:
        """Gives the value back; without other users it goes at once. Safe to call twice."""
        if self._give_back.detach() is not None:
            self._now()


class Registry(Generic[T]):
    """Values that are made once for a key and live until their last user gives them back.

    Args:
        on_free: Called after values were freed, without any lock held.
        close: Called with each value that is freed, without any lock held.
        stays: Says of a value without users whether it is to stay for now: until `sweep` or the
            next call finds that it is not. One that was given back on purpose goes in any case.

    Attributes:
        used: Whether anything was ever held.
    """

    def __init__(
        self,
        on_free: Callable[[], None] = lambda: None,
        *,
        close: Callable[[T], None] = lambda _: None,
        stays: Callable[[T], bool] | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._slots: dict[Hashable, _Slot[T]] = {}
        self._returned: deque[tuple[Hashable, _Slot[T], bool]] = deque()
        self._on_free = on_free
        self._close = close
        self._stays = stays
        self.used = False
        _registries.add(self)

    def __len__(self) -> int:
        """Returns the number of values that are there or being made."""
        return len(self._slots)

    def values(self) -> list[T]:
        """Returns the values that are there now; nobody holds them for that."""
        with self._lock:
            found = [slot.value for slot in self._slots.values() if slot.value is not None]
        self._settle()  # what a finaliser gave back meanwhile
        return found

    def hold(
        self,
        key: Hashable,
        make: Callable[[], T],
        *,
        fits: Callable[[T], bool] = lambda _: True,
    ) -> tuple[T, Callable[..., None]]:
        """Returns the key's value, made if need be, and the call that gives this hold back.

        Users of one key who come while it is made wait for it. If making it fails, each of them
        tries on its own.

        Args:
            key: Names the value.
            make: Makes it.
            fits: Says whether a value made before still is what the key names; one that is not
                stays with those who hold it, and a new one takes its place.

        Returns:
            The value, and a callable to be called exactly once, from any thread or finaliser;
            ``now=True`` says that nobody else is expected to want the value.
        """
        self.used = True
        while True:
            with self._lock:
                slot = self._slots.setdefault(key, _Slot())
                slot.users += 1
            self.sweep()
            try:
                with slot.making:
                    if slot.value is None:
                        slot.value = make()
                        break
                    if fits(slot.value):
                        break
            except BaseException:
                self._give_back(key, slot, now=True)
                raise
            with self._lock:
                if self._slots.get(key) is slot:
                    del self._slots[key]
            self._give_back(key, slot)
        return slot.value, functools.partial(self._give_back, key, slot)

    def held(
        self,
        key: Hashable,
        make: Callable[[], T],
        *,
        fits: Callable[[T], bool] = lambda _: True,
    ) -> Hold[T]:
        """As `hold`, as an object that gives the value back when it is collected."""
        return Hold(*self.hold(key, make, fits=fits))

    def sweep(self) -> None:
        """Frees values without users that need not stay any more."""
        if self._stays is not None:
            with self._lock:
                unused = [(key, slot) for key, slot in self._slots.items() if not slot.users]
            for key, slot in unused:
                slot_value = slot.value
                if slot_value is not None and not self._stays(slot_value):
                    with self._lock:
                        slot.users += 1  # as if held and given back: whoever came meanwhile counts
                    self._returned.append((key, slot, True))
        self._settle()

    def after_fork(self) -> None:
        """Makes the registry usable in a forked child, whose other threads are gone."""
        self._lock = threading.Lock()
        for key, slot in list(self._slots.items()):
            slot.making = threading.Lock()
            if slot.value is None:
                del self._slots[key]

    def _give_back(self, key: Hashable, slot: _Slot[T], *, now: bool = False) -> None:
        self._returned.append((key, slot, now))
        self._settle()

    def _settle(self) -> None:
        """Counts what was given back, unless another holds the lock, who then does it after."""
        freed: list[T | None] = []
        while self._returned and self._lock.acquire(blocking=False):
            try:
                while self._returned:
                    key, slot, now = self._returned.popleft()
                    slot.users -= 1
                    if slot.users or self._waits(slot.value, now=now):
                        continue
                    if self._slots.get(key) is slot:
                        del self._slots[key]
                    freed.append(slot.value)
                    slot.value = None
            finally:
                self._lock.release()
        if freed:
            while freed:
                value = freed.pop()
                if value is not None:
                    self._close(value)
                del value
            self._on_free()

    def _waits(self, value: T | None, *, now: bool) -> bool:
        return not now and value is not None and self._stays is not None and self._stays(value)


_KEPT: Registry[Any] = Registry()


def of_process(key: Hashable, make: Callable[[], T]) -> T:
    """Returns what the process has one of and keeps to its end, made if need be.

    Args:
        key: Names it.
        make: Makes it.
    """
    value: T = _KEPT.hold(key, make)[0]
    return value


def _after_fork_in_child() -> None:
    for registry in list(_registries):
        registry.after_fork()


in_forked_child(_after_fork_in_child)
