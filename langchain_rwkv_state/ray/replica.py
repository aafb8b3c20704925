"""Is one replica: the server of `serve`, as an actor of Ray's that says whether it is well.

Ray finds it, hands it requests, and replaces it where `check_health` fails three times. Health is
the replica's own: a store that is away for a moment is away for all of them, and replacing the
replicas would not bring it back.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from langchain_rwkv_state.loaded import find_loaded
from langchain_rwkv_state.ray.shared import require_reachable
from langchain_rwkv_state.serve import ServeSettings, make_app
from langchain_rwkv_state.serve.health import why_not_ready
from langchain_rwkv_state.serve.settings import ServeError

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

_UNREADY_SECONDS = 60.0
"""How long a replica may say that it is not ready: longer than a Redis takes to come back."""
_STUCK_SECONDS = 120.0
"""How long an engine with requests may make no step: no step takes so long."""


class Replica:
    """Serves the model. Ray makes it, in a process of its own.

    Args:
        settings: What is served.

    Raises:
        ServeError: The store is another one on each machine, and the cluster has several.
    """

    def __init__(self, settings: ServeSettings) -> None:
        require_reachable(settings.store or "", _machines())
        self._settings = settings
        self._app = make_app(settings)
        self._app.add_middleware(Signed, name=_own_name())
        self._well = Health()

    def __serve_build_asgi_app__(self) -> FastAPI:  # Ray's name for it
        """Returns what answers requests; Ray starts it, which loads the model, and stops it."""
        return self._app

    async def check_health(self) -> None:
        """Says that all is well, by returning.

        Raises:
            ServeError: The engine is stuck, or the replica was not ready for a minute.
        """
        loaded = find_loaded(self._settings.model, self._settings.strategy)
        if loaded is not None:
            stats = loaded.engine.stats()
            self._well.engine(stats.steps, stats.queued + stats.active)
        self._well.ready(await why_not_ready(self._app))


class Signed:
    """Says in each answer which replica gave it: ``x-served-by``. Pure ASGI.

    Args:
        app: What answers.
        name: Of the replica, as Ray's logs and its dashboard have it.
    """

    def __init__(self, app: ASGIApp, name: str) -> None:
        self._app = app
        self._header = (b"x-served-by", name.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Takes a request."""

        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), self._header]}
            await send(message)

        await self._app(scope, receive, signed)


class Health:
    """Judges what a replica says of itself, over time.

    Args:
        clock: Gives seconds that only go up.
    """

    def __init__(self, clock: Any = time.monotonic) -> None:
        self._clock = clock
        self._steps: int | None = None
        self._moved = self._was_ready = clock()
        self._told = False

    def engine(self, steps: int, requests: int) -> None:
        """Takes note of how far the engine is.

        Args:
            steps: Passes over the model that it made.
            requests: That it has.

        Raises:
            ServeError: It has had requests for long, and made no step.
        """
        now = self._clock()
        if steps != self._steps or not requests:
            self._steps, self._moved = steps, now
        elif now - self._moved > _STUCK_SECONDS:
            raise ServeError(
                f"The engine has {requests} requests and made no step for "
                f"{now - self._moved:.0f} s: this replica is to be replaced."
            )

    def ready(self, why_not: str | None) -> None:
        """Takes note of whether the server takes requests.

        Args:
            why_not: Why it does not; ``None`` where it does.

        Raises:
            ServeError: It was not ready for a minute.
        """
        now = self._clock()
        if why_not is None:
            self._was_ready, self._told = now, False
            return
        if now - self._was_ready > _UNREADY_SECONDS:
            raise ServeError(
                f"This replica was not ready for {now - self._was_ready:.0f} s ({why_not}): "
                "it is to be replaced."
            )
        if not self._told:
            logger.warning("The replica is not ready: %s", why_not)
            self._told = True


def _own_name() -> str:
    """Returns the replica's name."""
    from ray import serve

    name: str = serve.get_replica_context().replica_id.unique_id
    return name


def _machines() -> int:
    """Returns how many machines of the cluster may have replicas."""
    import ray

    nodes = ray.nodes()
    return sum(bool(node["Alive"] and node["Resources"].get("CPU")) for node in nodes)
