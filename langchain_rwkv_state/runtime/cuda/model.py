"""Runs RWKV-7 on a CUDA card: weights there once, and room for many states beside them.

`CudaModel` chooses the kernels, and says what it had to do without (`fallbacks`). The room for
states is made when somebody opens slots, as much as the card has memory for, and stays when they
are closed: whoever comes next finds the steps recorded. What runs a step is `room.py`.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from langchain_rwkv_state.runtime.base import Budgets
from langchain_rwkv_state.runtime.checkpoint import Checkpoint
from langchain_rwkv_state.runtime.cuda import fallbacks, recordings
from langchain_rwkv_state.runtime.cuda.cells import Cells, cell_bytes
from langchain_rwkv_state.runtime.cuda.chosen import ChosenKernels
from langchain_rwkv_state.runtime.cuda.fused_pass import FusedPass
from langchain_rwkv_state.runtime.cuda.room import Job, Room
from langchain_rwkv_state.runtime.cuda.sampling import SamplerArrays
from langchain_rwkv_state.runtime.cuda.sizing import CELLS_A_SLOT, PassShape, slots_that_fit
from langchain_rwkv_state.runtime.cuda.slots import CudaSlots
from langchain_rwkv_state.runtime.native.weights import Weights
from langchain_rwkv_state.runtime.strategy import DTYPES, Stage
from langchain_rwkv_state.state import StateLayout

if TYPE_CHECKING:
    from langchain_rwkv_state.runtime.handle import RuntimeHandle

logger = logging.getLogger(__name__)

_PASSING = 8  # states that `forward_batch` keeps room for between calls


class CudaModel:
    """One loaded RWKV-7 on one card.

    Args:
        tensors: The weights, as `read_tensors` gave them; emptied.
        checkpoint: What they are.
        stage: Device, dtypes, and how matrices are kept.
        kernels: What the pass is made of; ``None`` for the fastest that this machine has.

    Attributes:
        layout: Names, shapes and dtypes of its states.
        weights: First part of its fingerprint.
        compute: Second part: the arithmetic.
        vocab_size: Number of logits, V.
        budgets: How much is best read at once.
        about: What runs it, in words.
    """

    budgets = Budgets(prefill_chunk=2048, prefill_budget=512, most_rows=2048, grows=False)

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        checkpoint: Checkpoint,
        stage: Stage,
        *,
        kernels: ChosenKernels | None = None,
    ) -> None:
        sorted_weights = Weights.of(tensors, checkpoint.n_layer)
        tensors.clear()
        self._n_ffn = len(sorted_weights.layers[0].ffn_key)
        self._device = torch.device(stage.device)
        self._state_dtype = DTYPES[stage.state_dtype]
        dtype = DTYPES[stage.dtype]
        self.layout = StateLayout.of(
            7,
            n_layer=checkpoint.n_layer,
            n_embd=checkpoint.n_embd,
            head_size=checkpoint.head_size,
            shift_dtype=stage.dtype,
        )
        self.weights, self.compute = checkpoint.weights, stage.compute
        self.vocab_size = checkpoint.vocab_size
        self._kernels = kernels or ChosenKernels.of(
            self._device, checkpoint.head_size, dtype, self._state_dtype
        )
        self._pass = FusedPass(
            sorted_weights, dtype, self._device, self._kernels.layer, stage.weights
        )
        self._opening = threading.Lock()  # two engines are not to get one room
        self._room: Room | None = None
        self._user: weakref.ref[CudaSlots] | None = None
        self._passing: Room | None = None
        self._forwarding = threading.Lock()
        self.about = f"the native runtime, on {self._device} with {self._kernels.layer.name}"

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What this machine or this card could not do, and what was done instead."""
        return (*self._kernels.fallbacks, *self._unrecorded())

    def zero_tensors(self) -> Mapping[str, torch.Tensor]:
        """Returns those tensors of the first state that are not zero: none."""
        return {}

    def slots(self, handle: RuntimeHandle, count: int) -> CudaSlots:
        """Returns slots for `count` requests at once, or for as many as the card has memory for.

        There are twice as many as may read at once; the others are for copies.

        Raises:
            ModelLoadError: There is no memory for one.
        """
        with self._opening:
            room = self._room
            taken = self._user is not None and self._user() is not None
            if room is None or taken or room.asked != count:
                room = self._opened(count)
            room.cells.clear()
            slots = CudaSlots(handle, room, 2 * min(count, room.served))
            if not taken:
                self._room, self._user = room, weakref.ref(slots)
            return slots

    def forward_batch(
        self, tokens: Sequence[list[int]], states: Sequence[Sequence[torch.Tensor]]
    ) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        """Reads sequences from the tensors of states.

        Args:
            tokens: Ids, at least one for each sequence.
            states: As many states' tensors, in the layout's order; left as they are.

        Returns:
            Logits ``[B, V]`` and the new tensors of each state, on the CPU.
        """
        count = len(states)
        with self._forwarding:
            room = self._forward_room(count)
            for cell, given in enumerate(states):
                room.transfers.put(cell, given)
            logits = torch.empty(count, self.vocab_size)
            cells = [(number, count + number) for number in range(count)]
            left = [list(ids) for ids in tokens]
            while any(left):
                waiting = [number for number in range(count) if left[number]]
                jobs = []
                for number in waiting:
                    part = left[number][: room.most_rows]
                    del left[number][: room.most_rows]
                    last = not left[number]
                    jobs.append(Job(room.samplers.spare, part, *cells[number], logits=last))
                    cells[number] = cells[number][::-1]
                step = room.launch(jobs)
                step.found()
                for row, number in enumerate(waiting):
                    if jobs[row].logits:
                        logits[number] = torch.from_numpy(step.logits(row))
            copies = [room.transfers.begin_get(cell) for cell, _ in cells]
            return logits, [finished() for finished in copies]

    def _forward_room(self, count: int) -> Room:
        """Returns room for passing states, kept for the next call unless it is large."""
        room = self._passing
        if room is None or room.served < count:
            room = self._made(count, 2 * count, record=False)
            self._passing = room if count <= _PASSING else self._passing
        return room

    def _opened(self, count: int) -> Room:
        """Returns a new room; the old one goes first, if nobody uses it."""
        if self._user is None or self._user() is None:
            self._room = None
        served = count
        if self._device.type == "cuda":
            served = self._fitting(count)
        room = self._made(served, CELLS_A_SLOT * served, record=self._kernels.recordable)
        room.asked = count
        if room.recordings is not None:
            room.warm_up()
            room.recordings.record_all(
                lambda done, count: logger.info(
                    "Recorded %d of %d sizes of steps on %s", done, count, self._device
                )
            )
        return room

    def _fitting(self, count: int) -> int:
        """Returns how many requests the card has memory for, `count` at most."""
        shape = PassShape(
            n_embd=self.layout.n_embd,
            n_ffn=self._n_ffn,
            vocab_size=self.vocab_size,
            itemsize=self.layout.specs[0].dtype.itemsize,
            rows=self.budgets.most_rows,
            slots=count,
        )
        with recordings.capturing:  # of another model, which this would break
            torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self._device)
        each = cell_bytes(self.layout, self._state_dtype)
        return slots_that_fit(count, each, free=free, reserve=shape.reserve_bytes)

    def _made(self, served: int, cells: int, *, record: bool) -> Room:
        return Room(
            self._pass,
            Cells(self.layout, cells, self._device, self._state_dtype),
            SamplerArrays(2 * served, self.vocab_size, self._device, recordings.sizes(served)[-1]),
            self._kernels.sample,
            vocab_size=self.vocab_size,
            served=served,
            most_rows=self.budgets.most_rows,
            capture=recordings.captures(self._device) if record else None,
        )

    def _unrecorded(self) -> tuple[str, ...]:
        if self._room is None or self._room.recordings is None:
            return ()
        return tuple(
            fallbacks.not_recorded(size, why) for size, why in self._room.recordings.failed.items()
        )
