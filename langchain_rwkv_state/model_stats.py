"""What a model at work does, in numbers, and a watch that tells of them time and again.

`ModelStats` is plain figures of the engine and of the prefix cache, for a log, a table or whatever
gathers metrics; `StatsWatch` calls a function with them. It knows neither a telemetry library nor a
model. The easy mistake is to let a watch keep a model in memory: it holds whoever it asks weakly.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from inspect import iscoroutinefunction
from types import MethodType, TracebackType
from typing import Self

from langchain_rwkv_state.engine import EngineStats
from langchain_rwkv_state.prefix_cache import CacheStats

logger = logging.getLogger("langchain_rwkv_state.stats")


@dataclass(frozen=True)
class ModelStats:
    """What a model does and did in this process.

    One engine serves all objects over one file and strategy, and one prefix cache may serve many
    models: the figures are theirs. Totals are since the engine, or the cache, was made.

    Attributes:
        model: Its name.
        strategy: How it runs, such as ``native cpu fp32``; what was asked for while not loaded.
        loaded: Whether it is at work. If not, all figures of the engine are zero.
        queued: Requests that wait.
        active: Requests that are being served.
        slots: States that there is room for in the runtime now.
        max_slots: How many that may become.
        prefill_rate: Tokens of prompts read a second, over the last 10 seconds of work.
        decode_rate: Tokens of answers a second, likewise.
        first_token_p50: Seconds from a request to its first token, the median of the last 512;
            ``None`` before the first.
        first_token_p99: The same for the slowest hundredth.
        prompt_tokens: Tokens of prompts read.
        decoded_tokens: Tokens of answers.
        steps: Passes over the model.
        cache_lookups: Prompts looked up in the prefix cache.
        cache_hits: Those of which some beginning was found.
        cache_tokens_saved: Tokens of them that need not be read.
        cache_bytes: Bytes that the prefix cache holds, in all tiers.

    Example:
        >>> print(ModelStats("demo", "native cpu fp32", loaded=True, active=2, max_slots=64))
        demo, native cpu fp32: decode 0 tokens/s, prefill 0 tokens/s, first token p50/p99 -, \
active 2, queued 0, slots 0/64, tokens read 0, sampled 0, cache hits 0/0, tokens saved 0
    """

    model: str
    strategy: str
    loaded: bool
    queued: int = 0
    active: int = 0
    slots: int = 0
    max_slots: int = 0
    prefill_rate: float = 0.0
    decode_rate: float = 0.0
    first_token_p50: float | None = None
    first_token_p99: float | None = None
    prompt_tokens: int = 0
    decoded_tokens: int = 0
    steps: int = 0
    cache_lookups: int = 0
    cache_hits: int = 0
    cache_tokens_saved: int = 0
    cache_bytes: int = 0

    @classmethod
    def of(
        cls, model: str, strategy: str, engine: EngineStats, cache: CacheStats | None
    ) -> ModelStats:
        """Returns the figures of a model at work.

        Args:
            model: Its name.
            strategy: How it runs.
            engine: Those of its engine.
            cache: Those of its prefix cache, ``None`` where it has none.
        """
        cached = cache or CacheStats()
        return cls(
            model,
            strategy,
            loaded=True,
            queued=engine.queued,
            active=engine.active,
            slots=engine.slots,
            max_slots=engine.max_slots,
            prefill_rate=engine.prefill_rate,
            decode_rate=engine.decode_rate,
            first_token_p50=engine.first_token_p50,
            first_token_p99=engine.first_token_p99,
            prompt_tokens=engine.prompt_tokens,
            decoded_tokens=engine.decoded_tokens,
            steps=engine.steps,
            cache_lookups=cached.lookups,
            cache_hits=cached.hits,
            cache_tokens_saved=cached.tokens_saved,
            cache_bytes=sum(cached.nbytes.values()),
        )

    def __str__(self) -> str:
        """Returns one line, for a log or a prompt."""
        if not self.loaded:
            return f"{self.model} is not loaded; its strategy is {self.strategy!r}"
        first = "-"
        if self.first_token_p50 is not None and self.first_token_p99 is not None:
            first = f"{self.first_token_p50:.2f}/{self.first_token_p99:.2f} s"
        return (
            f"{self.model}, {self.strategy}: decode {self.decode_rate:.0f} tokens/s, "
            f"prefill {self.prefill_rate:.0f} tokens/s, first token p50/p99 {first}, "
            f"active {self.active}, queued {self.queued}, slots {self.slots}/{self.max_slots}, "
            f"tokens read {self.prompt_tokens}, sampled {self.decoded_tokens}, "
            f"cache hits {self.cache_hits}/{self.cache_lookups}, "
            f"tokens saved {self.cache_tokens_saved}"
        )


class StatsWatch:
    """Calls a function with a model's figures every so many seconds, on a thread of its own.

    It ends when it is closed, or left as a context, with a last call; and without one when whoever
    gives the figures is gone.

    Args:
        read: Gives the figures: a method, whose object is held weakly.
        callback: Called with them. What it raises is logged, the first time, and stops nothing.
        seconds: Between two calls.

    Raises:
        TypeError: `callback` cannot be called, or is a coroutine function; `seconds` is no number.
        ValueError: `seconds` is not above zero.

    Example:
        >>> with StatsWatch(chat.stats, print, seconds=60):  # doctest: +SKIP
        ...     serve(chat)
    """

    def __init__(
        self,
        read: Callable[[], ModelStats],
        callback: Callable[[ModelStats], object],
        *,
        seconds: float,
    ) -> None:
        if iscoroutinefunction(callback) or not callable(callback):
            raise TypeError(
                f"callback is {callback!r:.100}, which cannot be called on a thread: pass a plain "
                "function of a ModelStats."
            )
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise TypeError(f"seconds is {seconds!r:.100}: pass a number above zero, such as 10.")
        if not 0 < seconds <= threading.TIMEOUT_MAX:
            raise ValueError(f"seconds is {seconds!r}: pass a number above zero, such as 10.")
        self._read = weakref.WeakMethod(read) if isinstance(read, MethodType) else lambda: read
        self._callback = callback
        self._seconds = seconds
        self._closed = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="rwkv-stats", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the watch, behind a last call with what came of it all. Safe to call twice."""
        self._closed.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        over = False
        while not over:
            over = self._closed.wait(self._seconds)
            read = self._read()
            if read is None:
                return
            try:
                self._callback(read())
            except Exception:
                if not self._failed:
                    logger.exception("A callback of a model's figures failed; it is called on")
                self._failed = True
            del read  # else it would be held while the next wait lasts
