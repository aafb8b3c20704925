"""Makes many calls beside one another, in lanes: those of one lane come one after another.

It starts threads and hands over what came of each call, as it comes; what a call is, and which
lane it belongs to, is its caller's. Whoever is interrupted here, or leaves early, interrupts the
calls that are under way, and then waits for the threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list, get_executor_for_config

from langchain_rwkv_state.engine.interruption import Interruption


def as_completed(
    lanes: Sequence[Sequence[int]],
    call: Callable[[int], Any],
    config: RunnableConfig,
    *,
    return_exceptions: bool,
) -> Iterator[tuple[int, Any]]:
    """Makes a call for each place, and yields (place, what it returned) as they come.

    Args:
        lanes: The places.
        call: Makes the call of a place.
        config: Its ``max_concurrency`` says how many lanes are served at once.
        return_exceptions: Whether an `Exception` is yielded in the place of what is returned, and
            the lane goes on. Else it is raised: no further call begins, and those under way end.
    """
    done: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    over = threading.Event()
    interruption = Interruption()

    def in_turn(lane: Sequence[int]) -> None:
        with interruption.part():
            for at in lane:
                if over.is_set():
                    return
                found = _outcome(call, at)
                done.put((at, found))
                if isinstance(found, BaseException) and not return_exceptions:
                    return

    if not lanes:
        return
    with get_executor_for_config(config) as executor:
        try:
            for lane in lanes:
                executor.submit(in_turn, lane)
            for _ in range(sum(map(len, lanes))):
                yield answered(done.get(), return_exceptions=return_exceptions)
        except BaseException as error:
            over.set()
            if not isinstance(error, Exception):
                interruption.interrupt()
            raise


def each_as_completed(
    invoke: Callable[..., Any],
    inputs: Sequence[Any],
    config: RunnableConfig | Sequence[RunnableConfig] | None,
    *,
    return_exceptions: bool,
    **options: Any,
) -> Iterator[tuple[int, Any]]:
    """Invokes a model with each of many inputs, as `Runnable.batch_as_completed` does.

    Args:
        invoke: The model's own.
        inputs: One for each call.
        config: One for each call, or for all.
        return_exceptions: As for `as_completed`.
        **options: Of each call.
    """
    configs = get_config_list(config, len(inputs))
    return as_completed(
        [[at] for at in range(len(inputs))],
        lambda at: invoke(inputs[at], configs[at], **options),
        configs[0] if configs else {},
        return_exceptions=return_exceptions,
    )


def _outcome(call: Callable[[int], Any], at: int) -> Any:
    try:
        return call(at)
    except BaseException as error:  # noqa: BLE001 # it is raised where it is read
        return error


def answered(done: tuple[int, Any], *, return_exceptions: bool) -> tuple[int, Any]:
    """Returns what came of a call, or raises it."""
    found = done[1]
    if isinstance(found, BaseException) and not (
        return_exceptions and isinstance(found, Exception)
    ):
        raise found
    return done
