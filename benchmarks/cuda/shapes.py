"""Names the shapes of RWKV-7 models, and writes random ones: full size on a card, small as a file.

All layers of a written model are one layer's tensors, which the file holds once. A card holds each
layer for itself, so that its memory, its bandwidth and its caches see the whole model; only the
numbers repeat. They mean nothing, but nine in ten activations of a channel-mix are zero, as in
trained models of 7.2B: what skips zeros is timed as it would be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.models import make_speak
from tests.helpers.checkpoints import random_checkpoint

HEAD_SIZE = 64
_ZEROS_BIAS, _ZEROS_SHIFT = 1.0, 1.8
"""Of the second layer norm, and of the key's mean over D: 1.28 deviations below zero."""


@dataclass(frozen=True)
class Shape:
    """One model's sizes.

    Attributes:
        name: As people call it.
        n_layer: Number of layers.
        n_embd: Width, D.
        vocab: Size of the vocabulary, V.
    """

    name: str
    n_layer: int
    n_embd: int
    vocab: int = 65536

    @property
    def ranks(self) -> dict[str, int]:
        """Ranks of the low-rank maps, by the rule that the released models were made with."""
        width = self.n_embd

        def rank(factor: float, power: float) -> int:
            return max(32, 32 * round(factor * float(width**power) / 32))

        return {"w": rank(1.8, 0.5), "a": rank(1.8, 0.5), "v": rank(1.3, 0.5), "g": rank(0.6, 0.8)}

    @property
    def layer_numbers(self) -> int:
        """Numbers in one layer's matrices: six large ones."""
        return 4 * self.n_embd**2 + 2 * self.n_embd * 4 * self.n_embd

    @property
    def low_rank_numbers(self) -> int:
        """Numbers in one layer's low-rank maps."""
        return 2 * self.n_embd * sum(self.ranks.values())

    @property
    def state_numbers(self) -> int:
        """Numbers in the WKV states of one conversation."""
        return self.n_layer * self.n_embd * HEAD_SIZE

    @property
    def nbytes(self) -> int:
        """Bytes of the weights in 16 bits, embedding and head among them."""
        layers = self.n_layer * (self.layer_numbers + self.low_rank_numbers)
        return 2 * (layers + 2 * self.vocab * self.n_embd)

    def cut(self, layers: int) -> Shape:
        """Returns the shape with so many layers at most."""
        return replace(self, n_layer=min(layers, self.n_layer))


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("0.1B", 12, 768),
        Shape("1.5B", 24, 2048),
        Shape("2.9B", 32, 2560),
        Shape("7.2B", 32, 4096),
    )
}
TINY = Shape("tiny", 2, 128)
"""For a dry run."""


def tensors_of(shape: Shape, *, seed: int = 0) -> dict[str, Tensor]:
    """Returns a random model's tensors, bf16 as those of released models; layers share theirs."""
    made = random_checkpoint(
        7, n_layer=1, n_embd=shape.n_embd, head_size=HEAD_SIZE, vocab=shape.vocab, seed=seed
    )
    generator = torch.Generator().manual_seed(seed + 1)
    for letter, rank in shape.ranks.items():
        down = torch.randn(shape.n_embd, rank, generator=generator) * shape.n_embd**-0.5
        up = torch.randn(rank, shape.n_embd, generator=generator) * 0.3 * rank**-0.5
        made |= {f"blocks.0.att.{letter}1": down, f"blocks.0.att.{letter}2": up}
    made["blocks.0.ln2.bias"] += _ZEROS_BIAS
    made["blocks.0.ffn.key.weight"] -= _ZEROS_SHIFT / (_ZEROS_BIAS * shape.n_embd)
    made = {name: tensor.bfloat16() for name, tensor in made.items()}
    layer = {name[9:]: each for name, each in made.items() if name.startswith("blocks.0.")}
    for number in range(1, shape.n_layer):
        made |= {f"blocks.{number}.{n}": each for n, each in layer.items() if "ln0" not in n}
    return made


def write(path: Path, shape: Shape, *, speaking: bool = True) -> Path:
    """Writes a random model as ``.pth``.

    Args:
        path: The file; kept where it is there already.
        shape: Its sizes.
        speaking: Whether it answers in words (see `make_speak`).

    Returns:
        The path.
    """
    if not path.exists():
        torch.save(tensors_of(shape), path)
        if speaking:
            make_speak(path)
    return path
