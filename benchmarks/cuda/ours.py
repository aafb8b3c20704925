"""Runs this project's runtime on a card as a contender: whole steps, as the engine asks for them.

python -m benchmarks.cuda.ours MODEL STRATEGY
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.cuda.bench import NO_SLOTS
from benchmarks.cuda.stand_in import stand_in
from benchmarks.peers.served import Run, serve, some_ids
from benchmarks.runtime_speed import RuntimeSpeed
from langchain_rwkv_state.engine import Sampling
from langchain_rwkv_state.engine.sampler import Sampler
from langchain_rwkv_state.prompt.template import WorldTemplate
from langchain_rwkv_state.runtime import Runtime, load_runtime, open_slots
from langchain_rwkv_state.runtime.slots import ChoosingSlots, Launched, Read

DEFAULTS: dict[str, Any] = dict(WorldTemplate.sampling)


class Decoding:
    """Decodes in many slots at once, each step reading what the card chose in the one before.

    As in the engine, a step is launched before the one before it is looked at.

    Args:
        runtime: Whose zero state all begin with.
        slots: Of that runtime.
        samplers: One for each slot that is used.
        logits: Whether anybody will ask for the logits.
    """

    def __init__(
        self,
        runtime: Runtime,
        slots: ChoosingSlots,
        samplers: Sequence[Sampler],
        *,
        logits: bool = False,
    ) -> None:
        self._slots, self._logits = slots, logits
        slots.count_by("every id adds 1", lambda: [1.0] * runtime.vocab_size)
        for slot, sampler in enumerate(samplers):
            slots.put(slot, runtime.zero_state())
            slots.load_sampler(slot, sampler.handed_over())
        ids = enumerate(some_ids(len(samplers), runtime.vocab_size))
        first = [Read(slot, [token], choose=True, logits=logits) for slot, token in ids]
        self._reads = [read._replace(ids=None) for read in first]
        self._step = slots.launch(first)

    def launch(self) -> Launched:
        """Launches the next step; returns the one before, which nobody has waited for."""
        before, self._step = self._step, self._slots.launch(self._reads)
        return before

    def taken(self, step: Launched) -> list[int | None]:
        """Waits for a step's ids, and takes on what comes of reading them."""
        chosen = [each.chosen for each in step.found()]
        for slot, token in enumerate(chosen):
            if token is not None:
                self._slots.confirm(slot, token)
        return chosen

    def __call__(self) -> None:
        """Does a step: launches one, and waits for the one before."""
        self.taken(self.launch())


class Ours(RuntimeSpeed):
    """A loaded runtime, whose card chooses the ids where it can."""

    def decoder(self, rows: int) -> Run:
        """Returns what does a step in many slots, with the default sampling."""
        slots = open_slots(self._runtime, rows)
        if not isinstance(slots, ChoosingSlots):
            return super().decoder(rows)
        if slots.served < rows:
            raise RuntimeError(f"Only {slots.served} {NO_SLOTS}.")
        found = getattr(self._runtime, "fallbacks", ())
        if found:  # what was recorded for these slots is known only now
            raise RuntimeError(f"It fell back: {'; '.join(found)}")
        samplers = [Sampler(Sampling(seed=slot, **DEFAULTS)) for slot in range(rows)]
        return Decoding(self._runtime, slots, samplers)


def load(arguments: list[str]) -> Ours:
    """Loads a runtime as the command's arguments say."""
    model, strategy = arguments
    torch.set_grad_enabled(False)
    if strategy.startswith("native cpu"):
        stand_in()
    return Ours(load_runtime(model, strategy))


if __name__ == "__main__":
    serve(load)
