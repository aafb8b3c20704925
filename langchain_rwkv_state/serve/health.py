"""Says whether the server is alive, whether it is ready, and what it counted."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from langchain_rwkv_state.errors import RWKVStateError
from langchain_rwkv_state.serve.drain import Drain
from langchain_rwkv_state.serve.metrics import CONTENT_TYPE, Metrics
from langchain_rwkv_state.serve.tenants import Tenants

router = APIRouter(include_in_schema=False)

_STORE_SECONDS = 5.0


@router.get("/health")
async def health() -> dict[str, str]:
    """Says that the process answers; also while it ends."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Says whether requests are taken."""
    why = await why_not_ready(request.app)
    if why is None:
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "not ready", "reason": why}, 503, headers={"retry-after": "5"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Shows what the server counted, for Prometheus."""
    found: Metrics = request.app.state.metrics
    found.look(request.app.state.tenants.stats())
    return Response(await asyncio.to_thread(found.text), media_type=CONTENT_TYPE)


async def why_not_ready(app: FastAPI) -> str | None:
    """Returns why no requests are taken; ``None`` where the store answers and nothing is ending.

    Args:
        app: As `make_app` returned it, started.
    """
    drain: Drain = app.state.drain
    tenants: Tenants = app.state.tenants
    if drain.begun:
        return "The server is ending."
    try:
        async with asyncio.timeout(_STORE_SECONDS):
            await tenants.probe()
    except TimeoutError:
        return f"The store did not answer within {_STORE_SECONDS:g} s."
    except (RWKVStateError, OSError) as error:
        metrics: Metrics = app.state.metrics
        metrics.failed(error)
        # Who asks needs no key, and an error may tell where the store is.
        return f"The store cannot be used ({type(error).__name__})."
    return None
