"""Writes a session of a store to a bundle, and takes one in from a bundle.

`bundle` reads and writes the file; here it meets the tables. The easy mistake is to carry
references over: each store keys its own, so a state that comes in is named anew by its derivation,
and everything that speaks of it is told the new name.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_rwkv_state import state as states
from langchain_rwkv_state.errors import (
    SessionConflict,
    StateCorrupt,
    StateExpired,
    StateNotFound,
    StoreError,
    StoreFull,
)
from langchain_rwkv_state.state import Derivation, reference
from langchain_rwkv_state.store.backend import look
from langchain_rwkv_state.store.bundle import BundleReader, Manifest, new_bundle, open_bundle
from langchain_rwkv_state.store.clock import TTL, ttl_seconds
from langchain_rwkv_state.store.damage import read_state, with_advice
from langchain_rwkv_state.store.records import LogEntry, Origin, joined, unpack_tokens
from langchain_rwkv_state.store.rows import Holder, SessionRow, StateRow
from langchain_rwkv_state.store.tables import Changes, Tables

if TYPE_CHECKING:
    from langchain_rwkv_state.state import RWKVState
    from langchain_rwkv_state.store.store import TableStore

_Exported = tuple[SessionRow, list[LogEntry], list[StateRow]]
_HOLD_SECONDS = 3600.0  # a process that is killed amid a bundle leaves nothing that lasts longer


def export_session(store: TableStore, session: str, path: Path, *, tokens: bool) -> None:
    """See `StateStore.export_session`."""
    with new_bundle(path) as bundle, _held(store, session) as (row, log, held):
        if tokens and not any(turn.origin for turn in log):
            raise ValueError(
                f"No token ids of the session {session!r} are kept: only a store with "
                "log='tokens' keeps them. Leave tokens out."
            )
        told = tuple(turn if tokens else replace(turn, origin=None) for turn in reversed(log))
        files = tuple(bundle.add_state(state.ref, _file(store, state)) for state in held)
        bundle.add_manifest(Manifest(row, told, files))


def import_session(store: TableStore, path: Path, session: str | None, ttl: TTL) -> SessionRow:
    """See `StateStore.import_session`."""
    with open_bundle(path) as bundle:
        manifest = bundle.manifest
        name = session or manifest.row.name
        view = store._view()
        _require_new(view, name)
        _lifetime(manifest.row, view.now, ttl)
        with _temporary_owner(store) as owner:
            names = _take_states(store, bundle, owner)

            def work(changes: Changes) -> SessionRow:
                row = _begin(store, changes, name, manifest, names, ttl)
                changes.release(owner)
                return row

            return store._write(work)


def _file(store: TableStore, row: StateRow) -> bytes:
    """Returns a state's file as it is stored, once it is known to be right."""
    try:
        return read_state(store._backend, row, store._key)[0]
    except StateCorrupt as error:
        raise with_advice(error, store._backend, store._view(), row, store._key) from error


@contextmanager
def _held(store: TableStore, session: str) -> Iterator[_Exported]:
    """Gives a session, its log and its states, newest first, and holds these for so long."""

    def found(view: Tables) -> _Exported:
        row = view.session(session)
        if row is None:
            raise StateNotFound(f"There is no session {session!r} to export.")
        log = view.log(session)
        refs = dict.fromkeys((*row.kept, *(turn.ref for turn in log if view.lives(turn.ref))))
        return row, log, [view.state_to_hold(ref) for ref in refs]

    if store._backend.read_only:  # whoever writes there meanwhile may delete a file under us
        yield look(store._backend, store._clock.now(), found)
        return

    with _temporary_owner(store) as owner:

        def work(changes: Changes) -> _Exported:
            exported = found(changes)
            for state in exported[2]:
                changes.hold(state.ref, Holder.OWNER, owner, _HOLD_SECONDS)
            return exported

        yield store._write(work, freeing=True)


@contextmanager
def _temporary_owner(store: TableStore) -> Iterator[str]:
    """Gives a name to hold states under; what it holds is let go of at the end.

    Where that cannot happen (a kill, a store that broke), the holds run out by themselves.
    """
    owner = f"bundle:{secrets.token_hex(16)}"
    try:
        yield owner
    finally:
        with suppress(StoreError, StoreFull):
            store._write(lambda changes: changes.release(owner), freeing=True)


def _take_states(store: TableStore, bundle: BundleReader, owner: str) -> _Names:
    """Stores the states, oldest first, for an owner; returns their names here."""
    manifest = bundle.manifest
    names = _Names(store._key, manifest.log if store._log_tokens else ())
    for number in reversed(range(len(manifest.states))):
        old = manifest.states[number].ref
        found = states.decode(bundle.state(number), ref=old)
        if any(t.ref == old and t.n_tokens != found.state.n_tokens for t in manifest.log):
            raise StateCorrupt(f"The bundle's log tells another length of the state {old}.")
        # What a lossy store's own codec kept already, here or elsewhere, loses nothing more.
        kept = found.codec == store._codec
        state = found.state if kept else store._as_kept(found.state)[1]
        names.learn(old, state.derivation)
        _store_state(store, state, names.of(found.parent), names.origin_of(old), owner)
    if len(set(map(names, manifest.row.kept))) != len(manifest.states):
        raise StateCorrupt("The bundle holds one state under two names.")
    return names


