"""What a store's database is: its tables, and diskcache's own table and settings, as SQL texts.

A session is born with a log row 0, which goes only with the session and lies in another B-tree than
the session's row: no one damaged page takes a session and what proves that it exists. The easy
mistake is to make a database statement by statement in its place: a program that is killed leaves
half of one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from langchain_rwkv_state.store import rows

FORMAT = 2
"""Version of the tables as a whole; a store of a later one is refused."""
LOST = (
    "The store's secret is lost, so that none of its references means anything, though states are "
    "stored beside it: restore the whole directory from a copy (cache.db-wal with it), or use "
    "another directory."
)
DATABASE = "cache.db"
NEW_DATABASE = "cache.db-new"
"""A database that is being made; it takes its name once it is whole."""
COMPANION_ENDS = ("-wal", "-shm", "-journal")
COMPANIONS = tuple(f"{DATABASE}{end}" for end in COMPANION_ENDS)
UNFINISHED = (NEW_DATABASE, *(f"{NEW_DATABASE}{end}" for end in COMPANION_ENDS))

NO_LIMIT = 1 << 62
SETTINGS: dict[str, int | str] = {
    "statistics": 0,
    "tag_index": 0,
    "eviction_policy": "none",  # a session is never evicted
    "size_limit": NO_LIMIT,  # our own limit is checked inside the transaction
    "cull_limit": 0,
    "sqlite_auto_vacuum": 0,
    "sqlite_cache_size": 1 << 13,
    "sqlite_journal_mode": "wal",
    "sqlite_mmap_size": 0,  # a truncated file under a memory map kills the process
    "sqlite_secure_delete": 1,  # what was deleted is overwritten
    "sqlite_synchronous": 2,  # FULL: a commit is on the disk
    "disk_min_file_size": NO_LIMIT,
    "disk_pickle_protocol": 0,
}
COUNTERS = frozenset({"count", "size", "hits", "misses"})

TABLES: dict[str, str] = {name: table.sql() for name, table in rows.TABLES.items()}
"""Every row ends with a checksum of its table's name and all its columns. NULL is for never."""

INDICES: dict[str, str] = {
    "sessions_expires": (
        "CREATE INDEX sessions_expires ON sessions(expires) WHERE expires IS NOT NULL"
    ),
    "holds_expires": "CREATE INDEX holds_expires ON holds(expires) WHERE expires IS NOT NULL",
    "holds_owner": "CREATE INDEX holds_owner ON holds(owner) WHERE kind = 1",
    "tombstones_expires": "CREATE INDEX tombstones_expires ON tombstones(expires)",
    "log_ref": "CREATE INDEX log_ref ON log(ref) WHERE origin IS NOT NULL",
}

GUARDS: dict[str, str] = {
    "Cache_format_1": (
        "CREATE TRIGGER Cache_format_1 BEFORE INSERT ON Cache FOR EACH ROW"
        " WHEN typeof(NEW.key) = 'blob' AND NEW.raw = 1 BEGIN SELECT RAISE(ABORT, 'a newer release"
        " of langchain-rwkv-state has converted this store: upgrade, and open it again'); END"
    ),
}
"""A program of before may have had a store open as it was converted: what it would put, keep or
queue in rows of format 1 is refused, for nobody would find it."""


def _counter(table: str, event: str, when: str, change: str) -> tuple[str, str]:
    owner = "Settings" if table == "Cache" else table
    name = f"{owner}_{event}_{when.lower()}"
    return name, (
        f"CREATE TRIGGER {name} AFTER {when} ON {table} FOR EACH ROW BEGIN UPDATE Settings "  # noqa: S608 # constants
        f'SET value = value {change} WHERE key = "{event}"; END'
    )


DISKCACHE: dict[str, str | None] = {
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
            _counter("Cache", "count", "INSERT", "+ 1"),
            _counter("Cache", "count", "DELETE", "- 1"),
            _counter("Cache", "size", "INSERT", "+ NEW.size"),
            _counter("Cache", "size", "UPDATE", "+ NEW.size - OLD.size"),
            _counter("Cache", "size", "DELETE", "- OLD.size"),
        ]
    ),
}
"""What diskcache 5.6.3 makes, by name; SQLite's own indices have no text."""

FORMAT_1: dict[str, str] = {
    "Anchor": "CREATE TABLE Anchor (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID",
    **dict(
        [
            _counter("Anchor", "size", "INSERT", "+ length(NEW.value)"),
            _counter("Anchor", "size", "UPDATE", "+ length(NEW.value) - length(OLD.value)"),
            _counter("Anchor", "size", "DELETE", "- length(OLD.value)"),
        ]
    ),
}
"""What a store of format 1 has beside diskcache's table, in which its rows are."""

OURS: dict[str, str] = {**TABLES, **INDICES, **GUARDS}
"""What a store has beside diskcache's own."""

SCHEMA: dict[str, str | None] = {**DISKCACHE, **OURS, **FORMAT_1}
"""All that may stand in a database of this package's making."""


def missing_columns(schema: Mapping[str, str | None]) -> dict[str, int]:
    """Returns how many columns the tables of an earlier release lack, by the tables' names."""
    return {
        name: missing
        for name, table in rows.TABLES.items()
        for missing in range(1, table.added + 1)
        if schema.get(name) == table.sql(missing)
    }


def make_all(connection: sqlite3.Connection, *, tables: bool) -> None:
    """Makes everything in an empty database, in one transaction.

    Args:
        connection: The database.
        tables: Whether it is to be a store's; a prefix cache has diskcache's table alone.
    """
    connection.execute("BEGIN")
    for statement in DISKCACHE.values():
        if statement is not None:
            connection.execute(statement)
    values = {**SETTINGS, **dict.fromkeys(COUNTERS, 0)}
    connection.executemany("INSERT INTO Settings VALUES (?, ?)", values.items())
    if tables:
        make_tables(connection)
        guard(connection)
    connection.execute("COMMIT")


def guard(connection: sqlite3.Connection) -> None:
    """Makes what keeps rows of format 1 out, as far as it is not there."""
    for statement in GUARDS.values():
        connection.execute(statement.replace("TRIGGER", "TRIGGER IF NOT EXISTS", 1))


def make_tables(connection: sqlite3.Connection, *, temporary: bool = False) -> None:
    """Makes a store's tables, as far as they are not there.

    Args:
        connection: The database; the caller ends the transaction.
        temporary: Whether they are to be the connection's own, and gone with it.
    """
    for statement in (*TABLES.values(), *INDICES.values()):
        what = "INDEX" if statement.startswith("CREATE INDEX") else "TABLE"
        begin = f"CREATE {what} IF NOT EXISTS "
        if temporary:
            begin = "CREATE TEMP TABLE " if what == "TABLE" else "CREATE INDEX temp."
        connection.execute(statement.replace(f"CREATE {what} ", begin, 1))
