"""Uses the disk tier so that no request suffers from it, or waits for a write.

The tier is opened when it is first needed, and left alone for a while after it failed: that is told
in the log, counted, and never reaches a request. Entries are written on a thread of their own.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from langchain_rwkv_state.errors import RWKVStateError, StoreFull
from langchain_rwkv_state.prefix_cache.disk_tier import DiskTier
from langchain_rwkv_state.prefix_cache.entries import Entry

logger = logging.getLogger("langchain_rwkv_state.prefix_cache")

_RETRY_SECONDS = 30.0
_MOST_WAITING = 256  # entries to be written


class GuardedDisk:
    """The disk tier of one cache.

    Args:
        directory: Its directory, ``None`` for no disk.
        budget: The most bytes of files and rows.
        clock: Gives Unix time.
        only_reads: Whether to leave the directory as it is.

    Attributes:
        tier: The tier, while it is open.
        errors: Times that it could not be used.
    """

    def __init__(
        self,
        directory: Path | None,
        budget: int,
        clock: Callable[[], float],
        *,
        only_reads: bool,
    ) -> None:
        self._directory = directory
        self._budget = budget
        self._clock = clock
        self._only_reads = only_reads
        self._lock = threading.RLock()
        self._failed_at = -math.inf
        self._closed = False
        self.tier: DiskTier | None = None
        self.errors = 0

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

    def close(self) -> None:
        """Lets go of the directory."""
        with self._lock:
            self._closed = True
            tier, self.tier = self.tier, None
            if tier is not None:
                tier.close()

    def after_fork(self) -> None:
        """In a forked child: goes on with a lock of its own; the tier minds forks by itself."""
        self._lock = threading.RLock()
        if self.tier is not None:
            self.tier.hear_all()

    def _open(self) -> DiskTier | None:
        if self._directory is None:
            return None
        with self._lock:
            wait = time.monotonic() - self._failed_at <= _RETRY_SECONDS
            if self.tier is None and not wait and not self._closed:
                try:
                    self.tier = DiskTier(
                        self._directory, self._budget, self._clock, only_reads=self._only_reads
                    )
                except (RWKVStateError, OSError) as error:
                    self._fail(error)
            return self.tier

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self.errors += 1
            self._failed_at = time.monotonic()
            tier, self.tier = self.tier, None
        logger.warning("The prefix cache goes on without its disk for a while: %s", error)
        if tier is not None:
            try:
                tier.close()
            except (RWKVStateError, OSError):
                logger.debug("Closing the disk tier failed too", exc_info=True)


class BackgroundWriter:
    """A queue of entries and the thread that writes them; it starts with the first one.

    Args:
        begin: Called on the thread before anything is written.
        write: Writes one entry.
    """

    def __init__(self, begin: Callable[[], None], write: Callable[[Entry], None]) -> None:
        self._begin = begin
        self._write = write
        self._changed = threading.Condition()
        self._queue: deque[Entry] = deque()
        self._thread: threading.Thread | None = None
        self._writing = False
        self._closed = False

    def put(self, entry: Entry) -> None:
        """Queues an entry; where too many wait, it is not written this time."""
        with self._changed:
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
        with self._changed:
            self._queue.clear()
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Waits until all is written; says whether it is."""
        until = time.monotonic() + seconds
        with self._changed:
            while self._queue or self._writing:
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def close(self) -> None:
        """Ends the thread once the entry under way is written."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout=10.0)

    def _work(self) -> None:
        self._begin()
        while True:
            with self._changed:
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
                with self._changed:
                    self._writing = False
                    self._changed.notify_all()
