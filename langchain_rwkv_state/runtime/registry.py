"""The models that this process has loaded, counted by their users.

This is the package's one piece of global mutable state: several chat models over one file must
not load it twice. It knows nothing of files or tensors: keys and values are anything. The easy
mistake is to take a lock in a finaliser: the garbage collector may run one in the very thread that
holds the lock, so what is given back is queued and settled by whoever can.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class _Slot(Generic[T]):
    """One key's value, its users, and the lock under which it is loaded."""

    def __init__(self) -> None:
        self.users = 0
        self.loading = threading.Lock()
        self.value: T | None = None


class Registry(Generic[T]):
    """Values that are made once for a key and live until their last user gives them back.

    Args:
        on_free: Called after values were freed, without any lock held.

    Attributes:
        used: Whether anything was ever held.
    """

    def __init__(self, on_free: Callable[[], None] = lambda: None) -> None:
        self._lock = threading.Lock()
        self._slots: dict[Hashable, _Slot[T]] = {}
        self._returned: deque[tuple[Hashable, _Slot[T]]] = deque()
        self._on_free = on_free
        self.used = False

    def __len__(self) -> int:
        """Returns the number of values that are loaded or loading."""
        return len(self._slots)

    def hold(self, key: Hashable, make: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Returns the key's value, made if need be, and the call that gives this hold back.

        Users of one key who come while it is made wait for it. If making it fails, each of them
        tries on its own.

        Args:
            key: Names the value.
            make: Makes it.

        Returns:
            The value, and a callable to be called exactly once, from any thread or finaliser.
        """
        self.used = True
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            slot.users += 1
        self._settle()
        try:
            with slot.loading:
                if slot.value is None:
                    slot.value = make()
                value = slot.value
        except BaseException:
            self._give_back(key, slot)
            raise
        return value, functools.partial(self._give_back, key, slot)

    def after_fork(self) -> None:
        """Makes the registry usable in a forked child, whose other threads are gone."""
        self._lock = threading.Lock()
        for key, slot in list(self._slots.items()):
            slot.loading = threading.Lock()
            if slot.value is None:
                del self._slots[key]

    def _give_back(self, key: Hashable, slot: _Slot[T]) -> None:
        self._returned.append((key, slot))
        self._settle()

    def _settle(self) -> None:
        """Counts what was given back, unless another holds the lock, who then does it after."""
        freed: list[T | None] = []
        while self._returned and self._lock.acquire(blocking=False):
            try:
                while self._returned:
                    key, slot = self._returned.popleft()
                    slot.users -= 1
                    if slot.users == 0 and self._slots.get(key) is slot:
                        del self._slots[key]
                        freed.append(slot.value)
                        slot.value = None
            finally:
                self._lock.release()
        if freed:
            freed.clear()
            self._on_free()


def return_memory() -> None:
    """Gives freed memory back to the system and to the devices, as far as they take it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
        if trim is not None:
            trim(0)


MODELS: Registry[Any] = Registry(return_memory)
"""Every model that this process has loaded through `load_runtime`."""


def _after_fork_in_child() -> None:
    if MODELS.used:
        # The threads of OpenMP do not survive a fork: a second one would wait for them forever.
        torch.set_num_threads(1)
    MODELS.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
