"""Serves the HTTP API on loopback: in a thread of the test's process, or as a user starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from langchain_rwkv_state.serve import ServeSettings, make_app
from tests.helpers.command import PATIENCE_SECONDS, RWKV_STATE

_ADDRESS = re.compile(r"http://[\w.\[\]:]+:\d+")


@contextmanager
def serving(what: ServeSettings | Sequence[str] | Any) -> Iterator[str]:
    """Serves on loopback, on a port that was free, while the context lasts.

    Args:
        what: Settings or an application, served in a thread; or the words behind ``rwkv-state
            serve``, served by processes of their own.

    Yields:
        The address, such as ``http://127.0.0.1:40123``; the API is below ``/v1``.
    """
    if isinstance(what, list | tuple):
        with served_by_command(*what) as (url, _):
            yield url
        return
    app = make_app(what) if isinstance(what, ServeSettings) else what
    with _in_a_thread(app) as url:
        yield url


@contextmanager
def _in_a_thread(app: Any) -> Iterator[str]:
    started = threading.Event()

    class _Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            try:
                await super().startup(sockets=sockets)
            finally:
                started.set()

    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=10
    )
    server = _Server(config)
    # No daemon: a server that does not end is a failure of the test.
    thread = threading.Thread(target=server.run, name="test-server")
    thread.start()
    try:
        assert started.wait(PATIENCE_SECONDS), "The server did not start."
        assert server.started, "The server ended as it started."
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive(), "The server did not end."


@contextmanager
def served_by_command(
    *words: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Runs ``rwkv-state serve`` on a free port, as a user starts it.

    Yields:
        The address, and the process: of several workers the one that looks after them.
    """
    process = subprocess.Popen(
        [*RWKV_STATE, "serve", "--port", "0", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "default", **(env or {})},
        cwd=cwd,
        start_new_session=True,
    )
    lines: list[str] = []
    found = threading.Event()
    url: list[str] = []

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            sys.stderr.write(line)  # pytest shows it with a failure
            address = _ADDRESS.search(line)
            if address and not url:
                url.append(address.group())
                found.set()
        found.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert found.wait(PATIENCE_SECONDS), "The server did not start."
        assert url, f"The server ended as it started: {''.join(lines)}"
        yield url[0], process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        reader.join(10)
