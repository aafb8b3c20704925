"""Chooses the kernels for a card: the fast ones where they can be had and are right there."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass

import torch

from langchain_rwkv_state.runtime.cuda import sampling
from langchain_rwkv_state.runtime.cuda.kernels import Kernels, PlainKernels
from langchain_rwkv_state.runtime.cuda.room import Sample
from langchain_rwkv_state.runtime.native import build

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChosenKernels:
    """What a pass and the choices behind it are made of.

    Attributes:
        layer: The parts of a pass.
        sample: Chooses ids.
        fallbacks: What could not be had, in words.
        recordable: Whether steps can be recorded: nothing in them waits for the device.
    """

    layer: Kernels
    sample: Sample
    fallbacks: tuple[str, ...] = ()
    recordable: bool = True

    @classmethod
    def of(
        cls, device: torch.device, head_size: int, dtype: torch.dtype, state_dtype: torch.dtype
    ) -> ChosenKernels:
        """Returns the fastest kernels that are right on a device; warns of what it lacks."""
        why = _missing(device)
        if why is None:
            # Slow to import, and not installed everywhere.
            from langchain_rwkv_state.runtime.cuda import recurrence_kernels, sampling_kernels
            from langchain_rwkv_state.runtime.cuda.layer_kernels import TritonKernels

            wrong = recurrence_kernels.works(device, head_size, dtype, state_dtype)
            if wrong is None:
                return cls(TritonKernels(), sampling_kernels.sample)
            why = f"The Triton kernels are not used on {device}: {wrong}"
        if device.type == "cuda":
            logger.warning("%s PyTorch alone runs the model, many times slower.", why)
        return cls(PlainKernels(), sampling.sample, (why,), recordable=False)


def _missing(device: torch.device) -> str | None:
    """Returns why there are no fast kernels for a device, ``None`` where there may be some."""
    if device.type != "cuda":
        return f"There are no Triton kernels for {device}."
    if not build.enabled():
        return "RWKV_STATE_COMPILED=0 is set: no Triton kernels are used."
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (the extra 'cuda' brings it)."
    return None
