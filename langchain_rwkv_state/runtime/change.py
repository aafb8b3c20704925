"""Changes of a model's weights on their way from the file into a runtime: the port.

A change is a value: two equal ones of one file are one loaded model, and whatever it changes
becomes part of the model's fingerprint, so that no state ever passes from the changed model to the
plain one. The easy mistake is to write into the tensors that it is handed: they are views of the
mapped file.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Protocol

import torch

from langchain_rwkv_state.runtime.checkpoint import Checkpoint


class Change(Hashable, Protocol):
    """What is done to a checkpoint's tensors before a runtime takes them."""

    @property
    def name(self) -> str:
        """What a fingerprint calls it, without slashes, such as ``clamp(-8,-0.1)``."""
        ...

    def of(
        self, tensors: Mapping[str, torch.Tensor], checkpoint: Checkpoint
    ) -> dict[str, torch.Tensor]:
        """Returns those tensors that become others, by name: none where nothing changes.

        Args:
            tensors: The checkpoint's; left as they are.
            checkpoint: What they are.

        Raises:
            ValueError: The change makes no sense for such a model.
        """
        ...
