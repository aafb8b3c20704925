"""Defines slots: places in which a runtime holds the states of many conversations.

Whoever decodes many conversations at once puts each state into a slot, reads ids into any of the
slots at each step, and takes copies out when a state is to be kept. A runtime with a batch of its
own offers `slots`; `open_slots` gives the same interface to every other. The next `put` into a slot
overwrites what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch

from langchain_rwkv_state.errors import StateMismatch
from langchain_rwkv_state.runtime.base import Runtime
from langchain_rwkv_state.runtime.sampling import Floats, Found, SamplerState, Words
from langchain_rwkv_state.state import Fingerprint, RWKVState, StateLayout

Reads: TypeAlias = Sequence[tuple[int, Sequence[int]]]
"""Pairs of a slot and the ids, at least one, that it reads next; each slot at most once."""


class Slots(Protocol):
    """A fixed number of states at work. One thread uses it at a time."""

    @property
    def count(self) -> int:
        """Number of slots."""
        ...

    def put(self, slot: int, state: RWKVState) -> None:
        """Copies a state into a slot.

        Raises:
            StateMismatch: It belongs to other weights or another compute dtype.
        """
        ...

    def get(self, slot: int) -> RWKVState:
        """Returns a copy of the state in a slot."""
        ...

    def copy(self, source: int, target: int) -> None:
        """Copies the state in one slot into another, where it lies."""
        ...

    def read(self, reads: Reads) -> torch.Tensor:
        """Reads ids into slots, all in one pass where the runtime can.

        Args:
            reads: Slots and ids, of any lengths; at least one pair.

        Returns:
            Logits after the last id of each pair (``[len(reads), V]``, fp32, on the CPU), valid
            until the next call.

        Raises:
            ValueError: There is nothing to read, an id is out of range, or a slot comes twice.
        """
        ...

    def clear(self, slot: int) -> None:
        """Lets a slot's state go."""
        ...


class Read(NamedTuple):
    """What one slot reads in a step that is launched.

    Attributes:
        slot: The slot.
        ids: What it reads; ``None`` for the id that it chose in the step before, which the host
            need not know yet. What comes of that stays apart until `confirm`.
        choose: Whether the next id is chosen behind it, by what `load_sampler` was told.
        allowed: What may be chosen, as for `Sampler.choose`; ``None`` for all.
        logits: Whether the host may ask for the logits.
        marks: Positions inside `ids` (after so many of them, ascending), each with the empty slot
            that a copy of the state there goes to.
    """

    slot: int
    ids: Sequence[int] | None
    choose: bool = False
    allowed: Words | None = None
    logits: bool = False
    marks: tuple[tuple[int, int], ...] = ()


class Launched(Protocol):
    """A step at work."""

    def found(self) -> list[Found]:
        """Waits for the step, and returns what was found in each read's logits."""
        ...

    def logits(self, number: int) -> Floats:
        """Returns the logits of a read that asked for them: ``[V]``, fp32, once it was `found`."""
        ...


@runtime_checkable
class ChoosingSlots(Slots, Protocol):
    """Slots whose device chooses the ids itself, so that it need not wait for the host.

    Attributes:
        served: How many slots may read in one step; the others keep copies.
        can_mark: Whether reads may have marks.
    """

    served: int
    can_mark: bool

    def count_by(self, tokenizer: str, increments: Callable[[], Sequence[float]]) -> None:
        """Says what each id adds to its count, for the penalties.

        Args:
            tokenizer: Identity of the tokenizer whose ids they are.
            increments: Returns 0 or 1 for each id; called if these are not known yet. Ids beyond
                them add nothing, as `Sampler.saw` counts what has no piece.
        """
        ...

    def load_sampler(self, slot: int, state: SamplerState) -> None:
        """Says how a slot's ids are chosen from the next step on."""
        ...

    def launch(self, reads: Sequence[Read]) -> Launched:
        """Begins a step, and returns while the device is at it.

        Raises:
            ValueError: As for `read`.
        """
        ...

    def confirm(self, slot: int, token: int) -> None:
        """Takes on what came of reading the id that the slot chose, which was `token`."""
        ...

    def abandon(self, slot: int) -> None:
        """Drops what came of it: the state stays what it was before."""
        ...


def open_slots(runtime: Runtime, count: int) -> Slots:
    """Returns slots of a runtime: its own, or states kept beside it."""
    if count < 1:
        raise ValueError(f"There must be at least one slot, got {count}.")
    own = getattr(runtime, "slots", None)
    slots: Slots = StateSlots(runtime, count) if own is None else own(count)
    return slots


class StateSlots:
    """Slots over `Runtime.forward_batch`, for runtimes that have none of their own.

    Args:
        runtime: The model.
        count: Number of slots.
    """

    def __init__(self, runtime: Runtime, count: int) -> None:
        self._runtime = runtime
        self._states: list[RWKVState | None] = [None] * count

    @property
    def count(self) -> int:
        """Number of slots."""
        return len(self._states)

    def put(self, slot: int, state: RWKVState) -> None:
        """Holds a state; values are immutable, so nothing is copied.

        Raises:
            StateMismatch: It belongs to other weights or another compute dtype.
        """
        require_state(state, self._runtime.fingerprint, self._runtime.layout)
        self._states[slot] = state

    def get(self, slot: int) -> RWKVState:
        """Returns the state in a slot."""
        state = self._states[slot]
        if state is None:
            raise ValueError(f"Slot {slot} is empty.")
        return state

    def copy(self, source: int, target: int) -> None:
        """Holds one slot's state in another too; values are immutable, so nothing is copied."""
        self._states[target] = self.get(source)

    def read(self, reads: Reads) -> torch.Tensor:
        """Reads ids into slots through the runtime's `forward_batch`."""
        check_reads(slot for slot, _ in reads)
        states = [self.get(slot) for slot, _ in reads]
        logits, states = self._runtime.forward_batch([ids for _, ids in reads], states)
        for (slot, _), state in zip(reads, states, strict=True):
            self._states[slot] = state
        return logits

    def clear(self, slot: int) -> None:
        """Lets a slot's state go."""
        self._states[slot] = None


def require_state(state: RWKVState, fingerprint: str, layout: StateLayout) -> None:
    """Checks that a model can go on from a state; the tokenizer and template may be others.

    Args:
        state: The state.
        fingerprint: The model's.
        layout: Of the model's states.

    Raises:
        StateMismatch: It belongs to other weights or another compute dtype.
    """
    if state.fingerprint != fingerprint:
        known = Fingerprint.parse(fingerprint)
        known.require(state.fingerprint, parts=("weights", "compute"))
    if state.layout != layout:
        raise StateMismatch(
            f"The state's tensors are those of {state.layout}, the model's are {layout}."
        )


def check_reads(slots: Iterable[int]) -> None:
    """Checks that there is something to read, and no slot twice.

    Raises:
        ValueError: There is not, or a slot comes twice.
    """
    named = list(slots)
    if not named:
        raise ValueError("There is nothing to read: give at least one slot with its ids.")
    if len(set(named)) != len(named):
        raise ValueError(f"Each slot is read into at most once in a step, got {named}.")
