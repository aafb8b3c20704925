"""Runs steps over cells on a card: recorded where each conversation reads one id, eager elsewhere.

A `Room` is what many conversations need on a card at once: cells for their states, what their ids
are chosen by, and the recordings that know the addresses of both. A step is given to the card and
left to it; `Step.found` waits for what came of it. It knows cells and slots by number alone. Those
that decode and those that read a prompt go apart, so that a prompt that arrives makes nobody's next
token eager.

B reads of a step, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from langchain_rwkv_state.runtime.cuda.cells import Cells
from langchain_rwkv_state.runtime.cuda.fused_pass import FusedPass
from langchain_rwkv_state.runtime.cuda.recordings import Capture, Recordings
from langchain_rwkv_state.runtime.cuda.sampling import SamplerArrays
from langchain_rwkv_state.runtime.cuda.spans import Segment, Spans
from langchain_rwkv_state.runtime.cuda.staging import Ring, sent
from langchain_rwkv_state.runtime.cuda.transfers import Transfers
from langchain_rwkv_state.runtime.sampling import Floats, Found, Words

_GIVEN, _SLOT, _BEFORE, _AFTER, _CHOOSE, _MASK = range(6)
_INPUTS = 6
_CHOSEN, _BEST, _FINITE = range(3)
_RESULTS = 3
_WARM_LENGTHS = (2, 3, 17, 129, 513, 2048)


class Job(NamedTuple):
    """What is read from one cell into another.

    Attributes:
        slot: Whose ids they are.
        ids: The ids; ``None`` for the one that the slot chose last.
        source: The cell of the state before.
        target: The cell of the state behind.
        choose: Whether the next id is chosen.
        allowed: What may be chosen; ``None`` for all.
        logits: Whether the host may ask for the logits.
        marks: Positions inside the ids, each with the cell of the state there.
    """

    slot: int
    ids: Sequence[int] | None
    source: int
    target: int
    choose: bool = False
    allowed: Words | None = None
    logits: bool = False
    marks: tuple[tuple[int, int], ...] = ()

    @property
    def is_single(self) -> bool:
        """Whether it is one id."""
        return self.ids is None or len(self.ids) == 1


class Sample(Protocol):
    """`sampling.sample`, or what gives the same ids faster."""

    def __call__(
        self,
        logits: Tensor,
        slot: Tensor,
        choose: Tensor,
        mask_at: Tensor,
        masks: Tensor,
        arrays: SamplerArrays,
        out: Tensor,
    ) -> None:
        """Chooses the next ids of rows of logits."""
        ...


class _Static:
    """The tensors that a step of B reads uses at every call.

    Args:
        size: B.
        device: Where.

    Attributes:
        inputs: Ids, slots, cells before and after, choices and masks, ``[6, B]``, int32.
        out: What was found, ``[3, B]``, int32.
        logits: ``[B, V]``, of the last call.
        at: Made of `inputs`.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.inputs = torch.zeros(_INPUTS, size, dtype=torch.int32, device=device)
        self.out = torch.zeros(_RESULTS, size, dtype=torch.int32, device=device)
        self.logits: Tensor | None = None
        self.at = Spans.of_each(self.inputs[_BEFORE], self.inputs[_AFTER])


class Step:
    """A step at work.

    Args:
        count: Number of reads.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._parts: list[tuple[Sequence[int], Callable[[], Tensor]]] = []
        self._logits: dict[int, Callable[[], Tensor]] = {}
        self._found: list[Found] | None = None

    def comes(self, numbers: Sequence[int], out: Callable[[], Tensor]) -> None:
        """Takes note of what is to come: ``[3, B]``, the first columns for some of the reads."""
        self._parts.append((numbers, out))

    def logits_come(self, number: int, logits: Callable[[], Tensor]) -> None:
        """Takes note of logits that are to come for a read: ``[V]``, fp32."""
        self._logits[number] = logits

    def found(self) -> list[Found]:
        """Waits for the step; returns what was found in each read's logits."""
        if self._found is None:
            found: list[Found | None] = [None] * self._count
            for numbers, out in self._parts:
                columns = out().t().tolist()  # padding comes last
                for number, (chosen, best, finite) in zip(numbers, columns, strict=False):
                    found[number] = Found(best, bool(finite), None if chosen < 0 else chosen)
            self._found = [each for each in found if each is not None]
        return self._found

    def logits(self, number: int) -> Floats:
        """Returns the logits of a read that asked for them: ``[V]``, fp32."""
        logits: Floats = self._logits[number]().numpy()
        return logits


