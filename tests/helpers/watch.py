"""Counts what a chat model's runtime does, and slows it down, for tests of cancelling and loops.

What is counted are calls, which no busy machine changes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from langchain_rwkv_state.base import RWKVModel
from langchain_rwkv_state.engine import Engine

_PATIENCE_SECONDS = 60.0


class Watched:
    """A runtime that counts its calls and the ids that it read.

    Attributes:
        calls: The ids of each sequence read.
        widest: The most sequences that were read in one pass.
        delay_seconds: How long each call takes besides.
    """

    slots = None  # an engine's calls come through `forward_batch`, where they are counted

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self.calls: list[tuple[int, ...]] = []
        self.widest = 0
        self.delay_seconds = 0.0
        self._called = threading.Condition()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    @property
    def tokens_read(self) -> int:
        """Number of ids read in all calls."""
        return sum(map(len, self.calls))

    def forward_batch(self, tokens: Sequence[Sequence[int]], states: Sequence[Any]) -> Any:
        """Reads sequences, each from its own state."""
        with self._called:
            self.calls += map(tuple, tokens)
            self.widest = max(self.widest, len(tokens))
            self._called.notify_all()
        time.sleep(self.delay_seconds)
        return self._runtime.forward_batch(tokens, states)

    def wait_for_calls(self, number: int) -> None:
        """Waits until there were so many calls."""
        with self._called:
            assert self._called.wait_for(lambda: len(self.calls) >= number, _PATIENCE_SECONDS)


def watch(model: RWKVModel, *, prefill_chunk: int = 256) -> Watched:
    """Puts a watched runtime into a model."""
    loaded = model.loaded()
    watched = Watched(loaded.runtime)
    engine = Engine(watched, loaded.tokenizer, prefill_chunk=prefill_chunk)
    model._loaded = replace(loaded, runtime=watched, engine=engine)
    return watched


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for a condition that another thread brings about."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def is_idle(model: RWKVModel) -> bool:
    """Says whether a model's engine has nothing to do."""
    stats = model.loaded().engine.stats()
    return stats.active == stats.queued == 0
