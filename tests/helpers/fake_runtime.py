"""Stands in for a runtime: its state is a hash of what it read, its answers can be scripted.

For tests of what stands above the port. What is said next depends on the state alone, as with a
model, so a script holds for one whole history and not for a position.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch

from langchain_rwkv_state.runtime.base import Budgets
from langchain_rwkv_state.state import Fingerprint, RWKVState, StateLayout, zero_state
from tests.helpers.ahead_slots import AheadSlots

_PRIME = 16_777_213  # the largest prime below 2**24: fp32 holds such numbers exactly

ALL_AHEAD = os.environ.get("TESTS_RUN_AHEAD") == "1"
"""Whether ids are chosen a step ahead in all tests, for once in a while."""
EACH_WAY = pytest.mark.parametrize(
    "runtime", [False, True], ids=["by steps", "ahead"], indirect=True
)
"""For tests that run twice, the second time a step ahead; the fixture makes the runtime."""


class FakeRuntime:
    """A deterministic `Runtime`.

    After what was scripted, the scripted id gets by far the highest logit; elsewhere the logits
    are random numbers seeded by the state.

    Args:
        vocab_size: Number of logits.
        before_forward: Called on the worker with the ids of each call.
        ahead: Whether ids are chosen a step ahead, as on a card.

    Attributes:
        calls: The ids of every sequence read, in order.
        batches: The sequences of every call of `forward_batch`, in order.
        threads: Names of the threads that called.
    """

    def __init__(
        self,
        vocab_size: int = 512,
        *,
        before_forward: Callable[[Sequence[int]], None] | None = None,
        ahead: bool = ALL_AHEAD,
    ) -> None:
        self._layout = StateLayout.of(7, n_layer=1, n_embd=2, head_size=1)
        self._vocab_size = vocab_size
        self._script: dict[tuple[float, float], int] = {}
        self.before_forward = before_forward
        self.calls: list[tuple[int, ...]] = []
        self.batches: list[list[tuple[int, ...]]] = []
        self.threads: set[str] = set()
        self.overrides: dict[tuple[float, float], torch.Tensor] = {}
        self.closed = False
        if ahead:
            self.slots = partial(AheadSlots, self)
            self.budgets = Budgets(grows=False)

    @property
    def layout(self) -> StateLayout:
        """Names, shapes and dtypes of the states."""
        return self._layout

    @property
    def fingerprint(self) -> str:
        """Identity of the fake."""
        return str(Fingerprint("fake", "fp32"))

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self._vocab_size

    @property
    def tokens_read(self) -> int:
        """Number of ids read in all calls."""
        return sum(map(len, self.calls))

    def zero_state(self) -> RWKVState:
        """Returns the state that has read nothing."""
        return zero_state(self._layout, self.fingerprint)

    def script(self, history: Sequence[int], answer: Sequence[int]) -> None:
        """Makes the model say `answer`, id by id, after it read `history` from zero."""
        key = _read((0.0, 0.0), history)
        for token in answer:
            self._script[key] = token
            key = _read(key, (token,))

    def script_logits(self, history: Sequence[int], logits: torch.Tensor) -> None:
        """Makes the model give `logits` after it read `history` from zero."""
        self.overrides[_read((0.0, 0.0), history)] = logits

    def forward(self, tokens: Sequence[int], state: RWKVState) -> tuple[torch.Tensor, RWKVState]:
        """Reads tokens from a state."""
        if not tokens or not all(0 <= token < self._vocab_size for token in tokens):
            raise ValueError(f"tokens out of range: {tokens}")
        self.threads.add(threading.current_thread().name)
        self.calls.append(tuple(tokens))
        if self.before_forward is not None:
            self.before_forward(tokens)
        first, second = state.shared("blocks.0.att_x_prev").tolist()
        key = _read((first, second), tokens)
        tensors = {name: state[name] for name in state}
        tensors["blocks.0.att_x_prev"] = torch.tensor(key)
        return self._logits(key), state.advanced(tensors, tokens)

    def forward_batch(
        self, tokens: Sequence[Sequence[int]], states: Sequence[RWKVState]
    ) -> tuple[torch.Tensor, list[RWKVState]]:
        """Reads several sequences, one by one."""
        self.batches.append([tuple(ids) for ids in tokens])
        results = [self.forward(ids, state) for ids, state in zip(tokens, states, strict=True)]
        return torch.stack([logits for logits, _ in results]), [state for _, state in results]

    def close(self) -> None:
        """Notes that it was closed."""
        self.closed = True

    def _logits(self, key: tuple[float, float]) -> torch.Tensor:
        if key in self.overrides:
            return self.overrides[key].clone()
        generator = torch.Generator().manual_seed(int(key[0]) * _PRIME + int(key[1]))
        logits = torch.randn(self._vocab_size, generator=generator)
        if key in self._script:
            logits[self._script[key]] = 50.0
        return logits


def _read(key: tuple[float, float], tokens: Sequence[int]) -> tuple[float, float]:
    first, second = map(int, key)
    for token in tokens:
        first = (first * 31 + token + 1) % _PRIME
        second = (second * 131 + token * 7 + 3) % _PRIME
    return float(first), float(second)
