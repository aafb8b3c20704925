"""The ledger: which sessions, states and holders there are, within one view of the rows.

Reads and changes of rows that keep the books straight, with a fixed time and no idea of locks,
files or memory. The easy mistake is to delete a state's row: states go by themselves, when the
last holder lets go and both the holders' rows and the state's own count say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

from langchain_rwkv_state.errors import StateCorrupt, StateExpired, StateNotFound
from langchain_rwkv_state.store import rows
from langchain_rwkv_state.store.backend import Reader, Transaction
from langchain_rwkv_state.store.rows import (
    HolderRow,
    LogRow,
    Origin,
    QueueRow,
    SessionRow,
    StateRow,
)
from langchain_rwkv_state.store.tokens import merged

TOMBSTONE_SECONDS = 7 * 86400.0
LOG_ENTRIES = 100
_PAGE = 32


class View:
    """What the rows say at one time.

    Args:
        reader: The rows.
        now: The store's time.
    """

    def __init__(self, reader: Reader, now: float) -> None:
        self._reader = reader
        self.now = now

    # -- sessions --------------------------------------------------------------------------------

    def stored_session(self, name: str) -> SessionRow | None:
        """Returns a session, expired or not.

        Raises:
            StateCorrupt: Its row was changed, or is gone although nobody deleted the session.
        """
        key, anchor = rows.session_key(name), rows.anchor_key(name)
        data = self._reader.get(key)
        while data is None:
            if self._reader.get(anchor) is None:
                return None
            data = self._reader.get(key)  # it may have been made between the two looks
            if data is None and self._reader.get(anchor) is not None:
                raise StateCorrupt(
                    f"The row of the session {name!r} is lost or was changed, though nobody "
                    "deleted the session: restore the store from a copy, or let the session start "
                    f"anew with store.delete_session({name!r})."
                )
        return SessionRow.unpack(name, data)

    def session(self, name: str) -> SessionRow | None:
        """Returns a living session.

        Raises:
            StateCorrupt: As `stored_session`.
        """
        row = self.stored_session(name)
        return None if row is None or row.expires <= self.now else row

    def rows_of(self, prefix: bytes) -> list[tuple[bytes, bytes | None]]:
        """Returns the rows whose keys begin so."""
        return self._reader.scan(prefix, rows.after_prefix(prefix))

    def log(self, name: str) -> list[LogRow]:
        """Returns a session's log, newest first.

        Raises:
            StateCorrupt: One of its rows was changed.
        """
        found = self._reader.scan(*rows.log_range(name), reverse=True)
        return [LogRow.unpack(key, data) for key, data in found]

    def queue(self, name: str) -> list[QueueRow]:
        """Returns the places in the queue of a session's turns, first ones first.

        A row that was changed is nobody's place: it is left out here, and `check` deletes it.
        """
        return _places(self._reader.scan(*rows.queue_range(name)))

    def queues(self) -> list[QueueRow]:
        """Returns the places in all queues."""
        return _places(self._reader.scan(b"q", b"r"))

    def parents(self, ref: str) -> list[str]:
        """Returns the states before `ref` in the logs of the sessions that hold it."""
        found: list[str] = []
        for holder in self.holders(ref):
            if holder.kind == b"s":
                log = self.log(holder.owner)
                at = next((turn.seq for turn in log if turn.ref == ref), 0)
                found += [turn.ref for turn in log if turn.seq < at]
        return found

    def turn(self, name: str, seq: int) -> LogRow | None:
        """Returns one turn of a session.

        Raises:
            StateCorrupt: Its row was changed.
        """
        if seq < 1:
            return None
        key = rows.log_key(name, seq)
        data = self._reader.get(key)
        return None if data is None else LogRow.unpack(key, data)

    def path(self, ref: str) -> list[tuple[str, Origin]]:
        """Returns how a state was read, oldest step first; empty where no token ids are kept."""
        prefix = b"r" + rows.ref_bytes(ref)
        for key, _ in self._reader.scan(prefix, rows.after_prefix(prefix)):
            log = self.log(rows.name_text(key[33:]))
            steps = _steps(ref, {turn.ref: turn.origin for turn in reversed(log)})
            if steps:
                return steps
        row = self.stored_state(ref)
        return [] if row is None or row.origin is None else [(ref, row.origin)]

    # -- states ----------------------------------------------------------------------------------

    def stored_state(self, ref: str) -> StateRow | None:
        """Returns a state's row, expired or not.

        Raises:
            StateCorrupt: The row was changed.
        """
        data = self._reader.get(rows.state_key(ref))
        return None if data is None else StateRow.unpack(ref, data)

    def nbytes(self, refs: Iterable[str]) -> int:
        """Returns the bytes stored for states; one whose row was changed or lost counts none."""
        total = 0
        for ref in refs:
            with suppress(StateCorrupt):
                row = self.stored_state(ref)
                total += 0 if row is None else row.nbytes
        return total

    def holders(self, ref: str, kind: bytes = b"") -> Iterator[HolderRow]:
        """Yields what needs a state; an unreadable row counts as something that does.

        Thousands of sessions may begin with one state, so the rows are read in pages, and who
        needs only the first reads only the first.

        Args:
            ref: The state.
            kind: Only holders of this kind.
        """
        prefix = b"h" + rows.ref_bytes(ref) + kind
        start, end = prefix, rows.after_prefix(prefix)
        while True:
            page = self._reader.scan(start, end, limit=_PAGE)
            for key, data in page:
                try:
                    yield HolderRow.unpack(key, data)
                except StateCorrupt:
                    yield HolderRow(ref, b"?", "")
            if len(page) < _PAGE:
                return
            start = page[-1][0] + b"\x00"

    def expired_at(self, ref: str) -> float | None:
        """Returns when the last holder of a state let go, ``None`` where one still holds it."""
        last: float | None = None
        for holder in self.holders(ref):
            end = self._end(holder)
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
        row = self.stored_state(ref)
        if row is None:
            raise self.missing(ref)
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
        return self._reader.get(rows.state_key(ref)) is not None and self.expired_at(ref) is None

    def missing(self, ref: str) -> StateExpired | StateNotFound | StateCorrupt:
        """Returns the error that says why a state has no row."""
        data = self._reader.get(rows.tombstone_key(ref))
        if data is not None:
            ends = rows.peek_expires(rows.tombstone_key(ref), data)
            return self._gone(ref, ends - TOMBSTONE_SECONDS)
        if any(self.holders(ref)):
            return StateCorrupt(f"The row of the state {ref} is lost: run check() on the store.")
        return StateNotFound(
            f"No state {ref} is stored here. It belongs to another store, was deleted, has left "
            "its session's history, or was never committed."
        )

    def _gone(self, ref: str, expired: float) -> StateExpired | StateNotFound:
        ago = self.now - expired
        if ago < TOMBSTONE_SECONDS:
            return StateExpired(
                f"The state {ref} expired {ago:.0f} seconds ago: read the conversation again, and "
                "give it a longer ttl."
            )
        return StateNotFound(f"No state {ref} is stored here any more.")

    def _end(self, holder: HolderRow) -> float:
        if holder.kind != b"s":
            return holder.expires
        try:
            session = self.stored_session(holder.owner)
        except StateCorrupt:
            return math.inf
        return -math.inf if session is None else session.expires


class Ledger(View):
    """A view that can be changed: the books of one transaction.

    Args:
        transaction: The rows.
        now: The store's time.

    Attributes:
        states_removed: How many states went so far.
    """

    def __init__(self, transaction: Transaction, now: float) -> None:
        super().__init__(transaction, now)
        self._rows = transaction
        self.states_removed = 0

    # -- holders ---------------------------------------------------------------------------------

    def add_state(self, row: StateRow) -> None:
        """Adds a state whose blob is written; something must hold it before the end."""
        self._put_state(row)
        self._bury_tombstone(row.ref)

    def blob_exists(self, name: str) -> bool:
        """Says whether a state's bytes are there."""
        return self._rows.blob_exists(name)

    def holds(self, ref: str, kind: bytes, owner: str) -> bool:
        """Says whether something holds a state."""
        return self._rows.get(rows.holder_key(ref, kind, owner)) is not None

    def hold(self, ref: str, kind: bytes, owner: str, ttl: float = math.inf) -> None:
        """Makes something hold a state from now on, or renews its hold."""
        key = rows.holder_key(ref, kind, owner)
        data = self._rows.get(key)
        row = HolderRow(ref, kind, owner, self.now + ttl, ttl)
        if data is None:
            state = self.state_to_hold(ref)
            self._put_state(replace(state, holders=state.holders + 1))
        else:
            row = replace(row, due=HolderRow.unpack(key, data).due)
        self._rows.put(key, self._scheduled_holder(row).pack())
        if kind == b"k":
            self._rows.put(rows.owner_key(owner, ref), rows.pack(rows.owner_key(owner, ref), {}))

    def let_go(self, ref: str, kind: bytes, owner: str, *, expired_at: float | None = None) -> bool:
        """Ends a hold; the state goes with the last one.

        Args:
            ref: The state.
            kind: The holder's kind, a key of `rows.HOLDER_KINDS`.
            owner: The holder's name.
            expired_at: When the hold ran out: the state then leaves a tombstone.

        Returns:
            Whether there was such a hold.
        """
        key = rows.holder_key(ref, kind, owner)
        gone = [key]
        if kind == b"k":
            gone.append(rows.owner_key(owner, ref))
        try:
            data = self._rows.get(key)
            there = data is not None
            if data is not None and kind != b"s":
                gone.append(rows.due_key(HolderRow.unpack(key, data).due, key))
        except StateCorrupt:
            there = True  # the row goes in any case
        state = self._readable_state(ref) if there else None
        if state is not None and self._is_last(state, key):
            gone.append(rows.state_key(ref))
            self._rows.drop_blob(state.blob)
            self.states_removed += 1
            if expired_at is not None and expired_at + TOMBSTONE_SECONDS > self.now:
                self._tombstone(ref, expired_at + TOMBSTONE_SECONDS)
        elif state is not None:
            self._put_state(replace(state, holders=max(0, state.holders - 1)))
        self._rows.delete(*gone)
        return there

    def release(self, owner: str) -> int:
        """Ends all holds of an owner; returns how many there were."""
        prefix = rows.owner_prefix(owner)
        keys = [key for key, _ in self._rows.scan(prefix, rows.after_prefix(prefix))]
        return sum(self.let_go(rows.ref_text(key[-32:]), b"k", owner) for key in keys)

    def _readable_state(self, ref: str) -> StateRow | None:
        """Returns a state's row, if it is there and whole; one that is not is left alone."""
        try:
            return self.stored_state(ref)
        except StateCorrupt:
            return None

    def _is_last(self, state: StateRow, holder: bytes) -> bool:
        """Says whether nothing but one holder needs a state: by its count, and by the rows."""
        return state.holders <= 1 and all(each.key == holder for each in self.holders(state.ref))

    def _put_state(self, row: StateRow) -> None:
        self._rows.put(rows.state_key(row.ref), row.pack(), blob_nbytes=row.nbytes)

    # -- sessions --------------------------------------------------------------------------------

    def save_session(self, row: SessionRow) -> None:
        """Writes a session's row; at the first time also what proves that it exists."""
        key = rows.session_key(row.name)
        if math.isinf(row.due) and self._rows.get(rows.anchor_key(row.name)) is None:
            anchor = rows.anchor_key(row.name)
            self._rows.put(anchor, rows.pack(anchor, {}))
        if row.expires < row.due:
            self._unschedule(row.due, key)
            self._schedule(row.expires, key)
            row = replace(row, due=row.expires)
        self._rows.put(key, row.pack())

    def add_turn(self, row: LogRow) -> None:
        """Adds a turn to a session's log, which keeps its last entries."""
        self._put_turn(row)
        oldest = self.turn(row.session, row.seq - LOG_ENTRIES)
        if oldest is None:
            return
        successor = self.turn(row.session, oldest.seq + 1)
        self._drop_turn(oldest)
        if successor is not None:
            origin = merged(oldest.ref, oldest.origin, successor.origin)
            if origin != successor.origin:
                self._put_turn(replace(successor, origin=origin))

    def copy_log(self, source: str, target: str, last: int) -> None:
        """Copies a session's log up to the turn `last`."""
        for turn in self.log(source):
            if turn.seq <= last:
                self._put_turn(replace(turn, session=target))

    def cut_log(self, name: str, last: int) -> None:
        """Forgets the turns behind `last`."""
        for turn in self.log(name):
            if turn.seq > last:
                self._drop_turn(turn)

    def rename_session(self, row: SessionRow, new: str) -> None:
        """Gives a session a name that is free; its old one is nobody's then."""
        for ref in row.kept:  # first: a state goes with its last holder
            self.hold(ref, b"s", new)
        self.copy_log(row.name, new, row.turns)
        self.save_session(replace(row, name=new, due=math.inf))
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
        gone = [rows.session_key(name), rows.anchor_key(name)]
        held: set[str] = set()
        for key, data in self._rows.scan(*rows.log_range(name)):
            gone.append(key)
            with suppress(StateCorrupt):
                turn = LogRow.unpack(key, data)
                held.add(turn.ref)
                if turn.origin is not None:
                    gone.append(rows.rebuild_key(turn.ref, name))
        for ref in sorted(held) if row is None else row.kept:
            expired_at = row.expires if row is not None and expired else None
            self.let_go(ref, b"s", name, expired_at=expired_at)
        if row is not None and math.isfinite(row.due):
            gone.append(rows.due_key(row.due, gone[0]))
        self._rows.delete(*gone)

    def _put_turn(self, row: LogRow) -> None:
        self._rows.put(rows.log_key(row.session, row.seq), row.pack())
        if row.origin is not None:
            key = rows.rebuild_key(row.ref, row.session)
            self._rows.put(key, rows.pack(key, {"seq": row.seq}))

    def _drop_turn(self, row: LogRow) -> None:
        self._rows.delete(rows.log_key(row.session, row.seq))
        if row.origin is not None:
            self._rows.delete(rows.rebuild_key(row.ref, row.session))

    # -- queues ----------------------------------------------------------------------------------

    def put_place(self, row: QueueRow) -> None:
        """Writes a place in a session's queue."""
        self._rows.put(row.key, row.pack())

    def drop_places(self, places: Iterable[QueueRow]) -> None:
        """Deletes places."""
        for row in places:
            self._rows.delete(row.key)

    # -- expiry ----------------------------------------------------------------------------------

    def expire_next(self, limit: int) -> tuple[int, int]:
        """Removes what has expired, oldest first.

        Args:
            limit: How many things to look at.

        Returns:
            How many things were looked at, and how many sessions went.
        """
        end = rows.due_key(self.now, b"") + b"\xff"
        found = self._rows.scan(b"d", end, limit=limit)
        sessions = 0
        if found:
            self._rows.delete(*(key for key, _ in found))
        for key, _ in found:
            due, target = rows.due_target(key)
            try:
                sessions += self._expire(due, target)
            except (StateCorrupt, ValueError):
                continue  # `check` reports it
        return len(found), sessions

    def _expire(self, due: float, target: bytes) -> bool:
        """Removes one thing if it has expired, or notes when to look again."""
        family = target[:1]
        if family == b"s":
            return self._expire_session(due, rows.name_text(target[1:]))
        data = self._rows.get(target)
        if data is None:
            return False
        if family == b"h":
            holder = HolderRow.unpack(target, data)
            if holder.expires <= self.now:
                self.let_go(holder.ref, holder.kind, holder.owner, expired_at=holder.expires)
            elif holder.due == due:
                self._rows.put(target, self._scheduled_holder(replace(holder, due=math.inf)).pack())
        elif family == b"x" and rows.peek_expires(target, data) <= self.now:
            self._rows.delete(target)
        return False

    def _expire_session(self, due: float, name: str) -> bool:
        session = self.stored_session(name)
        if session is None:
            return False
        if session.expires <= self.now:
            self._remove(name, replace(session, due=math.inf), expired=True)
            return True
        if session.due == due:
            self.save_session(replace(session, due=math.inf))
        return False

    def _scheduled_holder(self, row: HolderRow) -> HolderRow:
        """Notes when a holder may have expired, where an earlier note does not serve."""
        if row.expires >= row.due:
            return row
        self._unschedule(row.due, row.key)
        self._schedule(row.expires, row.key)
        return replace(row, due=row.expires)

    def _schedule(self, seconds: float, target: bytes) -> None:
        if math.isfinite(seconds):
            key = rows.due_key(seconds, target)
            self._rows.put(key, rows.pack(key, {}))

    def _unschedule(self, seconds: float, target: bytes) -> None:
        if math.isfinite(seconds):
            self._rows.delete(rows.due_key(seconds, target))

    def _tombstone(self, ref: str, expires: float) -> None:
        key = rows.tombstone_key(ref)
        self._rows.put(key, rows.pack(key, {}, expires))
        self._schedule(expires, key)

    def _bury_tombstone(self, ref: str) -> None:
        key = rows.tombstone_key(ref)
        data = self._rows.get(key)
        if data is not None:
            self._unschedule(rows.peek_expires(key, data), key)
            self._rows.delete(key)


