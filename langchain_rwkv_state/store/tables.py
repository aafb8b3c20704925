"""Which sessions, states and holds there are: reading the tables, and changing them in step.

A fixed time, and no idea of locks, files or memory. A state's row is never deleted on its own:
states go by themselves, when the last holder lets go and both the rows of `holds` and the state's
own count say so.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import reduce
from hashlib import blake2b
from operator import xor
from typing import Any, NamedTuple, TypeVar

from langchain_rwkv_state.errors import StateCorrupt, StateExpired, StateNotFound
from langchain_rwkv_state.store import rows
from langchain_rwkv_state.store.records import LogEntry, Origin, merged
from langchain_rwkv_state.store.rows import (
    LOG,
    META,
    TOMBSTONES,
    Holder,
    HoldRow,
    QueueRow,
    Raw,
    Row,
    SessionRow,
    StateRow,
    Table,
    name_bytes,
    ref_bytes,
)

RowT = TypeVar("RowT", bound=Row)

TOMBSTONE_SECONDS = 7 * 86400.0
LOG_ENTRIES = 100
RENEW_AFTER = 0.1
"""Of a time to live: a read renews no more often than that."""
_PAGE = 32  # holds that are read at a time, as `_HOLDS` says
_TOTALS = "totals"

Sql = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]
"""Runs a statement and returns what it finds."""
_HoldKey = tuple[bytes, int, bytes]

_SESSION = (
    "SELECT s.*, l.seq, l.ref FROM (SELECT 1) LEFT JOIN sessions s ON s.name = ?1"
    " LEFT JOIN log l ON l.session = ?1"
    " AND l.seq = (SELECT MAX(seq) FROM log WHERE session = ?1)"
)
_PUT: dict[str, str] = {
    table.name: (
        f"INSERT OR REPLACE INTO {table.name} VALUES"  # noqa: S608 # names of ours
        f" ({', '.join('?' * (len(table.columns) + 1))})"
    )
    for table in rows.TABLES.values()
}
_WHERE: dict[str, str] = {
    table.name: " AND ".join(f"{name} = ?" for name in list(table.columns)[: table.keys])
    for table in rows.TABLES.values()
}
_COLUMNS = (
    "key, raw, store_time, expire_time, access_time, access_count, tag, size, mode, filename, value"
)
LIST = f"INSERT OR REPLACE INTO Cache({_COLUMNS}) VALUES ({', '.join('?' * 11)})"  # noqa: S608
"""Enters a state in diskcache's own table, with what `listed` gives."""
_UNLIST = "DELETE FROM Cache WHERE key = ?1 AND raw = 1"
_RELIST = (
    f"UPDATE OR REPLACE Cache SET ({_COLUMNS}) = "  # noqa: S608 # constants
    f"({', '.join(f'?{number}' for number in range(2, 13))})"
    " WHERE key = ?1 AND raw = 1 RETURNING 1"
)
_END_HOLD = "DELETE FROM holds WHERE ref = ?1 AND kind = ?2 AND owner = ?3"
_LET_GO = (  # is it held so, does anything else hold it, its row
    "SELECT EXISTS (SELECT 1 FROM holds WHERE ref = ?1 AND kind = ?2 AND owner = ?3),"
    " EXISTS (SELECT 1 FROM holds WHERE ref = ?1 AND (kind, owner) != (?2, ?3)),"
    " s.* FROM (SELECT 1) LEFT JOIN states s ON s.ref = ?1"
)
_RETURNS = sqlite3.sqlite_version_info >= (3, 35)
_FILE_MODE = 2  # diskcache's number for a value that is a file of bytes


class Totals(NamedTuple):
    """What all rows of a store come to.

    Attributes:
        nbytes: Bytes of rows and of states' files.
        sessions: How many sessions there are.
        names: The digests of their names, all xored.
    """

    nbytes: int = 0
    sessions: int = 0
    names: int = 0


def name_digest(name: bytes) -> int:
    """Returns a session's share of `Totals.names`."""
    return int.from_bytes(blake2b(name, digest_size=6).digest(), "big")


def listed(row: StateRow) -> tuple[Any, ...]:
    """Returns a state's row of diskcache's own table, from its key on: a file of bytes."""
    name, at = f"{row.blob[:2]}/{row.blob}.safetensors", row.created
    return row.ref, 1, at, None, at, 0, None, row.nbytes, _FILE_MODE, name, None


