"""States whose files are damaged or missing: whose they are, what can be done, and doing it.

A repair takes a session back to its newest whole state and puts the damaged file aside; it deletes
nothing that somebody may want to look into. The easy mistake is to believe a first look: a file
that is gone may be that of a state that was deleted a moment ago, so its row is asked again
afterwards, which goes before the file does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from langchain_rwkv_state import state as states
from langchain_rwkv_state.errors import StateCorrupt, StoreError
from langchain_rwkv_state.store.backend import Backend, change
from langchain_rwkv_state.store.records import LogEntry
from langchain_rwkv_state.store.rows import Holder, HoldRow, SessionRow, StateRow
from langchain_rwkv_state.store.tables import TOMBSTONE_SECONDS, Changes, Tables

if TYPE_CHECKING:
    from langchain_rwkv_state.state import RWKVState

IsWhole = Callable[[StateRow], bool]
_NAMED = 3  # sessions; thousands may begin with one state


def read_state(backend: Backend, row: StateRow, key: bytes) -> tuple[bytes, RWKVState]:
    """Returns a stored state's file, and the state in it.

    Raises:
        StateCorrupt: The file is missing, was changed, or holds another state.
    """
    try:
        data = backend.read_blob(row.blob, row.nbytes)
        state = None if data is None else states.decode(data, ref=row.ref).state
    except StateCorrupt as error:
        raise StateCorrupt(f"The file of the state {row.ref} cannot be used: {error}") from error
    if data is None or state is None:
        raise StateCorrupt(
            f"The file {row.blob} of the state {row.ref} is missing, though nobody deleted the "
            "state."
        )
    if states.reference(state.derivation, key) != row.ref:
        raise StateCorrupt(f"The file of the state {row.ref} holds a state of another store.")
    return data, state


def stored_state(backend: Backend, look: Callable[[], Tables], ref: str, key: bytes) -> RWKVState:
    """Returns a living state.

    Raises:
        StateExpired, StateNotFound: It is not here.
        StateCorrupt: It cannot be read; the message says whose it is and what mends it.
    """
    try:
        return read_state(backend, look().state(ref), key)[1]
    except StateCorrupt:
        view = look()
        row = view.state(ref)  # deleted, or stored anew, since the look above
        try:
            return read_state(backend, row, key)[1]
        except StateCorrupt as error:
            raise with_advice(error, backend, view, row, key) from error


def with_advice(
    error: StateCorrupt, backend: Backend, view: Tables, row: StateRow, key: bytes
) -> StateCorrupt:
    """Returns an error about a state's file that also says whose it is and what mends it."""

    def is_whole(other: StateRow) -> bool:
        try:
            read_state(backend, other, key)
        except (StateCorrupt, StoreError):
            return False
        return other.ref != row.ref

    return StateCorrupt(" ".join([str(error), *advice(view, row.ref, is_whole)]))


def advice(view: Tables, ref: str, is_whole: IsWhole) -> list[str]:
    """Returns sentences on who needs a state that cannot be read, and on the verbs that help."""
    sentences: list[str] = []
    more = 0
    for holder in view.holders(ref):
        if holder is None:
            continue
        if len(sentences) >= _NAMED:
            more += 1
        elif holder.kind == Holder.SESSION:
            sentences.append(_for_session(view, holder.owner, ref, is_whole))
        elif holder.kind == Holder.OWNER:
            sentences.append(
                f"{holder.owner!r} keeps it: check(fix=True) lets go of it, and so does "
                f"store.release({holder.owner!r})."
            )
        elif holder.kind == Holder.PUT:
            sentences.append("It was put: check(fix=True) forgets it, and then it can be put anew.")
    if more:
        sentences.append(f"{more} more need it.")
    return sentences


def way_back(view: Tables, row: SessionRow, is_whole: IsWhole) -> LogEntry | None:
    """Returns the newest turn of a session whose state is kept and whole; ``None`` for none.

    Raises:
        StateCorrupt: The session's log was changed.
    """
    for turn in view.log(row.name):
        if turn.ref in row.kept:
            state = view.stored_state(turn.ref)
            if state is not None and is_whole(state):
                return turn
    return None


def _for_session(view: Tables, name: str, ref: str, is_whole: IsWhole) -> str:
    try:
        row = view.stored_session(name)
        if row is None:
            return f"The session {name!r} needed it, and is gone."
        if row.head != ref:
            return (
                f"The session {name!r} keeps it as an earlier state, and its head is another: "
                "check(fix=True) lets go of it."
            )
        turn = way_back(view, row, is_whole)
    except StateCorrupt as error:
        return f"The session {name!r} needs it, and cannot be read either: {error}"
    if turn is None:
        return (
            f"The session {name!r} needs it and has no other whole state: restore the store from a "
            f"copy, or let the session start anew with store.delete_session({name!r})."
        )
    back = row.turns - turn.seq
    verb = f"store.rewind({name!r})" if back == 1 else f"store.rewind({name!r}, turns={back})"
    return (
        f"Its session {name!r} can go back to turn {turn.seq} of {row.turns}: {verb}, or "
        "check(fix=True) for all of the store."
    )


