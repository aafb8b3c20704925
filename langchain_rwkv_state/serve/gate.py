"""What every request passes: who asks, whether it may, and how long it took. Pure ASGI.

It stands outside of FastAPI and costs some dozens of microseconds: nothing here is done for each
piece of an answer but to look at it as it passes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from langchain_rwkv_state.serve.accounts import Account
from langchain_rwkv_state.serve.drain import Drain
from langchain_rwkv_state.serve.errors import SERVER, ApiError, as_api_error
from langchain_rwkv_state.serve.metrics import Metrics
from langchain_rwkv_state.serve.replies import error_reply
from langchain_rwkv_state.serve.tenants import Tenants

_OPEN = frozenset(("/health", "/ready"))  # to whoever has no key: they tell nothing


class Gate:
    """Lets requests in.

    Args:
        app: What they go on to.
        tenants: Who may ask.
        drain: Counts what runs.
        metrics: Counts what was done.
    """

    def __init__(self, app: ASGIApp, tenants: Tenants, drain: Drain, metrics: Metrics) -> None:
        self._app = app
        self._tenants = tenants
        self._drain = drain
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Takes a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watched = _Watched(send)
        self._metrics.running.inc()
        try:
            path = scope["path"]
            if path in _OPEN:
                await self._app(scope, receive, watched.send)
            elif path == "/metrics":
                self._tenants.check_metrics(_key(scope))
                await self._app(scope, receive, watched.send)
            else:
                await self._let_in(scope, receive, watched)
        except ApiError as error:
            if watched.status is not None:
                raise
            await error_reply(error)(scope, receive, watched.send)
        finally:
            self._metrics.running.dec()
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.answered(route, watched.status or _LEFT, *watched.seconds())

    async def _let_in(self, scope: Scope, receive: Receive, watched: _Watched) -> None:
        """Lets a request in, if it may.

        Raises:
            ApiError: It may not.
        """
        metrics, name = self._metrics, ""
        try:
            if self._drain.begun:
                raise _ending()
            name = self._tenants.name_of(_key(scope))
            account = self._tenants.account(name)
            body = _Body(receive, account.limits.body_bytes, self._drain)
            body.check(scope)
            account.enter()
        except ApiError as error:
            metrics.refused(name, _REASONS.get(error.status, error.kind))
            raise
        self._drain.enter()
        watched.account = account
        try:
            async with self._tenants.using(name) as tenant:
                scope.setdefault("state", {})["tenant"] = tenant
                await self._app(scope, body.receive, watched.send)
        except ApiError:
            raise
        except Exception as error:
            if watched.status is not None:
                raise
            # Its store could not be opened, or nobody expected it.
            metrics.failed(error)
            raise as_api_error(error) from error
        finally:
            if body.too_large:
                metrics.refused(name, "body")
            account.leave()
            self._drain.leave()


_LEFT = 499  # what nginx calls a client that left before it was answered
_REASONS = {401: "key", 403: "key", 413: "body", 503: "draining"}


class _Watched:
    """Sees what is sent: a status, a first byte."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._began = time.perf_counter()
        self._first: float | None = None
        self.status: int | None = None
        self.account: Account | None = None

    def send(self, message: Message) -> Awaitable[None]:
        if self._first is None:  # so that a stream's later pieces cost nothing
            self._see(message)
        return self._send(message)

    def _see(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.account is not None:
                message["headers"] = [*message.get("headers", ()), *self.account.headers()]
        elif message.get("body"):
            self._first = time.perf_counter()

    def seconds(self) -> tuple[float, float | None]:
        """Returns how long it took, and how long until the first byte."""
        now, first = time.perf_counter(), self._first
        return now - self._began, None if first is None else first - self._began


class _Body:
    """Counts a request's body as it comes: one that is too large is never whole in memory."""

    def __init__(self, receive: Receive, most: int, drain: Drain) -> None:
        self._receive = receive
        self._most = most
        self._drain = drain
        self._until: float | None = None
        self._whole = False
        self._seen = 0
        self.too_large = False

    def check(self, scope: Scope) -> None:
        """Checks the length that is announced.

        Raises:
            ApiError: It is too large.
        """
        length = _header(scope, b"content-length")
        if length is not None and length.isdigit() and int(length) > self._most:
            raise ApiError(413, self._says(), code="body_too_large", headers=_CLOSE)

    async def receive(self) -> MutableMapping[str, Any]:
        if self._whole:
            return await self._receive()
        if self._until is None:
            self._until = asyncio.get_running_loop().time() + _BODY_SECONDS
        try:
            async with asyncio.timeout_at(self._until) as limit:
                with self._drain.waits(limit):
                    message = await self._receive()
        except TimeoutError:
            raise self._late() from None
        if message["type"] == "http.request":
            self._whole = not message.get("more_body", False)
            self._seen += len(message.get("body", b""))
            if self._seen > self._most:
                self.too_large = True
                # Of what is raised where a body is read, FastAPI lets this alone pass.
                raise HTTPException(413, self._says(), headers=_CLOSE)
        return message

    def _late(self) -> HTTPException:
        if self._drain.begun:
            return HTTPException(503, _ENDING, headers=_AGAIN)
        return HTTPException(
            408, f"The body was not whole after {_BODY_SECONDS:g} s: send it faster", headers=_CLOSE
        )

    def _says(self) -> str:
        return (
            f"A request's body may have {self._most} bytes: send less, or keep what was said "
            "before in a conversation, or go on from previous_response_id."
        )


_BODY_SECONDS = 120.0  # who sends for longer holds a place, and an end of the server up
_CLOSE = {"connection": "close"}  # else the rest would be read, to be thrown away


_ENDING = "The server is ending and takes no more requests: try again, another may answer"
_AGAIN = {"retry-after": "5", "connection": "close"}


def _ending() -> ApiError:
    return ApiError(
        503,
        _ENDING + ".",
        code="shutting_down",
        kind=SERVER,
        headers=_AGAIN,
    )


def _key(scope: Scope) -> str | None:
    """Returns the key that a request brings; ``None`` where it brings none."""
    value = _header(scope, b"authorization")
    if value is None:
        return None
    kind, _, key = value.decode("latin-1").partition(" ")
    return key.strip() if kind.lower() == "bearer" else None


def _header(scope: Scope, name: bytes) -> bytes | None:
    for each, value in scope["headers"]:
        if each == name:
            found: bytes = value
            return found
    return None
