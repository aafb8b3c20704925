"""Reads checkpoints: turns a path, a file or a folder, into tensors under BlinkDL's names.

One idea a file: `where` finds the files, `kind` says from its first bytes what each one is,
`pth_file`, `safetensors_file` and `gguf_file` read them, `names`, `fla_names` and `gguf_names` turn
what they call their tensors into BlinkDL's names, `architecture` says which model that is, and
`contents` does all of it.
"""

from langchain_rwkv_state.runtime.checkpoint.architecture import Checkpoint, in_loading_order
from langchain_rwkv_state.runtime.checkpoint.contents import Contents, read_contents, read_tensors
from langchain_rwkv_state.runtime.checkpoint.g1 import is_g1
from langchain_rwkv_state.runtime.checkpoint.where import SUFFIXES, Found, find

__all__ = [
    "SUFFIXES",
    "Checkpoint",
    "Contents",
    "Found",
    "find",
    "in_loading_order",
    "is_g1",
    "read_contents",
    "read_tensors",
]