@dataclass(frozen=True)
class _Damage:
    """A file that is not as its row tells.

    Attributes:
        row: The state's row.
        problem: A sentence.
        can_mend: Whether it is the file that is wrong, and not the disk at this moment.
    """

    row: StateRow
    problem: str
    can_mend: bool


class Damages:
    """What is wrong with the files of states, by their rows as they stood at one moment."""

    def __init__(
        self,
        backend: Backend,
        key: bytes,
        clock: Callable[[], float],
        states: Iterable[StateRow],
    ) -> None:
        self._backend = backend
        self._key = key
        self._clock = clock
        self._found: dict[str, _Damage] = {}
        for row in states:
            damage = self._look(row)
            if damage is not None and self._still_named(row):
                self._found[row.ref] = damage

    def problems(self) -> list[str]:
        """Returns a sentence on each, with whose it is and what mends it."""
        view = self._backend.view(self._clock())
        return [
            " ".join([each.problem, *advice(view, each.row.ref, self._is_whole)])
            for each in self._found.values()
        ]

    def mend(self) -> list[str]:
        """Mends what can be; returns what was done."""
        done: list[str] = []
        for each in self._found.values():
            if each.can_mend:
                work = partial(self._mend, damage=each)
                done += change(self._backend, self._clock(), work, freeing=True)
        return done

    def _is_whole(self, row: StateRow) -> bool:
        return row.ref not in self._found

    def _look(self, row: StateRow) -> _Damage | None:
        try:
            read_state(self._backend, row, self._key)
        except StateCorrupt as error:
            return _Damage(row, str(error), can_mend=True)
        except StoreError as error:
            problem = f"The file of the state {row.ref} cannot be read: {error}"
            return _Damage(row, problem, can_mend=False)
        return None

    def _still_named(self, row: StateRow) -> bool:
        with suppress(StateCorrupt):
            view = self._backend.view(self._clock())
            now = view.stored_state(row.ref)
            if now is None or now.blob != row.blob:
                return False
            expired = view.expired_at(row.ref)  # a week later its bytes may be gone before its row
            return expired is None or expired + TOMBSTONE_SECONDS > view.now
        return False  # the row is what is wrong, and is reported as such

    def _mend(self, changes: Changes, damage: _Damage) -> list[str]:
        """Lets go of a damaged state all who can do without, then puts its file aside."""
        ref = damage.row.ref
        row = changes.stored_state(ref)
        if row is None or row.blob != damage.row.blob or self._look(row) is None:
            return []
        done: list[str] = []
        stuck = False
        for holder in list(changes.holders(ref)):
            sentence = self._without(changes, holder)
            stuck |= sentence is None
            done += [sentence] if sentence else []
        if not stuck:
            where = self._backend.set_aside(row.blob)
            done.append(f"The file {row.blob} is no state's any more: {where}.")
        return done

    def _without(self, changes: Changes, holder: HoldRow | None) -> str | None:
        """Lets one holder do without a state; ``None`` where it cannot."""
        if holder is None:
            return None  # a row that cannot be read
        ref, owner = holder.ref, holder.owner
        if holder.kind == Holder.SESSION:
            return self._session_without(changes, owner, ref)
        changes.let_go(ref, holder.kind, owner)
        if holder.kind == Holder.OWNER:
            return f"{owner!r} keeps the state {ref} no longer: it was damaged."
        return f"The state {ref} was put, and is stored no longer: it was damaged."

    def _session_without(self, changes: Changes, name: str, ref: str) -> str | None:
        try:
            session = changes.stored_session(name)
            if session is None:
                return None
            if session.head != ref:
                others = tuple(old for old in session.kept if old != ref)
                self._keep(changes, session, session, others)
                return f"The session {name!r} keeps the earlier state {ref} no longer."
            turn = way_back(changes, session, self._is_whole)
            if turn is None:
                return None
            older = {each.ref for each in changes.log(name) if each.seq <= turn.seq}
        except StateCorrupt:
            return None
        changes.cut_log(name, turn.seq)
        moved = replace(
            session,
            head=turn.ref,
            n_tokens=turn.n_tokens,
            turns=turn.seq,
            updated=changes.now,
        )
        kept = (old for old in session.kept if old in older and old not in self._found)
        self._keep(changes, session, moved, tuple(kept))
        return (
            f"The session {name!r} went back from turn {session.turns} to turn {turn.seq}, since "
            f"the state {ref} of its head was damaged."
        )

    @staticmethod
    def _keep(
        changes: Changes, before: SessionRow, session: SessionRow, kept: tuple[str, ...]
    ) -> None:
        """Saves a session that keeps fewer states than before."""
        for old in before.kept:
            if old not in kept:
                changes.let_go(old, Holder.SESSION, before.name)
        changes.save_session(replace(session, kept=kept), before)
