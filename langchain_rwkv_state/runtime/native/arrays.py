"""Keeps the states of many conversations as three tensors, one row a slot.

`StateArrays` holds them and copies single states in and out. Who reads into which slot, and what a
state stands for, is not its business. What is taken out of a slot is a finished copy, never a view:
it stays what it was when the slot moves on.

L layers, S slots, D width, H heads, N head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from langchain_rwkv_state.runtime.native.large_pages import room
from langchain_rwkv_state.state import StateLayout


class StateArrays:
    """States of RWKV-7 in slots.

    Args:
        layout: Of one state.
        count: Number of slots, S.
        device: Where they live.

    Attributes:
        att_x: The time-mix's last inputs, ``[L, S, D]``, in the compute dtype.
        wkv: The WKV states, ``[L, S, H, N, N]`` (values by keys), fp32.
        ffn_x: The channel-mix's last inputs, ``[L, S, D]``, in the compute dtype.
        count: Number of slots, S.
    """

    def __init__(self, layout: StateLayout, count: int, device: torch.device) -> None:
        layers, heads, size = layout.n_layer, layout.n_head, layout.head_size
        shift = layout.specs[0].dtype
        self.count = count

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            if device.type == "cpu":
                return room(shape, dtype, zero=True)
            return torch.zeros(shape, dtype=dtype, device=device)

        self.att_x = zeros(layers, count, layout.n_embd, dtype=shift)
        self.ffn_x = zeros(layers, count, layout.n_embd, dtype=shift)
        self.wkv = zeros(layers, count, heads, size, size)
        self._scratch: dict[str, torch.Tensor] = {}

    def scratch(self, name: str, count: int) -> torch.Tensor:
        """Returns room on the CPU for `count` fp32 numbers, the same room at each call.

        New memory for every pass would cost a page fault for each 4 kB of it.
        """
        kept = self._scratch.get(name)
        if kept is None or len(kept) < count:
            kept = self._scratch[name] = room((count,), torch.float32)
        return kept[:count]

    def put(self, slot: int, tensors: Sequence[torch.Tensor]) -> None:
        """Copies a state's tensors, in the layout's order, into a slot."""
        for layer in range(len(self.wkv)):
            att_x, wkv, ffn_x = tensors[3 * layer : 3 * layer + 3]
            _copy(self.att_x[layer, slot], att_x)
            _copy(self.wkv[layer, slot], wkv)
            _copy(self.ffn_x[layer, slot], ffn_x)

    def get(self, slot: int) -> list[torch.Tensor]:
        """Returns copies of a slot's tensors in the layout's order, on the CPU.

        They are handed to other threads, and kept for long: the device is for states at work.
        """
        taken = []
        for layer in range(len(self.wkv)):
            for array in (self.att_x, self.wkv, self.ffn_x):
                place = array[layer, slot]
                kept = torch.empty(place.shape, dtype=place.dtype)
                _copy(kept, place)
                taken.append(kept)
        return taken

    def copy(self, source: int, target: int) -> None:
        """Copies one slot's tensors into another."""
        for array in (self.att_x, self.wkv, self.ffn_x):
            for layer in array:
                _copy(layer[target], layer[source])


def _copy(to: torch.Tensor, source: torch.Tensor) -> None:
    """Copies numbers; on the CPU through bytes, which starts no threads (see `state.as_bytes`)."""
    if to.is_cpu and source.is_cpu and source.is_contiguous():
        to.view(torch.uint8).numpy()[...] = source.view(torch.uint8).numpy()
    else:
        to.copy_(source)
