"""The states of many conversations as three tensors, one row a slot.

`StateArrays` holds them and copies single states in and out; `CudaArrays` does so through pinned
memory, while the card computes. Who reads into which slot, and what a state stands for, is not
their business. The easy mistake is to hand out a view of a slot, or a copy that is still on its
way: what is taken out must stay what it was when the slot moves on.

L layers, S slots, D width, H heads, N head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from langchain_rwkv_state.runtime.native.large_pages import room
from langchain_rwkv_state.state import StateLayout


class StateArrays:
    """States of RWKV-7 in slots.

    Args:
        layout: Of one state.
        count: Number of slots, S.
        device: Where they live.
        spare: Whether there is to be one slot more that belongs to nobody.

    Attributes:
        att_x: The time-mix's last inputs, ``[L, S, D]``, in the compute dtype.
        wkv: The WKV states, ``[L, S, H, N, N]`` (values by keys), fp32.
        ffn_x: The channel-mix's last inputs, ``[L, S, D]``, in the compute dtype.
        count: Number of slots, S, the spare one apart.
        spare: Number of the spare slot, ``None`` where there is none.
    """

    def __init__(
        self, layout: StateLayout, count: int, device: torch.device, *, spare: bool = False
    ) -> None:
        layers, heads, size = layout.n_layer, layout.n_head, layout.head_size
        shift = layout.specs[0].dtype
        self.count = count
        self.spare = count if spare else None
        rows = count + spare

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            if device.type == "cpu":
                return room(shape, dtype, zero=True)
            return torch.zeros(shape, dtype=dtype, device=device)

        self.att_x = zeros(layers, rows, layout.n_embd, dtype=shift)
        self.ffn_x = zeros(layers, rows, layout.n_embd, dtype=shift)
        self.wkv = zeros(layers, rows, heads, size, size)
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
        return self.begin_get(slot)()

    def begin_get(self, slot: int) -> Callable[[], list[torch.Tensor]]:
        """Begins to copy a slot's tensors; the function returned gives them when they are there.

        The slot may be read into meanwhile, after `settle`: the copies are of now.
        """
        taken = []
        for layer in range(len(self.wkv)):
            for array in (self.att_x, self.wkv, self.ffn_x):
                place = array[layer, slot]
                kept = torch.empty(place.shape, dtype=place.dtype)
                _copy(kept, place)
                taken.append(kept)
        return lambda: taken

    def settle(self, slots: Iterable[int]) -> None:
        """Makes work that is given to the device after this wait for these slots' copies."""


class CudaArrays(StateArrays):
    """States on a CUDA card, copied in and out beside its work. Not yet run on a card.

    Copies go through pinned memory on a stream of their own, each after the work that was given to
    the card before it; of the work given later, only that on the same slots waits for it. PyTorch
    keeps pinned memory until the copies that use it are done.

    Args:
        layout: Of one state.
        count: Number of slots, S.
        device: Where they live.
        spare: Whether there is to be one slot more that belongs to nobody.
    """

    def __init__(
        self, layout: StateLayout, count: int, device: torch.device, *, spare: bool = False
    ) -> None:
        super().__init__(layout, count, device, spare=spare)
        self._aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch
        self._moving: dict[int, torch.cuda.Event] = {}
        for array in (self.att_x, self.wkv, self.ffn_x):
            # Their memory is not to serve others while a copy is on its way.
            array.record_stream(self._aside)

    def put(self, slot: int, tensors: Sequence[torch.Tensor]) -> None:
        """Copies a state's tensors, in the layout's order, into a slot, without waiting."""
        staged = []
        for number, array in enumerate((self.att_x, self.wkv, self.ffn_x)):
            layers = pinned(array[:, slot])
            for kept, tensor in zip(layers, tensors[number::3], strict=True):
                _copy(kept, tensor)
            staged.append((array, layers))
        self._after_work()
        with torch.cuda.stream(self._aside):
            for array, layers in staged:
                array[:, slot] = layers.to(array.device, non_blocking=True)
            self._moving[slot] = self._aside.record_event()

    def begin_get(self, slot: int) -> Callable[[], list[torch.Tensor]]:
        """Begins to copy a slot's tensors; the function returned waits for them, and them alone."""
        self._after_work()
        staged = []
        with torch.cuda.stream(self._aside):
            for array in (self.att_x, self.wkv, self.ffn_x):
                place = array[:, slot].contiguous()
                staged.append(pinned(place).copy_(place, non_blocking=True))
            done = self._moving[slot] = self._aside.record_event()

        def finished() -> list[torch.Tensor]:
            done.synchronize()
            # Into ordinary memory: states are kept for long, and pinned memory is scarce.
            return [part.clone() for layer in zip(*staged, strict=True) for part in layer]

        return finished

    def settle(self, slots: Iterable[int]) -> None:
        """Makes work that is given to the card after this wait for these slots' copies."""
        for slot in slots:
            event = self._moving.pop(slot, None)
            if event is not None:
                event.wait(torch.cuda.current_stream(self.wkv.device))

    def _after_work(self) -> None:
        self._aside.wait_stream(torch.cuda.current_stream(self.wkv.device))


def pinned(like: torch.Tensor) -> torch.Tensor:
    """Returns room in pinned memory for a tensor."""
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)


def _copy(to: torch.Tensor, source: torch.Tensor) -> None:
    """Copies numbers; on the CPU through bytes, which starts no threads (see `state.as_bytes`)."""
    if to.is_cpu and source.is_cpu and source.is_contiguous():
        to.view(torch.uint8).numpy()[...] = source.view(torch.uint8).numpy()
    else:
        to.copy_(source)