class Tables:
    """What the tables say at one time.

    Args:
        sql: Runs a statement.
        now: The store's time.
    """

    def __init__(self, sql: Sql, now: float) -> None:
        self._sql = sql
        self.now = now

    # -- sessions --------------------------------------------------------------------------------

    def stored_session(self, name: str) -> SessionRow | None:
        """Returns a session, expired or not, once its log says the same of its head.

        Raises:
            StateCorrupt: Its row was changed, is an old one, or is gone although nobody deleted the
                session.
        """
        (found,) = self._sql(_SESSION, (name_bytes(name),))
        *raw, seq, head = found
        if raw[0] is None and seq is None:
            return None
        if raw[0] is not None:
            row = SessionRow.unpack(raw)
            if row.turns == seq and raw[1] == head:
                return row
        raise lost_session(name)

    def head(self, name: str) -> tuple[str | None, float, float, bool] | None:
        """Returns a living session's head, end, time to live and whether that slides; no more.

        Raises:
            StateCorrupt: As `stored_session`.
        """
        (found,) = self._sql(_SESSION, (name_bytes(name),))
        if found[0] is None and found[-2] is None:
            return None
        table = SessionRow.TABLE
        if found[0] is not None and found[3] == found[-2] and found[1] == found[-1]:
            table.require_sound(found[:-2])
            head, expires, ttl, sliding = table.read(found, (1, 6, 7, 8))
            return None if expires <= self.now else (head, expires, ttl, sliding)
        self.stored_session(name)  # says what is wrong
        return self.head(name)  # it was changed between the looks

    def session(self, name: str) -> SessionRow | None:
        """Returns a living session.

        Raises:
            StateCorrupt: As `stored_session`.
        """
        row = self.stored_session(name)
        return None if row is None or row.expires <= self.now else row

    def log(self, name: str) -> list[LogEntry]:
        """Returns a session's log, newest first.

        Raises:
            StateCorrupt: One of its rows was changed.
        """
        found = self._sql(
            "SELECT * FROM log WHERE session = ? AND seq > 0 ORDER BY seq DESC", (name_bytes(name),)
        )
        return [rows.unpack_turn(raw) for raw in found]

    def turn(self, name: str, seq: int) -> LogEntry | None:
        """Returns one turn of a session.

        Raises:
            StateCorrupt: Its row was changed.
        """
        if seq < 1:
            return None
        found = self._sql(
            "SELECT * FROM log WHERE session = ? AND seq = ?", (name_bytes(name), seq)
        )
        return rows.unpack_turn(found[0]) if found else None

    def queue(self, name: str) -> list[QueueRow]:
        """Returns the places in the queue of a session's turns, first ones first.

        A row that was changed is nobody's place: it is left out here, and `check` deletes it.
        """
        return list(
            _readable(QueueRow, self._sql(_QUEUE + " WHERE session = ?", (name_bytes(name),)))
        )

    def queues(self) -> list[QueueRow]:
        """Returns the places in all queues."""
        return list(_readable(QueueRow, self._sql(_QUEUE, ())))

    def parents(self, ref: str) -> list[str]:
        """Returns the states before `ref` in the logs of the sessions that hold it."""
        found: list[str] = []
        for hold in self.holders(ref):
            if hold is not None and hold.kind == Holder.SESSION:
                log = self.log(hold.owner)
                at = next((turn.seq for turn in log if turn.ref == ref), 0)
                found += [turn.ref for turn in log if turn.seq < at]
        return found

    def path(self, ref: str) -> list[tuple[str, Origin]]:
        """Returns how a state was read, oldest step first; empty where no token ids are kept."""
        for session in self._tellers(ref):
            name = rows.readable_name(session)
            if name is None:
                continue  # a changed row, which `check` tells of
            log = self.log(name)
            steps = _steps(ref, {turn.ref: turn.origin for turn in reversed(log)})
            if steps:
                return steps
        row = self.stored_state(ref)
        return [] if row is None or row.origin is None else [(ref, row.origin)]

    def _tellers(self, ref: str) -> list[Any]:
        """Returns the names, as bytes, of the sessions whose logs tell how a state was read."""
        found = self._sql(
            "SELECT DISTINCT session FROM log WHERE ref = ? AND origin IS NOT NULL",
            (ref_bytes(ref),),
        )
        return [session for (session,) in found]

    def sessions_with(self, refs: Iterable[str]) -> set[str]:
        """Returns the sessions, expired ones too, that hold one of these states or log it."""
        found: set[tuple[Any, ...]] = set()
        for marks, some in _chunks(refs):
            logged = f"SELECT session FROM log WHERE ref IN ({marks}) OR parent IN ({marks})"  # noqa: S608
            held = f"SELECT owner FROM holds WHERE kind = 0 AND ref IN ({marks})"  # noqa: S608
            found |= {*self._sql(logged, some), *self._sql(held, some)}
        return {name for (raw,) in found if (name := rows.readable_name(raw)) is not None}

    def states_after(self, refs: Iterable[str]) -> set[str]:
        """Returns the states that were read from one of these."""
        return {
            rows.ref_text(ref)
            for marks, some in _chunks(refs)
            for (ref,) in self._sql(f"SELECT ref FROM states WHERE parent IN ({marks})", some)  # noqa: S608
        }

    def origins(self) -> Iterator[StateRow]:
        """Yields the states whose token ids are kept; a row that was changed is left out."""
        return _readable(StateRow, self._sql("SELECT * FROM states WHERE origin IS NOT NULL", ()))

    # -- states ----------------------------------------------------------------------------------

    def stored_state(self, ref: str) -> StateRow | None:
        """Returns a state's row, expired or not.

        Raises:
            StateCorrupt: The row was changed.
        """
        found = self._sql("SELECT * FROM states WHERE ref = ?", (ref_bytes(ref),))
        return StateRow.unpack(found[0]) if found else None

    def holders(self, ref: str, kind: Holder | None = None) -> Iterator[HoldRow | None]:
        """Yields what needs a state; ``None`` for a row that cannot be read, and so may need it.

        Thousands of sessions may begin with one state, so the rows are read in pages, and who
        needs only the first reads only the first.

        Args:
            ref: The state.
            kind: Only holders of this kind.
        """
        digest = ref_bytes(ref)
        found = self._sql(_HOLDS, (digest, -1 if kind is None else int(kind), b""))
        while found:
            for raw in found:
                if kind is not None and raw[1] != kind:
                    return
                try:
                    yield HoldRow.unpack(raw)
                except StateCorrupt:
                    yield None
            if len(found) < _PAGE:
                return
            _, last, owner, *_ = found[-1]
            found = self._sql(_HOLDS_AFTER, (digest, last, owner))

    def kept(self, owner: str) -> list[HoldRow]:
        """Returns the holds of an owner that have not run out, those of older states first.

        Raises:
            StateCorrupt: One of the rows was changed.
        """
        found = map(HoldRow.unpack, self._sql(_KEPT, (name_bytes(owner),)))
        return [hold for hold in found if hold.expires > self.now]

    def expired_at(self, ref: str) -> float | None:
        """Returns when the last holder of a state let go, ``None`` where one still holds it."""
        last: float | None = None
        for hold in self.holders(ref):
            end = self._end(hold)
            if end > self.now:
                return None
            last = end if last is None else max(last, end)
        return last

    def state(self, ref: str) -> StateRow:
        """Returns a living state's row.

        Raises:
            StateExpired: Its time ran out.
            StateNotFound: It is not here.
            StateCorrupt: The row was changed, or lost though something holds the state.
        """
        row = self.state_to_hold(ref)
        expired = self.expired_at(ref)
        if expired is not None:
            raise self._gone(ref, expired)
        return row

    def state_to_hold(self, ref: str) -> StateRow:
        """Returns a stored state's row, expired or not.

        Raises:
            StateExpired, StateNotFound, StateCorrupt: As `state`, where there is no row.
        """
        row = self.stored_state(ref)
        if row is None:
            raise self.missing(ref)
        return row

    def lives(self, ref: str) -> bool:
        """Says whether a state is stored and has not expired."""
        return self._has(StateRow.TABLE, (ref_bytes(ref),)) and self.expired_at(ref) is None

    def missing(self, ref: str) -> StateExpired | StateNotFound | StateCorrupt:
        """Returns the error that says why a state has no row."""
        found = self._tombstone(ref)
        if found is not None:
            return self._gone(ref, TOMBSTONES.unpack(found)[1] - TOMBSTONE_SECONDS)
        if any(True for _ in self.holders(ref)):
            return StateCorrupt(f"The row of the state {ref} is lost: run check() on the store.")
        return StateNotFound(
            f"No state {ref} is stored here. It belongs to another store, was deleted, has left "
            "its session's history, or was never committed."
        )

    def _tombstone(self, ref: str) -> Raw | None:
        """Returns the row that says when a state expired."""
        found = self._sql("SELECT * FROM tombstones WHERE ref = ?", (ref_bytes(ref),))
        return found[0] if found else None

    def _has(self, table: Table, key: Sequence[Any]) -> bool:
        """Says whether a table has a row of a key, whole or damaged."""
        where = _WHERE[table.name]
        return bool(self._sql(f"SELECT 1 FROM {table.name} WHERE {where}", key))  # noqa: S608

    def _gone(self, ref: str, expired: float) -> StateExpired | StateNotFound:
        ago = self.now - expired
        if ago < TOMBSTONE_SECONDS:
            return StateExpired(
                f"The state {ref} expired {ago:.0f} seconds ago: read the conversation again, and "
                "give it a longer ttl."
            )
        return StateNotFound(f"No state {ref} is stored here any more.")

    def _end(self, hold: HoldRow | None) -> float:
        if hold is None:
            return math.inf
        if hold.kind != Holder.SESSION:
            return hold.expires
        try:
            session = self.stored_session(hold.owner)
        except StateCorrupt:
            return math.inf
        return -math.inf if session is None else session.expires

    def rows_of(self, table: Table) -> list[tuple[Any, ...]]:
        """Returns all rows of a table as they stand."""
        return self._sql(f"SELECT * FROM {table.name}", ())  # noqa: S608 # a name of ours

    def count(self, table: str) -> int:
        """Returns how many rows a table has."""
        ((number,),) = self._sql(f"SELECT COUNT(*) FROM {table}", ())  # noqa: S608 # a name of ours
        return int(number)

    def any_row(self, table: str) -> bool:
        """Says whether a table holds anything."""
        return bool(self._sql(f"SELECT 1 FROM {table} LIMIT 1", ()))  # noqa: S608 # a name of ours

    # -- the store as a whole --------------------------------------------------------------------

    def meta(self, key: str) -> bytes | None:
        """Returns what is noted of the store as a whole, ``None`` for nothing.

        Raises:
            StateCorrupt: It was changed.
        """
        found = self._sql("SELECT * FROM meta WHERE key = ?", (key.encode(),))
        return bytes(META.unpack(found[0])[1]) if found else None

    def totals(self) -> Totals:
        """Returns what all rows come to.

        Raises:
            StateCorrupt: What was noted of that is lost or was changed.
        """
        try:
            found = json.loads(self.meta(_TOTALS) or b"[0, 0, 0]")
            return Totals(*map(int, found))
        except (ValueError, TypeError, StateCorrupt) as error:
            raise StateCorrupt(
                "What all rows come to was noted, and the note was changed, so nothing can be "
                "written: check(fix=True) on the store counts them again."
            ) from error

    def session_names(self, prefix: str) -> list[str]:
        """Returns the names of the living sessions, sorted, and of those whose rows are damaged.

        They are held against the totals, or those of a prefix against the logs, so that none is
        left out as if there were no such session. To be called within one snapshot.

        Raises:
            StateCorrupt: Sessions are missing whose names nothing tells any more.
        """
        start = name_bytes(prefix)
        end = name_end(start)
        if end is None:
            found = self._sql("SELECT * FROM sessions ORDER BY name", ())
        else:
            found = self._sql(_SESSIONS_FROM, (start, end))
        living: list[bytes] = []
        names: list[bytes] = []
        checksum, now = rows.checksum, self.now
        for raw in found:
            name, expires = raw[0], raw[6]
            if (
                checksum("sessions", raw[:-1]) != raw[-1]
                or type(name) is not bytes
                or type(expires) not in _ENDS
            ):
                break
            names.append(name)
            if expires is None or expires > now:
                living.append(name)
        if len(names) < len(found) or not self._are_all(names, start, end):
            living = self._names_by_log(start)
        return [name.decode("utf-8", "surrogatepass") for name in living]

    def _are_all(self, names: list[bytes], start: bytes, end: bytes | None) -> bool:
        """Says whether names are all that there are: by the totals, or by the logs of a range."""
        if end is None:
            return _come_to(names) == self.totals()[1:]
        born = self._sql(
            "SELECT session FROM log WHERE session >= ? AND session < ? AND seq = 0"
            " ORDER BY session",
            (start, end),
        )
        return [name for (name,) in born] == names

    def _names_by_log(self, start: bytes) -> list[bytes]:
        """Returns the names in the slow way, by what sessions are born with."""
        totals = self.totals()
        born = self._sql("SELECT * FROM log WHERE seq = 0 ORDER BY session", ())
        sound = [
            raw[0]
            for raw in born
            if rows.checksum("log", raw[:-1]) == raw[-1] and type(raw[0]) is bytes
        ]
        if _come_to(sound) != totals[1:]:
            raise StateCorrupt(
                f"The store counts {totals.sessions} sessions, and finds {len(sound)} or others: "
                "restore it from a copy, or see what check() says and check(fix=True) mends."
            )
        living = []
        for name in sound:
            if name.startswith(start):
                with suppress(StateCorrupt):
                    if self.session(rows.name_text(name)) is None:
                        continue
                living.append(name)
        return living


