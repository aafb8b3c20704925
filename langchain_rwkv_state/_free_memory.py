"""Says how much memory programs can have now."""

from __future__ import annotations

import os
from pathlib import Path


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
