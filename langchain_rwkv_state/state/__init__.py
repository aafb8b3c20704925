"""States as values: what they are made of, where they come from, and how they become bytes."""

from langchain_rwkv_state.state.algebra import blend, blend_many, decay, renormalise
from langchain_rwkv_state.state.codec import (
    Decoded,
    decode,
    encode,
    encode_parts,
    lossy,
    require_codec,
)
from langchain_rwkv_state.state.container import Buffer
from langchain_rwkv_state.state.derivation import (
    ZERO_ROOT,
    Derivation,
    is_reference,
    reference,
)
from langchain_rwkv_state.state.diagnostics import (
    Healthy,
    Inspection,
    TensorHealth,
    calibrate,
    inspect,
)
from langchain_rwkv_state.state.diff import Diff, diff
from langchain_rwkv_state.state.distance import Distance, Metric, Reader, distance
from langchain_rwkv_state.state.fingerprint import Fingerprint
from langchain_rwkv_state.state.interchange import export_tensors, import_tensors
from langchain_rwkv_state.state.layout import StateLayout, TensorSpec, Version, dtype_name
from langchain_rwkv_state.state.maps import HeadMap, difference_map, head_maps
from langchain_rwkv_state.state.memory import Memory, memory
from langchain_rwkv_state.state.motion import LayerMotion, Motion, motion
from langchain_rwkv_state.state.packing import CODECS, LOSSY, CodecName
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
