"""Says how much memory a model takes on its device, and how much is free there.

The figures come from names and shapes, so that they can be had before anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from langchain_rwkv_state._free_memory import free_memory_bytes
from langchain_rwkv_state._text import size
from langchain_rwkv_state.runtime.checkpoint import Checkpoint
from langchain_rwkv_state.runtime.strategy import DTYPES, Stage, Strategy

_LARGE = re.compile(
    r"blocks\.\d+\.(att|ffn)\.(receptance|key|value|output|gate)\.weight|head\.weight"
)


def weights_bytes(
    tensors: Mapping[str, torch.Tensor], stage: Stage, *, is_native: bool = True
) -> int:
    """Returns about how many bytes a model's weights take once they are loaded.

    Args:
        tensors: The weights by name; only shapes and dtypes are looked at.
        stage: How they are kept.
        is_native: Whether by the native runtime, which on a CPU keeps the dtype of the file.
    """
    of_file = is_native and stage.device == "cpu"
    total = 0
    for name, tensor in tensors.items():
        each = tensor.element_size() if of_file else DTYPES[stage.dtype].itemsize
        if stage.weights != "as_is" and _LARGE.fullmatch(name):
            each = 1
        total += tensor.numel() * each
    return total


def free_bytes(stage: Stage) -> int:
    """Returns how much memory is free on a device; a card is asked, which starts CUDA."""
    return torch.cuda.mem_get_info(stage.device)[0] if stage.on_cuda else free_memory_bytes()


def too_large(
    tensors: Mapping[str, torch.Tensor], path: Path, strategy: Strategy, reason: str
) -> str:
    """Returns the message for a model that did not fit: what it takes, what is free, what to do.

    Args:
        tensors: The weights by name; only shapes and dtypes are looked at.
        path: Their file.
        strategy: How they were to be loaded.
        reason: What the allocator said.
    """
    checkpoint, stage = Checkpoint.of(tensors, path), strategy.stages[0]
    is_native = strategy.is_native_for(checkpoint.version, deep_embed=checkpoint.deep_embed)
    wanted = weights_bytes(tensors, stage, is_native=is_native)
    advice = "a smaller model" + ", or another card, such as 'cuda:1 fp16'" * stage.on_cuda
    if is_native and stage.weights == "as_is" and stage.device != "mps":
        narrow = weights_bytes(tensors, replace(stage, weights="int8"))
        advice = f"'{stage.device} int8', which takes about {size(narrow)}, {advice}"
    elif checkpoint.version != "7" and stage.on_cuda:
        advice = f"'{stage.device} fp16i8', '{stage.device} fp16 *10 -> cpu fp32', {advice}"
    return (
        f"The memory of {stage.device!r} did not suffice to load {path} with the strategy "
        f"{str(strategy)!r}: its weights take about {size(wanted)}, and {size(free_bytes(stage))} "
        f"are free ({reason}). Free some, or use {advice}."
    )
