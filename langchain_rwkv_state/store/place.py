"""Looks over a directory and its database before diskcache opens it, and makes a new one whole.

diskcache takes settings and schema from the file that it opens: a planted setting redirects it or
switches the journal off, a planted trigger runs at the next write. So the file is read first, by
plain sqlite3, and anything that diskcache would not have written for this package is refused; so is
a database that SQLite finds malformed. What a killed program left behind is taken back before the
comparison and by SELECTs alone, at which nothing planted runs. The whole schema is not asked for: a
release that was killed while it made the store leaves the first half.
"""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from langchain_rwkv_state._files import flush_directory, flush_file, write_new
from langchain_rwkv_state._fork import not_amid_a_fork
from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.store.files import DAMAGED, RESERVE, SHARD
from langchain_rwkv_state.store.old_format import ABOUT_KEY, Schema, bring_up_to_date, is_old
from langchain_rwkv_state.store.schema import (
    COMPANIONS,
    COUNTERS,
    DATABASE,
    FORMAT_1,
    NEW_DATABASE,
    OURS,
    SCHEMA,
    SETTINGS,
    UNFINISHED,
    guard,
    make_all,
    missing_columns,
)
from langchain_rwkv_state.store.staging import STAGED

LOCK = "lock"
KNOWN_FILES = frozenset(
    {
        *(DATABASE, *COMPANIONS, *UNFINISHED),
        *(RESERVE, LOCK, DAMAGED, STAGED),
        "lost+found",  # a disk of its own has it
    }
)
_NAMES_SHOWN = 3
SMALLEST_BYTES = 512  # SQLite's smallest page
_WAIT_SECONDS = 60.0
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
_SHOWN = 200  # characters of what SQLite says


def holds_store(root: Path) -> bool:
    """Says whether there is a database of a size that one can have."""
    return file_size(root / DATABASE) >= SMALLEST_BYTES


def require_place(root: Path, *, create: bool | None) -> None:
    """Checks that a directory holds a store, or may come to hold one.

    Args:
        root: The directory.
        create: Whether to make a store: ``None`` only where nothing else lies, ``True`` also among
            other files, ``False`` not at all.

    Raises:
        StoreError: There is none and none may be made; the message says how one is.
    """
    if root.exists() and not root.is_dir():
        raise StoreError(f"{root} is no directory: a store is one. Name another path.")
    if holds_store(root):
        return
    if create is False:
        raise StoreError(
            f"There is no store in {root}: name the directory of one, or leave out create=False "
            "and read_only=True to make one."
        )
    if create or not root.exists():
        return
    others = sorted(name for name in os.listdir(root) if not _is_ours(name))  # noqa: PTH208 # names
    if others:
        shown = ", ".join(map(repr, others[:_NAMES_SHOWN])) + (
            ", ..." if len(others) > _NAMES_SHOWN else ""
        )
        raise StoreError(
            f"{root} holds other things ({shown}) and no store. Name a directory of the store's "
            "own, or say create=True to make one among these files."
        )


def is_writable(root: Path) -> bool:
    """Says whether a store's directory, or the first one above it that exists, can be written."""
    there = next((each for each in (root, *root.parents) if each.exists()), root)
    if not os.access(there, os.W_OK | os.X_OK):
        return False
    files = (root / DATABASE, root / LOCK)
    return all(os.access(path, os.W_OK) for path in files if path.exists())


def _is_ours(name: str) -> bool:
    return name in KNOWN_FILES or re.fullmatch(SHARD, name) is not None


def prepare_database(root: Path, *, used: bool, tables: bool = True) -> None:
    """Makes a new store's database, or looks over the one that is there.

    Whoever calls holds the store's lock, so that nobody else makes one.

    Args:
        root: The store's directory.
        used: Whether states were written there: then there must be a database, too.
        tables: Whether it is a store's; a prefix cache has diskcache's table alone.

    Raises:
        StoreError: There is one that is not of this package's making, or is damaged.
    """
    path = root / DATABASE
    for name in (*COMPANIONS, *UNFINISHED):
        require_plain(root / name)
    there = require_plain(path)
    size = path.stat().st_size if there else 0
    wal, _, journal = (root / name for name in COMPANIONS)
    begun = file_size(wal) or (not there and file_size(journal))
    if size < SMALLEST_BYTES and (used or size or begun):  # SQLite would begin a new database
        raise StoreError(
            f"{path} is missing or truncated, though states or changes are stored beside it: "
            "restore it from a copy, or use another directory."
        )
    if not size:
        _make(root, tables=tables)
        return
    schema = _looked_over(path, journal)
    if tables and (is_old(schema) or OURS.keys() - schema.keys()):
        with refusals(path), closing(connect(path, "rw")) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = 1")  # not every SQLite's own default
            _at_one_stroke(connection, schema)


def _at_one_stroke(connection: sqlite3.Connection, schema: Schema) -> None:
    """Brings a store up to date, or leaves it as it is."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        bring_up_to_date(connection, schema)
        if "Cache" in schema:
            guard(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def require_plain(path: Path) -> bool:
    """Says whether a file is there; refuses anything but a regular one."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise StoreError(f"{path} is not a plain file: it is not of this package's making.")
    return True


