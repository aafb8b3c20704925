"""Steps of choices as a card would make them, and what a CPU chooses in their place."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from langchain_rwkv_state.engine import choices
from langchain_rwkv_state.runtime.cuda.sampling import SamplerArrays
from langchain_rwkv_state.runtime.sampling import Draw, SamplerState, bits_of
from tests.helpers.logits import some_draw, some_row


class Case(NamedTuple):
    """What a call of `sample` is given, but for the arrays, and how its slots choose.

    The slots are named in another order than the rows; the last row is padding.
    """

    logits: Tensor
    slot: Tensor
    choose: Tensor
    mask_at: Tensor
    masks: Tensor
    states: list[SamplerState]
    draws: list[Draw | None]

    @property
    def slots(self) -> int:
        """S."""
        return len(self.states)

    def on(self, device: str) -> Case:
        """The same step elsewhere."""
        logits, slot, choose, mask_at, masks = (each.to(device) for each in self[:5])
        return Case(logits, slot, choose, mask_at, masks, self.states, self.draws)

    def arrays(self) -> SamplerArrays:
        """The slots, loaded, where the logits are."""
        size, device = self.logits.shape[1], self.logits.device
        made = SamplerArrays(self.slots, size, device, rows=self.slots + 1)
        made.counted[::3] = 0
        for slot, state in enumerate(self.states):
            made.load(slot, state)
        return made

    def expected(self) -> list[int]:
        """What the CPU chooses, -1 for nothing."""
        found = []
        for row, draw in zip(self.logits.float().cpu().numpy(), self.draws, strict=True):
            token = choices.choose(row, draw) if draw and np.isfinite(row).all() else None
            found.append(-1 if token is None else token)
        return found


def some_case(
    rng: np.random.Generator, size: int, count: int, dtype: torch.dtype = torch.float32
) -> Case:
    """A step over `count` slots, with settings and rows of all kinds."""
    rows = np.stack([some_row(rng, size) for _ in range(count + 1)])
    for row in rows:
        if rng.random() < 0.15:
            row[rng.integers(size)] = rng.choice([np.nan, np.inf, -np.inf])
    slots = rng.permutation(count)
    given = [some_state(rng, size) for _ in range(count)]
    choose = (rng.random(count) < 0.85).astype(np.int32)
    masks, mask_at = [np.zeros(-(-size // 32), dtype=np.int32)], []
    for slot in slots:
        allowed = given[slot][1].allowed
        mask_at.append(-1 if allowed is None else len(masks))
        masks += [] if allowed is None else [allowed]
    return Case(
        torch.from_numpy(rows).to(dtype),
        _ints([*slots, count]),
        _ints([*choose, 0]),
        _ints([*mask_at, -1]),
        torch.from_numpy(np.stack(masks)),
        [state for state, _ in given],
        [
            *(
                given[slot][1] if wanted else None
                for slot, wanted in zip(slots, choose, strict=True)
            ),
            None,
        ],
    )


def plain_case(logits: Tensor, temperature: float, top_p: float, top_k: int = 0) -> Case:
    """A step in which each row is chosen from in the same way, but with random bits of its own."""
    count, none = len(logits), (np.zeros(0, np.int64), np.zeros(0, np.float32))
    settings = temperature, top_p, top_k
    return Case(
        logits,
        _ints(range(count)),
        _ints([1] * count),
        _ints([-1] * count),
        torch.zeros(1, -(-logits.shape[1] // 32), dtype=torch.int32),
        [SamplerState(*settings, 0, 0, 1, key, 0, *none) for key in range(count)],
        [Draw(*settings, bits_of(key, 0), *none) for key in range(count)],
    )


def some_state(rng: np.random.Generator, size: int) -> tuple[SamplerState, Draw]:
    """How a slot chooses, and the same as the CPU is told it."""
    draw = some_draw(rng, size)
    counts = np.abs(rng.standard_normal(len(draw.ids))).astype(np.float32)
    counts[rng.random(len(counts)) < 0.2] = 0
    presence, frequency = (float(rng.choice([0, 0.3, -0.7, 1e6])) for _ in range(2))
    key, number = int(rng.integers(2**64, dtype=np.uint64)), int(rng.integers(2**40))
    state = SamplerState(
        draw.temperature,
        draw.top_p,
        draw.top_k if rng.random() < 0.8 else 10**30 * (draw.top_k > 0),
        presence,
        frequency,
        0.996,
        key,
        number,
        draw.ids,
        counts,
    )
    return state, draw._replace(
        bits=bits_of(key, number),
        penalties=presence + frequency * counts,
        top_k=min(state.top_k, size),
    )


def run(sample: Any, case: Case, arrays: SamplerArrays) -> Tensor:
    """Calls `sample`, or what is to be its equal; returns what it found, ``[3, G]``."""
    out = torch.full((3, len(case.logits)), -7, dtype=torch.int32, device=case.logits.device)
    sample(case.logits, case.slot, case.choose, case.mask_at, case.masks, arrays, out)
    return out


def _ints(numbers: Any) -> Tensor:
    return torch.from_numpy(np.asarray(numbers, dtype=np.int32))
