"""Moves states between memory and the disk tier, so that no request suffers from the disk.

The tier is opened when it is first needed, and left alone for a while after it failed: that is told
in the log, counted, and never reaches a request. Entries are written on a thread of their own.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from langchain_rwkv_state._registry import Hold, Registry
from langchain_rwkv_state.errors import (
    RWKVStateError,
    StateCorrupt,
    StateMismatch,
    StoreError,
    StoreFull,
)
from langchain_rwkv_state.prefix_cache.disk_tier import DiskTier, Row
from langchain_rwkv_state.prefix_cache.entries import CachedState, Entry
from langchain_rwkv_state.prefix_cache.index import Index

logger = logging.getLogger("langchain_rwkv_state.prefix_cache")

_LEAST_SAVED = 32  # ids; a file is read as fast as a small model reads so many
_RETRY_SECONDS = 30.0
_MOST_WAITING = 256  # entries to be written


class DiskSide:
    """Keeps one cache's entries on disk, and moves them between there and memory.

    Args:
        directory: The tier's directory, ``None`` for no disk.
        budget: The most bytes of files and rows.
        ttl: Seconds that an unused state is kept.
        clock: Gives Unix time.
        only_reads: Whether to leave the directory as it is.

    Attributes:
        errors: Times that it could not be used.
        corrupt: Entries that were damaged or foreign.
    """

    def __init__(
        self,
        directory: Path | None,
        budget: int,
        ttl: float,
        clock: Callable[[], float],
        *,
        only_reads: bool,
    ) -> None:
        self._directory = directory
        self._budget = budget
        self._ttl = ttl
        self._clock = clock
        self._only_reads = only_reads
        self._failed_at = -math.inf
        self._closed = False
        self._hold: Hold[DiskTier] | None = None
        self.errors = 0

    def begin(self, index: Index, lock: threading.RLock) -> None:
        """Takes over an index; anew in a forked child, where the tier looks after itself.

        Args:
            index: What is in memory.
            lock: Guards that; it is never held while the disk is asked.
        """
        self._index = index
        self._memory = lock
        self._lock = threading.RLock()
        self._writer = BackgroundWriter(self._sweep, self._write)
        self.corrupt = 0
        self._seen = 0  # the last entry on disk that memory knows of

    @property
    def tier(self) -> DiskTier | None:
        """The tier, while it is open; caches of one directory in a process share it."""
        hold = self._hold
        return None if hold is None else hold.value

    @property
    def is_written(self) -> bool:
        """Whether states are written to it."""
        return self._directory is not None and not self._only_reads

    @contextmanager
    def use(self) -> Iterator[DiskTier | None]:
        """Gives the tier where it can be used, else ``None``; an error in the block ends there."""
        try:
            yield self._open()
        except StoreFull as error:
            with self._lock:
                self.errors += 1
            logger.warning("The prefix cache's disk is full: %s", error)
        except (RWKVStateError, OSError) as error:
            self._fail(error)

    def take_in(self) -> None:
        """Takes in what other processes wrote."""
        if self._directory is None:
            return
        with self.use() as tier:
            if tier is None:
                return
            rows, bad, self._seen = tier.news(self._seen)
            if not rows and not bad:
                return
            now = self._clock()
            with self._memory:
                self.corrupt += bad
                for row in rows:
                    whole = row.key and not len(row.key) % 4
                    if whole and row.expires > now and (row.pin or not self._only_reads):
                        self._index.put_row(row)

    def load(self, entry: Entry, row: Row | None) -> CachedState | None:
        """Loads an entry into memory; what cannot be loaded is taken off the tree.

        From the directory it goes in the background: a request waits for no other process's lock.
        """
        cached = None
        reason = "evicted"
        with self.use() as tier:
            if tier is not None and row is not None:
                try:
                    cached = tier.load(row)
                    if cached is None and not tier.is_fresh(row):
                        self._discard_later(entry, row)
                except (StateCorrupt, StateMismatch) as error:
                    reason = "corrupt"
                    logger.warning("An entry of the prefix cache is of no use: %s", error)
                    with self._memory:
                        self.corrupt += 1
                    self._discard_later(entry, row)
        with self._memory:
            if cached is None:
                entry.row = None
                if self._index.held(entry) is None:
                    self._index.drop(entry, reason)
            elif entry.node.value is entry:
                self._index.hold(entry, cached)
        return cached

    def note_new(self, entry: Entry) -> None:
        """Has a new entry written in time, where that is worth a file."""
        if not self.is_written or entry.row is not None:
            return
        below = next((n for n in entry.node.above() if n.value and n.value.row), None)
        if entry.node.depth - (below.depth if below else 0) >= _LEAST_SAVED:
            self._writer.put(entry)

    def note_used(self, entry: Entry) -> None:
        """Has the use of an entry written in time, where that is due."""
        if not self.is_written or entry.private:
            return
        row = entry.row
        if row is None or self._clock() - row.used > 0.1 * min(self._ttl, 86_400.0):
            self._writer.put(entry)

    def pin(self, entry: Entry, key: bytes, cached: CachedState) -> bool:
        """Writes a pinned entry now; says whether there was room for it."""
        refused = False
        with self.use() as tier:
            if tier is not None and self.is_written:
                row = tier.save(
                    entry.namespace, key, cached, saved=len(key) // 4, ttl=self._ttl, pin=entry.pin
                )
                refused = row is None
                with self._memory:
                    entry.row = row
        return not refused

    def unpin(self, entry: Entry) -> None:
        """Writes that an entry is pinned no more."""
        with self._memory:
            row, expires = entry.row, entry.expires
        with self.use() as tier:
            if tier is not None and row is not None and self.is_written:
                changed = tier.update(row, lambda r: replace(r, pin=None, expires=expires))
                with self._memory:
                    entry.row = changed

    def forget_writes(self) -> None:
        """Forgets what is to be written."""
        self._writer.clear()

    def clear(self) -> None:
        """Removes everything, unless the directory is only read."""
        with self.use() as tier:
            if tier is not None and self.is_written:
                tier.clear()

    def forget(self, stands: Callable[..., bool]) -> int:
        """Removes the entries that a test says stand on what was redacted; returns how many.

        Raises:
            StoreError, StoreFull: It could not be done: unlike all else, that must be known.
        """
        if not self.is_written or self._closed:
            return 0
        tier = self._open()
        if tier is None:
            raise StoreError(
                f"The prefix cache's directory {self._directory} cannot be used, so that what it "
                "keeps of the redacted turns is still there: `rwkv-state cache clear` removes it."
            )
        return tier.forget(stands)

    def flush(self, seconds: float) -> bool:
        """Waits until what is to be written is there; says whether it is."""
        return self._writer.flush(seconds)

    def close(self) -> None:
        """Ends the writer, and lets go of the directory."""
        self._writer.close()
        with self._lock:
            self._closed = True
            self._let_go()

    def _discard_later(self, entry: Entry, row: Row) -> None:
        if self.is_written:
            entry.useless = row
            self._writer.put(entry)

    def _sweep(self) -> None:
        with self.use() as tier:
            if tier is not None:
                tier.sweep()

    def _write(self, entry: Entry) -> None:
        """Writes an entry, or how it was used, or removes it; on the writer's thread."""
        useless, entry.useless = entry.useless, None
        if useless is not None:
            with self.use() as tier:
                if tier is not None:
                    tier.discard(useless)
            return
        with self._memory:
            row, held = entry.row, self._index.held(entry)
            uses, now = entry.uses, self._clock()
            if row is None and (held is None or entry.node.value is not entry):
                return
            key, saved = entry.node.key(), entry.saves
        with self.use() as tier:
            if tier is None:
                return
            if row is None:
                assert held is not None  # noqa: S101
                row = tier.save(entry.namespace, key, held[0], saved=saved, ttl=self._ttl)
            else:
                expires = math.inf if entry.pin else now + self._ttl
                row = tier.update(row, lambda r: replace(r, uses=uses, used=now, expires=expires))
            with self._memory:
                entry.row = row

    def _open(self) -> DiskTier | None:
        if self._directory is None:
            return None
        with self._lock:
            if self.tier is not None and self.tier.failed:  # another cache found that
                self._let_go()
            wait = time.monotonic() - self._failed_at <= _RETRY_SECONDS
            if self.tier is None and not wait and not self._closed:
                try:
                    self._hold = self._shared(self._directory)
                except (RWKVStateError, OSError) as error:
                    self._fail(error)
            return self.tier

    def _shared(self, path: Path) -> Hold[DiskTier]:
        """Holds the process's tier of a directory, opened if need be."""
        settings = (self._budget, self._clock)
        return _TIERS.held(
            (os.path.realpath(path), self._only_reads, *settings),
            lambda: DiskTier(path, *settings, only_reads=self._only_reads),
            fits=lambda tier: not tier.failed,
        )

    def _fail(self, error: BaseException) -> None:
        logger.warning("The prefix cache goes on without its disk for a while: %s", error)
        with self._lock:
            self.errors += 1
            self._failed_at = time.monotonic()
            if self.tier is not None:
                self.tier.failed = True
            self._let_go()

    def _let_go(self) -> None:
        hold, self._hold, self._seen = self._hold, None, 0
        if hold is not None:
            hold.release()


