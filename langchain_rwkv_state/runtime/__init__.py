"""Runtimes: the port and its adapters; what is asked of a model itself."""

from langchain_rwkv_state.runtime.base import Runtime
from langchain_rwkv_state.runtime.checkpoint import is_g1, read_tensors
from langchain_rwkv_state.runtime.clamp import DecayClamp, clamp_decay, write_clamped
from langchain_rwkv_state.runtime.half_life import HalfLife, half_life
from langchain_rwkv_state.runtime.loader import check_model, load_runtime, locate, model_key
from langchain_rwkv_state.runtime.loss import text_loss
from langchain_rwkv_state.runtime.slots import Reads, Slots, open_slots

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
