"""What a store's rows in Redis say at one time: `Tables`, answered by keys and not by SQL.

It reads, and decides nothing: what an answer means, `Tables` says for every store. A view outside
of a transaction reads as things are at each moment; where it would say that a state is gone, it
makes sure that all it read for that stood at one moment, since the one who renames a session in
between would make it look so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from langchain_rwkv_state.errors import StateCorrupt
from langchain_rwkv_state.store import rows
from langchain_rwkv_state.store.records import LogEntry
from langchain_rwkv_state.store.redis.indices import is_held_by
from langchain_rwkv_state.store.redis.keys import (
    ROW,
    TOP,
    decode,
    holder,
    name_of,
    number,
    numbers,
    pack_top,
    row_place,
    top_number,
)
from langchain_rwkv_state.store.redis.space import Space
from langchain_rwkv_state.store.rows import (
    LOG,
    META,
    TOMBSTONES,
    Holder,
    HoldRow,
    QueueRow,
    Raw,
    SessionRow,
    StateRow,
    Table,
    name_bytes,
    ref_bytes,
)
from langchain_rwkv_state.store.tables import Sql, Tables, Totals, lost_session, name_end

PAGE = 1000
"""Names, states or holds that are read at a time."""
TOTALS = (b"nbytes", b"sessions", b"high", b"low")
HALF_BITS = 24
"""Of the digest of names, which is kept in halves: bits have 32 in Lua."""


class RedisTables(Tables):
    """The rows of a store in Redis.

    Args:
        space: What is read.
        now: The store's time.
    """

    def __init__(self, space: Sql, now: float) -> None:
        assert isinstance(space, Space)  # noqa: S101 # a `Sql` that refuses SQL
        super().__init__(space, now)
        self._space = space
        self._keys = space.keys

    # -- sessions --------------------------------------------------------------------------------

    def stored_session(self, name: str) -> SessionRow | None:
        key = name_bytes(name)
        ((data, top),) = self._space.fields([(self._keys.session(key), (ROW, TOP))])
        if data is None and top is None:
            return None
        if data is not None and top is not None:
            raw = decode(SessionRow.TABLE, (key,), data)
            row = SessionRow.unpack(raw)
            if pack_top(row.turns, raw[1]) == top:
                return row
        raise lost_session(name)

    def head(self, name: str) -> tuple[str | None, float, float, bool] | None:
        row = self.session(name)
        return None if row is None else (row.head, row.expires, row.ttl, row.sliding)

    def log(self, name: str) -> list[LogEntry]:
        return [rows.unpack_turn(raw) for raw in self._log_rows(name)[::-1] if raw[1] != 0]

    def turn(self, name: str, seq: int) -> LogEntry | None:
        if seq < 1:
            return None
        key = name_bytes(name)
        data = self._space.field(self._keys.session(key), number(seq))
        return None if data is None else rows.unpack_turn(decode(LOG, (key, seq), data))

    def _log_rows(self, name: str) -> list[Raw]:
        """Returns a session's log rows, oldest first, with the one that it was born with."""
        key = name_bytes(name)
        return _log_of(key, self._space.hash(self._keys.session(key)))

    def queue(self, name: str) -> list[QueueRow]:
        return list(_readable_places(self._places(name_bytes(name))))

    def queues(self) -> list[QueueRow]:
        return list(_readable_places(self._all_places()))

    def _places(self, name: bytes) -> list[Raw]:
        found = self._space.hash(self._keys.queue(name))
        return [decode(QueueRow.TABLE, (name, seq), found[number(seq)]) for seq in numbers(found)]

    def _all_places(self) -> list[Raw]:
        members = self._space.members(self._keys.queues)
        names = dict.fromkeys(name_of(member) for member in members)
        return [raw for name in names for raw in self._places(name)]

    def _tellers(self, ref: str) -> list[Any]:
        members = self._space.between(self._keys.tellers(ref_bytes(ref)))
        return list(dict.fromkeys(name_of(member) for member in members))

    def sessions_with(self, refs: Iterable[str]) -> set[str]:
        digests = set(map(ref_bytes, refs))
        found = {raw[0] for raw in self.rows_of(LOG) if raw[2] in digests or raw[3] in digests}
        for digest in digests:
            held = self._holders(digest, Holder.SESSION)
            found |= {raw[2] for raw in held}
        return {name for raw in found if (name := rows.readable_name(raw)) is not None}

    def states_after(self, refs: Iterable[str]) -> set[str]:
        digests = set(map(ref_bytes, refs))
        return {rows.ref_text(raw[0]) for raw in self.rows_of(StateRow.TABLE) if raw[4] in digests}

    def origins(self) -> Iterator[StateRow]:
        for raw in self.rows_of(StateRow.TABLE):
            try:
                row = StateRow.unpack(raw)
            except StateCorrupt:
                continue
            if row.origin is not None:
                yield row

    # -- states ----------------------------------------------------------------------------------

    def stored_state(self, ref: str) -> StateRow | None:
        raw = self._raw_state(ref_bytes(ref))
        return None if raw is None else StateRow.unpack(raw)

    def _raw_state(self, digest: bytes) -> Raw | None:
        data = self._space.field(self._keys.state(digest), ROW)
        return None if data is None else decode(StateRow.TABLE, (digest,), data)

    def state(self, ref: str) -> StateRow:
        if self._space.sure is not None:
            found: StateRow = self._space.sure(lambda at: RedisTables(at, self.now).state(ref))
            return found
        return super().state(ref)

    def lives(self, ref: str) -> bool:
        if self._space.sure is not None:
            return bool(self._space.sure(lambda at: RedisTables(at, self.now).lives(ref)))
        return super().lives(ref)

    def holders(self, ref: str, kind: Holder | None = None) -> Iterator[HoldRow | None]:
        for raw in self._holders(ref_bytes(ref), kind):
            try:
                yield HoldRow.unpack(raw)
            except StateCorrupt:
                yield None

    def _holders(self, digest: bytes, kind: Holder | None = None) -> Iterator[Raw]:
        """Yields the rows of what holds a state, a few at a time: the first may be enough."""
        low, high = b"-", b"+"
        if kind is not None:
            low, high = b"[" + holder(kind, b""), b"(" + holder(kind + 1, b"")
        few = 32
        while True:
            members = self._space.between(self._keys.holds(digest), low, high, few)
            key = self._keys.state(digest)
            values = self._space.fields([(key, members)])[0] if members else []
            for member, value in zip(members, values, strict=True):
                held = is_held_by(digest, member)
                if held is not None:
                    yield decode(HoldRow.TABLE, held, value or b"")
            if len(members) < few:
                return
            low, few = b"(" + members[-1], PAGE

    def kept(self, owner: str) -> list[HoldRow]:
        name = name_bytes(owner)
        digests = self._kept_digests(name)
        field = holder(Holder.OWNER, name)
        found = self._space.fields([(self._keys.state(each), (field, ROW)) for each in digests])
        holds: list[tuple[tuple[Any, ...], HoldRow]] = []
        for digest, (data, state) in zip(digests, found, strict=True):
            if data is None:
                continue
            key = (digest, int(Holder.OWNER), name)
            hold = HoldRow.unpack(decode(HoldRow.TABLE, key, data))
            raw = decode(StateRow.TABLE, (digest,), state or b"")
            holds.append(((raw[5] or 0.0, raw[3] or 0, digest), hold))
        holds.sort(key=lambda pair: pair[0])
        return [hold for _, hold in holds if hold.expires > self.now]

    def _kept_digests(self, owner: bytes) -> list[bytes]:
        return sorted(self._space.members(self._keys.kept(owner)))

    def _tombstone(self, ref: str) -> Raw | None:
        digest = ref_bytes(ref)
        data = self._space.field(self._keys.tombstones, digest)
        return None if data is None else decode(TOMBSTONES, (digest,), data)

    def _has(self, table: Table, key: Sequence[Any]) -> bool:
        return self._raw(table, key) is not None

    def _raw(self, table: Table, key: Sequence[Any]) -> Raw | None:
        """Returns the row of a key as it stands."""
        data = self._space.field(*self._place(table, key))
        return None if data is None else decode(table, key, data)

    def _place(self, table: Table, key: Sequence[Any]) -> tuple[bytes, bytes]:
        return row_place(self._keys, table, key)

    # -- the store as a whole --------------------------------------------------------------------

    def rows_of(self, table: Table) -> list[tuple[Any, ...]]:
        return [tuple(raw) for raw in self._rows_of(table)]

    def _rows_of(self, table: Table) -> Iterator[Raw]:
        if table is SessionRow.TABLE:
            return self._all_own(table, self._keys.names, self._keys.session)
        if table is StateRow.TABLE:
            return self._all_own(table, self._keys.states, self._keys.state)
        if table is LOG:
            return self._all_turns()
        if table is HoldRow.TABLE:
            digests = self._space.between(self._keys.states)
            return (raw for digest in digests for raw in self._holders(digest))
        if table is QueueRow.TABLE:
            return iter(self._all_places())
        key = self._keys.tombstones if table is TOMBSTONES else self._keys.meta
        return (decode(table, (field,), data) for field, data in self._space.hash(key).items())

    def _all_own(
        self, table: Table, index: bytes, key_of: Callable[[bytes], bytes]
    ) -> Iterator[Raw]:
        """Yields the rows of sessions, or of states."""
        for members in _pages(self._space.between(index)):
            found = self._space.fields([(key_of(each), (ROW,)) for each in members])
            for member, (data,) in zip(members, found, strict=True):
                if data is not None:
                    yield decode(table, (member,), data)

    def _all_turns(self) -> Iterator[Raw]:
        for names in _pages(self._space.between(self._keys.names)):
            found = self._space.hashes([self._keys.session(name) for name in names])
            for name, fields in zip(names, found, strict=True):
                yield from _log_of(name, fields)

    def count(self, table: str) -> int:
        counted = {"sessions": self._keys.names, "states": self._keys.states}
        return self._space.count(b"ZCARD", counted[table])

    def any_row(self, table: str) -> bool:
        if table in ("meta", "tombstones"):
            key = self._keys.meta if table == "meta" else self._keys.tombstones
            return self._space.count(b"HLEN", key) > 0
        indices = {"states": self._keys.states, "queue": self._keys.queues}
        indices["holds"] = self._keys.states
        return self._space.count(b"ZCARD", indices.get(table, self._keys.names)) > 0

    def meta(self, key: str) -> bytes | None:
        raw = self._raw(META, (key.encode(),))
        return None if raw is None else bytes(META.unpack(raw)[1])

    def totals(self) -> Totals:
        return read_totals(self._space.read([(b"HMGET", self._keys.totals, *TOTALS)])[0])

    def session_names(self, prefix: str) -> list[str]:
        start = name_bytes(prefix)
        end = name_end(start)
        low, high = b"[" + start if start else b"-", b"+" if end is None else b"(" + end
        living: list[str] = []
        while True:
            page = self._space.page(low, high)
            for name, data, top in page:
                if self._is_living(name, data, top):
                    living.append(rows.name_text(name))
            if len(page) < PAGE:
                return living
            low = b"(" + page[-1][0]

    def _is_living(self, name: bytes, data: bytes | None, top: bytes | None) -> bool:
        """Says whether a session has not expired; one that is damaged is shown, too."""
        if data is None:
            return top is not None
        try:
            (expires,) = SessionRow.TABLE.read(_sound(name, data), (6,))
        except StateCorrupt:
            return True
        return bool(expires > self.now)


