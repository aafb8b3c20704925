"""Goes on from texts, whole or as a stream: OpenAI's older protocol, without a chat's template.

A request may hold several texts, which are gone on from at once; in a stream their pieces come as
they are made, each with its text's place. No state is kept of what is said here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeAlias

from fastapi import APIRouter
from starlette.responses import Response

from langchain_rwkv_state.engine import Done, Event, RequestHandle, TokenLogprob
from langchain_rwkv_state.serve.chunks import DONE, Chunks, as_bytes, quoted
from langchain_rwkv_state.serve.costs import Cost
from langchain_rwkv_state.serve.envelopes import about, usage
from langchain_rwkv_state.serve.errors import ApiError, as_api_error, checking, unsupported
from langchain_rwkv_state.serve.fields import Completing, Refused
from langchain_rwkv_state.serve.merging import merged
from langchain_rwkv_state.serve.models import Asks, Settings, require_model
from langchain_rwkv_state.serve.replies import EventStream, JsonReply, error_event
from langchain_rwkv_state.serve.tenants import Tenant

router = APIRouter()

_MOST_TEXTS = 128
_TOKENS = 16  # OpenAI's default, of this protocol alone
_MOST_LOGPROBS = 5


class CompletionBody(Completing):
    """A request for completions of texts."""

    passed = frozenset({"user"})
    refused: ClassVar[Mapping[str, Refused]] = {
        "best_of": Refused("each text is gone on from once.", (1,)),
        "logit_bias": Refused("no token's odds can be changed.", ({},)),
        "n": Refused("each text is gone on from once; send it several times.", (1,)),
        "suffix": Refused("the model reads what stands before, and nothing behind.", ("",)),
    }

    prompt: Any
    echo: bool | None = None
    logprobs: int | None = None

    def texts(self) -> list[str]:
        """Returns the texts.

        Raises:
            ApiError: They are none, or too many.
        """
        found = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not isinstance(found, list) or not found:
            raise ApiError(
                400, f"prompt is a text or some texts, got {found!r:.100}.", param="prompt"
            )
        if not all(isinstance(text, str) for text in found):
            raise unsupported("prompt", "send texts and no ids of tokens, which differ by model.")
        if len(found) > _MOST_TEXTS:
            raise ApiError(
                400, f"prompt holds {len(found)} texts: send {_MOST_TEXTS} at most.", param="prompt"
            )
        return found

    def options(self) -> dict[str, Any]:
        """Returns `RWKVLLM`'s options of a call.

        Raises:
            ApiError: Fields contradict each other.
        """
        found = {"max_tokens": _TOKENS, **self.sampling()}
        if self.logprobs is None:
            return found
        if not 0 <= self.logprobs <= _MOST_LOGPROBS:
            raise ApiError(
                400,
                f"logprobs is 0 to {_MOST_LOGPROBS}, got {self.logprobs}.",
                param="logprobs",
            )
        if self.echo:
            raise unsupported("logprobs", "with echo=true: the prompt's tokens have none.")
        return {**found, "logprobs": True, "top_logprobs": self.logprobs}


@router.post("/v1/completions")
async def complete_texts(body: CompletionBody, tenant: Asks, settings: Settings) -> Response:
    """Goes on from texts."""
    require_model(settings, body.model)
    texts, options, with_usage = body.texts(), body.options(), body.with_usage
    shared = about(tenant, settings.model_name, "text_completion", "cmpl")
    asked = partial(_begin, tenant, texts, options)
    leads = texts if body.echo else [""] * len(texts)
    if body.stream:
        nothing = {"index": 0, "text": None, "logprobs": None, "finish_reason": None}
        chunks = Chunks(shared, nothing, "text", with_usage=with_usage)
        return EventStream(_stream(asked, chunks, leads))
    return JsonReply(lambda: _whole(asked, shared, leads))


@dataclass(frozen=True)
class _Asked:
    """A text that is gone on from."""

    handle: RequestHandle
    cost: Cost


_Begin: TypeAlias = Callable[[], Awaitable[list[_Asked]]]


async def _begin(tenant: Tenant, texts: Sequence[str], options: Mapping[str, Any]) -> list[_Asked]:
    """Asks the engine for all answers, or for none.

    Raises:
        ApiError: The request asks for what cannot be had.
        RWKVStateError: As a call of `RWKVLLM`.
    """
    given = dict(options)
    stop = given.pop("stop", None)
    with checking():
        planned = await asyncio.to_thread(
            lambda: [tenant.llm.plan_call(text, stop, given) for text in texts]
        )
    with ExitStack() as until_all:
        asked = []
        for engine, plan, request in planned:
            cost = Cost(tenant.usage, plan.base.n_tokens, len(request.prompt))
            handle = engine.submit(cost.watching(request))
            until_all.callback(handle.cancel)
            asked.append(_Asked(handle, cost))
        until_all.pop_all()
    return asked


@contextmanager
def _running(asked: Sequence[_Asked]) -> Iterator[None]:
    """Leaves the answers at its end, and has their usage told."""
    with ExitStack() as stack:
        for each in asked:
            stack.enter_context(each.cost)
            stack.callback(each.handle.cancel)
        yield


async def _whole(begin: _Begin, shared: dict[str, Any], leads: Sequence[str]) -> dict[str, Any]:
    asked = await begin()
    ends = []
    with _running(asked):
        for each in asked:
            async for events in each.handle.batches():
                each.cost.count(events)
                if isinstance(done := events[-1], Done):
                    ends.append(done)
    choices = [
        {
            "index": index,
            "text": lead + done.text,
            "logprobs": _logprobs(done.logprobs),
            "finish_reason": done.finish_reason,
        }
        for index, (lead, done) in enumerate(zip(leads, ends, strict=True))
    ]
    return {**shared, "choices": choices, "usage": _usage(asked, ends)}


async def _stream(begin: _Begin, chunks: Chunks, leads: Sequence[str]) -> AsyncGenerator[bytes]:
    asked = await begin()
    begun = False
    ends = []
    try:
        with _running(asked):
            sources = [each.handle.batches() for each in asked]
            async with aclosing(merged(sources)) as pieces:
                async for index, events in pieces:
                    asked[index].cost.count(events)
                    told = []
                    if not begun:
                        told = [
                            chunks.more(lead, index=at) for at, lead in enumerate(leads) if lead
                        ]
                        begun = True
                    told += [_chunk(chunks, index, each) for each in events]
                    ends += [each for each in events if isinstance(each, Done)]
                    yield as_bytes(told)
    except Exception as error:
        if not begun:
            raise
        asked[0].cost.failed(error)
        yield error_event(as_api_error(error))
        return
    yield as_bytes([chunks.usage(_usage(asked, ends))]) + DONE


def _chunk(chunks: Chunks, index: int, event: Event) -> str:
    if isinstance(event, Done):
        return chunks.more("", index=index, finish_reason=event.finish_reason)
    if index or event.logprobs:
        return chunks.more(event.text, index=index, logprobs=_logprobs(event.logprobs or None))
    return chunks.plain(quoted(event.text))


def _usage(asked: Sequence[_Asked], ends: Sequence[Done]) -> dict[str, Any]:
    """Returns what all answers cost together; ends may stand in any order."""
    return usage(
        read=sum(each.cost.read for each in asked),
        cached=sum(each.cost.known for each in asked) + sum(done.reused for done in ends),
        answered=sum(done.answer_tokens for done in ends),
    )


def _logprobs(found: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    """Returns tokens' log-probabilities in the form of this protocol."""
    if found is None:
        return None
    return {
        "tokens": [each.token for each in found],
        "token_logprobs": [each.logprob for each in found],
        "top_logprobs": [{top.token: top.logprob for top in each.top} for each in found],
        "text_offset": [each.at for each in found],
    }
