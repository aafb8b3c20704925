"""Runs the application in this process, and ends it when what it was asked has been answered.

The easy mistake is to let uvicorn hear the signals: it closes the socket at the first, so that
clients see connections refused where they should be told to try again, and cuts what runs.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI

from langchain_rwkv_state.serve.settings import ServeError

logger = logging.getLogger("langchain_rwkv_state.serve")

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 30
_LAST_SECONDS = 5.0  # for errors to be sent to whoever was not answered in time


def run(
    app: FastAPI,
    bound: socket.socket,
    on_listening: Callable[[], None],
    orphaned: int | None = None,
) -> bool:
    """Runs an application in this process, on this thread, until a signal says to end.

    Args:
        app: As `make_app` returns it.
        bound: Where it listens; closed at the end.
        on_listening: Called once requests are taken.
        orphaned: A pipe that can be read once nobody looks after this process any more, which is
            as a signal.

    Returns:
        Whether nothing was cut off by a second signal.
    """
    server = _Server(app, on_listening, orphaned)
    server.run(sockets=[bound])
    return not server.force_exit


class _Server(uvicorn.Server):
    """Uvicorn's, but that a signal lets what runs end before it closes anything."""

    def __init__(
        self, app: FastAPI, on_listening: Callable[[], None], orphaned: int | None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                ws="none",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=int(_LAST_SECONDS),
            )
        )
        self._app = app
        self._on_listening = on_listening
        self._orphaned = orphaned
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets=sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if not self.started:
            return
        loop = asyncio.get_running_loop()
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, self._read_keys)
        if self._orphaned is not None:
            loop.add_reader(self._orphaned, self._orphan, self._orphaned)
        self._on_listening()

    def handle_exit(self, sig: int, frame: Any) -> None:  # noqa: ARG002 # as uvicorn calls it
        # A handler of Python's: on the main thread, between any two lines.
        if self._stopping:
            self.should_exit = self.force_exit = True
            return
        self._stopping = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin_draining)

    def _begin_draining(self) -> None:
        state = self._app.state
        state.drain.begin()
        state.metrics.draining.set(1)
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        drain, seconds = self._app.state.drain, self._app.state.settings.drain_seconds
        logger.info("Ending: %d requests run, and may for %g s", drain.running, seconds)
        if not await drain.idle_within(seconds):
            logger.warning("%d requests did not end within %g s", drain.running, seconds)
            await asyncio.to_thread(self._app.state.tenants.stop)
            await drain.idle_within(_LAST_SECONDS)
        self.should_exit = True

    def _orphan(self, pipe: int) -> None:
        asyncio.get_running_loop().remove_reader(pipe)
        logger.warning("The process that looked after this worker is gone")
        self.handle_exit(signal.SIGTERM, None)

    def _read_keys(self) -> None:
        try:
            self._app.state.tenants.read_keys()
        except ServeError as error:
            logger.warning("The keys stay as they were: %s", error)
        else:
            logger.info("Read the keys anew")
