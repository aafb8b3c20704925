"""Chooses the kernels for a card: the fast ones where they can be had and are right there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from langchain_rwkv_state.runtime.cuda import fallbacks, sampling
from langchain_rwkv_state.runtime.cuda.kernels import Kernels, PlainKernels
from langchain_rwkv_state.runtime.cuda.room import Sample, current


@dataclass(frozen=True)
class ChosenKernels:
    """What a pass and the choices behind it are made of.

    Attributes:
        layer: The parts of a pass.
        sample: Chooses ids.
        fallbacks: What could not be had; behind a colon, what to do.
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
        """Returns the fastest kernels that are right on a device.

        They are compiled and tried here: that takes seconds the first time, and no answer is to
        wait for it.

        Args:
            device: Where they are to run.
            head_size: N.
            dtype: In which is computed.
            state_dtype: Of the WKV states.
        """
        missing = fallbacks.expected()
        if not missing:
            try:
                # Slow to import, and not to be had everywhere.
                from langchain_rwkv_state.runtime.cuda import (
                    layer_trial,
                    recurrence_trial,
                    sampling_kernels,
                )
                from langchain_rwkv_state.runtime.cuda.layer_kernels import TritonKernels

                with current(device):
                    wrong = layer_trial.works(device, dtype)
                    wrong = wrong or recurrence_trial.works(device, head_size, dtype, state_dtype)
            except Exception as cause:  # noqa: BLE001 - compilers and drivers fail in many ways
                wrong = str(cause) or type(cause).__name__
            if wrong is None:
                return cls(TritonKernels(), sampling_kernels.sample)
            missing = (fallbacks.refused(wrong),)
        return cls(PlainKernels(), sampling.sample, missing, recordable=False)
