"""Checks the passes on a card against the plain pass on the CPU, at the shapes of real models.

Weights are random and logits few deviations wide, so a difference is given as its root mean square
over that of the logits. For each dtype, and for WKV states in fp16: prompts of different lengths in
one pass and then single tokens beside the fp32 oracle; the same ids in one go beside one by one; a
recorded step beside an eager one. The limits are three times what the plain pass in the same dtype
differs by on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import Check
from benchmarks.cuda.bench import Bench
from benchmarks.peers.served import some_ids
from benchmarks.runtime_speed import load_plain
from langchain_rwkv_state.runtime import Runtime, Slots, load_runtime, open_slots

LIMITS = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 4e-2, "fp16 state_fp16": 5e-3}
LAYERS = {"7.2B": 2}
"""Where fewer layers are enough: the sizes of a layer are what differs."""
LENGTHS = (1, 37, 16)
STEPS = 4


def apart(ours: Tensor, expected: Tensor) -> float:
    """Returns the root mean square of a difference over that of what was expected."""
    squares = (ours.double() - expected.double()).pow(2).mean() / expected.double().pow(2).mean()
    return float(squares.sqrt())


def sequences(vocab: int) -> list[list[int]]:
    """Returns what is read: prompts of `LENGTHS`, and `STEPS` ids more for each."""
    lengths = enumerate(LENGTHS)
    return [some_ids(length + STEPS, vocab, seed=number) for number, length in lengths]


def by_steps(slots: Slots, runtime: Runtime, ids: Sequence[Sequence[int]]) -> list[Tensor]:
    """Reads prompts in one pass, then ids one by one; returns the logits of each pass."""
    for slot in range(len(ids)):
        slots.put(slot, runtime.zero_state())
    found = [slots.read([(slot, each[:-STEPS]) for slot, each in enumerate(ids)]).clone()]
    for step in range(STEPS, 0, -1):
        reads = [(slot, [each[-step]]) for slot, each in enumerate(ids)]
        found.append(slots.read(reads).clone())
    return found


def check(bench: Bench, name: str) -> None:
    """Checks one shape in each dtype."""
    path = bench.model(name, layers=LAYERS.get(name))
    oracle = load_plain(str(path))
    ids = sequences(oracle.vocab_size)
    expected = by_steps(open_slots(oracle, len(ids)), oracle, ids)
    oracle.close()
    for dtype in bench.within_time(LIMITS):
        runtime = load_runtime(path, bench.strategy(dtype))
        try:
            found = _differences(runtime, ids, expected)
        finally:
            runtime.close()
        bench.note(dtype, found)
        for what, value in found.items():
            print(f"{name}, {dtype}, {what}: {value:.1e}", flush=True)
        what, worst = f"{name}, {dtype}: largest difference", max(found.values())
        bench.check(Check(what, worst, LIMITS[dtype], "at most", "", len(ids)))


def _differences(
    runtime: Runtime, ids: Sequence[Sequence[int]], expected: Sequence[Tensor]
) -> dict[str, float]:
    slots = open_slots(runtime, len(ids))
    ours = by_steps(slots, runtime, ids)
    whole, _ = runtime.forward_batch(ids, [runtime.zero_state()] * len(ids))
    states = [slots.get(slot) for slot in range(len(ids))]
    again = [each[:1] for each in ids]
    # A passing batch is not recorded.
    eager, _ = runtime.forward_batch(again, states)
    recorded = slots.read(list(enumerate(again)))
    return {
        "prompts / plain pass": apart(ours[0], expected[0]),
        "decoded / plain pass": max(map(apart, ours[1:], expected[1:])),
        "decoded / in one go": apart(ours[-1], whole),
        "recorded / eager": apart(recorded, eager),
    }


def two_cards(bench: Bench) -> None:
    """Lets models on two cards decode by turns: each is to record on its own."""
    if bench.dry or torch.cuda.device_count() < 2:
        bench.leave_out("two cards", "this machine has fewer")
        return
    path = bench.model("0.1B")
    runtimes = [load_runtime(path, f"native cuda:{card} fp16") for card in range(2)]
    ids = sequences(runtimes[0].vocab_size)
    pools = [open_slots(runtime, len(ids)) for runtime in runtimes]
    for _ in range(2):  # the second time what was recorded is replayed
        both = [by_steps(pool, one, ids) for pool, one in zip(pools, runtimes, strict=True)]
    for runtime in runtimes:
        runtime.close()
    worst = max(map(apart, both[1], both[0]))
    bench.note("two cards", worst)
    limit = LIMITS["fp16"]
    bench.check(Check("the second card / the first", worst, limit, "at most", "", len(ids)))


def parts(names: Sequence[str]) -> dict[str, partial[None]]:
    """Returns a part for each shape."""
    return {f"correct {name}": partial(check, name=name) for name in names}
