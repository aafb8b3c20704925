"""Draws random input of the WKV recurrence, as a model could give it, and steps through it."""

from __future__ import annotations

import torch

from langchain_rwkv_state.runtime.native.recurrence import Tokens, step


def random_tokens(count: int, heads: int, size: int, seed: int = 0) -> Tokens:
    """Returns tokens whose decays go down to the least that a model can give."""
    generator = torch.Generator().manual_seed(seed)

    def random() -> torch.Tensor:
        return torch.randn(count, heads, size, generator=generator)

    unit = torch.nn.functional.normalize(random(), dim=-1)
    decay = torch.exp(-0.606531 * torch.sigmoid(random() + 4))
    return Tokens(random(), decay, random(), random(), -unit, unit * torch.sigmoid(random()))


def stepped(
    tokens: Tokens, wkv: torch.Tensor, start: list[int], slot: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the outputs and the states after segments, one token at a time."""
    wkv, outputs = wkv.clone(), []
    for number, into in enumerate(slot):
        for row in range(start[number], start[number + 1]):
            y, state = step(tokens.at(slice(row, row + 1)), wkv[into].unsqueeze(0))
            wkv[into] = state[0]
            outputs.append(y)
    return torch.cat(outputs), wkv
