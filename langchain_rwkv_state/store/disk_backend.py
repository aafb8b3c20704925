"""`DiskBackend`: tables in diskcache's database, states in files beside it.

diskcache gives a connection for each thread, a lock between processes, settings, and a table in
which it lists files; everything that it would decide by itself (pickling, files, eviction, expiry)
is switched off. A forked child opens everything anew, and leaves alone what it inherited.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from diskcache import Cache, Disk, Timeout
from diskcache.core import MODE_RAW, UNKNOWN

from langchain_rwkv_state._files import close_locked, take_lock
from langchain_rwkv_state._fork import (
    ForkLock,
    done_before_a_fork,
    inside_sqlite,
    not_amid_a_fork,
)
from langchain_rwkv_state.errors import RWKVStateError, StateCorrupt, StoreError, StoreFull
from langchain_rwkv_state.store.backend import SqlTables
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
    connect,
    holds_store,
    is_writable,
    lacks_room,
    prepare_database,
    require_place,
)
from langchain_rwkv_state.store.read_only import ReadOnlyDatabase
from langchain_rwkv_state.store.records import CheckReport
from langchain_rwkv_state.store.rows import StateRow
from langchain_rwkv_state.store.schema import DATABASE, SETTINGS
from langchain_rwkv_state.store.tables import LIST, Sql, listed

if TYPE_CHECKING:
    from langchain_rwkv_state.state import Buffer

T = TypeVar("T")
_LOOK_AGAIN_SECONDS = 0.01  # at a lock that somebody else holds


class DiskBackend(SqlTables):
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
            connection = self._connection()
            if connection.in_transaction:
                return work()
            with inside_sqlite:
                connection.execute("BEGIN")
            try:
                return work()
            finally:
                with inside_sqlite:
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
            with closing(connect(self.root / DATABASE, "ro")) as connection:
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

    def write_blob(self, name: str, parts: Sequence[Buffer]) -> str:
        """See `Backend.write_blob`."""
        self._require_writable()
        self._require_identity()
        self.files.write(name, parts)
        return name

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

    def scrub(self, digests: Collection[str]) -> None:
        """See `Backend.scrub`."""
        self._require_writable()
        self.files.drop_of(digests)
        with self._lock, self.errors():
            self._opened()
            self._require_identity()
            execute = self._connection().execute
            # What was deleted is overwritten as it goes, but pages that were split or joined keep
            # copies of rows in their free room: a database that is written anew has none.
            execute("VACUUM")
            ((busy, _, _),) = execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if busy:
            raise StoreError(
                f"Somebody reads the store {self.root} as it was, so that what was deleted is "
                f"still in its log of changes, {DATABASE}-wal: it goes when the store is next "
                "opened for writing by a program that starts."
            )

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
        connection = self._connection()
        with inside_sqlite:
            found: list[tuple[Any, ...]] = connection.execute(statement, values).fetchall()
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
            execute = self._connection().execute
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

    def _connection(self) -> Any:
        """Returns the calling thread's connection."""
        cache = self._cache
        return self._connections.of(self._opened() if cache is None else cache)

    def _opened(self) -> Cache:
        self._require_open()
        cache = self._cache
        if cache is None:
            with self._lock:
                if self._cache is None:
                    self._cache = self._open()
                cache = self._cache
        return cache

    def _open(self) -> Cache:
        """Opens the database; on a full disk with the room that was kept back for that."""
        with _only_one(self.root / LOCK, self._timeout):
            try:
                cache = self._made_ready()
            except sqlite3.OperationalError as error:
                if not lacks_room(error) or not self.files.spend_reserve():
                    raise
                cache = self._made_ready()
            self.files.fill_reserve()
            return cache

    def _made_ready(self) -> Cache:
        prepare_database(self.root, used=self.files.any_folder(), tables=self.lists_states)
        with not_amid_a_fork():
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
        close_locked(handle)


def _locked(handle: int, path: Path) -> bool:
    """Takes a file's lock, if nobody holds it."""
    try:
        return take_lock(handle)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be locked ({error.strerror}), and a store needs that: use a directory "
            "on a local disk, or a MemoryStateStore."
        ) from error


class ThreadConnections:
    """Minds the connections of all threads of one database."""

    def __init__(self) -> None:
        self.closed = False

    def of(self, cache: Cache) -> Any:
        """Returns the calling thread's connection, opened at its first use, not amid a fork.

        The thread closes it when it ends, or finds the database closed.
        """
        if getattr(cache._local, "con", None) is None:
            with not_amid_a_fork():
                connection = cache._con
        else:
            connection = cache._con
        minded = _mine.closers.get(self)
        if minded is None or minded.connection is not connection:
            for each in [each for each in _mine.closers if each.closed]:
                del _mine.closers[each]
            _mine.closers[self] = _Closer(connection)
        return connection

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
                if not done_before_a_fork(self.connection.close):
                    _left_open.append(self.connection)


_left_open: list[Any] = []
"""Connections whose threads ended amid a fork: they are held, since closing them takes locks."""


class _Mine(threading.local):
    """The calling thread's connections, by database."""

    def __init__(self) -> None:
        self.closers: dict[ThreadConnections, _Closer] = {}