def lost_session(name: str) -> StateCorrupt:
    """Returns the error that says that a session's row is lost."""
    return StateCorrupt(
        f"The row of the session {name!r} is lost or was changed, though nobody deleted the "
        "session: restore the store from a copy, or let the session start anew with "
        f"store.delete_session({name!r})."
    )


_CHUNK = 400  # values; a statement has them up to twice, and may hold 999


def _chunks(refs: Iterable[str]) -> Iterator[tuple[str, list[bytes]]]:
    """Yields digests of references, and as many numbered question marks."""
    digests = list(map(ref_bytes, refs))
    for start in range(0, len(digests), _CHUNK):
        some = digests[start : start + _CHUNK]
        yield ", ".join(f"?{number + 1}" for number in range(len(some))), some


_SESSIONS_FROM = "SELECT * FROM sessions WHERE name >= ? AND name < ? ORDER BY name"
_ENDS = frozenset((float, type(None)))
_QUEUE = "SELECT * FROM queue"
_HOLDS = (
    "SELECT * FROM holds WHERE ref = ? AND (kind, owner) >= (?, ?) ORDER BY kind, owner LIMIT 32"
)
_HOLDS_AFTER = _HOLDS.replace(">=", ">")
_WORN = (
    "SELECT * FROM holds WHERE kind = 1 AND owner = ?1 AND expires > ?2"
    " AND expires - ?2 <= ?3 * ttl"
)
_KEPT = (
    "SELECT h.* FROM holds h LEFT JOIN states s ON s.ref = h.ref"
    " WHERE h.kind = 1 AND h.owner = ? ORDER BY s.created, s.n_tokens, h.ref"
)


