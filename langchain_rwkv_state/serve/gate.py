"""What every request passes: who asks, and whether it may. Pure ASGI."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from langchain_rwkv_state.serve.tenants import Tenants


class Gate:
    """Lets requests in.

    Args:
        app: What they go on to.
        tenants: Who may ask.
    """

    def __init__(self, app: ASGIApp, tenants: Tenants) -> None:
        self._app = app
        self._tenants = tenants

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Takes a request."""
        if scope["type"] == "http":
            scope.setdefault("state", {})["tenant"] = await self._tenants.of(None)
        await self._app(scope, receive, send)
