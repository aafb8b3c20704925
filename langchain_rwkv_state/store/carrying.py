"""Sessions that leave a store as a bundle, and sessions that come in from one.

What a session is, is told by `manifest`, and its file is read and written by `bundle`; here the two
meet the tables. The easy mistake is to carry references over: each store keys its own, so a state
that comes in is named anew by its derivation, and everything that speaks of it is told the new
name.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from langchain_rwkv_state import state as states
from langchain_rwkv_state.errors import (
    SessionConflict,
    StateCorrupt,
    StateExpired,
    StateNotFound,
    StoreError,
    StoreFull,
)
from langchain_rwkv_state.state import LOSSY, CodecName, reference
from langchain_rwkv_state.store.backend import Backend, look
from langchain_rwkv_state.store.bundle import BundleReader, new_bundle, open_bundle
from langchain_rwkv_state.store.clock import TTL, ttl_seconds
from langchain_rwkv_state.store.damage import read_state, with_advice
from langchain_rwkv_state.store.heads import Heads
from langchain_rwkv_state.store.manifest import Manifest
from langchain_rwkv_state.store.records import LogEntry, Origin
from langchain_rwkv_state.store.renaming import Names
from langchain_rwkv_state.store.rows import Holder, SessionRow, StateRow
from langchain_rwkv_state.store.tables import Changes, Tables

if TYPE_CHECKING:
    from langchain_rwkv_state.state import Decoded, RWKVState

_Exported = tuple[SessionRow, list[LogEntry], list[StateRow]]
_HOLD_SECONDS = 3600.0  # a process that is killed amid a bundle leaves nothing that lasts longer


class Write(Protocol):
    """Runs work on the tables in a transaction, as `TableStore` does."""

    def __call__(self, work: Callable[[Changes], Any], *, freeing: bool = False) -> Any:
        """Returns what the work returned."""
        ...


class Exporter:
    """Writes sessions to bundles.

    Args:
        backend: The blobs.
        key: The store's secret.
        write: Runs a transaction.
        now: Tells the store's time.
    """

    def __init__(
        self, backend: Backend, key: bytes, write: Write, now: Callable[[], float]
    ) -> None:
        self._backend = backend
        self._key = key
        self._write = write
        self._now = now

    def write(self, session: str, path: Path, *, tokens: bool) -> None:
        """See `StateStore.export_session`."""
        with new_bundle(path) as bundle, self._held(session) as (row, log, held):
            if tokens and not any(turn.origin for turn in log):
                raise ValueError(
                    f"No token ids of the session {session!r} are kept: only a store with "
                    "log='tokens' keeps them. Leave tokens out."
                )
            manifest = Manifest(
                session=session,
                created=row.created,
                updated=row.updated,
                expires=row.expires,
                ttl=row.ttl,
                sliding=row.sliding,
                turns=row.turns,
                unread=row.unread,
                log=tuple(turn if tokens else replace(turn, origin=None) for turn in reversed(log)),
                states=tuple(bundle.add_state(state.ref, self._file(state)) for state in held),
            )
            bundle.add_manifest(manifest)

    def _file(self, row: StateRow) -> bytes:
        """Returns a state's file as it is stored, once it is known to be right."""
        try:
            return read_state(self._backend, row, self._key)[0]
        except StateCorrupt as error:
            view = Tables(self._backend.sql, self._now())
            raise with_advice(error, self._backend, view, row, self._key) from error

    @contextmanager
    def _held(self, session: str) -> Iterator[_Exported]:
        """Gives what is to be copied, and keeps it in the store for so long, if it can."""
        if self._backend.read_only:  # whoever writes there meanwhile may delete a file under us
            now = self._now()
            yield look(self._backend, now, lambda tables: _exported(tables, session))
            return

        def work(changes: Changes, owner: str) -> _Exported:
            found = _exported(changes, session)
            for state in found[2]:
                changes.hold(state.ref, Holder.OWNER, owner, _HOLD_SECONDS)
            return found

        with _temporary_owner(self._write) as owner:
            yield self._write(lambda changes: work(changes, owner), freeing=True)


def _exported(view: Tables, session: str) -> _Exported:
    """Returns a session, its log and its states, newest first."""
    row = view.session(session)
    if row is None:
        raise StateNotFound(f"There is no session {session!r} to export.")
    log = view.log(session)
    refs = dict.fromkeys((*row.kept, *(turn.ref for turn in log if view.lives(turn.ref))))
    return row, log, [view.state_to_hold(ref) for ref in refs]


