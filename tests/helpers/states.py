"""Small random states for tests, and a clock that tests can set."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from langchain_rwkv_state.state import Derivation, RWKVState, StateLayout
from langchain_rwkv_state.store import StateStore

LAYOUT = StateLayout.of(7, n_layer=2, n_embd=64, head_size=64)


def random_state(
    tokens: Sequence[int], *, layout: StateLayout = LAYOUT, fingerprint: str = "model"
) -> RWKVState:
    """Returns a state as if a model had read `tokens`: the same numbers for the same tokens."""
    derivation = Derivation(fingerprint).read(tokens)
    generator = torch.Generator().manual_seed(int(derivation.token_hash[:8], 16))
    tensors = {
        spec.name: torch.randn(spec.shape, generator=generator).to(spec.dtype)
        for spec in layout.specs
    }
    return RWKVState(layout, tensors, derivation)


def head_of(store: StateStore, session: str) -> RWKVState:
    """Returns the state of a session that has one."""
    head = store.head(session)
    assert head is not None
    return store.get(head)


class SetClock:
    """A clock that stands still until it is set."""

    def __init__(self, seconds: float = 1_000_000.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds
