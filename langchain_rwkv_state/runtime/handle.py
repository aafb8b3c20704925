"""`RuntimeHandle` gives one user a loaded model as a `Runtime`, and gives it back at the end.

Many handles share one model; each has the identities of its own tokenizer and template, and gives
the model back when it is closed or collected. It does no arithmetic.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.base import Budgets, budgets_of
from langchain_rwkv_state.runtime.slots import (
    Slots,
    StateSlots,
    require_state,
)
from langchain_rwkv_state.state import Derivation, Fingerprint, RWKVState, StateLayout, zero_state


class Model(Protocol):
    """What an adapter loads: weights, and arithmetic on plain tensors."""

    layout: StateLayout
    weights: str
    compute: str
    vocab_size: int
    about: str

    def zero_tensors(self) -> Mapping[str, torch.Tensor]:
        """Returns those tensors of the first state that are not zero, by name."""
        ...

    def forward_batch(
        self, tokens: Sequence[list[int]], states: Sequence[Sequence[torch.Tensor]]
    ) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        """Reads sequences from the tensors of states, which stay as they are."""
        ...


@runtime_checkable
class BatchModel(Model, Protocol):
    """A model that advances many states in one pass."""

    def slots(self, handle: RuntimeHandle, count: int) -> Slots:
        """Returns room for `count` states, which belong to a handle's runtime."""
        ...


class RuntimeHandle:
    """A `Runtime` over a shared model. Safe to use from several threads at once.

    Args:
        model: The loaded model.
        give_back: Called once, when this handle is closed or collected.
        name: What the user asked for, for messages.
        tokenizer: Identity of the tokenizer, ``None`` where the caller deals in ids.
        template: Identity of the template, likewise.
        strategy: How it runs, such as ``native cpu fp32``.

    Example:
        >>> from langchain_rwkv_state.runtime import load_runtime
        >>> runtime = load_runtime("model.pth")  # doctest: +SKIP
        >>> logits, state = runtime.forward([1, 2, 3], runtime.zero_state())  # doctest: +SKIP
        >>> runtime.close()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Model,
        give_back: Callable[[], None],
        *,
        name: str,
        tokenizer: str | None = None,
        template: str | None = None,
        strategy: str = "",
    ) -> None:
        self._model: Model | None = model
        self._name = name
        self._layout = model.layout
        self._vocab_size = model.vocab_size
        self._about = model.about
        self._budgets = budgets_of(model)
        self._strategy = strategy
        identity = Fingerprint(model.weights, model.compute, tokenizer or "-", template or "-")
        self._fingerprint = str(identity)
        Fingerprint.parse(self._fingerprint)
        self._give_back = weakref.finalize(self, give_back)

    @property
    def layout(self) -> StateLayout:
        """Names, shapes and dtypes of the model's states."""
        return self._layout

    @property
    def fingerprint(self) -> str:
        """Identity of weights, compute dtype, tokenizer and template."""
        return self._fingerprint

    @property
    def vocab_size(self) -> int:
        """Number of logits, V."""
        return self._vocab_size

    @property
    def about(self) -> str:
        """What runs the model, in words."""
        return self._about

    @property
    def budgets(self) -> Budgets:
        """How much its device is best given at once."""
        return self._budgets

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What runs slower than it could: what and why, and behind the last colon what to do."""
        return tuple(getattr(self._model, "fallbacks", ()))

    @property
    def strategy(self) -> str:
        """How it runs, such as ``native cuda fp16`` or ``package cpu fp32``."""
        return self._strategy

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._model is None

    def __repr__(self) -> str:
        """Shows what was loaded."""
        state = ", closed" if self.closed else ""
        return f"RuntimeHandle({self._name!r}, {self._fingerprint!r}{state})"

    def zero_state(self) -> RWKVState:
        """Returns the state of a model that has read nothing.

        A checkpoint that brings a tuned start state starts from that.
        """
        state = zero_state(self._layout, self._fingerprint)
        tuned = self._open().zero_tensors()
        if not tuned:
            return state
        tensors = {name: state.shared(name) for name in state} | dict(tuned)
        return RWKVState(self._layout, tensors, Derivation(self._fingerprint))

    def forward(self, tokens: Sequence[int], state: RWKVState) -> tuple[torch.Tensor, RWKVState]:
        """Reads tokens from a state.

        Args:
            tokens: At least one token id, each in ``[0, V)``.
            state: A state of this model; it is left as it is, bit for bit.

        Returns:
            The logits after the last token (``[V]``, fp32, on the CPU) and the new state.

        Raises:
            ValueError: There are no tokens, or one is out of range.
            StateMismatch: The state belongs to other weights or another compute dtype.
            ModelLoadError: The handle was closed.
        """
        logits, states = self.forward_batch([tokens], [state])
        return logits[0], states[0]

    def forward_batch(
        self, tokens: Sequence[Sequence[int]], states: Sequence[RWKVState]
    ) -> tuple[torch.Tensor, list[RWKVState]]:
        """Reads B sequences of any lengths, each from its own state.

        Returns:
            Logits ``[B, V]`` (fp32, on the CPU) and the B new states.

        Raises:
            ValueError: The numbers of sequences and states differ, or as `forward`.
            StateMismatch: As `forward`; nothing was read then.
            ModelLoadError: The handle was closed.
        """
        if len(tokens) != len(states):
            raise ValueError(f"{len(tokens)} sequences were given with {len(states)} states.")
        model, rows = self._open(), [self.checked(row) for row in tokens]
        for state in states:
            self.require(state)
        if not rows:
            return torch.empty(0, self._vocab_size), []
        names = [spec.name for spec in self._layout.specs]
        given = [[state.shared(name) for name in names] for state in states]
        logits, taken = model.forward_batch(rows, given)
        return logits, [
            state.advanced(dict(zip(names, tensors, strict=True)), ids)
            for state, tensors, ids in zip(states, taken, rows, strict=True)
        ]

    def slots(self, count: int) -> Slots:
        """Returns room for `count` states that are advanced in place.

        Raises:
            ModelLoadError: The handle was closed.
        """
        model = self._open()
        if isinstance(model, BatchModel):
            return model.slots(self, count)
        return StateSlots(self, count)

    def close(self) -> None:
        """Gives back this user's hold on the weights; the last one frees them."""
        self._model = None
        self._give_back()

    def _open(self) -> Model:
        model = self._model
        if model is None:
            raise ModelLoadError(f"The model {self._name!r} was unloaded here: load it again.")
        return model

    def require_open(self) -> None:
        """Checks that the handle was not closed.

        Raises:
            ModelLoadError: It was.
        """
        self._open()

    def checked(self, tokens: Sequence[int]) -> list[int]:
        """Returns ids as a list.

        Raises:
            ValueError: There are none, or one is out of range.
        """
        ids = [operator.index(token) for token in tokens]
        if not ids:
            raise ValueError("There are no tokens to read: give at least one.")
        if min(ids) < 0 or max(ids) >= self._vocab_size:
            wrong = next(token for token in ids if not 0 <= token < self._vocab_size)
            raise ValueError(
                f"Token {wrong} is not in the model's vocabulary of {self._vocab_size}: "
                "use the tokenizer that belongs to the model."
            )
        return ids

    def require(self, state: RWKVState) -> None:
        """Checks that a state is one of this model.

        Raises:
            StateMismatch: It belongs to other weights or another compute dtype.
        """
        require_state(state, self._fingerprint, self._layout)
