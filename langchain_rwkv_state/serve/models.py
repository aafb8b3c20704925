"""Says which model is served, and holds requests to it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from langchain_rwkv_state.serve.errors import ApiError
from langchain_rwkv_state.serve.settings import ServeSettings
from langchain_rwkv_state.serve.tenants import Tenant

router = APIRouter()


async def tenant_of(request: Request) -> Tenant:
    """Returns who asks, as the gate found; asynchronous, or FastAPI takes a thread for it."""
    found: Tenant = request.state.tenant
    return found


async def settings_of(request: Request) -> ServeSettings:
    """Returns what the server was started with."""
    found: ServeSettings = request.app.state.settings
    return found


Asks = Annotated[Tenant, Depends(tenant_of)]
Settings = Annotated[ServeSettings, Depends(settings_of)]


def require_model(settings: ServeSettings, name: str) -> None:
    """Checks that a request is for the model that is served.

    Raises:
        ApiError: It is for another one.
    """
    if name != settings.model_name:
        raise ApiError(
            404,
            f"The model {name!r} is not served here: it is {settings.model_name!r}.",
            code="model_not_found",
            param="model",
        )


def _about(settings: ServeSettings) -> dict[str, Any]:
    return {
        "id": settings.model_name,
        "object": "model",
        "created": 0,
        "owned_by": "langchain-rwkv-state",
    }


@router.get("/v1/models")
async def list_models(settings: Settings) -> dict[str, Any]:
    """Lists the model that is served."""
    return {"object": "list", "data": [_about(settings)]}


@router.get("/v1/models/{name:path}")
async def get_model(name: str, settings: Settings) -> dict[str, Any]:
    """Describes the model that is served."""
    require_model(settings, name)
    return _about(settings)
