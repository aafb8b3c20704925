"""The states of many conversations as three tensors, one row a slot.

`StateArrays` holds them and copies single states in and out; who reads into which slot, and what a
state stands for, is not its business. The easy mistake is to hand out a view of a slot: what is
taken out must stay what it was when the slot moves on.

L layers, S slots, D width, H heads, N head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

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
        self.att_x = torch.zeros(layers, count, layout.n_embd, dtype=shift, device=device)
        self.ffn_x = torch.zeros_like(self.att_x)
        self.wkv = torch.zeros(layers, count, heads, size, size, device=device)

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


def _copy(to: torch.Tensor, source: torch.Tensor) -> None:
    """Copies numbers; on the CPU through bytes, which starts no threads (see `state.as_bytes`)."""
    if to.is_cpu and source.is_cpu and source.is_contiguous():
        to.view(torch.uint8).numpy()[...] = source.view(torch.uint8).numpy()
    else:
        to.copy_(source)
