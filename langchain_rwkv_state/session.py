"""A conversation with a name: load the head, run the model, commit the answer's state.

`RWKVSession` is a `Runnable` around a chat model and its store, for people who want no graph. It
decides when a turn is committed, and nothing else. The easy mistake is to expect a turn from a
stream that was left before its end: only a finished answer is committed.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Literal

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig

from langchain_rwkv_state.errors import SessionConflict
from langchain_rwkv_state.messages import (
    STATE_KEY,
    marker,
    message_from_json,
    to_messages,
    without_markers,
)
from langchain_rwkv_state.store import TTL, LogEntry, SessionInfo, StateStore
from langchain_rwkv_state.turn import leading_system

SESSION_KEY = "rwkv_session"
"""Key in an answer's `response_metadata` of the session that holds it."""


def session_messages(
    info: SessionInfo | None, messages: Sequence[BaseMessage]
) -> list[BaseMessage]:
    """Puts a session's marker, and its unread messages, behind the leading system messages."""
    own = without_markers(messages)
    end = leading_system(own)
    unread = [message_from_json(text) for text in info.unread] if info else []
    return [*own[:end], marker(info.head if info else None), *unread, *own[end:]]


class RWKVSession(Runnable[LanguageModelInput, AIMessage]):
    """A durable conversation, made by `ChatRWKV.with_session`.

    Each call reads only the new messages, answers, and commits. Markers in the input are dropped:
    a reference is a capability, and a session reads no other conversation than its own.

    Args:
        chat: The model that answers; its answers name states in `store`.
        store: Where the session lives.
        session: The session's name, 1 to 512 characters.
        ttl: The session's time to live from each commit on (seconds or a `timedelta`); ``None``
            means the store's default, `math.inf` never.
        on_conflict: What to do when somebody else committed meanwhile: ``raise`` a
            `SessionConflict`, or ``fork`` the conversation under a new name, which the answer's
            ``response_metadata["rwkv_session"]`` gives.

    Raises:
        SessionConflict: The head moved during the call; the answer is lost, the session is not.
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
        on_conflict: Literal["raise", "fork"] = "raise",
    ) -> None:
        if on_conflict not in ("raise", "fork"):
            raise ValueError(f"on_conflict is 'raise' or 'fork', not {on_conflict!r}.")
        self.chat = chat
        self.store = store
        self.session = session
        self.ttl = ttl
        self.on_conflict = on_conflict

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
        info = self.store.session(self.session)
        messages = session_messages(info, to_messages(input))
        answer = self.chat.invoke(messages, config, **kwargs)
        held_by = self._commit(info, answer.response_metadata[STATE_KEY])
        answer.response_metadata[SESSION_KEY] = held_by
        return answer

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """Answers one turn and commits it, without blocking the event loop."""
        info = await self.store.asession(self.session)
        messages = session_messages(info, to_messages(input))
        answer = await self.chat.ainvoke(messages, config, **kwargs)
        held_by = await self._acommit(info, answer.response_metadata[STATE_KEY])
        answer.response_metadata[SESSION_KEY] = held_by
        return answer

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """Streams one turn's answer; the last chunk comes after its commit."""
        info = self.store.session(self.session)
        messages = session_messages(info, to_messages(input))
        for chunk in self.chat.stream(messages, config, **kwargs):
            if STATE_KEY in chunk.response_metadata:
                held_by = self._commit(info, chunk.response_metadata[STATE_KEY])
                chunk.response_metadata[SESSION_KEY] = held_by
            yield chunk

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """Streams one turn's answer; the last chunk comes after its commit."""
        info = await self.store.asession(self.session)
        messages = session_messages(info, to_messages(input))
        async for chunk in self.chat.astream(messages, config, **kwargs):
            if STATE_KEY in chunk.response_metadata:
                held_by = await self._acommit(info, chunk.response_metadata[STATE_KEY])
                chunk.response_metadata[SESSION_KEY] = held_by
            yield chunk

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

    def _commit(self, info: SessionInfo | None, ref: str) -> str:
        parent, covered = _seen(info)
        try:
            self.store.commit(self.session, ref, parent, self.ttl, unread_covered=covered)
        except SessionConflict:
            if self.on_conflict == "raise":
                raise
            name = self._fork_name()
            self.store.commit(name, ref, None, self.ttl)
            return name
        return self.session

    async def _acommit(self, info: SessionInfo | None, ref: str) -> str:
        parent, covered = _seen(info)
        try:
            await self.store.acommit(self.session, ref, parent, self.ttl, unread_covered=covered)
        except SessionConflict:
            if self.on_conflict == "raise":
                raise
            name = self._fork_name()
            await self.store.acommit(name, ref, None, self.ttl)
            return name
        return self.session

    def _fork_name(self) -> str:
        return f"{self.session[:490]}~{uuid.uuid4().hex[:12]}"


def _seen(info: SessionInfo | None) -> tuple[str | None, int]:
    """Returns the head and the number of unread messages that the model was handed."""
    return (info.head, len(info.unread)) if info else (None, 0)
