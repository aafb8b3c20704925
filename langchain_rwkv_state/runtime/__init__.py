"""Runtimes: the port and its adapters."""

from langchain_rwkv_state.runtime.base import Runtime
from langchain_rwkv_state.runtime.loader import check_model, load_runtime, locate

__all__ = ["Runtime", "check_model", "load_runtime", "locate"]
