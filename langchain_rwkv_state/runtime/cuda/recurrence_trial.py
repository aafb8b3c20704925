"""Tries the kernels of the time-mix on a device before they are used, against fp64 on the CPU."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from langchain_rwkv_state.runtime.cuda import recurrence_kernels
from langchain_rwkv_state.runtime.cuda.kernels import Gates, Heads, PlainKernels
from langchain_rwkv_state.runtime.cuda.spans import Segment, Spans
from langchain_rwkv_state.runtime.native.plain import DECAY
from langchain_rwkv_state.runtime.native.recurrence import CHUNK
from langchain_rwkv_state.runtime.native.weights import Norm

logger = logging.getLogger(__name__)

TimeMix: TypeAlias = Callable[[Tensor, Gates, Tensor | None, Heads, Tensor, Spans], Tensor]

TOLERANCE = 2e-5
"""Largest share by which a trial may differ, beyond what its dtypes round away: products in plain
TF32 are off by more than twice that, right ones by a hundredth."""


def works(
    device: torch.device, size: int, dtype: torch.dtype, state_dtype: torch.dtype
) -> str | None:
    """Compiles the kernels, and compares decode and prefill with fp64 on the CPU.

    Where "tf32x3" is off, "ieee" takes its place on this device, with a warning.

    Args:
        device: Where to run them.
        size: Size of a head, N.
        dtype: In which is computed.
        state_dtype: Of the WKV states.

    Returns:
        ``None`` if they are right, else why not.
    """
    if size not in recurrence_kernels.SIZES:
        return f"a head size of {size} is none of {', '.join(map(str, recurrence_kernels.SIZES))}"
    device = torch.empty(0, device=device).device  # with its number, as tensors have it
    why = _fault(device, size, dtype, state_dtype)
    if why and recurrence_kernels.precision(device) == "tf32x3":
        recurrence_kernels.give_up_tf32x3(device)
        if instead := _fault(device, size, dtype, state_dtype):
            return instead
        logger.warning(
            "The recurrence in tf32x3 is wrong on %s (%s): ieee is used, and is slower.",
            device,
            why,
        )
        return None
    if why is None:
        logger.info("The recurrence is in %s on %s.", recurrence_kernels.precision(device), device)
    return why


def _fault(
    device: torch.device, size: int, dtype: torch.dtype, state_dtype: torch.dtype
) -> str | None:
    """Returns what is wrong with a decode or a prefill on a device."""
    lengths = (1, 1), (2 * CHUNK + 5, 1, CHUNK)
    for name, longs in zip(("decode", "prefill"), lengths, strict=True):
        try:
            error = _error(longs, device, size, dtype, state_dtype)
        except Exception as cause:  # noqa: BLE001  # whatever Triton, its compiler or the card raise
            return f"{name} does not run: {cause}"
        if not error <= TOLERANCE:  # nor is NaN
            return f"{name} is off by {error:.1g} of the largest number"
    return None


def _error(
    lengths: Sequence[int],
    device: torch.device,
    size: int,
    dtype: torch.dtype,
    state_dtype: torch.dtype,
) -> float:
    """Returns by how much a trial is off, as a share, beyond what its dtypes round away."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, least: float = -1, most: float = 1) -> Tensor:
        return torch.rand(shape, generator=generator) * (most - least) + least

    def share() -> Tensor:
        return random(rows, width, least=0).to(dtype)

    rows, width, cells = sum(lengths), 2 * size, 2 * len(lengths)
    inputs = random(3, rows, width).to(dtype), share()
    gates = random(rows, width, least=math.exp(DECAY)), share(), share(), share()
    k_k, k_a, r_k, weight, bias = random(5, width).to(dtype)
    states = random(cells + 2, 2, size, size).to(state_dtype)
    marks = (3, cells), (CHUNK, cells + 1)
    segments = [
        Segment(length, 2 * i, 2 * i + 1, marks if length > CHUNK else ())
        for i, length in enumerate(lengths)
    ]

    def read(mix: TimeMix, moved: Callable[[Tensor], Tensor], where: torch.device) -> list[Tensor]:
        rkv, v_first = map(moved, inputs)
        heads = Heads(moved(k_k), moved(k_a), moved(r_k), Norm(moved(weight), moved(bias)))
        wkv = moved(states).clone()
        y = mix(rkv, Gates(*map(moved, gates)), v_first, heads, wkv, Spans.of(segments, where))
        return [y, wkv]

    ours = read(recurrence_kernels.time_mix, lambda x: x.to(device), device)
    # On the CPU and in fp64, where no setting of TF32 has a say in what is right.
    right = read(PlainKernels().time_mix, Tensor.double, torch.device("cpu"))
    errors = [
        (one.cpu().double() - other).abs().max() / other.abs().max() - torch.finfo(one.dtype).eps
        for one, other in zip(ours, right, strict=True)
    ]
    return torch.stack(errors).max().item()  # NaN if one is
