"""Lays out a safetensors file in pieces: the header, and the tensors' own memory, uncopied.

What it lays out is byte for byte what the `safetensors` library writes for the same tensors, but
with the header's keys in order, which the library turns over at each call, and without joining
everything in memory twice, which takes longer than all the rest of a write. It checks nothing and
reads nothing. Larger numbers come first, so that each tensor is aligned.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

Buffer = bytes | memoryview

# As the library orders them: the later first.
_ORDER = {
    torch.uint8: (0, "U8"),
    torch.int8: (1, "I8"),
    torch.float16: (2, "F16"),
    torch.bfloat16: (3, "BF16"),
    torch.float32: (4, "F32"),
}


class Entry(NamedTuple):
    """One tensor of a file.

    Attributes:
        dtype: Of its numbers.
        shape: Its shape.
        parts: Its bytes, in pieces.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: Sequence[Buffer]

    @property
    def nbytes(self) -> int:
        """Number of its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def laid_out(
    entries: Mapping[str, Entry], metadata: Mapping[str, str]
) -> tuple[bytes, list[Buffer]]:
    """Returns a file's header, with its length before it, and what stands behind it.

    Args:
        entries: Tensors by name.
        metadata: Texts for the header.
    """
    ordered = sorted(entries.items(), key=lambda item: (-_ORDER[item[1].dtype][0], item[0]))
    described: dict[str, object] = {"__metadata__": dict(metadata)}
    parts: list[Buffer] = []
    at = 0
    for name, entry in ordered:
        end = at + entry.nbytes
        described[name] = {
            "dtype": _ORDER[entry.dtype][1],
            "shape": list(entry.shape),
            "data_offsets": [at, end],
        }
        parts += entry.parts
        at = end
    header = json.dumps(described, sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header, parts


def as_bytes(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Returns a contiguous CPU tensor's bytes, shared, the last dimension longer by its item size.

    States are copied through these and not by PyTorch, whose copies of more than 32,768 numbers
    start a pool of OpenMP threads for the calling thread. Where pools outnumber the cores, their
    threads sleep between operations instead of spinning, and the model, on another thread, decodes
    at two thirds of its speed.
    """
    return tensor.view(torch.uint8).numpy()
