"""Runs one turn of a session, as steps: what the model is to read, and the commit of its answer.

It asks the store, and neither a model nor the clock. An aside is never committed: it took no place
in the queue, so that its head may be another's by now.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Literal, TypeAlias

from langchain_core.messages import AIMessage, BaseMessage

from langchain_rwkv_state.conversation.steps import OutcomeCall, Steps, StoreCall
from langchain_rwkv_state.conversation.transcript import may_repeat, only_new
from langchain_rwkv_state.conversation.unread import readable
from langchain_rwkv_state.conversation.waiting import WAIT_SECONDS, Place
from langchain_rwkv_state.errors import (
    RWKVStateError,
    SessionConflict,
    StateExpired,
    StateNotFound,
)
from langchain_rwkv_state.prompt.markers import (
    leading_system,
    marker,
    message_from_json,
    said_digests,
    without_markers,
)
from langchain_rwkv_state.store import TTL, LogEntry, SessionInfo, StateStore

SESSION_KEY = "rwkv_session"
"""Key in an answer's `response_metadata` of the session that holds it."""

GONE = (StateNotFound, StateExpired)
"""What a store says of a state that is not there any more."""

OnConflict: TypeAlias = Literal["wait", "raise", "fork"]


class SessionTurn:
    """One turn of a session, as steps: begin, commit, end.

    Args:
        store: Where the session lives.
        session: Its name.
        given: What is said to it; markers in it are dropped.
        ttl: The session's time to live from the commit on.
        on_conflict: As for `RWKVSession`.
        wait_seconds: How long to wait for the turns before it.
        answered: Whether an answer is to follow, or all is only read.
        aside: Whether the turn is never to be committed: it waits for nobody, and is no use of the
            session.
    """

    def __init__(
        self,
        store: StateStore,
        session: str,
        given: Sequence[BaseMessage],
        *,
        ttl: TTL = None,
        on_conflict: OnConflict = "wait",
        wait_seconds: float = WAIT_SECONDS,
        answered: bool = True,
        aside: bool = False,
    ) -> None:
        self._session = session
        self._answered = answered
        self._given = without_markers(given)
        self._ttl = ttl
        self._forks = on_conflict == "fork"
        waits = on_conflict == "wait" and not aside
        self._place = Place(store, session, wait_seconds) if waits else None
        self._look = StoreCall("session", session, renew=not aside)
        self._info: SessionInfo | None = None
        self._said: tuple[str, ...] = ()

    def begin(self) -> Steps[list[BaseMessage]]:
        """Waits for its turn where it is to, and returns what the model is to read.

        That is the leading system messages, the session's marker, its unread messages, and what is
        new of what was given.
        """
        if self._place is not None:
            yield from self._place.wait()
        info: SessionInfo | None = yield self._look
        self._info = info
        end = leading_system(self._given)
        system, rest = self._given[:end], self._given[end:]
        unread = without_markers([message_from_json(text) for text in info.unread] if info else [])
        if info is not None and may_repeat(rest):
            log = yield StoreCall("log", self._session)
            rest = only_new(
                rest,
                log,
                unread,
                session=self._session,
                n_turns=info.n_turns,
                answered=self._answered,
            )
        self._said = said_digests([*unread, *rest])
        to_read = readable(unread, self._session)
        return [*system, marker(info.head if info else None), *to_read, *rest]

    def commit(self, ref: str, answer: AIMessage | None) -> Steps[str]:
        """Commits the state behind the turn; returns the name of the session that holds it.

        Args:
            ref: The state.
            answer: What was answered, ``None`` where there was only something to read.

        Raises:
            SessionConflict: The head moved meanwhile.
            StoreFull: The store has no room; the old head stays.
        """
        said = self._said if answer is None else self._said + said_digests([answer])
        head = self._info.head if self._info else None
        place = None
        if self._place is not None:
            self._place.committing()
            place = self._place.token
        try:
            yield OutcomeCall(
                "commit",
                self._session,
                ref,
                head,
                self._ttl,
                unread_covered=len(self._info.unread) if self._info else 0,
                said=said,
                place=place,
            )
        except SessionConflict:
            if not self._forks:
                raise
            return (yield from self._fork(ref, head, said))
        if self._place is not None:
            self._place.committed()
            yield from self._place.leave()
        return self._session

    def lost(self, error: RWKVStateError) -> Steps[RWKVStateError]:
        """Returns what to raise where the state that the turn began from is gone.

        Args:
            error: What the store says of it.
        """
        now: SessionInfo | None = yield self._look
        if (now.head if now else None) == (self._info.head if self._info else None):
            return error
        return SessionConflict(
            f"The session {self._session!r} was rewound, deleted or moved on before this turn "
            "could read its state: repeat the turn, which then starts from where the session is "
            "now."
        )

    def end(self) -> Steps[None]:
        """Lets the next turn begin, however this one ended."""
        if self._place is not None:
            yield from self._place.leave()

    def _fork(self, ref: str, head: str | None, said: tuple[str, ...]) -> Steps[str]:
        """Commits the turn to a session of its own, which knows what was said before."""
        log: list[LogEntry] = yield StoreCall("log", self._session)
        at = next((place for place, entry in enumerate(log) if entry.ref == head), len(log))
        before = tuple(digest for entry in reversed(log[at:]) for digest in entry.said)
        name = f"{self._session[:490]}~{uuid.uuid4().hex[:12]}"
        yield OutcomeCall("commit", name, ref, None, self._ttl, said=before + said)
        return name
