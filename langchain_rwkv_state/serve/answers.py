"""Makes an answer, as pieces that any protocol can put into its own words.

Each is asked of the engine itself: nothing of LangChain's stands between two tokens. A turn of a
conversation has its session's steps around that, up to the commit. An answer is planned, and taken
by the engine, before the first piece is waited for, so that what is wrong with a request is told by
a status and not in the middle of a stream. Whoever closes an answer, or is cancelled while it waits
for a piece, has it left within a step.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage

from langchain_rwkv_state.conversation.session_turn import GONE, OnConflict, SessionTurn
from langchain_rwkv_state.conversation.steps import arun
from langchain_rwkv_state.engine import Delta, Done, RequestHandle
from langchain_rwkv_state.prompt import plan as turn
from langchain_rwkv_state.prompt.answer_message import ChatCall
from langchain_rwkv_state.prompt.content import REASONING_KEY
from langchain_rwkv_state.prompt.logprobs import LOGPROBS_KEY, logprobs_metadata
from langchain_rwkv_state.serve.costs import Cost
from langchain_rwkv_state.serve.errors import checking
from langchain_rwkv_state.serve.tenants import Tenant
from langchain_rwkv_state.store import TTL, StateStore


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a call of a tool.

    Attributes:
        index: Which call of the answer it is, from 0.
        id: The call's own; in its first piece alone.
        name: The tool's; in the first piece alone.
        arguments: The next characters of its arguments, as JSON.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


class Piece(NamedTuple):
    """A piece of an answer: text, a thought, or a part of a call.

    Attributes:
        text: The next characters of what is said.
        thought: Of what is thought.
        call: Of a call.
        logprobs: Of the tokens that begin in `text`, as OpenAI writes them: ``{"content": [...]}``;
            ``None`` where they were not asked for, and where no token begins.
    """

    text: str = ""
    thought: str = ""
    call: CallPiece | None = None
    logprobs: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Answered:
    """A whole answer.

    Attributes:
        message: It, with calls and thought, as LangChain has it.
        finish_reason: ``stop``, ``length`` or ``tool_calls``.
        prompt_tokens: What it stands on: all that was said before, and the prompt.
        cached_tokens: How many of these had not to be read.
        completion_tokens: Of the answer, its thought's too.
        reasoning_tokens: Of the thought.
        ref: The state behind it, staged or committed; ``None`` where it was not to be kept.
        session: Which session holds it, of a turn of one.
        logprobs: Those of the pieces, joined; ``None`` where they were not asked for.
    """

    message: AIMessage
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0
    ref: str | None = None
    session: str | None = None
    logprobs: Mapping[str, Any] | None = None


Event: TypeAlias = Piece | Answered


class Answer:
    """An answer that is being made: its pieces, and `Answered` last.

    Args:
        batches: Gives them, all that are there each time.
        leave: Leaves the answer, also where nothing of it was taken yet.
    """

    def __init__(
        self, batches: AsyncGenerator[list[Event]], leave: Callable[[], Awaitable[None]]
    ) -> None:
        self._batches = batches
        self._leave = leave

    def batches(self) -> AsyncIterator[list[Event]]:
        """Returns the pieces in lists: all that are there each time."""
        return self._batches

    async def aclose(self) -> None:
        """Leaves the answer, which is due however it ended."""
        try:
            await self._batches.aclose()
        finally:
            await self._leave()


async def begin(
    tenant: Tenant,
    messages: Sequence[BaseMessage],
    options: Mapping[str, Any],
    *,
    keep: bool = False,
) -> Answer:
    """Begins an answer to messages, which may begin with a state's marker.

    Args:
        tenant: Who asks.
        messages: What is said.
        options: Of `ChatRWKV`'s calls, ``stop`` among them.
        keep: Whether the state behind the answer is staged, for whoever keeps it.

    Raises:
        ApiError: The request asks for what cannot be had.
        RWKVStateError: As a call of `ChatRWKV`.
    """
    asked = await _ask(tenant, messages, options)

    async def leave() -> None:
        asked.handle.cancel()

    return Answer(_answered(tenant, asked, keep=keep), leave)


async def whole(
    tenant: Tenant, messages: Sequence[BaseMessage], options: Mapping[str, Any]
) -> Answered:
    """Returns a whole answer, of which no state is kept: its pieces are not even made.

    Args:
        tenant: Who asks.
        messages: What is said.
        options: As for `begin`.

    Raises:
        ApiError, RWKVStateError: As `begin`.
    """
    asked = await _ask(tenant, messages, options)
    with asked.cost as cost:
        async for events in asked.handle.batches():
            cost.count(events)
            if isinstance(done := events[-1], Done):
                return await _answer_of(tenant, asked, done, keep=False)
    raise RuntimeError("An answer ended without its end.")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the engine was asked for."""

    call: ChatCall
    handle: RequestHandle
    cost: Cost


