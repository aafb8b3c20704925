"""Has a process without a card run RWKV-7 as on one: the same model, in ordinary memory.

For dry runs and tests: kernels are plain PyTorch, streams and pinned memory are played, nothing is
recorded. It takes the place of what the strategies of a CPU load.
"""

from __future__ import annotations

import pytest
import torch

from langchain_rwkv_state.runtime import loader
from langchain_rwkv_state.runtime.checkpoint import Checkpoint
from langchain_rwkv_state.runtime.cuda import sampling
from langchain_rwkv_state.runtime.cuda.chosen import ChosenKernels
from langchain_rwkv_state.runtime.cuda.kernels import PlainKernels
from langchain_rwkv_state.runtime.cuda.model import CudaModel
from langchain_rwkv_state.runtime.strategy import Stage
from tests.helpers.cuda_stand_in import StandIn


class OnTheCpu(CudaModel):
    """A card's model on a CPU."""

    def __init__(
        self, tensors: dict[str, torch.Tensor], checkpoint: Checkpoint, stage: Stage
    ) -> None:
        kernels = ChosenKernels(PlainKernels(), sampling.sample, recordable=False)
        super().__init__(tensors, checkpoint, stage, kernels=kernels)


def stand_in(patch: pytest.MonkeyPatch | None = None) -> None:
    """Puts the stand-in there.

    Args:
        patch: Takes it away again; ``None`` where the process is to keep it.
    """
    patch = patch or pytest.MonkeyPatch()
    StandIn(patch)
    patch.setattr(loader, "NativeModel", OnTheCpu)
