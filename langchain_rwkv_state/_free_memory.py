"""Says how much memory programs can have now, and which errors mean that there was too little."""

from __future__ import annotations

import os
from pathlib import Path

_SAID = (  # as PyTorch, CUDA's libraries and the system put it, in lower case
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
)


def free_memory_bytes() -> int:
    """Returns how much memory programs can have now; half of all where nobody says."""
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return 4 << 30


def is_out_of_memory(error: BaseException | None) -> bool:
    """Says whether an error means that memory, a card's or the machine's, was not enough."""
    if error is None:
        return False
    if isinstance(error, MemoryError):
        return True
    # torch.OutOfMemoryError is a RuntimeError, and so is what cuBLAS and the CPU's allocator raise.
    if isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _SAID):
        return True
    return is_out_of_memory(error.__cause__)
