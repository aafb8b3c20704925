"""Verifies diskcache's table and the store's directory: what no table of ours can tell.

Rows are read by plain SELECTs here and never decoded by diskcache, so that a planted one cannot
run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from langchain_rwkv_state.errors import StateCorrupt
from langchain_rwkv_state.store.files import StateFiles
from langchain_rwkv_state.store.records import CheckReport
from langchain_rwkv_state.store.rows import StateRow
from langchain_rwkv_state.store.schema import DATABASE
from langchain_rwkv_state.store.tables import Changes, Sql, listed

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
            Changes(fetch, 0.0, lists_states=True).list_state(row)
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