async def _ask(
    tenant: Tenant, messages: Sequence[BaseMessage], options: Mapping[str, Any]
) -> _Asked:
    given = dict(options)
    with checking():
        engine, call = await asyncio.to_thread(
            tenant.chat.plan_call, messages, given.pop("stop", None), given
        )
    cost = Cost(tenant.usage, call.plan.base.n_tokens, len(call.request.prompt))
    return _Asked(call, engine.submit(cost.watching(call.request)), cost)


async def _answered(tenant: Tenant, asked: _Asked, *, keep: bool) -> AsyncGenerator[list[Event]]:
    call = asked.call
    # Then the engine's pieces are the answer's, and no message of LangChain's is made of each.
    plain = not (call.tools or call.plan.continued) and call.request.logprobs is None
    pieces = call.stream()
    with asked.cost as cost:
        async for events in asked.handle.batches():
            cost.count(events)
            found: list[Event] = []
            for event in events:
                if not plain:
                    found += [piece for chunk in pieces.take(event) for piece in _pieces_of(chunk)]
                elif isinstance(event, Delta):
                    found.append(Piece(event.text, event.thought))
                if isinstance(event, Done):
                    found.append(await _answer_of(tenant, asked, event, keep=keep))
            if found:
                yield found


async def _answer_of(tenant: Tenant, asked: _Asked, done: Done, *, keep: bool) -> Answered:
    call, ref = asked.call, None
    if keep:
        ref = await asyncio.to_thread(turn.stage, call.plan, done, tenant.chat.answer_store)
    message = call.message(done)
    return Answered(
        message,
        _reason(message, done.finish_reason),
        asked.cost.read,
        asked.cost.cached(done),
        done.answer_tokens,
        done.thought_tokens,
        ref,
        logprobs=_logprobs(call, done, message),
    )


def _logprobs(call: ChatCall, done: Done, message: AIMessage) -> Mapping[str, Any] | None:
    if call.request.logprobs is None:
        return None
    found: Mapping[str, Any] = logprobs_metadata(call.logprobs(done, message))[LOGPROBS_KEY]
    return found


async def begin_turn(
    tenant: Tenant,
    conversation: str,
    messages: Sequence[BaseMessage],
    options: Mapping[str, Any],
    *,
    ttl: TTL = None,
    on_conflict: OnConflict = "raise",
) -> Answer:
    """Begins a turn of a conversation, which is committed before its end is told.

    Args:
        tenant: Who asks.
        conversation: The session's name.
        messages: What is said in the turn.
        options: Of `ChatRWKV`'s calls, ``stop`` among them.
        ttl: The session's time to live from now on.
        on_conflict: ``wait`` for the turns before, or ``raise`` where another was faster.

    Raises:
        ApiError: The request asks for what cannot be had.
        SessionConflict: Another turn was faster.
        RWKVStateError: As a call of a session.
    """
    store = tenant.store
    turn = SessionTurn(store, conversation, messages, ttl=ttl, on_conflict=on_conflict)
    try:
        with checking():
            to_read = await arun(turn.begin(), store)
        try:
            answer = await begin(tenant, to_read, options, keep=True)
        except GONE as error:
            raise (await arun(turn.lost(error), store)) from error
    except BaseException:
        await arun(turn.end(), store)
        raise

    async def leave() -> None:
        try:
            await answer.aclose()  # first: the model is to have left it when the next turn begins
        finally:
            await arun(turn.end(), store)

    return Answer(_committed(turn, store, answer), leave)


async def _committed(
    turn: SessionTurn, store: StateStore, answer: Answer
) -> AsyncGenerator[list[Event]]:
    """Yields an answer's pieces, and its end once the state behind it is the session's."""
    async for events in answer.batches():
        *pieces, end = events
        if not isinstance(end, Answered):
            yield events
            continue
        if pieces:
            yield pieces
        if end.ref is None:
            raise RuntimeError("No state was kept behind a turn.")
        yield [replace(end, session=await arun(turn.commit(end.ref, end.message), store))]


def _pieces_of(chunk: AIMessageChunk) -> list[Piece]:
    """Returns what a chunk of LangChain's holds."""
    found = []
    thought = chunk.additional_kwargs.get(REASONING_KEY)
    if thought:
        found.append(Piece(thought=thought))
    if chunk.content:
        found.append(Piece(str(chunk.content), logprobs=chunk.response_metadata.get(LOGPROBS_KEY)))
    for part in chunk.tool_call_chunks:
        call = CallPiece(part["index"] or 0, part["id"], part["name"], part["args"] or "")
        found.append(Piece(call=call))
    return found


def _reason(message: AIMessage, reason: str) -> str:
    """Returns OpenAI's word for why an answer ended."""
    called = bool(message.tool_calls) or any(cut["name"] for cut in message.invalid_tool_calls)
    return "tool_calls" if called and reason == "stop" else reason
