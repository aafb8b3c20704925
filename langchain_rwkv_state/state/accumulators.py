"""RWKV-4's accumulators: three numbers that stand for two, and their change of scale.

The numerator is ``att_aa * exp(att_pp)``, the denominator ``att_bb * exp(att_pp)``.
"""

from __future__ import annotations

import torch

from langchain_rwkv_state.state.parts import ACCUMULATORS_4, accumulators
from langchain_rwkv_state.state.state import RWKVState, require_states

LOG_ZERO = -1e30
"""RWKV-4's log-scale of an empty past, as the `rwkv` package has it."""


def renormalise(state: RWKVState) -> RWKVState:
    """Returns a state that means the same, with RWKV-4's accumulators at a scale of one.

    Numerator and denominator are ``aa * exp(pp)`` and ``bb * exp(pp)``. Dividing `aa` and `bb` by
    `bb` and adding ``log bb`` to `pp` leaves both as they are, to rounding: then `bb` is 1, `aa`
    the weighted mean of the values read, and `pp` the logarithm of the weight that stands behind
    them. Without the last step the past's weight against the next token would change, and with it
    every answer.

    RWKV-5, 6 and 7 have no scale beside their matrices, so there is nothing that could be divided
    out, and none is needed (`check_scale` says why, with the figures). Such a state is given back
    as it is.

    Args:
        state: The state.

    Returns:
        A new state of the same shapes and next-token distribution, or `state` itself where nothing
        had to change. It has a root of its own: under the old reference a store would keep the
        bytes that it has.

    Raises:
        ValueError: A tensor holds NaN or infinity, which no scale brings back.

    Example:
        >>> from langchain_rwkv_state.state import StateLayout, renormalise, zero_state
        >>> zero = zero_state(StateLayout.of(4, n_layer=1, n_embd=64), "model")
        >>> renormalise(zero) is zero
        True
    """
    require_states("renormalise", state)
    for name in state:
        if not state.shared(name).isfinite().all():
            raise ValueError(
                f"{name!r} holds NaN or infinity, which no change of scale brings back: go back to "
                "an earlier state."
            )
    if state.layout.version != 4:
        return state
    tensors = {name: state.shared(name) for name in state}
    for number in range(state.layout.n_layer):
        aa, bb, pp = accumulators(state, number)
        scale = torch.where(bb > 0, bb, torch.ones_like(bb))
        changed = (aa / scale, bb / scale, pp + scale.log())
        tensors |= {
            f"blocks.{number}.{each}": tensor
            for each, tensor in zip(ACCUMULATORS_4, changed, strict=True)
        }
    if all(torch.equal(tensors[name], state.shared(name)) for name in state):
        return state
    derivation = state.derivation.rooted("renormalise")
    return RWKVState(state.layout, tensors, derivation, block=state.block)
