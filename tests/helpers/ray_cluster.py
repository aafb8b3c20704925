"""Starts a small Ray on this machine, with the application served, for tests and benchmarks.

All of it listens on loopback but for a port of each replica's, which Ray opens everywhere: see
`docs/deploy.md`. Ray stays in one process group, which is ended as a whole.

    python -m tests.helpers.ray_cluster PORT DIRECTORY model=demo store=DIRECTORY ...
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
_READY = b"READY\n"
APP = "langchain_rwkv_state.ray:app"
MISSING = None if find_spec("ray") else "Ray is not installed: `make test-ray` runs this"


@dataclass(frozen=True)
class Cluster:
    """What was started.

    Attributes:
        url: Where the application is.
        driver: The process that started Ray, and ends it.
    """

    url: str
    driver: psutil.Process

    def replicas(self) -> dict[int, psutil.Process]:
        """Returns the processes of the replicas, by their numbers."""
        return {
            each.pid: each
            for each in self.processes()
            if _title(each).startswith("ray::ServeReplica:default:rwkv")
        }

    def processes(self) -> list[psutil.Process]:
        """Returns all processes of Ray."""
        return self.driver.children(recursive=True)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def serving(*arguments: str, app: str = APP, seconds: float = 240) -> Iterator[Cluster]:
    """Serves the application until the block is left.

    Args:
        arguments: As behind ``serve run``, such as ``model=demo``.
        app: What is served, as ``serve run`` is told.
        seconds: How long all replicas may take until they are there.
    """
    port, directory = _free_port(), tempfile.mkdtemp(prefix="ray")  # short: it holds sockets
    log = Path(directory, "driver.log")
    environment = {
        **os.environ,
        "HOME": directory,  # where Ray would write a token, which is given here
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(24),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's word for: on loopback
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_PROMETHEUS_HOST": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    with log.open("wb") as output:
        driver = subprocess.Popen(
            [sys.executable, "-m", __name__, str(port), directory, app, *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    cluster = Cluster(f"http://127.0.0.1:{port}", psutil.Process(driver.pid))
    known: list[psutil.Process] = []
    try:
        _await_ready(driver, log, seconds)
        known = cluster.processes()
        yield cluster
    finally:
        known += cluster.processes() if driver.poll() is None else []
        driver.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            driver.wait(10)
        for process in [*known, psutil.Process(driver.pid)] if driver.poll() is None else known:
            with suppress(psutil.Error):
                process.kill()
        driver.wait(10)
        shutil.rmtree(directory, ignore_errors=True)


def _await_ready(driver: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while _READY not in log.read_bytes():
        if driver.poll() is not None or time.monotonic() > deadline:
            logs = [log, *log.parent.glob("session_latest/logs/serve/replica_*.log")]
            told = "\n".join(each.read_text("utf-8", "replace")[-3000:] for each in logs[:2])
            raise RuntimeError(f"Ray did not start: {told}")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(url: str, seconds: float = 30) -> None:
    """Waits until something answers there."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def main() -> None:
    """Starts Ray, and lets its own command serve the application."""
    import ray
    from ray import serve
    from ray.serve.scripts import cli

    port, directory, app, *arguments = sys.argv[1:]
    ray.init(
        include_dashboard=False,
        num_cpus=16,  # more than there are: replicas wait for one another otherwise
        object_store_memory=80_000_000,
        _temp_dir=directory,
        namespace="serve",
        log_to_driver=False,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    cli.main(["run", "--non-blocking", app, *arguments], standalone_mode=False)
    os.write(1, _READY)
    signal.pause()


if __name__ == "__main__":
    main()
