"""Verifies diskcache's table and the store's directory: what no row of ours can tell.

Rows are read by plain SELECTs here and never decoded by diskcache, so that a planted one cannot
run. The easy mistake is to delete every odd row: a row whose own checksum is right is ours, and
only its columns are put back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

from langchain_rwkv_state.errors import StateCorrupt
from langchain_rwkv_state.store import rows
from langchain_rwkv_state.store.files import StateFiles
from langchain_rwkv_state.store.records import CheckReport
from langchain_rwkv_state.store.schema import DATABASE, WITNESS, WITNESS_RANGE

SOUND = (
    "(raw = 1 AND mode = 1 AND expire_time IS NULL AND tag IS NULL AND filename IS NULL"
    " AND typeof(key) = 'blob' AND typeof(value) = 'blob')"
)
"""An SQL condition: a row is as this package writes it, as far as its use depends on that."""

_TIDY = (
    f"({SOUND} AND store_time = access_time AND access_count = 0 AND size >= length(value)"
    f" AND NOT (key >= x'{WITNESS_RANGE[0].hex()}' AND key < x'{WITNESS_RANGE[1].hex()}'))"
)
_ODD = f"SELECT rowid, key, value FROM Cache WHERE {_TIDY} IS NOT 1"  # noqa: S608 # constants
_RESTORE = (
    "UPDATE OR REPLACE Cache SET raw = 1, mode = 1, expire_time = NULL, tag = NULL,"
    " filename = NULL, store_time = 0, access_time = 0, access_count = 0,"
    " size = MAX(length(value), CASE WHEN typeof(size) = 'integer' THEN size ELSE 0 END)"
    " WHERE rowid = ?"
)


Fetch = Callable[[str, tuple[object, ...]], list[tuple[Any, ...]]]
"""Runs a statement and returns what it finds."""


def check_table(
    fetch: Fetch, files: StateFiles, known: frozenset[str], *, fix: bool
) -> CheckReport:
    """Verifies the table, its counters and the directory, at one moment.

    Args:
        fetch: Runs a statement; with `fix` in a transaction.
        files: The directory.
        known: Names in the directory that are fine.
        fix: Whether to mend; files of others are never touched.
    """
    problems: list[str] = []
    repaired: list[str] = []
    integrity = _integrity(fetch)
    problems += [f"SQLite reports: {text}." for text in integrity if text != "ok"]
    if problems:
        problems.append(f"{DATABASE} is damaged: restore the directory from a copy.")
        return CheckReport(tuple(problems))
    for row, key, value in fetch(_ODD, ()):
        problems.append(f"Row {row} was changed, or is of foreign making (its key: {key!r:.90}).")
        if fix:
            repaired.append(_mend(fetch, row, key, value))
    for name, counted, true in _counters(fetch):
        problems.append(f"The counter {name!r} says {counted!r} and should say {true}.")
        if fix:
            fetch("UPDATE Settings SET value = ? WHERE key = ?", (true, name))
            repaired.append(f"Set the counter {name!r} to {true}.")
    for path in files.strangers(known):
        problems.append(f"{path} is not of this package's making; it is left as it is.")
    return CheckReport(tuple(problems), tuple(repaired))


def _integrity(fetch: Fetch) -> list[str]:
    """Returns what SQLite finds: ``ok``, or damages."""
    try:
        return [str(text) for (text,) in fetch("PRAGMA quick_check", ())]
    except sqlite3.OperationalError:
        raise  # busy, or gone
    except sqlite3.DatabaseError as error:  # the page that leads to all others
        return [str(error)]


def _mend(fetch: Fetch, row: int, key: Any, value: Any) -> str:
    """Puts a row's columns back where its checksum is right; deletes it otherwise."""
    try:
        if not isinstance(key, bytes) or not isinstance(value, bytes):
            raise StateCorrupt("The row holds no bytes.")
        if key[:1] == WITNESS:
            raise StateCorrupt("The row belongs into another table.")
        rows.unpack(key, value)
    except StateCorrupt:
        fetch("DELETE FROM Cache WHERE rowid = ?", (row,))
        return f"Deleted row {row}, which is not of this package's making."
    fetch(_RESTORE, (row,))
    return f"Restored the columns of the {rows.describe(key)}."


def _counters(fetch: Fetch) -> Iterator[tuple[str, object, int]]:
    ((count, size, witnesses),) = fetch(
        "SELECT COUNT(*), COALESCE(SUM(size), 0),"
        " (SELECT COALESCE(SUM(length(value)), 0) FROM Anchor) FROM Cache",
        (),
    )
    said: dict[str, object] = dict(fetch("SELECT key, value FROM Settings", ()))
    for name, number in (("count", count), ("size", size + witnesses)):
        if said.get(name) != number:
            yield name, said.get(name), int(number)
