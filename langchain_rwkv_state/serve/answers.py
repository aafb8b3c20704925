"""Makes an answer, as pieces that any protocol can put into its own words.

An answer that goes on from a state, or from nothing, is asked of the engine itself: nothing of
LangChain's stands between two tokens. One that is a conversation's turn is its session's. Either is
planned, and taken by the engine, before the first piece is waited for, so that what is wrong with a
request is told by a status and not in the middle of a stream. Whoever closes an answer, or is
cancelled while it waits for a piece, has it left within a step.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import add_ai_message_chunks

from langchain_rwkv_state.conversation.session_turn import SESSION_KEY, OnConflict
from langchain_rwkv_state.engine import Delta, Done, RequestHandle
from langchain_rwkv_state.prompt import plan as turn
from langchain_rwkv_state.prompt.answer_message import ChatCall
from langchain_rwkv_state.prompt.content import REASONING_KEY
from langchain_rwkv_state.prompt.logprobs import LOGPROBS_KEY, logprobs_metadata
from langchain_rwkv_state.prompt.markers import STATE_KEY
from langchain_rwkv_state.serve.costs import Cost
from langchain_rwkv_state.serve.errors import checking
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
        end: Waits for the end alone, where that is cheaper than to take the pieces, too.
        leave: Leaves an answer of which nothing was taken yet.
    """

    def __init__(
        self,
        batches: AsyncGenerator[list[Event]],
        *,
        end: Callable[[], Awaitable[Answered]] | None = None,
        leave: Callable[[], None] | None = None,
    ) -> None:
        self._batches = batches
        self._end = end
        self._leave = leave

    def batches(self) -> AsyncIterator[list[Event]]:
        """Returns the pieces in lists: all that are there each time."""
        return self._batches

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yields the pieces one by one."""
        async for events in self._batches:
            for event in events:
                yield event

    async def whole(self) -> Answered:
        """Waits for the end, and returns the answer."""
        if self._end is not None:
            return await self._end()
        async for events in self._batches:
            if isinstance(events[-1], Answered):
                return events[-1]
        raise RuntimeError("An answer ended without its end.")

    async def aclose(self) -> None:
        """Leaves the answer; after its end, does nothing."""
        await self._batches.aclose()
        if self._leave is not None:
            self._leave()


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
    given = dict(options)
    with checking():
        engine, call = await asyncio.to_thread(
            tenant.chat.plan_call, messages, given.pop("stop", None), given
        )
    cost = Cost(tenant.usage, call.plan.base.n_tokens, len(call.request.prompt))
    handle = engine.submit(cost.watching(call.request))
    return Answer(
        _answered(tenant, call, handle, cost, keep=keep),
        end=lambda: _ended(tenant, call, handle, cost, keep=keep),
        leave=handle.cancel,
    )


async def _answered(
    tenant: Tenant, call: ChatCall, handle: RequestHandle, cost: Cost, *, keep: bool
) -> AsyncGenerator[list[Event]]:
    # Then the engine's pieces are the answer's, and no message of LangChain's is made of each.
    plain = not (call.tools or call.plan.continued) and call.request.logprobs is None
    pieces = call.stream()
    with cost:
        async for events in handle.batches():
            cost.count(events)
            found: list[Event] = []
            for event in events:
                if not plain:
                    found += [piece for chunk in pieces.take(event) for piece in pieces_of(chunk)]
                elif isinstance(event, Delta):
                    found.append(Piece(event.text, event.thought))
                if isinstance(event, Done):
                    found.append(await _answer_of(tenant, call, event, cost, keep=keep))
            if found:
                yield found


async def _ended(
    tenant: Tenant, call: ChatCall, handle: RequestHandle, cost: Cost, *, keep: bool
) -> Answered:
    with cost:
        async for events in handle.batches():
            cost.count(events)
            if isinstance(done := events[-1], Done):
                return await _answer_of(tenant, call, done, cost, keep=keep)
    raise RuntimeError("An answer ended without its end.")


async def _answer_of(
    tenant: Tenant, call: ChatCall, done: Done, cost: Cost, *, keep: bool
) -> Answered:
    ref = None
    if keep:
        ref = await asyncio.to_thread(turn.stage, call.plan, done, tenant.chat.answer_store)
    message = call.message(done)
    return Answered(
        message,
        _reason(message, done.finish_reason),
        cost.read,
        cost.cached(done),
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
    with checking():  # a session plans a turn once its first chunk is asked for
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
) -> AsyncGenerator[list[Event]]:
    heard = [first]
    try:
        if pieces := pieces_of(first):
            yield [*pieces]
        async for chunk in chunks:
            heard.append(chunk)
            if pieces := pieces_of(chunk):
                yield [*pieces]
    except BaseException:  # left, or failed: what was read is not known here
        tenant.usage.spent(read=0, cached=0, answered=len(heard))
        raise
    finally:
        await chunks.aclose()  # type: ignore[attr-defined] # an asynchronous generator
    said = add_ai_message_chunks(*heard)  # all at once: a message that grows is copied each time
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
    answered = Answered(
        message,
        _reason(message, about["finish_reason"]),
        usage["input_tokens"],
        cached,
        usage["output_tokens"],
        usage.get("output_token_details", {}).get("reasoning", 0),
        about.get(STATE_KEY),
        about.get(SESSION_KEY),
        about.get(LOGPROBS_KEY),
    )
    yield [answered]


def pieces_of(chunk: AIMessageChunk) -> list[Piece]:
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