def name_end(start: bytes) -> bytes | None:
    """Returns the first name behind all that begin so; ``None`` where there is none."""
    stripped = start.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


def _come_to(names: Sequence[bytes]) -> tuple[int, int]:
    """Returns what names come to, as `Totals` has it."""
    return len(names), reduce(xor, map(name_digest, names), 0)


def _readable(kind: type[RowT], found: Iterable[Raw]) -> Iterator[RowT]:
    for raw in found:
        with suppress(StateCorrupt):
            yield kind.unpack(raw)


def _steps(ref: str, origins: Mapping[str, Origin | None]) -> list[tuple[str, Origin]]:
    """Follows origins back from a state as far as they lead."""
    steps: list[tuple[str, Origin]] = []
    at: str | None = ref
    while at is not None and len(steps) <= len(origins):
        origin = origins.get(at)
        if origin is None:
            break
        steps.insert(0, (at, origin))
        at = origin.base
    return steps


class Changes(Tables):
    """The tables within one transaction.

    Args:
        sql: Runs a statement in it.
        now: The store's time.
        blob_exists: Says whether a state's file is there.
        lists_states: Whether each state also gets a row of diskcache's own table.

    Attributes:
        limit: The most bytes that the store may come to, for whoever counts them only as it writes.
        dropped: Files to delete once the transaction has happened.
        states_removed: How many states went so far.
    """

    def __init__(
        self,
        sql: Sql,
        now: float,
        *,
        blob_exists: Callable[[str], bool] = lambda _: True,
        lists_states: bool = False,
    ) -> None:
        super().__init__(sql, now)
        self.blob_exists = blob_exists
        self._lists_states = lists_states
        self._nbytes = self._sessions = self._names = 0
        self._before: Totals | None = None
        self._known: dict[str, StateRow | None] = {}
        self._added: set[str] = set()
        self._listed: dict[str, StateRow] = {}
        self._unlisted: list[str] = []
        self.limit: int | None = None
        self.dropped: list[str] = []
        self.states_removed = 0

    # -- rows ------------------------------------------------------------------------------------

    def put(self, row: Row, old: Row | None = None) -> None:
        """Writes a row in the place of `old`."""
        self.put_columns(row.TABLE, row.pack(), 0 if old is None else old.size)

    def put_columns(self, table: Table, columns: tuple[Any, ...], old_bytes: int = 0) -> None:
        """Writes a row's columns in the place of some that count for `old_bytes`."""
        self._sql(_PUT[table.name], (*columns, rows.checksum(table.name, columns)))
        self._nbytes += rows.size(columns) - old_bytes

    def put_widened(self, table: Table, raw: Raw, missing: int) -> None:
        """Writes a row of an earlier release with the columns that came since, as NULL.

        A row that was changed keeps a checksum that does not fit.
        """
        columns = (*raw[:-1], *[None] * missing)
        sound = rows.checksum(table.name, raw[:-1]) == raw[-1]
        total = rows.checksum(table.name, columns) if sound else raw[-1]
        self._sql(_PUT[table.name], (*columns, total))
        self._nbytes += rows.size(columns) - rows.size(raw[:-1])

    def put_damaged(self, table: Table, key: Sequence[Any]) -> None:
        """Writes a row that no checksum fits, in the place of one that was found damaged."""
        columns = (*key, *[None] * (len(table.columns) - len(key)))
        self._sql(_PUT[table.name], (*columns, b""))
        self._nbytes += rows.size(columns)

    def delete_key(self, table: Table, key: Sequence[Any]) -> bool:
        """Deletes the row of a key, whole or damaged; says whether there was one."""
        return bool(self._delete_rows(table, key))

    def _delete_rows(self, table: Table, key: Sequence[Any]) -> list[Raw]:
        """Deletes the rows whose keys begin so; returns them as they stood."""
        where = " AND ".join(f"{name} = ?" for name in list(table.columns)[: len(key)])
        return self._delete(table, where, key)

    def _delete_turns(self, name: str, first: int, end: int | None = None) -> list[Raw]:
        """Deletes log rows from the number `first` to before `end`; returns them as they stood."""
        if end is None:
            return self._delete(LOG, "session = ? AND seq >= ?", (name_bytes(name), first))
        found = "session = ? AND seq >= ? AND seq < ?"
        return self._delete(LOG, found, (name_bytes(name), first, end))

    def _delete(self, table: Table, where: str, values: Sequence[Any]) -> list[Raw]:
        """Deletes rows; returns them as they stood."""
        if table is StateRow.TABLE:
            self._known.clear()
        delete = f"DELETE FROM {table.name} WHERE {where}"  # noqa: S608 # names of ours
        if _RETURNS:
            found = self._sql(delete + " RETURNING *", values)
        else:
            found = self._sql(f"SELECT * FROM {table.name} WHERE {where}", values)  # noqa: S608
            self._sql(delete, values)
        self._nbytes -= sum(rows.size(raw[:-1]) for raw in found)
        return list(found)

    def note(self, key: str, value: bytes) -> None:
        """Notes something of the store as a whole."""
        columns = META.pack((key, value))
        self._sql(_PUT["meta"], (*columns, rows.checksum("meta", columns)))

    def totals(self) -> Totals:
        """Returns what all rows come to, with what has changed.

        Raises:
            StateCorrupt: As `Tables.totals`.
        """
        if self._before is None:
            self._before = super().totals()
        nbytes, sessions, names = self._before
        return Totals(nbytes + self._nbytes, sessions + self._sessions, names ^ self._names)

    def finish(self) -> None:
        """Notes what is still to be noted, and the totals where they changed: the last step.

        Where they did not, they are not even read: a store whose totals are damaged has to open,
        or nothing could mend it.
        """
        for ref in list(self._added):
            self._write_state(ref)
        self._list_states()
        if self._nbytes or self._sessions or self._names:
            self.set_totals(self.totals())

    def forget_note(self, key: str) -> None:
        """Deletes what was noted of the store as a whole."""
        self._sql("DELETE FROM meta WHERE key = ?", (key.encode(),))

    def set_totals(self, totals: Totals) -> None:
        """Notes the totals; what changed so far is in them."""
        self._nbytes = self._sessions = self._names = 0
        self._before = totals
        self.note(_TOTALS, json.dumps(totals).encode())

    # -- holds -----------------------------------------------------------------------------------

    def stored_state(self, ref: str) -> StateRow | None:
        """See `Tables.stored_state`; a row is read once."""
        if ref not in self._known:
            self._known[ref] = super().stored_state(ref)
        return self._known[ref]

    def put_state(self, row: StateRow, old: StateRow | None = None) -> None:
        """Writes a state's row."""
        if row.ref in self._added:
            self._added.discard(row.ref)
            old = None
        self._known[row.ref] = row
        self.put(row, old)
        if old is None or (old.blob, old.nbytes) != (row.blob, row.nbytes):
            self._nbytes += row.nbytes - (0 if old is None else old.nbytes)
            if old is not None:
                self._unlisted.append(old.ref)
            self._listed[row.ref] = row

    def unlist_state(self, digest: object) -> None:
        """Takes a state out of diskcache's own table."""
        if (
            isinstance(digest, bytes)
            and self._listed.pop(ref := rows.ref_text(digest), None) is None
        ):
            self._unlisted.append(ref)

    def _list_states(self) -> None:
        """Brings diskcache's own table up to date, where there is one.

        Most commits add a state and let one go. The old one's row becomes the new one's: that
        touches half as many pages as a row that is made and one that is deleted.
        """
        gone = list(dict.fromkeys(self._unlisted))
        for row in self._listed.values() if self._lists_states else ():
            old = row.ref if row.ref in gone else gone[0] if gone else None
            values, done = listed(row), False
            if old is not None:
                gone.remove(old)
                if _RETURNS:
                    done = bool(self._sql(_RELIST, (old, *values)))
                else:
                    self._sql(_UNLIST, (old,))
            if not done:
                self._sql(LIST, values)
        for ref in gone if self._lists_states else ():
            self._sql(_UNLIST, (ref,))
        self._listed, self._unlisted = {}, []

    def add_state(self, row: StateRow) -> None:
        """Adds a state whose file is written; its row is written with the first hold."""
        self._known[row.ref] = row
        self._added.add(row.ref)
        key = (ref_bytes(row.ref),)
        if self._has(TOMBSTONES, key):
            self.delete_key(TOMBSTONES, key)

    def _write_state(self, ref: str) -> None:
        row = self.stored_state(ref)
        if row is not None:
            self.put_state(row)

    def remove_state(self, row: StateRow, *, keep_file: bool = False) -> None:
        """Removes a state that nothing holds any more."""
        self._known[row.ref] = None
        if row.ref in self._added:
            self._added.discard(row.ref)
        else:
            self._forget_state(row.ref)
            self._nbytes -= row.nbytes + row.size
            self.unlist_state(ref_bytes(row.ref))
        if not keep_file:
            self.dropped.append(row.blob)
        self.states_removed += 1

    def _forget_state(self, ref: str) -> None:
        """Deletes a state's row, unlooked at."""
        self._sql("DELETE FROM states WHERE ref = ?", (ref_bytes(ref),))

    def erase_state(self, ref: str) -> list[HoldRow]:
        """Removes a state whatever holds it, with its tombstone; returns what held it."""
        holds = [hold for hold in self.holders(ref) if hold is not None]
        for hold in holds:
            self.let_go(ref, hold.kind, hold.owner)
        row = self.stored_state(ref)
        if row is not None:  # it was counted as held more often, or a hold was changed
            self._delete_rows(HoldRow.TABLE, (ref_bytes(ref),))
            self.remove_state(row)
        self.delete_key(TOMBSTONES, (ref_bytes(ref),))
        return holds

    def stored_hold(self, ref: str, kind: Holder, owner: str) -> HoldRow | None:
        """Returns a hold.

        Raises:
            StateCorrupt: Its row was changed.
        """
        found = self._raw_hold((ref_bytes(ref), int(kind), name_bytes(owner)))
        return HoldRow.unpack(found) if found else None

    def _raw_hold(self, key: _HoldKey) -> Raw | None:
        """Returns a hold's row as it stands."""
        where = _WHERE["holds"]
        found = self._sql(f"SELECT * FROM holds WHERE {where}", key)  # noqa: S608 # names of ours
        return found[0] if found else None

    def hold(self, ref: str, kind: Holder, owner: str, ttl: float = math.inf) -> None:
        """Makes something hold a state from now on, or renews its hold."""
        old = None if ref in self._added else self.stored_hold(ref, kind, owner)
        if old is None:
            state = self.state_to_hold(ref)
            self.put_state(replace(state, holders=state.holders + 1), state)
        self.put(HoldRow(ref, kind, owner, self.now + ttl, ttl), old)

    def let_go(
        self, ref: str, kind: Holder, owner: str, *, expired_at: float | None = None
    ) -> bool:
        """Ends a hold; the state goes with the last one.

        Args:
            ref: The state.
            kind: What holds it.
            owner: The holder's name.
            expired_at: When the hold ran out: the state then leaves a tombstone.

        Returns:
            Whether there was such a hold.
        """
        key = (ref_bytes(ref), int(kind), name_bytes(owner))
        held, others, raw = self._hold_and_state(key)
        if not held:
            return False
        self._end_hold(key)
        self._nbytes -= rows.size((*key, None, None))
        if ref not in self._known:
            try:
                self._known[ref] = None if raw is None else StateRow.unpack(raw)
            except StateCorrupt:
                return True  # it is left alone
        state = self._known[ref]
        if state is None:
            return True
        if state.holders > 1 or others:
            self.put_state(replace(state, holders=max(0, state.holders - 1)), state)
            return True
        self.remove_state(state)
        if expired_at is not None and expired_at + TOMBSTONE_SECONDS > self.now:
            self.put_columns(TOMBSTONES, TOMBSTONES.pack((ref, expired_at + TOMBSTONE_SECONDS)))
        return True

    def _hold_and_state(self, key: _HoldKey) -> tuple[bool, bool, Raw | None]:
        """Says whether a hold is there, whether others hold its state; and that state's row."""
        ((held, others, *raw),) = self._sql(_LET_GO, key)
        return bool(held), bool(others), None if raw[0] is None else raw

    def _end_hold(self, key: _HoldKey) -> None:
        """Deletes a hold's row, unlooked at."""
        self._sql(_END_HOLD, key)

    def renew_kept(self, owner: str, left: float) -> None:
        """Lets an owner's holds start anew of whose times no more than the share `left` is left.

        A row that was changed is left for `check`.
        """
        for raw in self._worn(owner, left):
            with suppress(StateCorrupt):
                hold = HoldRow.unpack(raw)
                self.hold(hold.ref, Holder.OWNER, owner, hold.ttl)

    def release(self, owner: str) -> int:
        """Ends all holds of an owner; returns how many there were."""
        return sum(
            self.let_go(rows.ref_text(ref), Holder.OWNER, owner) for ref in self._kept_refs(owner)
        )

    def _worn(self, owner: str, left: float) -> list[Raw]:
        """Returns an owner's holds of whose times no more than a share is left."""
        return list(self._sql(_WORN, (name_bytes(owner), self.now, left)))

    def _kept_refs(self, owner: str) -> list[bytes]:
        """Returns the states that an owner keeps, as `ref_bytes` has them; expired ones, too."""
        found = self._sql(
            "SELECT ref FROM holds WHERE kind = 1 AND owner = ?", (name_bytes(owner),)
        )
        return [ref for (ref,) in found]

    # -- sessions --------------------------------------------------------------------------------

    def save_session(self, row: SessionRow, old: SessionRow | None) -> None:
        """Writes a session's row; at the first time also what proves that it exists.

        Args:
            row: The row.
            old: What stands there now, ``None`` for a session that begins.
        """
        self.put(row, old)
        if old is None:
            self.put_birth(row.name, row.created)

    def put_birth(self, name: str, created: float) -> None:
        """Writes what proves that a session exists."""
        columns = LOG.pack((name, 0, None, None, 0, created, None, ()))
        self.put_columns(LOG, columns)
        self._sessions += 1
        self._names ^= name_digest(name_bytes(name))

    def add_turn(self, session: str, turn: LogEntry) -> None:
        """Adds a turn to a session's log, which keeps its last entries."""
        self._put_turn(session, turn)
        if turn.seq <= LOG_ENTRIES:
            return
        last = turn.seq - LOG_ENTRIES
        for raw in self._delete_turns(session, last, last + 1):
            oldest = rows.unpack_turn(raw)
            successor = None if oldest.origin is None else self.turn(session, oldest.seq + 1)
            if successor is not None:
                origin = merged(oldest.ref, oldest.origin, successor.origin)
                if origin != successor.origin:
                    self._put_turn(session, replace(successor, origin=origin), successor)

    def copy_log(self, source: str, target: str, last: int) -> None:
        """Copies a session's log up to the turn `last`."""
        for turn in self.log(source):
            if turn.seq <= last:
                self._put_turn(target, turn)

    def put_turns(self, session: str, turns: Iterable[LogEntry]) -> None:
        """Writes turns to a session's log, as they are."""
        for turn in turns:
            self._put_turn(session, turn)

    def cut_log(self, name: str, last: int) -> None:
        """Forgets the turns behind `last`."""
        self._delete_turns(name, last + 1)

    def cut_log_before(self, name: str, first: int) -> None:
        """Forgets the turns before `first`."""
        self._delete_turns(name, 1, first)

    def rename_session(self, row: SessionRow, new: str) -> None:
        """Gives a session a name that is free; its old one is nobody's then."""
        for ref in row.kept:  # first: a state goes with its last holder
            self.hold(ref, Holder.SESSION, new)
        self.copy_log(row.name, new, row.turns)
        self.save_session(replace(row, name=new), None)
        self._remove(row.name, row, expired=False)

    def remove_session(self, name: str, *, expired: bool = False) -> bool:
        """Removes a session, readable or not; says whether there was anything of it.

        Args:
            name: The session.
            expired: Whether its states leave tombstones.
        """
        try:
            row = self.stored_session(name)
        except StateCorrupt:
            self._remove(name, None, expired=False)
            return True
        if row is not None:
            self._remove(name, row, expired=expired)
        return row is not None

    def _remove(self, name: str, row: SessionRow | None, *, expired: bool) -> None:
        """Removes all rows of a session; one that cannot be read holds what its log names."""
        key = name_bytes(name)
        held: set[str] = set()
        for raw in self._delete_rows(LOG, (key,)):
            if raw[1] == 0:
                self._sessions -= 1
                self._names ^= name_digest(key)
            else:
                with suppress(StateCorrupt):
                    held.add(rows.unpack_turn(raw).ref)
        for ref in sorted(held) if row is None else row.kept:
            expired_at = row.expires if row is not None and expired else None
            self.let_go(ref, Holder.SESSION, name, expired_at=expired_at)
        self.delete_key(SessionRow.TABLE, (key,))

    def _put_turn(self, session: str, turn: LogEntry, old: LogEntry | None = None) -> None:
        before = 0 if old is None else rows.size(rows.pack_turn(session, old))
        self.put_columns(LOG, rows.pack_turn(session, turn), before)

    # -- queues ----------------------------------------------------------------------------------

    def put_place(self, row: QueueRow) -> None:
        """Writes a place in a session's queue."""
        self.delete_key(QueueRow.TABLE, (name_bytes(row.session), row.seq))
        self.put(row)

    def drop_places(self, places: Iterable[QueueRow]) -> None:
        """Deletes places."""
        for row in places:
            self.delete_key(QueueRow.TABLE, (name_bytes(row.session), row.seq))

    # -- expiry ----------------------------------------------------------------------------------

    def expire_next(self, limit: int) -> tuple[int, int]:
        """Removes what has expired, oldest first; a row that was changed is left for `check`.

        Args:
            limit: How many things of each kind to remove.

        Returns:
            How many things went, and how many of them were sessions.
        """
        gone = sessions = 0
        for raw in self._due(SessionRow.TABLE, limit):
            with suppress(StateCorrupt, ValueError, TypeError):
                session = self.stored_session(rows.name_text(raw[0]))
                if session is not None and session.expires <= self.now:
                    self._remove(session.name, session, expired=True)
                    sessions += 1
        for raw in self._due(HoldRow.TABLE, limit):
            with suppress(StateCorrupt):
                hold = HoldRow.unpack(raw)
                if hold.expires <= self.now:
                    self.let_go(hold.ref, hold.kind, hold.owner, expired_at=hold.expires)
                    gone += 1
        for raw in self._due(TOMBSTONES, limit):
            with suppress(StateCorrupt):
                gone += self.delete_key(TOMBSTONES, (ref_bytes(TOMBSTONES.unpack(raw)[0]),))
        return gone + sessions, sessions

    def _due(self, table: Table, limit: int) -> list[Raw]:
        """Returns the rows of a table that have expired, oldest first; of sessions their names."""
        what = "name" if table is SessionRow.TABLE else "*"
        return list(self._sql(_DUE.format(what, table.name), (self.now, limit)))


_DUE = "SELECT {} FROM {} WHERE expires <= ? ORDER BY expires LIMIT ?"
