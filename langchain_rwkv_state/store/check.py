"""`check` and its repairs: every row and file of a store is compared with all others.

It looks at one snapshot of the rows, and asks again before it says that a file is not as they
tell, so it can run beside writers; each repair happens in a transaction that looks again. The easy
mistake is to tidy too much: what can be read stays, what nothing holds is put aside and not
deleted, and so is what proves that a session existed, or a changed session would come back as new.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from langchain_rwkv_state import state as states
from langchain_rwkv_state.errors import StateCorrupt, StoreError
from langchain_rwkv_state.store import rows
from langchain_rwkv_state.store.backend import Backend, change, look
from langchain_rwkv_state.store.damage import Damages
from langchain_rwkv_state.store.records import CheckReport, LogEntry
from langchain_rwkv_state.store.rows import (
    LOG,
    META,
    TABLES,
    Holder,
    HoldRow,
    Raw,
    SessionRow,
    StateRow,
    Table,
    name_bytes,
)
from langchain_rwkv_state.store.tables import Changes, Tables, Totals, name_digest

_WRITING_SECONDS = 60.0  # younger bytes may belong to a commit that is under way
_ROUNDS = 4  # one repair may bring another thing to light

Repair = Callable[[Changes], str]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        problem: A sentence about it.
        repair: Puts it right and returns what was done; ``None`` where nothing can.
    """

    problem: str
    repair: Repair | None = None


def check_store(
    backend: Backend, key: bytes, clock: Callable[[], float], ttl: float, *, fix: bool
) -> CheckReport:
    """Verifies a store; `ttl` is for a hold whose own time to live can no longer be read."""
    own = backend.check(fix=fix)
    problems, repaired = list(own.problems), list(own.repaired)
    try:
        found = look(backend, clock(), lambda tables: _AllRows(tables, backend, ttl))
    except StoreError as error:
        return CheckReport((*problems, str(error)), own.repaired)
    problems += [finding.problem for finding in found.findings()]
    damages = Damages(backend, key, clock, found.states.values())
    problems += damages.problems()
    if fix:

        def work(changes: Changes) -> list[str]:
            return _repaired(changes, backend, ttl)

        repaired += change(backend, clock(), work, freeing=True)
        repaired += damages.mend()
    orphans = list(_orphans(backend, found))
    problems += [f"The file {name} belongs to no state." for name in orphans]
    if fix:
        repaired += filter(None, (_sweep(backend, name, aside=bool(found.bad)) for name in orphans))
    return CheckReport(tuple(problems), tuple(repaired))


def _repaired(changes: Changes, backend: Backend, ttl: float) -> list[str]:
    """Repairs until nothing more can be done."""
    done: list[str] = []
    for _ in range(_ROUNDS):
        found = list(_AllRows(changes, backend, ttl).findings())
        now = [each.repair(changes) for each in found if each.repair is not None]
        done += now
        if not now:
            break
    return done


def _orphans(backend: Backend, found: _AllRows) -> Iterator[str]:
    named = {state.blob for state in found.states.values()}
    needed = {*found.holds, *found.damaged_refs}  # a row may yet be made again
    for name, age in backend.blobs():
        ref = f"rwkv1-{name[:64]}"
        lost = ref in needed and ref not in found.states
        if name in named or lost or age <= _WRITING_SECONDS:
            continue
        # By a row that came since, and may have gone again with its file.
        if not _is_named(backend.view(0.0), name) and backend.blob_exists(name):
            yield name


def _is_named(tables: Tables, name: str) -> bool:
    """Says whether a row names a file, or may: one that cannot be read."""
    try:
        row = tables.stored_state(f"rwkv1-{name[:64]}")
    except StateCorrupt:
        return True
    return row is not None and row.blob == name


def _sweep(backend: Backend, name: str, *, aside: bool) -> str | None:
    """Deletes a file unless a row names it by now; says what was done.

    It is put `aside` where a row that was damaged may have named it.
    """

    def work(changes: Changes) -> str | None:
        if _is_named(changes, name):
            return None
        if aside:
            return f"No row names the file {name}: {backend.set_aside(name)}."
        changes.dropped.append(name)
        return f"Deleted the file {name}."

    return change(backend, 0.0, work, freeing=True)


