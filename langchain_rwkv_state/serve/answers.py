"""Makes an answer, as pieces that any protocol can put into its own words.

An answer that goes on from a state, or from nothing, is asked of the engine itself: nothing of
LangChain's stands between two tokens. One that is a conversation's turn is its session's. Either is
planned, and taken by the engine, before the first piece is waited for, so that what is wrong with a
request is told by a status and not in the middle of a stream. Whoever closes an answer, or is
cancelled while it waits for a piece, has it left within a step.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage

from langchain_rwkv_state.conversation.session_turn import SESSION_KEY, OnConflict
from langchain_rwkv_state.engine import Delta, Done, RequestHandle
from langchain_rwkv_state.prompt import plan as turn
from langchain_rwkv_state.prompt.answer_message import ChatCall
from langchain_rwkv_state.prompt.content import REASONING_KEY
from langchain_rwkv_state.prompt.markers import STATE_KEY
from langchain_rwkv_state.serve.tenants import Tenant
from langchain_rwkv_state.store import TTL


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
    """A piece of an answer: text, a thought, or a part of a call."""

    text: str = ""
    thought: str = ""
    call: CallPiece | None = None
    logprobs: Any = None


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
        logprobs: As it was asked for.
    """

    message: AIMessage
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0
    ref: str | None = None
    session: str | None = None
    logprobs: Any = None


Event: TypeAlias = Piece | Answered


class Answer:
    """An answer that is being made: its pieces, and `Answered` last.

    Args:
        events: Gives them.
    """

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._events = events

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events

    async def whole(self) -> Answered:
        """Waits for the end, and returns the answer."""
        async for event in self._events:
            if isinstance(event, Answered):
                return event
        raise RuntimeError("An answer ended without its end.")

    async def aclose(self) -> None:
        """Leaves the answer; after its end, does nothing."""
        close = getattr(self._events, "aclose", None)
        if close is not None:
            await close()


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
        RWKVStateError, ValueError: As a call of `ChatRWKV`: it cannot be had.
    """
    given = dict(options)
    engine, call = await asyncio.to_thread(
        tenant.chat.plan_call, messages, given.pop("stop", None), given
    )
    return Answer(_answered(tenant, call, engine.submit(call.request), keep=keep))


async def _answered(
    tenant: Tenant, call: ChatCall, handle: RequestHandle, *, keep: bool
) -> AsyncIterator[Event]:
    pieces = None if call.tools is None and not call.plan.continued else call.stream()
    try:
        async for event in handle:
            if pieces is not None:
                for chunk in pieces.take(event):
                    for piece in pieces_of(chunk):
                        yield piece
            if isinstance(event, Delta):
                if pieces is None:
                    yield Piece(event.text, event.thought)
            else:
                yield await _end(tenant, call, event, keep=keep)
    finally:
        handle.cancel()


async def _end(tenant: Tenant, call: ChatCall, done: Done, *, keep: bool) -> Answered:
    ref = None
    if keep:
        ref = await asyncio.to_thread(turn.stage, call.plan, done, tenant.chat.answer_store)
    message = call.message(done)
    known = call.plan.base.n_tokens
    read, cached = known + len(call.request.prompt), known + done.reused
    tenant.usage.spent(read=read, cached=cached, answered=done.answer_tokens)
    return Answered(
        message,
        _reason(message, done.finish_reason),
        read,
        cached,
        done.answer_tokens,
        done.thought_tokens,
        ref,
    )


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
        SessionConflict: Another turn was faster.
        RWKVStateError, ValueError: As a call of a session.
    """
    session = await asyncio.to_thread(
        tenant.chat.with_session, conversation, ttl=ttl, on_conflict=on_conflict
    )
    chunks = session.astream(list(messages), **options)
    try:
        first = await anext(chunks)
    except StopAsyncIteration:
        raise RuntimeError("A turn ended without a word.") from None
    return Answer(_turn(tenant, first, chunks))


async def _turn(
    tenant: Tenant, first: AIMessageChunk, chunks: AsyncIterator[AIMessageChunk]
) -> AsyncIterator[Event]:
    said = first
    try:
        for piece in pieces_of(first):
            yield piece
        async for chunk in chunks:
            said = said + chunk
            for piece in pieces_of(chunk):
                yield piece
    finally:
        await chunks.aclose()  # type: ignore[attr-defined] # an asynchronous generator
    about, usage = said.response_metadata, said.usage_metadata
    if usage is None:
        raise RuntimeError("An answer says nothing of its usage.")
    cached = usage.get("input_token_details", {}).get("cache_read", 0)
    tenant.usage.spent(read=usage["input_tokens"], cached=cached, answered=usage["output_tokens"])
    message = AIMessage(
        content=said.content,
        tool_calls=said.tool_calls,
        invalid_tool_calls=said.invalid_tool_calls,
        additional_kwargs=said.additional_kwargs,
    )
    yield Answered(
        message,
        _reason(message, about["finish_reason"]),
        usage["input_tokens"],
        cached,
        usage["output_tokens"],
        usage.get("output_token_details", {}).get("reasoning", 0),
        about.get(STATE_KEY),
        about.get(SESSION_KEY),
        about.get("logprobs"),
    )


def pieces_of(chunk: AIMessageChunk) -> list[Piece]:
    """Returns what a chunk of LangChain's holds."""
    found = []
    thought = chunk.additional_kwargs.get(REASONING_KEY)
    if thought:
        found.append(Piece(thought=thought))
    if chunk.content:
        found.append(Piece(str(chunk.content), logprobs=chunk.response_metadata.get("logprobs")))
    for part in chunk.tool_call_chunks:
        call = CallPiece(part["index"] or 0, part["id"], part["name"], part["args"] or "")
        found.append(Piece(call=call))
    return found


def _reason(message: AIMessage, reason: str) -> str:
    """Returns OpenAI's word for why an answer ended."""
    return "tool_calls" if message.tool_calls and reason == "stop" else reason
