"""The engine: one thread that owns a runtime and answers many requests in one pass at a time.

It runs the loop and calls the model; who reads how much is the plan's affair (`plan`), what a read
means the job's (`Job`), what a token means the sampler's and the stop matcher's. The easy mistake
is to call the runtime beside the engine: it is used by the worker alone, and is closed by its
owner after `close`.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from langchain_rwkv_state.engine.batch import plan
from langchain_rwkv_state.engine.callbacks import begin_work, must_not_wait
from langchain_rwkv_state.engine.constraints import Grammars
from langchain_rwkv_state.engine.job import Job
from langchain_rwkv_state.engine.request import Request, check_ids
from langchain_rwkv_state.engine.sampler import look_over
from langchain_rwkv_state.engine.seats import Seats
from langchain_rwkv_state.engine.stats import EngineStats, Meter
from langchain_rwkv_state.engine.ticket import Ticket
from langchain_rwkv_state.errors import EngineBusy, EngineError
from langchain_rwkv_state.grammar.constraint import Constraint
from langchain_rwkv_state.runtime.base import Runtime
from langchain_rwkv_state.runtime.native import sampling
from langchain_rwkv_state.tokenizer import Tokenizer

logger = logging.getLogger("langchain_rwkv_state.engine")

T = TypeVar("T")
R = TypeVar("R")

_IDLE_SECONDS = 10.0  # then the thread ends and its slots go; the next request starts another
_LOG_SECONDS = 10.0


@dataclass(frozen=True)
class Limits:
    """How much an engine serves at once, and how much waits.

    Attributes:
        slots: At most so many requests are served at once.
        prefill_budget: At most so many ids of prompts are read in a step in which others decode.
        max_queue: At most so many requests wait.

    Raises:
        ValueError: One is less than 1.
    """

    slots: int = 64
    prefill_budget: int = 64
    max_queue: int = 4096

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")


class Engine:
    """Serves many requests at once; those beyond its slots wait, in the order of their coming.

    The worker is a daemon thread that starts with the first request. It is stopped by `close`, at
    the end of the interpreter, and when there is nothing to do. A forked child starts its own.

    Args:
        runtime: The model.
        tokenizer: Turns what is sampled into text.
        slots: At most so many requests are served at once, each with its state in the runtime. A
            waiting one holds nothing but its base. Slots are opened as they are needed.
        prefill_budget: At most so many ids of prompts are read in a step in which others decode.
            It bounds the gap between two of their tokens: where the model reads ids of a prompt r
            times as fast as it decodes B requests, a step takes ``1 + prefill_budget / (r * B)``
            decode steps.
        prefill_chunk: The same for steps in which nobody decodes; a request that arrives or is
            cancelled meanwhile waits for the step under way.
        max_queue: At most so many requests wait.
        on_idle: Called on the worker's thread when it ends for want of work.

    Example:
        >>> engine = Engine(runtime, tokenizer)  # doctest: +SKIP
        >>> for event in engine.submit(request):  # doctest: +SKIP
        ...     show(event)
    """

    def __init__(
        self,
        runtime: Runtime,
        tokenizer: Tokenizer,
        *,
        slots: int = Limits.slots,
        prefill_budget: int = Limits.prefill_budget,
        prefill_chunk: int = 256,
        max_queue: int = Limits.max_queue,
        on_idle: Callable[[], None] | None = None,
    ) -> None:
        self._runtime = runtime
        self._tokenizer = tokenizer
        self._chunk = prefill_chunk
        self._limits = Limits(slots, prefill_budget, max_queue)
        if prefill_chunk < 1:
            raise ValueError(f"prefill_chunk must be 1 or more, got {prefill_chunk}.")
        self._on_idle = on_idle
        self._closed = False
        self._prompt_tokens = self._decoded_tokens = self._forced_tokens = self._rereads = 0
        self._grammars: dict[str, Grammars] = {}  # by the tokenizer's identity
        self._meter = Meter()
        sampling.compiled()  # built now if need be, rather than in somebody's first step
        self._begin_anew()
        _engines.add(self)

    def _begin_anew(self) -> None:
        self._wake = threading.Condition()
        self._worker = threading.local()
        self._queue: deque[Job] = deque()
        self._active: list[Job] = []
        self._thread: threading.Thread | None = None
        self._seats = Seats(self._runtime, self._limits.slots)
        self._logged = time.monotonic()

    def submit(self, request: Request) -> Ticket:
        """Queues a request.

        Raises:
            ValueError: The prompt, or what is settled, holds an id that the model does not know.
            SchemaError: The answer cannot be held to the constraint.
            EngineBusy: Too many requests wait.
            EngineError: The engine is closed.
        """
        known = self._runtime.vocab_size
        check_ids(request.prompt, known, "the prompt")
        check_ids(request.settled or (), known, "what is settled")
        tokenizer = request.tokenizer or self._tokenizer
        guide = None
        if request.constraint is not None:
            guide = self._grammars_of(tokenizer).guide(
                request.constraint,
                request.thought if request.thought is not None and request.thought.asked else None,
            )
        job = Job(request, tokenizer, Ticket(self._worker), known, guide)
        with self._wake:
            if self._closed:
                raise EngineError("The engine is closed: load the model again.")
            most = self._limits.max_queue
            if len(self._queue) >= most:
                self._forget_ended()
            if len(self._queue) >= most:
                raise EngineBusy(
                    f"{len(self._queue)} requests wait behind {len(self._active)} that are being "
                    f"served, and no more than {most} may wait: try again later, send "
                    "fewer at once, or raise max_queue."
                )
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="rwkv-engine", daemon=True)
                thread.start()
                self._thread = thread
                logger.debug("The worker starts")
            self._queue.append(job)
            self._wake.notify()
        return job.ticket

    def prepare(self, constraint: Constraint, tokenizer: Tokenizer | None = None) -> None:
        """Compiles a constraint and tries it, so that requests with an equal one begin at once.

        The first constraint of a tokenizer also describes its vocabulary, which holds the
        interpreter for half a second for one of World's size. Beside an event loop:
        ``await asyncio.to_thread(engine.prepare, constraint)``.

        Args:
            constraint: What answers are to be held to.
            tokenizer: That of the requests; ``None`` for the engine's own.

        Raises:
            SchemaError: An answer cannot be held to it; the message says to what of it, and why.
        """
        self._grammars_of(tokenizer or self._tokenizer).prepare(constraint)

    def _grammars_of(self, tokenizer: Tokenizer) -> Grammars:
        name = tokenizer.identity
        with self._wake:
            found = self._grammars.get(name)
            if found is None:
                found = self._grammars[name] = Grammars(tokenizer, self._runtime.vocab_size)
            return found

    @property
    def is_here(self) -> bool:
        """Whether the caller is in a callback of the worker, which must wait for no answer."""
        return must_not_wait(self._worker)

    def stats(self) -> EngineStats:
        """Returns what the engine did, and what it has to do."""
        with self._wake:
            jobs = self._active
            prefill_rate, decode_rate = self._meter.rates()
            return EngineStats(
                queued=sum(not job.ticket.over for job in self._queue),
                active=sum(not job.ticket.over for job in jobs),
                prompt_tokens=self._prompt_tokens + sum(job.n_prompt_read for job in jobs),
                decoded_tokens=self._decoded_tokens + sum(job.n_sampled for job in jobs),
                forced_tokens=self._forced_tokens + sum(job.n_forced for job in jobs),
                rereads=self._rereads + sum(job.reread for job in jobs),
                steps=self._meter.steps,
                slots=self._seats.count,
                max_slots=self._limits.slots,
                prefill_rate=prefill_rate,
                decode_rate=decode_rate,
                first_token_p50=self._meter.first_token_after(0.5),
                first_token_p99=self._meter.first_token_after(0.99),
            )

    @property
    def at_work(self) -> bool:
        """Whether its worker runs: it serves requests, or did a moment ago."""
        return self._thread is not None

    @property
    def limits(self) -> Limits:
        """How much is served and waits at once; may be set at any time."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        with self._wake:
            self._limits = limits
            self._seats.limit(limits.slots)

    def close(self) -> None:
        """Ends all requests with an `EngineError`, and waits until the runtime is not used."""
        with self._wake:
            self._closed = True
            jobs = [*self._queue, *self._active]
            thread = self._thread
            self._wake.notify_all()
        for job in jobs:
            job.ticket.fail(EngineError("The engine was closed while the request was pending."))
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # -- the worker --------------------------------------------------------------------------

    def _work(self) -> None:
        begin_work(self._worker)
        while self._await_work():
            # The worker outlives whatever the device does; a Rust panic is no Exception.
            try:
                self._step()
            except BaseException as error:  # noqa: BLE001
                self._lose_device(error)
        if self._on_idle is not None:
            self._on_idle()

    def _step(self) -> None:
        """Admits, plans, reads once, takes note, samples and emits.

        What has ended by then is retired before the next step.
        """
        started = time.monotonic()
        self._admit()
        reads = self._plan()
        if not reads:
            return
        prompt_ids = sum(count for job, count in reads if job.prefills)
        logits = self._seats.read([(job.seat, job.next_ids(count)) for job, count in reads])
        ready = [
            row for row, (job, count) in enumerate(reads) if self._alone(job, job.advance, count)
        ]
        samplers = {row: reads[row][0].sampler for row in ready if reads[row][0].chooses_freely}
        looks = look_over(logits, samplers) if ready else []
        said = 0
        for row in ready:
            job, _ = reads[row]
            self._note_first_token(job)
            self._alone(job, job.see_logits, logits[row])
            said += self._alone(job, job.sample, looks[row]) or 0
        self._note_step(time.monotonic() - started, prompt_ids, said)

    def _await_work(self) -> bool:
        """Retires what has ended, and waits for a request; ``False`` ends the worker."""
        with self._wake:
            self._retire()
            while not (self._active or self._queue):
                if self._closed or self._idle():
                    self._seats.drop()
                    self._thread = None
                    logger.debug("The worker ends")
                    return False
            return True

    def _idle(self) -> bool:
        """Waits for a request; says whether none came in a long time."""
        self._logged = time.monotonic()
        return not self._wake.wait(_IDLE_SECONDS) and not self._queue

    def _retire(self) -> None:
        """Frees the seats of requests that ended, and forgets those that ended in the queue."""
        now = time.monotonic()
        for job in (*self._active, *self._queue):
            job.expire(now)
        ended = [job for job in self._active if job.ticket.over]
        self._active = [job for job in self._active if not job.ticket.over]
        self._forget_ended()
        for job in ended:
            self._prompt_tokens += job.n_prompt_read
            self._decoded_tokens += job.n_sampled
            self._forced_tokens += job.n_forced
            self._rereads += job.reread
            job.leave(self._seats)
        if ended:
            logger.debug("Retired %d requests, %d go on", len(ended), len(self._active))

    def _forget_ended(self) -> None:
        if any(job.ticket.over for job in self._queue):
            self._queue = deque(job for job in self._queue if not job.ticket.over)

    def _admit(self) -> None:
        """Gives seats to those that wait, first come, first served, as long as there are some."""
        if not self._queue:
            return
        self._seats.make_room(len(self._active) + len(self._queue))
        room = max(min(self._seats.count, self._limits.slots), 1)
        fresh: list[Job] = []
        with self._wake:
            while self._queue and len(self._active) < room:
                job = self._queue.popleft()
                job.turn = self._meter.steps
                self._active.append(job)
                fresh.append(job)
            waiting = len(self._queue)
        for job in fresh:
            self._alone(job, job.begin, self._seats)
            if job.given_logits is not None and not job.ticket.over:
                self._note_first_token(job)
                self._alone(job, job.sample, look_over(job.given_logits[None])[0])
        if fresh:
            logger.debug("Admitted %d requests, %d wait", len(fresh), waiting)

    def _plan(self) -> list[tuple[Job, int]]:
        return plan(
            [job for job in self._active if not job.ticket.over],
            self._meter.steps,
            budget=min(self._limits.prefill_budget, self._chunk),
            idle_budget=self._chunk,
        )

    def _alone(self, job: Job, act: Callable[[T], R], argument: T) -> R | None:
        """Does something for one request; if that fails, it alone ends."""
        try:
            return act(argument)
        # A Rust panic is no Exception.
        except BaseException as error:  # noqa: BLE001
            job.ticket.fail(error)
            return None

    def _lose_device(self, error: BaseException) -> None:
        """Ends all that is being served; those that wait go on in slots of their own."""
        logger.error("The model failed, and %d requests with it: %r", len(self._active), error)
        for job in self._active:
            job.ticket.fail(error)
        self._seats.drop()
        traceback.clear_frames(error.__traceback__)  # they hold all jobs, and callers the error

    def _note_first_token(self, job: Job) -> None:
        if not job.n_sampled:
            with self._wake:
                self._meter.first_token(time.monotonic() - job.submitted)

    def _note_step(self, seconds: float, prompt_ids: int, sampled: int) -> None:
        with self._wake:
            self._meter.step(seconds, prompt_ids, sampled)
        now = time.monotonic()
        if now - self._logged >= _LOG_SECONDS:
            self._logged = now
            logger.info("%s", self.stats())

    def _after_fork(self) -> None:
        """Makes a forked child's copy usable: its worker stayed with the parent."""
        jobs = [*self._queue, *self._active]
        self._begin_anew()
        for grammars in self._grammars.values():
            grammars.renew_lock()
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
