"""Runtimes: the port and its adapters; what is asked of a model itself.

What people do to models by hand (`langchain_rwkv_state.toolbox`) is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from langchain_rwkv_state.runtime.base import Runtime
from langchain_rwkv_state.runtime.checkpoint import is_g1, read_tensors
from langchain_rwkv_state.runtime.loader import check_model, load_runtime, locate, model_key
from langchain_rwkv_state.runtime.slots import Reads, Slots, open_slots

if TYPE_CHECKING:
    from langchain_rwkv_state.toolbox.clamp import DecayClamp, clamp_decay, write_clamped
    from langchain_rwkv_state.toolbox.half_life import HalfLife, half_life
    from langchain_rwkv_state.toolbox.loss import text_loss

__all__ = [
    "DecayClamp",
    "HalfLife",
    "Reads",
    "Runtime",
    "Slots",
    "check_model",
    "clamp_decay",
    "half_life",
    "is_g1",
    "load_runtime",
    "locate",
    "model_key",
    "open_slots",
    "read_tensors",
    "text_loss",
    "write_clamped",
]

_HOMES = {
    "DecayClamp": "clamp",
    "HalfLife": "half_life",
    "clamp_decay": "clamp",
    "half_life": "half_life",
    "text_loss": "loss",
    "write_clamped": "clamp",
}


def __getattr__(name: str) -> Any:
    """Imports a name of the toolbox from the module that holds it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"langchain_rwkv_state.toolbox.{_HOMES[name]}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
