"""`check`: compares every row and file of a store with all others, and mends what it can.

It looks at one snapshot of the rows, and asks again before it says that a file is not as they
tell, so it can run beside writers; each mend happens in a transaction that looks again. The easy
mistake is to tidy too much: what can be read stays, and so does what proves that a session existed,
or a changed session would come back as a new one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from langchain_rwkv_state import state as states
from langchain_rwkv_state.errors import StateCorrupt, StoreError
from langchain_rwkv_state.store import rows
from langchain_rwkv_state.store.backend import Backend, Reader, Transaction
from langchain_rwkv_state.store.ledger import Ledger
from langchain_rwkv_state.store.mending import Damages
from langchain_rwkv_state.store.records import CheckReport
from langchain_rwkv_state.store.rows import HolderRow, LogRow, QueueRow, SessionRow, StateRow

_WRITING_SECONDS = 60.0  # younger bytes may belong to a commit that is under way
_FIRST, _LAST = b"", b"\xff" * 4096
Hold = Callable[[Transaction, str, bytes, str], None]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        problem: A sentence about it.
        mend: Puts it right and returns what was done; ``None`` where nothing can.
    """

    problem: str
    mend: Callable[[Transaction], str] | None = None


def audit(
    backend: Backend, key: bytes, clock: Callable[[], float], ttl: float, *, fix: bool
) -> CheckReport:
    """Verifies a store.

    Args:
        backend: Its rows and blobs.
        key: Its secret.
        clock: Tells the store's time.
        ttl: The store's time to live, for a hold whose own can no longer be read.
        fix: Whether to mend.
    """

    def hold(transaction: Transaction, ref: str, kind: bytes, owner: str) -> None:
        seconds = math.inf if kind == b"s" else ttl
        Ledger(transaction, clock()).hold(ref, kind, owner, seconds)

    own = backend.check(fix=fix)
    problems, repaired = list(own.problems), list(own.repaired)
    try:
        found = backend.look(lambda reader: Books(reader, backend, hold))
    except StoreError as error:
        return CheckReport((*problems, str(error)), own.repaired)
    problems += [finding.problem for finding in found.findings()]
    damages = Damages(backend, key, clock, found.states.values())
    problems += damages.problems()
    if fix:
        repaired += backend.transact(lambda rows_now: _mend(rows_now, backend, hold), freeing=True)
        repaired += damages.mend()
    orphans = list(_orphans(backend, found))
    problems += [f"The file {name} belongs to no state." for name in orphans]
    if fix:
        repaired += [f"Deleted the file {name}." for name in orphans if _sweep(backend, name)]
    return CheckReport(tuple(problems), tuple(repaired))


def _mend(transaction: Transaction, backend: Backend, hold: Hold) -> list[str]:
    """Mends until nothing more can be done; one mend may bring another thing to light."""
    done: list[str] = []
    for _ in range(4):
        found = Books(transaction, backend, hold)
        mended = [each.mend(transaction) for each in found.findings() if each.mend is not None]
        done += mended
        if not mended:
            break
    return done


def _orphans(backend: Backend, books: Books) -> Iterator[str]:
    named = {state.blob for state in books.states.values()}
    needed = set(books.holders)
    for name, age in backend.blobs():
        ref = f"rwkv1-{name[:64]}"
        lost = ref in needed and ref not in books.states  # its row may yet be made again
        if name in named or lost or age <= _WRITING_SECONDS:
            continue
        if not _is_named(backend.reader, name):  # by a row that came after the books were read
            yield name


def _is_named(reader: Reader, name: str) -> bool:
    """Says whether a row names a file, or may: one that cannot be read."""
    ref = f"rwkv1-{name[:64]}"
    try:
        data = reader.get(rows.state_key(ref))
        return data is not None and StateRow.unpack(ref, data).blob == name
    except StateCorrupt:
        return True


