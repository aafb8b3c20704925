"""Closes a thread's database connections when the thread ends, or is done with a closed store.

diskcache opens a connection for each thread and leaves its end to the garbage collector, which
comes for it late: a connection refers to itself. Where an event loop's threads come and go, dozens
of open files wait for that. The easy mistake is to close a connection from another thread, which
may be in the midst of using it, or in a forked child, for whose parent it is still at work: each
thread closes its own.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Any


class ThreadConnections:
    """Minds the connections of all threads of one database."""

    def __init__(self) -> None:
        self.closed = False

    def mind(self, connection: Any) -> None:
        """Makes the calling thread close its connection when it ends, or finds the database closed.

        Args:
            connection: The calling thread's own.
        """
        minded = _mine.closers.get(self)
        if minded is None or minded.connection is not connection:
            for each in [each for each in _mine.closers if each.closed]:
                del _mine.closers[each]
            _mine.closers[self] = _Closer(connection)

    def close(self) -> None:
        """Lets all threads close their connections; each does with the next that it opens."""
        self.closed = True
        _mine.closers.pop(self, None)


class _Closer:
    """Closes a connection when it goes, which is when its thread does."""

    __slots__ = ("_pid", "connection")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._pid = os.getpid()

    def __del__(self) -> None:
        if os.getpid() == self._pid:
            with suppress(Exception):  # closed already, or the interpreter ends
                self.connection.close()


class _Mine(threading.local):
    """The calling thread's connections, by database."""

    def __init__(self) -> None:
        self.closers: dict[ThreadConnections, _Closer] = {}


_mine = _Mine()
