"""What a store's database is: diskcache's table and settings, and the witness beside it.

SQL as texts, to compare with and to make a new file from; who opens files is `preflight`. The
witness (`Anchor`: one row a session) lies in a B-tree of its own, so that no one damaged page takes
a session's row and what proves that the session exists. The easy mistake is to make a database
statement by statement in its place: a program that is killed leaves half of one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

DATABASE = "cache.db"
NEW_DATABASE = "cache.db-new"
"""A database that is being made; it takes its name once it is whole."""
COMPANION_ENDS = ("-wal", "-shm", "-journal")
COMPANIONS = tuple(f"{DATABASE}{end}" for end in COMPANION_ENDS)
UNFINISHED = (NEW_DATABASE, *(f"{NEW_DATABASE}{end}" for end in COMPANION_ENDS))

WITNESS = b"a"
"""First byte of the keys that lie in `Anchor` and not in `Cache`."""
WITNESS_RANGE = (WITNESS, b"b")

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


def _counter(table: str, event: str, when: str, change: str) -> tuple[str, str]:
    owner = "Settings" if table == "Cache" else table
    name = f"{owner}_{event}_{when.lower()}"
    return name, (
        f"CREATE TRIGGER {name} AFTER {when} ON {table} FOR EACH ROW BEGIN UPDATE Settings "  # noqa: S608 # constants
        f'SET value = value {change} WHERE key = "{event}"; END'
    )


WITNESS_SCHEMA: dict[str, str] = {
    "Anchor": "CREATE TABLE Anchor (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID",
    **dict(
        [
            _counter("Anchor", "size", "INSERT", "+ length(NEW.value)"),
            _counter("Anchor", "size", "UPDATE", "+ length(NEW.value) - length(OLD.value)"),
            _counter("Anchor", "size", "DELETE", "- length(OLD.value)"),
        ]
    ),
}
"""The witness: a session exists, whatever became of its row; counted as diskcache's rows are."""

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
            _counter("Cache", "count", "INSERT", "+ 1"),
            _counter("Cache", "count", "DELETE", "- 1"),
            _counter("Cache", "size", "INSERT", "+ NEW.size"),
            _counter("Cache", "size", "UPDATE", "+ NEW.size - OLD.size"),
            _counter("Cache", "size", "DELETE", "- OLD.size"),
        ]
    ),
    **WITNESS_SCHEMA,
}
"""What diskcache 5.6.3 makes, and the witness, by name; SQLite's own indices have no text."""


_IS_WITNESS = "key >= x'{}' AND key < x'{}'".format(*(end.hex() for end in WITNESS_RANGE))
AS_UPGRADED = (
    f"CREATE TEMP VIEW Anchor AS SELECT key, value FROM main.Cache WHERE {_IS_WITNESS}",  # noqa: S608
    f"CREATE TEMP VIEW Cache AS SELECT * FROM main.Cache WHERE NOT ({_IS_WITNESS})",  # noqa: S608
    "CREATE TEMP VIEW Settings AS SELECT key, CASE key WHEN 'count' THEN value -"
    " (SELECT COUNT(*) FROM temp.Anchor) ELSE value END AS value FROM main.Settings",
)
"""Shows a reader an earlier release's store as `upgrade` would make it, without a change to it."""


def make_all(connection: sqlite3.Connection) -> None:
    """Makes everything in an empty database, in one transaction."""
    connection.execute("BEGIN")
    for statement in SCHEMA.values():
        if statement is not None:
            connection.execute(statement)
    values = {**SETTINGS, **dict.fromkeys(COUNTERS, 0)}
    connection.executemany("INSERT INTO Settings VALUES (?, ?)", values.items())
    connection.execute("COMMIT")


def needs_upgrade(connection: sqlite3.Connection, schema: Mapping[str, str | None]) -> bool:
    """Says whether witnesses are to be moved to where they belong, as `upgrade` does."""
    if "Cache" not in schema:
        return False  # somebody was killed who made the store; nothing is in it
    return bool(WITNESS_SCHEMA.keys() - schema.keys()) or bool(
        connection.execute(
            "SELECT 1 FROM Cache WHERE key >= ? AND key < ? LIMIT 1", WITNESS_RANGE
        ).fetchall()
    )


def upgrade(connection: sqlite3.Connection, schema: Mapping[str, str | None]) -> None:
    """Moves the witnesses of an earlier release's store to a table of their own, at one stroke."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for name, statement in WITNESS_SCHEMA.items():
            if name not in schema:
                connection.execute(statement.replace(f" {name} ", f" IF NOT EXISTS {name} ", 1))
        move_witnesses(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def move_witnesses(connection: sqlite3.Connection) -> None:
    """Moves witnesses that stand in `Cache`, within a transaction; those in `Anchor` stay."""
    connection.execute(
        "INSERT OR IGNORE INTO Anchor(key, value)"
        " SELECT key, value FROM Cache WHERE key >= ? AND key < ? AND typeof(key) = 'blob'",
        WITNESS_RANGE,
    )
    connection.execute("DELETE FROM Cache WHERE key >= ? AND key < ?", WITNESS_RANGE)
