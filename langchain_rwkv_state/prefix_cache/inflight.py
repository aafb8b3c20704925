"""Who is reading what at this moment, so that many who need one prefix wait for one who reads it.

It keeps promises and no states: who reads, up to where, and whether that is still so. The easy
mistake is to wait for good: whoever reads may fail, be cancelled or never begin, and then the next
one reads for itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from langchain_rwkv_state.prefix_cache.records import Root

_WIDTH = 4
_LOOK_SECONDS = 0.05  # how often one who waits looks whether the reader is still there


class Promise:
    """One who reads a prompt and will keep states on the way.

    Args:
        root: The prompt's tree.
        key: Its packed ids.
        marks: Where states will be kept.
    """

    def __init__(self, root: Root, key: bytes, marks: Sequence[int]) -> None:
        self.root = root
        self.key = key
        self._marks = set(marks)
        self._changed = threading.Condition()
        self._over: Callable[[], bool] | None = None
        self._broken = False

    def serves(self, key: bytes, limit: int) -> int:
        """Returns how many ids of another prompt a state still to come stands for, at best."""
        with self._changed:
            marks = [at for at in self._marks if at <= limit]
        for at in sorted(marks, reverse=True):
            if key.startswith(self.key[: at * _WIDTH]) and at * _WIDTH <= len(self.key):
                return at
        return 0

    @property
    def marks(self) -> frozenset[int]:
        """Where states are still to come."""
        with self._changed:
            return frozenset(self._marks)

    def begun(self, over: Callable[[], bool]) -> None:
        """Notes that reading began; `over` says whether it ended, well or not."""
        self._over = over

    def kept(self, at: int) -> None:
        """Notes that the state at a mark is kept, or that it will not be."""
        with self._changed:
            self._marks.discard(at)
            self._changed.notify_all()

    def end(self) -> None:
        """Notes that nothing more is to come."""
        with self._changed:
            self._broken = True
            self._marks.clear()
            self._changed.notify_all()

    @property
    def over(self) -> bool:
        """Whether nothing more is to come."""
        return self._broken or (self._over is not None and self._over())

    def wait(self, at: int, seconds: float | None) -> None:
        """Waits until the state at a mark is kept, or nothing more is to come, or time is up."""
        until = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while at in self._marks and not self.over:
                left = _LOOK_SECONDS if until is None else min(_LOOK_SECONDS, until - _now())
                if left <= 0:
                    return
                self._changed.wait(left)


class InFlight:
    """The promises of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._promises: list[Promise] = []

    def find(
        self, root: Root, key: bytes, *, beyond: int, limit: int
    ) -> tuple[Promise, int] | None:
        """Returns the promise that saves most ids of a prompt, where it saves more than `beyond`.

        Args:
            root: The prompt's tree.
            key: Its packed ids.
            beyond: Number of ids that are saved anyway.
            limit: No state behind this is of use.
        """
        best: tuple[Promise, int] | None = None
        for promise in self._promises_of(root):
            at = promise.serves(key, limit)
            if at > (best[1] if best else beyond):
                best = promise, at
        return best

    def promise(
        self, root: Root, key: bytes, marks: Sequence[int], *, beyond: int, limit: int
    ) -> Promise | tuple[Promise, int]:
        """Gives a promise, unless another one was given that is of more use; then returns that.

        Both in one step: of many who come together, one reads.
        """
        with self._lock:
            self._promises = [promise for promise in self._promises if not promise.over]
            for promise in self._promises:
                if promise.root == root and (at := promise.serves(key, limit)) > beyond:
                    return promise, at
            made = Promise(root, key, marks)
            if marks:
                self._promises.append(made)
            return made

    def _promises_of(self, root: Root) -> list[Promise]:
        with self._lock:
            return [p for p in self._promises if p.root == root and not p.over]


def _now() -> float:
    return time.monotonic()
