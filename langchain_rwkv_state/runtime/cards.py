"""Says which CUDA cards there are, as late and as quietly as it can be asked.

Asking CUDA itself (`torch.cuda.is_available`) starts its driver in the process, and what is forked
afterwards can use no card. So nothing here is asked until a model is loaded, and then NVML first,
which forks do not mind: CUDA is asked only where NVML counts a card, or is not there to count.
"""

from __future__ import annotations

import torch


def usable() -> bool:
    """Says whether there is a card that CUDA can use."""
    return torch.cuda.device_count() > 0 and torch.cuda.is_available()
