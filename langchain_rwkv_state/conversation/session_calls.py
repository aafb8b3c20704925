"""Answers the calls of sessions: loads the head, runs the model, commits the answer's state.

`SessionCalls` is a `Runnable` around a chat model and its store, for people who want no graph. It
decides when a turn is committed; which session a call is for is told by who derives from it. Only a
finished answer is committed: no stream that was left before its end, and no aside.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langchain_core.runnables.config import get_config_list
from langchain_core.runnables.utils import gather_with_concurrency

from langchain_rwkv_state.base import RWKVModel, seen
from langchain_rwkv_state.conversation.lanes import answered, as_completed
from langchain_rwkv_state.conversation.session_turn import (
    GONE,
    SESSION_KEY,
    OnAbort,
    OnConflict,
    SessionTurn,
)
from langchain_rwkv_state.conversation.steps import (
    Answer,
    Give,
    NextChunk,
    Steps,
    agive,
    arun,
    give,
    run,
)
from langchain_rwkv_state.conversation.waiting import WAIT_SECONDS
from langchain_rwkv_state.prompt.markers import (
    STATE_KEY,
    InputError,
    to_messages,
)
from langchain_rwkv_state.prompt.structured import Method, Structured, tool_options
from langchain_rwkv_state.store import TTL, StateStore
from langchain_rwkv_state.store.clock import ttl_seconds


class _Answers(ABC):
    """Binds options to sessions, also where some are bound to them already."""

    @property
    @abstractmethod
    def _calls(self) -> SessionCalls:
        """The session, or sessions."""

    @abstractmethod
    def bind(self, **kwargs: Any) -> BoundSession:
        """Binds options to every call."""

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> BoundSession:
        """Returns this session with tools that the model may call; see `ChatRWKV.bind_tools`.

        Each call is a turn: pass the results alone, as the next one.
        """
        self._calls.chat.bind_tools(tools, **kwargs)  # checks all of it
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
        self._calls.chat.with_structured_output(schema, method=method, **kwargs)  # checks all of it
        wanted = Structured.of(schema, method=method, **kwargs)
        return wanted.chain(self.bind(**wanted.options), include_raw=include_raw)


class SessionCalls(Runnable[LanguageModelInput, AIMessage], _Answers):
    """Answers calls of sessions, whatever tells a call which session is meant.

    Args:
        chat: The model that answers; its answers name states in `store`.
        store: Where the sessions live.
        ttl: As for `RWKVSession`, and so are the others.
        on_conflict: What to do about other turns of the same session.
        wait_timeout: Seconds to wait for the turns before.
        on_abort: What to do about a turn that is left before its answer is whole.
    """

    def __init__(
        self,
        chat: BaseChatModel,
        store: StateStore,
        *,
        ttl: TTL = None,
        on_conflict: OnConflict = "wait",
        wait_timeout: float = WAIT_SECONDS,
        on_abort: OnAbort = "forget",
    ) -> None:
        if on_abort not in ("forget", "keep_question"):
            raise ValueError(f"on_abort is 'forget' or 'keep_question', not {on_abort!r:.100}.")
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
        ttl_seconds(ttl, 1.0)
        self.chat = chat
        self.store = store
        self.ttl = ttl
        self.on_conflict = on_conflict
        self.wait_timeout = wait_timeout
        self.on_abort = on_abort

    @abstractmethod
    def _session_of(self, config: RunnableConfig | None) -> str:
        """Returns the name of the session that a call is for.

        Raises:
            ValueError: None is given, or none that a session can have.
        """

    @property
    def _calls(self) -> SessionCalls:
        return self

    def bind(self, **kwargs: Any) -> BoundSession:
        """Binds options to every call; a tenant's salt is bound in the form that may be seen."""
        return BoundSession(bound=self, kwargs=seen(kwargs), config={})

    def with_config(self, config: RunnableConfig | None = None, **kwargs: Any) -> BoundSession:
        """Binds a configuration to every call."""
        merged = cast("RunnableConfig", {**(config or {}), **kwargs})
        return BoundSession(bound=self, kwargs={}, config=merged)

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """Answers one turn and commits it."""
        return run(self._answer(input, config, kwargs), self.store)

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """Answers one turn and commits it, without blocking the event loop.

        Cancelled, it commits nothing, and does as `on_abort` says. Where the cancellation comes as
        the commit is being written, the turn is in the session, and is returned.
        """
        return await arun(self._answer(input, config, kwargs), self.store)

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """Streams one turn's answer; the last chunk comes after its commit."""
        return give(self._stream(input, config, kwargs), self.store)

    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """Streams one turn's answer; the last chunk comes after its commit."""
        return agive(self._stream(input, config, kwargs), self.store)

    # -- beside the conversation ---------------------------------------------------------------

    def ask_aside(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """Answers from where the session stands, and leaves it there: nothing is committed.

        Nobody is waited for, also where a turn is under way, and the session's time to live is not
        renewed. Its unread messages are read too. The state behind the answer is named in
        ``response_metadata["rwkv_state"]`` as of any answer, and lives as briefly.

        Raises:
            SessionConflict: The session moved on before its state could be read: ask again.

        Example:
            >>> bob.ask_aside("What do you know about me?").content  # doctest: +SKIP
        """
        return run(self._answer(input, config, kwargs, aside=True), self.store)

    async def aask_aside(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """As `ask_aside`, without blocking the event loop."""
        return await arun(self._answer(input, config, kwargs, aside=True), self.store)

    def stream_aside(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """Streams an answer of `ask_aside`."""
        return give(self._stream(input, config, kwargs, aside=True), self.store)

    def astream_aside(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """As `stream_aside`, without blocking the event loop."""
        return agive(self._stream(input, config, kwargs, aside=True), self.store)

    # -- a turn, as steps ------------------------------------------------------------------------

    def _answer(
        self,
        given: LanguageModelInput,
        config: RunnableConfig | None,
        options: Mapping[str, Any],
        *,
        aside: bool = False,
    ) -> Steps[AIMessage]:
        turn = self._turn(given, config, aside=aside)
        try:
            messages = yield from turn.begin()
            try:
                answer: AIMessage = yield Answer(self.chat, messages, config, options)
            except GONE as error:
                raise (yield from turn.lost(error)) from error
            if not aside:
                held_by = yield from turn.commit(answer.response_metadata[STATE_KEY], answer)
                answer.response_metadata[SESSION_KEY] = held_by
        except BaseException as error:
            yield from turn.aborted(error)
            raise
        finally:
            yield from turn.end()
        return answer

    def _stream(
        self,
        given: LanguageModelInput,
        config: RunnableConfig | None,
        options: Mapping[str, Any],
        *,
        aside: bool = False,
    ) -> Steps[None]:
        turn = self._turn(given, config, aside=aside)
        said: AIMessageChunk | None = None
        chunks: NextChunk | None = None
        try:
            messages = yield from turn.begin()
            chunks = NextChunk(self.chat, messages, config, options)
            while (chunk := (yield chunks)) is not None:
                said = chunk if said is None else said + chunk
                if not aside and STATE_KEY in chunk.response_metadata:
                    held_by = yield from turn.commit(chunk.response_metadata[STATE_KEY], said)
                    chunk.response_metadata[SESSION_KEY] = held_by
                yield Give(chunk)
        except GONE as error:
            raise (yield from turn.lost(error)) from error
        except BaseException as error:
            chunks = None
            yield from turn.aborted(error)
            raise
        finally:
            chunks = None  # where nobody listens any more, the model stops before the next turn
            yield from turn.end()

    # -- many at once --------------------------------------------------------------------------

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answers the inputs; those of one session as its turns, one after another.

        Ctrl-C aborts the turns that are under way, and no other begins.
        """
        options = {**kwargs, "return_exceptions": return_exceptions}
        found = dict(self.batch_as_completed(inputs, config, **options))
        return [found[at] for at in range(len(inputs))]

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """As `batch`, without blocking the event loop."""
        options = {**kwargs, "return_exceptions": return_exceptions}
        answers = self.abatch_as_completed(inputs, config, **options)
        found = {at: answer async for at, answer in answers}
        return [found[at] for at in range(len(inputs))]

    def batch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[int, Any]]:
        """As `batch`, and yields (place, answer) as the answers come.

        Left early, it aborts the turns that are under way, and begins no other.
        """
        configs = get_config_list(config, len(inputs))
        return as_completed(
            self._lanes(configs),
            lambda at: self.invoke(inputs[at], configs[at], **kwargs),
            self._lanes_at_once(configs[0]) if configs else {},
            return_exceptions=return_exceptions,
        )

    async def abatch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> AsyncIterator[tuple[int, Any]]:
        """As `abatch`, and yields (place, answer) as the answers come."""
        configs = get_config_list(config, len(inputs))
        lanes = self._lanes(configs)
        done: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

        async def in_turn(lane: Sequence[int]) -> None:
            for at in lane:
                try:
                    done.put_nowait((at, await self.ainvoke(inputs[at], configs[at], **kwargs)))
                except BaseException as error:  # noqa: BLE001 # it is raised where it is read
                    done.put_nowait((at, error))
                    if not (return_exceptions and isinstance(error, Exception)):
                        return

        if not lanes:
            return
        at_once = self._lanes_at_once(configs[0]).get("max_concurrency")
        work = asyncio.ensure_future(gather_with_concurrency(at_once, *map(in_turn, lanes)))
        try:
            for _ in inputs:
                yield answered(await done.get(), return_exceptions=return_exceptions)
        finally:
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work

    def _lanes(self, configs: Sequence[RunnableConfig]) -> list[list[int]]:
        """Returns the places of a batch by session: turns of one would race for its head."""
        lanes: dict[str | int, list[int]] = {}
        for at, config in enumerate(configs):
            lane: str | int = at
            with suppress(ValueError):  # the call itself says what is wrong with the name
                lane = self._session_of(config)
            lanes.setdefault(lane, []).append(at)
        return list(lanes.values())

    def _lanes_at_once(self, config: RunnableConfig) -> RunnableConfig:
        """Returns how many sessions are served at once: as many as the model's slots, if not said.

        LangChain's own default, made for calls over a network, follows the number of cores.
        """
        slots = self.chat.slots if isinstance(self.chat, RWKVModel) else None
        return {"max_concurrency": config.get("max_concurrency") or slots}

    def _turn(
        self, given: LanguageModelInput, config: RunnableConfig | None, *, aside: bool = False
    ) -> SessionTurn:
        if isinstance(given, str) and not given.strip():
            raise InputError(
                "The input is an empty text, and what is said in a session stays: pass a text, or "
                "a message where an empty one is meant."
            )
        return SessionTurn(
            self.store,
            self._session_of(config),
            to_messages(given),
            ttl=self.ttl,
            on_conflict=self.on_conflict,
            on_abort=self.on_abort,
            wait_seconds=self.wait_timeout,
            aside=aside,
        )


class BoundSession(RunnableBinding[LanguageModelInput, AIMessage], _Answers):
    """A session with options or a configuration bound to it, which its asides have too."""

    def bind(self, **kwargs: Any) -> BoundSession:
        """Binds more options to every call."""
        return cast("BoundSession", super().bind(**seen(kwargs)))

    def ask_aside(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """See `SessionCalls.ask_aside`."""
        return self._calls.ask_aside(
            input, self._merge_configs(config), **{**self.kwargs, **kwargs}
        )

    async def aask_aside(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """See `SessionCalls.aask_aside`."""
        merged = self._merge_configs(config)
        return await self._calls.aask_aside(input, merged, **{**self.kwargs, **kwargs})

    def stream_aside(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """See `SessionCalls.stream_aside`."""
        return self._calls.stream_aside(
            input, self._merge_configs(config), **{**self.kwargs, **kwargs}
        )

    def astream_aside(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """See `SessionCalls.astream_aside`."""
        return self._calls.astream_aside(
            input, self._merge_configs(config), **{**self.kwargs, **kwargs}
        )

    @property
    def _calls(self) -> SessionCalls:
        """The session.

        Raises:
            TypeError: It is behind something else, as after `with_retry`.
        """
        if not isinstance(self.bound, SessionCalls):
            raise TypeError(
                f"Asides and tools are a session's, and this is {type(self.bound).__name__}: ask "
                "the session itself, and put what else is wanted behind it."
            )
        return self.bound
