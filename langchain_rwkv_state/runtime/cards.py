"""Says which CUDA cards there are, as late and as quietly as it can be asked.

Asking CUDA itself (`torch.cuda.is_available`) starts its driver in the process, and what is forked
afterwards can use no card. So nothing here is asked until a model is loaded, and then NVML first,
which forks do not mind: CUDA is asked only where NVML counts a card, or is not there to count.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

import torch

_RELEASE_BYTES = 80  # as NVML has it


def usable() -> bool:
    """Says whether there is a card that CUDA can use."""
    return torch.cuda.device_count() > 0 and torch.cuda.is_available()


def spoilt() -> bool:
    """Says whether this process was forked from one that had started CUDA: it can use no card."""
    asked = getattr(torch.cuda, "_is_in_bad_fork", lambda: False)  # private: it may go
    return bool(asked())


def counted() -> int:
    """Returns how many cards the driver has, whether or not this PyTorch can use them."""
    count = getattr(torch.cuda, "_device_count_nvml", lambda: 0)  # private: it may go
    return max(0, count())


@dataclass(frozen=True)
class Card:
    """A card that CUDA can use.

    Attributes:
        device: As a strategy names it, ``cuda:0``.
        name: Its maker's name for it.
        capability: Its compute capability, such as ``9.0``.
        free_bytes: Memory that is free now.
        total_bytes: All of its memory.
    """

    device: str
    name: str
    capability: str
    free_bytes: int
    total_bytes: int


def found() -> list[Card]:
    """Returns the cards; starts CUDA on each."""
    cards = []
    for number in range(torch.cuda.device_count() if usable() else 0):
        free, total = torch.cuda.mem_get_info(number)
        major, minor = torch.cuda.get_device_capability(number)
        name = torch.cuda.get_device_name(number)
        cards.append(Card(f"cuda:{number}", name, f"{major}.{minor}", free, total))
    return cards


def driver() -> str:
    """Returns the driver's release and the newest CUDA that it knows, as far as they can be asked.

    Starts no card.
    """
    words = [_driver_release() or "a release that it does not name"]
    asked = getattr(torch._C, "_cuda_getDriverVersion", None)  # private: it may go
    version = asked() if asked is not None else 0
    if version:
        words.append(f"for CUDA {version // 1000}.{version % 1000 // 10}")
    return ", ".join(words)


def _driver_release() -> str | None:
    """Returns the release that NVML tells, such as ``570.86.15``."""
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        said = ctypes.create_string_buffer(_RELEASE_BYTES)
        if nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(said, _RELEASE_BYTES):
            return None
    except (OSError, AttributeError):
        return None
    return said.value.decode("ascii", "replace")
