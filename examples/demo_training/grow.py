"""A trained model made deeper: it answers as before, and has room to learn more.

New blocks have outputs of zero, so that they change nothing until they are trained; new tokens are
as new. Do not put the new blocks behind the others alone: what is to be looked up
in several steps needs them in between.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from .model import RWKV7, Shape

NEW_BLOCKS = (2, 5)
"""Which blocks of a model of six are new where the smaller one has four."""


def grown(path: Path, shape: Shape, new: tuple[int, ...] = NEW_BLOCKS) -> RWKV7:
    """Makes a model of a shape out of a smaller one's weights.

    Args:
        path: The smaller model, `.safetensors`.
        shape: The result's sizes; more blocks and more tokens than the smaller one's, or as many.
        new: Which of the result's blocks are new; not looked at where there are as many as before.

    Raises:
        ValueError: The blocks do not add up.
    """
    old = {k: v.float() for k, v in load_file(path).items()}
    blocks = 1 + max(int(k.split(".")[1]) for k in old if k.startswith("blocks."))
    kept = [i for i in range(shape.layers) if blocks == shape.layers or i not in new]
    if len(kept) != blocks:
        raise ValueError(f"{blocks} blocks and {len(new)} new ones are not {shape.layers}")
    model = RWKV7(shape)
    state = model.state_dict()
    with torch.no_grad():
        for name, value in old.items():
            parts = name.split(".")
            if parts[0] == "blocks":
                parts[1] = str(kept[int(parts[1])])
            target = state[".".join(parts)]
            target[: value.shape[0]].copy_(value)
    return model
