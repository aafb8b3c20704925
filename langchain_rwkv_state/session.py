"""A conversation with a name: load the head, run the model, commit the answer's state.

`RWKVSession` is a `Runnable` around a chat model and its store, for people who want no graph. It
decides when a turn is committed, and nothing else. The easy mistake is to expect a turn from a
stream that was left before its end: only a finished answer is committed.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Literal, TypeAlias

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig

from langchain_rwkv_state.errors import (
    RWKVStateError,
    SessionConflict,
    StateExpired,
    StateNotFound,
)
from langchain_rwkv_state.line import WAIT_SECONDS, Line
from langchain_rwkv_state.messages import (
    STATE_KEY,
    leading_system,
    marker,
    message_from_json,
    said_digests,
    to_messages,
    without_markers,
)
from langchain_rwkv_state.model import seen
from langchain_rwkv_state.store import TTL, LogEntry, SessionInfo, StateStore, check_session
from langchain_rwkv_state.store_calls import Steps, StoreCall, WholeCall, arun, run
from langchain_rwkv_state.structured import Method, Structured, tool_options
from langchain_rwkv_state.transcript import may_repeat, only_new
from langchain_rwkv_state.unread import readable

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
    ) -> None:
        self._session = session
        self._answered = answered
        self._given = without_markers(given)
        self._ttl = ttl
        self._forks = on_conflict == "fork"
        self._line = Line(store, session, wait_seconds) if on_conflict == "wait" else None
        self._info: SessionInfo | None = None
        self._said: tuple[str, ...] = ()

    def begin(self) -> Steps[list[BaseMessage]]:
        """Waits for its turn where it is to, and returns what the model is to read.

        That is the leading system messages, the session's marker, its unread messages, and what is
        new of what was given.
        """
        if self._line is not None:
            yield from self._line.wait()
        info: SessionInfo | None = yield StoreCall("session", self._session)
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
        if self._line is not None:
            self._line.committing()
            place = self._line.token
        try:
            yield WholeCall(
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
        if self._line is not None:
            self._line.committed()
            yield from self._line.leave()
        return self._session

    def lost(self, error: RWKVStateError) -> Steps[RWKVStateError]:
        """Returns what to raise where the state that the turn began from is gone.

        Args:
            error: What the store says of it.
        """
        head = self._info.head if self._info else None
        if (yield StoreCall("head", self._session)) == head:
            return error
        return SessionConflict(
            f"The session {self._session!r} was rewound, deleted or moved on before this turn "
            "could read its state: repeat the turn, which then starts from where the session is "
            "now."
        )

    def end(self) -> Steps[None]:
        """Lets the next turn begin, however this one ended."""
        if self._line is not None:
            yield from self._line.leave()

    def _fork(self, ref: str, head: str | None, said: tuple[str, ...]) -> Steps[str]:
        """Commits the turn to a session of its own, which knows what was said before."""
        log: list[LogEntry] = yield StoreCall("log", self._session)
        at = next((place for place, entry in enumerate(log) if entry.ref == head), len(log))
        before = tuple(digest for entry in reversed(log[at:]) for digest in entry.said)
        name = f"{self._session[:490]}~{uuid.uuid4().hex[:12]}"
        yield WholeCall("commit", name, ref, None, self._ttl, said=before + said)
        return name


class RWKVSession(Runnable[LanguageModelInput, AIMessage]):
    """A durable conversation, made by `ChatRWKV.with_session`.

    Each call reads only the new messages, answers, and commits. Markers in the input are dropped:
    a reference is a capability, and a session reads no other conversation than its own. Of a
    transcript (a graph's whole thread) only what the session does not hold yet is read.

    Turns of one session come one after another, in the order in which they came, across threads and
    processes, unless `on_conflict` says otherwise.

    Args:
        chat: The model that answers; its answers name states in `store`.
        store: Where the session lives.
        session: The session's name, 1 to 512 characters.
        ttl: The session's time to live from each commit on (seconds, a `timedelta`, or a text such
            as ``"12h"``); ``None`` means the store's default, `math.inf` never.
        on_conflict: What to do about other turns of this session: ``wait`` for those that came
            before; or begin at once and, where somebody else committed meanwhile, ``raise`` a
            `SessionConflict` or ``fork`` the conversation under a new name, which the answer's
            ``response_metadata["rwkv_session"]`` gives.
        wait_timeout: Seconds to wait for the turns before; then `SessionConflict`.

    Raises:
        ValueError: At construction: the name, the time to live or `on_conflict` is not possible.
        TypeError: The input is no text, messages, prompt value or ``{"messages": ...}``; at
            construction, `wait_timeout` is no number.
        SessionConflict: The wait was too long, or would never end; the head moved during the call
            (with ``wait``, by somebody who did not wait), and the answer is lost, the session not;
            or the input is a transcript of another branch.
        StoreFull: The store has no room; the old head stays.

    Example:
        >>> bob = ChatRWKV(model="demo").with_session("bob")  # doctest: +SKIP
        >>> bob.invoke("My name is Bob.")  # doctest: +SKIP
        >>> bob.invoke("What is my name?").content  # doctest: +SKIP
        'Your name is Bob.'
    """

    def __init__(
        self,
        chat: BaseChatModel,
        store: StateStore,
        session: str,
        *,
        ttl: TTL = None,
        on_conflict: OnConflict = "wait",
        wait_timeout: float = WAIT_SECONDS,
    ) -> None:
        if on_conflict not in ("wait", "raise", "fork"):
            raise ValueError(f"on_conflict is 'wait', 'raise' or 'fork', not {on_conflict!r}.")
        if isinstance(wait_timeout, bool) or not isinstance(wait_timeout, (int, float)):
            raise TypeError(
                f"wait_timeout is {wait_timeout!r:.100}: pass a number of seconds; 0 does not wait."
            )
        if not 0 <= wait_timeout < math.inf:
            raise ValueError(
                f"wait_timeout is {wait_timeout!r}: pass a finite number of seconds that is not "
                "negative; 0 does not wait."
            )
        check_session(session, ttl)
        self.chat = chat
        self.store = store
        self.session = session
        self.ttl = ttl
        self.on_conflict = on_conflict
        self.wait_timeout = wait_timeout

    def __repr__(self) -> str:
        return f"RWKVSession({self.session!r}, store={self.store!r})"

    def bind(self, **kwargs: Any) -> Runnable[LanguageModelInput, AIMessage]:
        """Binds options to every call; a tenant's salt is bound in the form that may be seen."""
        return super().bind(**seen(kwargs))

    def bind_tools(
        self, tools: Sequence[Any], **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Returns this session with tools that the model may call; see `ChatRWKV.bind_tools`.

        Each call is a turn: pass the results alone, as the next one.
        """
        self.chat.bind_tools(tools, **kwargs)  # checks all of it
        return self.bind(**tool_options(tools, **kwargs))

    def with_structured_output(
        self,
        schema: Any = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Returns this session with objects for answers; see `ChatRWKV.with_structured_output`."""
        self.chat.with_structured_output(schema, method=method, **kwargs)  # checks all of it
        wanted = Structured.of(schema, method=method, **kwargs)
        return wanted.chain(self.bind(**wanted.options), include_raw=include_raw)

    @property
    def head(self) -> str | None:
        """Reference of the session's state; ``None`` before the first turn."""
        return self.store.head(self.session)

    def log(self) -> list[LogEntry]:
        """Returns the session's last turns, newest first."""
        return self.store.log(self.session)

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """Answers one turn and commits it."""
        turn = self._turn(input)
        try:
            messages = run(turn.begin(), self.store)
            try:
                answer = self.chat.invoke(messages, config, **kwargs)
            except GONE as error:
                raise run(turn.lost(error), self.store) from error
            steps = turn.commit(answer.response_metadata[STATE_KEY], answer)
            answer.response_metadata[SESSION_KEY] = run(steps, self.store)
        finally:
            run(turn.end(), self.store)
        return answer

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """Answers one turn and commits it, without blocking the event loop.

        Cancelled, it commits nothing. Where the cancellation comes as the commit is being written,
        the turn is in the session, and is returned.
        """
        turn = self._turn(input)
        try:
            messages = await arun(turn.begin(), self.store)
            try:
                answer = await self.chat.ainvoke(messages, config, **kwargs)
            except GONE as error:
                raise await arun(turn.lost(error), self.store) from error
            steps = turn.commit(answer.response_metadata[STATE_KEY], answer)
            answer.response_metadata[SESSION_KEY] = await arun(steps, self.store)
        finally:
            await arun(turn.end(), self.store)
        return answer

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """Streams one turn's answer; the last chunk comes after its commit."""
        turn = self._turn(input)
        said: AIMessageChunk | None = None
        try:
            messages = run(turn.begin(), self.store)
            for chunk in self.chat.stream(messages, config, **kwargs):
                said = chunk if said is None else said + chunk
                if STATE_KEY in chunk.response_metadata:
                    steps = turn.commit(chunk.response_metadata[STATE_KEY], said)
                    chunk.response_metadata[SESSION_KEY] = run(steps, self.store)
                yield chunk
        except GONE as error:
            raise run(turn.lost(error), self.store) from error
        finally:
            run(turn.end(), self.store)

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """Streams one turn's answer; the last chunk comes after its commit."""
        turn = self._turn(input)
        said: AIMessageChunk | None = None
        try:
            messages = await arun(turn.begin(), self.store)
            async for chunk in self.chat.astream(messages, config, **kwargs):
                said = chunk if said is None else said + chunk
                if STATE_KEY in chunk.response_metadata:
                    steps = turn.commit(chunk.response_metadata[STATE_KEY], said)
                    chunk.response_metadata[SESSION_KEY] = await arun(steps, self.store)
                yield chunk
        except GONE as error:
            raise await arun(turn.lost(error), self.store) from error
        finally:
            await arun(turn.end(), self.store)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answers the inputs as turns of one conversation, one after another."""
        return super().batch(
            inputs, self._in_turn(config), return_exceptions=return_exceptions, **kwargs
        )

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answers the inputs as turns of one conversation, one after another."""
        return await super().abatch(
            inputs, self._in_turn(config), return_exceptions=return_exceptions, **kwargs
        )

    @staticmethod
    def _in_turn(
        config: RunnableConfig | list[RunnableConfig] | None,
    ) -> RunnableConfig | list[RunnableConfig]:
        """Allows one run at a time: turns of one conversation would race for its head."""
        if isinstance(config, list):
            return [{**item, "max_concurrency": 1} for item in config]
        return {**(config or {}), "max_concurrency": 1}

    def _turn(self, given: LanguageModelInput) -> SessionTurn:
        return SessionTurn(
            self.store,
            self.session,
            to_messages(given),
            ttl=self.ttl,
            on_conflict=self.on_conflict,
            wait_seconds=self.wait_timeout,
        )