def _places(found: Iterable[tuple[bytes, bytes | None]]) -> list[QueueRow]:
    places: list[QueueRow] = []
    for key, data in found:
        with suppress(StateCorrupt):
            places.append(QueueRow.unpack(key, data))
    return places


def session_names(view: View, prefix: str) -> list[str]:
    """Returns the names of the living sessions, sorted, and of those whose rows are damaged.

    A session is found by its row or by its witness, whichever is left, so that a damaged one is not
    left out as if there were none; whoever reads it is told.
    """
    witnesses = view.rows_of(rows.anchor_key(prefix))  # first: whoever has none then is new
    living: list[bytes] = []
    sound: set[bytes] = set()
    for key, data in view.rows_of(rows.session_key(prefix)):
        try:
            if rows.peek_expires(key, data) > view.now:
                living.append(key[1:])
            sound.add(key[1:])
        except StateCorrupt:
            continue  # its witness tells its name
    names = list(filter(None, map(_name, living)))
    lost = [
        name
        for key, data in witnesses
        if key[1:] not in sound and (name := _name(key[1:])) and _is_damaged(view, key, data, name)
    ]
    return sorted(names + lost, key=rows.name_bytes) if lost else names


def _is_damaged(view: View, witness: bytes, data: bytes | None, name: str) -> bool:
    """Says whether a session exists that cannot be read, and was not just deleted."""
    try:
        rows.peek_expires(witness, data)
    except StateCorrupt:
        return False  # it is the witness that was changed, and may tell another name
    try:
        view.stored_session(name)
    except StateCorrupt:
        return True
    return False


def _name(data: bytes) -> str | None:
    """Reads a session's name; ``None`` for bytes that are none, which `check` reports."""
    try:
        return rows.name_text(data)
    except ValueError:
        return None


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