def _sweep(backend: Backend, name: str) -> bool:
    """Deletes a file unless a row names it by now."""

    def work(transaction: Transaction) -> bool:
        if _is_named(transaction, name):
            return False
        transaction.drop_blob(name)
        return True

    return backend.transact(work, freeing=True)


class Books:
    """All rows of a store at one moment, read and sorted by what they are.

    Args:
        reader: The rows.
        backend: The blobs, in which a state without a row is looked for.
        hold: Makes something hold a state, in a mend.
    """

    def __init__(self, reader: Reader, backend: Backend, hold: Hold) -> None:
        self._backend = backend
        self._hold = hold
        self.bad: dict[bytes, str] = {}
        self.expires: dict[bytes, float] = {}
        self.sessions: dict[str, SessionRow] = {}
        self.anchors: set[str] = set()
        self.states: dict[str, StateRow] = {}
        self.holders: defaultdict[str, list[HolderRow]] = defaultdict(list)
        self.logs: defaultdict[str, list[LogRow]] = defaultdict(list)
        self.owners: set[bytes] = set()
        self.dues: list[bytes] = []
        self.rebuilds: list[bytes] = []
        self.nbytes = 0
        for row_key, data in reader.scan(_FIRST, _LAST):
            self.nbytes += len(data or b"")
            try:
                self._sort(row_key, data)
            except (StateCorrupt, ValueError) as error:
                self.bad[row_key] = str(error)
        self.nbytes += sum(state.nbytes for state in self.states.values())
        self.counted = reader.nbytes()

    def _sort(self, key: bytes, data: bytes | None) -> None:  # noqa: C901 # one case a family
        row = rows.unpack(key, data)
        self.expires[key] = row.expires
        match key[:1]:
            case b"s":
                name = rows.name_text(key[1:])
                self.sessions[name] = SessionRow.unpack(name, data)
            case b"a":
                self.anchors.add(rows.name_text(key[1:]))
            case b"t" if len(key) == 33:
                ref = rows.ref_text(key[1:])
                self.states[ref] = StateRow.unpack(ref, data)
            case b"h":
                holder = HolderRow.unpack(key, data)
                self.holders[holder.ref].append(holder)
            case b"l":
                turn = LogRow.unpack(key, data)
                self.logs[turn.session].append(turn)
            case b"o":
                self.owners.add(key)
            case b"q":
                QueueRow.unpack(key, data)
            case b"d" if len(key) > 9:
                self.dues.append(key)
            case b"r":
                self.rebuilds.append(key)
            case b"x" if len(key) == 33:
                pass
            case b"!" if key in (rows.ABOUT_KEY, rows.CLOCK_KEY):
                pass
            case _:
                raise StateCorrupt(f"The {rows.describe(key)} is of a kind that is not known.")

    def findings(self) -> Iterator[Finding]:
        """Yields what is wrong."""
        for key, problem in self.bad.items():
            mend = self._held_again(key) or _delete(key)
            yield Finding(problem, None if key == rows.ABOUT_KEY else mend)
        yield from self._session_findings()
        yield from self._state_findings()
        yield from self._holder_findings()
        yield from self._index_findings()
        if not self.bad and self.nbytes != self.counted:
            yield Finding(
                f"The rows count {self.counted} bytes and hold {self.nbytes}.",
                self._count_again,
            )

    def _held_again(self, key: bytes) -> Callable[[Transaction], str] | None:
        """Returns what writes a changed holder's row again; its key says all but its time.

        Were it deleted, the state would go that somebody put or keeps, with a whole file.
        """
        try:
            ref, kind, owner = rows.holder_name(key)
        except ValueError:
            return None
        if key[:1] != b"h" or kind not in rows.HOLDER_KINDS or ref not in self.states:
            return None

        def mend(transaction: Transaction) -> str:
            transaction.delete(key)
            self._hold(transaction, ref, kind, owner)
            return f"Wrote the {rows.describe(key)} again, with a time to live that starts now."

        return mend

    def _put_again(self, ref: str) -> Callable[[Transaction], str]:
        def mend(transaction: Transaction) -> str:
            self._hold(transaction, ref, b"p", "")
            return f"Holds the state {ref} as if it were put now, for the store's time to live."

        return mend

    # -- sessions --------------------------------------------------------------------------------

    def _session_findings(self) -> Iterator[Finding]:
        for name in sorted(self.anchors - set(self.sessions)):
            yield Finding(
                f"The session {name!r} exists, but its row is lost or was changed: "
                f"store.delete_session({name!r}) lets it start anew."
            )
        for name, session in self.sessions.items():
            if name not in self.anchors:
                yield Finding(f"The anchor row of {name!r} is lost.", _put(rows.anchor_key(name)))
            for ref in session.kept:
                if ref not in self.states:
                    yield Finding(f"The session {name!r} needs the state {ref}, which is lost.")
            newest = [turn.ref for turn in self.logs[name] if turn.seq == session.turns]
            if session.head is not None and newest != [session.head]:
                yield Finding(f"The log of the session {name!r} does not end at its head.")
        for name, turns in self.logs.items():
            if name not in self.sessions and name not in self.anchors:
                for turn in turns:
                    key = rows.log_key(name, turn.seq)
                    yield Finding(f"The {rows.describe(key)} has no session.", _delete(key))

    # -- states ----------------------------------------------------------------------------------

    def _state_findings(self) -> Iterator[Finding]:
        for ref, state in self.states.items():
            held = len(self.holders[ref])
            missing = self._missing_holders(ref)
            if not held and not missing and not self._may_be_held(ref):
                if state.holders:  # a holder's row was lost: the state stays for a while
                    yield Finding(
                        f"The state {ref} counts {state.holders} holders and has none.",
                        self._put_again(ref),
                    )
                else:
                    yield Finding(f"Nothing holds the state {ref}.", _drop(state))
                continue
            if held != state.holders and not missing and not self._bad_holders(ref):
                counted = replace(state, holders=held)
                yield Finding(
                    f"The state {ref} counts {state.holders} holders and has {held}.",
                    _put_state(counted),
                )
        for ref in sorted(set(self.holders) - set(self.states)):
            if self.holders[ref]:
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
                holders=len(self.holders[ref]),
            )
            yield Finding(problem, _put_state(row))
            return
        yield Finding(problem)

    # -- holders ---------------------------------------------------------------------------------

    def _missing_holders(self, ref: str) -> list[str]:
        """Returns the sessions that keep a state and have no holder's row for it."""
        there = {holder.owner for holder in self.holders[ref] if holder.kind == b"s"}
        return [name for name in self._keepers.get(ref, ()) if name not in there]

    @property
    def _keepers(self) -> dict[str, list[str]]:
        keepers: dict[str, list[str]] | None = self.__dict__.get("_keepers_made")
        if keepers is None:
            made: defaultdict[str, list[str]] = defaultdict(list)
            for name, session in self.sessions.items():
                for ref in session.kept:
                    made[ref].append(name)
            keepers = self.__dict__["_keepers_made"] = dict(made)
        return keepers

    def _bad_holders(self, ref: str) -> bool:
        prefix = b"h" + rows.ref_bytes(ref)
        return any(key.startswith(prefix) for key in self.bad)

    def _may_be_held(self, ref: str) -> bool:
        """Says whether a session that cannot be read may need a state."""
        unreadable = self.anchors - set(self.sessions)
        return self._bad_holders(ref) or any(
            turn.ref == ref for name in unreadable for turn in self.logs[name]
        )

    def _holder_findings(self) -> Iterator[Finding]:
        for ref in self._keepers:
            if ref in self.states:
                for name in self._missing_holders(ref):
                    holder = HolderRow(ref, b"s", name)
                    yield Finding(
                        f"The session {name!r} has no holder's row for {ref}.",
                        _put_holder(holder),
                    )
        for ref, holders in self.holders.items():
            for holder in holders:
                yield from self._dangling(ref, holder)

    def _dangling(self, ref: str, holder: HolderRow) -> Iterator[Finding]:
        session = self.sessions.get(holder.owner)
        if holder.kind == b"s" and (
            (session is None and holder.owner not in self.anchors)
            or (session is not None and ref not in session.kept)
        ):
            yield Finding(
                f"A holder's row says that the session {holder.owner!r} needs {ref}; it does not.",
                _delete(holder.key),
            )
        if holder.kind == b"k":
            key = rows.owner_key(holder.owner, ref)
            if key not in self.owners:
                yield Finding(f"The {rows.describe(key)} is lost.", _put(key))

    # -- indices ---------------------------------------------------------------------------------

    def _index_findings(self) -> Iterator[Finding]:
        held = {
            rows.owner_key(holder.owner, ref)
            for ref, holders in self.holders.items()
            for holder in holders
            if holder.kind == b"k"
        }
        for key in sorted(self.owners - held):
            yield Finding(f"The {rows.describe(key)} leads to no holder.", _delete(key))
        logged = {
            rows.rebuild_key(turn.ref, turn.session)
            for turns in self.logs.values()
            for turn in turns
        }
        for key in self.rebuilds:
            if key not in logged:
                yield Finding(f"The {rows.describe(key)} leads to no log entry.", _delete(key))
        yield from self._due_findings()

    def _due_findings(self) -> Iterator[Finding]:  # noqa: C901 # three sources of dues
        wanted: dict[bytes, bytes] = {}
        for session in self.sessions.values():
            target = rows.session_key(session.name)
            if math.isfinite(session.due):
                wanted[rows.due_key(session.due, target)] = target
        for holders in self.holders.values():
            for holder in holders:
                if math.isfinite(holder.due):
                    wanted[rows.due_key(holder.due, holder.key)] = holder.key
        for key, expires in self.expires.items():
            if key[:1] == b"x":
                wanted[rows.due_key(expires, key)] = key
        for key in sorted(set(wanted) - set(self.dues)):
            yield Finding(
                f"The {rows.describe(wanted[key])} would never be pruned: its due row is lost.",
                _put(key),
            )
        for key in self.dues:
            if key not in wanted:
                yield Finding(f"The {rows.describe(key)} leads to nothing.", _delete(key))

    def _count_again(self, transaction: Transaction) -> str:
        blobs = {rows.state_key(ref): state.nbytes for ref, state in self.states.items()}
        for key, data in transaction.scan(_FIRST, _LAST):
            if data is not None:
                transaction.put(key, data, blob_nbytes=blobs.get(key, 0))
        return "Counted all bytes again."


def _delete(key: bytes) -> Callable[[Transaction], str]:
    def mend(transaction: Transaction) -> str:
        transaction.delete(key)
        return f"Deleted the {rows.describe(key)}."

    return mend


def _put(key: bytes) -> Callable[[Transaction], str]:
    def mend(transaction: Transaction) -> str:
        transaction.put(key, rows.pack(key, {}))
        return f"Wrote the {rows.describe(key)} again."

    return mend


def _put_holder(holder: HolderRow) -> Callable[[Transaction], str]:
    def mend(transaction: Transaction) -> str:
        transaction.put(holder.key, holder.pack())
        return f"Wrote the {rows.describe(holder.key)} again."

    return mend


def _put_state(state: StateRow) -> Callable[[Transaction], str]:
    def mend(transaction: Transaction) -> str:
        transaction.put(rows.state_key(state.ref), state.pack(), blob_nbytes=state.nbytes)
        return f"Wrote the row of the state {state.ref} again."

    return mend


def _drop(state: StateRow) -> Callable[[Transaction], str]:
    def mend(transaction: Transaction) -> str:
        transaction.delete(rows.state_key(state.ref))
        transaction.drop_blob(state.blob)
        return f"Deleted the state {state.ref}."

    return mend
