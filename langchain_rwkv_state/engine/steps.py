"""Runs the steps of an engine: on the host, which waits for each, or on a card, one step ahead.

A step is launched with what sequences are to read; those whose next id it gives are its rows, and
`results` has what the logits say. On the host all of that has happened when `launch` returns. On a
card the next step may be launched before: a sequence that decodes reads the id that the card chose,
which nobody here knows yet. Once it is known the read is confirmed, or abandoned where the answer
ended with that id; the state in the slot is then what it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import torch

from langchain_rwkv_state.engine.sampler import LogitsRow, Sampler, scan_rows
from langchain_rwkv_state.engine.sequence import TokenSequence
from langchain_rwkv_state.engine.slots import SlotPool
from langchain_rwkv_state.runtime import Slots
from langchain_rwkv_state.runtime.sampling import Words, increment
from langchain_rwkv_state.runtime.slots import ChoosingSlots, Launched, Read
from langchain_rwkv_state.tokenizer import Tokenizer

T = TypeVar("T")
R = TypeVar("R")

Reads = Sequence[tuple[TokenSequence, int]]
"""Sequences, and how many ids each reads."""


class Alone(Protocol):
    """Does something for one request; if that fails, it alone ends."""

    def __call__(self, sequence: TokenSequence, act: Callable[[T], R], argument: T) -> R | None:
        """Returns what came of it, ``None`` if it failed."""
        ...


class Row(NamedTuple):
    """A sequence whose next id a step gives.

    Attributes:
        sequence: The sequence.
        number: Of its read in the step.
        choice: Who chooses the id along with the step, and among which; ``None`` where the host
            chooses once it sees the logits.
    """

    sequence: TokenSequence
    number: int
    choice: tuple[Sampler, Words | None] | None


class Step(Protocol):
    """A step that was launched.

    Attributes:
        rows: Whose next ids it gives; those that ended since stay among them.
    """

    rows: list[Row]

    def results(self) -> list[LogitsRow]:
        """Waits for the step; returns what was found for each row, choices noted by samplers."""
        ...


class Steps(Protocol):
    """How the steps of an engine are run."""

    def launch(self, reads: Reads, ahead: Sequence[Row]) -> Step:
        """Begins a step.

        Args:
            reads: Who reads how many ids; they have advanced when this returns.
            ahead: Rows of the step before that read what it gives, as soon as it does.
        """
        ...

    def serves(self, slots: Slots) -> bool:
        """Says whether these are the slots."""
        ...

    def run_on(self, row: Row) -> bool:
        """Says whether a row's sequence may read the id before the host knows it."""
        ...

    def settle(self, sequence: TokenSequence, taken: int | None) -> None:
        """Takes on what a sequence read ahead, if it is the id that was taken; else drops it."""
        ...


def steps_on(slots: Slots, pool: SlotPool, alone: Alone, tokenizer: Tokenizer) -> Steps:
    """Returns how steps are run in some slots.

    Args:
        slots: The open slots.
        pool: Whose they are.
        alone: Does something for one request.
        tokenizer: The engine's own.
    """
    if isinstance(slots, ChoosingSlots):
        return CardSteps(slots, pool, alone, tokenizer)
    return HostSteps(slots, alone)


class HostSteps:
    """Steps that are over when they are launched; the host chooses.

    Args:
        slots: The slots.
        alone: Does something for one request.
    """

    def __init__(self, slots: Slots, alone: Alone) -> None:
        self._slots = slots
        self._alone = alone

    def launch(self, reads: Reads, ahead: Sequence[Row]) -> Step:  # noqa: ARG002
        """See `Steps`; nobody runs ahead here."""
        logits = self._slots.read([(each.slot, each.next_ids(count)) for each, count in reads])
        rows = [
            Row(each, number, self._alone(each, lambda one: one.choice_ahead(), each))
            for number, (each, count) in enumerate(reads)
            if self._alone(each, each.advance, count)
        ]
        return _HostStep(rows, logits)

    def serves(self, slots: Slots) -> bool:
        """See `Steps`."""
        return slots is self._slots

    def run_on(self, row: Row) -> bool:  # noqa: ARG002
        """See `Steps`."""
        return False

    def settle(self, sequence: TokenSequence, taken: int | None) -> None:
        """See `Steps`."""


class _HostStep:
    def __init__(self, rows: list[Row], logits: torch.Tensor) -> None:
        self.rows = rows
        self._logits = logits

    def results(self) -> list[LogitsRow]:
        if not self.rows:
            return []
        choices = {row.number: row.choice for row in self.rows if row.choice is not None}
        found = scan_rows(
            self._logits,
            {number: sampler for number, (sampler, _) in choices.items()},
            {number: allowed for number, (_, allowed) in choices.items()},
        )
        return [found[row.number] for row in self.rows]


