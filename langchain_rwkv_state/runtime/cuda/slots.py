"""Slots on a card: which cell each one's state is in, and what that state stands for.

A read leaves the cell that it starts from as it is, so a copy of a slot is one more holder of its
cell, and costs nothing. What a slot read ahead, before the host knew the id, lies in a cell of its
own until the host confirms the id or abandons the read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from langchain_rwkv_state.runtime.cuda.room import Job, Room, Step
from langchain_rwkv_state.runtime.held import Held
from langchain_rwkv_state.runtime.sampling import SamplerState
from langchain_rwkv_state.runtime.slots import Read, Reads, check_reads
from langchain_rwkv_state.state import RWKVState

if TYPE_CHECKING:
    from langchain_rwkv_state.runtime.handle import RuntimeHandle


class _Slot:
    """A state that is held, and perhaps what comes behind it.

    Attributes:
        cell: Where it is.
        held: What it stands for.
        ahead: The cell of the state behind an id that the host does not know yet.
    """

    __slots__ = ("ahead", "cell", "held")

    def __init__(self, cell: int, held: Held) -> None:
        self.cell, self.held = cell, held
        self.ahead: int | None = None


class CudaSlots:
    """Slots of one model on one card. One thread uses them at a time.

    Args:
        handle: The runtime that the states belong to.
        room: Cells and recordings, which nobody else uses meanwhile.
        count: Number of slots.

    Attributes:
        served: How many slots may read in one step; the others keep copies.
        can_mark: Whether a read can leave the states at positions within it in other slots.
    """

    can_mark = True

    def __init__(self, handle: RuntimeHandle, room: Room, count: int) -> None:
        self.served = room.served
        self._handle, self._room = handle, room
        self._cells = room.cells
        self._transfers = room.transfers
        self._slots: list[_Slot | None] = [None] * count

    @property
    def count(self) -> int:
        """Number of slots."""
        return len(self._slots)

    def put(self, slot: int, state: RWKVState) -> None:
        """Copies a state into a slot, beside the card's work.

        Raises:
            StateMismatch: It belongs to other weights or another compute dtype.
        """
        self._handle.require(state)
        self.clear(slot)
        cell = self._cells.take()
        self._transfers.put(cell, [state.shared(name) for name in state])
        self._slots[slot] = _Slot(cell, Held.of(state))

    def get(self, slot: int) -> RWKVState:
        """Returns a copy of the state in a slot, on the host."""
        return self.begin_get(slot)()

    def begin_get(self, slot: int) -> Callable[[], RWKVState]:
        """Begins to copy the state in a slot; the function returned waits for it, on any thread."""
        one = self._require(slot)
        finished = self._transfers.begin_get(one.cell)
        held, layout = one.held.copied(), self._handle.layout
        return lambda: held.state(layout, finished())

    def copy(self, source: int, target: int) -> None:
        """Has a second slot hold the state of the first."""
        one = self._require(source)
        cell, held = self._cells.share(one.cell), one.held.copied()
        self.clear(target)
        self._slots[target] = _Slot(cell, held)

    def clear(self, slot: int) -> None:
        """Lets a slot's state go."""
        one, self._slots[slot] = self._slots[slot], None
        if one is not None:
            self._cells.give_back(one.cell)
            if one.ahead is not None:
                self._cells.give_back(one.ahead)

    def read(self, reads: Reads) -> torch.Tensor:
        """Reads ids into slots, and waits for the logits.

        Raises:
            ValueError: There is nothing to read, an id is out of range, or a slot comes twice.
            ModelLoadError: The handle was closed.
        """
        check_reads(slot for slot, _ in reads)
        most, wanted, rows = self._room.most_rows, [], []
        for slot, ids in reads:
            checked = self._handle.checked(ids)
            last = (len(checked) - 1) // most * most
            for start in range(0, last, most):
                self.launch([Read(slot, checked[start : start + most])])
            wanted.append(Read(slot, checked[last:], logits=True))
        for start in range(0, len(wanted), self.served):
            part = wanted[start : start + self.served]
            step = self.launch(part)
            step.found()
            rows += [torch.from_numpy(step.logits(number)) for number in range(len(part))]
        return torch.stack(rows)

    def count_by(self, tokenizer: str, increments: Callable[[], Sequence[float]]) -> None:
        """Says what each id adds to its count; see `ChoosingSlots`."""
        if self._room.counts_by != tokenizer:
            counted = self._room.samplers.counted
            counted.zero_()
            known = torch.tensor(increments()[: len(counted)])
            counted[: len(known)].copy_(known)
            self._room.counts_by = tokenizer

    def load_sampler(self, slot: int, state: SamplerState) -> None:
        """Says how a slot's ids are chosen from the next step on."""
        self._room.samplers.load(slot, state)

    def launch(self, reads: Sequence[Read]) -> Step:
        """Begins a step, and returns while the card is at it.

        Raises:
            ValueError: There is nothing to read, or too much at once, or a slot comes twice.
            ModelLoadError: The handle was closed.
        """
        self._handle.require_open()
        check_reads(read.slot for read in reads)
        if len(reads) > self.served:
            raise ValueError(f"{len(reads)} slots are to read in a step of {self.served} at most.")
        slots = [self._require(read.slot) for read in reads]
        taken: list[int] = []

        def take() -> int:
            taken.append(self._cells.take())
            return taken[-1]

        try:
            jobs = [
                Job(
                    read.slot,
                    read.ids,
                    one.cell,
                    take(),
                    read.choose,
                    read.allowed,
                    read.logits,
                    tuple((at, take()) for at, _ in read.marks),
                )
                for read, one in zip(reads, slots, strict=True)
            ]
            step = self._room.launch(jobs)
        except BaseException:
            for cell in taken:  # what was in the slots is there still
                self._cells.give_back(cell)
            raise
        for read, one, job in zip(reads, slots, jobs, strict=True):
            self._note(read, one, job)
        return step

    def confirm(self, slot: int, token: int) -> None:
        """Takes on what came of reading the id that the slot chose, which was `token`."""
        one = self._require(slot)
        if one.ahead is None:
            raise ValueError(f"Slot {slot} read nothing ahead.")
        self._go_on(one, one.ahead, [token])
        one.ahead = None

    def abandon(self, slot: int) -> None:
        """Drops what came of it: the state stays what it was before."""
        one = self._slots[slot]
        if one is not None and one.ahead is not None:
            self._cells.give_back(one.ahead)
            one.ahead = None

    def _note(self, read: Read, one: _Slot, job: Job) -> None:
        """Takes on what a read that was launched leaves in the slots."""
        for (at, cell), (_, into) in zip(job.marks, read.marks, strict=True):
            held = one.held.copied()
            held.read((read.ids or ())[:at])
            self.clear(into)
            self._slots[into] = _Slot(cell, held)
        if read.ids is None:
            one.ahead = job.target
        else:
            self._go_on(one, job.target, read.ids)

    def _go_on(self, one: _Slot, cell: int, ids: Sequence[int]) -> None:
        self._cells.give_back(one.cell)
        one.cell = cell
        one.held.read(ids)

    def _require(self, slot: int) -> _Slot:
        one = self._slots[slot]
        if one is None:
            raise ValueError(f"Slot {slot} is empty: put a state into it first.")
        return one
