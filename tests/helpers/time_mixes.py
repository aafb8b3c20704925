"""Draws random input of a time-mix, as a pass could give it, and what it must give in fp64."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from langchain_rwkv_state.runtime.cuda.kernels import Gates, Heads, PlainKernels
from langchain_rwkv_state.runtime.cuda.spans import Segment, Spans
from langchain_rwkv_state.runtime.native.plain import DECAY
from langchain_rwkv_state.runtime.native.weights import Norm

CPU = torch.device("cpu")
CELLS = 16

TimeMix: TypeAlias = Callable[[Tensor, Gates, Tensor | None, Heads, Tensor, Spans], Tensor]


class Case(NamedTuple):
    """What a time-mix is given.

    Attributes:
        rkv: See `Kernels.time_mix`, as for the others.
        gates: Likewise.
        v_first: Likewise.
        heads: Likewise.
        wkv: Likewise.
        at: Likewise.
    """

    rkv: Tensor
    gates: Gates
    v_first: Tensor | None
    heads: Heads
    wkv: Tensor
    at: Spans

    def read(self, time_mix: TimeMix) -> tuple[Tensor, Tensor]:
        """Returns what a time-mix gives, and the states that it leaves."""
        wkv = self.wkv.clone()
        return time_mix(self.rkv, self.gates, self.v_first, self.heads, wkv, self.at), wkv

    def exact(self) -> tuple[Tensor, Tensor]:
        """Returns the same from the readable formulas in fp64."""

        def maybe(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.double()

        decay, rate, mix, gate = self.gates
        gates = Gates(decay.double(), rate.double(), maybe(mix), gate.double())
        heads = Heads(
            self.heads.k_k.double(),
            self.heads.k_a.double(),
            self.heads.r_k.double(),
            Norm(self.heads.norm.weight.double(), self.heads.norm.bias.double()),
        )
        return Case(
            self.rkv.double(), gates, maybe(self.v_first), heads, self.wkv.double(), self.at
        ).read(PlainKernels().time_mix)

    def touched(self) -> set[int]:
        """Returns the cells that may be written."""
        return {cell for cell in self.at.after.tolist() if cell >= 0}


def random_case(
    seed: int,
    lengths: tuple[int, ...],
    *,
    size: int = 64,
    n_heads: int = 1,
    dtype: torch.dtype = torch.float32,
    state_dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
    least_decay: bool = False,
    first_layer: bool = False,
) -> Case:
    """Returns segments of these lengths in random cells, with states kept at random places.

    Args:
        seed: Of what is drawn.
        lengths: Ids of each segment.
        size: Size of a head.
        n_heads: Number of heads.
        dtype: Compute dtype.
        state_dtype: Of the states.
        scale: Of receptances, keys, values and states.
        least_decay: Whether all decays are the least that a model can give.
        first_layer: Whether there are no first values to mix in.
    """
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    rows, width = sum(lengths), n_heads * size

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def share() -> Tensor:
        return torch.sigmoid(normal(rows, width)).to(dtype)

    decay = torch.exp(DECAY * torch.sigmoid(normal(rows, width) * 4))
    if least_decay:
        decay = torch.full_like(decay, math.exp(DECAY))
    k_k, k_a, r_k, weight, bias = (1 + normal(5, width) / 4).to(dtype)
    cells = rng.sample(range(CELLS), CELLS)
    segments = []
    for length in lengths:
        kept = sorted(rng.sample(range(1, length), min(rng.choice((0, 1, 2)), length - 1)))
        segments.append(
            Segment(length, cells.pop(), cells.pop(), tuple((at, cells.pop()) for at in kept))
        )
    return Case(
        (normal(3, rows, width) * scale).to(dtype),
        Gates(decay, share(), None if first_layer else share(), normal(rows, width).to(dtype)),
        None if first_layer else (normal(rows, width) * scale).to(dtype),
        Heads(k_k, k_a, r_k, Norm(weight, bias)),
        (normal(CELLS, n_heads, size, size) * scale).to(state_dtype),
        Spans.of(segments, CPU),
    )