class CardSteps:
    """Steps of slots that choose ids themselves; the host handles one while the next one runs.

    Args:
        slots: The slots.
        pool: Whose they are.
        alone: Does something for one request.
        tokenizer: The engine's own: what others' ids add to their counts the card does not know.
    """

    def __init__(
        self, slots: ChoosingSlots, pool: SlotPool, alone: Alone, tokenizer: Tokenizer
    ) -> None:
        self._slots, self._pool, self._alone = slots, pool, alone
        self._tokenizer = tokenizer
        slots.count_by(tokenizer.identity, partial(_increments, tokenizer))
        # By slot: whose choices the card makes there, and how many it knows of.
        self._loaded: dict[int, tuple[Sampler, int]] = {}

    def launch(self, reads: Reads, ahead: Sequence[Row]) -> Step:
        """See `Steps`."""
        wanted: list[Read] = []
        rows: list[Row] = []
        advanced: list[tuple[TokenSequence, int, dict[int, int]]] = []
        for sequence, most in reads:
            count, marks = self._marks(sequence, most)
            samples = sequence.samples_after(count)
            choice = self._choice(sequence) if samples else None
            if samples:
                rows.append(Row(sequence, len(wanted), choice))
            wanted.append(
                Read(
                    sequence.slot,
                    sequence.next_ids(count),
                    choose=choice is not None,
                    allowed=None if choice is None else choice[1],
                    logits=samples and (choice is None or sequence.may_want_logits),
                    marks=tuple(marks.items()),
                )
            )
            advanced.append((sequence, count, marks))
        for row in ahead:
            rows.append(row._replace(number=len(wanted)))
            logits = row.sequence.wants_logprobs
            wanted.append(Read(row.sequence.slot, None, choose=True, logits=logits))
            self._count(row)
        try:
            step = self._slots.launch(wanted)
        except BaseException:
            for _, _, marks in advanced:
                for slot in marks.values():
                    self._pool.free(slot)
            raise
        for sequence, count, marks in advanced:
            marked = {at: self._pool.reserved(slot) for at, slot in marks.items()}
            self._alone(sequence, partial(sequence.advance, count), marked)
        return _CardStep(rows, step)

    def serves(self, slots: Slots) -> bool:
        """See `Steps`."""
        return slots is self._slots

    def run_on(self, row: Row) -> bool:
        """See `Steps`."""
        return row.choice is not None and row.sequence.runs_on

    def settle(self, sequence: TokenSequence, taken: int | None) -> None:
        """See `Steps`."""
        if taken is None:
            self._slots.abandon(sequence.slot)
        else:
            self._slots.confirm(sequence.slot, taken)

    def _marks(self, sequence: TokenSequence, count: int) -> tuple[int, dict[int, int]]:
        """Returns spare slots for the states that are wanted on the way, by position.

        Where there are too few, less is read: to the first position without one.
        """
        marks: dict[int, int] = {}
        for at in sequence.marks(count):
            if at == count:
                break
            spare = self._pool.reserve()
            if spare is None:
                return at, marks
            marks[at] = spare
        return count, marks

    def _choice(self, sequence: TokenSequence) -> tuple[Sampler, Words | None] | None:
        """Has the card choose a sequence's next id, if it is known by now how."""
        if sequence.tokenizer.identity != self._tokenizer.identity:  # objects may be many
            return None
        choice = self._alone(sequence, lambda one: one.choice_ahead(), sequence)
        if choice is None:
            return None
        sampler, slot = choice[0], sequence.slot
        if self._loaded.get(slot) != (sampler, sampler.n_chosen):
            self._slots.load_sampler(slot, sampler.handed_over())
        self._loaded[slot] = sampler, sampler.n_chosen + 1
        return choice

    def _count(self, row: Row) -> None:
        sampler, known = self._loaded[row.sequence.slot]
        self._loaded[row.sequence.slot] = sampler, known + 1


class _CardStep:
    def __init__(self, rows: list[Row], step: Launched) -> None:
        self.rows = rows
        self._step = step

    def results(self) -> list[LogitsRow]:
        found, results = self._step.found(), []
        for row in self.rows:
            each = found[row.number]
            logits = LogitsRow(partial(self._step.logits, row.number), each.best, each.finite)
            if row.choice is not None:
                sampler, allowed = row.choice
                sampler.chose(logits, allowed, each.chosen)
            results.append(logits)
        return results


def _increments(tokenizer: Tokenizer) -> list[float]:
    """Returns what each id adds to its count."""
    pieces = (tokenizer.decode_bytes((token,)) for token in range(tokenizer.vocab_size))
    return [increment(piece) for piece in pieces]