class Importer:
    """Takes sessions in from bundles.

    Args:
        key: The store's secret.
        codec: How the store keeps states.
        tokens: Whether the store keeps token ids.
        heads: Makes new sessions.
        view: Looks at the tables.
        write: Runs a transaction.
        with_bytes: Runs a transaction on a state whose bytes are written first.
        write_blob: Writes a state's bytes, given reference, state, parent and origin.
    """

    def __init__(
        self,
        *,
        key: bytes,
        codec: CodecName,
        tokens: bool,
        heads: Heads,
        view: Callable[[], Tables],
        write: Write,
        with_bytes: Callable[[str, Callable[[], StateRow | None], Callable[[Changes], None]], None],
        write_blob: Callable[[str, RWKVState, str | None, Origin | None], StateRow],
    ) -> None:
        self._key = key
        self._codec = codec
        self._tokens = tokens
        self._heads = heads
        self._view = view
        self._write = write
        self._with_bytes = with_bytes
        self._write_blob = write_blob

    def read(self, path: Path, session: str | None, ttl: TTL) -> SessionRow:
        """See `StateStore.import_session`."""
        with open_bundle(path) as bundle:
            manifest = bundle.manifest
            name = session or manifest.session
            view = self._view()
            _require_new(view, name)
            _lifetime(manifest, view.now, ttl)
            with _temporary_owner(self._write) as owner:
                names = self._take_states(bundle, owner)

                def work(changes: Changes) -> SessionRow:
                    row = self._begin(changes, name, manifest, names, ttl)
                    changes.release(owner)
                    return row

                row: SessionRow = self._write(work)
                return row

    def _take_states(self, bundle: BundleReader, owner: str) -> Names:
        """Stores the states, oldest first, for an owner; returns their names here."""
        manifest = bundle.manifest
        names = Names(self._key, manifest.log if self._tokens else ())
        for number in reversed(range(len(manifest.states))):
            old = manifest.states[number].ref
            found = states.decode(bundle.state(number), ref=old)
            if any(t.ref == old and t.n_tokens != found.state.n_tokens for t in manifest.log):
                raise StateCorrupt(f"The bundle's log tells another length of the state {old}.")
            state = self._as_kept(found)
            names.learn(old, state.derivation)
            self._store(state, names.of(found.parent), names.origin_of(old), owner)
        if len({names(state.ref) for state in manifest.states}) != len(manifest.states):
            raise StateCorrupt("The bundle holds one state under two names.")
        return names

    def _as_kept(self, found: Decoded) -> RWKVState:
        """Returns a state as this store keeps it.

        A lossy store takes its loss, but not of what its own codec kept already, here or elsewhere:
        that loses nothing more, and stays the state that it is.
        """
        state = found.state
        if self._codec not in LOSSY or found.codec == self._codec:
            return state
        if self._view().lives(reference(state.derivation, self._key)):
            return state
        return states.lossy(state, self._codec)

    def _store(
        self, state: RWKVState, parent: str | None, origin: Origin | None, owner: str
    ) -> None:
        states.require_finite(state)
        ref = reference(state.derivation, self._key)

        def write_bytes() -> StateRow | None:
            if self._view().lives(ref):
                return None  # the first bytes under a reference stay
            return self._write_blob(ref, state, parent, origin)

        self._with_bytes(
            ref, write_bytes, lambda changes: changes.hold(ref, Holder.OWNER, owner, _HOLD_SECONDS)
        )

    def _begin(
        self, changes: Changes, name: str, manifest: Manifest, names: Names, ttl: TTL
    ) -> SessionRow:
        """Makes the session in a transaction."""
        _require_new(changes, name)
        self._heads.living(changes, name)  # removes what is left of an expired one
        seconds, expires = _lifetime(manifest, changes.now, ttl)
        kept = tuple(names(state.ref) for state in manifest.states)
        for ref in kept:
            changes.hold(ref, Holder.SESSION, name)
        first = manifest.turns - len(manifest.log) + 1
        for seq, turn in enumerate(manifest.log, first):
            row = replace(
                turn,
                ref=names(turn.ref),
                parent=names.of(turn.parent),
                origin=names.moved(turn.origin) if self._tokens else None,
                seq=seq,
            )
            changes.add_turn(name, row)
        session = SessionRow(
            name=name,
            head=names.of(manifest.head),
            n_tokens=manifest.log[-1].n_tokens if manifest.log else 0,
            turns=manifest.turns,
            created=manifest.created,
            updated=manifest.updated,
            expires=expires,
            ttl=seconds,
            sliding=manifest.sliding,
            kept=kept,
            unread=manifest.unread,
        )
        changes.save_session(session, None)
        return session


def _require_new(view: Tables, name: str) -> None:
    if view.session(name) is not None:
        raise SessionConflict(
            f"The session {name!r} exists already: give the imported one another name, or delete "
            "it first."
        )


def _lifetime(manifest: Manifest, now: float, ttl: TTL) -> tuple[float, float]:
    """Returns an imported session's time to live, and its end.

    Raises:
        StateExpired: It is a fixed one and its end has passed.
    """
    seconds = ttl_seconds(ttl, manifest.ttl)
    if ttl is not None or manifest.sliding:
        return seconds, now + seconds
    if manifest.expires <= now:
        ago = math.ceil(now - manifest.expires)
        raise StateExpired(
            f"The session {manifest.session!r} in the bundle was to end at a fixed time, which was "
            f"{ago} seconds ago: give it a ttl to take it in all the same."
        )
    return seconds, manifest.expires


@contextmanager
def _temporary_owner(write: Write) -> Iterator[str]:
    """Gives a name to hold states under; what it holds is let go of at the end.

    Where that cannot happen (a kill, a store that broke), the holds run out by themselves.
    """
    owner = f"bundle:{secrets.token_hex(16)}"
    try:
        yield owner
    finally:
        with suppress(StoreError, StoreFull):
            write(lambda changes: changes.release(owner), freeing=True)
