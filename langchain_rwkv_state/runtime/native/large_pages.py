"""Room for large arrays on a CPU, in large pages.

Weights are streamed through once a pass; in pages of 4 kB the processor spends a fifth of that time
on looking up addresses. NumPy asks the system for large pages where PyTorch does not. The easy
mistake is to forget alignment: a vector that crosses a cache line is read twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

_LINE = 64  # bytes of a cache line, and of the widest vector


def room(shape: Sequence[int], dtype: torch.dtype, *, zero: bool = False) -> torch.Tensor:
    """Returns an array on the CPU that begins at a cache line.

    Args:
        shape: Its shape.
        dtype: Its dtype.
        zero: Whether it is all zero; else it holds anything.
    """
    size = math.prod(shape) * dtype.itemsize
    raw = (np.zeros if zero else np.empty)(size + _LINE, dtype=np.uint8)
    start = -raw.ctypes.data % _LINE
    return torch.from_numpy(raw[start : start + size]).view(dtype).view(*shape)
