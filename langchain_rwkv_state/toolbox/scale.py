"""`check_scale`: whether a state's numbers need another scale, and why not.

It looks and changes nothing; `renormalise` changes. The easy mistake is to fear large numbers as
such: what ends is the range of fp32, at 3.4e38, and a state of usual size is a hundred powers of
two below it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from langchain_rwkv_state.state.accumulators import renormalise
from langchain_rwkv_state.state.parts import SHIFTS, accumulators, kind
from langchain_rwkv_state.state.state import RWKVState, require_states

_FP32_POWERS = 128  # log2 of where fp32 ends


@dataclass(frozen=True)
class ScaleCheck:
    """What became of the question whether a state should be renormalised.

    Attributes:
        changes: Whether `renormalise` would change the state; of RWKV-4 alone.
        largest: The largest ``|x|`` of the WKV tensors; of RWKV-4 that of ``att_aa`` and
            ``att_bb``.
        powers_left: How many times `largest` can double before fp32 ends.
        reason: The answer in a sentence or two.
    """

    changes: bool
    largest: float
    powers_left: float
    reason: str


def check_scale(state: RWKVState) -> ScaleCheck:
    """Says whether a state's numbers need another scale, with the reason.

    Args:
        state: The state, of any version.

    Raises:
        ValueError: A tensor holds NaN or infinity, which no scale brings back.

    Example:
        >>> from langchain_rwkv_state.state import StateLayout, check_scale, zero_state
        >>> zero = zero_state(StateLayout.of(7, n_layer=1, n_embd=64, head_size=64), "model")
        >>> check_scale(zero).changes
        False
    """
    require_states("check_scale", state)
    made = renormalise(state)
    if state.layout.version == 4:
        tensors = [accumulators(state, number)[:2] for number in range(state.layout.n_layer)]
        sizes = [tensor.abs().max() for pair in tensors for tensor in pair]
    else:
        sizes = [state.shared(name).abs().max() for name in state if kind(name) not in SHIFTS]
    largest = float(torch.stack([size.cpu() for size in sizes]).max())
    left = _FP32_POWERS - math.log2(largest) if largest else math.inf
    return ScaleCheck(made is not state, largest, left, _reason(state, made, largest, left))


def _reason(state: RWKVState, made: RWKVState, largest: float, left: float) -> str:
    room = (
        "All of them are zero."
        if not largest
        else f"The largest is {largest:.3g}, which can double {left:.0f} times before fp32 ends."
    )
    if state.layout.version != 4:
        return (
            f"An RWKV-{state.layout.version} has no scale beside its matrices that could be "
            "divided out, and its heads divide what they read by its own size, so none is needed. "
            f"{room}"
        )
    if made is state:
        return f"The accumulators are at a scale of one already. {room}"
    return f"The accumulators can be put to a scale of one without changing what they mean. {room}"
