"""Runtimes: the port and its adapters."""

from langchain_rwkv_state.runtime.base import Runtime
from langchain_rwkv_state.runtime.loader import check_model, load_runtime, locate
from langchain_rwkv_state.runtime.slots import Reads, Slots, open_slots

__all__ = ["Reads", "Runtime", "Slots", "check_model", "load_runtime", "locate", "open_slots"]
