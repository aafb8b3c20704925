"""Joins the parts of the server to one ASGI application.

The model is loaded while the application starts. What every request passes is `Gate`, outside of
FastAPI; all else are routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from langchain_rwkv_state._version import __version__
from langchain_rwkv_state.errors import RWKVStateError
from langchain_rwkv_state.serve import (
    chat,
    completions,
    conversations,
    health,
    models,
    responses,
)
from langchain_rwkv_state.serve.drain import Drain
from langchain_rwkv_state.serve.errors import ApiError, as_api_error
from langchain_rwkv_state.serve.gate import Gate
from langchain_rwkv_state.serve.ledger import Ledger
from langchain_rwkv_state.serve.metrics import Metrics
from langchain_rwkv_state.serve.replies import error_reply
from langchain_rwkv_state.serve.settings import ServeSettings
from langchain_rwkv_state.serve.tenants import Tenants

_LOOK_SECONDS = 2.0
_PARTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/conversations",
    "/v1/models",
)


def make_app(
    settings: ServeSettings | None = None,
    ledger: Ledger | None = None,
    *,
    tenants: Tenants | None = None,
) -> FastAPI:
    """Returns an application that serves a model.

    Args:
        settings: What is served, and to whom; ``None`` for the demo model to everybody.
        ledger: Counts what limits are about; ``None`` where no other process serves the same keys.
        tenants: Those who may ask, where they are other than the settings say.

    Raises:
        ServeError: The file of keys cannot be read, or of the settings' values something is wrong.

    Example:
        >>> app = make_app(ServeSettings(model="demo", store="states"))  # doctest: +SKIP
        >>> uvicorn.run(app, host="127.0.0.1", port=8000)  # doctest: +SKIP
    """
    settings = settings or ServeSettings()
    metrics, drain = Metrics(), Drain()
    tenants = tenants or Tenants(settings, metrics, ledger)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(tenants.load)
        looks = asyncio.create_task(_look(tenants, metrics)) if metrics.is_one_of_many else None
        try:
            yield
        finally:
            if looks is not None:
                looks.cancel()
            await tenants.aclose()

    app = FastAPI(title="langchain-rwkv-state", version=__version__, lifespan=lifespan)
    app.state.settings = settings
    app.state.tenants = tenants
    app.state.metrics = metrics
    app.state.drain = drain
    for part in (chat, completions, responses, conversations, models, health):
        app.include_router(part.router)
    app.add_middleware(Gate, tenants=tenants, drain=drain, metrics=metrics)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _plain)
    app.add_exception_handler(Exception, _failed)
    # By their own kinds, or each would be logged as an error that nobody expected, too.
    for kind in (ApiError, RWKVStateError):
        app.add_exception_handler(kind, _failed)
    return app


async def _look(tenants: Tenants, metrics: Metrics) -> None:
    """Copies the engine's figures now and then: another worker may be asked for them."""
    while True:
        metrics.look(tenants.stats())
        await asyncio.sleep(_LOOK_SECONDS)


async def _failed(request: Request, error: Exception) -> Response:
    told_by = error.__cause__ if isinstance(error, ApiError) else None
    request.app.state.metrics.failed(told_by or error)
    return error_reply(as_api_error(error))


async def _plain(request: Request, error: Exception) -> Response:
    """Answers what the router itself refuses: an unknown path, another method."""
    assert isinstance(error, HTTPException)  # noqa: S101 # as it was registered for
    path = request.url.path
    if error.status_code not in (404, 405):
        message = f"{request.method} {path}: {error.detail}."
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another")
        message = f"{path} has no {request.method}, but {allowed}."
    elif f"/v1{path}".startswith(_PARTS):
        message = f"There is no {path} here, but /v1{path}: let the client's base URL end with /v1."
    else:
        parts = ", ".join(_PARTS)
        message = f"There is no {request.method} {path} here: what there is begins with {parts}."
    return await _failed(request, ApiError(error.status_code, message, headers=error.headers))


async def _invalid(request: Request, error: Exception) -> Response:
    """Answers a request that does not fit its schema: the first of what is wrong, by its name."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 # as it was registered for
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"] if part != "body") or None
    if first["type"] == "json_invalid":
        why = first.get("ctx", {}).get("error", "it cannot be read")
        told = ApiError(400, f"The body is no JSON, at character {param}: {why}.")
    elif param is None and not _is_json(request):
        # A browser sends other types from any page without asking; this one it asks about first.
        told = ApiError(
            400, "The body is not said to be JSON: send `Content-Type: application/json`."
        )
    else:
        told = ApiError(400, f"{param or 'The body'}: {first['msg']}.", param=param)
    return await _failed(request, told)


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )
