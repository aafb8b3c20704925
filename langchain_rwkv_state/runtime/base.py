"""Defines the runtime port: tokens and a state in, next-token logits and a new state out.

Nothing above this port knows about files, strategies, devices or environment flags. The easy
mistake of an adapter is to change the state it was handed: a `Runtime` never does, on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from langchain_rwkv_state.state import RWKVState, StateLayout


@dataclass(frozen=True)
class Budgets:
    """How much a device is best given at once; a runtime may offer its own as ``budgets``.

    Attributes:
        prefill_chunk: Ids of prompts in a step in which nobody decodes.
        prefill_budget: The same beside others that decode.
        most_rows: Ids in a pass at most.
        grows: Whether slots are opened as they are needed; else all of them at once.
    """

    prefill_chunk: int = 256
    prefill_budget: int = 64
    most_rows: int = 512
    grows: bool = True


def budgets_of(runtime: object) -> Budgets:
    """Returns the own budgets of a runtime, or of a model, or those of a CPU where it has none."""
    found: Budgets = getattr(runtime, "budgets", Budgets())
    return found


@runtime_checkable
class Runtime(Protocol):
    """One loaded RWKV model.

    Glossary: V vocabulary size, B batch size.
    """

    @property
    def layout(self) -> StateLayout:
        """Names, shapes and dtypes of the model's states."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity of weights, compute dtype, tokenizer and template (see `Fingerprint`)."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of logits, V."""
        ...

    def zero_state(self) -> RWKVState:
        """Returns the state of a model that has read nothing."""
        ...

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
        """
        ...

    def forward_batch(
        self, tokens: Sequence[Sequence[int]], states: Sequence[RWKVState]
    ) -> tuple[torch.Tensor, list[RWKVState]]:
        """Reads B sequences of any lengths, each from its own state.

        Returns:
            Logits ``[B, V]`` (fp32, on the CPU) and the B new states.

        Raises:
            ValueError: The numbers of sequences and states differ, or as `forward`.
            StateMismatch: As `forward`.
        """
        ...

    def close(self) -> None:
        """Gives back this user's hold on the weights; the last one frees them."""
        ...
