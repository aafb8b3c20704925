"""Measures how long others wait for their next token while a long prompt is read beside them.

Fifteen requests decode on an engine; a prompt arrives; the gaps between two tokens of each of the
fifteen are measured in decode steps, the usual gap before the arrival. The longest gap counts and
not the mean: one long silence is what a reader sees.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from dataclasses import dataclass

import torch

from benchmarks.peers.served import some_ids
from langchain_rwkv_state.engine import Delta, Engine, Request, Sampling
from langchain_rwkv_state.runtime import Runtime, load_runtime
from langchain_rwkv_state.state import RWKVState
from langchain_rwkv_state.tokenizer import WorldTokenizer

_STEPS_BEFORE = 24  # of each request, before the prompt arrives
_STEPS_AFTER = 4
_ENDLESS = 100_000  # tokens; the requests are cancelled when all is seen


@dataclass(frozen=True)
class Gap:
    """What happened around one arrival.

    Attributes:
        step_seconds: The median gap before it.
        longest_steps: The longest gap while the prompt was read, in steps.
        median_steps: The median gap then.
        first_token_seconds: From the prompt's arrival to its first token.
    """

    step_seconds: float
    longest_steps: float
    median_steps: float
    first_token_seconds: float


def gaps(
    model: str, strategy: str, threads: int, budget: int | None, others: int, prompt: int, n: int
) -> list[Gap]:
    """Measures arrivals one after another.

    Args:
        model: A random model that speaks words, so that each token is seen at once.
        strategy: How it runs.
        threads: Of PyTorch.
        budget: Ids of prompts read beside a decode step; ``None`` for the engine's own.
        others: Requests that decode meanwhile.
        prompt: Length of the prompt that arrives.
        n: Number of arrivals.
    """
    torch.set_num_threads(threads)
    runtime, tokenizer = load_runtime(model, strategy), WorldTokenizer()
    engine = (
        Engine(runtime, tokenizer)
        if budget is None
        else Engine(runtime, tokenizer, prefill_budget=budget)
    )
    try:
        return [asyncio.run(_one(engine, runtime, others, prompt)) for _ in range(n)]
    finally:
        engine.close()
        runtime.close()


async def _one(engine: Engine, runtime: Runtime, others: int, length: int) -> Gap:
    zero, vocab = runtime.zero_state(), WorldTokenizer().vocab_size
    streams = _Streams(engine)
    for seed in range(others):
        streams.begin(_request(zero, some_ids(12, vocab, seed=100 + seed), _ENDLESS))
    await streams.until(_STEPS_BEFORE)
    arrival = time.perf_counter()
    await engine.submit(_request(zero, some_ids(length, vocab, seed=1), 1)).aresult()
    first_token = time.perf_counter()
    await streams.until(max(map(len, streams.times)) + _STEPS_AFTER)
    await streams.close()
    before, meanwhile = [], []
    for stream in streams.times:
        for earlier, later in itertools.pairwise(stream[4:]):  # behind their own prompts
            if later < arrival:
                before.append(later - earlier)
            elif earlier < first_token:
                meanwhile.append(later - earlier)
    step = statistics.median(before)
    return Gap(
        step,
        max(meanwhile) / step,
        statistics.median(meanwhile) / step,
        first_token - arrival,
    )


class _Streams:
    """Requests that decode, and when each of their tokens came.

    Args:
        engine: Answers them.

    Attributes:
        times: Of each request's tokens.
    """

    def __init__(self, engine: Engine) -> None:
        self.times: list[list[float]] = []
        self._engine = engine
        self._tasks: list[asyncio.Task[None]] = []
        self._moved = asyncio.Event()

    def begin(self, request: Request) -> None:
        """Starts a request."""
        self.times.append([])
        self._tasks.append(asyncio.create_task(self._follow(request, self.times[-1])))

    async def until(self, number: int) -> None:
        """Waits until every request has so many tokens."""
        while min(map(len, self.times)) < number:
            self._moved.clear()
            await self._moved.wait()

    async def close(self) -> None:
        """Cancels all requests."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, request: Request, times: list[float]) -> None:
        async for event in self._engine.submit(request):
            if isinstance(event, Delta):
                times.append(time.perf_counter())
                self._moved.set()


def _request(zero: RWKVState, ids: list[int], max_tokens: int) -> Request:
    return Request(base=zero, prompt=ids, max_tokens=max_tokens, sampling=Sampling(temperature=0))
