"""Answers requests for chat completions, whole or as a stream.

It keeps nothing: the messages are the whole conversation, of which the prefix cache spares what was
read before. What a model thinks before it answers stands in ``reasoning_content`` of the message or
of a delta, as DeepSeek and vLLM have it; OpenAI has no field for it here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter
from langchain_core.messages import BaseMessage
from starlette.responses import Response

from langchain_rwkv_state.prompt.content import REASONING_KEY
from langchain_rwkv_state.prompt.json_text import json_text
from langchain_rwkv_state.serve.answers import Answered, Piece, begin, whole
from langchain_rwkv_state.serve.chat_schema import ChatBody
from langchain_rwkv_state.serve.chunks import DONE, Chunks, as_bytes, quoted
from langchain_rwkv_state.serve.envelopes import about, usage
from langchain_rwkv_state.serve.errors import as_api_error
from langchain_rwkv_state.serve.messages import to_langchain
from langchain_rwkv_state.serve.models import Asks, Settings, require_model
from langchain_rwkv_state.serve.replies import EventStream, JsonReply, error_event
from langchain_rwkv_state.serve.tenants import Tenant

router = APIRouter()

_TIER = {"service_tier": "default"}


@router.post("/v1/chat/completions")
async def complete_chat(body: ChatBody, tenant: Asks, settings: Settings) -> Response:
    """Answers messages."""
    require_model(settings, body.model)
    messages, options = to_langchain(body.messages), body.options()
    with_usage = body.with_usage
    if body.stream:
        return EventStream(
            _stream(tenant, settings.model_name, messages, options, with_usage=with_usage)
        )
    return JsonReply(lambda: _whole(tenant, settings.model_name, messages, options))


async def _whole(
    tenant: Tenant, model: str, messages: Sequence[BaseMessage], options: dict[str, Any]
) -> dict[str, Any]:
    answered = await whole(tenant, messages, options)
    choice = {
        "index": 0,
        "message": _message(answered),
        "logprobs": _logprobs(answered.logprobs),
        "finish_reason": answered.finish_reason,
    }
    shared = about(tenant, model, "chat.completion", "chatcmpl") | _TIER
    return {**shared, "choices": [choice], "usage": _usage(answered)}


def _message(answered: Answered) -> dict[str, Any]:
    said = answered.message
    calls = [
        _call(call["id"], call["name"], json_text(call["args"], what="A call", compact=True))
        for call in said.tool_calls
    ]
    calls += [
        _call(cut["id"], cut["name"], cut["args"] or "")
        for cut in said.invalid_tool_calls
        if cut["name"]
    ]
    text = str(said.content)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text if text or not calls else None,
        "refusal": None,
        "annotations": [],
    }
    if calls:
        message["tool_calls"] = calls
    thought = said.additional_kwargs.get(REASONING_KEY)
    return {**message, REASONING_KEY: thought} if thought else message


def _call(call_id: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


async def _stream(
    tenant: Tenant,
    model: str,
    messages: Sequence[BaseMessage],
    options: dict[str, Any],
    *,
    with_usage: bool,
) -> AsyncGenerator[bytes]:
    answer = await begin(tenant, messages, options)
    shared = about(tenant, model, "chat.completion.chunk", "chatcmpl") | _TIER
    choice = {"index": 0, "delta": None, "logprobs": None, "finish_reason": None}
    chunks = Chunks(shared, choice, "delta", with_usage=with_usage)
    told: list[str] = []
    begun = False
    try:
        async for events in answer.batches():
            if not begun:
                told.append(chunks.plain('{"role":"assistant","content":"","refusal":null}'))
                begun = True
            for each in events:
                if isinstance(each, Piece):
                    told.append(_chunk(chunks, each))
                else:
                    told.append(chunks.more({}, finish_reason=each.finish_reason))
                    told.append(chunks.usage(_usage(each)))
            yield as_bytes(told)
            told.clear()
    except Exception as error:
        if not begun:
            raise
        tenant.usage.failed(error)
        yield error_event(as_api_error(error))
    else:
        yield DONE
    finally:
        await answer.aclose()


def _chunk(chunks: Chunks, piece: Piece) -> str:
    if piece.call is not None:
        call = piece.call
        part: dict[str, Any] = {"index": call.index, "function": {"arguments": call.arguments}}
        if call.id is not None:
            part |= {"id": call.id, "type": "function"}
            part["function"] = {"name": call.name, "arguments": call.arguments}
        return chunks.more({"tool_calls": [part]}, logprobs=_logprobs(piece.logprobs))
    if piece.logprobs is None and not piece.thought:
        return chunks.plain(f'{{"content":{quoted(piece.text)}}}')
    delta = {}
    if piece.thought:
        delta[REASONING_KEY] = piece.thought
    if piece.text:
        delta["content"] = piece.text
    return chunks.more(delta, logprobs=_logprobs(piece.logprobs))


def _usage(answered: Answered) -> dict[str, Any]:
    return usage(
        read=answered.prompt_tokens,
        cached=answered.cached_tokens,
        answered=answered.completion_tokens,
        thought=answered.reasoning_tokens,
    )


def _logprobs(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if found is None else {**found, "refusal": None}
