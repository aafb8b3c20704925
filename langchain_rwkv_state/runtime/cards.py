"""Says which CUDA cards there are, as late and as quietly as it can be asked.

Asking CUDA itself (`torch.cuda.is_available`) starts its driver in the process, and what is forked
afterwards can use no card. So nothing here is asked until a model is loaded, and then NVML first,
which forks do not mind: CUDA is asked only where NVML counts a card, or is not there to count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


def usable() -> bool:
    """Says whether there is a card that CUDA can use."""
    return torch.cuda.device_count() > 0 and torch.cuda.is_available()


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


def driver_cuda() -> str | None:
    """Returns the newest CUDA that the driver knows, such as ``12.8``; ``None`` if it is not said.

    Starts no card.
    """
    asked = getattr(torch._C, "_cuda_getDriverVersion", None)  # private: it may go
    version = asked() if asked is not None else 0
    return f"{version // 1000}.{version % 1000 // 10}" if version else None