def _store_state(
    store: TableStore, state: RWKVState, parent: str | None, origin: Origin | None, owner: str
) -> None:
    states.require_finite(state)
    ref = reference(state.derivation, store._key)

    def write_bytes() -> StateRow | None:
        if store._view().lives(ref):
            return None  # the first bytes under a reference stay
        return store._write_blob(ref, state, parent, origin)

    store._with_bytes(
        ref, write_bytes, lambda changes: changes.hold(ref, Holder.OWNER, owner, _HOLD_SECONDS)
    )


def _begin(
    store: TableStore, changes: Changes, name: str, manifest: Manifest, names: _Names, ttl: TTL
) -> SessionRow:
    """Makes the session in a transaction."""
    _require_new(changes, name)
    store._heads.living(changes, name)  # removes what is left of an expired one
    seconds, expires = _lifetime(manifest.row, changes.now, ttl)
    kept = tuple(map(names, manifest.row.kept))
    for ref in kept:
        changes.hold(ref, Holder.SESSION, name)
    for seq, turn in enumerate(manifest.log, manifest.first):
        row = replace(
            turn,
            ref=names(turn.ref),
            parent=names.of(turn.parent),
            origin=names.moved(turn.origin) if store._log_tokens else None,
            seq=seq,
        )
        changes.add_turn(name, row)
    session = replace(
        manifest.row,
        name=name,
        head=names.of(manifest.row.head),
        expires=expires,
        ttl=seconds,
        kept=kept,
    )
    changes.save_session(session, None)
    return session


def _require_new(view: Tables, name: str) -> None:
    if view.session(name) is not None:
        raise SessionConflict(
            f"The session {name!r} exists already: give the imported one another name, or delete "
            "it first."
        )


def _lifetime(row: SessionRow, now: float, ttl: TTL) -> tuple[float, float]:
    """Returns an imported session's time to live, and its end.

    Raises:
        StateExpired: It is a fixed one and its end has passed.
    """
    seconds = ttl_seconds(ttl, row.ttl)
    if ttl is not None or row.sliding:
        return seconds, now + seconds
    if row.expires <= now:
        ago = math.ceil(now - row.expires)
        raise StateExpired(
            f"The session {row.name!r} in the bundle was to end at a fixed time, which was "
            f"{ago} seconds ago: give it a ttl to take it in all the same."
        )
    return seconds, row.expires


class _Names:
    """What the states of another store are called in this one, where their derivations are known.

    A state that came along tells its derivation; of the others only token ids can.

    Args:
        key: This store's secret.
        log: The turns, oldest first, whose token ids may be followed.
    """

    def __init__(self, key: bytes, log: tuple[LogEntry, ...]) -> None:
        self._key = key
        self._log = log
        self._known: dict[str, Derivation] = {}
        self._origins: dict[str, Origin] = {}
        self._followed: set[str] = set()
        self._follow()

    def __call__(self, old: str) -> str:
        """Returns a state's name here; its old one where nothing tells its derivation."""
        derivation = self._known.get(old)
        return old if derivation is None else reference(derivation, self._key)

    def of(self, old: str | None) -> str | None:
        """Returns the same, and ``None`` for no state."""
        return None if old is None else self(old)

    def learn(self, old: str, derivation: Derivation) -> None:
        """Notes what a state was made from."""
        self._known[old] = derivation
        self._follow()

    def moved(self, origin: Origin | None) -> Origin | None:
        """Returns an origin that names its base as this store does."""
        return None if origin is None else replace(origin, base=self.of(origin.base))

    def origin_of(self, old: str) -> Origin | None:
        """Returns what a state can be made from again, told from as far back as the log goes."""
        return self.moved(self._origins.get(old))

    def _follow(self) -> None:
        """Works out, oldest first, what the token ids of the log lead to."""
        for turn in self._log:
            origin = turn.origin
            if origin is None or turn.ref in self._followed:
                continue
            base = origin.base
            start = Derivation(origin.fingerprint) if base is None else self._known.get(base)
            if start is None or start.fingerprint != origin.fingerprint:
                continue
            self._followed.add(turn.ref)
            found = start.read(unpack_tokens(origin.tokens))
            if found.n_tokens != turn.n_tokens:
                continue  # a blend or a donor: what it was read from is not all that it is
            self._known.setdefault(turn.ref, found)
            before = None if base is None else self._origins.get(base)
            self._origins[turn.ref] = origin if before is None else joined(before, origin)
