"""Makes states, turns and a clock for tests of stores, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from langchain_rwkv_state.state import Derivation, RWKVState, StateLayout
from langchain_rwkv_state.store import StateStore

DAY = 86400.0
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
        """Lets time pass."""
        self.seconds += seconds


def turns(store: StateStore, session: str, count: int, start: int = 0) -> list[str]:
    """Commits turns 1 to `count` to a session; returns all their references."""
    refs: list[str] = []
    head = store.head(session)
    for number in range(start, start + count):
        ref = store.stage(random_state([*session.encode(), *range(number + 1)]), parent=head)
        store.commit(session, ref, head)
        refs.append(ref)
        head = ref
    return refs


class Reader:
    """A `Runtime` whose states depend on the tokens alone, and which counts what it reads."""

    vocab_size = 256

    def __init__(self, fingerprint: str = "v7-one/fp32/tok/chat") -> None:
        self.fingerprint = fingerprint
        self.tokens_read = 0

    @property
    def layout(self) -> StateLayout:
        """As of a runtime."""
        return random_state([]).layout

    def zero_state(self) -> RWKVState:
        """As of a runtime."""
        return random_state([], fingerprint=self.fingerprint)

    def read(self, tokens: list[int]) -> RWKVState:
        """Reads tokens from zero."""
        state = self.zero_state()
        for token in tokens:
            _, state = self.forward([token], state)
        return state

    def forward(self, tokens: Any, state: Any) -> Any:
        """As of a runtime."""
        self.tokens_read += len(tokens)
        for token in tokens:
            tensors = {name: state[name] * 0.5 + token for name in state}
            state = state.advanced(tensors, [token])
        return torch.zeros(self.vocab_size), state

    def forward_batch(self, tokens: Any, states: Any) -> Any:
        """Nobody asks for it."""
        raise NotImplementedError

    def close(self) -> None:
        """There is nothing to free."""


def chat(
    store: StateStore, runtime: Reader, session: str, count: int, said: list[int] | None = None
) -> tuple[list[str], list[list[int]]]:
    """Commits turns of two staged steps each; returns references and all that was said by then."""
    tokens = list(said or [])
    head: Any = store.head(session)
    state = store.get(head) if head else runtime.zero_state()
    refs: list[str] = []
    texts: list[list[int]] = []
    for number in range(count):
        at: Any = head
        for step in ([number % 200, 1], [2, 3]):
            _, state = runtime.forward(step, state)
            at = store.stage(state, parent=at, tokens=step)
            tokens += step
        store.commit(session, at, head)
        head = at
        refs.append(head)
        texts.append(list(tokens))
    return refs, texts
