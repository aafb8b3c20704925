"""Looks a database over before diskcache opens it.

diskcache takes settings and schema from the file that it opens: a planted setting redirects it or
switches the journal off, a planted trigger runs at the next write. So the file is read first, by
plain sqlite3 and read-only, and anything that diskcache would not have written for this package is
refused. It repairs nothing. The easy mistake is to demand the whole schema: a process that was
killed while it made the store leaves the first half, which is fine.
"""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path
from urllib.parse import quote

from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.store.files import write_new

DATABASE = "cache.db"
COMPANIONS = ("cache.db-wal", "cache.db-shm", "cache.db-journal")

_SMALLEST_BYTES = 512  # SQLite's smallest page
_NO_LIMIT = 1 << 62
SETTINGS: dict[str, int | str] = {
    "statistics": 0,
    "tag_index": 0,
    "eviction_policy": "none",  # a session is never evicted
    "size_limit": _NO_LIMIT,  # our own limit is checked inside the transaction
    "cull_limit": 0,
    "sqlite_auto_vacuum": 0,
    "sqlite_cache_size": 1 << 13,
    "sqlite_journal_mode": "wal",
    "sqlite_mmap_size": 0,  # a truncated file under a memory map kills the process
    "sqlite_secure_delete": 1,  # what was deleted is overwritten
    "sqlite_synchronous": 2,  # FULL: a commit is on the disk
    "disk_min_file_size": _NO_LIMIT,
    "disk_pickle_protocol": 0,
}
COUNTERS = frozenset({"count", "size", "hits", "misses"})


def _counter(event: str, when: str, change: str) -> tuple[str, str]:
    name = f"Settings_{event}_{when.lower()}"
    return name, (  # a text to compare with, never to run
        f"CREATE TRIGGER {name} AFTER {when} ON Cache FOR EACH ROW BEGIN UPDATE Settings "  # noqa: S608
        f'SET value = value {change} WHERE key = "{event}"; END'
    )


SCHEMA: dict[str, str | None] = {
    "Settings": "CREATE TABLE Settings ( key TEXT NOT NULL UNIQUE, value)",
    "sqlite_autoindex_Settings_1": None,
    "Cache": (
        "CREATE TABLE Cache ( rowid INTEGER PRIMARY KEY, key BLOB, raw INTEGER, store_time REAL, "
        "expire_time REAL, access_time REAL, access_count INTEGER DEFAULT 0, tag BLOB, "
        "size INTEGER DEFAULT 0, mode INTEGER DEFAULT 0, filename TEXT, value BLOB)"
    ),
    "Cache_key_raw": "CREATE UNIQUE INDEX Cache_key_raw ON Cache(key, raw)",
    "Cache_expire_time": "CREATE INDEX Cache_expire_time ON Cache (expire_time)",
    **dict(
        [
            _counter("count", "INSERT", "+ 1"),
            _counter("count", "DELETE", "- 1"),
            _counter("size", "INSERT", "+ NEW.size"),
            _counter("size", "UPDATE", "+ NEW.size - OLD.size"),
            _counter("size", "DELETE", "- OLD.size"),
        ]
    ),
}
"""What diskcache 5.6.3 makes, by name; an index that SQLite made itself has no text."""


def prepare_database(root: Path, *, used: bool) -> None:
    """Makes a new store's database file, or looks over the one that is there.

    Args:
        root: The store's directory.
        used: Whether states were written there: then there must be a database, too.

    Raises:
        StoreError: There is one that is not of this package's making, or is damaged.
    """
    path = root / DATABASE
    for name in COMPANIONS:
        _require_plain(root / name)
    there = _require_plain(path)
    size = path.stat().st_size if there else 0
    if size < _SMALLEST_BYTES and (used or size):  # SQLite would begin a new database
        raise StoreError(
            f"{path} is missing or truncated, though states are stored beside it: restore it from "
            "a copy, or use another directory."
        )
    if not there:
        write_new(path, [])
    if not size:
        return
    try:
        found = _read(path)
    except sqlite3.Error as error:
        raise StoreError(
            f"{path} is not a readable database ({error}): restore it from a copy, or use "
            "another directory."
        ) from error
    _compare(path, *found)


def _require_plain(path: Path) -> bool:
    """Says whether a file is there; refuses anything but a regular one."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise StoreError(f"{path} is not a plain file: it is not of this package's making.")
    return True


Found = tuple[dict[str, str | None], dict[object, object]]


def _read(path: Path) -> Found:
    """Reads schema and settings; nothing in the database runs at that."""
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None)
    try:
        connection.execute("PRAGMA mmap_size = 0")
        connection.execute("PRAGMA trusted_schema = 0")
        schema = dict(connection.execute("SELECT name, sql FROM sqlite_master").fetchall())
        settings: dict[object, object] = {}
        if "Settings" in schema and schema["Settings"] == SCHEMA["Settings"]:
            settings = dict(connection.execute("SELECT key, value FROM Settings").fetchall())
        return schema, settings
    finally:
        connection.close()


def _compare(path: Path, schema: dict[str, str | None], settings: dict[object, object]) -> None:
    for name, sql in schema.items():
        if name not in SCHEMA or SCHEMA[name] != sql:
            raise StoreError(
                f"{path} holds {name!r}, which is not of this package's making: it belongs to "
                "another program, or was tampered with. Use another directory."
            )
    for key, value in settings.items():
        if key in COUNTERS and isinstance(value, int):
            continue
        if not isinstance(key, str) or key not in SETTINGS or SETTINGS[key] != value:
            raise StoreError(
                f"{path} has the setting {key!r} = {value!r:.200}, which this package never makes: "
                "it belongs to another program, or was tampered with. Use another directory."
            )
