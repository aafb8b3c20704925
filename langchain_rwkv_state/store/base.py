"""Says what every store is: states by reference, and sessions that are moving names for them.

A store needs no model. It gives durable, compare-and-swap names to states; it does not decide what
a turn is. An implementation writes the verbs of `StoreVerbs`; all else comes from here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias, overload

from langchain_rwkv_state import _markup as markup
from langchain_rwkv_state import state as states
from langchain_rwkv_state._text import ago, short, size, until
from langchain_rwkv_state.errors import SessionConflict, StateNotFound, StoreError
from langchain_rwkv_state.state import is_reference
from langchain_rwkv_state.store.clock import TTL
from langchain_rwkv_state.store.events import snapshot_of
from langchain_rwkv_state.store.verbs import AsyncVerbs, StoreVerbs, twin

if TYPE_CHECKING:
    from langchain_rwkv_state.state import (
        Diff,
        Distance,
        Healthy,
        Inspection,
        Metric,
        Parts,
        Reader,
        RWKVState,
    )
    from langchain_rwkv_state.store.pins import SharedPins
    from langchain_rwkv_state.store.records import SessionInfo


Named: TypeAlias = "str | RWKVState"
"""A session's name, a reference, or a state itself."""


class Beside(Protocol):
    """What a part above the store keeps in memory of its sessions."""

    @property
    def is_needed(self) -> bool:
        """Whether the store is to stay open for it."""
        ...

    def renamed(self, session: str, new_session: str) -> None:
        """Learns that a session has another name."""
        ...


