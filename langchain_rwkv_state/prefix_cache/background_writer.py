"""Writes entries one after another on a thread of its own, so that no request waits for a disk."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from langchain_rwkv_state.prefix_cache.entries import Entry

logger = logging.getLogger("langchain_rwkv_state.prefix_cache")

_MOST_WAITING = 256


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
