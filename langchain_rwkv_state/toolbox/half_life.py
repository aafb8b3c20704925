"""How long a model remembers, channel by channel: after how many tokens half of a write is left.

The decay is fixed by the weights for RWKV-4 and 5, and set by the text for RWKV-6 and 7, where it
is measured. It says how long something *can* stay, not what does: RWKV-7 also overwrites. The easy
mistake is to read ``time_decay`` as the decay: it is the logarithm of a rate, so that -8 is a long
memory and 1 a short one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from langchain_rwkv_state.demo.sample import SAMPLE_IDS, SAMPLE_TEXT
from langchain_rwkv_state.runtime.checkpoint import Checkpoint, read_tensors
from langchain_rwkv_state.runtime.loader import DEMO, locate
from langchain_rwkv_state.toolbox.reference import ReferenceModel

GROUP = 64
"""Channels of RWKV-4, which has no heads, that are taken together."""


@dataclass(frozen=True, eq=False, repr=False)
class HalfLife:
    """The half-lives of a model, in tokens; infinite where nothing fades.

    Attributes:
        version: Of RWKV: ``4``, ``5``, ``5.1``, ``5.2``, ``6`` or ``7``.
        layers: For each layer one number for each channel, ``[D]``, fp64. In RWKV-5, 6 and 7 a
            channel is a key's side of a head's matrix: a row in 5 and 6, a column in 7.
        medians: For each layer one number for each head, ``[H]``; in RWKV-4 for each 64 channels.
        n_tokens: Length of the text that it was measured on; 0 where the weights alone say it.
        text: The built-in text, where none was given for the demo model; else empty.
    """

    version: str
    layers: tuple[torch.Tensor, ...]
    medians: tuple[torch.Tensor, ...]
    n_tokens: int = 0
    text: str = ""

    def __repr__(self) -> str:
        return f"HalfLife(RWKV-{self.version}, {len(self.layers)} layers, {self.source})"

    @property
    def measured(self) -> bool:
        """Whether it was measured on a text; else the weights alone say it."""
        return self.n_tokens > 0

    @property
    def source(self) -> str:
        """Where the figures come from, in words."""
        if not self.measured:
            return "read off the weights: no text changes it"
        built_in = " of the built-in conversation" if self.text else ""
        return f"measured on {self.n_tokens} tokens{built_in}"


def half_life(model: str | Path, tokens: Sequence[int] | None = None) -> HalfLife:
    """Returns after how many tokens half of what was written is left.

    With the factor ``w`` by which a token multiplies a channel's past, ``ln 2 / mean(-ln w)`` over
    the tokens of a text. In RWKV-4 and 5 ``w = exp(-exp(time_decay))``, whatever the text, for each
    channel (4), each row of a head's matrix (5.2) or each head (5.0 and 5.1): nothing is run. In
    RWKV-6 and 7 it depends on the text, which is read by the plain formulas of `ReferenceModel`, in
    fp32 and token by token. That of RWKV-7 is what the decay alone would leave: its delta rule
    takes out more where keys repeat.

    Args:
        model: As `load_runtime` takes it.
        tokens: A text as ids, for RWKV-6 and 7. ``None`` is a short built-in conversation for the
            demo model, and an error for any other.

    Raises:
        ModelLoadError: The model cannot be found or read.
        ValueError: An RWKV-6 or 7 was given no tokens or one that it does not have, or it is one
            with DeepEmbed, whose formulas are not among ours.

    Example:
        >>> found = half_life("demo", tokens=[1, 2, 3])
        >>> found.version, found.layers[0].shape, found.medians[0].shape, found.source
        ('7', torch.Size([128]), torch.Size([2]), 'measured on 3 tokens')
    """
    path = locate(model)
    tensors = read_tensors(path, mapped=True)
    checkpoint = Checkpoint.of(tensors, path)
    if checkpoint.version[0] in "45":
        return static_half_life(tensors, checkpoint)
    text = ""
    if tokens is None and model == DEMO:
        tokens, text = SAMPLE_IDS, SAMPLE_TEXT
    if not tokens:
        raise ValueError(
            f"How long an RWKV-{checkpoint.version} remembers depends on what it reads: give the "
            "ids of a text, tokens=tokenizer.encode(...)."
        )
    _require_known(tokens, checkpoint)
    return _result(checkpoint, _measured(read_tensors(path), tokens), len(tokens), text)


def static_half_life(tensors: Mapping[str, torch.Tensor], checkpoint: Checkpoint) -> HalfLife:
    """Returns the half-lives of an RWKV-4 or 5 from its tensors.

    Args:
        tensors: By BlinkDL's names; ``time_decay`` alone is looked at.
        checkpoint: What they are.
    """
    layers = []
    for number in range(checkpoint.n_layer):
        rate = tensors[f"blocks.{number}.att.time_decay"].double().exp().reshape(-1)
        rows = checkpoint.n_att // rate.numel()  # 5.0 and 5.1 have one rate for a head
        layers.append((math.log(2) / rate).repeat_interleave(rows))
    return _result(checkpoint, layers)


def _measured(
    tensors: Mapping[str, torch.Tensor], tokens: Sequence[int]
) -> tuple[torch.Tensor, ...]:
    reference = ReferenceModel(tensors)
    state = reference.zero_tensors()
    rates: list[torch.Tensor] = []
    for token in tokens:
        _, state, found = reference.step_with_rates(token, state)
        rates.append(torch.stack(found).double())
    return (math.log(2) / torch.stack(rates).mean(0)).unbind(0)


def _require_known(tokens: Sequence[int], checkpoint: Checkpoint) -> None:
    wrong = next((each for each in tokens if not 0 <= each < checkpoint.vocab_size), None)
    if wrong is not None:
        raise ValueError(
            f"Token {wrong} is not in the model's vocabulary of {checkpoint.vocab_size}: use the "
            "tokenizer that belongs to the model."
        )
    if checkpoint.deep_embed:
        raise ValueError(
            "The half-lives of an RWKV-7 with DeepEmbed cannot be measured: its formulas are not "
            "among those of the reference. Ask for a plain RWKV-7."
        )


def _result(
    checkpoint: Checkpoint, layers: Sequence[torch.Tensor], n_tokens: int = 0, text: str = ""
) -> HalfLife:
    size = GROUP if checkpoint.version == "4" else checkpoint.head_size
    # `quantile` and not `median`, which takes the lower one of the two in the middle.
    medians = (
        torch.stack([group.quantile(0.5) for group in torch.split(layer, size)]) for layer in layers
    )
    return HalfLife(checkpoint.version, tuple(layers), tuple(medians), n_tokens, text)
