"""`DiskBackend`: rows in diskcache's table, blobs in files beside it.

diskcache gives a table, a connection for each thread and a lock between processes; everything that
it would decide by itself (pickling, files, eviction, expiry) is switched off. The easy mistake is
to use a connection after a fork: a child opens everything anew, and leaves alone what it inherited.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from diskcache import Cache, Timeout

from langchain_rwkv_state.errors import RWKVStateError, StateCorrupt, StoreError, StoreFull
from langchain_rwkv_state.state import Buffer
from langchain_rwkv_state.store.backend import Reader, Transaction
from langchain_rwkv_state.store.connections import ThreadConnections
from langchain_rwkv_state.store.files import (
    RESERVE,
    StateFiles,
    is_full,
    make_directories,
)
from langchain_rwkv_state.store.forks import ForkLock
from langchain_rwkv_state.store.preflight import (
    COMPANIONS,
    DATABASE,
    SETTINGS,
    prepare_database,
)
from langchain_rwkv_state.store.records import CheckReport
from langchain_rwkv_state.store.safe_disk import CountedBytes, SafeDisk
from langchain_rwkv_state.store.staged_files import STAGED
from langchain_rwkv_state.store.table_check import SOUND, check_table

if sys.platform != "win32":
    import fcntl

T = TypeVar("T")
LOCK = "lock"
KNOWN_FILES = frozenset({DATABASE, *COMPANIONS, RESERVE, LOCK, STAGED})
_PUT = (
    "INSERT INTO Cache(key, raw, store_time, access_time, size, mode, value)"
    " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT(key, raw) DO UPDATE SET"
    " store_time = excluded.store_time, expire_time = NULL,"
    " access_time = excluded.access_time, access_count = 0, tag = NULL, size = excluded.size,"
    " mode = excluded.mode, filename = NULL, value = excluded.value"
)
_GET = f"SELECT value, {SOUND} FROM Cache WHERE key = ?"  # noqa: S608 # constants alone


class _Rows:
    """The rows, through the calling thread's connection."""

    def __init__(self, backend: DiskBackend) -> None:
        self._backend = backend

    def get(self, key: bytes) -> bytes | None:
        """See `Reader.get`."""
        found = self._select(_GET, (key,))
        if not found:
            return None
        if len(found) > 1 or not found[0][1]:
            raise StateCorrupt(f"The row {key[:80]!r} was changed, or is of foreign making.")
        value: bytes = found[0][0]
        return value

    def scan(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> list[tuple[bytes, bytes | None]]:
        """See `Reader.scan`."""
        order = "DESC" if reverse else "ASC"
        found = self._select(
            f"SELECT key, value, {SOUND} FROM Cache WHERE key >= ? AND key < ?"  # noqa: S608
            f" ORDER BY key {order} LIMIT ?",
            (start, end, -1 if limit is None else limit),
        )
        return [(key, value if sound else None) for key, value, sound in found]

    def count(self, start: bytes, end: bytes) -> int:
        """See `Reader.count`."""
        ((number,),) = self._select(
            "SELECT COUNT(*) FROM Cache WHERE key >= ? AND key < ?", (start, end)
        )
        return int(number)

    def nbytes(self) -> int:
        """See `Reader.nbytes`."""
        found = self._select("SELECT value FROM Settings WHERE key = 'size'", ())
        if len(found) == 1 and isinstance(found[0][0], int):
            return found[0][0]
        # The counter was changed; `check` puts it right, and until then the rows are asked.
        ((number,),) = self._select("SELECT TOTAL(size) FROM Cache", ())
        return int(number)

    def _select(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._backend.errors():
            rows: list[tuple[Any, ...]] = self._backend.sql(statement, values)
            return rows


class _Changes(_Rows):
    """A transaction."""

    def __init__(self, backend: DiskBackend, cache: Cache) -> None:
        super().__init__(backend)
        self._cache = cache
        self._execute = cache._con.execute
        self.dropped: list[str] = []

    def put(self, key: bytes, value: bytes, *, blob_nbytes: int = 0) -> None:
        """See `Transaction.put`."""
        # `Cache.set` looks for the row first; one statement does both.
        now = time.time()
        size, mode, _, data = self._cache.disk.store(CountedBytes.of(value, blob_nbytes), False)
        name, raw = self._cache.disk.put(key)
        self._select(_PUT, (name, raw, now, now, size, mode, data))

    def delete(self, *keys: bytes) -> None:
        """See `Transaction.delete`."""
        places = ", ".join("?" * len(keys))
        self._select(f"DELETE FROM Cache WHERE key IN ({places})", keys)  # noqa: S608 # places

    def delete_range(self, start: bytes, end: bytes) -> None:
        """See `Transaction.delete_range`."""
        self._select("DELETE FROM Cache WHERE key >= ? AND key < ?", (start, end))

    def _select(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        # The transaction as a whole minds errors and whether the directory is still the same.
        found: list[tuple[Any, ...]] = self._execute(statement, values).fetchall()
        return found

    def drop_blob(self, name: str) -> None:
        """See `Transaction.drop_blob`."""
        self.dropped.append(name)

    def blob_exists(self, name: str) -> bool:
        """See `Transaction.blob_exists`."""
        return self._backend.files.exists(name)


class DiskBackend:
    """Rows and blobs in a directory.

    Args:
        root: The directory; made where it is missing.
        timeout_seconds: How long to wait for another writer.

    Raises:
        StoreError: The directory holds something else than a store of this package.
        StoreFull: The disk leaves no room for one.
    """

    def __init__(self, root: Path, timeout_seconds: float = 60.0) -> None:
        self.root = root
        self.files = StateFiles(root)
        self._timeout = timeout_seconds
        self._database = str(root / DATABASE)
        self._lock = ForkLock(self._forked)
        self._cache: Cache | None = None
        self._inherited: list[Cache] = []
        self._connections = ThreadConnections()
        self._closed = False
        with self.errors():
            make_directories(root)
            self._cache = self._open()
            self._identity = self._identify()
            self.files.fill_reserve()
        self._rows = _Rows(self)

    @property
    def reader(self) -> Reader:
        """See `Backend.reader`."""
        return self._rows

    def transact(self, work: Callable[[Transaction], T], *, freeing: bool = False) -> T:
        """See `Backend.transact`."""
        try:
            return self._transact(work)
        except StoreFull:
            if not freeing or not self.files.spend_reserve():
                raise
        result = self._transact(work)
        self.files.fill_reserve()
        return result

    def write_blob(self, name: str, parts: Sequence[Buffer]) -> None:
        """See `Backend.write_blob`."""
        self._require_identity()
        self.files.write(name, parts)

    def adopt_blob(self, name: str, path: Path) -> bool:
        """See `Backend.adopt_blob`."""
        self._require_identity()
        return self.files.adopt(name, path)

    def read_blob(self, name: str) -> bytes | None:
        """See `Backend.read_blob`."""
        return self.files.read(name)

    def drop_blob(self, name: str) -> None:
        """See `Backend.drop_blob`."""
        self.files.drop(name)

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
        with self._lock, self.errors():
            self._require_identity()
            return check_table(self._opened(), self.files, KNOWN_FILES, fix=fix)

    def close(self) -> None:
        """See `Backend.close`."""
        with self._lock:
            cache, self._cache, self._closed = self._cache, None, True
            if cache is not None:
                cache.close()

    def sql(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Runs one statement on the calling thread's connection."""
        self._require_identity()
        rows: list[tuple[Any, ...]] = self._opened()._sql(statement, values).fetchall()
        return rows

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

    def _error(self, error: sqlite3.Error | OSError) -> RWKVStateError:
        full = is_full(error) if isinstance(error, OSError) else "disk is full" in str(error)
        if full:
            return StoreFull(
                f"The disk leaves no room for the store {self.root}. What was stored before is "
                "unharmed; delete sessions or make room."
            )
        return StoreError(f"The store {self.root} cannot be used: {error}.")

    def _transact(self, work: Callable[[Transaction], T]) -> T:
        with self._lock, self.errors():
            cache = self._opened()
            self._require_identity()
            changes = _Changes(self, cache)
            try:
                with cache.transact():
                    result = work(changes)
                    self._require_identity()
            except BaseException:
                self._roll_back(cache)
                raise
        self.files.drop_all(changes.dropped)
        return result

    def _roll_back(self, cache: Cache) -> None:
        """Ends a transaction that diskcache left open because its COMMIT failed."""
        with suppress(sqlite3.Error):
            if cache._con.in_transaction:
                cache._sql("ROLLBACK")

    def _opened(self) -> Cache:
        if self._closed:
            raise StoreError("The store is closed: open it again to use it.")
        cache = self._cache
        if cache is None:
            with self._lock:
                if self._cache is None:
                    self._cache = self._open()
                cache = self._cache
        self._connections.mind(cache._con)
        return cache

    def _open(self) -> Cache:
        with _only_one(self.root / LOCK):
            prepare_database(self.root, used=self.files.any_folder())
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
def _only_one(path: Path) -> Iterator[None]:
    """Lets one process at a time make or look over a database."""
    if sys.platform == "win32":  # two processes should not make one store at the same moment
        yield
        return
    no_link = getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | no_link, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
