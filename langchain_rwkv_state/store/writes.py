"""How a write happens: a state's file first, then a short transaction that looks again.

`OpenStore` is what all verbs stand on: the shared resources, the clock, staged states on their way
to files, and transactions within the size limit. What a verb means is for `TableStore`.
"""

from __future__ import annotations

import functools
import json
import logging
import secrets
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from langchain_rwkv_state import state as states
from langchain_rwkv_state._registry import Hold
from langchain_rwkv_state.errors import (
    RWKVStateError,
    StateCorrupt,
    StateExpired,
    StateNotFound,
    StoreError,
    StoreFull,
)
from langchain_rwkv_state.state import LOSSY, CodecName, reference
from langchain_rwkv_state.store.backend import Backend, change, look
from langchain_rwkv_state.store.base import StateStore
from langchain_rwkv_state.store.clock import (
    ClockMark,
    StoreClock,
    steady_seconds,
    ttl_seconds,
)
from langchain_rwkv_state.store.records import (
    Origin,
    joined,
    model_named_by,
    pack_tokens,
)
from langchain_rwkv_state.store.redaction import finish_if_due
from langchain_rwkv_state.store.resources import Resources, open_secret
from langchain_rwkv_state.store.rows import StateRow
from langchain_rwkv_state.store.settings import (
    DEFAULT_TTL,
    StoreSettings,
    check_log,
)
from langchain_rwkv_state.store.staging import STAGED_TTL_SECONDS, Staged
from langchain_rwkv_state.store.tables import Changes, Tables
from langchain_rwkv_state.store.turns import Heads

if TYPE_CHECKING:
    from langchain_rwkv_state.state import RWKVState

logger = logging.getLogger("langchain_rwkv_state.store")

T = TypeVar("T")
_WRITE_TRIES = 3


class _Vanished(Exception):
    """A state's bytes went between the look and the transaction."""


