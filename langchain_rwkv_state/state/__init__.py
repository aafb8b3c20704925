"""States as values: what they are made of, where they come from, and how they become bytes.

What needs PyTorch, and what people do to states by hand (`langchain_rwkv_state.toolbox`), is
imported when it is first used, so that who lists a store's sessions does not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from langchain_rwkv_state.state.codec_names import CODECS, LOSSY, CodecName, require_codec
from langchain_rwkv_state.state.derivation import ZERO_ROOT, Derivation, is_reference, reference
from langchain_rwkv_state.state.fingerprint import Fingerprint

if TYPE_CHECKING:
    from langchain_rwkv_state.state.accumulators import renormalise
    from langchain_rwkv_state.state.codec import Decoded, decode, encode, encode_parts, lossy
    from langchain_rwkv_state.state.container import Buffer
    from langchain_rwkv_state.state.layout import StateLayout, TensorSpec, Version, dtype_name
    from langchain_rwkv_state.state.parts import Parts
    from langchain_rwkv_state.state.state import RWKVState, require_finite, zero_state
    from langchain_rwkv_state.toolbox.algebra import blend, blend_many, decay
    from langchain_rwkv_state.toolbox.codec_trial import CodecTrial, try_codecs
    from langchain_rwkv_state.toolbox.diagnostics import (
        Healthy,
        Inspection,
        TensorHealth,
        calibrate,
        inspect,
    )
    from langchain_rwkv_state.toolbox.diff import Diff, diff
    from langchain_rwkv_state.toolbox.distance import Distance, Metric, Reader, distance
    from langchain_rwkv_state.toolbox.interchange import export_tensors, import_tensors
    from langchain_rwkv_state.toolbox.maps import HeadMap, difference_map, head_maps
    from langchain_rwkv_state.toolbox.memory import Memory, memory
    from langchain_rwkv_state.toolbox.motion import LayerMotion, Motion, motion
    from langchain_rwkv_state.toolbox.scale import ScaleCheck, check_scale

__all__ = [
    "CODECS",
    "LOSSY",
    "ZERO_ROOT",
    "Buffer",
    "CodecName",
    "CodecTrial",
    "Decoded",
    "Derivation",
    "Diff",
    "Distance",
    "Fingerprint",
    "HeadMap",
    "Healthy",
    "Inspection",
    "LayerMotion",
    "Memory",
    "Metric",
    "Motion",
    "Parts",
    "RWKVState",
    "Reader",
    "ScaleCheck",
    "StateLayout",
    "TensorHealth",
    "TensorSpec",
    "Version",
    "blend",
    "blend_many",
    "calibrate",
    "check_scale",
    "decay",
    "decode",
    "diff",
    "difference_map",
    "distance",
    "dtype_name",
    "encode",
    "encode_parts",
    "export_tensors",
    "head_maps",
    "import_tensors",
    "inspect",
    "is_reference",
    "lossy",
    "memory",
    "motion",
    "reference",
    "renormalise",
    "require_codec",
    "try_codecs",
    "require_finite",
    "zero_state",
]

_ROOT = "langchain_rwkv_state"
_HOMES = {
    "Buffer": "state.container",
    "CodecTrial": "toolbox.codec_trial",
    "Decoded": "state.codec",
    "Diff": "toolbox.diff",
    "Distance": "toolbox.distance",
    "HeadMap": "toolbox.maps",
    "Healthy": "toolbox.diagnostics",
    "Inspection": "toolbox.diagnostics",
    "LayerMotion": "toolbox.motion",
    "Memory": "toolbox.memory",
    "Metric": "toolbox.distance",
    "Motion": "toolbox.motion",
    "Parts": "state.parts",
    "RWKVState": "state.state",
    "Reader": "toolbox.distance",
    "ScaleCheck": "toolbox.scale",
    "StateLayout": "state.layout",
    "TensorHealth": "toolbox.diagnostics",
    "TensorSpec": "state.layout",
    "Version": "state.layout",
    "blend": "toolbox.algebra",
    "blend_many": "toolbox.algebra",
    "calibrate": "toolbox.diagnostics",
    "check_scale": "toolbox.scale",
    "decay": "toolbox.algebra",
    "decode": "state.codec",
    "diff": "toolbox.diff",
    "difference_map": "toolbox.maps",
    "distance": "toolbox.distance",
    "dtype_name": "state.layout",
    "encode": "state.codec",
    "encode_parts": "state.codec",
    "export_tensors": "toolbox.interchange",
    "head_maps": "toolbox.maps",
    "import_tensors": "toolbox.interchange",
    "inspect": "toolbox.diagnostics",
    "lossy": "state.codec",
    "memory": "toolbox.memory",
    "motion": "toolbox.motion",
    "renormalise": "state.accumulators",
    "require_finite": "state.state",
    "try_codecs": "toolbox.codec_trial",
    "zero_state": "state.state",
}


def __getattr__(name: str) -> Any:
    """Imports a name from the module that holds it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{_ROOT}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