_mine = _Mine()


class SafeDisk(Disk):  # type: ignore[misc] # diskcache has no types
    """Bytes in, bytes out; never a pickle, never a file."""

    def hash(self, key: bytes) -> int:
        """Returns a portable hash of a key."""
        return zlib.adler32(_bytes(key)) & 0xFFFFFFFF

    def put(self, key: bytes) -> tuple[memoryview, bool]:
        """Returns a key as database columns."""
        return sqlite3.Binary(_bytes(key)), True

    def get(self, key: object, raw: object) -> bytes:
        """Returns the key that database columns hold."""
        if raw != 1 or not isinstance(key, (bytes, memoryview)):
            raise StateCorrupt("A row of the store has a key that this package never writes.")
        return bytes(key)

    def store(
        self,
        value: bytes,
        read: bool,  # noqa: ARG002
        key: object = UNKNOWN,  # noqa: ARG002
    ) -> tuple[int, int, None, memoryview]:
        """Returns a value as database columns."""
        data = _bytes(value)
        return len(data), MODE_RAW, None, sqlite3.Binary(data)

    def fetch(self, mode: object, filename: object, value: object, read: object) -> bytes:  # noqa: ARG002
        """Returns the value that database columns hold."""
        if mode != MODE_RAW or filename is not None or not isinstance(value, bytes):
            raise StateCorrupt("A row of the store has a value that this package never writes.")
        return value

    def filename(self, key: object = UNKNOWN, value: object = UNKNOWN) -> tuple[str, str]:  # noqa: ARG002
        """Refuses: rows have no files of diskcache's making."""
        raise StateCorrupt("Rows of this store have no files.")

    def remove(self, file_path: str) -> None:
        """Does nothing: a file name in a row is not this package's, and may lead anywhere."""


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"The store's rows are bytes, got {type(value).__name__}.")
    return value


_LISTED = (
    "SELECT rowid, key, raw, store_time, expire_time, access_time, access_count, tag, size, mode,"
    " filename, value FROM Cache"
)


def check_table(fetch: Sql, files: StateFiles, known: frozenset[str], *, fix: bool) -> CheckReport:
    """Verifies diskcache's table, its counters and the directory, at one moment.

    Args:
        fetch: Runs a statement; with `fix` in a transaction.
        files: The directory.
        known: Names in the directory that are fine.
        fix: Whether to repair; files of others are never touched.
    """
    problems: list[str] = []
    repaired: list[str] = []
    integrity = _integrity(fetch)
    problems += [f"SQLite reports: {text}." for text in integrity if text != "ok"]
    if problems:
        problems.append(f"{DATABASE} is damaged: restore the directory from a copy.")
        return CheckReport(tuple(problems))
    converted = not fetch("SELECT 1 FROM sqlite_master WHERE name = 'meta'", ())  # of format 1
    for problem, done in () if converted else _listing(fetch, fix=fix):
        problems.append(problem)
        repaired += [done] if fix else []
    for name, counted, true in () if converted else _counters(fetch):
        problems.append(f"The counter {name!r} says {counted!r} and should say {true}.")
        if fix:
            fetch("UPDATE Settings SET value = ? WHERE key = ?", (true, name))
            repaired.append(f"Set the counter {name!r} to {true}.")
    for path in files.strangers(known):
        problems.append(f"{path} is not of this package's making; it is left as it is.")
    return CheckReport(tuple(problems), tuple(repaired))


def _integrity(fetch: Sql) -> list[str]:
    """Returns what SQLite finds: ``ok``, or damages."""
    try:
        return [str(text) for (text,) in fetch("PRAGMA quick_check", ())]
    except sqlite3.OperationalError:
        raise  # busy, or gone
    except sqlite3.DatabaseError as error:  # the page that leads to all others
        return [str(error)]


def _listing(fetch: Sql, *, fix: bool) -> Iterator[tuple[str, str]]:
    """Compares diskcache's table with the states; yields what is wrong, and what was done."""
    wanted: dict[tuple[Any, ...], StateRow] = {}
    for raw in fetch("SELECT * FROM states", ()):
        with suppress(StateCorrupt):
            row = StateRow.unpack(raw)
            wanted[listed(row)] = row
    for number, *columns in fetch(_LISTED, ()):
        if wanted.pop(tuple(columns), None) is not None:
            continue
        if fix:
            fetch("DELETE FROM Cache WHERE rowid = ?", (number,))
        yield (
            f"Row {number} of diskcache's table was changed, or is of foreign making (its key: "
            f"{columns[0]!r:.90}).",
            f"Deleted row {number} of diskcache's table.",
        )
    for row in wanted.values():
        if fix:
            fetch(LIST, listed(row))
        yield (
            f"diskcache's table does not list the state {row.ref}.",
            f"Listed the state {row.ref} in diskcache's table.",
        )


def _counters(fetch: Sql) -> Iterator[tuple[str, object, int]]:
    ((count, size),) = fetch("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM Cache", ())
    said: dict[str, object] = dict(fetch("SELECT key, value FROM Settings", ()))
    for name, number in (("count", count), ("size", size)):
        if said.get(name) != number:
            yield name, said.get(name), int(number)
