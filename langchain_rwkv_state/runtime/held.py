"""Says what the state in a slot stands for, while a runtime reads on from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from langchain_rwkv_state.state import Derivation, RWKVState, StateLayout


@dataclass
class Held:
    """What the state in a slot stands for.

    Attributes:
        derivation: At the last look.
        system_digest: Of the state that was put in.
        unnamed: Ids read since the last look.
    """

    derivation: Derivation
    system_digest: str | None
    unnamed: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, state: RWKVState) -> Held:
        """Returns what a state stands for."""
        return cls(state.derivation, state.system_digest)

    def copied(self) -> Held:
        """Returns the same for a copy of the state."""
        return replace(self, unnamed=[*self.unnamed])

    def read(self, ids: Sequence[int]) -> None:
        """Takes note of ids that were read."""
        self.unnamed += ids

    def state(self, layout: StateLayout, tensors: Sequence[torch.Tensor]) -> RWKVState:
        """Returns the state, given copies of its tensors in the layout's order."""
        self.derivation, self.unnamed = self.derivation.read(self.unnamed), []
        names = (spec.name for spec in layout.specs)
        named = dict(zip(names, tensors, strict=True))
        return RWKVState(layout, named, self.derivation, system_digest=self.system_digest)