class Room:
    """Cells, samplers and recordings of one model on one card. One thread uses it at a time.

    Args:
        model: The pass.
        cells: The states.
        samplers: How each slot's ids are chosen.
        sample: Chooses.
        vocab_size: V.
        served: At most so many reads in a step.
        most_rows: At most so many ids in a pass.
        capture: How steps are recorded; ``None`` where they are not.

    Attributes:
        cells: The states.
        samplers: How each slot's ids are chosen.
        transfers: Copies states in and out.
        served: At most so many reads in a step.
        asked: How many were wished for.
        counts_by: Identity of the tokenizer by whose pieces ids are counted.
        most_rows: At most so many ids in a pass.
        recordings: The recorded steps; ``None`` where there are none.
    """

    def __init__(
        self,
        model: FusedPass,
        cells: Cells,
        samplers: SamplerArrays,
        sample: Sample,
        *,
        vocab_size: int,
        served: int,
        most_rows: int,
        capture: Capture | None,
    ) -> None:
        self.cells, self.samplers, self.served = cells, samplers, served
        self.asked = served
        self.counts_by: str | None = None
        self.transfers = Transfers(cells)
        self._model, self._sample = model, sample
        self.most_rows = most_rows
        self._device = device = cells.wkv.device
        words = -(-vocab_size // 32)
        self._masks = torch.zeros(served, words, dtype=torch.int32, device=device)
        self._static: dict[int, _Static] = {}
        self.recordings: Recordings | None = None
        if capture is not None:
            self.recordings = Recordings(
                capture, self._trial, most=served, outputs=self._results_of
            )
        most = served if self.recordings is None else self.recordings.sizes[-1]
        self._to_card = Ring(4 * _INPUTS * most)
        self._to_host = Ring(4 * _RESULTS * most)
        self._masks_to_card = Ring(self._masks.nbytes)
        self._logits_to_host = Ring(4 * vocab_size, depth=8)

    def launch(self, jobs: Sequence[Job]) -> Step:
        """Gives a step to the device, and does not wait for it.

        Args:
            jobs: At most `served`; no cell is written that another job reads.
        """
        singles = [number for number, job in enumerate(jobs) if job.is_single]
        others = [number for number, job in enumerate(jobs) if not job.is_single]
        step = Step(len(jobs))
        with self._computing():
            written = [
                cell for job in jobs for cell in (job.target, *(into for _, into in job.marks))
            ]
            self.transfers.settle(written, read=[job.source for job in jobs])
            masks = self._load_masks(jobs)
            if singles:
                self._decode(jobs, singles, masks, step)
            for numbers in self._passes(jobs, others):
                self._prefill(jobs, numbers, masks, step)
            self.transfers.wrote(written)
        return step

    def warm_up(self) -> None:
        """Reads prompts of a few lengths for nobody, so that no answer waits for a compiler.

        The kernels are compiled by tiles of rows, and for prompts apart from single ids.
        """
        for length in (length for length in _WARM_LENGTHS if length <= self.most_rows):
            spare = self.cells.spare
            self.launch([Job(self.samplers.spare, [1] * length, 0, spare)]).found()

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Computes on the room's card, and as the model says: a caller's autocast changes dtypes.

        Steps are launched and recorded on a worker, or on the thread of whoever loads the model.
        """
        off = torch.autocast(self._device.type, enabled=False)
        with current(self._device), torch.no_grad(), off:
            yield

    # -- one id each -------------------------------------------------------------------------

    def _decode(
        self, jobs: Sequence[Job], numbers: Sequence[int], masks: Sequence[int], step: Step
    ) -> None:
        count = len(numbers)
        size = count if self.recordings is None else self.recordings.prepare(count)
        static = self._static_of(size)
        spare = self.cells.spare
        pad = (0, self.samplers.spare, spare, spare, 0, -1)
        inputs = np.empty((size, _INPUTS), dtype=np.int32)
        inputs[count:] = pad
        inputs[:count] = [_input(jobs[number], masks[number]) for number in numbers]
        self._to_card.send(inputs.T.ravel(), static.inputs)
        if self.recordings is None:
            self._run(static)
        else:
            self.recordings.replay(count)
        assert static.logits is not None  # noqa: S101  # it ran
        self._take(jobs, numbers, static.out, static.logits, step)

    def _static_of(self, size: int) -> _Static:
        static = self._static.get(size)
        if static is None:
            static = self._static[size] = _Static(size, self._device)
        return static

    def _run(self, static: _Static) -> None:
        x = self._model.embed(static.inputs[_GIVEN], static.inputs[_SLOT], self.samplers.last)
        static.logits = self._model.run(x, self.cells, static.at)
        self._choose(static.logits, static.inputs, static.out)

    def _choose(self, logits: Tensor, inputs: Tensor, out: Tensor) -> None:
        self._sample(
            logits,
            inputs[_SLOT],
            inputs[_CHOOSE],
            inputs[_MASK],
            self._masks,
            self.samplers,
            out,
        )

    def _trial(self, size: int) -> Callable[[], None]:
        """Returns a step of a size, over ids that are read for nobody."""
        static = self._static_of(size)
        pad = (1, self.samplers.spare, self.cells.spare, self.cells.spare, 0, -1)
        static.inputs.copy_(torch.tensor(pad, dtype=torch.int32).unsqueeze(1))
        static.inputs[_BEFORE] = 0  # another cell than it is written to: the same each time
        self.transfers.settle((), read=[0])

        def step() -> None:
            with self._computing():
                self._run(static)

        return step

    def _results_of(self, size: int) -> list[Tensor]:
        static = self._static_of(size)
        assert static.logits is not None  # noqa: S101  # it ran
        return [static.logits, static.out]

    # -- many ids ----------------------------------------------------------------------------

    def _passes(self, jobs: Sequence[Job], numbers: Sequence[int]) -> Iterator[list[int]]:
        """Divides reads among passes of so many rows as may be; one alone may have more."""
        taken: list[int] = []
        rows = 0
        for number in numbers:
            length = len(jobs[number].ids or ())
            if taken and rows + length > self.most_rows:
                yield taken
                taken, rows = [], 0
            taken.append(number)
            rows += length
        if taken:
            yield taken

    def _prefill(
        self, jobs: Sequence[Job], numbers: Sequence[int], masks: Sequence[int], step: Step
    ) -> None:
        segments: list[Segment] = []
        ids: list[int] = []
        for number in numbers:
            job = jobs[number]
            given = job.ids or ()
            segments.append(Segment(len(given), job.source, job.target, job.marks))
            ids += given
        inputs = [_input(jobs[number], masks[number]) for number in numbers]
        columns = [*zip(*inputs, strict=True)]
        numbers_in = [*ids, *(each for column in columns for each in column)]
        whole = sent(torch.tensor(numbers_in, dtype=torch.int32), self._device)
        given_at, per_read = whole[: len(ids)], whole[len(ids) :].view(_INPUTS, -1)
        x = self._model.embed(given_at, torch.zeros_like(given_at), self.samplers.last)
        logits = self._model.run(x, self.cells, Spans.of(segments, self._device))
        out = torch.empty(_RESULTS, len(numbers), dtype=torch.int32, device=self._device)
        self._choose(logits, per_read, out)
        self._take(jobs, numbers, out, logits, step)

    # -- between host and device -------------------------------------------------------------

    def _load_masks(self, jobs: Sequence[Job]) -> list[int]:
        """Copies masks to the device; returns each job's row of them, -1 for none."""
        wanted = [job.allowed for job in jobs if job.allowed is not None]
        if wanted:
            self._masks_to_card.send(np.concatenate(wanted), self._masks)
        rows = iter(range(len(wanted)))
        return [-1 if job.allowed is None else next(rows) for job in jobs]

    def _take(
        self, jobs: Sequence[Job], numbers: Sequence[int], out: Tensor, logits: Tensor, step: Step
    ) -> None:
        step.comes(numbers, self._to_host.fetch(out))
        for row, number in enumerate(numbers):
            if jobs[number].logits:
                step.logits_come(number, self._logits_to_host.fetch(logits[row].float()))


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a card the current one, on which Triton starts what it starts."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _input(job: Job, mask: int) -> tuple[int, int, int, int, int, int]:
    given = -1 if job.ids is None else job.ids[0]
    return given, job.slot, job.source, job.target, job.choose, mask
