"""Serves by several processes: one socket, one store, and the model's weights in memory once.

The process that was started loads the model and forks; it answers nobody itself and starts no
thread, so that at any time it can fork another worker for one that died. What a worker never writes
to, it shares with all: weights, and Python's modules. The easy mistake is to let anything run in
parallel here before a fork: the threads of OpenMP stay behind, and the child waits for them
forever.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from langchain_rwkv_state.serve.ledger import SharedLedger
from langchain_rwkv_state.serve.listening import address
from langchain_rwkv_state.serve.settings import ServeError, ServeSettings
from langchain_rwkv_state.serve.stores import is_memory

logger = logging.getLogger("langchain_rwkv_state.serve")

_AGAIN_SECONDS = 1.0  # between two starts of a worker that does not live long
_LONG_SECONDS = 10.0  # what lives so long did not fail at its start
_LAST_SECONDS = 15.0  # beyond the time for draining, for a worker that does not end
_FAILED_TO_START = 3
_CUT_OFF = 4
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGCHLD")


@dataclass
class _Worker:
    """A process that serves.

    Attributes:
        number: Which it is: of the places, not of the processes.
        pid: Its process.
        started: When, on the steady clock.
        ready: Where it says that it takes requests; ``None`` once it did.
    """

    number: int
    pid: int
    started: float
    ready: int | None


class Workers:
    """Looks after the processes that serve.

    Args:
        settings: What is served.
        count: How many there are.
        bound: The socket that all of them listen at.
        on_listening: Called with the address once the first takes requests.

    Raises:
        ServeError: Several processes cannot serve this.
    """

    def __init__(
        self,
        settings: ServeSettings,
        count: int,
        bound: socket.socket,
        on_listening: Callable[[str], None],
    ) -> None:
        if not hasattr(os, "fork"):
            raise ServeError("Several workers need fork, which this system has not: --workers 1.")
        if is_memory(settings.store):
            raise ServeError(
                "A store in memory is one process's: several workers need a directory or Redis."
            )
        _refuse_cards(settings.strategy)
        self._settings = settings
        self._count = count
        self._bound = bound
        self._on_listening = on_listening
        self._ledger = SharedLedger(count)
        self._workers: dict[int, _Worker] = {}
        self._due: dict[int, float] = {}  # when to start a worker in an empty place
        self._stopping = False
        self._stop_by = 0.0
        self._cut_off = False
        self._announced = False
        self._failed = False

    def run(self) -> bool:
        """Serves until a signal says to end.

        Returns:
            Whether nothing was cut off.

        Raises:
            ServeError: No worker could be started.
            RWKVStateError: The model cannot be had.
        """
        from langchain_rwkv_state.serve.metrics import MULTIPROCESS

        with tempfile.TemporaryDirectory(prefix="rwkv-state-metrics-") as folder:
            before = os.environ.get(MULTIPROCESS)
            os.environ[MULTIPROCESS] = folder  # before the library of metrics is imported
            try:
                return self._run()
            finally:
                del os.environ[MULTIPROCESS]
                if before is not None:
                    os.environ[MULTIPROCESS] = before

    def _run(self) -> bool:
        from prometheus_client import CollectorRegistry, Counter, values

        from langchain_rwkv_state.serve import app, running  # noqa: F401 # once for all workers

        # Also where somebody imported it before, in one process.
        values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]
        restarts = Counter(
            "rwkv_state_worker_restarts",
            "Workers that were started for others that died.",
            registry=CollectorRegistry(),
        )
        model = self._loaded()
        self._alive, self._parent = os.pipe()
        self._wakes, self._waker = os.pipe()
        for end in (self._wakes, self._waker):
            os.set_blocking(end, False)
        gc.collect()
        gc.freeze()  # a look at an object for garbage writes to it, and pages would be copied
        handlers = {
            number: signal.signal(number, self._heard)
            for number in (getattr(signal, name) for name in _SIGNALS)
        }
        wakeup = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        try:
            for number in range(self._count):
                self._start(number)
            while self._workers or (self._due and not self._stopping):
                self._wait()
                for ended in self._ended():
                    if self._lost(*ended):
                        restarts.inc()
                self._start_due()
                self._hurry()
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for worker in self._workers.values():
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
            for end in (self._alive, self._parent, self._wakes, self._waker):
                os.close(end)
            self._ledger.close()
            model.unload()
        if self._failed:
            raise ServeError("No worker could be started: what each of them said stands above.")
        return not self._cut_off

    def _loaded(self) -> Any:
        """Returns the model, loaded without a thread.

        Raises:
            ServeError: It came to lie on a card.
            RWKVStateError: It cannot be had.
        """
        import torch

        from langchain_rwkv_state.chat_models import ChatRWKV
        from langchain_rwkv_state.serve.tenants import model_settings
        from langchain_rwkv_state.store import MemoryStateStore

        torch.set_num_threads(1)
        about = {**model_settings(self._settings), "progress": False}
        model = ChatRWKV(**about, store=MemoryStateStore(), prefix_cache=False)
        _refuse_cards(model.loaded().runs_as)
        return model

    # -- signals -----------------------------------------------------------------------------

    def _heard(self, number: int, _: Any) -> None:
        if number == signal.SIGCHLD:
            return  # it only ends a wait
        if number == signal.SIGHUP:
            self._tell(number)
        elif self._stopping:
            self._cut_off = True
            self._tell(signal.SIGTERM)
        else:
            self._stopping = True
            self._stop_by = time.monotonic() + self._settings.drain_seconds + _LAST_SECONDS
            self._tell(signal.SIGTERM)

    def _tell(self, number: int) -> None:
        for worker in list(self._workers.values()):
            with suppress(ProcessLookupError):
                os.kill(worker.pid, number)

    def _wait(self) -> None:
        """Waits for a signal, for a worker to be ready, or for the time that something is due."""
        times = list(self._due.values())
        if self._stopping:
            times = [self._stop_by]
        timeout = max(min(times) - time.monotonic(), 0.0) if times else None
        ready = [each.ready for each in self._workers.values() if each.ready is not None]
        found = select.select([self._wakes, *ready], (), (), timeout)[0]
        if self._wakes in found:
            with suppress(BlockingIOError):
                os.read(self._wakes, 4096)
        for worker in self._workers.values():
            if worker.ready in found and worker.ready is not None:
                is_ready = os.read(worker.ready, 1) == b"R"
                os.close(worker.ready)
                worker.ready = None
                if is_ready and not self._announced:
                    self._announced = True
                    self._on_listening(address(self._bound))

    # -- workers -----------------------------------------------------------------------------

    def _start(self, number: int) -> None:
        ready, says = os.pipe()
        # A signal that comes before the child has handlers of its own would be the parent's there.
        every = [getattr(signal, name) for name in _SIGNALS]
        signal.pthread_sigmask(signal.SIG_BLOCK, every)
        try:
            pid = os.fork()
            if not pid:
                self._be_worker(number, says)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, every)
        os.close(says)
        self._workers[pid] = _Worker(number, pid, time.monotonic(), ready)
        logger.info("Worker %d is process %d", number, pid)
        if self._stopping:  # the signal came meanwhile
            os.kill(pid, signal.SIGTERM)

    def _start_due(self) -> None:
        now = time.monotonic()
        for number in [each for each, when in self._due.items() if when <= now]:
            del self._due[number]
            if not self._stopping:
                self._start(number)

    def _ended(self) -> list[tuple[_Worker, int]]:
        """Returns the workers that ended, and how."""
        found = []
        for worker in list(self._workers.values()):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                found.append((worker, os.waitstatus_to_exitcode(status)))
        return found

    def _lost(self, worker: _Worker, code: int) -> bool:
        """Takes note of a worker's end; says whether another one is due."""
        from prometheus_client import multiprocess

        del self._workers[worker.pid]
        if worker.ready is not None:
            os.close(worker.ready)
        self._ledger.forget(worker.number)
        multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
        if self._stopping:
            if code:
                logger.warning("Worker %d ended with %d", worker.number, code)
                self._cut_off = True
            return False
        if code == _FAILED_TO_START and not self._announced:
            self._failed = self._stopping = True
            self._stop_by = time.monotonic() + _LAST_SECONDS
            self._tell(signal.SIGTERM)
            return False
        logger.warning(
            "Worker %d, process %d, ended with %d: another is started",
            *(worker.number, worker.pid, code),
        )
        lived = time.monotonic() - worker.started
        self._due[worker.number] = time.monotonic() + (
            0.0 if lived >= _LONG_SECONDS else _AGAIN_SECONDS
        )
        return True

    def _hurry(self) -> None:
        """Ends workers that should have."""
        if self._stopping and self._workers and time.monotonic() >= self._stop_by:
            logger.warning("%d workers did not end, and are killed", len(self._workers))
            self._cut_off = True
            self._tell(signal.SIGKILL)
            self._stop_by = time.monotonic() + _LAST_SECONDS

    def _be_worker(self, number: int, says: int) -> None:
        """Serves, in the forked child, and ends the process."""
        code = _FAILED_TO_START
        try:
            code = self._work(number, says)
        except BaseException as error:
            if not isinstance(error, SystemExit):  # whoever raised that one has said why
                logger.exception("Worker %d failed", number)
        finally:
            logging.shutdown()
            os._exit(code)  # what the parent does at its end is not the child's

    def _work(self, number: int, says: int) -> int:
        import torch

        from langchain_rwkv_state.serve.app import make_app
        from langchain_rwkv_state.serve.running import run

        signal.set_wakeup_fd(-1)
        for name in _SIGNALS:
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        every = [getattr(signal, name) for name in _SIGNALS]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, every)
        for end in (self._parent, self._wakes, self._waker):
            os.close(end)
        for worker in self._workers.values():
            if worker.ready is not None:
                os.close(worker.ready)
        # One each where there are no more cores than workers; the parent never had another.
        torch.set_num_threads(max(1, _cores() // self._count))
        app = make_app(self._settings, self._ledger.at(number))
        app.state.tenants.load()
        bound = socket.socket(fileno=os.dup(self._bound.fileno()))

        def listening() -> None:
            os.write(says, b"R")
            os.close(says)

        whole = run(app, bound, listening, orphaned=self._alive)
        return 0 if whole else _CUT_OFF


def _cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _refuse_cards(strategy: str) -> None:
    """Checks that a model is not on a card.

    Raises:
        ServeError: It is.
    """
    if "cuda" in strategy:
        raise ServeError(
            f"The model runs as {strategy!r}, and one process serves a card: its engine answers "
            "everybody in one batch, and the weights of two would take the memory twice. Use "
            "--workers 1; for several cards start one server for each."
        )
