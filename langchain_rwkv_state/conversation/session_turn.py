"""Runs one turn of a session, as steps: what the model is to read, and the commit of its answer.

A turn that was aborted may leave its question behind, and never a part of its answer. It asks the
store, and neither a model nor the clock. An aside is never committed: it took no place in the
queue, so that its head may be another's by now.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Sequence
from typing import Literal, TypeAlias

from langchain_core.messages import AIMessage, BaseMessage

from langchain_rwkv_state.conversation.steps import LastCall, OutcomeCall, Steps, StoreCall
from langchain_rwkv_state.conversation.transcript import (
    may_repeat,
    only_new,
    unanswered,
    without_resent,
)
from langchain_rwkv_state.conversation.unread import as_unread, readable, warn_or_log
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

logger = logging.getLogger(__name__)

SESSION_KEY = "rwkv_session"
"""Key in an answer's `response_metadata` of the session that holds it."""

GONE = (StateNotFound, StateExpired)
"""What a store says of a state that is not there any more."""

OnConflict: TypeAlias = Literal["wait", "raise", "fork"]

OnAbort: TypeAlias = Literal["forget", "keep_question"]


class SessionTurn:
    """One turn of a session, as steps: begin, commit, end; or aborted, and then end.

    Args:
        store: Where the session lives.
        session: Its name.
        given: What is said to it; markers in it are dropped.
        ttl: The session's time to live from the commit on.
        on_conflict: As for `RWKVSession`.
        on_abort: As for `RWKVSession`.
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
        on_abort: OnAbort = "forget",
        wait_seconds: float = WAIT_SECONDS,
        answered: bool = True,
        aside: bool = False,
    ) -> None:
        self._session = session
        self._answered = answered
        self._given = without_markers(given)
        self._ttl = ttl
        self._forks = on_conflict == "fork"
        self._keeps_question = on_abort == "keep_question" and not aside
        waits = on_conflict == "wait" and not aside
        self._place = Place(store, session, wait_seconds) if waits else None
        self._look = StoreCall("session", session, renew=not aside)
        self._info: SessionInfo | None = None
        self._new: list[BaseMessage] | None = None
        self._said: tuple[str, ...] = ()
        self._ref: str | None = None
        self._is_committed = False
        self._process = os.getpid()

    def begin(self) -> Steps[list[BaseMessage]]:
        """Waits for its turn where it is to, and returns what the model is to read.

        That is the leading system messages, the session's marker, its unread messages, and what is
        new of what was given.
        """
        if self._place is not None:
            yield from self._place.wait()
        info: SessionInfo | None = yield self._look
        self._info = info
        system = self._given[: leading_system(self._given)]
        unread = _unread(info)
        self._new = yield from self._what_is_new(info, StoreCall)
        self._said = said_digests([*unread, *self._new])
        to_read = readable(unread, self._session)
        return [*system, marker(info.head if info else None), *to_read, *self._new]

    def _what_is_new(
        self, info: SessionInfo | None, call: type[StoreCall]
    ) -> Steps[list[BaseMessage]]:
        """Returns what of the given messages the session does not hold yet.

        Raises:
            ValueError, SessionConflict: As `only_new`.
        """
        rest = self._given[leading_system(self._given) :]
        unread = _unread(info)
        waiting = unanswered(unread) if self._answered else []
        if info is not None and may_repeat(rest):
            log = yield call("log", self._session)
            rest = only_new(
                rest,
                log,
                unread[: len(unread) - len(waiting)],
                session=self._session,
                n_turns=info.n_turns,
                answered=self._answered,
            )
        return without_resent(rest, waiting)

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
        self._ref = ref
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
            forked = yield from self._fork(ref, head, said)
            self._is_committed = True
            return forked
        self._is_committed = True
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

    def aborted(self, error: BaseException) -> Steps[None]:
        """Keeps what was said as unread, if the turn is to and was aborted before its commit.

        Never raises: what aborted the turn is on its way.

        Args:
            error: What ended the turn. An `Exception`, of the model or the store, is no abort.
        """
        if isinstance(error, Exception) or not self._keeps_question or self._is_committed:
            return
        if self._process != os.getpid():  # a forked child's copy: the turn is the parent's
            return
        try:
            question = yield from self._question()
            if question:
                texts = list(map(as_unread, question))
                yield LastCall("append_unread", self._session, texts, self._ttl)
        except Exception as problem:
            warn_or_log(
                f"A turn of session {self._session!r} was aborted, and what was said in it could "
                f"not be kept ({type(problem).__name__}: {problem!s:.300}): say it again."
            )
            logger.debug("An aborted turn's question is lost", exc_info=True)

    def _question(self) -> Steps[list[BaseMessage]]:
        """Returns what is to be kept of an aborted turn, by how its session stands now.

        Another turn that was aborted may have kept the same, and a commit that was interrupted may
        have happened. What was deleted meanwhile does not come back by its last question.
        """
        now: SessionInfo | None = yield LastCall("session", self._session, renew=False)
        if self._info is not None and (
            now is None or now.created_seconds != self._info.created_seconds
        ):
            logger.info("Session %r was deleted during a turn that was aborted", self._session)
            return []
        if self._ref is not None:
            log: list[LogEntry] = yield LastCall("log", self._session)
            if any(entry.ref == self._ref for entry in log):
                return []
        if self._new is not None:
            return without_resent(self._new, unanswered(_unread(now)))
        try:
            return (yield from self._what_is_new(now, LastCall))
        except ValueError:  # the session holds all of it
            return []

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


def _unread(info: SessionInfo | None) -> list[BaseMessage]:
    return without_markers([message_from_json(text) for text in info.unread] if info else [])