def _close(tier: DiskTier) -> None:
    try:
        tier.close()
    except (RWKVStateError, OSError):
        logger.debug("Closing the disk tier failed", exc_info=True)


_TIERS: Registry[DiskTier] = Registry(close=_close)


class BackgroundWriter:
    """A queue of entries and the thread that writes them; it starts with the first one.

    Args:
        begin: Called on the thread before anything is written.
        write: Writes one entry.
    """

    def __init__(self, begin: Callable[[], None], write: Callable[[Entry], None]) -> None:
        self._begin = begin
        self._write = write
        self._lock = threading.RLock()  # taken itself, as the engine's is
        self._changed = threading.Condition(self._lock)
        self._queue: deque[Entry] = deque()
        self._thread: threading.Thread | None = None
        self._writing = False
        self._closed = False

    def put(self, entry: Entry) -> None:
        """Queues an entry; where too many wait, it is not written this time."""
        with self._lock:
            if entry in self._queue or len(self._queue) >= _MOST_WAITING or self._closed:
                return
            self._queue.append(entry)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="rwkv-prefix-cache", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def clear(self) -> None:
        """Forgets what is queued."""
        with self._lock:
            self._queue.clear()
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Waits until all is written; says whether it is."""
        until = time.monotonic() + seconds
        with self._lock:
            while self._queue or self._writing:
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def close(self) -> None:
        """Ends the thread once the entry under way is written."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout=10.0)

    def _work(self) -> None:
        self._begin()
        while True:
            with self._lock:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                entry = self._queue.popleft()
                self._writing = True
            try:
                self._write(entry)
            except Exception:
                logger.warning("An entry of the prefix cache was not written", exc_info=True)
            finally:
                with self._lock:
                    self._writing = False
                    self._changed.notify_all()
