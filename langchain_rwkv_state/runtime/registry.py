"""The models that this process has loaded, and what happens when one goes, or the process forks.

`_registry` counts users; here is what it counts for models. A model's memory is
not given back when its last tensor goes: the allocators keep it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import torch

from langchain_rwkv_state._registry import Registry


def return_memory() -> None:
    """Gives freed memory back to the system and to the devices, as far as they take it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
        if trim is not None:
            trim(0)


MODELS: Registry[Any] = Registry(return_memory)
"""Every model that this process has loaded through `load_runtime`."""


def _after_fork_in_child() -> None:
    if MODELS.used:
        # The threads of OpenMP do not survive a fork: a second one would wait for them forever.
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
