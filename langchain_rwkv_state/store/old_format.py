"""Stores of earlier releases: read once, and brought up to date.

Those of format 1 had their rows as bytes by key in diskcache's table; in later ones tables may lack
columns. All rows are moved at one stroke, in the caller's transaction, and no state's file is
touched. What was damaged stays damaged, so that whoever reads it is told as before.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from operator import itemgetter
from typing import Any

from langchain_rwkv_state.errors import StateCorrupt, StoreError
from langchain_rwkv_state.store.records import Body, LogEntry, Origin
from langchain_rwkv_state.store.rows import (
    LOG,
    TABLES,
    TOMBSTONES,
    Holder,
    HoldRow,
    QueueRow,
    SessionRow,
    StateRow,
    name_text,
    pack_turn,
    ref_text,
)
from langchain_rwkv_state.store.schema import FORMAT, FORMAT_1, LOST, make_tables, missing_columns
from langchain_rwkv_state.store.tables import Changes

ABOUT_KEY = b"!about"
_CLOCK_KEY = b"!clock"
_WITNESS = b"a"
_VERSION = b"r1"
_CHECKSUM_BYTES = 16
_EXPIRY = struct.Struct(">d")
_SEQ = struct.Struct(">Q")
_HEAD_BYTES = len(_VERSION) + _CHECKSUM_BYTES + _EXPIRY.size
_KINDS = {b"s": Holder.SESSION, b"k": Holder.OWNER, b"p": Holder.PUT}

Schema = Mapping[str, str | None]


def bring_up_to_date(
    connection: sqlite3.Connection, schema: Schema, *, temporary: bool = False
) -> None:
    """Makes the tables as they are now, with all rows of a store of an earlier release.

    Args:
        connection: The database, in a transaction that the caller ends.
        schema: What is in it.
        temporary: Whether the tables are to be the connection's own, and the store stays as it is.

    Raises:
        StoreError: As `convert`.
    """
    if "meta" not in schema:
        convert(connection, schema, temporary=temporary)
    else:
        widen(connection, schema, temporary=temporary)


def widen(connection: sqlite3.Connection, schema: Schema, *, temporary: bool = False) -> None:
    """Gives tables the columns that came since; arguments as those of `bring_up_to_date`.

    They are made anew: a column that SQLite adds would stand behind the checksum.
    """
    missing = missing_columns(schema)
    found = {
        name: connection.execute(f"SELECT * FROM main.{name}").fetchall()  # noqa: S608 # ours
        for name in (TABLES if temporary else missing)
        if name in schema
    }
    for name in () if temporary else missing:
        connection.execute(f"DROP TABLE {name}")
    make_tables(connection, temporary=temporary)
    changes = Changes(lambda sql, values: connection.execute(sql, values).fetchall(), 0.0)
    for name, raws in found.items():
        for raw in raws:
            changes.put_widened(TABLES[name], raw, missing.get(name, 0))
    with suppress(StateCorrupt):  # totals that were changed stay so, for `check` to tell
        changes.finish()


def convert(connection: sqlite3.Connection, schema: Schema, *, temporary: bool = False) -> None:
    """Makes the tables, with all rows of a store of format 1 where there is one.

    Args:
        connection: The database, in a transaction that the caller ends.
        schema: What is in it.
        temporary: Whether the tables are to be the connection's own, and the store stays as it is.

    Raises:
        StoreError: There are rows and no secret, so that nothing in them means anything.
    """
    make_tables(connection, temporary=temporary)
    found = sorted(_rows(connection, schema), key=itemgetter(0))  # a damaged row has no value
    if found:
        about = dict(found).get(ABOUT_KEY)
        if about is None:
            raise StoreError(LOST)
        changes = Changes(
            lambda sql, values: connection.execute(sql, values).fetchall(),
            0.0,
            lists_states=not temporary,
        )
        try:
            changes.note("about", _about(about))
        except (StateCorrupt, ValueError) as error:
            raise StoreError(
                f"The store's secret was changed: restore it from a copy. {error}"
            ) from error
        if not temporary:
            connection.execute("DELETE FROM Cache WHERE raw = 1 AND typeof(key) = 'blob'")
        _Move(changes).all(found)
        changes.finish()
    if temporary:
        return
    if "Anchor" in schema:
        connection.execute("DROP TABLE Anchor")  # and so a program of before goes no further
    if "Cache" in schema and "Settings" in schema:
        for name, number in (("count", "COUNT(*)"), ("size", "COALESCE(SUM(size), 0)")):
            connection.execute(
                f"UPDATE Settings SET value = (SELECT {number} FROM Cache) WHERE key = ?",  # noqa: S608
                (name,),
            )


def is_old(schema: Schema) -> bool:
    """Says whether a database has the tables of an earlier release, or none yet."""
    return "meta" not in schema or bool(missing_columns(schema))


def _rows(connection: sqlite3.Connection, schema: Schema) -> Iterator[tuple[bytes, Any]]:
    """Yields all rows of ours: those that prove that sessions exist may lie in either table."""
    if "Cache" in schema:
        yield from connection.execute(
            "SELECT key, CASE WHEN mode = 1 AND filename IS NULL AND typeof(value) = 'blob'"
            " THEN value END FROM main.Cache WHERE raw = 1 AND typeof(key) = 'blob'"
        )
    if FORMAT_1.keys() & schema.keys() and "Anchor" in schema:
        yield from connection.execute(
            "SELECT key, value FROM main.Anchor"
            " WHERE typeof(key) = 'blob' AND substr(key, 1, 1) = ?",
            (_WITNESS,),
        )


def _about(data: bytes) -> bytes:
    """Returns what is noted of the store, in the present format."""
    _, body = _unpack(ABOUT_KEY, data)
    if body.count("format") != 1:
        raise StoreError(
            f"The store has format version {body.count('format')}; this release reads 1 and "
            f"{FORMAT}: upgrade langchain-rwkv-state, or use another directory."
        )
    values = {
        "format": FORMAT,
        "key": body.text("key"),
        "codec": body.maybe_text("codec") or "exact",
    }
    return json.dumps(values).encode()


def _unpack(key: bytes, data: bytes | None) -> tuple[float, Body]:
    """Reads a row: when it expires, and the rest.

    Raises:
        StateCorrupt: It was changed.
    """
    covered = (data or b"")[len(_VERSION) + _CHECKSUM_BYTES :]
    digest = hashlib.blake2b(digest_size=_CHECKSUM_BYTES, person=b"rwkv-state-row")
    digest.update(b"".join((len(key).to_bytes(8, "big"), key, covered)))
    if data is None or data[:18] != _VERSION + digest.digest() or len(data) < _HEAD_BYTES:
        raise StateCorrupt(f"The row {key[:80]!r} was changed.")
    try:
        values = json.loads(data[_HEAD_BYTES:])
    except (ValueError, RecursionError) as error:
        raise StateCorrupt(f"The row {key[:80]!r} holds no JSON text.") from error
    return _EXPIRY.unpack_from(covered)[0], Body(f"row {key[:80]!r}", values)


class _Move:
    """Moves rows into the tables."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._born: dict[bytes, float] = {}

    def all(self, found: list[tuple[bytes, Any]]) -> None:
        """Moves all rows, in the order of their keys."""
        for key, data in found:
            try:
                self._one(key, data)
            except (StateCorrupt, ValueError, struct.error, IndexError):
                with suppress(ValueError, struct.error, sqlite3.Error):
                    self._damaged(key)
        for name, created in self._born.items():
            with suppress(ValueError):  # a damaged name is nobody's
                self._changes.put_birth(name_text(name), created)

    def _one(self, key: bytes, data: bytes | None) -> None:
        family, rest = key[:1], key[1:]
        if family == _WITNESS:
            self._born.setdefault(rest, 0.0)
        move = {
            b"!": self._clock,
            b"s": self._session,
            b"t": self._state,
            b"h": self._hold,
            b"l": self._turn,
            b"q": self._place,
            b"x": self._tombstone,
        }.get(family)
        if move is not None:  # the others were indices
            expires, body = _unpack(key, data)
            move(rest, expires, body)

    def _clock(self, key: bytes, _: float, body: Body) -> None:
        if b"!" + key == _CLOCK_KEY:
            values = {"wall": body.seconds("wall"), "offset": body.seconds("offset")}
            self._changes.note("clock", json.dumps(values).encode())

    def _session(self, key: bytes, expires: float, body: Body) -> None:
        row = SessionRow(
            name=name_text(key),
            head=body.maybe_ref("head"),
            n_tokens=body.count("n_tokens"),
            turns=body.count("turns"),
            created=body.seconds("created"),
            updated=body.seconds("updated"),
            expires=expires,
            ttl=body.seconds("ttl"),
            sliding=body.flag("sliding"),
            kept=body.refs("kept"),
            unread=body.texts("unread"),
        )
        self._changes.put(row)
        self._born[key] = row.created

    def _state(self, key: bytes, _: float, body: Body) -> None:
        self._changes.put_state(
            StateRow(
                ref=ref_text(key),
                blob=body.text("blob"),
                nbytes=body.count("nbytes"),
                n_tokens=body.count("n_tokens"),
                parent=body.maybe_ref("parent"),
                created=body.seconds("created"),
                holders=body.count("holders"),
                origin=_origin(body),
            )
        )

    def _hold(self, key: bytes, expires: float, body: Body) -> None:
        owner = name_text(key[33:])
        row = HoldRow(
            ref_text(key[:32]),
            _KINDS.get(key[32:33], Holder.PUT),
            owner,
            expires,
            body.seconds("ttl"),
        )
        self._changes.put(row)

    def _turn(self, key: bytes, _: float, body: Body) -> None:
        session, seq = _numbered(key)
        turn = LogEntry(
            ref=body.ref("ref"),
            parent=body.maybe_ref("parent"),
            n_tokens=body.count("n_tokens"),
            created_seconds=body.seconds("created"),
            said=body.texts("said") if body.has("said") else (),
            origin=_origin(body),
            seq=seq,
        )
        self._changes.put_columns(LOG, pack_turn(name_text(session), turn))

    def _place(self, key: bytes, expires: float, body: Body) -> None:
        session, seq = _numbered(key)
        token, process = body.text("token"), body.count("process")
        row = QueueRow(name_text(session), seq, token, process, body.seconds("since"), expires)
        self._changes.put(row)

    def _tombstone(self, key: bytes, expires: float, _: Body) -> None:
        if math.isfinite(expires):
            self._changes.put_columns(TOMBSTONES, TOMBSTONES.pack((ref_text(key), expires)))

    def _damaged(self, key: bytes) -> None:
        """Leaves a damaged row in the place of one, where its key is all that is needed."""
        if key[:1] == b"l":
            session, seq = _numbered(key[1:])
            self._changes.put_damaged(LOG, (session, seq))
        elif key[:1] == b"h" and key[33:34] in _KINDS:
            kind = int(_KINDS[key[33:34]])
            self._changes.put_damaged(HoldRow.TABLE, (key[1:33], kind, key[34:]))


def _numbered(key: bytes) -> tuple[bytes, int]:
    """Returns the session and the number that a key ends with."""
    return key[: -_SEQ.size - 1], int(_SEQ.unpack(key[-_SEQ.size :])[0])


def _origin(body: Body) -> Origin | None:
    return Origin.from_body("row", body.value("origin")) if body.has("origin") else None
