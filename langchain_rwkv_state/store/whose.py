"""Which model a state belongs to, in a form that people read.

A fingerprint is for comparing; what is made of it here is for tables and looks alone. The easy
mistake is to compare by it: it leaves out tokenizer, template and most of the digest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_rwkv_state import demo
from langchain_rwkv_state.errors import StateCorrupt, StateMismatch, StoreError
from langchain_rwkv_state.state import Fingerprint
from langchain_rwkv_state.state.header import START_BYTES, Named, model_named
from langchain_rwkv_state.store.backend import Backend
from langchain_rwkv_state.store.rows import StateRow

if TYPE_CHECKING:
    from langchain_rwkv_state.state import RWKVState

_DIGITS = 8


def model_words(named: Named) -> str:
    """Returns version, size and a short name of a model.

    The built-in model has a name; of any other, the first digits of its digest tell it apart, and
    what was changed in it since it was read from its file.

    Example:
        >>> model_words(Named("rwkv7-0123456789abcdef+clamp(-8,-0.1)/fp32/-/-", 7, 24, 2048))
        'RWKV-7 24x2048 01234567+clamp(-8,-0.1)'
    """
    shape = f"RWKV-{named.version} {named.n_layer}x{named.n_embd}"
    try:
        weights = Fingerprint.parse(named.fingerprint).weights
    except StateMismatch:
        return f"{shape} {named.fingerprint:.{_DIGITS}}"
    whole, plus, change = weights.partition("+")
    name = "demo" if whole == demo.WEIGHTS else whole.rpartition("-")[2][:_DIGITS]
    return f"{shape} {name}{plus}{change}"


def model_named_by(state: RWKVState) -> Named:
    """Returns the model that a state is of."""
    layout = state.layout
    return Named(state.fingerprint, layout.version, layout.n_layer, layout.n_embd)


def model_of(backend: Backend, row: StateRow | None) -> Named | None:
    """Returns the model that a stored state says it is of; ``None`` where it cannot be asked.

    A state that was stored by an earlier release is asked by its file.
    """
    if row is None:
        return None
    if row.model is not None:
        return row.model
    try:
        start = backend.read_blob_start(row.blob, START_BYTES)
        return None if start is None else model_named(start)
    except (StateCorrupt, StoreError):
        return None  # whoever reads the state itself is told
