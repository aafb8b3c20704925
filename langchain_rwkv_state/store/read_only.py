"""A store's rows where nothing can, or shall, be written: SELECTs, each of them right.

SQLite reads a database with a log of changes (WAL) only where it may make files beside it, or where
it is told that nobody ever writes (``immutable``), and then it ignores the log. So that is said
only where there is no log, and each read is done again if by its end somebody did write. The easy
mistake is ``immutable`` for any read-only disk: what was committed last, and stands in the log
alone, would be missing without a word.
"""

from __future__ import annotations

import sqlite3
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from langchain_rwkv_state._fork import ForkLock
from langchain_rwkv_state.errors import RWKVStateError, StoreError
from langchain_rwkv_state.store.old_format import bring_up_to_date, is_old
from langchain_rwkv_state.store.place import connect, file_size, look_over, require_plain
from langchain_rwkv_state.store.schema import COMPANIONS, DATABASE

T = TypeVar("T")
_TRIES = 20  # reads that somebody's writing may spoil, one after another
_IMMUTABLE = "ro&immutable=1"
_Stamp = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Opened:
    """A thread's connection; it is closed when the thread is gone.

    Attributes:
        sql: The connection.
        stamp: How the files stood when it was opened, where it takes them to stand so for good.
        generation: Of the database, when it was opened.
        version: SQLite's number of the data, where what is read is a converted copy of it.
    """

    sql: sqlite3.Connection
    stamp: _Stamp | None
    generation: int
    version: int | None

    def __del__(self) -> None:
        self.sql.close()


class ReadOnlyDatabase:
    """Reads a store's database, by a connection for each thread.

    Args:
        root: The store's directory.
        wait_seconds: How long to wait for somebody who recovers the database.
        tables: Whether it is a store's, and not a prefix cache's.

    Raises:
        StoreError: It is foreign or damaged, or cannot be read without writing.
    """

    def __init__(self, root: Path, wait_seconds: float, *, tables: bool = True) -> None:
        self._root = root
        self._tables = tables
        self._path = root / DATABASE
        self._wait = wait_seconds
        self._lock = ForkLock(self._forked)
        self._local = threading.local()
        self._all: weakref.WeakSet[_Opened] = weakref.WeakSet()
        self._inherited: list[object] = []
        self._generation = 0
        self.look(lambda: look_over(self._path, self._current().sql))

    def fetch(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Returns what a SELECT finds."""
        return self.look(lambda: self._current().sql.execute(statement, values).fetchall())

    def look(self, work: Callable[[], T]) -> T:
        """Runs reads on one snapshot; runs them again where somebody wrote meanwhile."""
        for _ in range(_TRIES):
            opened = self._current()
            if opened.sql.in_transaction:
                return work()
            try:
                opened.sql.execute("BEGIN")
                result = work()
            except (sqlite3.Error, UnicodeDecodeError, RWKVStateError):
                if self._holds(opened):
                    raise
            else:
                if self._holds(opened):
                    return result
            finally:
                with suppress(sqlite3.Error):
                    opened.sql.rollback()
        raise StoreError(
            f"The store {self._root} was changed again and again while it was read: try again."
        )

    @property
    def connection(self) -> sqlite3.Connection:
        """The calling thread's connection, within `look`."""
        return self._current().sql

    def close(self) -> None:
        """Closes the connections of all threads."""
        with self._lock:
            self._generation += 1
            connections = list(self._all)
        for opened in connections:
            opened.sql.close()

    def _current(self) -> _Opened:
        """Returns the calling thread's connection, a new one where the old one is out of date."""
        opened: _Opened | None = getattr(self._local, "opened", None)
        if opened is not None:
            if opened.sql.in_transaction:
                return opened
            if opened.generation == self._generation and self._holds(opened):
                return opened
            opened.sql.close()
        opened = self._local.opened = self._open()
        with self._lock:
            self._all.add(opened)
        return opened

    def _open(self) -> _Opened:
        for name in (DATABASE, *COMPANIONS):
            require_plain(self._root / name)
        stamp = self._stamp()
        wal, shm, journal = (self._root / name for name in COMPANIONS)
        if file_size(journal):
            raise StoreError(
                f"The store {self._root} was left in the middle of a change, which can be taken "
                "back only where it may be written: open it so once."
            )
        # Whoever has the store open for writing keeps the files of a log beside it.
        ways = ("ro",) if file_size(wal) else ("ro", _IMMUTABLE) if shm.exists() else (_IMMUTABLE,)
        for way in ways:
            try:
                sql, version = self._connected(way)
            except sqlite3.OperationalError as error:
                if way == ways[-1]:
                    raise StoreError(
                        f"The store {self._root} cannot be read where nothing may be written "
                        f"({error}): its last changes stand in {wal.name}. Open it once where it "
                        "can be written, or copy the directory there."
                    ) from error
            else:
                still = stamp if way == _IMMUTABLE else None
                return _Opened(sql, still, self._generation, version)
        raise AssertionError(ways)  # the last way returns or raises

    def _connected(self, way: str) -> tuple[sqlite3.Connection, int | None]:
        """Returns a connection; one to an old store has its rows in tables of its own."""
        connection = connect(self._path, way, wait_seconds=self._wait)
        try:
            schema = dict(connection.execute("SELECT name, sql FROM sqlite_master").fetchall())
            if not self._tables or not is_old(schema):
                return connection, None
            look_over(self._path, connection)
            version = _data_version(connection)
            connection.execute("BEGIN")
            bring_up_to_date(connection, schema, temporary=True)
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection, version

    def _stamp(self) -> _Stamp:
        """Returns what changes when somebody opens the database for writing, or writes."""
        about = self._path.stat()
        sizes = (file_size(self._root / name) for name in COMPANIONS)
        return (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, *sizes)

    def _holds(self, opened: _Opened) -> bool:
        """Says whether what a connection read is right: a log keeps it so, else nobody wrote."""
        if opened.version is not None and opened.version != _data_version(opened.sql):
            return False
        return opened.stamp is None or opened.stamp == self._stamp()

    def _forked(self) -> None:
        """In a forked child: leaves the parent's connections alone."""
        self._inherited += [self._local, *self._all]
        self._local = threading.local()
        self._all = weakref.WeakSet()


def _data_version(connection: sqlite3.Connection) -> int:
    """Returns a number that changes when somebody else changes the database."""
    ((version,),) = connection.execute("PRAGMA data_version").fetchall()
    return int(version)
