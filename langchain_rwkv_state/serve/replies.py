"""Sends what is asked for, and notices when whoever asked has left: then the answer is left, too.

These are responses of Starlette's without its ways of streaming, which cost as much as a small
model: one task sends, another waits for the client to leave. Work is done in the response and not
before it, so that it ends with the connection also where nothing was sent yet.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from langchain_rwkv_state.serve.errors import ApiError

logger = logging.getLogger("langchain_rwkv_state.serve")

_STALLED_SECONDS = 60.0
"""How long a client may take nothing of an answer: what it does not take stays in memory."""


class _Reply(Response):
    """A response whose body is made while the connection is watched."""

    def __init__(self, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status_code=200, headers=headers, media_type=self.media_type)
        if "content-length" in self.headers:
            del self.headers["content-length"]  # that of no body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        work = asyncio.ensure_future(self._send(send))
        left = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait([work, left], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, left):
                task.cancel()
            await asyncio.gather(work, left, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        raise NotImplementedError

    def _start(self) -> Message:
        return {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }


class JsonReply(_Reply):
    """Answers with a JSON document, once it is there.

    Args:
        make: Makes it; begun only when the response is sent.
        headers: More headers.
    """

    media_type = "application/json"

    def __init__(
        self,
        make: Callable[[], Coroutine[Any, Any, dict[str, Any]]],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(headers)
        self._make = make

    async def _send(self, send: Send) -> None:
        body = dumps(await self._make())
        self.headers["content-length"] = str(len(body))
        await send(self._start())
        await send({"type": "http.response.body", "body": body})


class EventStream(_Reply):
    """Answers with server-sent events, each sent as it comes.

    The first is waited for before the response begins: what fails until then has a status of its
    own. What fails later has to be an event, which is for whoever makes the events.

    Args:
        events: Gives events as bytes, each with the empty line behind it; it is closed at the end.
        headers: More headers.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(
            {"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})}
        )
        self._events = events

    async def _send(self, send: Send) -> None:
        started = False
        try:
            async for event in self._events:
                if not started:
                    await send(self._start())
                    started = True
                try:
                    # It waits only where the client takes less than there is.
                    async with asyncio.timeout(_STALLED_SECONDS):
                        await send({"type": "http.response.body", "body": event, "more_body": True})
                except TimeoutError:
                    logger.warning(
                        "A client took nothing of its stream for %g s, and is left",
                        _STALLED_SECONDS,
                    )
                    return
            if not started:
                await send(self._start())
            await send({"type": "http.response.body", "body": b""})
        finally:
            close: Callable[[], Awaitable[None]] | None = getattr(self._events, "aclose", None)
            if close is not None:
                await close()


def error_reply(error: ApiError) -> Response:
    """Returns the response that tells of an error."""
    return Response(dumps({"error": error.error}), error.status, error.headers, "application/json")


async def _left(receive: Receive) -> None:
    """Waits until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def dumps(document: Any) -> bytes:
    """Returns a document as JSON; half a surrogate pair, which is no text, becomes a ``?``."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def error_event(error: ApiError) -> bytes:
    """Returns the event that ends a stream of completions whose answer failed."""
    return b"data: " + dumps({"error": error.error}) + b"\n\n"
