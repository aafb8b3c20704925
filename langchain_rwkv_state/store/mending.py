"""State files that are damaged or missing: found, told apart from what just went, and mended.

A mend takes a session back to its newest whole state and puts the damaged file aside; it deletes
nothing that somebody may want to look into. The easy mistake is to believe a first look: a file
that is gone may be that of a state that was deleted a moment ago, so its row is asked again
afterwards, which goes before the file does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from langchain_rwkv_state.errors import StateCorrupt, StoreError
from langchain_rwkv_state.store.backend import Backend, change
from langchain_rwkv_state.store.damage import advice, read_state, way_back
from langchain_rwkv_state.store.rows import Holder, HoldRow, SessionRow, StateRow
from langchain_rwkv_state.store.tables import Changes, Tables


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
    """What is wrong with the files of a store's states.

    Args:
        backend: The rows and blobs.
        key: The store's secret.
        clock: Tells the store's time.
        states: The states' rows as they stood at one moment.
    """

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
        view = Tables(self._backend.sql, self._clock())
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
            now = Tables(self._backend.sql, self._clock()).stored_state(row.ref)
            return now is not None and now.blob == row.blob
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
