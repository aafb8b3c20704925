"""Times the engine and chat with sessions on a card, both with the template's default sampling.

What is said a second, all conversations together, from the first request to the last answer. It is
set beside the runtime alone, whose card chooses with the same settings.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from langchain_core.messages import HumanMessage

from benchmarks.common import Check
from benchmarks.crowd_talks import question
from benchmarks.cuda.bench import NO_SLOTS, Bench, no_memory
from benchmarks.cuda.ours import Ours
from benchmarks.peers.served import Run
from langchain_rwkv_state import ChatRWKV, DiskStateStore
from langchain_rwkv_state.engine import Request, Sampling
from langchain_rwkv_state.prompt.plan import ids_of

TOKENS = 128
ROUNDS = 2
LEAST = 0.9
"""Chat's share of the runtime alone."""
MOST_STORED_BYTES = 4 << 30
WAYS = ("runtime alone", "engine", "chat with sessions")


def measure(bench: Bench, name: str) -> None:
    """Times one shape at each number of conversations, the three ways by turns."""
    tokens = 4 if bench.dry else TOKENS
    store = DiskStateStore(bench.directory / f"states {name}")
    chat = ChatRWKV(
        model=str(bench.model(name)),
        strategy=bench.strategy(),
        store=store,
        max_tokens=tokens,
        slots=max(bench.rows),
        prefix_cache=False,
    )
    chat.invoke("Hello.")  # opens the engine's slots, and records
    alone = Ours(chat.loaded().runtime)
    names = itertools.count()
    found: dict[str, dict[str, float]] = {}
    for rows in map(int, bench.within_time(map(str, bench.rows))):
        wanted = {
            WAYS[0]: _alone(bench, name, alone, rows, tokens),
            WAYS[1]: partial(_by_engine, chat, rows, tokens),
            WAYS[2]: _sessions(bench, name, chat, rows, names),
        }
        ways = {way: run for way, run in wanted.items() if run is not None}
        best = dict.fromkeys(ways, float("inf"))
        for run in ways.values():
            run()
        room = chat.loaded().engine.stats().slots
        if room < rows:
            bench.leave_out(f"{name}, B={rows}", f"only {room} {NO_SLOTS}")
            break
        for _ in range(1 if bench.dry else ROUNDS):
            for way, run in ways.items():
                start = time.perf_counter()
                run()
                best[way] = min(best[way], time.perf_counter() - start)
        speeds = {way: rows * tokens / seconds for way, seconds in best.items()}
        found[f"B={rows}"] = speeds
        bench.note("tokens a second", found)
        for way, speed in speeds.items():
            print(f"{name}, {way}, B={rows}: {speed:,.0f} tokens a second", flush=True)
        if {WAYS[0], WAYS[2]} <= set(speeds) and not bench.dry:
            share = speeds[WAYS[2]] / speeds[WAYS[0]]
            what = f"{name}, B={rows}: {WAYS[2]} / {WAYS[0]}"
            bench.check(Check(what, share, LEAST, "at least", "x", ROUNDS))
        del wanted, ways  # and the slots of the runtime alone, before the next are opened
    chat.unload()
    store.close()


def _alone(
    bench: Bench, name: str, runtime: Ours, rows: int, tokens: int
) -> Callable[[], object] | None:
    """Returns what decodes with the runtime alone, whose states are beside the engine's."""
    try:
        return partial(_repeated, runtime.decoder(rows), tokens)
    except RuntimeError as error:
        if not no_memory(str(error)):
            raise
        bench.leave_out(f"{name}, {WAYS[0]}, B={rows}", str(error))
        return None


def _sessions(
    bench: Bench, name: str, chat: ChatRWKV, rows: int, names: itertools.count[int]
) -> Callable[[], object] | None:
    """Returns what talks in sessions, if the disk is to hold their states."""
    stored = 2 * rows * chat.loaded().zero.layout.nbytes  # the head, and the one before it
    if stored <= MOST_STORED_BYTES:
        return partial(_by_sessions, chat, rows, names)
    why = f"its states would take {stored / 2**30:.0f} GiB of disk"
    bench.leave_out(f"{name}, {WAYS[2]}, B={rows}", why)
    return None


def _repeated(run: Run, times: int) -> None:
    for _ in range(times):
        run()


def _by_engine(chat: ChatRWKV, rows: int, tokens: int) -> None:
    loaded = chat.loaded()
    template = loaded.template
    settings: dict[str, Any] = dict(template.sampling)
    handles = []
    for number in range(rows):
        said = [HumanMessage(question(number, 0))]
        prompt = ids_of(template.segments(said, start=True, answer=True))
        sampling = Sampling(seed=number, **settings)
        handles.append(
            loaded.engine.submit(Request(loaded.zero, prompt, tokens, sampling=sampling))
        )
    for handle in handles:
        if handle.result().answer_tokens != tokens:
            raise RuntimeError("An answer was shorter than was asked for.")


def _by_sessions(chat: ChatRWKV, rows: int, names: itertools.count[int]) -> None:
    async def all_of_them() -> list[Any]:
        sessions = [chat.with_session(f"card {next(names)}") for _ in range(rows)]
        asked = (one.ainvoke(question(number, 0)) for number, one in enumerate(sessions))
        return await asyncio.gather(*asked)

    for answer in asyncio.run(all_of_them()):
        if answer.response_metadata["finish_reason"] != "length":
            raise RuntimeError("An answer was shorter than was asked for.")


def parts(names: Sequence[str]) -> dict[str, partial[None]]:
    """Returns a part for each shape."""
    return {f"chat {name}": partial(measure, name=name) for name in names}
