"""Says which card, driver and versions there are, and what runs; nothing may run in its place.

Figures of a fallback are no figures of the runtime, so a fallback ends `make gpu`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

import torch

from benchmarks.cuda.bench import Bench
from langchain_rwkv_state.runtime import Runtime, cards, load_runtime, open_slots

SLOTS = 8


class Fallback(Exception):
    """Something else runs than what was asked for."""


def described() -> dict[str, Any]:
    """Returns the cards, their driver, and the versions of what computes on them."""
    found = cards.found()
    triton = importlib.util.find_spec("triton")
    return {
        "cards": [
            f"{card.name}, {card.total_bytes / 2**30:.0f} GiB, compute capability {card.capability}"
            for card in found
        ],
        "driver": cards.driver() if found else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": importlib.metadata.version("triton") if triton else None,
    }


def fallbacks(runtime: Runtime) -> tuple[str, ...]:
    """Returns what a runtime does in place of what was asked for.

    Raises:
        Fallback: It does not say.
    """
    found = getattr(runtime, "fallbacks", None)
    if found is None:
        raise Fallback(
            f"{getattr(runtime, 'about', runtime)}: it does not say what it fell back to."
        )
    return tuple(found)


def what_runs(bench: Bench) -> None:
    """Loads the smallest shape, lets it decode a step, and says what ran.

    Raises:
        Fallback: There was a fallback.
    """
    bench.note("machine", described())
    for name, value in bench.results["machine"].items():
        print(f"{name}: {', '.join(value) if isinstance(value, list) else value}", flush=True)
    runtime = load_runtime(bench.model("0.1B"), bench.strategy())
    try:
        slots = open_slots(runtime, SLOTS)  # and records what they decode
        slots.put(0, runtime.zero_state())
        slots.read([(0, [1])])
        about = str(getattr(runtime, "about", "unknown"))
        bench.note("about", about)
        print(f"runs: {about}", flush=True)
        if bench.dry:
            return
        found = fallbacks(runtime)
        bench.note("fallbacks", list(found))
        if found:
            raise Fallback(f"{about} fell back: {'; '.join(found)}.")
    finally:
        runtime.close()
