"""Checks that a card chooses as the CPU does, and that a recorded step waits for nothing.

The same logits must give the same id, choice after choice, with and without penalties, greedily and
not. Launching a recorded step must neither make the host wait for the card nor ask for memory.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.common import Check
from benchmarks.cuda.bench import Bench
from benchmarks.cuda.ours import DEFAULTS, Decoding
from benchmarks.cuda.what_runs import Fallback
from langchain_rwkv_state.engine import Sampling
from langchain_rwkv_state.engine.sampler import LogitsRow, Sampler
from langchain_rwkv_state.runtime import Runtime, load_runtime, open_slots
from langchain_rwkv_state.runtime.slots import ChoosingSlots

SETTINGS: tuple[dict[str, Any], ...] = (
    DEFAULTS,
    {"temperature": 0},
    {"temperature": 1, "top_p": 1},
    {"temperature": 2, "top_p": 0.9, "top_k": 50},
    {"temperature": 1, "top_p": 0.7, "presence_penalty": 0.5, "frequency_penalty": 0.4},
)
STEPS = 16


def choosing(bench: Bench) -> None:
    """Compares choices, and watches a recorded step.

    Raises:
        Fallback: The card does not choose.
    """
    runtime = load_runtime(bench.model("0.1B"), bench.strategy())
    try:
        slots = open_slots(runtime, len(SETTINGS))
        if not isinstance(slots, ChoosingSlots):
            raise Fallback(f"{bench.strategy()} leaves choosing to the host.")
        _compare(bench, runtime, slots)
    finally:
        runtime.close()


def _compare(bench: Bench, runtime: Runtime, slots: ChoosingSlots) -> None:
    samplers = _samplers()
    steps = 3 if bench.dry else STEPS
    decoding, other = Decoding(runtime, slots, samplers, logits=True), 0
    for _ in range(steps):
        step = decoding.launch()
        for number, each in enumerate(step.found()):
            row = LogitsRow(step.logits(number), each.best, each.finite)
            other += samplers[number].choose(row) != each.chosen
            samplers[number].saw(each.chosen or 0, b"x")
        decoding.taken(step)
    bench.check(Check("choices other than the CPU's", other, 0, "at most", "", steps))
    decoding = Decoding(runtime, slots, _samplers())
    for _ in range(steps):
        decoding()
    if bench.dry:
        bench.leave_out("waits and requests of a recorded step", "there is no card")
        return
    _watch(bench, decoding)


def _samplers() -> list[Sampler]:
    return [Sampler(Sampling(seed=number, **each)) for number, each in enumerate(SETTINGS)]


def _watch(bench: Bench, decoding: Decoding) -> None:
    """Launches a step under PyTorch's own watch for waits, and counts requests for memory."""
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        step = decoding.launch()
        waits = 0
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        bench.note("waited", str(error))
        waits = 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    asked = torch.cuda.memory_stats()["allocation.all.allocated"] - before
    if not waits:
        decoding.taken(step)
    for what, value in (("waits of the host", waits), ("requests for memory", asked)):
        bench.check(Check(f"{what} in a recorded step", value, 0, "at most"))
