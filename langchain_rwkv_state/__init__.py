"""RWKV for LangChain, with the model's state itself as the conversation's memory.

The public names live here and are imported when first used, so that a program that needs only
one of them (a command line's ``--help``, say) does not wait for PyTorch.
"""

from __future__ import annotations

import gc
from importlib import import_module
from importlib.machinery import PathFinder

from langchain_rwkv_state._version import __version__

TYPE_CHECKING = False  # as in typing, whose import takes longer than all else here
if TYPE_CHECKING:
    from typing import Any

    from langchain_rwkv_state.chat_models import ChatRWKV
    from langchain_rwkv_state.conversation.history import RWKVStateHistory
    from langchain_rwkv_state.conversation.middleware import RWKVStateMiddleware
    from langchain_rwkv_state.conversation.node import rwkv_node
    from langchain_rwkv_state.conversation.session import RWKVSession
    from langchain_rwkv_state.llms import RWKVLLM
    from langchain_rwkv_state.messages import marker, without_markers
    from langchain_rwkv_state.prefix_cache import PrefixStateCache
    from langchain_rwkv_state.prompt.template import ChatTemplate
    from langchain_rwkv_state.prompt.tools import ToolFormat
    from langchain_rwkv_state.state import RWKVState, StateLayout
    from langchain_rwkv_state.store import (
        DiskStateStore,
        MemoryStateStore,
        RedisStateStore,
        StateStore,
    )

__all__ = [
    "ChatRWKV",
    "ChatTemplate",
    "DiskStateStore",
    "MemoryStateStore",
    "PrefixStateCache",
    "RWKVLLM",
    "RWKVSession",
    "RWKVState",
    "RWKVStateHistory",
    "RWKVStateMiddleware",
    "RedisStateStore",
    "StateLayout",
    "StateStore",
    "ToolFormat",
    "__version__",
    "marker",
    "rwkv_node",
    "without_markers",
]
if PathFinder.find_spec("langchain") is None:  # an extra: `import *` takes what there is
    del __all__[__all__.index("RWKVStateMiddleware")]  # type checkers know all names

_HOMES = {
    "ChatRWKV": "chat_models",
    "ChatTemplate": "prompt.template",
    "DiskStateStore": "store",
    "MemoryStateStore": "store",
    "PrefixStateCache": "prefix_cache",
    "RWKVLLM": "llms",
    "RWKVSession": "conversation.session",
    "RWKVState": "state",
    "RWKVStateHistory": "conversation.history",
    "RWKVStateMiddleware": "conversation.middleware",
    "RedisStateStore": "store",
    "StateLayout": "state",
    "StateStore": "store",
    "ToolFormat": "prompt.tools",
    "marker": "messages",
    "rwkv_node": "conversation.node",
    "without_markers": "messages",
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
