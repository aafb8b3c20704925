"""`TableStore`: what a commit, a fork, a rewind and an expiry mean, on disk and in memory.

It joins a backend (SQL, files, transactions), the tables, the staging area and the clock into the
verbs of `StateStore`, and touches neither files nor SQL. The easy mistake is to trust what was read
before a transaction: everything that decides is read again inside it.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_rwkv_state import state as states
from langchain_rwkv_state.errors import (
    SessionConflict,
    StateCorrupt,
    StateNotFound,
    StoreError,
    StoreFull,
)
from langchain_rwkv_state.state import CodecName, is_reference
from langchain_rwkv_state.state.header import START_BYTES, Named, model_named
from langchain_rwkv_state.store import bundle_io, turns
from langchain_rwkv_state.store.backend import Backend
from langchain_rwkv_state.store.base import Beside
from langchain_rwkv_state.store.check import check_store
from langchain_rwkv_state.store.clock import TTL, ttl_seconds
from langchain_rwkv_state.store.damage import stored_state
from langchain_rwkv_state.store.rebuild import rebuild
from langchain_rwkv_state.store.records import (
    CheckReport,
    LogEntry,
    QueuedTurn,
    Redaction,
    SessionInfo,
    StoreStats,
    TranscriptTurn,
    model_words,
)
from langchain_rwkv_state.store.redaction import redact
from langchain_rwkv_state.store.rows import Holder, SessionRow, StateRow
from langchain_rwkv_state.store.settings import (
    LIMIT_BYTES,
    bundled_bytes,
    check_flag,
    check_name,
    check_texts,
    is_whole,
    require_messages,
)
from langchain_rwkv_state.store.tables import RENEW_AFTER, Changes, Tables
from langchain_rwkv_state.store.transcript import logged_session, texts
from langchain_rwkv_state.store.verbs import Threads, twin
from langchain_rwkv_state.store.writes import OpenStore

if TYPE_CHECKING:
    from langchain_rwkv_state.runtime.base import Runtime
    from langchain_rwkv_state.state import RWKVState

logger = logging.getLogger("langchain_rwkv_state.store")

T = TypeVar("T")
_PRUNE_BATCH = 50  # things a transaction, so that writers wait for a few milliseconds only


class TableStore(OpenStore):
    """A `StateStore` over any backend; see `OpenStore`. What a verb promises, `StoreVerbs` says."""

    @property
    def _threads(self) -> Threads:
        return self._resources.value.threads

    @property
    def beside(self) -> dict[str, Beside]:
        return self._resources.value.beside

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'closed' if self._closed else 'open'})"

    @property
    def codec(self) -> CodecName:
        """How this store's states become bytes."""
        return self._codec

    # -- states ----------------------------------------------------------------------------------

    def put(self, state: RWKVState, *, ttl: TTL = None) -> str:
        self._check_open()
        seconds = ttl_seconds(ttl, self._ttl)
        _check_state(state)
        states.require_finite(state)
        ref, state = self._as_kept(state)

        self._with_state(
            ref, lambda changes: changes.hold(ref, Holder.PUT, "", seconds), state=state
        )
        return ref

    def stage(
        self, state: RWKVState, *, parent: str | None = None, tokens: Sequence[int] = ()
    ) -> str:
        self._check_open()
        if parent is not None:
            _check_ref(parent, "parent")
            if self._staging.is_redacted(parent) and not self._view().lives(parent):
                raise StateNotFound(
                    f"The state {parent} was redacted while an answer was read on from it: begin "
                    "again from where its session is now."
                )
        _check_state(state)
        states.require_finite(state)
        ref, state = self._as_kept(state)
        # One at a time, so that memory never holds more than its share: whoever comes meanwhile
        # waits for the disk, and has its state in its own hands.
        with self._resources.value.staging_room:
            if self._staged(ref) is None:
                self._make_room(state.nbytes)
            self._staging.stage(ref, state, parent, tokens, now=self._clock.now())
        return ref

    def get(self, ref: str, *, renew: bool = True) -> RWKVState:
        self._check_open()
        _check_ref(ref, "ref")
        staged = self._staged(ref)
        state = None if staged is None else self._state_of(staged)
        if state is not None:
            return state
        try:
            state = stored_state(self._backend, self._view, ref, self._key)
        except StateNotFound as error:
            raise self._unless_expired(error, ref) from None
        if renew:
            self._renew_holds(self._view(), ref)
        return state

    def descends(self, later: str, earlier: str) -> bool:
        self._check_open()
        _check_ref(later, "later")
        _check_ref(earlier, "earlier")
        view, seen = self._view(), set[str]()
        todo: list[str | None] = [later]
        while todo:
            ref = todo.pop()
            if ref == earlier:
                return True
            if ref is None or ref in seen:
                continue
            seen.add(ref)
            staged, row = self._staged(ref), view.stored_state(ref)
            todo += [made.parent for made in (staged, row) if made is not None]
            todo += view.parents(ref)
        return False

    def keep(self, ref: str, owner: str, ttl: TTL = None) -> None:
        self._check_open()
        _check_ref(ref, "ref")
        check_name(owner, "owner")
        seconds = ttl_seconds(ttl, self._ttl)

        def work(changes: Changes) -> None:
            changes.hold(ref, Holder.OWNER, owner, seconds)
            if self._settings.sliding:
                changes.renew_kept(owner, 1 - RENEW_AFTER)

        self._with_state(ref, work)

    def kept(self, owner: str) -> list[str]:
        self._check(owner=owner)
        return [hold.ref for hold in self._view().kept(owner)]

    def copy_kept(self, owner: str, new_owner: str, ttl: TTL = None) -> int:
        self._check(owner=owner)
        self._check(owner=new_owner)
        seconds = None if ttl is None else ttl_seconds(ttl, self._ttl)

        def work(changes: Changes) -> int:
            holds = changes.kept(owner)
            for hold in holds:
                changes.hold(
                    hold.ref, Holder.OWNER, new_owner, hold.ttl if seconds is None else seconds
                )
            return len(holds)

        return self._write(work)

    def release(self, owner: str) -> int:
        self._check(owner=owner)
        return self._write(lambda changes: changes.release(owner), freeing=True)

    # -- sessions --------------------------------------------------------------------------------

    def head(self, session: str) -> str | None:
        self._check(session=session)
        view = self._view()
        found = view.head(session)
        if found is None:
            return None
        head, expires, ttl, sliding = found
        if not sliding or not _worn(expires, ttl, view.now):
            return head
        row = self._read_session(session)
        return None if row is None else row.head

    def session(self, session: str, *, renew: bool = True) -> SessionInfo | None:
        row = self._read_session(session, renew=renew)
        return None if row is None else self._info(row)

    def commit(
        self,
        session: str,
        ref: str,
        parent: str | None,
        ttl: TTL = None,
        *,
        sliding: bool | None = None,
        unread_covered: int = 0,
        said: Sequence[str] = (),
        place: str | None = None,
    ) -> None:
        self._check(session=session)
        _check_ref(ref, "ref")
        if parent is not None:
            _check_ref(parent, "parent")
        ttl_seconds(ttl, self._ttl)
        if sliding is not None:
            check_flag(sliding, "sliding")
        check_texts(said, "said")
        if not is_whole(unread_covered, 0):
            raise ValueError(f"unread_covered is a number, 0 or more, got {unread_covered!r}.")
        view = self._view()
        found = view.head(session)
        _expect_head(None if found is None else found[0], session, parent)
        origin = self._origin(view, ref, parent) if self._log_tokens else None

        living: list[tuple[SessionRow, SessionRow | None]] = []

        # An expired session may hold the very state that begins a new one: let go of it first.
        def first(changes: Changes) -> None:
            living[:] = [self._heads.living(changes, session)]

        def work(changes: Changes) -> None:
            ((row, old),) = living
            if place is not None:
                turns.end(changes, session, place)
            _expect_head(row.head, session, parent)
            if unread_covered > len(row.unread):
                raise ValueError(
                    f"unread_covered is {unread_covered}, but the session {session!r} has "
                    f"{len(row.unread)} unread messages."
                )
            row = replace(row, unread=row.unread[unread_covered:], updated=changes.now)
            row = self._heads.renewed(row, changes.now, ttl, sliding)
            if ref != row.head:
                row = self._heads.moved(changes, row, ref, origin, tuple(said))
            changes.save_session(row, old)

        self._with_state(ref, work, first=first)

    def create_session(self, session: str, ttl: TTL = None) -> None:
        self._check(session=session)
        ttl_seconds(ttl, self._ttl)

        def work(changes: Changes) -> None:
            _require_free(changes, session)
            row, _ = self._heads.living(changes, session)
            changes.save_session(self._heads.renewed(row, changes.now, ttl, None), None)

        self._write(work)

    def append_unread(self, session: str, messages: Sequence[str], ttl: TTL = None) -> None:
        self._check(session=session)
        check_texts(messages, "messages")
        require_messages(messages)
        ttl_seconds(ttl, self._ttl)
        if not messages:
            return

        def work(changes: Changes) -> None:
            row, old = self._heads.living(changes, session)
            row = replace(row, unread=(*row.unread, *messages), updated=changes.now)
            if len(row.unread) > 1 and bundled_bytes(row.unread) > LIMIT_BYTES:
                raise StoreFull(
                    f"The session {session!r} would hold {bundled_bytes(row.unread)} bytes of "
                    f"unread messages, and one holds {LIMIT_BYTES}: let a turn read them first."
                )
            changes.save_session(self._heads.renewed(row, changes.now, ttl, None), old)

        self._write(work)

    def log(self, session: str) -> list[LogEntry]:
        self._check(session=session)
        view = self._view()
        if view.session(session) is None:
            return []
        return [replace(turn, kept=view.lives(turn.ref), origin=None) for turn in view.log(session)]

    def sessions(self, prefix: str = "") -> list[str]:
        self._check_open()
        check_texts([prefix], "prefix")
        return self._look(lambda tables: tables.session_names(prefix))

    def fork(self, session: str, new_session: str, at: str | None = None) -> str:
        self._check(session=session, new=new_session)
        if at is not None:
            _check_ref(at, "at")

        def work(changes: Changes) -> str:
            source = changes.session(session)
            if source is None or source.head is None:
                raise StateNotFound(f"The session {session!r} has no state to fork.")
            _require_free(changes, new_session)
            turn = self._heads.turn_at(changes, source, at or source.head)
            fresh, _ = self._heads.living(changes, new_session)
            fresh = replace(
                fresh,
                ttl=source.ttl,
                sliding=source.sliding,
                expires=changes.now + source.ttl,
                turns=turn.seq,
                unread=source.unread if turn.ref == source.head else (),
            )
            changes.copy_log(session, new_session, turn.seq)
            changes.save_session(self._heads.back_to(changes, fresh, turn), None)
            return turn.ref

        return self._write(work)

    def rewind(self, session: str, turns: int = 1, to: str | None = None) -> str | None:
        self._check(session=session)
        if to is not None:
            _check_ref(to, "to")
        elif not is_whole(turns, 1):
            raise ValueError(f"A session is rewound by 1 turn or more, got {turns!r}.")

        def work(changes: Changes) -> str | None:
            row = changes.session(session)
            if row is None:
                raise StateNotFound(f"There is no session {session!r} to rewind.")
            turn = self._heads.rewind_target(changes, row, turns, to)
            seq = 0 if turn is None else turn.seq
            changes.cut_log(session, seq)
            new = replace(row, turns=seq, unread=(), updated=changes.now)
            new = self._heads.renewed(new, changes.now, None, None)
            changes.save_session(self._heads.back_to(changes, new, turn), row)
            return None if turn is None else turn.ref

        return self._write(work, freeing=True)

    def rename(self, session: str, new_session: str) -> None:
        self._check(session=session, new=new_session)

        def work(changes: Changes) -> None:
            row = changes.session(session)
            if row is None:
                raise StateNotFound(f"There is no session {session!r} to rename.")
            _require_free(changes, new_session)
            for name in (session, new_session):
                turns.require_empty(changes, name)
            changes.remove_session(new_session, expired=True)  # what is left of an expired one
            changes.rename_session(row, new_session)

        self._write(work)
        for kept in self.beside.values():
            kept.renamed(session, new_session)

    def delete_session(self, session: str) -> bool:
        self._check(session=session)

        def work(changes: Changes) -> bool:
            try:
                expired = changes.stored_session(session) is not None
                alive = changes.session(session) is not None
            except StateCorrupt:
                expired, alive = False, True
            changes.remove_session(session, expired=expired and not alive)
            return alive

        return self._write(work, freeing=True)

    # -- queues ----------------------------------------------------------------------------------

    def enter_queue(self, session: str, token: str, seconds: float) -> int:
        self._check(session=session)
        if not 0 < seconds < math.inf:
            raise ValueError(f"A place in a queue holds for some seconds, not {seconds!r}.")
        return self._write(  # a place is worth nothing after a loss of power
            lambda changes: turns.enter(changes, session, token, seconds),
            freeing=True,
            durable=False,
        )

    def leave_queue(self, session: str, token: str) -> bool:
        self._check(session=session)
        return self._write(
            lambda changes: turns.leave(changes, session, token), freeing=True, durable=False
        )

    def queue(self, session: str) -> list[QueuedTurn]:
        self._check(session=session)
        return turns.line(self._view(), session)

    # -- bundles ---------------------------------------------------------------------------------

    def export_session(
        self, session: str, path: str | os.PathLike[str], *, tokens: bool = False
    ) -> None:
        self._check(session=session)
        bundle_io.export_session(self, session, Path(path), tokens=tokens)

    def import_session(
        self, path: str | os.PathLike[str], session: str | None = None, *, ttl: TTL = None
    ) -> SessionInfo:
        self._check_open()
        if session is not None:
            check_name(session, "session")
        ttl_seconds(ttl, self._ttl)
        return self._info(bundle_io.import_session(self, Path(path), session, ttl))

    # -- upkeep ----------------------------------------------------------------------------------

    def prune(self) -> int:
        self._check_open()
        gone = 0
        if turns.any_ran_out(self._view()):
            self._write(turns.sweep, freeing=True)
        while True:
            any_gone, removed = self._write(_expire_batch, freeing=True)
            gone += removed
            if not any_gone:
                return gone

    def stats(self) -> StoreStats:
        self._check_open()
        sessions, states, nbytes = self._look(
            lambda tables: (
                tables.count("sessions"),
                tables.count("states"),
                tables.totals().nbytes,
            )
        )
        staged, staged_nbytes, spilled = self._staging.size(now=self._clock.now())
        return StoreStats(
            sessions=sessions,
            states=states,
            nbytes=nbytes,
            staged=staged,
            staged_nbytes=staged_nbytes,
            size_limit=self._settings.size_limit,
            spilled_nbytes=spilled,
        )

    def check(self, *, fix: bool = False) -> CheckReport:
        self._check_open()
        return check_store(self._backend, self._key, self._clock.now, self._ttl, fix=fix)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._resources.release()

    def rebuild(self, ref: str, runtime: Runtime) -> RWKVState:
        """Makes a state again from its token ids; needs a store with ``log="tokens"``.

        The tokens are read from the nearest state that is kept, or from zero. Under another model
        with the same tokenizer they are read from zero, and the state that comes out has a
        reference of its own: `put` or `stage` it to use it.

        Args:
            ref: A state in the log of some session, or one that was put or kept.
            runtime: The model to read them with.

        Raises:
            StateNotFound: No log entry with token ids leads to it.
            StateMismatch: The model has another tokenizer.
        """
        self._check_open()
        _check_ref(ref, "ref")
        return rebuild(self._view(), self._key, self.get, ref, runtime)

    def transcript(self, session: str, runtime: Any = None) -> list[TranscriptTurn]:
        """Returns a session's turns as text, oldest first; needs a store with ``log="tokens"``.

        It is no use of the session. A log keeps 100 turns: those before are not in it, and where
        ids were not kept from the first turn on, a turn's text is ``None``.

        Args:
            session: Its name.
            runtime: A chat object with the session's tokenizer; ``None`` for a model that answers
                in this process.

        Raises:
            StateNotFound: There is no such session.
            ValueError: No token ids of it are kept.
            ModelLoadError: No model with its tokenizer is at work in this process.
            StateMismatch: That of `runtime` is another one.

        Example:
            >>> for turn in store.transcript("bob"):  # doctest: +SKIP
            ...     print(turn.number, turn.text)
        """
        self._check(session=session)
        return texts(self._look(lambda view: logged_session(view, session)), runtime)

    def redact(self, session: str, turns: Sequence[int], runtime: Any = None) -> Redaction:
        """Takes turns out of a session, as if they had never been; needs ``log="tokens"``.

        All behind them is read again, from the state before the first of them, and the session
        moves to what comes out, in one commit. Then nothing in the store stands on these turns any
        more: forks that took them over are read again too, whoever kept or put such a state keeps
        it no more, and token ids, digests and files are off the disk. So are states that this
        process's prefix caches read there. The system prompt that a turn began with stays.

        Bundles, backups and caches of other processes are no part of the store: they are as they
        were. Turns behind those that went have lower numbers then.

        Args:
            session: Its name.
            turns: Numbers of turns, as `transcript` gives them.
            runtime: A chat object of the session's model; ``None`` for one that answers in this
                process.

        Returns:
            What was removed.

        Raises:
            ValueError: There is no such turn, or its token ids are not there; nothing changed.
            StateNotFound: There is no such session.
            SessionConflict: A turn of it, or of such a fork, is under way or came meanwhile.
            ModelLoadError: Its model is not at work in this process.
            StateMismatch: `runtime` is another one.
            StateCorrupt: The session was not read from its token ids alone, as after a blend.
            StoreFull: No room; the session is as it was.
            StoreError: It is done, and somebody reads what was there before: see the message.

        Example:
            >>> store.redact("bob", turns=[3])  # doctest: +SKIP
        """
        self._check(session=session)
        return redact(self, session, turns, runtime)

    arebuild = twin(rebuild)
    atranscript = twin(transcript)
    aredact = twin(redact)

    # -- pieces of the verbs ---------------------------------------------------------------------

    def _check(self, **names: str) -> None:
        """Checks that the store is open, and names, each by what it is the name of."""
        self._check_open()
        for what, name in names.items():
            check_name(name, what)

    def _info(self, row: SessionRow) -> SessionInfo:
        view = self._view()
        kept = {ref: _readable(view, ref) for ref in row.kept}
        named = None if row.head is None else _model_of(self._backend, kept.get(row.head))
        return SessionInfo(
            session=row.name,
            head=row.head,
            n_tokens=row.n_tokens,
            n_turns=row.turns,
            nbytes=sum(state.nbytes for state in kept.values() if state is not None),
            created_seconds=row.created,
            updated_seconds=row.updated,
            expires_seconds=row.expires,
            unread=row.unread,
            model=None if named is None else model_words(named),
            fingerprint=None if named is None else named.fingerprint,
        )

    def _read_session(self, session: str, *, renew: bool = True) -> SessionRow | None:
        """Returns a living session, renewed where that is due and asked for."""
        self._check(session=session)
        view = self._view()
        row = view.session(session)
        if row is None or not renew or not row.sliding or not _worn(row.expires, row.ttl, view.now):
            return row
        if self._backend.read_only:
            return row

        def work(changes: Changes) -> SessionRow | None:
            found = changes.session(session)
            if found is None or not found.sliding:
                return found
            renewed = replace(found, expires=changes.now + found.ttl)
            changes.save_session(renewed, found)
            return renewed

        try:
            return self._write(work, freeing=True)
        except StoreFull:
            return row  # reading goes on where writing cannot

    def _renew_holds(self, view: Tables, ref: str) -> None:
        """Lets the owners' and puts' holds on a state that was read start anew."""
        if not self._settings.sliding or self._backend.read_only:
            return
        worn = [
            hold
            for kind in (Holder.OWNER, Holder.PUT)
            for hold in view.holders(ref, kind)
            if hold is not None
            and hold.expires > view.now
            and _worn(hold.expires, hold.ttl, view.now)
        ]
        if not worn:
            return

        def work(changes: Changes) -> None:
            for hold in worn:
                if changes.stored_hold(ref, hold.kind, hold.owner) is not None:
                    changes.hold(ref, hold.kind, hold.owner, hold.ttl)

        try:
            self._write(work, freeing=True)
        except StoreFull:
            return


