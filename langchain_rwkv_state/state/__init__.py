"""States as values: what they are made of, where they come from, and how they become bytes."""

from langchain_rwkv_state.state.codec import Decoded, decode, encode
from langchain_rwkv_state.state.derivation import (
    ZERO_ROOT,
    Derivation,
    is_reference,
    reference,
)
from langchain_rwkv_state.state.fingerprint import Fingerprint
from langchain_rwkv_state.state.layout import StateLayout, TensorSpec, Version, dtype_name
from langchain_rwkv_state.state.state import RWKVState, zero_state

__all__ = [
    "ZERO_ROOT",
    "Decoded",
    "Derivation",
    "Fingerprint",
    "RWKVState",
    "StateLayout",
    "TensorSpec",
    "Version",
    "decode",
    "dtype_name",
    "encode",
    "is_reference",
    "reference",
    "zero_state",
]
