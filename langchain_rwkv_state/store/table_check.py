"""Verifies diskcache's table and the store's directory: what no row of ours can tell.

Rows are read by plain SELECTs here and never decoded by diskcache, so that a planted one cannot
run. The easy mistake is to delete every odd row: a row whose own checksum is right is ours, and
only its columns are put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diskcache import Cache

from langchain_rwkv_state.errors import StateCorrupt
from langchain_rwkv_state.store import rows
from langchain_rwkv_state.store.files import StateFiles
from langchain_rwkv_state.store.records import CheckReport

SOUND = (
    "(raw = 1 AND mode = 1 AND expire_time IS NULL AND tag IS NULL AND filename IS NULL"
    " AND typeof(key) = 'blob' AND typeof(value) = 'blob')"
)
"""An SQL condition: a row is as this package writes it, as far as its use depends on that."""

_TIDY = f"({SOUND} AND store_time = access_time AND access_count = 0 AND size >= length(value))"
_ODD = f"SELECT rowid, key, value FROM Cache WHERE {_TIDY} IS NOT 1"  # noqa: S608 # constants
_RESTORE = (
    "UPDATE OR REPLACE Cache SET raw = 1, mode = 1, expire_time = NULL, tag = NULL,"
    " filename = NULL, store_time = 0, access_time = 0, access_count = 0,"
    " size = MAX(length(value), CASE WHEN typeof(size) = 'integer' THEN size ELSE 0 END)"
    " WHERE rowid = ?"
)


def check_table(
    cache: Cache, files: StateFiles, known: frozenset[str], *, fix: bool
) -> CheckReport:
    """Verifies the table, its counters and the directory.

    Args:
        cache: The table.
        files: The directory.
        known: Names in the directory that are fine.
        fix: Whether to mend; files of others are never touched.
    """
    problems: list[str] = []
    repaired: list[str] = []
    integrity = [str(text) for (text,) in cache._sql("PRAGMA quick_check").fetchall()]
    problems += [f"SQLite reports: {text}." for text in integrity if text != "ok"]
    with cache.transact():
        for row, key, value in cache._sql(_ODD).fetchall():
            problems.append(
                f"Row {row} was changed, or is of foreign making (its key: {key!r:.90})."
            )
            if fix:
                repaired.append(_mend(cache, row, key, value))
        for name, counted, true in _counters(cache):
            problems.append(f"The counter {name!r} says {counted!r} and should say {true}.")
            if fix:
                cache._sql("UPDATE Settings SET value = ? WHERE key = ?", (true, name))
                repaired.append(f"Set the counter {name!r} to {true}.")
    for path in files.strangers(known):
        problems.append(f"{path} is not of this package's making; it is left as it is.")
    return CheckReport(tuple(problems), tuple(repaired))


def _mend(cache: Cache, row: int, key: Any, value: Any) -> str:
    """Puts a row's columns back where its checksum is right; deletes it otherwise."""
    try:
        if not isinstance(key, bytes) or not isinstance(value, bytes):
            raise StateCorrupt("The row holds no bytes.")
        rows.unpack(key, value)
    except StateCorrupt:
        cache._sql("DELETE FROM Cache WHERE rowid = ?", (row,))
        return f"Deleted row {row}, which is not of this package's making."
    cache._sql(_RESTORE, (row,))
    return f"Restored the columns of the {rows.describe(key)}."


def _counters(cache: Cache) -> Iterator[tuple[str, object, int]]:
    true = dict(
        zip(
            ("count", "size"),
            cache._sql("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM Cache").fetchone(),
            strict=True,
        )
    )
    said = dict(cache._sql("SELECT key, value FROM Settings").fetchall())
    for name, number in true.items():
        if said.get(name) != number:
            yield name, said.get(name), int(number)
