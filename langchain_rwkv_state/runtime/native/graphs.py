"""Records the plain pass for one token in each of B slots as a CUDA graph, and replays it.

On a card the pass is hundreds of small kernels, and starting them one by one takes longer than they
run; a CUDA graph starts them all at once. One is recorded for each power of two of slots, and what
a step lacks to that is filled with tokens read into a spare slot that nobody has. Recording itself
has not yet run on a card. A graph holds addresses: inputs are copied into the same tensors at every
step, and the states' arrays must be those of the recording.

B slots, D width, V vocabulary size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from langchain_rwkv_state.runtime.native.arrays import StateArrays
from langchain_rwkv_state.runtime.native.recurrence import Places

logger = logging.getLogger(__name__)

Pass: TypeAlias = Callable[[Tensor, Places, StateArrays], Tensor]
"""`PlainPass.run`."""

Work: TypeAlias = Callable[[], Tensor]
"""Reads and writes the same tensors at every call, and returns one."""

Capture: TypeAlias = Callable[[Work], Work]
"""Takes some work, may do it a few times, and returns what does the same again."""

WARM_UPS = 2
"""Runs before a recording, in which libraries take their workspace and kernels are compiled."""


def captures(device: torch.device) -> Capture | None:
    """Returns how passes are recorded on a device, ``None`` where they are not."""
    return _Graphs(device) if device.type == "cuda" else None


class Decode:
    """Steps of many slots of the same arrays. One thread uses it at a time.

    Args:
        run: The pass.
        capture: How it is recorded.
    """

    def __init__(self, run: Pass, capture: Capture) -> None:
        self._run = run
        self._capture = capture
        self._recorded: dict[int, _Recorded] = {}
        self._failed = False

    def __call__(self, x: Tensor, slots: Sequence[int], arrays: StateArrays) -> Tensor:
        """Reads one token into each slot.

        Args:
            x: The tokens' embeddings, ``[B, D]``, on the CPU.
            slots: Where each is read into.
            arrays: The states, always the same; with a spare slot.

        Returns:
            Logits ``[B, V]``, valid until the next call.
        """
        count, size = len(slots), padded(len(slots))
        if self._failed:
            return self._eager(x, slots, arrays)
        if size not in self._recorded:
            try:
                self._recorded[size] = self._record(size, x, arrays)
            except RuntimeError as error:
                logger.warning("Decoding is not recorded as a CUDA graph: %s", error)
                self._failed = True
                return self._eager(x, slots, arrays)
        step = self._recorded[size]
        step.x[:count].copy_(x)
        step.slot.copy_(torch.tensor([*slots, *[_spare(arrays)] * (size - count)]))
        return step.replay()[:count]

    def _eager(self, x: Tensor, slots: Sequence[int], arrays: StateArrays) -> Tensor:
        device = arrays.wkv.device
        slot = torch.tensor(slots, device=device)
        return self._run(x.to(device), Places.of_each(slot), arrays)

    def _record(self, size: int, x: Tensor, arrays: StateArrays) -> _Recorded:
        """Records a step; until slots are named, all of its tokens go into the spare one."""
        device = arrays.wkv.device
        rows = torch.zeros(size, x.shape[1], dtype=x.dtype, device=device)
        slot = torch.full((size,), _spare(arrays), device=device)
        places = Places.of_each(slot)
        return _Recorded(rows, slot, places, self._capture(lambda: self._run(rows, places, arrays)))


@dataclass(frozen=True)
class _Recorded:
    """A recorded step and the tensors that it reads.

    Attributes:
        x: Embeddings, ``[size, D]``.
        slot: Slots, ``[size]``.
        places: Made of `slot`; kept for its tensors' addresses alone.
        replay: Reads both, and returns the logits.
    """

    x: Tensor
    slot: Tensor
    places: Places
    replay: Work


def padded(count: int) -> int:
    """Returns the least power of two that is no less.

    Example:
        >>> [padded(count) for count in (1, 2, 3, 8, 9)]
        [1, 2, 4, 8, 16]
    """
    return 1 << (count - 1).bit_length()


def _spare(arrays: StateArrays) -> int:
    if arrays.spare is None:
        raise ValueError("Recorded steps need arrays with a spare slot.")
    return arrays.spare


class _Graphs:
    """Records CUDA graphs, which share the memory of what lies between their input and output.

    They may, since one thread replays one after another and takes the output before the next.

    Args:
        device: Where.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, work: Work) -> Work:
        with torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    work()
            here.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the card meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = work()
        self._pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay
