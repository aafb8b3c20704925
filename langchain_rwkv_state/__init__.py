"""RWKV for LangChain, with the model's state itself as the conversation's memory.

The public names live here and are imported when first used, so that a program that needs only
one of them (a command line's ``--help``, say) does not wait for PyTorch.
"""

from __future__ import annotations

import gc
from importlib import import_module

from langchain_rwkv_state._version import __version__

TYPE_CHECKING = False  # as in typing, whose import takes longer than all else here
if TYPE_CHECKING:
    from typing import Any

    from langchain_rwkv_state.chat_models import ChatRWKV
    from langchain_rwkv_state.conversation.history import RWKVStateHistory
    from langchain_rwkv_state.llms import RWKVLLM
    from langchain_rwkv_state.prefix_cache import PrefixStateCache
    from langchain_rwkv_state.state import RWKVState, StateLayout
    from langchain_rwkv_state.store import DiskStateStore, MemoryStateStore, StateStore

__all__ = [
    "ChatRWKV",
    "DiskStateStore",
    "MemoryStateStore",
    "PrefixStateCache",
    "RWKVLLM",
    "RWKVState",
    "RWKVStateHistory",
    "StateLayout",
    "StateStore",
    "__version__",
]

_HOMES = {
    "ChatRWKV": "chat_models",
    "DiskStateStore": "store",
    "MemoryStateStore": "store",
    "PrefixStateCache": "prefix_cache",
    "RWKVLLM": "llms",
    "RWKVState": "state",
    "RWKVStateHistory": "conversation.history",
    "StateLayout": "state",
    "StateStore": "store",
}


def __getattr__(name: str) -> Any:
    """Imports a public name from the module that holds it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # What an import makes is there to stay; looking for garbage in it time and again, as Python's
    # collector does while PyTorch is imported, takes a sixth of the wait.
    collects = gc.isenabled()
    gc.disable()
    try:
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value
    finally:
        if collects:
            gc.enable()


def __dir__() -> list[str]:
    return sorted(__all__)