class _AllRows:
    """All rows of a store at one moment, read and sorted by what they are.

    Args:
        tables: The rows.
        backend: The files, in which a state without a row is looked for.
        ttl: For a hold whose own time to live cannot be read.
    """

    def __init__(self, tables: Tables, backend: Backend, ttl: float) -> None:
        self._backend = backend
        self._ttl = ttl
        self.bad: list[tuple[Table, Raw, str]] = []
        self.sessions: dict[str, SessionRow] = {}
        self.born: set[str] = set()
        self.states: dict[str, StateRow] = {}
        self.holds: defaultdict[str, list[HoldRow]] = defaultdict(list)
        self.logs: defaultdict[str, list[LogEntry]] = defaultdict(list)
        self.nbytes = 0
        for table in TABLES.values():
            for raw in tables.rows_of(table):
                self.nbytes += 0 if table is META else rows.size(raw[:-1])
                try:
                    self._sort(table, raw)
                except (StateCorrupt, ValueError) as error:
                    self.bad.append((table, raw, str(error)))
        self.nbytes += sum(state.nbytes for state in self.states.values())
        try:
            self.counted: Totals | None = tables.totals()
        except StateCorrupt:
            self.counted = None

    def _sort(self, table: Table, raw: Raw) -> None:
        if table is SessionRow.TABLE:
            session = SessionRow.unpack(raw)
            self.sessions[session.name] = session
        elif table is StateRow.TABLE:
            state = StateRow.unpack(raw)
            self.states[state.ref] = state
        elif table is HoldRow.TABLE:
            hold = HoldRow.unpack(raw)
            self.holds[hold.ref].append(hold)
        elif table is LOG and raw[1] == 0:
            self.born.add(LOG.unpack(raw)[0])
        elif table is LOG:
            turn = rows.unpack_turn(raw)
            self.logs[rows.name_text(raw[0])].append(turn)
        elif table is META and raw[0] not in (b"about", b"clock", b"totals", b"scrub"):
            raise StateCorrupt(f"The {META.describe(raw)} is of a kind that is not known.")
        else:
            table.unpack(raw)

    @cached_property
    def damaged_refs(self) -> set[str]:
        """The states whose rows, or whose holds' rows, were changed."""
        kinds = (StateRow.TABLE, HoldRow.TABLE)
        keys = (raw[0] for table, raw, _ in self.bad if table in kinds)
        return {rows.ref_text(key) for key in keys if isinstance(key, bytes)}

    def totals(self) -> Totals:
        """Returns what the rows come to."""
        names = 0
        for name in self.born:
            names ^= name_digest(name_bytes(name))
        return Totals(self.nbytes, len(self.born), names)

    def findings(self) -> Iterator[Finding]:
        """Yields what is wrong."""
        for table, raw, problem in self.bad:
            yield Finding(problem, self._row_repair(table, raw))
        yield from self._session_findings()
        yield from self._state_findings()
        yield from self._hold_findings()
        if not self.bad and self.totals() != self.counted:
            yield Finding(
                f"The rows come to {self.totals()} and are counted as {self.counted}.",
                self._count_again,
            )

    # -- rows that were changed ------------------------------------------------------------------

    def _row_repair(self, table: Table, raw: Raw) -> Repair | None:
        if table is META and raw[0] == b"about":
            return None
        if table is META and raw[0] == b"totals":
            return self._count_again
        if table is HoldRow.TABLE:
            again = self._held_again(raw)
            if again is not None:
                return again
        if table is StateRow.TABLE:
            return lambda changes: self._without_row(changes, raw)
        if table is LOG and raw[1] == 0 and (name := rows.readable_name(raw[0])) is not None:
            return _born(name, 0.0)
        return self._delete(table, raw)

    @staticmethod
    def _delete(table: Table, raw: Raw) -> Repair:
        done = f"Deleted the {table.describe(raw)}."
        return _doing(done, Changes.delete_key, table, raw[: table.keys])

    def _held_again(self, raw: Raw) -> Repair | None:
        """Returns what writes a changed hold again; its key says all but its time.

        Were it deleted, the state would go that somebody put or keeps, with a whole file.
        """
        try:
            ref, kind, owner = rows.ref_text(raw[0]), Holder(raw[1]), rows.name_text(raw[2])
        except (ValueError, TypeError, AttributeError):
            return None
        if ref not in self.states:
            return None

        def repair(changes: Changes) -> str:
            changes.delete_key(HoldRow.TABLE, raw[:3])
            changes.hold(ref, kind, owner, math.inf if kind == Holder.SESSION else self._ttl)
            what = HoldRow.TABLE.describe(raw)
            return f"Wrote the {what} again, with a time to live that starts now."

        return repair

    def _without_row(self, changes: Changes, raw: Raw) -> str:
        """Deletes a state's changed row; its file gives another, or is put aside."""
        what = StateRow.TABLE.describe(raw)
        changes.delete_key(StateRow.TABLE, raw[:1])
        changes.unlist_state(raw[0])
        done = f"Deleted the {what}."
        ref = raw[0].hex() if isinstance(raw[0], bytes) else "-"
        if self.holds.get(f"rwkv1-{ref}"):
            return done
        named = str(raw[1], "ascii", "replace") if isinstance(raw[1], bytes) else ""
        for name, _ in list(self._backend.blobs()):
            if name.startswith(ref) or (name == named and not self._is_needed(name)):
                where = self._backend.set_aside(name)
                done += f" The file {name} is no state's any more: {where}."
        return done

    # -- sessions --------------------------------------------------------------------------------

    def _session_findings(self) -> Iterator[Finding]:
        for name in sorted(self.born - set(self.sessions)):
            yield Finding(
                f"The session {name!r} exists, but its row is lost or was changed: "
                f"store.delete_session({name!r}) lets it start anew."
            )
        for name, session in self.sessions.items():
            if name not in self.born:
                yield Finding(
                    f"The log of the session {name!r} has lost its beginning.",
                    _born(name, session.created),
                )
            for ref in session.kept:
                if ref not in self.states:
                    yield Finding(f"The session {name!r} needs the state {ref}, which is lost.")
            yield from self._log_findings(name, session)
        for name in self.logs.keys() - self.sessions.keys() - self.born:
            for turn in self.logs[name]:
                yield Finding(
                    f"Turn {turn.seq} in the log of {name!r} has no session.",
                    _doing(
                        f"Deleted turn {turn.seq} in the log of {name!r}.",
                        Changes.delete_key,
                        LOG,
                        (name_bytes(name), turn.seq),
                    ),
                )

    def _log_findings(self, name: str, session: SessionRow) -> Iterator[Finding]:
        turns = sorted(self.logs[name], key=lambda turn: turn.seq)
        newest = turns[-1] if turns else None
        if session.head != (None if newest is None else newest.ref) or session.turns != (
            0 if newest is None else newest.seq
        ):
            behind = session.head is not None and (newest is None or newest.seq < session.turns)
            yield Finding(
                f"The log of the session {name!r} does not end at its head.",
                self._turn_again(session, newest) if behind else None,
            )
        for earlier, later in pairwise(turns):
            if later.seq != earlier.seq + 1:
                yield Finding(
                    f"The log of the session {name!r} has a gap before turn {later.seq}.",
                    _doing(
                        f"The log of {name!r} begins at turn {later.seq} now.",
                        Changes.cut_log_before,
                        name,
                        later.seq,
                    ),
                )

    @staticmethod
    def _turn_again(session: SessionRow, newest: LogEntry | None) -> Repair:
        """Returns what writes the log row of a session's head again, from the session's own row."""

        def repair(changes: Changes) -> str:
            assert session.head is not None  # noqa: S101 # as the caller made sure
            turn = LogEntry(
                session.head,
                newest.ref if newest is not None and newest.seq == session.turns - 1 else None,
                session.n_tokens,
                session.updated,
                seq=session.turns,
            )
            changes.delete_key(LOG, (name_bytes(session.name), turn.seq))
            changes.add_turn(session.name, turn)
            return f"Wrote turn {turn.seq} in the log of {session.name!r} again."

        return repair

    # -- states ----------------------------------------------------------------------------------

    def _state_findings(self) -> Iterator[Finding]:
        for ref, state in self.states.items():
            held = len(self.holds[ref])
            missing = self._missing_holders(ref)
            if not held and not missing and not self._may_be_held(ref):
                if state.holders:  # a hold's row was lost: the state stays for a while
                    yield Finding(
                        f"The state {ref} counts {state.holders} holders and has none.",
                        self._put_again(ref),
                    )
                else:
                    yield Finding(f"Nothing holds the state {ref}.", self._aside(state))
            elif held != state.holders and not missing and ref not in self.damaged_refs:
                yield Finding(
                    f"The state {ref} counts {state.holders} holders and has {held}.",
                    _put_state(replace(state, holders=held), state),
                )
        for ref in sorted(self.holds.keys() - self.states.keys()):
            if self.holds[ref]:
                yield from self._lost_state(ref)

    def _lost_state(self, ref: str) -> Iterator[Finding]:
        """A state without a row: the row is made again if its file is there."""
        problem = f"The row of the state {ref} is lost."
        for name, _ in self._backend.blobs():
            if not name.startswith(ref[-64:]):
                continue
            try:
                data = self._backend.read_blob(name) or b""
                found = states.decode(data, ref=ref)
            except StateCorrupt:
                continue
            row = StateRow(
                ref=ref,
                blob=name,
                nbytes=len(data),
                n_tokens=found.state.n_tokens,
                parent=found.parent,
                created=found.created_seconds,
                holders=len(self.holds[ref]),
            )
            yield Finding(problem, _put_state(row, None))
            return
        yield Finding(problem)

    def _put_again(self, ref: str) -> Repair:
        done = f"Holds the state {ref} as if it were put now, for the store's time to live."
        return _doing(done, Changes.hold, ref, Holder.PUT, "", self._ttl)

    def _aside(self, state: StateRow) -> Repair:
        def repair(changes: Changes) -> str:
            changes.remove_state(state, keep_file=True)
            where = self._backend.set_aside(state.blob)
            return (
                f"The state {state.ref} is stored no longer, and of its file {state.blob}: {where}."
            )

        return repair

    # -- holds -----------------------------------------------------------------------------------

    def _missing_holders(self, ref: str) -> list[str]:
        """Returns the sessions that keep a state and have no hold on it."""
        there = {hold.owner for hold in self.holds[ref] if hold.kind == Holder.SESSION}
        return [name for name in self._keepers.get(ref, ()) if name not in there]

    @cached_property
    def _keepers(self) -> dict[str, list[str]]:
        made: defaultdict[str, list[str]] = defaultdict(list)
        for name, session in self.sessions.items():
            for ref in session.kept:
                made[ref].append(name)
        return dict(made)

    def _may_be_held(self, ref: str) -> bool:
        """Says whether a session that cannot be read may need a state."""
        unreadable = self.born - set(self.sessions)
        damaged = {raw[0] for table, raw, _ in self.bad if table is HoldRow.TABLE}
        return rows.ref_bytes(ref) in damaged or any(
            turn.ref == ref for name in unreadable for turn in self.logs[name]
        )

    def _is_needed(self, name: str) -> bool:
        """Says whether a file is of a state that something holds: its row is made again from it."""
        ref = f"rwkv1-{name[:64]}"
        return bool(self.holds.get(ref)) or ref in self._keepers or self._may_be_held(ref)

    def _hold_findings(self) -> Iterator[Finding]:
        for ref in self._keepers:
            if ref in self.states and ref not in self.damaged_refs:
                for name in self._missing_holders(ref):
                    yield Finding(
                        f"The session {name!r} has no hold on {ref}.",
                        _hold_again(HoldRow(ref, Holder.SESSION, name)),
                    )
        for ref, holds in self.holds.items():
            for hold in holds:
                session = self.sessions.get(hold.owner)
                if hold.kind == Holder.SESSION and (
                    (session is None and hold.owner not in self.born)
                    or (session is not None and ref not in session.kept)
                ):
                    yield Finding(
                        f"A hold says that the session {hold.owner!r} needs {ref}; it does not.",
                        self._delete(HoldRow.TABLE, hold.pack()),
                    )

    def _count_again(self, changes: Changes) -> str:
        changes.set_totals(_AllRows(changes, self._backend, self._ttl).totals())
        return "Counted all rows again."


def _doing(done: str, verb: Callable[..., object], *args: object) -> Repair:
    """Returns a repair that is one verb of `Changes`; `done` says what it did."""

    def repair(changes: Changes) -> str:
        verb(changes, *args)
        return done

    return repair


def _born(name: str, created: float) -> Repair:
    def repair(changes: Changes) -> str:
        changes.delete_key(LOG, (name_bytes(name), 0))
        changes.put_birth(name, created)
        return f"Wrote the beginning of the log of {name!r} again."

    return repair


def _hold_again(hold: HoldRow) -> Repair:
    def repair(changes: Changes) -> str:
        changes.delete_key(HoldRow.TABLE, hold.pack()[:3])
        changes.put(hold)
        return f"Wrote the {HoldRow.TABLE.describe(hold.pack())} again."

    return repair


def _put_state(state: StateRow, old: StateRow | None) -> Repair:
    done = f"Wrote the row of the state {state.ref} again."
    return _doing(done, Changes.put_state, state, old)
