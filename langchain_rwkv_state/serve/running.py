"""Runs the application in this process, and ends it when what it was asked has been answered.

The easy mistake is to let uvicorn hear the signals: it closes the socket at the first, so that
clients see connections refused where they should be told to try again, and cuts what runs.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI

from langchain_rwkv_state.serve.settings import ServeError

logger = logging.getLogger("langchain_rwkv_state.serve")

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 30
_LAST_SECONDS = 5.0  # for errors to be sent to whoever was not answered in time
_CUT_SECONDS = 0.5  # the same once a second signal came


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
    server = Server(app, on_listening, orphaned)
    server.run(sockets=[bound])
    return not server.cut_off


class Server(uvicorn.Server):
    """Uvicorn's, but that a signal lets what runs end before it closes anything.

    Args:
        app: See `run`; so the others.
        on_listening: Called once requests are taken.
        orphaned: A pipe.

    Attributes:
        cut_off: Whether a second signal did not let it.
    """

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
        self.cut_off = False
        self._ending: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves, to its end."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets=sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts the application, and listens."""
        await super().startup(sockets=sockets)
        if not self.started:
            return
        loop = asyncio.get_running_loop()
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
            loop.add_signal_handler(signal.SIGHUP, self._read_keys)
        if self._orphaned is not None:
            loop.add_reader(self._orphaned, self._orphan, self._orphaned)
        self._on_listening()

    def handle_exit(self, sig: int, frame: Any) -> None:  # noqa: ARG002 # as uvicorn calls it
        """Takes a signal: the first lets what runs end, another does not wait for it."""
        # A handler of Python's: on the main thread, between any two lines.
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._cut_short if self._stopping else self._drain)
        self.cut_off = self._stopping
        self._stopping = True

    def _drain(self) -> None:
        state = self._app.state
        seconds = state.settings.drain_seconds
        state.drain.begin()
        state.metrics.draining.set(1)
        logger.info("Ending: %d requests run, and may for %g s", state.drain.running, seconds)
        self._ending = asyncio.ensure_future(self._end_within(seconds, _LAST_SECONDS))

    def _cut_short(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
        self.config.timeout_graceful_shutdown = 0
        self._ending = asyncio.ensure_future(self._end_within(0, _CUT_SECONDS))

    async def _end_within(self, seconds: float, last_seconds: float) -> None:
        drain = self._app.state.drain
        if not await drain.idle_within(seconds):
            logger.warning("%d requests have not ended, and fail now", drain.running)
            drain.cut()
            await asyncio.to_thread(self._app.state.tenants.stop)
            await drain.idle_within(last_seconds)
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
