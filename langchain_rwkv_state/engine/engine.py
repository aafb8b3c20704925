"""The engine: one thread that owns a runtime and carries jobs, step by step, to their end.

It schedules and calls the model; what a step means is the job's affair (`Job`), and what a token
means the sampler's and the stop matcher's. The easy mistake is to call the runtime beside the
engine: it is used by the worker alone, and is closed by its owner after `close`.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from dataclasses import dataclass

from langchain_rwkv_state.engine.job import Job
from langchain_rwkv_state.engine.request import Request
from langchain_rwkv_state.engine.ticket import Ticket
from langchain_rwkv_state.errors import EngineError
from langchain_rwkv_state.runtime.base import Runtime
from langchain_rwkv_state.tokenizer import Tokenizer

_IDLE_SECONDS = 30.0  # then the thread ends; the next request starts another


@dataclass(frozen=True)
class EngineStats:
    """What an engine did, and what it has to do.

    Attributes:
        queued: Requests that wait.
        active: Requests that are being served.
        prompt_tokens: Ids of prompts read.
        decoded_tokens: Ids sampled.
        rereads: Answers read again in their canonical ids.
    """

    queued: int
    active: int
    prompt_tokens: int
    decoded_tokens: int
    rereads: int


class Engine:
    """Serves requests in the order of their coming, one at a time for now.

    The worker is a daemon thread that starts with the first request. It is stopped by `close`, at
    the end of the interpreter, and when there is nothing to do. A forked child starts its own.

    Args:
        runtime: The model.
        tokenizer: Turns what is sampled into text.
        prefill_chunk: At most so many ids are read in one step; cancelling a long prefill takes
            effect after the step under way.

    Example:
        >>> engine = Engine(runtime, tokenizer)  # doctest: +SKIP
        >>> for event in engine.submit(request):  # doctest: +SKIP
        ...     show(event)
    """

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer, *, prefill_chunk: int = 256) -> None:
        if prefill_chunk < 1:
            raise ValueError(f"prefill_chunk must be 1 or more, got {prefill_chunk}.")
        self._runtime = runtime
        self._tokenizer = tokenizer
        self._chunk = prefill_chunk
        self._wake = threading.Condition()
        self._queue: deque[Job] = deque()
        self._active: Job | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._prompt_tokens = self._decoded_tokens = self._rereads = 0
        _engines.add(self)

    def submit(self, request: Request) -> Ticket:
        """Queues a request.

        Raises:
            ValueError: The prompt holds an id that the model does not know.
            EngineError: The engine is closed.
        """
        known = self._runtime.vocab_size
        if request.prompt and not (min(request.prompt) >= 0 and max(request.prompt) < known):
            wrong = next(token for token in request.prompt if not 0 <= token < known)
            raise ValueError(f"Token ids lie in [0, {known}), the prompt holds {wrong}.")
        job = Job(request, self._tokenizer, self._chunk)
        with self._wake:
            if self._closed:
                raise EngineError("The engine is closed: load the model again.")
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="rwkv-engine", daemon=True)
                thread.start()
                self._thread = thread
            self._queue.append(job)
            self._wake.notify()
        return job.ticket

    def stats(self) -> EngineStats:
        """Returns what the engine did, and what it has to do."""
        with self._wake:
            jobs = [self._active] if self._active is not None else []
            return EngineStats(
                queued=sum(not job.ticket.over for job in self._queue),
                active=sum(not job.ticket.over for job in jobs),
                prompt_tokens=self._prompt_tokens + sum(job.n_prompt_read for job in jobs),
                decoded_tokens=self._decoded_tokens + sum(job.n_sampled for job in jobs),
                rereads=self._rereads + sum(job.reread for job in jobs),
            )

    def close(self) -> None:
        """Ends all requests with an `EngineError`, and waits until the runtime is not used."""
        with self._wake:
            self._closed = True
            jobs = [*self._queue, *([self._active] if self._active else [])]
            thread = self._thread
            self._wake.notify_all()
        for job in jobs:
            job.ticket.fail(EngineError("The engine was closed while the request was pending."))
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _work(self) -> None:
        while self._step():
            pass

    def _step(self) -> bool:
        """Carries one job one step on; returns whether there may be more to do."""
        job = self._schedule()
        if job is None:
            return False
        try:
            logits, state = self._runtime.forward(job.next_tokens(), job.state)
            job.advance(logits, state)
        # The worker outlives whatever a request does; a Rust panic is no Exception.
        except BaseException as error:  # noqa: BLE001
            job.ticket.fail(error)
        return True

    def _schedule(self) -> Job | None:
        """Returns the job whose turn it is, waiting for one; ``None`` ends the worker."""
        with self._wake:
            while True:
                if self._active is not None and self._active.ticket.over:
                    self._retire(self._active)
                if self._active is None and self._queue:
                    self._admit(self._queue.popleft())
                elif self._active is not None:
                    return self._active
                elif self._closed or self._idle():
                    self._thread = None
                    return None

    def _idle(self) -> bool:
        """Waits for a request; says whether none came in a long time."""
        return not self._wake.wait(_IDLE_SECONDS) and not self._queue

    def _admit(self, job: Job) -> None:
        self._active = job
        job.begin()

    def _retire(self, job: Job) -> None:
        self._active = None
        self._prompt_tokens += job.n_prompt_read
        self._decoded_tokens += job.n_sampled
        self._rereads += job.reread

    def _after_fork(self) -> None:
        """Makes a forked child's copy usable: its worker stayed with the parent."""
        jobs = [*self._queue, *([self._active] if self._active else [])]
        self._wake = threading.Condition()
        self._queue = deque()
        self._active = self._thread = None
        for job in jobs:
            job.ticket.orphan()


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _close_all() -> None:
    for engine in list(_engines):
        engine.close()


def _after_fork() -> None:
    for engine in list(_engines):
        engine._after_fork()


# A daemon thread inside the model while the interpreter goes down may crash it.
atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
