"""Asks an ASGI application in the same event loop, and can leave in the middle of an answer.

httpx's own transport hands over an answer only when it is whole. This one gives each piece as it
was sent, and says when the client has left as a server says it: ``http.disconnect``.

    async with AsgiClient(app) as client:
        reply = await client.post("/v1/chat/completions", {...})
        async with client.stream("/v1/chat/completions", {...}) as stream:
            async for data in stream.data():
                ...
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from starlette.types import ASGIApp, Message


@dataclass(frozen=True)
class Reply:
    """A whole answer.

    Attributes:
        status: HTTP's.
        headers: By names in lower case.
        body: All of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Returns the body, read as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """What OpenAI's form of an error says."""
        return self.json()["error"]


class Exchange:
    """A request that was sent, and what comes back.

    Attributes:
        sent: How many messages with a body came.
        error: What the application raised.
    """

    def __init__(self, app: ASGIApp, scope: dict[str, Any], body: bytes) -> None:
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._outbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self._inbox.put_nowait({"type": "http.request", "body": body, "more_body": False})
        self.sent = 0
        self.error: BaseException | None = None
        self.status = 0
        self.headers: dict[str, str] = {}
        self.task = asyncio.ensure_future(self._run(app, scope))

    async def _run(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self._inbox.get, self._outbox.put)
        except Exception as error:
            self.error = error
        finally:
            self._outbox.put_nowait(None)

    async def start(self) -> Self:
        """Waits until status and headers are there."""
        message = await self._outbox.get()
        if message is None:
            raise self.error or RuntimeError("The application sent nothing.")
        self.status = message["status"]
        self.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        return self

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yields the body's pieces, as they were sent."""
        while (message := await self._outbox.get()) is not None:
            self.sent += 1
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body"):
                return

    async def events(self) -> AsyncIterator[tuple[str | None, str]]:
        """Yields server-sent events: name and data."""
        text = b""
        async for piece in self.pieces():
            text += piece
            *whole, text = text.split(b"\n\n")
            for event in whole:
                lines = dict(line.split(": ", 1) for line in event.decode().split("\n"))
                yield lines.get("event"), lines["data"]
        assert not text, text

    async def data(self) -> AsyncIterator[Any]:
        """Yields the data of events, read as JSON where they are that."""
        async for _, data in self.events():
            yield data if data == "[DONE]" else json.loads(data)

    async def leave(self) -> None:
        """Leaves, as a client that closes its connection; waits until the application has ended."""
        self._inbox.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(asyncio.shield(self.task), 10)


class AsgiClient:
    """A client of one application, which it starts and ends.

    Args:
        app: The application.
        headers: Sent with each request.
    """

    def __init__(self, app: ASGIApp, headers: Mapping[str, str] | None = None) -> None:
        self._app = app
        self._headers = dict(headers or {})
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._outbox: asyncio.Queue[Message] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._life = asyncio.ensure_future(self._app(scope, self._inbox.get, self._outbox.put))
        await self._turn("startup")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._turn("shutdown")
        await self._life

    async def _turn(self, name: str) -> None:
        self._inbox.put_nowait({"type": f"lifespan.{name}"})
        message = await self._outbox.get()
        assert message["type"] == f"lifespan.{name}.complete", message

    def send(
        self,
        method: str,
        path: str,
        document: Any = None,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Exchange:
        """Sends a request; returns at once."""
        if body is None:
            body = b"" if document is None else json.dumps(document).encode()
        path, _, query = path.partition("?")
        known = {"host": "test", "content-type": "application/json", **self._headers}
        known |= {"content-length": str(len(body)), **(headers or {})}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in known.items()],
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
            "state": {},
        }
        return Exchange(self._app, scope, body)

    async def request(self, method: str, path: str, document: Any = None, **how: Any) -> Reply:
        """Sends a request and waits for the whole answer."""
        exchange = await self.send(method, path, document, **how).start()
        body = b"".join([piece async for piece in exchange.pieces()])
        await exchange.task
        if exchange.error is not None:  # a server would log it, with all that led there
            raise exchange.error
        return Reply(exchange.status, exchange.headers, body)

    async def get(self, path: str, **how: Any) -> Reply:
        """Asks for a path."""
        return await self.request("GET", path, **how)

    async def post(self, path: str, document: Any = None, **how: Any) -> Reply:
        """Sends a document to a path."""
        return await self.request("POST", path, document, **how)

    @asynccontextmanager
    async def stream(self, path: str, document: Any, **how: Any) -> AsyncIterator[Exchange]:
        """Sends a document to a path, and leaves at the end of the context."""
        exchange = await self.send("POST", path, document, **how).start()
        try:
            yield exchange
        finally:
            await exchange.leave()
