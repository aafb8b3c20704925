"""Making a state again from the token ids that a store with ``log="tokens"`` keeps.

It reads the tables and runs a model; it stores nothing. The easy mistake is to trust the tokens:
what they give is compared with the reference that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from langchain_rwkv_state.errors import StateCorrupt, StateMismatch, StateNotFound
from langchain_rwkv_state.state import Derivation, Fingerprint, reference
from langchain_rwkv_state.store.records import Origin, joined, unpack_tokens
from langchain_rwkv_state.store.tables import Tables

if TYPE_CHECKING:
    from langchain_rwkv_state.runtime.base import Runtime
    from langchain_rwkv_state.state import RWKVState

_CHUNK_TOKENS = 512  # bounds the memory of one forward pass


def rebuild(
    view: Tables, key: bytes, get: Callable[[str], RWKVState], ref: str, runtime: Runtime
) -> RWKVState:
    """Returns the state `ref`, or what `runtime` makes of its tokens.

    Raises:
        StateNotFound: No log entry with token ids leads to it.
        StateMismatch: The model has another tokenizer.
        StateCorrupt: The tokens lead elsewhere, as where a blend that it goes on from is no
            longer kept.
    """
    if view.lives(ref):
        state = get(ref)
        if same_model(state.fingerprint, runtime.fingerprint):
            return state
    path = view.path(ref)
    if not path:
        raise StateNotFound(
            f"No token ids of the state {ref} are kept: only a store with log='tokens' keeps "
            "them, from the turn on at which it was opened so."
        )
    last = path[-1][1]
    _require_tokenizer(last.fingerprint, runtime.fingerprint)
    if not same_model(last.fingerprint, runtime.fingerprint):
        return _from_zero(key, ref, path, runtime)
    state, origin = _nearest(view, get, path, runtime)
    state = _read(runtime, state, origin).with_system_digest(last.block)
    if reference(state.derivation, key) != ref:
        raise StateCorrupt(
            f"The token ids of the state {ref} lead to another state: it was not read from "
            "them alone, as after a blend or a decay, whose own state is no longer kept."
        )
    return state


def _nearest(
    view: Tables,
    get: Callable[[str], RWKVState],
    path: list[tuple[str, Origin]],
    runtime: Runtime,
) -> tuple[RWKVState, Origin]:
    """Returns the last state on the way that is kept, and the way on from there."""
    origin: Origin | None = None
    for _, step in reversed(path):
        origin = step if origin is None else joined(step, origin)
        if step.base is not None and view.lives(step.base):
            return get(step.base), origin
    if origin is None or origin.base is not None:
        raise StateNotFound(f"The token ids of {path[-1][0]} do not reach back to a state.")
    zero = runtime.zero_state()
    return zero.with_fingerprint(origin.fingerprint), origin


def _from_zero(key: bytes, ref: str, path: list[tuple[str, Origin]], runtime: Runtime) -> RWKVState:
    """Reads the whole way with another model, once its old name is known to be right."""
    origin = path[0][1]
    for _, step in path[1:]:
        origin = joined(origin, step)
    tokens = unpack_tokens(origin.tokens)
    expected = reference(Derivation(origin.fingerprint).read(tokens), key)
    if origin.base is not None or expected != ref:
        raise StateNotFound(
            f"The token ids of the state {ref} do not reach back to the zero state, so "
            "another model cannot read them."
        )
    return _read(runtime, runtime.zero_state(), origin).with_system_digest(origin.block)


def _read(runtime: Runtime, state: RWKVState, origin: Origin) -> RWKVState:
    return read_tokens(runtime, state, unpack_tokens(origin.tokens))


def read_tokens(runtime: Runtime, state: RWKVState, tokens: Sequence[int]) -> RWKVState:
    """Returns the state after more tokens, which may be many or none."""
    for start in range(0, len(tokens), _CHUNK_TOKENS):
        _, state = runtime.forward(tokens[start : start + _CHUNK_TOKENS], state)
    return state


def _parts(found: str, current: str) -> tuple[Fingerprint, Fingerprint] | None:
    try:
        return Fingerprint.parse(found), Fingerprint.parse(current)
    except StateMismatch:
        return None


def same_model(found: str, current: str) -> bool:
    """Says whether two fingerprints are of the same weights at the same precision."""
    parts = _parts(found, current)
    return found == current if parts is None else parts[0][:2] == parts[1][:2]


def same_tokenizer(found: str, current: str) -> bool:
    """Says whether ids mean the same under two fingerprints, as far as these tell."""
    parts = _parts(found, current)
    if parts is None or "-" in (parts[0].tokenizer, parts[1].tokenizer):
        return True
    return parts[0].tokenizer == parts[1].tokenizer


def _require_tokenizer(found: str, current: str) -> None:
    if not same_tokenizer(found, current):
        raise StateMismatch(
            f"The token ids were made by the tokenizer of {found!r}; {current!r} has another one, "
            "for which they mean other text."
        )