class OpenStore(StateStore):
    """A store as an object has it open.

    Args:
        resources: What it shares with others over the same place; given back when it is closed.
        settings: What it is opened with.

    Raises:
        ValueError: The codec is lossy and token ids are to be kept.
        StoreError: The store was made with another lossy codec, or with none.
    """

    def __init__(self, resources: Hold[Resources], settings: StoreSettings) -> None:
        self._resources = resources
        self._backend = resources.value.backend
        self._staging = resources.value.staging
        self._settings = settings
        self._closed = False
        self._ttl = ttl_seconds(settings.ttl, DEFAULT_TTL.total_seconds())
        self._heads = Heads(self._ttl, settings.sliding, settings.history)
        self._log_tokens = settings.log == "tokens"
        try:
            self._key, self._codec = self._about(settings.codec)
            check_log(settings.log, self._codec)
        except BaseException:
            resources.release()
            raise
        self._clock = self._shared_clock(settings.clock)
        if not self._backend.read_only:
            finish_if_due(self._backend, self._clock.now())

    def _shared_clock(self, clock: Callable[[], float]) -> StoreClock:
        """Returns the store's clock: one for all objects that go by the machine's own."""
        shared, load = self._resources.value, functools.partial(clock_mark, self._backend)
        if clock is not time.time:
            return StoreClock(clock, self._ttl, load)
        if shared.clock is None:
            shared.clock = StoreClock(clock, self._ttl, load, steady_seconds)
        return shared.clock

    def _about(self, codec: CodecName | None) -> tuple[bytes, CodecName]:
        """Returns the store's secret, and how this object writes states."""
        shared = self._resources.value
        known = shared.about
        if known is None or codec not in (None, known[1]):
            known = open_secret(self._backend, codec)
            shared.about = shared.about or known
        return known

    def _view(self) -> Tables:
        return self._backend.view(self._clock.now())

    def _look(self, work: Callable[[Tables], T]) -> T:
        """Runs `work` on the tables as they stand at one moment."""
        return look(self._backend, self._clock.now(), work)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("The store is closed: open it again to use it.")

    # -- how a write happens ---------------------------------------------------------------------

    def _write(
        self, work: Callable[[Changes], T], *, freeing: bool = False, durable: bool = True
    ) -> T:
        """Runs `work` on the changes in a transaction that keeps to the size limit."""
        try:
            return self._write_once(work, freeing=freeing, durable=durable)
        except _OverLimit:
            if self.prune() == 0:
                raise
            return self._write_once(work, freeing=freeing, durable=durable)

    def _write_once(self, work: Callable[[Changes], T], *, freeing: bool, durable: bool) -> T:
        now, mark = self._clock.now(), self._clock.mark_to_save()
        limit = None if freeing else self._settings.size_limit

        def transaction(changes: Changes) -> T:
            before = 0 if limit is None else changes.totals().nbytes
            changes.limit = limit
            result = work(changes)
            if mark is not None:
                body = {"wall": mark.wall, "offset": mark.offset}
                changes.note("clock", json.dumps(body).encode())
            changes.finish()
            after = 0 if limit is None else changes.totals().nbytes
            if limit is not None and after > max(limit, before):
                raise _OverLimit(
                    f"The store would hold {after} bytes, its size limit is {limit}: delete "
                    "sessions, or raise size_limit."
                )
            return result

        result = change(self._backend, now, transaction, freeing=freeing, durable=durable)
        if mark is not None:
            self._clock.saved(mark)
        return result

    def _with_state(
        self,
        ref: str,
        work: Callable[[Changes], None],
        *,
        state: RWKVState | None = None,
        first: Callable[[Changes], object] = lambda _: None,
    ) -> None:
        """Runs `work` where the state `ref` is stored: its bytes first, then the transaction.

        Args:
            ref: The state.
            work: Makes something hold it.
            state: The state itself, ``None`` where it is staged or stored.
            first: Runs in the transaction before the state gets its row.
        """
        self._with_bytes(ref, lambda: self._write_bytes(ref, state), work, first)
        self._staging.stored(ref)

    def _with_bytes(
        self,
        ref: str,
        write_bytes: Callable[[], StateRow | None],
        work: Callable[[Changes], None],
        first: Callable[[Changes], object] = lambda _: None,
    ) -> None:
        """Runs `work` where a state is stored.

        Args:
            ref: The state.
            write_bytes: Writes its bytes and gives the row for them; ``None`` where it has one.
            work: Makes something hold it.
            first: Runs in the transaction before the state gets its row.
        """
        for _ in range(_WRITE_TRIES):
            fresh = write_bytes()

            def transaction(changes: Changes, fresh: StateRow | None = fresh) -> bool:
                first(changes)
                adopted = _adopt(changes, ref, fresh)
                work(changes)
                return adopted

            needed = False
            try:
                needed = self._write(transaction)
            except _Vanished:
                continue
            except StoreError:
                needed = self._backend.may_be_late  # a row that comes yet is to find its bytes
                raise
            finally:
                if fresh is not None and not needed:
                    self._tidy(fresh)
            return
        raise StoreError(f"The state {ref} was deleted as fast as it was written: try again.")

    def _write_bytes(self, ref: str, state: RWKVState | None) -> StateRow | None:
        """Writes a state's bytes where no row has them; the row comes with the transaction."""
        view = self._view()
        staged = self._staging.get(ref, now=view.now)
        if (state is not None or staged is not None) and view.lives(ref):
            return None
        parent = staged.parent if staged is not None else None
        origin = self._origin(view, ref, None) if self._log_tokens else None
        if state is None and staged is not None:
            row = self._adopt_file(staged, origin)
            if row is not None:
                return row
            state = self._state_of(staged)
        if state is None:
            try:
                view.state(ref)
            except StateNotFound as error:
                raise self._unless_expired(error, ref) from None
            return None
        return self._write_blob(ref, state, parent, origin)

    def _adopt_file(self, staged: Staged, origin: Origin | None) -> StateRow | None:
        """Takes the file of a staged state over, where it has one; nothing is written again."""
        if staged.path is None:
            return None
        blob = _blob_name(staged.ref)
        try:
            if staged.path.lstat().st_size != staged.path_nbytes:
                return None
        except OSError:
            return None
        if not self._backend.adopt_blob(blob, staged.path):
            return None
        return StateRow(
            ref=staged.ref,
            blob=blob,
            nbytes=staged.path_nbytes,
            n_tokens=staged.n_tokens,
            parent=staged.parent,
            created=self._clock.now(),
            origin=origin,
            model=staged.model,
        )

    def _staged(self, ref: str) -> Staged | None:
        return self._staging.get(ref, now=self._clock.now())

    def _state_of(self, staged: Staged) -> RWKVState | None:
        """Returns a staged state; ``None`` where its file is gone, and so it was stored by now."""
        files = self._resources.value.files
        if staged.path is None or files is None:
            return staged.memory
        data = files.read(staged.path, staged.path_nbytes)
        return None if data is None else states.decode(data, ref=staged.ref).state

    def _unless_expired(self, error: StateNotFound, ref: str) -> RWKVStateError:
        """Returns what to raise of a state that is not here: it may have been staged, and expired.

        Args:
            error: What the rows say of it.
            ref: Its reference.
        """
        now = self._clock.now()
        expired = self._staging.expired_at(ref, now=now)
        if expired is None:
            return error
        ago = max(0.0, now - expired)
        return StateExpired(
            f"The state {ref} was staged and expired {ago:.0f} seconds ago: nothing "
            f"committed or kept it within {STAGED_TTL_SECONDS / 60:.0f} minutes of its answer. "
            "Read the conversation again, and commit or keep() what is to last."
        )

    def _make_room(self, coming_bytes: int) -> None:
        """Moves staged states into files where memory would hold more than its share of them.

        Args:
            coming_bytes: Of the state that is about to be staged.
        """
        files = self._resources.value.files
        if files is None:
            return  # a store in memory has nothing but memory
        moving = self._staging.over(self._settings.staged_bytes or 0, coming_bytes)
        while moving:
            staged = moving.pop(0)
            path, nbytes = None, 0
            try:
                assert staged.memory is not None  # noqa: S101 # as `over` says
                parts = states.encode_parts(
                    staged.memory,
                    parent=staged.parent,
                    ref=staged.ref,
                    created_seconds=self._clock.now(),
                    codec=self._codec,
                )
                nbytes = sum(map(len, parts))
                self._require_room(nbytes)
                path = files.write(parts)
                self._resources.value.is_told = False
            except (StoreError, StoreFull) as error:
                self._tell_of_memory(error)
                return
            finally:
                self._staging.moved(staged.ref, path, nbytes)
                if path is None:
                    for left in moving:
                        self._staging.moved(left.ref, None)

    def _require_room(self, nbytes: int) -> None:
        """Refuses to put more into files than the store may hold."""
        limit = self._settings.size_limit
        if limit is None:
            return
        spilled = self._staging.size(now=self._clock.now())[2]
        if self._view().totals().nbytes + spilled + nbytes > limit:
            raise StoreFull(f"The store's size limit of {limit} bytes leaves no room.")

    def _tell_of_memory(self, error: StoreError | StoreFull) -> None:
        """Says once that staged states outgrow memory; an answer must not be lost by that."""
        if self._resources.value.is_told:
            return
        self._resources.value.is_told = True
        text = (
            "Staged states stay in memory beyond their share of it "
            f"({self._settings.staged_bytes} bytes), since they cannot be put into files. {error}"
        )
        try:
            warnings.warn(text, stacklevel=5)
        except Warning:
            logger.warning("%s", text)

    def _write_blob(
        self, ref: str, state: RWKVState, parent: str | None, origin: Origin | None
    ) -> StateRow:
        """Writes a state's bytes and returns the row for them."""
        now = self._clock.now()
        parts = states.encode_parts(
            state, parent=parent, ref=ref, created_seconds=now, codec=self._codec
        )
        row = StateRow(
            ref=ref,
            blob=_blob_name(ref),
            nbytes=sum(map(len, parts)),
            n_tokens=state.n_tokens,
            parent=parent,
            created=now,
            origin=origin,
            model=model_named_by(state),
        )
        return replace(row, blob=self._backend.write_blob(row.blob, parts))

    def _tidy(self, row: StateRow) -> None:
        """Deletes bytes that no row names; where that is not certain, `check` does it later."""
        try:
            stored = self._view().stored_state(row.ref)
        except (StateCorrupt, StoreError):
            return
        if stored is None or stored.blob != row.blob:
            self._backend.drop_blobs([row.blob])

    def _origin(self, view: Tables, ref: str, base: str | None) -> Origin | None:
        """Returns what a state was read from: the tokens since `base`, or since zero.

        The way back leads over staged states; where it comes to a stored one, that one's row
        tells the rest.
        """
        first = self._staged(ref)
        if first is None:
            row = view.stored_state(ref)
            return None if row is None else row.origin
        at, tokens = first.parent, first.tokens
        while at is not None and at != base:
            found = self._staged(at)
            if found is None:
                break
            at, tokens = found.parent, (*found.tokens, *tokens)
        packed = pack_tokens(tokens)
        origin = Origin(at, packed, first.model.fingerprint, first.block)
        if at is None or at == base:
            return origin
        row = view.stored_state(at)
        return origin if row is None or row.origin is None else joined(row.origin, origin)

    def _as_kept(self, state: RWKVState) -> tuple[str, RWKVState]:
        """Returns a state as this store keeps it, with its reference.

        In a lossy store that is another state than the one that was read, with a reference of its
        own; one that comes from here loses nothing more.
        """
        ref = reference(state.derivation, self._key)
        if self._codec not in LOSSY or self._staged(ref) or self._view().lives(ref):
            return ref, state
        kept = states.lossy(state, self._codec)
        states.require_finite(kept)
        return reference(kept.derivation, self._key), kept


def clock_mark(backend: Backend) -> ClockMark | None:
    """Returns what an earlier process, or another one, noted of the clock."""
    try:
        found = json.loads(backend.view(0.0).meta("clock") or b"{}")
        return ClockMark(float(found["wall"]), float(found["offset"]))
    except (StateCorrupt, ValueError, KeyError, TypeError):
        return None  # without a mark the clock is taken at its word


class _OverLimit(StoreFull):
    """The store's own size limit was reached (and not the disk's)."""


def _adopt(changes: Changes, ref: str, fresh: StateRow | None) -> bool:
    """Gives a state its row, unless it has one by now; says whether it got this one."""
    if changes.stored_state(ref) is not None:
        return False
    if fresh is None or not changes.blob_exists(fresh.blob):
        raise _Vanished
    changes.add_state(fresh)
    return True


def _blob_name(ref: str) -> str:
    """Returns a name for a state's file that was never used."""
    return f"{ref[-64:]}-{secrets.token_hex(8)}"
