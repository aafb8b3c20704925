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

from langchain_rwkv_state.serve import ServeSettings, make_app
from langchain_rwkv_state.serve.listening import address, listening
from langchain_rwkv_state.serve.running import Server
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
    with served_in_a_thread(app) as (url, _):
        yield url


@contextmanager
def served_in_a_thread(app: Any) -> Iterator[tuple[str, Server]]:
    """Serves an application in a thread of this process.

    Yields:
        The address, and the server; ``handle_exit`` is what a signal calls.
    """
    started = threading.Event()
    bound = listening("127.0.0.1", 0)
    url = address(bound)
    server = Server(app, started.set, None)

    def run() -> None:
        try:
            server.run(sockets=[bound])
        finally:
            started.set()
            bound.close()

    # No daemon: a server that does not end is a failure of the test.
    thread = threading.Thread(target=run, name="test-server")
    thread.start()
    try:
        assert started.wait(PATIENCE_SECONDS), "The server did not start."
        assert server.started, "The server ended as it started."
        yield url, server
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
        with process.stderr as said:
            for line in said:
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
