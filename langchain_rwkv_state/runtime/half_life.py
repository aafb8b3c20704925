"""How long a model remembers, channel by channel: after how many tokens half of a write is left.

The decay is fixed by the weights for RWKV-4 and 5, and set by the text for RWKV-6 and 7, where it
is measured. It says how long something *can* stay, not what does: RWKV-7 also overwrites. The easy
mistake is to read ``time_decay`` as the decay: it is the logarithm of a rate, so that -8 is a long
memory and 1 a short one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from langchain_rwkv_state.runtime.files import read_tensors
from langchain_rwkv_state.runtime.loader import locate
from langchain_rwkv_state.runtime.reference import ReferenceModel


def half_lives(model: str | Path, tokens: Sequence[int] = (0,)) -> tuple[torch.Tensor, ...]:
    """Returns after how many tokens half of what was written is left.

    With the factor ``w`` by which a token multiplies a channel's past, ``ln 2 / mean(-ln w)`` over
    the tokens of a text. In RWKV-4 ``w = exp(-exp(time_decay))`` for each channel, in RWKV-5 for
    each row of a head's matrix; no text changes it. In RWKV-6 and 7 it depends on the text. That of
    RWKV-7 is what the decay alone would leave: its delta rule takes out more where keys repeat.

    Args:
        model: As `load_runtime` takes it; RWKV-4, 5.2, 6 or 7.
        tokens: A text as ids, at least one; it matters for RWKV-6 and 7.

    Returns:
        For each layer one number of tokens for each channel, ``[D]``; infinite where nothing fades.

    Raises:
        ModelLoadError: The model cannot be found or read.
        ValueError: There are no tokens, or the model is an RWKV-5.0 or 5.1.

    Example:
        >>> spans = half_lives("demo", tokens=[1, 2, 3])
        >>> len(spans), spans[0].shape
        (4, torch.Size([128]))
    """
    if not tokens:
        raise ValueError("There are no tokens to read: give at least one.")
    reference = ReferenceModel(read_tensors(locate(model)))
    state = reference.zero_tensors()
    speeds: list[torch.Tensor] = []
    for token in tokens:
        _, state, decays = reference.step_with_decays(token, state)
        speeds.append(-torch.stack(decays).double().log())
    return tuple((math.log(2) / torch.stack(speeds).mean(0)).unbind(0))