def _require_free(view: Tables, session: str) -> None:
    """Checks that no session has a name."""
    if view.session(session) is not None:
        raise SessionConflict(
            f"The session {session!r} exists already: choose another name, or delete it first."
        )


def _readable(view: Tables, ref: str) -> StateRow | None:
    """Returns a state's row; ``None`` where it is lost or was changed."""
    try:
        return view.stored_state(ref)
    except StateCorrupt:
        return None


def _model_of(backend: Backend, row: StateRow | None) -> Named | None:
    """Returns the model that a stored state says it is of; ``None`` where it cannot be asked.

    A state that was stored by an earlier release is asked by its file.
    """
    if row is None:
        return None
    if row.model is not None:
        return row.model
    try:
        start = backend.read_blob_start(row.blob, START_BYTES)
        return None if start is None else model_named(start)
    except (StateCorrupt, StoreError):
        return None  # whoever reads the state itself is told


def _expire_batch(changes: Changes) -> tuple[int, int]:
    gone, sessions = changes.expire_next(_PRUNE_BATCH)
    return gone, sessions + changes.states_removed


def _expect_head(head: str | None, session: str, parent: str | None) -> None:
    if head != parent:
        raise SessionConflict(
            f"The head of the session {session!r} is {head}, not {parent}: somebody else moved "
            "it. Load the head again and repeat the turn, or fork."
        )


def _worn(expires: float, ttl: float, now: float) -> bool:
    """Says whether a tenth of a time to live has passed since it last started."""
    return expires < math.inf and expires - now <= (1 - RENEW_AFTER) * ttl


def _check_state(value: object) -> None:
    if not isinstance(value, states.RWKVState):
        raise ValueError(  # noqa: TRY004 # as of every other argument
            f"A store keeps RWKVStates, got {value!r:.200}: a runtime's forward gives one."
        )


def _check_ref(value: object, name: str) -> None:
    if not is_reference(value):
        raise ValueError(
            f"{name} is no state reference: {value!r:.200}. References come from put, stage, "
            "head, or an answer's response_metadata['rwkv_state']; state_of takes a session's name."
        )