def file_size(path: Path) -> int:
    """Returns a file's size, 0 where there is none."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def connect(path: Path, options: str, *, wait_seconds: float = _WAIT_SECONDS) -> sqlite3.Connection:
    """Opens a database by plain sqlite3, in which nothing of its own runs at a SELECT.

    Args:
        path: The file.
        options: ``rw``, ``ro``, or ``ro`` and more options of SQLite's.
        wait_seconds: How long to wait for somebody who writes.

    Returns:
        A connection that is not tied to a thread.
    """
    with not_amid_a_fork():
        connection = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode={options}",
            uri=True,
            timeout=wait_seconds,
            isolation_level=None,
            check_same_thread=False,
        )
    try:
        connection.execute("PRAGMA mmap_size = 0")
        connection.execute("PRAGMA trusted_schema = 0")
        connection.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turns what SQLite says of a file that is no whole database into `StoreError`.

    Damaged text of a schema comes out of sqlite3 as `UnicodeDecodeError`, even in its own messages.
    A full disk, or another writer, says nothing of the file: that is for `DiskBackend.errors`.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        if lacks_room(error) or "locked" in str(error):
            raise
        raise _unreadable(path, error) from error
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def lacks_room(error: sqlite3.OperationalError) -> bool:
    """Says whether an error may be for want of room, without which no log's index can be made."""
    return "disk is full" in str(error) or "disk I/O" in str(error)


def _unreadable(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"{path} is not a readable database ({error!s:.{_SHOWN}}): restore it from a copy, "
        "or use another directory."
    )


def look_over(path: Path, connection: sqlite3.Connection) -> Schema:
    """Refuses what this package did not make, and what is malformed; returns the schema.

    Raises:
        StoreError: The database is foreign, tampered with or malformed.
    """
    schema: Schema = dict(connection.execute("SELECT name, sql FROM sqlite_master").fetchall())
    settings: dict[object, object] = {}
    if "Settings" in schema and schema["Settings"] == SCHEMA["Settings"]:
        settings = dict(connection.execute("SELECT key, value FROM Settings").fetchall())
    _compare(path, schema, settings)
    require_whole(path, connection)  # only now: what a schema of others holds might run at it
    return schema


def has_sessions(connection: sqlite3.Connection) -> bool:
    """Says whether a database is a store's, of whatever format, and not a prefix cache's."""
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if "meta" in names or "Cache" not in names:
        return "meta" in names
    about = connection.execute("SELECT 1 FROM Cache WHERE key = ?", (ABOUT_KEY,))
    return about.fetchone() is not None


def require_whole(path: Path, connection: sqlite3.Connection) -> None:
    """Refuses a malformed database; it reads all of it, at a millisecond a megabyte.

    Raises:
        StoreError: SQLite finds a page that cannot be.
    """
    found = [str(text) for (text,) in connection.execute("PRAGMA quick_check(1)").fetchall()]
    if found != ["ok"]:
        raise StoreError(
            f"{path} is damaged (SQLite reports: {' '.join(found):.{_SHOWN}}), so that sessions "
            "might look new that are not: restore the directory from a copy, or use another one. "
            "The state files beside it are as they were."
        )


def require_lone_journal(journal: Path) -> None:
    """Refuses a journal that names another file: taking it back would delete that file.

    SQLite ends a journal so for changes of several databases at once, which no store makes.
    """
    with suppress(FileNotFoundError):
        handle = os.open(journal, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(handle, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - len(_JOURNAL_MAGIC)))
            if file.read() == _JOURNAL_MAGIC:
                raise StoreError(
                    f"{journal} names another database, which no store's does: it was tampered "
                    "with. Delete it, or use another directory."
                )


def _make(root: Path, *, tables: bool) -> None:
    """Makes a database under another name and gives it its own: whole, flushed, or not at all."""
    new = root / NEW_DATABASE
    for name in (*UNFINISHED, *COMPANIONS):  # of a program that was killed at this
        (root / name).unlink(missing_ok=True)
    write_new(new, [])  # for its owner alone, and so are the files that SQLite puts beside it
    with refusals(new), closing(connect(new, "rw")) as connection:
        make_all(connection, tables=tables)
        connection.execute(f"PRAGMA journal_mode = {SETTINGS['sqlite_journal_mode']}")
    flush_file(new)
    new.replace(root / DATABASE)
    flush_directory(root)


def _looked_over(path: Path, journal: Path) -> Schema:
    """Looks a database over, first without a change to it, then taking back what is half done."""
    try:
        with closing(connect(path, "ro")) as connection:
            return look_over(path, connection)
    except sqlite3.OperationalError:
        if not any(map(file_size, (path.with_name(name) for name in COMPANIONS))):
            with refusals(path):
                raise
    except (sqlite3.Error, UnicodeDecodeError):
        with refusals(path):
            raise
    require_lone_journal(journal)
    with refusals(path), closing(connect(path, "rw")) as connection:
        return look_over(path, connection)


def _compare(path: Path, schema: Schema, settings: dict[object, object]) -> None:
    older = missing_columns(schema)
    for name, sql in schema.items():
        both = name in FORMAT_1 and "meta" in schema
        if name not in SCHEMA or (SCHEMA[name] != sql and name not in older) or both:
            raise StoreError(
                f"{path} holds {name!r}, which is not of this package's making: it belongs to "
                "another program or a later release, or was tampered with. Upgrade, or use another "
                "directory."
            )
    for key, value in settings.items():
        if key in COUNTERS and isinstance(value, int):
            continue
        if not isinstance(key, str) or key not in SETTINGS or SETTINGS[key] != value:
            raise StoreError(
                f"{path} has the setting {key!r} = {value!r:.200}, which this package never makes: "
                "it belongs to another program, or was tampered with. Use another directory."
            )
