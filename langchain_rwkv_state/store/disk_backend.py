"""`DiskBackend`: tables in diskcache's database, states in files beside it.

diskcache gives a connection for each thread, a lock between processes, settings, and a table in
which it lists files; everything that it would decide by itself (pickling, files, eviction, expiry)
is switched off. A forked child opens everything anew, and leaves alone what it inherited.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from diskcache import Cache, Timeout

from langchain_rwkv_state._files import take_lock
from langchain_rwkv_state._fork import ForkLock
from langchain_rwkv_state.errors import RWKVStateError, StateCorrupt, StoreError, StoreFull
from langchain_rwkv_state.store.connections import ThreadConnections
from langchain_rwkv_state.store.files import (
    StateFiles,
    file_limit,
    is_full,
    make_directories,
    open_regular,
)
from langchain_rwkv_state.store.place import (
    KNOWN_FILES,
    LOCK,
    holds_store,
    is_writable,
    require_place,
)
from langchain_rwkv_state.store.preflight import opened, prepare_database
from langchain_rwkv_state.store.read_only import ReadOnlyDatabase
from langchain_rwkv_state.store.records import CheckReport
from langchain_rwkv_state.store.safe_disk import SafeDisk
from langchain_rwkv_state.store.schema import DATABASE, SETTINGS
from langchain_rwkv_state.store.table_check import check_table
from langchain_rwkv_state.store.tables import Sql

if TYPE_CHECKING:
    from langchain_rwkv_state.state import Buffer

T = TypeVar("T")
_LOOK_AGAIN_SECONDS = 0.01  # at a lock that somebody else holds


class DiskBackend:
    """Tables and files in a directory.

    Args:
        root: The directory; made where it is missing.
        timeout_seconds: How long to wait for another writer.
        read_only: Whether nothing is written; ``None`` for where nothing can be.
        create: Whether a store is made where there is none; ``None`` not among other files.
        tables: Whether it has a store's tables, and not diskcache's alone, as a prefix cache.

    Raises:
        StoreError: The directory holds something else than a store of this package.
        StoreFull: The disk leaves no room for one.
    """

    def __init__(
        self,
        root: Path,
        timeout_seconds: float = 60.0,
        *,
        read_only: bool | None = False,
        create: bool | None = True,
        tables: bool = True,
    ) -> None:
        self.root = root
        self.lists_states = tables
        self.files = StateFiles(root)
        self._timeout = timeout_seconds
        self._database = str(root / DATABASE)
        self._lock = ForkLock(self._forked)
        self._cache: Cache | None = None
        self._inherited: list[Cache] = []
        self._connections = ThreadConnections()
        self._closed = False
        self._reading: ReadOnlyDatabase | None = None
        with self.errors():
            require_place(root, create=False if read_only else create)
            if read_only is None and holds_store(root) and not is_writable(root):
                read_only = True
            if read_only:
                self._reading = ReadOnlyDatabase(root, timeout_seconds, tables=tables)
            else:
                make_directories(root)
                self._cache = self._open()
            self._identity = self._identify()

    @property
    def read_only(self) -> bool:
        """See `Backend.read_only`."""
        return self._reading is not None

    def look(self, work: Callable[[], T]) -> T:
        """See `Backend.look`."""
        with self.errors():
            if self._reading is not None:
                return self._reading.look(work)
            connection = self._opened()._con
            if connection.in_transaction:
                return work()
            connection.execute("BEGIN")
            try:
                return work()
            finally:
                connection.rollback()

    def snapshot(self, work: Callable[[sqlite3.Connection], T], *, alone: bool = False) -> T:
        """Runs `work` on a connection that shows the database as it stood at one moment.

        Args:
            work: Gets the connection, for reading and for SQLite's own backup; may run anew.
            alone: Whether to keep writers out meanwhile.

        Raises:
            StoreError: As `transact`.
        """
        if self._reading is not None:
            table = self._reading
            with self.errors():
                return table.look(lambda: work(table.connection))

        def read() -> T:
            # A connection of its own: SQLite copies from none that writes, as the lock's does.
            with opened(self.root / DATABASE, "ro") as connection:
                connection.execute("BEGIN")
                return work(connection)

        if alone:
            return self._transact(lambda _: read(), durable=False)
        with self.errors():
            self._require_open()
            self._require_identity()
            return read()

    def transact(
        self, work: Callable[[Sql], T], *, freeing: bool = False, durable: bool = True
    ) -> T:
        """See `Backend.transact`."""
        try:
            return self._transact(work, durable=durable)
        except StoreFull:
            if not freeing or not self.files.spend_reserve():
                raise
        result = self._transact(work, durable=durable)
        self.files.fill_reserve()
        return result

    def write_blob(self, name: str, parts: Sequence[Buffer]) -> None:
        """See `Backend.write_blob`."""
        self._require_writable()
        self._require_identity()
        self.files.write(name, parts)

    def adopt_blob(self, name: str, path: Path) -> bool:
        """See `Backend.adopt_blob`."""
        self._require_identity()
        return self.files.adopt(name, path)

    def read_blob(self, name: str, nbytes: int | None = None) -> bytes | None:
        """See `Backend.read_blob`."""
        return self.files.read(name, nbytes)

    def read_blob_start(self, name: str, nbytes: int) -> bytes | None:
        """See `Backend.read_blob_start`."""
        return self.files.read_start(name, nbytes)

    def blob_exists(self, name: str) -> bool:
        """See `Backend.blob_exists`."""
        return self.files.exists(name)

    def drop_blobs(self, names: Sequence[str]) -> None:
        """See `Backend.drop_blobs`."""
        self._require_writable()
        self.files.drop_all(names)

    def set_aside(self, name: str) -> str:
        """See `Backend.set_aside`."""
        self._require_writable()
        with self.errors():
            return self.files.set_aside(name)

    def blobs(self) -> Iterator[tuple[str, float]]:
        """See `Backend.blobs`."""
        return self.files.all()

    @property
    def is_usable(self) -> bool:
        """Whether it is open, and its directory is still the one that was opened."""
        try:
            return not self._closed and self._identify() == self._identity
        except OSError:
            return False

    def check(self, *, fix: bool) -> CheckReport:
        """See `Backend.check`."""

        def work(sql: Sql) -> CheckReport:
            self._require_identity()
            return check_table(sql, self.files, KNOWN_FILES, fix=fix)

        return self.transact(work) if fix else self.look(lambda: work(self._execute))

    def close(self) -> None:
        """See `Backend.close`."""
        with self._lock:
            cache, self._cache, self._closed = self._cache, None, True
            if cache is not None:
                cache.close()
            self._connections.close()
            if self._reading is not None:
                self._reading.close()

    def sql(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """See `Backend.sql`: through the calling thread's connection."""
        try:
            return self._execute(statement, values)
        except (Timeout, sqlite3.Error, OSError, UnicodeDecodeError):
            with self.errors():
                raise
        raise AssertionError  # `errors` raises

    def _execute(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        self._require_identity()
        if self._reading is not None:
            self._require_open()
            return self._reading.fetch(statement, values)
        found: list[tuple[Any, ...]] = self._opened()._con.execute(statement, values).fetchall()
        return found

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns errors of SQLite and the file system into this package's."""
        try:
            yield
        except RWKVStateError:
            raise
        except Timeout as error:
            cause = error.__context__
            if isinstance(cause, sqlite3.Error) and "locked" not in str(cause):
                raise self._error(cause) from error
            raise StoreError(
                f"The store {self.root} is busy: another writer held it for {self._timeout:.0f} "
                "seconds. Try again."
            ) from error
        except (sqlite3.Error, OSError) as error:
            raise self._error(_first(error)) from error
        except UnicodeDecodeError as error:  # sqlite3 reads damaged text, even in its own messages
            raise StoreError(
                f"The store {self.root} is damaged ({error.reason} in a text): restore it from a "
                "copy, or use another directory."
            ) from error

    def _error(self, error: sqlite3.Error | OSError) -> RWKVStateError:
        full = is_full(error) if isinstance(error, OSError) else "disk is full" in str(error)
        if full:
            return StoreFull(
                f"The disk leaves no room for the store {self.root}. What was stored before is "
                "unharmed; delete sessions or make room."
            )
        if isinstance(error, sqlite3.DatabaseError) and "malformed" in str(error):
            return StoreError(
                f"The store {self.root} is damaged ({error}): restore the directory from a copy, "
                "or use another one. The state files in it are as they were."
            )
        return StoreError(f"The store {self.root} cannot be used: {error}.{file_limit(error)}")

    def _transact(self, work: Callable[[Sql], T], *, durable: bool) -> T:
        self._require_writable()
        with self._lock, self.errors():
            cache = self._opened()
            self._require_identity()
            execute = cache._con.execute
            if not durable:  # SQLite's log is flushed with the next that is
                execute("PRAGMA synchronous = NORMAL")
            try:
                with cache.transact():
                    result = work(lambda statement, values: execute(statement, values).fetchall())
                    self._require_identity()
            except BaseException:
                self._roll_back(cache)
                raise
            finally:
                if not durable:
                    execute("PRAGMA synchronous = FULL")
        return result

    def _roll_back(self, cache: Cache) -> None:
        """Ends a transaction that diskcache left open because its COMMIT failed."""
        with suppress(sqlite3.Error):
            if cache._con.in_transaction:
                cache._sql("ROLLBACK")

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("The store is closed: open it again to use it.")

    def _require_writable(self) -> None:
        if self._reading is not None:
            raise StoreError(
                f"The store {self.root} is read-only: its sessions can be listed, read, exported "
                "and checked, not changed. Open it where its directory can be written, without "
                "read_only=True."
            )

    def _opened(self) -> Cache:
        self._require_open()
        cache = self._cache
        if cache is None:
            with self._lock:
                if self._cache is None:
                    self._cache = self._open()
                cache = self._cache
        self._connections.mind(cache._con)
        return cache

    def _open(self) -> Cache:
        with _only_one(self.root / LOCK, self._timeout):
            prepare_database(self.root, used=self.files.any_folder(), tables=self.lists_states)
            self.files.fill_reserve()
            return Cache(str(self.root), timeout=self._timeout, disk=SafeDisk, **SETTINGS)

    def _forked(self) -> None:
        """In a forked child: leaves the parent's connections alone, for they are not ours."""
        if self._cache is not None:
            self._inherited.append(self._cache)
            self._cache = None

    def _identify(self) -> tuple[int, int]:
        about = os.stat(self._database)  # noqa: PTH116 # at each statement: Path is slower
        return about.st_dev, about.st_ino

    def _require_identity(self) -> None:
        """Refuses to go on in a directory that was removed or replaced."""
        try:
            same = self._identify() == self._identity
        except OSError:
            same = False
        if not same:
            raise StoreError(
                f"The store {self.root} was removed or replaced while it was open: open it again."
            )


def _first(error: sqlite3.Error | OSError) -> sqlite3.Error | OSError:
    """Returns what went wrong first: SQLite may have rolled back before diskcache tries to."""
    cause = error.__context__
    return _first(cause) if isinstance(cause, sqlite3.Error | OSError) else error


@contextmanager
def _only_one(path: Path, timeout_seconds: float) -> Iterator[None]:
    """Lets one process at a time make or look over a database."""
    try:
        handle = open_regular(path, os.O_RDWR | os.O_CREAT)
    except StateCorrupt as error:
        raise StoreError(f"{path} is not a plain file: delete it, or use another path.") from error
    try:
        deadline = time.monotonic() + timeout_seconds
        while not _locked(handle, path):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"The store {path.parent} is busy: another process held {path.name} for "
                    f"{timeout_seconds:.0f} seconds. Try again."
                )
            time.sleep(_LOOK_AGAIN_SECONDS)
        yield
    finally:
        os.close(handle)


def _locked(handle: int, path: Path) -> bool:
    """Takes a file's lock, if nobody holds it."""
    try:
        return take_lock(handle)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be locked ({error.strerror}), and a store needs that: use a directory "
            "on a local disk, or a MemoryStateStore."
        ) from error
