"""Runs one text in both forms, blocking and async: generators of steps that ask a store or a model.

A function of steps yields what is to be done and gets back what came of it, or has raised in it
what that raises. It says what is asked, not how: `run` calls a verb, `arun` awaits its async twin;
`give` and `agive` also hand on what the steps give. Steps call no store and do not sleep
themselves: that would block the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, TypeAlias, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig

from langchain_rwkv_state.engine import RequestHandle
from langchain_rwkv_state.engine.interruption import join, raise_if_interrupted
from langchain_rwkv_state.store.base import StateStore

T = TypeVar("T")


class StoreCall:
    """Calls a verb of the store.

    Args:
        verb: Its name, such as ``commit``; the async twin is ``acommit``.
        args: By position.
        options: By name.
    """

    __slots__ = ("args", "options", "verb")

    def __init__(self, verb: str, *args: Any, **options: Any) -> None:
        self.verb = verb
        self.args = args
        self.options = options


class OutcomeCall(StoreCall):
    """A call whose outcome is known even to a task that is cancelled as it runs.

    Cancelled before it began, it never happens. Cancelled later, it happens, and its outcome stands
    in the place of the cancellation: see `StateStore.to_its_end`.
    """

    __slots__ = ()
    ends: ClassVar[Mapping[str, bool]] = {}


class SettledCall(StoreCall):
    """A call that has ended, or never begins, when the cancellation of its task is raised."""

    __slots__ = ()
    ends: ClassVar[Mapping[str, bool]] = {"tell": True}


class LastCall(StoreCall):
    """A call that happens even if the task is cancelled."""

    __slots__ = ()
    ends: ClassVar[Mapping[str, bool]] = {"revoke": False}


@dataclass
class Answer:
    """Calls a model, for a whole answer."""

    chat: BaseChatModel
    messages: list[BaseMessage]
    config: RunnableConfig | None
    options: Mapping[str, Any]


@dataclass
class NextChunk(Answer):
    """Calls a model at the first time, and takes the answer's next chunk; ``None`` at the end."""

    chunks: Any = None


@dataclass
class Outcome:
    """Waits for the end of a request."""

    handle: RequestHandle


class Work:
    """Calls a function that computes or reads files: on the event loop, on a thread beside it."""

    __slots__ = ("args", "function")

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function = function
        self.args = args


class Signal:
    """Ends one sleep early.

    It may be given from any thread, and in a finaliser: nothing in `give` waits for a lock.
    """

    def __init__(self) -> None:
        self._given: SimpleQueue[None] = SimpleQueue()
        self._sleeper: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def give(self) -> None:
        """Wakes who sleeps, or will."""
        self._given.put(None)
        if self._sleeper is not None:
            loop, future = self._sleeper
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(_settle, future)

    interrupt = give

    def wait(self, seconds: float) -> None:
        """Sleeps in the calling thread."""
        join(self)
        with suppress(Empty):
            self._given.get(timeout=seconds)

    async def wait_in_loop(self, seconds: float) -> None:
        """Sleeps on the event loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._sleeper = loop, future
        if self._given.empty():  # looked at after the sleeper is known, so that none is missed
            await asyncio.wait([future], timeout=seconds)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@dataclass
class Sleep:
    """Pauses, for so many seconds at most; `signal` ends it early."""

    seconds: float
    signal: Signal | None = None


@dataclass
class Give:
    """Hands a value to whoever iterates over `give` or `agive`."""

    value: Any


Step: TypeAlias = StoreCall | Answer | Outcome | Work | Sleep | Give
Steps: TypeAlias = Generator[Step, Any, T]


def give(steps: Steps[T], store: StateStore) -> Generator[Any, None, T]:
    """Runs steps in the calling thread, yields what they give and returns what they return.

    Whoever stops early has it raised in the steps as `GeneratorExit`, and they run to their end.

    Args:
        steps: The steps, not yet begun.
        store: The store that they ask.
    """
    try:
        step = next(steps)
        while True:
            try:
                answer = (yield step.value) if isinstance(step, Give) else _do(step, store)
            except BaseException as error:  # noqa: BLE001 - the steps decide
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


async def agive(steps: Steps[None], store: StateStore) -> AsyncIterator[Any]:
    """As `give`, on the event loop."""
    try:
        step = next(steps)
        while True:
            try:
                answer = (yield step.value) if isinstance(step, Give) else await _ado(step, store)
            except BaseException as error:  # noqa: BLE001 - the steps decide
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration:
        return


def run(steps: Steps[T], store: StateStore) -> T:
    """Runs steps that give nothing, in the calling thread, and returns what they return."""
    try:
        next(give(steps, store))
    except StopIteration as end:
        result: T = end.value
        return result
    raise TypeError("These steps give values: run them by `give`.")


async def arun(steps: Steps[T], store: StateStore) -> T:
    """As `run`, on the event loop."""
    try:
        step = next(steps)
        while True:
            try:
                answer = await _ado(step, store)
            except BaseException as error:  # noqa: BLE001 - the steps decide
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def _do(step: Step, store: StateStore) -> Any:
    match step:
        case StoreCall():
            return getattr(store, step.verb)(*step.args, **step.options)
        case NextChunk():
            if step.chunks is None:
                step.chunks = step.chat.stream(step.messages, step.config, **step.options)
            return next(step.chunks, None)
        case Answer():
            return step.chat.invoke(step.messages, step.config, **step.options)
        case Outcome():
            return step.handle.result()
        case Work():
            return step.function(*step.args)
        case Sleep():
            (time.sleep if step.signal is None else step.signal.wait)(step.seconds)
            return raise_if_interrupted()
    raise TypeError(f"{step!r:.100} is nothing to do here: run steps that give by `give`.")


async def _ado(step: Step, store: StateStore) -> Any:
    match step:
        case OutcomeCall() | SettledCall() | LastCall():
            return await store.to_its_end(step.verb, *step.args, **step.ends, **step.options)
        case StoreCall():
            return await getattr(store, f"a{step.verb}")(*step.args, **step.options)
        case NextChunk():
            if step.chunks is None:
                step.chunks = step.chat.astream(step.messages, step.config, **step.options)
            return await anext(step.chunks, None)
        case Answer():
            return await step.chat.ainvoke(step.messages, step.config, **step.options)
        case Outcome():
            return await step.handle.aresult()
        case Work():
            return await asyncio.to_thread(step.function, *step.args)
        case Sleep():
            pause = asyncio.sleep if step.signal is None else step.signal.wait_in_loop
            return await pause(step.seconds)
    raise TypeError(f"{step!r:.100} is nothing to do here: run steps that give by `agive`.")
