"""Chooses the kernels for a card: the fast ones where they can be had and are right there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from langchain_rwkv_state.runtime.cuda import fallbacks, sampling
from langchain_rwkv_state.runtime.cuda.kernels import Kernels, PlainKernels
from langchain_rwkv_state.runtime.cuda.room import Sample


@dataclass(frozen=True)
class ChosenKernels:
    """What a pass and the choices behind it are made of.

    Attributes:
        layer: The parts of a pass.
        sample: Chooses ids.
        fallbacks: What could not be had, in the words of `fallbacks`.
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
        """Returns the fastest kernels that are right on a device."""
        why = _missing(device)
        if why is None:
            # Slow to import, and not installed everywhere.
            from langchain_rwkv_state.runtime.cuda import recurrence_kernels, sampling_kernels
            from langchain_rwkv_state.runtime.cuda.layer_kernels import TritonKernels

            wrong = recurrence_kernels.works(device, head_size, dtype, state_dtype)
            if wrong is None:
                return cls(TritonKernels(), sampling_kernels.sample)
            why = fallbacks.refused(wrong)
        return cls(PlainKernels(), sampling.sample, (why,), recordable=False)


def _missing(device: torch.device) -> str | None:
    """Returns why there are no fast kernels for a device, ``None`` where there may be some."""
    if device.type != "cuda":
        return f"there are no Triton kernels for {device}, only PyTorch's own: load it on a card"
    return next(iter(fallbacks.expected()), None)
