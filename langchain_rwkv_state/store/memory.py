"""`MemoryStateStore`: a store that lives and dies with its object, for tests and demos.

Same policy, same rows and same bytes as on disk, kept in dicts. It is not a cache and evicts
nothing. The easy mistake is to share one between processes: a forked child has a copy of its own.
"""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from langchain_rwkv_state._registry import Hold
from langchain_rwkv_state.store.backend import Reader, Transaction
from langchain_rwkv_state.store.clock import TTL
from langchain_rwkv_state.store.forks import ForkLock
from langchain_rwkv_state.store.policy import DEFAULT_TTL, KeyedStore
from langchain_rwkv_state.store.records import CheckReport, Codec, LogKind
from langchain_rwkv_state.store.resources import Resources
from langchain_rwkv_state.store.settings import check_kept, check_settings
from langchain_rwkv_state.store.staged_files import StagedFiles

if TYPE_CHECKING:
    from langchain_rwkv_state.state import Buffer

T = TypeVar("T")


class _Rows:
    """Rows in a dict with a sorted list of their keys."""

    def __init__(self, lock: ForkLock) -> None:
        self._lock = lock
        self._rows: dict[bytes, tuple[bytes, int]] = {}
        self._keys: list[bytes] = []
        self._nbytes = 0

    def get(self, key: bytes) -> bytes | None:
        """See `Reader.get`."""
        with self._lock:
            found = self._rows.get(key)
            return None if found is None else found[0]

    def scan(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> list[tuple[bytes, bytes | None]]:
        """See `Reader.scan`."""
        with self._lock:
            keys = self._keys[bisect_left(self._keys, start) : bisect_left(self._keys, end)]
            if reverse:
                keys.reverse()
            return [(key, self._rows[key][0]) for key in keys[:limit]]

    def count(self, start: bytes, end: bytes) -> int:
        """See `Reader.count`."""
        with self._lock:
            return bisect_left(self._keys, end) - bisect_left(self._keys, start)

    def nbytes(self) -> int:
        """See `Reader.nbytes`."""
        return self._nbytes

    def set(self, key: bytes, value: tuple[bytes, int] | None) -> tuple[bytes, int] | None:
        """Sets or deletes a row and its size; returns what was there."""
        old = self._rows.pop(key, None)
        self._nbytes -= 0 if old is None else old[1]
        if value is not None:
            self._rows[key] = value
            self._nbytes += value[1]
            if old is None:
                insort(self._keys, key)
        elif old is not None:
            del self._keys[bisect_left(self._keys, key)]
        return old


class _Changes:
    """A transaction on `_Rows`: what was there before is remembered until the end."""

    def __init__(self, rows: _Rows, blobs: Mapping[str, object]) -> None:
        self._rows = rows
        self._blobs = blobs
        self._undo: dict[bytes, tuple[bytes, int] | None] = {}
        self.dropped: list[str] = []
        self.get = rows.get
        self.scan = rows.scan
        self.count = rows.count
        self.nbytes = rows.nbytes

    def put(self, key: bytes, value: bytes, *, blob_nbytes: int = 0) -> None:
        """See `Transaction.put`."""
        self._undo.setdefault(key, self._rows.set(key, (value, len(value) + blob_nbytes)))

    def delete(self, *keys: bytes) -> None:
        """See `Transaction.delete`."""
        for key in keys:
            self._undo.setdefault(key, self._rows.set(key, None))

    def delete_range(self, start: bytes, end: bytes) -> None:
        """See `Transaction.delete_range`."""
        for key, _ in self._rows.scan(start, end):
            self.delete(key)

    def drop_blob(self, name: str) -> None:
        """See `Transaction.drop_blob`."""
        self.dropped.append(name)

    def blob_exists(self, name: str) -> bool:
        """See `Transaction.blob_exists`."""
        return name in self._blobs

    def roll_back(self) -> None:
        """Puts back what was there before."""
        for key, value in self._undo.items():
            self._rows.set(key, value)


class MemoryBackend:
    """Rows and blobs in dicts, one transaction at a time."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._rows = _Rows(self._lock)
        self._blobs: dict[str, tuple[bytes, float]] = {}

    @property
    def read_only(self) -> bool:
        """See `Backend.read_only`."""
        return False

    @property
    def reader(self) -> Reader:
        """See `Backend.reader`."""
        return self._rows

    def look(self, work: Callable[[Reader], T]) -> T:
        """See `Backend.look`."""
        with self._lock:
            return work(self._rows)

    def transact(
        self,
        work: Callable[[Transaction], T],
        *,
        freeing: bool = False,  # noqa: ARG002 # there is no room to keep back
        durable: bool = True,  # noqa: ARG002 # and no disk to wait for
    ) -> T:
        """See `Backend.transact`."""
        with self._lock:
            changes = _Changes(self._rows, self._blobs)
            try:
                result = work(changes)
            except BaseException:
                changes.roll_back()
                raise
            for name in changes.dropped:
                self._blobs.pop(name, None)
            return result

    def write_blob(self, name: str, parts: Sequence[Buffer]) -> None:
        """See `Backend.write_blob`."""
        data = b"".join(parts)
        with self._lock:
            self._blobs[name] = (data, time.monotonic())

    def adopt_blob(self, name: str, path: Path) -> bool:  # noqa: ARG002
        """See `Backend.adopt_blob`: nothing of it lies in files."""
        return False

    def read_blob(self, name: str, nbytes: int | None = None) -> bytes | None:  # noqa: ARG002
        """See `Backend.read_blob`: what is in memory needs no look before it is read."""
        with self._lock:
            found = self._blobs.get(name)
            return None if found is None else found[0]

    def read_blob_start(self, name: str, nbytes: int) -> bytes | None:
        """See `Backend.read_blob_start`."""
        data = self.read_blob(name)
        return None if data is None else data[:nbytes]

    def drop_blob(self, name: str) -> None:
        """See `Backend.drop_blob`."""
        with self._lock:
            self._blobs.pop(name, None)

    def set_aside(self, name: str) -> str:
        """See `Backend.set_aside`: what is in memory is dropped."""
        self.drop_blob(name)
        return "it was dropped"

    def blobs(self) -> Iterator[tuple[str, float]]:
        """See `Backend.blobs`."""
        with self._lock:
            now = time.monotonic()
            return iter([(name, now - made) for name, (_, made) in self._blobs.items()])

    def check(self, *, fix: bool) -> CheckReport:  # noqa: ARG002
        """See `Backend.check`: dicts have nothing of their own to verify."""
        return CheckReport(())

    @property
    def is_usable(self) -> bool:
        """See `Backend.is_usable`."""
        return True

    def close(self) -> None:
        """See `Backend.close`."""
        with self._lock:
            self._rows = _Rows(self._lock)
            self._blobs = {}


class MemoryStateStore(KeyedStore):
    """Keeps states and sessions in memory, until it is closed.

    Args:
        ttl: How long sessions and states live, unless said otherwise.
        sliding: Whether commits and reads renew that.
        history: How many states before a session's head are kept.
        log: ``"tokens"`` keeps the token ids, so that `rebuild` can make states again.
        size_limit: The most bytes to store, ``None`` for no limit.
        codec: How states become bytes; see `DiskStateStore`.
        clock: Gives Unix time.
        staged_bytes: The most bytes of staged states to hold in memory; beyond that they are kept
            in temporary files, which end with the process. ``None`` for all in memory.

    Raises:
        ValueError: A value is out of range.

    Example:
        >>> from langchain_rwkv_state.state import StateLayout, zero_state
        >>> state = zero_state(StateLayout.of(7, n_layer=1, n_embd=64, head_size=64), "model")
        >>> store = MemoryStateStore(ttl=3600)
        >>> ref = store.put(state)
        >>> store.get(ref) == state
        True
    """

    def __init__(
        self,
        ttl: TTL = DEFAULT_TTL,
        sliding: bool = True,
        history: int = 1,
        log: LogKind = "none",
        size_limit: int | None = None,
        codec: Codec = "exact",
        *,
        clock: Callable[[], float] = time.time,
        staged_bytes: int | None = None,
    ) -> None:
        check_settings(ttl, history, log, size_limit, codec)
        check_kept(sliding, clock, staged_bytes)
        files = None if staged_bytes is None else StagedFiles(None)
        super().__init__(
            Hold(Resources(MemoryBackend(), files), _nothing),
            ttl=ttl,
            sliding=sliding,
            history=history,
            log=log,
            size_limit=size_limit,
            codec=codec,
            clock=clock,
            staged_bytes=staged_bytes or 0,
        )

    def close(self) -> None:
        """See `StateStore.close`: everything in it goes."""
        if not self._closed:
            super().close()
            self._resources.value.close()

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Returns the store itself: what it holds is in no other place."""
        return self

    def __copy__(self) -> Self:
        """Returns the store itself."""
        return self

    def __reduce__(self) -> str | tuple[object, ...]:
        """Refuses to be pickled.

        Raises:
            TypeError: What it holds cannot travel.
        """
        raise TypeError(
            "A MemoryStateStore cannot be pickled, since what it holds is in this process alone: "
            "use a DiskStateStore."
        )


def _nothing(*, now: bool = False) -> None:
    """Gives nothing back: a store in memory is shared by its object alone."""
