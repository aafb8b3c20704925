"""Rows in Redis as a transaction changes them, with the indices that find them.

What a change means, `Changes` says; here a row becomes a field of a hash, and what finds it goes
along: names, ends, owners. Totals are only added to, so that two sessions' turns do not wait for
one another. The easy mistake is to write a row past `put_columns`: its indices would stay behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from langchain_rwkv_state.store import rows
from langchain_rwkv_state.store.redis.functions import Op
from langchain_rwkv_state.store.redis.indices import entries, is_held_by
from langchain_rwkv_state.store.redis.keys import (
    BYTES,
    DIGEST_BYTES,
    ROW,
    TOP,
    decode,
    encode,
    holder,
    number,
    numbered,
    pack_top,
)
from langchain_rwkv_state.store.redis.space import some
from langchain_rwkv_state.store.redis.tables import (
    HALF_BITS,
    TOTALS,
    RedisTables,
    is_behind,
    newest,
    read_totals,
)
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
from langchain_rwkv_state.store.tables import LOG_ENTRIES, TOMBSTONE_SECONDS, Changes, Sql, Totals

_ENOUGH = 2  # holders: one's own, and another
_LAST_SECONDS = TOMBSTONE_SECONDS + 86400.0
"""So much longer than what holds them do bytes live in Redis; then they go by themselves."""


class RedisChanges(Changes, RedisTables):
    """The rows of a store in Redis within one transaction.

    Args:
        space: What was read, and what is to be written.
        now: The store's time.
        blob_exists: Says whether a state's bytes are there.
    """

    def __init__(self, space: Sql, now: float, blob_exists: Callable[[str], bool]) -> None:
        super().__init__(space, now, blob_exists=blob_exists)
        self._lasting: dict[bytes, float] = {}

    def stored_session(self, name: str) -> SessionRow | None:
        row = super().stored_session(name)
        if row is not None:
            self._read_ahead(row)
        return row

    def _read_ahead(self, row: SessionRow) -> None:
        """Reads at once what the next turn of a session lets go of."""
        keys, name = self._keys, name_bytes(row.name)
        key = keys.session(name)
        ops: list[Op] = [(b"HMGET", key, TOP)]
        if row.turns >= LOG_ENTRIES:
            ops.append((b"HMGET", key, number(row.turns + 1 - LOG_ENTRIES)))
        for ref in row.kept:
            digest = ref_bytes(ref)
            ops += [
                (b"HMGET", keys.state(digest), holder(Holder.SESSION, name)),
                (b"HMGET", keys.state(digest), ROW),
                some(keys.holds(digest), limit=_ENOUGH),
            ]
        self._space.early(ops)

    def _raw_state(self, digest: bytes) -> Raw | None:
        row = (b"HMGET", self._keys.state(digest), ROW)
        if not self._space.knows(row):  # a state that is not there is added, it may be
            self._space.early([row, (b"HMGET", self._keys.tombstones, digest)])
        return super()._raw_state(digest)

    # -- rows ------------------------------------------------------------------------------------

    def put_columns(self, table: Table, columns: tuple[Any, ...], old_bytes: int = 0) -> None:
        self._space.put(*self._place(table, columns), encode(table, columns))
        self._nbytes += rows.size(columns) - old_bytes
        self._index(table, columns)

    def put(self, row: Row, old: Row | None = None) -> None:
        super().put(row, old)
        if isinstance(row, SessionRow):
            for ref in row.kept:
                self._let_last(ref_bytes(ref), row.expires)
        elif isinstance(row, HoldRow) and row.kind != Holder.SESSION:
            self._let_last(ref_bytes(row.ref), row.expires)
        elif isinstance(row, StateRow):
            key = self._keys.bytes_key(row.blob)
            self._space.put(self._keys.state(ref_bytes(row.ref)), BYTES, key)

    def _let_last(self, digest: bytes, end: float) -> None:
        """Has a state's bytes live until a while after `end`, at least."""
        key = self._keys.state(digest)
        self._lasting[key] = max(self._lasting.get(key, 0.0), end)

    def _index(self, table: Table, columns: Sequence[Any]) -> None:
        """Enters a row in the indices that find it."""
        for entry in entries(self._keys, table, columns):
            self._space.enter(*entry)
        if table is LOG:
            key = self._keys.session(columns[0])
            if is_behind(self._space.field(key, TOP), columns[1]):
                self._space.put(key, TOP, pack_top(columns[1], columns[2]))

    def _unindex(self, table: Table, key: Sequence[Any], raw: Raw | None) -> None:
        """Takes a row that is deleted out of the indices."""
        keys, enter = self._keys, self._space.enter
        if table is SessionRow.TABLE:
            enter(keys.due(table), key[0], None)
            self._unname(key[0])
        elif table is LOG:
            if raw is not None and isinstance(raw[2], bytes):
                enter(keys.tellers(raw[2]), numbered(key[0], key[1]), None)
        elif table is StateRow.TABLE:
            self._space.put(keys.state(key[0]), BYTES, None)
            self._unstate(key[0])
        elif table is HoldRow.TABLE:
            digest, kind, owner = key
            enter(keys.holds(digest), holder(kind, owner), None)
            enter(keys.due(table), digest + holder(kind, owner), None)
            if kind == Holder.OWNER:
                enter(keys.kept(owner), digest, None)
            self._unstate(digest)
        elif table is TOMBSTONES:
            enter(keys.due(table), key[0], None)
        elif table is QueueRow.TABLE:
            enter(keys.queues, numbered(key[0], key[1]), None)

    def _unname(self, name: bytes) -> None:
        """Takes a session of which no row is left out of the index of names."""
        if not self._space.hash(self._keys.session(name)):
            self._space.enter(self._keys.names, name, None)

    def _unstate(self, digest: bytes) -> None:
        """Takes a state of which neither a row nor a hold is left out of the index of states."""
        held = self._space.between(self._keys.holds(digest), limit=_ENOUGH)
        if not held and self._raw_state(digest) is None:
            self._space.enter(self._keys.states, digest, None)

    def _delete_rows(self, table: Table, key: Sequence[Any]) -> list[Raw]:
        if table is StateRow.TABLE:
            self._known.clear()
        if len(key) == table.keys:
            raw = self._raw(table, key)
            found = [] if raw is None else [raw]
        elif table is LOG:
            found = self._log_rows(rows.name_text(key[0]))
        else:
            found = list(self._holders(key[0]))
        for raw in found:
            self._delete_row(table, raw[: table.keys], raw)
        if table is LOG and found:
            self._end_log(key[0])
        return found

    def _delete_row(self, table: Table, key: Sequence[Any], raw: Raw | None) -> None:
        self._space.put(*self._place(table, key), None)
        if raw is not None:
            self._nbytes -= rows.size(raw[:-1])
        self._unindex(table, key, raw)

    def _delete_turns(self, name: str, first: int, end: int | None = None) -> list[Raw]:
        if end == first + 1:  # the oldest of a full log, which is no look at all others
            key = (name_bytes(name), first)
            raw = self._raw(LOG, key)
            found = [] if raw is None else [raw]
        else:
            found = [
                raw
                for raw in self._log_rows(name)
                if raw[1] >= first and (end is None or raw[1] < end)
            ]
        for raw in found:
            self._delete_row(LOG, raw[:2], raw)
        if end is None and found:
            self._end_log(name_bytes(name))
        return found

    def _end_log(self, name: bytes) -> None:
        """Notes the newest turn, behind which others were deleted."""
        key = self._keys.session(name)
        found = self._space.hash(key)
        seq = newest(found)
        raw = None if seq < 0 else self._raw(LOG, (name, seq))
        ref = raw[2] if raw is not None and isinstance(raw[2], bytes) else None
        self._space.put(key, TOP, None if seq < 0 else pack_top(seq, ref))
        self._unname(name)

    def note(self, key: str, value: bytes) -> None:
        columns = META.pack((key, value))
        self._space.put(*self._place(META, columns), encode(META, columns))

    def forget_note(self, key: str) -> None:
        self._space.put(*self._place(META, (key.encode(),)), None)

    # -- totals ----------------------------------------------------------------------------------

    def totals(self) -> Totals:
        if self._before is None:  # not held against what is then: others' turns are no conflict
            found = self._space.glance(b"HMGET", self._keys.totals, *TOTALS)
            self._before = read_totals(found)
        return super().totals()

    def set_totals(self, totals: Totals) -> None:
        self._nbytes = self._sessions = self._names = 0
        self._before = totals
        values = (totals.nbytes, totals.sessions, *_halves(totals.names))
        words = [word for pair in zip(TOTALS, map(_text, values), strict=True) for word in pair]
        self._space.also(b"HSET", self._keys.totals, *words)

    def finish(self) -> None:
        """Hands over what is still to be written: totals, and how long bytes are to live."""
        for ref in list(self._added):
            self._write_state(ref)
        for key, end in self._lasting.items():
            left = end - self.now + _LAST_SECONDS
            word = b"never" if math.isinf(left) else _text(max(1, math.ceil(left * 1000)))
            self._space.also(b"LAST", key, word)
        self._lasting = {}
        self._space.limit = self.limit
        self._space.growth += self._nbytes
        if self._nbytes or self._sessions or self._names:
            added = map(_text, (self._nbytes, self._sessions, *_halves(self._names)))
            self._space.also(b"COUNT", self._keys.totals, *added)
        if self._before is not None:
            self._before = self.totals()
        self._nbytes = self._sessions = self._names = 0
        self._listed, self._unlisted = {}, []

    # -- states and holds ------------------------------------------------------------------------

    def remove_state(self, row: StateRow, *, keep_file: bool = False) -> None:
        super().remove_state(row, keep_file=keep_file)
        key = self._keys.bytes_key(row.blob)
        if key is not None and not keep_file:
            self.dropped.remove(row.blob)
            self._space.also(b"UNLINK", key)

    def _forget_state(self, ref: str) -> None:
        self._delete_row(StateRow.TABLE, (ref_bytes(ref),), None)

    def _raw_hold(self, key: tuple[bytes, int, bytes]) -> Raw | None:
        return self._raw(HoldRow.TABLE, key)

    def _hold_and_state(self, key: tuple[bytes, int, bytes]) -> tuple[bool, bool, Raw | None]:
        digest, kind, owner = key
        own = holder(kind, owner)
        if self._raw_hold(key) is None:
            return False, False, None
        held = self._space.between(self._keys.holds(digest), limit=_ENOUGH)
        return True, any(member != own for member in held), self._raw_state(digest)

    def _end_hold(self, key: tuple[bytes, int, bytes]) -> None:
        self._delete_row(HoldRow.TABLE, key, None)  # `let_go` counts its bytes

    def _worn(self, owner: str, left: float) -> list[Raw]:
        name = name_bytes(owner)
        digests = self._space.until(self._keys.kept(name), self.now)
        field = holder(Holder.OWNER, name)
        found = self._space.fields([(self._keys.state(each), (field,)) for each in digests])
        worn: list[Raw] = []
        for digest, (data,) in zip(digests, found, strict=True):
            raw = decode(HoldRow.TABLE, (digest, int(Holder.OWNER), name), data or b"")
            expires, ttl = raw[3], raw[4]
            ends = isinstance(expires, float) and isinstance(ttl, float)
            if ends and self.now < expires <= self.now + left * ttl:
                worn.append(raw)
        return worn

    def _kept_refs(self, owner: str) -> list[bytes]:
        return self._kept_digests(name_bytes(owner))

    # -- expiry ----------------------------------------------------------------------------------

    def _due(self, table: Table, limit: int) -> list[Raw]:
        index = self._keys.due(table)
        found: list[Raw] = []
        for member in self._space.until(index, self.now, limit):
            if table is SessionRow.TABLE:
                found.append((member,))
                continue
            key: tuple[Any, ...] | None = (member,)
            if table is HoldRow.TABLE:
                key = is_held_by(member[:DIGEST_BYTES], member[DIGEST_BYTES:])
            raw = None if key is None else self._raw(table, key)
            if raw is None:  # the index alone is left
                self._space.enter(index, member, None)
            else:
                found.append(raw)
        return found


def _halves(names: int) -> tuple[int, int]:
    return names >> HALF_BITS, names & (1 << HALF_BITS) - 1


def _text(value: int) -> bytes:
    return b"%d" % value