class StateStore(AsyncVerbs):
    """Keeps states and sessions. Every verb has an async twin with an ``a`` before its name.

    A store is a context manager, in both forms: leaving it closes it. Where the toolbox takes
    states, its verbs of the same names take sessions: by name, by reference, or a state itself.
    What could be both a session's name and a reference is refused.

    Example:
        >>> from langchain_rwkv_state.state import StateLayout, zero_state
        >>> from langchain_rwkv_state.store import MemoryStateStore
        >>> state = zero_state(StateLayout.of(7, n_layer=1, n_embd=64, head_size=64), "model")
        >>> with MemoryStateStore() as store:
        ...     ref = store.stage(state)
        ...     store.commit("bob", ref, parent=None)
        ...     store.head("bob") == ref
        True
    """

    @property
    def beside(self) -> dict[str, Beside]:
        """What the parts above keep in memory beside the store, by what they call it.

        It lives as long as the store is open. Where several objects are one store, they share it.
        """
        kept: dict[str, Beside] = self.__dict__.setdefault("_beside", {})
        return kept

    @property
    def location(self) -> str | None:
        """What names this store, for `open_store` and ``store=``; without a password.

        That is ``None`` for one that nothing names: in memory, or the user's own.
        """
        return None

    @property
    def shares_pins(self) -> bool:
        """Whether this kind of store has `shared_pins`; that is known before it is opened."""
        return False

    def shared_pins(self) -> SharedPins:
        """Returns the pinned prefixes that all who use this store share.

        Raises:
            StoreError: This kind of store has none, or it cannot be used.
        """
        raise StoreError(
            f"{self!r} shares no pinned prefixes: a store in Redis does, and on one machine a "
            "directory, PrefixStateCache(disk=DIR)."
        )

    # -- the toolbox, by name: looking is no use of a session, whose time to live goes on ---------

    def state_of(self, source: Named) -> RWKVState:
        """Returns the state that a session stands at; this counts as no use of it.

        Args:
            source: A session's name; a reference or a state is taken, too.

        Raises:
            TypeError: It is something else.
            StateNotFound, StateExpired: There is no such session or state.
            ValueError: The session has no state, or the text is both a name and a reference.
        """
        if isinstance(source, states.RWKVState):
            return source
        if not isinstance(source, str):
            raise TypeError(f"Name a session, a reference or a state, got {source!r:.100}.")
        found = snapshot_of(self, source)
        if not is_reference(source):
            if found is None:
                raise StateNotFound(
                    f"There is no session {source!r:.100} in this store: store.sessions() gives "
                    "the names of those that there are."
                )
            return found.state
        if found is not None:
            raise ValueError(
                f"{source!r} is a reference, and a session is called so too: pass "
                "store.get(ref) for the one, or store.get(store.head(name)) for the other."
            )
        return self.get(source, renew=False)

    def begin(self, session: str, state: RWKVState, *, ttl: TTL = None) -> str:
        """Begins a new session with a state, in one commit; returns the state's reference.

        Args:
            session: A name that is new.
            state: What it begins with.
            ttl: The session's time to live; ``None`` for the store's default.

        Raises:
            SessionConflict: There is such a session; it stays as it is.
            StateCorrupt, StoreFull: As `commit` and `stage`.
        """
        if self.session(session, renew=False) is not None:
            raise SessionConflict(
                f"The session {session!r} exists already: name another, or delete it first."
            )
        ref = self.stage(state)
        self.commit(session, ref, None, ttl)
        return ref

    @overload
    def blend(
        self,
        a: Named,
        b: Named,
        alpha: float = 0.5,
        *,
        parts: Parts = None,
        into: None = None,
        ttl: TTL = None,
    ) -> RWKVState: ...

    @overload
    def blend(
        self,
        a: Named,
        b: Named,
        alpha: float = 0.5,
        *,
        parts: Parts = None,
        into: str,
        ttl: TTL = None,
    ) -> str: ...

    def blend(
        self,
        a: Named,
        b: Named,
        alpha: float = 0.5,
        *,
        parts: Parts = None,
        into: str | None = None,
        ttl: TTL = None,
    ) -> RWKVState | str:
        """Adds the states of two sessions, ``alpha * a + (1 - alpha) * b``; see `state.blend`.

        Args:
            a: A session.
            b: Another of the same model.
            alpha: Weight of `a`, from 0 to 1.
            parts: Which tensors are blended; the others stay those of `a`.
            into: A new session that begins with what comes out; ``None`` for none.
            ttl: Its time to live; ``None`` for the store's default, whatever `a` and `b` have left.

        Returns:
            The new state; with `into` its reference, the session's head.

        Raises:
            SessionConflict: There is a session `into`; it stays as it is.
            StateMismatch: The states belong to two models.
            StateNotFound, StateExpired, TypeError, ValueError: As `state_of` and `state.blend`; or
                a `ttl` was given and no `into`.

        Example:
            >>> store.blend("alice", "bob", 0.5, into="both")  # doctest: +SKIP
        """
        if into is None and ttl is not None:
            raise ValueError("ttl is the time to live of a session: name it by into=, too.")
        found = states.blend(self.state_of(a), self.state_of(b), alpha, parts=parts)
        return found if into is None else self.begin(into, found, ttl=ttl)

    def distance(
        self,
        a: Named,
        b: Named,
        metric: Metric = "l2",
        *,
        runtime: Reader | None = None,
        probe: Sequence[int] | None = None,
    ) -> Distance:
        """Measures how far apart two sessions are; see `state.distance`.

        Raises:
            StateMismatch: Their states belong to two models.
            StateNotFound, StateExpired, TypeError, ValueError: As `state_of` and `state.distance`.

        Example:
            >>> store.distance("alice", "bob") < 3  # doctest: +SKIP
        """
        return states.distance(
            self.state_of(a), self.state_of(b), metric, runtime=runtime, probe=probe
        )

    def diff(
        self,
        a: Named,
        b: Named,
        metric: Metric = "rms_relative",
        *,
        runtime: Reader | None = None,
        probe: Sequence[int] | None = None,
    ) -> Diff:
        """Sets two sessions side by side, layer by layer; see `state.diff`.

        Raises:
            StateMismatch: Their states belong to two models.
            StateNotFound, StateExpired, TypeError, ValueError: As `state_of` and `state.distance`.

        Example:
            >>> print(store.diff("alice", "bob"))  # doctest: +SKIP
        """
        return states.diff(self.state_of(a), self.state_of(b), metric, runtime=runtime, probe=probe)

    def inspect(self, session: Named, healthy: Healthy | None = None) -> Inspection:
        """Looks at every tensor of the state that a session stands at; see `state.inspect`.

        Raises:
            StateMismatch: `healthy` belongs to another model.
            StateNotFound, StateExpired, TypeError, ValueError: As `state_of`.

        Example:
            >>> store.inspect("alice").verdict  # doctest: +SKIP
        """
        return states.inspect(self.state_of(session), healthy=healthy)

    astate_of = twin(state_of)
    abegin = twin(begin)
    ablend = twin(blend)
    adistance = twin(distance)
    adiff = twin(diff)
    ainspect = twin(inspect)

    # -- as an object ------------------------------------------------------------------------

    def _repr_html_(self) -> str:
        return store_html(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


# -- in a notebook: nothing raises, since an error is shown in the place of the value --------------

_COLUMNS = (
    *("session", "model", "turns", "tokens", "size"),
    *("last turn", "expires", "head", "unread"),
)


def store_html(store: StoreVerbs) -> str:
    """Returns a table of a store's sessions, or a sentence where it cannot be read."""
    try:
        names = store.sessions()
    except Exception as error:  # noqa: BLE001 # whatever it is, it is shown
        return markup.sentence(f"{store!r}: {error}")
    return markup.table(repr(store), _COLUMNS, _rows(store, names), len(names))


def session_html(store: StoreVerbs, session: str) -> str:
    """Returns a table of what is known of a session, or a sentence where it cannot be read."""
    try:
        info = store.session(session, renew=False)
    except Exception as error:  # noqa: BLE001 # whatever it is, it is shown
        return markup.sentence(f"The session {session!r} of {store!r}: {error}")
    if info is None:
        return markup.sentence(f"The session {session!r} of {store!r} has not begun.")
    names, cells = _COLUMNS[1:], _cells(info)[1:]
    known = dict(zip(names, cells, strict=True))
    return markup.facts(f"session {session}", {**known, "store": repr(store)})


def _rows(store: StoreVerbs, names: list[str]) -> Iterator[tuple[object, ...]]:
    for name in names:
        try:
            info = store.session(name, renew=False)
        except Exception:  # noqa: BLE001 # one that is damaged hides no other
            yield name, "damaged", *[""] * (len(_COLUMNS) - 2)
            continue
        yield _cells(info) if info else (name, "gone", *[""] * (len(_COLUMNS) - 2))


def _cells(info: SessionInfo) -> tuple[object, ...]:
    now = time.time()
    return (
        info.session,
        info.model or "-",
        info.n_turns,
        info.n_tokens,
        size(info.nbytes),
        ago(info.updated_seconds, now),
        until(info.expires_seconds, now),
        short(info.head),
        len(info.unread),
    )
