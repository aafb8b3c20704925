"""The random models that benchmarks time: right in shape and speed, meaningless in what they say.

Nothing here is trained. The easy mistake is to time a tiny model: below some 100 MB of weights the
caches of the processor flatter every figure, so the usual one is as large as RWKV-7 0.1B.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.helpers.checkpoints import write_checkpoint


def write_12x768(path: Path | str, *, vocab: int = 65536) -> Path:
    """Writes a random RWKV-7 as large as 0.1B (12 layers, width 768, heads of 64), in fp16.

    Args:
        path: A ``.pth`` or ``.safetensors`` file; kept where it is there already.
        vocab: Size of the vocabulary.

    Returns:
        The path.
    """
    target = Path(path)
    if not target.exists():
        write_checkpoint(target, 7, n_layer=12, n_embd=768, vocab=vocab, dtype=torch.float16)
    return target


if __name__ == "__main__":
    write_12x768(sys.argv[1])
