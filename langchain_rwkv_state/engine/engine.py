"""Owns a runtime on one thread, and answers many requests in one pass at a time.

Each step schedules, launches the model's work and postprocesses; on a card, what the step before
gave is postprocessed meanwhile. Who runs and how much each reads is the `Scheduler`'s affair, how a
step is run that of `Steps`, and what becomes of a request its `TokenSequence`'s. The worker alone
uses the runtime, and its owner closes that after `close`.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from langchain_rwkv_state._fork import in_forked_child
from langchain_rwkv_state._free_memory import is_out_of_memory
from langchain_rwkv_state.engine.callbacks import begin_work
from langchain_rwkv_state.engine.constraints import Grammars
from langchain_rwkv_state.engine.request import Request, check_ids
from langchain_rwkv_state.engine.request_handle import RequestHandle
from langchain_rwkv_state.engine.sampler import scan_rows
from langchain_rwkv_state.engine.scheduler import LEAST_SHARE, Scheduler
from langchain_rwkv_state.engine.sequence import TokenSequence
from langchain_rwkv_state.engine.slots import NoDeviceMemory, SlotPool
from langchain_rwkv_state.engine.stats import EngineStats, Meter
from langchain_rwkv_state.engine.steps import Row, Step, Steps, steps_on
from langchain_rwkv_state.engine.wakeups import gathered
from langchain_rwkv_state.errors import EngineBusy, EngineError
from langchain_rwkv_state.grammar.constraint import Constraint
from langchain_rwkv_state.runtime.base import Runtime, budgets_of
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
        prefill_budget: At most so many ids of prompts are read in a step in which others decode;
            this default is a CPU's, a card reads more.
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
            waiting one holds nothing but its base. Slots are opened as they are needed, on a card
            all at once.
        prefill_budget: At most so many ids of prompts are read in a step in which others decode;
            ``None`` for what suits the runtime's device. It bounds the gap between two of their
            tokens: where the model reads ids of a prompt r times as fast as it decodes B requests,
            a step takes ``1 + prefill_budget / (r * B)`` decode steps.
        prefill_chunk: The same for steps in which nobody decodes; a request that arrives or is
            cancelled meanwhile waits for the step under way. ``None`` likewise.
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
        prefill_budget: int | None = None,
        prefill_chunk: int | None = None,
        max_queue: int = Limits.max_queue,
        on_idle: Callable[[], None] | None = None,
    ) -> None:
        self._runtime = runtime
        self._tokenizer = tokenizer
        budgets = budgets_of(runtime)
        if prefill_chunk is not None and prefill_chunk < 1:
            raise ValueError(f"prefill_chunk must be 1 or more, got {prefill_chunk}.")
        self._chunk = self._pass = prefill_chunk or budgets.prefill_chunk
        self._own_limits = Limits(prefill_budget=budgets.prefill_budget)
        if prefill_budget is None:
            prefill_budget = budgets.prefill_budget
        self._limits = Limits(slots, prefill_budget, max_queue)
        self._on_idle = on_idle
        self._closed = False
        self._prompt_tokens = self._decoded_tokens = self._forced_tokens = self._rereads = 0
        self._grammars: dict[str, Grammars] = {}  # by the tokenizer's identity
        self._meter = Meter()
        sampling.compiled()  # built now if need be, rather than in somebody's first step
        self._begin_anew()
        _engines.add(self)

    def _begin_anew(self) -> None:
        # Taken itself, and never through the condition, which Ctrl-C may leave as it has it.
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._worker = threading.local()
        self._thread: threading.Thread | None = None
        self._slots = SlotPool(self._runtime, self._limits.slots)
        self._scheduler = Scheduler(self._lock, self._slots)
        self._steps: Steps | None = None  # in the slots that are open
        self._flying: Step | None = None  # launched, and not postprocessed
        self._logged = time.monotonic()

    def submit(self, request: Request) -> RequestHandle:
        """Queues a request; waits for nothing.

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
        handle = RequestHandle(self._worker)
        sequence = TokenSequence(request, tokenizer, handle, self._slots, known, guide)
        with self._lock:
            if self._closed:
                raise EngineError("The engine is closed: load the model again.")
            most, scheduler = self._limits.max_queue, self._scheduler
            if len(scheduler.waiting) >= most:
                self._count(scheduler.forget_ended())
            if len(scheduler.waiting) >= most:
                raise EngineBusy(
                    f"{len(scheduler.waiting)} requests wait behind "
                    f"{len(scheduler.running)} that are being served, and no "
                    f"more than {most} may wait: try again later, send fewer at once, or raise "
                    "max_queue."
                )
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="rwkv-engine", daemon=True)
                thread.start()
                self._thread = thread
                logger.debug("The worker starts")
            scheduler.waiting.append(sequence)
            self._wake.notify()
        return handle

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
        with self._lock:
            found = self._grammars.get(name)
            if found is None:
                found = self._grammars[name] = Grammars(tokenizer, self._runtime.vocab_size)
            return found

    def open(self) -> None:
        """Opens the slots now where the device has all of them at once, and records its steps.

        Else that is done for the first request, which waits some seconds for it.

        Raises:
            ModelLoadError: There is no memory for the states of one request.
        """
        with self._lock:
            idle = self._thread is None and not self._closed
            if idle and not budgets_of(self._runtime).grows:
                self._slots.make_room(1)
                self._slots.open_one()

    def stats(self) -> EngineStats:
        """Returns what the engine did, and what it has to do."""
        with self._lock:
            waiting, running = self._scheduler.waiting, self._scheduler.running
            known = [*running, *waiting]  # who waits may have run before
            prefill_rate, decode_rate = self._meter.rates()
            return EngineStats(
                queued=sum(not each.over for each in waiting),
                active=sum(not each.over for each in running),
                prompt_tokens=self._prompt_tokens + sum(each.n_prompt_read for each in known),
                decoded_tokens=self._decoded_tokens + sum(each.n_sampled for each in known),
                forced_tokens=self._forced_tokens + sum(each.n_forced for each in known),
                rereads=self._rereads + sum(each.reread for each in known),
                steps=self._meter.steps,
                slots=self._slots.count,
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
    def own_limits(self) -> Limits:
        """The limits that hold where nobody sets any: as suits the device."""
        return self._own_limits

    @property
    def limits(self) -> Limits:
        """How much is served and waits at once; may be set at any time."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        with self._lock:
            self._limits = limits
            self._slots.limit(limits.slots)

    def close(self) -> None:
        """Ends all requests with an `EngineError`, and waits until the runtime is not used."""
        with self._lock:
            self._closed = True
            pending = [*self._scheduler.waiting, *self._scheduler.running]
            thread = self._thread
            self._wake.notify_all()
        for sequence in pending:
            if not sequence.over:
                sequence.handle.fail(
                    EngineError("The engine was closed while the request was pending.")
                )
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._slots.courier.close()

    # -- the worker --------------------------------------------------------------------------

    def _work(self) -> None:
        begin_work(self._worker)
        with self._lock:
            if self._thread is not threading.current_thread():
                return  # Ctrl-C came as it was started, and another may be
        while self._await_work():
            # The worker outlives whatever the device does; a Rust panic is no Exception.
            try:
                self._step()
            except BaseException as error:  # noqa: BLE001
                self._lose_device(error)
        if self._on_idle is not None:
            self._on_idle()

    def _step(self) -> None:
        """Schedules, launches a step, and postprocesses what was launched before."""
        started = time.monotonic()
        flying, self._flying = self._flying, None
        ahead = self._ahead(flying)
        sampled = 0
        if flying is not None and not ahead:  # the next step needs to know
            sampled, flying = self._postprocess(flying), None
        reads = self._schedule(flying, decoding=bool(ahead))
        if reads or ahead:
            prompt_ids = sum(count for sequence, count in reads if sequence.prefills)
            launched = self._launch(reads, ahead)
            if flying is not None:
                sampled += self._postprocess(flying, launched)
            if any(map(self._stepper.run_on, launched.rows)):
                self._flying = launched
            else:
                sampled += self._postprocess(launched)
            self._note_step(time.monotonic() - started, prompt_ids, sampled)

    @property
    def _stepper(self) -> Steps:
        """How steps are run in the slots that are open."""
        slots = self._slots.slots
        if self._steps is None or not self._steps.serves(slots):
            self._steps = steps_on(slots, self._slots, self._alone, self._tokenizer)
        return self._steps

    def _ahead(self, flying: Step | None) -> list[Row]:
        """Returns who may read what a step gives before it is known here."""
        if flying is None:
            return []
        return [row for row in flying.rows if self._stepper.run_on(row)]

    def _schedule(self, flying: Step | None, *, decoding: bool) -> list[tuple[TokenSequence, int]]:
        """Lets run those that need not wait; returns who reads how many ids in this step.

        Args:
            flying: A step whose rows' next ids are not known yet.
            decoding: Whether some of those read on all the same.
        """
        scheduler, limits = self._scheduler, self._limits
        admitted = 0
        for sequence, hit in scheduler.admit(limits.slots, self._meter.steps):
            admitted += 1
            self._alone(sequence, sequence.begin, hit)
            if sequence.given_logits is not None and not sequence.over:
                self._note_first_token(sequence)
                self._alone(sequence, sequence.sample, scan_rows(sequence.given_logits[None])[0])
        if admitted:
            logger.debug("Admitted %d requests, %d wait", admitted, len(scheduler.waiting))
        budget = min(limits.prefill_budget, self._pass)
        busy = () if flying is None else [row.sequence for row in flying.rows]
        idle_budget = budget if decoding else self._pass
        return scheduler.schedule(
            self._meter.steps, budget=budget, idle_budget=idle_budget, busy=busy
        )

    def _launch(self, reads: list[tuple[TokenSequence, int]], ahead: list[Row]) -> Step:
        """Begins a step."""
        with gathered(self._worker):
            return self._stepper.launch(reads, ahead)

    def _postprocess(self, step: Step, later: Step | None = None) -> int:
        """Samples and emits; returns how many ids answers grew by.

        What has ended by then is retired before the next step.

        Args:
            step: What was launched.
            later: The step that was launched behind it: who read ahead in that learns what.
        """
        with gathered(self._worker):
            return self._choose(step, later)

    def _choose(self, step: Step, later: Step | None) -> int:
        ahead = {} if later is None else {row.sequence: row for row in later.rows}
        sampled = 0
        for row, found in zip(step.rows, step.results(), strict=True):
            sequence = row.sequence
            if sequence.over:
                continue
            self._note_first_token(sequence)
            self._alone(sequence, sequence.see_logits, found)
            sampled += self._alone(sequence, sequence.sample, found) or 0
            if sequence in ahead and later is not None and not sequence.over:
                self._settle(ahead[sequence], later)
        return sampled

    def _settle(self, row: Row, later: Step) -> None:
        """Has a sequence take on what it read ahead, or drop it if its answer ended before."""
        sequence = row.sequence
        if sequence.decodes:
            self._stepper.settle(sequence, sequence.next_ids(1)[0])
            self._alone(sequence, sequence.advance, 1)
        else:
            self._stepper.settle(sequence, None)
            later.rows.remove(row)

    def _await_work(self) -> bool:
        """Retires what has ended, and waits for a request; ``False`` ends the worker."""
        with self._lock:
            self._retire()
            while not (self._scheduler.running or self._scheduler.waiting):
                self._flying = None  # whose rows are all over
                if self._closed or self._idle():
                    self._slots.close()
                    self._steps, self._pass = None, self._chunk
                    self._thread = None
                    logger.debug("The worker ends")
                    return False
            return True

    def _idle(self) -> bool:
        """Waits for a request; says whether none came in a long time."""
        self._logged = time.monotonic()
        return not self._wake.wait(_IDLE_SECONDS) and not self._scheduler.waiting

    def _retire(self) -> None:
        """Frees the slots of requests that ended, and counts what they did."""
        ended = self._scheduler.retire(time.monotonic())
        self._count(ended)
        if ended:
            logger.debug("Retired %d requests, %d go on", len(ended), len(self._scheduler.running))

    def _count(self, ended: Iterable[TokenSequence]) -> None:
        for sequence in ended:
            self._prompt_tokens += sequence.n_prompt_read
            self._decoded_tokens += sequence.n_sampled
            self._forced_tokens += sequence.n_forced
            self._rereads += sequence.reread
            sequence.leave()

    def _alone(self, sequence: TokenSequence, act: Callable[[T], R], argument: T) -> R | None:
        """Does something for one request; if that fails, it alone ends."""
        try:
            return act(argument)
        except NoDeviceMemory:
            raise
        # A Rust panic is no Exception.
        except BaseException as error:  # noqa: BLE001
            sequence.handle.fail(error)
            return None

    def _lose_device(self, error: BaseException) -> None:
        """Ends all that are running; those that wait go on in slots of their own.

        Where it was memory alone that was not enough, all that are running are read again, fewer at
        once; where less cannot be done at once, the one that is running ends.
        """
        running = self._scheduler.running
        self._flying = self._steps = None  # they hold the slots
        if is_out_of_memory(error):
            root = _root(error)
            for each in (error, root):  # their frames may hold what is to be given back
                traceback.clear_frames(each.__traceback__)
            with self._lock:
                fewer = self._slots.shrink(sum(not each.over for each in running))
                if not fewer and self._pass > LEAST_SHARE:
                    self._pass, fewer = max(self._pass // 2, LEAST_SHARE), True
                requeued = self._scheduler.requeue() if fewer else 0
            if fewer:
                logger.warning(
                    "Out of memory: %d requests are read again, %d at once, up to %d ids (%s)",
                    *(requeued, self._slots.most, self._pass, root),
                )
                return
            error = _no_memory(root)
        logger.error("The model failed, and %d requests with it: %r", len(running), error)
        for sequence in running:
            if not sequence.over:
                sequence.handle.fail(error)
        self._slots.close()
        traceback.clear_frames(error.__traceback__)  # they hold all requests, and callers the error

    def _note_first_token(self, sequence: TokenSequence) -> None:
        if not sequence.n_sampled:
            with self._lock:
                self._meter.first_token(time.monotonic() - sequence.submitted)

    def _note_step(self, seconds: float, prompt_ids: int, sampled: int) -> None:
        with self._lock:
            self._meter.step(seconds, prompt_ids, sampled)
        now = time.monotonic()
        if now - self._logged >= _LOG_SECONDS:
            self._logged = now
            logger.info("%s", self.stats())

    def _after_fork(self) -> None:
        """Makes a forked child's copy usable: its worker stayed with the parent."""
        lost = [*self._scheduler.waiting, *self._scheduler.running]
        self._slots.courier.orphan()
        self._begin_anew()
        for grammars in self._grammars.values():
            grammars.renew_lock()
        for sequence in lost:
            sequence.handle.orphan()


def _root(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _root(error.__cause__)


def _no_memory(error: BaseException) -> EngineError:
    """Returns what is said to who asked for what does not fit, even alone."""
    reason = EngineError(
        "There is not enough memory to serve the request, though it was served alone, and few ids "
        f"of its prompt at a time ({type(error).__name__}: {error}). Free memory that other "
        "programs hold, or load weights that take less (strategy='cuda int8', or a smaller model); "
        "with a smaller prefill_budget or fewer slots the engine takes less from the start."
    )
    reason.__cause__ = error
    return reason


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _close_all() -> None:
    for engine in list(_engines):
        engine.close()


def _after_fork() -> None:
    for engine in list(_engines):
        engine._after_fork()


# A daemon thread inside the model while the interpreter goes down may crash it.
atexit.register(_close_all)
in_forked_child(_after_fork)
