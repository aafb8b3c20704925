"""Serves ``/v1/responses``: an answer's id stands for its state, from which any turn can go on.

A request goes on from nothing, from the state of an earlier response, or from where a conversation
stands. What is kept is the state behind an answer and no word of it, so a response cannot be read
again, and its time runs out. It is kept before the end of the answer is told: whoever has the end
can go on from it, at any replica over the same store.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from langchain_core.messages import BaseMessage, SystemMessage

from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.messages import marker
from langchain_rwkv_state.prompt.markers import leading_system
from langchain_rwkv_state.serve.answers import Answer, Answered, begin, begin_turn
from langchain_rwkv_state.serve.conversations import require_conversation
from langchain_rwkv_state.serve.errors import ApiError, as_api_error, unsupported
from langchain_rwkv_state.serve.models import Asks, Settings, require_model
from langchain_rwkv_state.serve.replies import EventStream, JsonReply
from langchain_rwkv_state.serve.response_events import ResponseDocument, ResponseEvents
from langchain_rwkv_state.serve.response_ids import ResponseId, read_id, state_of
from langchain_rwkv_state.serve.response_items import read_items
from langchain_rwkv_state.serve.response_output import Output
from langchain_rwkv_state.serve.responses_schema import ResponseRequest
from langchain_rwkv_state.serve.settings import ServeSettings
from langchain_rwkv_state.serve.tenants import Tenant
from langchain_rwkv_state.store.clock import ttl_seconds
from langchain_rwkv_state.store.settings import DEFAULT_TTL

router = APIRouter()


@router.post("/v1/responses")
async def create_response(asked: ResponseRequest, tenant: Asks, settings: Settings) -> Response:
    """Answers, and keeps the state behind the answer."""
    require_model(settings, asked.model)
    asked.check()
    turn = _Turn(asked, tenant, settings)
    return EventStream(turn.events()) if asked.stream else JsonReply(turn.whole)


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, tenant: Asks) -> dict[str, Any]:
    """Lets go of the state behind a response; what goes on from it already is as it was."""
    await state_of(tenant.store, response_id, time.time())
    await tenant.store.arelease(read_id(response_id).owner)
    return {"id": response_id, "object": "response", "deleted": True}


@router.get("/v1/responses/{response_id}")
@router.get("/v1/responses/{response_id}/input_items")
async def get_response(response_id: str) -> dict[str, Any]:
    """Says that no words are kept."""
    raise ApiError(
        400,
        f"The words of {response_id!r:.100} are not kept, only the state behind them: keep the "
        "answer where you got it, or go on from it with previous_response_id.",
        code="unsupported",
    )


@router.post("/v1/responses/{response_id}/cancel")
async def cancel_response(response_id: str) -> dict[str, Any]:
    """Says how a response is cancelled here."""
    raise unsupported(
        "cancel", f"{response_id!r:.100} is not in the background. Leave a request to end it."
    )


class _Turn:
    """A request for a response, and what comes of it."""

    def __init__(self, asked: ResponseRequest, tenant: Tenant, settings: ServeSettings) -> None:
        now = time.time()
        self._asked = asked
        self._tenant = tenant
        self._ttl = settings.ttl
        self._now = now
        seconds = ttl_seconds(settings.ttl, DEFAULT_TTL.total_seconds()) if asked.kept else None
        self._id = ResponseId.new(now, seconds)
        self._output = Output(summarised=asked.summarised)
        self._document = ResponseDocument(str(self._id), now, settings.model_name, asked.echo())

    async def whole(self) -> dict[str, Any]:
        """Returns the response once it is there."""
        answer = await self._begin()
        try:
            async for events in answer.batches():
                for event in events:
                    if isinstance(event, Answered):
                        await self._keep(event)
                        self._output.begin_empty()
                        return self._document.ended(self._output, event)
                    self._output.take(event)
        except StoreError as error:
            if self._asked.conversation_name is None:
                raise
            # The turn may have been committed: sent again, it would be a second one.
            told = as_api_error(error)
            told.headers = {"x-should-retry": "false"}
            raise told from error
        finally:
            await answer.aclose()
        raise RuntimeError("An answer ended without its end.")

    async def events(self) -> AsyncIterator[bytes]:
        """Yields the response as events.

        What goes wrong before there is anything of the answer is raised: it has a status then.
        """
        answer = await self._begin()
        events = ResponseEvents(self._document, self._output)
        is_begun, unsent = False, b""  # the first events go with the first piece, in one write
        try:
            async for pieces in answer.batches():
                if not is_begun:
                    is_begun, unsent = True, events.begin()
                for piece in pieces:
                    if isinstance(piece, Answered):
                        await self._keep(piece)
                        unsent += events.end(piece)
                    else:
                        unsent += events.piece(piece)
                if unsent:
                    yield unsent
                unsent = b""
        except Exception as error:
            if not is_begun:
                raise
            self._tenant.usage.failed(error)
            yield unsent + events.fail(as_api_error(error))
        finally:
            await answer.aclose()

    async def _begin(self) -> Answer:
        asked, tenant = self._asked, self._tenant
        conversation, before = asked.conversation_name, asked.previous_response_id
        options = asked.options()
        messages = read_items(asked.input, whole=conversation is None and before is None)
        if asked.instructions:
            messages.insert(0, SystemMessage(asked.instructions))
        if conversation is not None:
            await require_conversation(tenant.store, conversation)
            return await begin_turn(
                tenant,
                conversation,
                messages,
                options,
                ttl=self._ttl,
                on_conflict=asked.on_conflict,
            )
        if before is not None:
            ref = await state_of(tenant.store, before, self._now, param="previous_response_id")
            messages = _behind(ref, messages)
        return await begin(tenant, messages, options, keep=asked.kept)

    async def _keep(self, answered: Answered) -> None:
        """Keeps the state behind the answer, durably, for whoever goes on from it."""
        if self._asked.kept and answered.ref is not None:
            await self._tenant.store.to_its_end("keep", answered.ref, self._id.owner, self._ttl)


def _behind(ref: str, messages: list[BaseMessage]) -> list[BaseMessage]:
    """Returns messages behind a state.

    The system messages that lead them stand before its marker, as a session's do: where they are
    those that the state has read, they are not read again.
    """
    end = leading_system(messages)
    return [*messages[:end], marker(ref), *messages[end:]]
