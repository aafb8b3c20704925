"""Closes a thread's database connection when the thread ends.

diskcache opens a connection for each thread and leaves its end to the garbage collector, which
comes for it late: a connection refers to itself. Where an event loop's threads come and go, dozens
of open files wait for that. The easy mistake is to close a connection from another thread, or in a
forked child, for whose parent it is still at work.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Any


class ThreadConnections:
    """Minds the connections of all threads of one database."""

    def __init__(self) -> None:
        self._local = threading.local()

    def mind(self, connection: Any) -> None:
        """Makes the calling thread close its connection when it ends.

        Args:
            connection: The calling thread's own.
        """
        minded = getattr(self._local, "closer", None)
        if minded is None or minded.connection is not connection:
            self._local.closer = _Closer(connection)


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
