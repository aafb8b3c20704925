"""Copies single states into cells and out of them, beside the card's work.

Copies go through pinned memory on a stream of their own, each after the work that was given to the
card before it. Of the work given later, only that on the same cells waits for it, if `settle` says
so. Not yet run on a card.

L layers, C cells, D width, H heads, N head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from langchain_rwkv_state.runtime.cuda.cells import Cells
from langchain_rwkv_state.runtime.cuda.staging import Buffer, Ring
from langchain_rwkv_state.state.container import as_bytes

AT_ONCE = 4
"""Copies of states under way; more wait for the first ones. Each takes a state's pinned memory."""


class Transfers:
    """Moves states between host and card. One thread uses it at a time.

    Args:
        cells: Where the states live on the card.
    """

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._device = cells.wkv.device
        self._arrays = (cells.att_x, cells.wkv, cells.ffn_x)
        self._ring = Ring(cells.layout.nbytes, depth=AT_ONCE)
        self._aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch
        # By cell: the copy into it, the copy out of it, and the work that wrote it last.
        self._coming: dict[int, torch.cuda.Event] = {}
        self._going: dict[int, torch.cuda.Event] = {}
        self._written: dict[int, torch.cuda.Event] = {}
        for array in self._arrays:
            # Their memory is not to serve others while a copy is on its way.
            array.record_stream(self._aside)

    def put(self, cell: int, tensors: Sequence[Tensor]) -> None:
        """Begins to copy a state's tensors, in the layout's order, into a cell.

        They may change as soon as this returns. Work on the cell must `settle` it first.
        """
        buffer = self._ring.next()
        staged = self._parts(buffer)
        for number, part in enumerate(staged):
            for kept, tensor in zip(part, tensors[number::3], strict=True):
                as_bytes(kept)[...] = as_bytes(tensor.contiguous())
        self._after_work()
        with torch.cuda.stream(self._aside):
            for array, part in zip(self._arrays, staged, strict=True):
                # The card itself makes fp16 of fp32, and spreads a state over the layers.
                array[:, cell] = part.to(self._device, non_blocking=True)
            done = self._coming[cell] = self._aside.record_event()
        buffer.used(done)

    def begin_get(self, cell: int) -> Callable[[], list[Tensor]]:
        """Begins to copy a cell's state out, as it is behind the work given so far.

        Where that work `wrote` it, the copy waits for that and for nothing given since.

        Returns:
            A function that waits for this copy alone, and returns the state's tensors in the
            layout's order, in ordinary memory: states are kept for long, and pinned memory is
            scarce. Any thread may call it. Work that writes to the cell must `settle` it first.
        """
        buffer = self._ring.next()
        staged = self._parts(buffer)
        written = self._written.get(cell)
        if written is None:
            self._after_work()
        else:
            self._aside.wait_event(written)
        with torch.cuda.stream(self._aside):
            for array, part in zip(self._arrays, staged, strict=True):
                part.copy_(array[:, cell].to(part.dtype).contiguous(), non_blocking=True)
            done = self._going[cell] = self._aside.record_event()

        def taken() -> list[Tensor]:
            return [_copied(part) for layer in zip(*staged, strict=True) for part in layer]

        return buffer.comes(done, taken)

    def settle(self, cells: Iterable[int], *, read: Iterable[int] = ()) -> None:
        """Makes work that is given to the card after this wait for copies.

        Args:
            cells: Cells that the work may write.
            read: Cells that it only reads, beside which they may still be copied out.
        """
        written = list(cells)
        waited = [self._going.pop(cell, None) for cell in written]
        waited += [self._coming.pop(cell, None) for cell in (*written, *read)]
        for event in waited:
            if event is not None:
                event.wait(torch.cuda.current_stream(self._device))

    def wrote(self, cells: Iterable[int]) -> None:
        """Notes that these cells' states stand behind the work given so far."""
        event = torch.cuda.current_stream(self._device).record_event()
        self._written.update(dict.fromkeys(cells, event))

    def _after_work(self) -> None:
        self._aside.wait_stream(torch.cuda.current_stream(self._device))

    def _parts(self, buffer: Buffer) -> list[Tensor]:
        """Returns a buffer as ``[L, D]``, ``[L, H, N, N]`` and ``[L, D]``, in the host's dtypes."""
        parts, start = [], 0
        for spec in self._cells.layout.specs[:3]:
            end = start + self._cells.layout.n_layer * spec.nbytes
            parts.append(buffer.bytes[start:end].view(spec.dtype).view(-1, *spec.shape))
            start = end
        return parts


def _copied(tensor: Tensor) -> Tensor:
    copy = torch.empty(tensor.shape, dtype=tensor.dtype)
    as_bytes(copy)[...] = as_bytes(tensor)
    return copy
