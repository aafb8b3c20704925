"""States as values: what they are made of, where they come from, and how they become bytes.

What needs PyTorch is imported when it is first used, so that who lists a store's sessions does not
wait for it. The easy mistake is to forget that some submodules have the name of their function
(`diff`, `distance`, `memory`, `motion`): importing one must not hide the function, see `_Package`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from langchain_rwkv_state.state.codec_names import CODECS, LOSSY, CodecName, require_codec
from langchain_rwkv_state.state.derivation import ZERO_ROOT, Derivation, is_reference, reference
from langchain_rwkv_state.state.fingerprint import Fingerprint

if TYPE_CHECKING:
    from langchain_rwkv_state.state.algebra import blend, blend_many, decay, renormalise
    from langchain_rwkv_state.state.codec import Decoded, decode, encode, encode_parts, lossy
    from langchain_rwkv_state.state.container import Buffer
    from langchain_rwkv_state.state.diagnostics import (
        Healthy,
        Inspection,
        TensorHealth,
        calibrate,
        inspect,
    )
    from langchain_rwkv_state.state.diff import Diff, diff
    from langchain_rwkv_state.state.distance import Distance, Metric, Reader, distance
    from langchain_rwkv_state.state.interchange import export_tensors, import_tensors
    from langchain_rwkv_state.state.layout import StateLayout, TensorSpec, Version, dtype_name
    from langchain_rwkv_state.state.maps import HeadMap, difference_map, head_maps
    from langchain_rwkv_state.state.memory import Memory, memory
    from langchain_rwkv_state.state.motion import LayerMotion, Motion, motion
    from langchain_rwkv_state.state.parts import Parts
    from langchain_rwkv_state.state.scale import ScaleCheck, check_scale
    from langchain_rwkv_state.state.state import RWKVState, require_finite, zero_state
    from langchain_rwkv_state.state.trial import CodecTrial, try_codecs

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

_HOMES = {
    "Buffer": "container",
    "CodecTrial": "trial",
    "Decoded": "codec",
    "Diff": "diff",
    "Distance": "distance",
    "HeadMap": "maps",
    "Healthy": "diagnostics",
    "Inspection": "diagnostics",
    "LayerMotion": "motion",
    "Memory": "memory",
    "Metric": "distance",
    "Motion": "motion",
    "Parts": "parts",
    "RWKVState": "state",
    "Reader": "distance",
    "ScaleCheck": "scale",
    "StateLayout": "layout",
    "TensorHealth": "diagnostics",
    "TensorSpec": "layout",
    "Version": "layout",
    "blend": "algebra",
    "blend_many": "algebra",
    "calibrate": "diagnostics",
    "check_scale": "scale",
    "decay": "algebra",
    "decode": "codec",
    "diff": "diff",
    "difference_map": "maps",
    "distance": "distance",
    "dtype_name": "layout",
    "encode": "codec",
    "encode_parts": "codec",
    "export_tensors": "interchange",
    "head_maps": "maps",
    "import_tensors": "interchange",
    "inspect": "diagnostics",
    "lossy": "codec",
    "memory": "memory",
    "motion": "motion",
    "renormalise": "algebra",
    "require_finite": "state",
    "try_codecs": "trial",
    "zero_state": "state",
}


def __getattr__(name: str) -> Any:
    """Imports a name from the module that holds it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """This package: a submodule that is imported does not take the place of a name above."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