def read_totals(found: Sequence[bytes | None]) -> Totals:
    """Reads what all rows come to.

    Raises:
        StateCorrupt: It was changed.
    """
    try:
        nbytes, sessions, high, low = (int(each or 0) for each in found)
    except ValueError as error:
        raise StateCorrupt(
            "What all rows come to was noted, and the note was changed: check(fix=True) on the "
            "store counts them again."
        ) from error
    return Totals(nbytes, sessions, high << HALF_BITS | low)


def _sound(name: bytes, data: bytes) -> Raw:
    raw = decode(SessionRow.TABLE, (name,), data)
    SessionRow.TABLE.require_sound(raw)
    return raw


def _log_of(name: bytes, found: dict[bytes, bytes]) -> list[Raw]:
    """Returns the log rows in a session's hash, oldest first."""
    return [decode(LOG, (name, seq), found[number(seq)]) for seq in numbers(found)]


def newest(found: dict[bytes, bytes]) -> int:
    """Returns the highest number of the log rows in a session's hash; -1 for none."""
    return max(numbers(found), default=-1)


def is_behind(top: bytes | None, seq: int) -> bool:
    """Says whether a log row is the newest, or newer than what `TOP` says."""
    return top is None or top_number(top) <= seq


def _readable_places(found: Iterable[Raw]) -> Iterator[QueueRow]:
    for raw in found:
        try:
            yield QueueRow.unpack(raw)
        except StateCorrupt:
            continue


def _pages(members: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(members), PAGE):
        yield members[start : start + PAGE]
