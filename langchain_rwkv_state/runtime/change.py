"""Defines the port by which a model's weights are changed between the file and a runtime.

A change is a value: two equal ones of one file are one loaded model, and whatever it changes
becomes part of the model's fingerprint, so that no state ever passes from the changed model to the
plain one. The tensors it is handed are the loaded ones: it returns new ones and writes into none.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Protocol

import torch

from langchain_rwkv_state.runtime.checkpoint import Checkpoint


class Change(Hashable, Protocol):
    """A change of a checkpoint's tensors before a runtime takes them."""

    @property
    def name(self) -> str:
        """What a fingerprint calls it, without slashes, such as ``clamp(-8,-0.1)``."""
        ...

    def of(
        self, tensors: Mapping[str, torch.Tensor], checkpoint: Checkpoint
    ) -> dict[str, torch.Tensor]:
        """Returns the changed tensors by name, none where nothing changes.

        Args:
            tensors: The checkpoint's; left as they are.
            checkpoint: What they are.

        Raises:
            ValueError: The change makes no sense for such a model.
        """
        ...
