"""Watches a session: tells of each head that it comes to, with the state, as it happens.

A reader beside whoever talks: it holds no state, moves no head and renews no time to live, so the
store trims and expires as if nobody looked. A head's state may be gone by the time it is read, and
of several turns between two looks only the last is seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from langchain_rwkv_state.errors import StateExpired, StateNotFound
from langchain_rwkv_state.store.records import LogEntry, SessionInfo

if TYPE_CHECKING:
    from langchain_rwkv_state.state import RWKVState
    from langchain_rwkv_state.store.verbs import StoreVerbs

EVERY_SECONDS = 0.5
_TRIES = 20  # commits that may come between two looks


@dataclass(frozen=True)
class SessionEvent:
    """What was seen of a session at a look at which something had changed.

    Attributes:
        kind: ``absent``, there is no such session yet; ``head``, it stands at another head than
            before, or was there at the first look; ``deleted`` and ``expired``, it has gone.
        info: The session; what was last seen of it where it has gone, ``None`` where it is absent.
        state: The state of its head; ``None`` where it has no head, or the state had gone.
        before: The state before the head, where it is still kept and was not the one seen last.
        first: Whether this is the first look.
    """

    kind: Literal["absent", "head", "deleted", "expired"]
    info: SessionInfo | None
    state: RWKVState | None = None
    before: RWKVState | None = None
    first: bool = False


@dataclass(frozen=True)
class SessionSnapshot:
    """A session as it stood at one moment.

    Attributes:
        info: The session.
        state: The state of its head.
        log: Its log, newest first, beginning with the head.
    """

    info: SessionInfo
    state: RWKVState
    log: tuple[LogEntry, ...] = field(repr=False)


def watch(
    store: StoreVerbs,
    session: str,
    *,
    every_seconds: float = EVERY_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.time,
) -> Iterator[SessionEvent]:
    """Yields what happens to a session, without end, beginning with how it stands.

    A session that is absent, deleted or expired is waited for.

    Args:
        store: The store; another process may write to it.
        session: Name of the session.
        every_seconds: Pause between two looks.
        sleep: Makes the pause.
        now: Tells the time, by which expiry is told from deletion.

    Raises:
        ValueError: The pause is not positive, or the name is none.
        StateCorrupt, StoreError: The store cannot be read.

    Example:
        >>> from langchain_rwkv_state.store import MemoryStateStore
        >>> with MemoryStateStore() as store:
        ...     next(watch(store, "bob")).kind
        'absent'
    """
    if not every_seconds > 0:
        raise ValueError(f"The pause between two looks is above 0 seconds, got {every_seconds!r}.")
    info = store.session(session, renew=False)
    last = info
    if info is None:
        yield SessionEvent("absent", None, first=True)
    else:
        yield _at_head(store, info, None, first=True)
    while True:
        sleep(every_seconds)
        info = store.session(session, renew=False)
        if info is None:
            if last is not None:
                yield SessionEvent("expired" if last.expires_seconds <= now() else "deleted", last)
        elif last is None or _moved(last, info):
            yield _at_head(store, info, None if last is None else last.head)
        last = info


def snapshot_of(store: StoreVerbs, session: str) -> SessionSnapshot | None:
    """Returns a session, its state and its log, as they stood at one moment; no use of it.

    Between two looks somebody may commit; what came later is left out, and where the state has been
    trimmed by then, all is looked at anew.

    Args:
        store: The store; others may write to it.
        session: Name of the session.

    Returns:
        ``None`` where there is no such session.

    Raises:
        ValueError: It has no state.
        StateNotFound, StateExpired: Its state went again and again before it could be read.
    """
    for left in reversed(range(_TRIES)):
        info = store.session(session, renew=False)
        if info is None:
            return None
        if info.head is None:
            has = "only unread messages" if info.unread else "no turn"
            raise ValueError(f"The session {session!r} has no state: {has} so far.")
        try:
            state = store.get(info.head, renew=False)
        except (StateNotFound, StateExpired):
            if not left:
                raise
            continue
        log = store.log(session)
        at = next((place for place, entry in enumerate(log) if entry.ref == info.head), 0)
        return SessionSnapshot(info, state, tuple(log[at:]))
    return None


def _at_head(
    store: StoreVerbs, info: SessionInfo, seen: str | None, *, first: bool = False
) -> SessionEvent:
    parent = parent_of_head(store, info)
    before = None if parent == seen else state_if_kept(store, parent)
    return SessionEvent("head", info, state_if_kept(store, info.head), before, first)


def _moved(last: SessionInfo, info: SessionInfo) -> bool:
    """Says whether a session stands elsewhere, or came to be anew between two looks."""
    return (last.head, last.n_turns, last.created_seconds) != (
        info.head,
        info.n_turns,
        info.created_seconds,
    )


def parent_of_head(store: StoreVerbs, info: SessionInfo) -> str | None:
    """Returns the head before a session's head; ``None`` for its first turn."""
    return next((e.parent for e in store.log(info.session) if e.ref == info.head), None)


def state_if_kept(store: StoreVerbs, ref: str | None) -> RWKVState | None:
    """Returns a state, which this counts as no use of; ``None`` where it is not here any more."""
    if ref is None:
        return None
    try:
        return store.get(ref, renew=False)
    except (StateNotFound, StateExpired):
        return None
