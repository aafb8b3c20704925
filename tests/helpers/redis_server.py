"""A private redis-server for tests: on a socket in a directory of its own, with no port.

It keeps what it acknowledged (``appendfsync always``) unless told otherwise, and may be stopped,
killed and started again over the same files. The easy mistake is a long directory: the path of a
socket has at most 107 bytes, so it lies in a short one that is removed with the server.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

BINARY = shutil.which("redis-server") or ""
MISSING = "no redis-server here: `make redis` installs one, or the package redis-server does"
needs_redis = pytest.mark.skipif(not BINARY, reason=MISSING)
"""For a test, or a module's ``pytestmark``."""

_SECONDS = 30.0
_SAFE = {"appendonly": "yes", "appendfsync": "always"}


class RedisServer:
    """A server and its files.

    Args:
        folder: Where its socket, its log and its data lie: a short path.
        settings: Those of redis.conf, with ``_`` for ``-``: ``appendfsync="everysec"``,
            ``maxmemory="30mb"``.

    Attributes:
        folder: As given.
        url: Names it for a store.
    """

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.url = f"unix://{folder / 's'}?db=0"
        self._settings = {**_SAFE, **settings}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The number of its process."""
        assert self._process is not None, "it was not started"
        return self._process.pid

    def start(self, **settings: object) -> None:
        """Starts it, and returns once it answers and has loaded what it had.

        Args:
            settings: Those of this start alone.
        """
        assert self._process is None, "it runs"
        socket = self.folder / "s"
        socket.unlink(missing_ok=True)  # of one that was killed
        given = {**self._settings, **settings}
        options = {
            "port": 0,
            "unixsocket": socket,
            "dir": self.folder,
            "save": "",
            "logfile": self.folder / "log",
            "enable-debug-command": "yes",
            **{name.replace("_", "-"): value for name, value in given.items()},
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self._process = subprocess.Popen([BINARY, *words], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + _SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"redis-server did not start: {self.log()[-2000:]}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        import redis

        try:
            with self.client(retry=None) as client:
                return bool(client.ping())
        except redis.exceptions.ConnectionError:  # it is not there yet, or still loading
            return False

    def client(self, **options: Any) -> Any:
        """Opens a plain client of it, to be closed by ``with``; replies are bytes."""
        import redis

        return redis.Redis.from_url(self.url, protocol=2, **options)

    def stop(self) -> None:
        """Ends it as an administrator does: what it has is on the disk. Safe to call twice."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kills it (SIGKILL). Safe to call twice."""
        self._end(signal.SIGKILL)

    def _end(self, by: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.send_signal(by)
            try:
                process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise

    def restart(self) -> None:
        """Kills it and starts it again over its files."""
        self.kill()
        self.start()

    def log(self) -> str:
        """Returns what it wrote of itself."""
        path = self.folder / "log"
        return path.read_text("utf-8", "replace") if path.exists() else ""


@contextmanager
def redis_server(*, start: bool = True, **settings: object) -> Iterator[RedisServer]:
    """Starts a server in a directory of its own, and takes both away; skips where there is none.

    Args:
        start: Whether to start it; else its files can be laid first.
        settings: See `RedisServer`.
    """
    if not BINARY:
        pytest.skip(MISSING)
    with tempfile.TemporaryDirectory(prefix="rwkv-redis-") as name:
        server = RedisServer(Path(name), **settings)
        try:
            if start:
                server.start()
            yield server
        finally:
            server.kill()
