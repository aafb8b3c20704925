"""Slots on a card over recorded steps, in any order: right states, and no race."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from langchain_rwkv_state.runtime.cuda import recordings
from langchain_rwkv_state.runtime.cuda.chosen import ChosenKernels
from langchain_rwkv_state.runtime.cuda.kernels import PlainKernels
from langchain_rwkv_state.runtime.cuda.slots import CudaSlots
from langchain_rwkv_state.runtime.handle import RuntimeHandle
from langchain_rwkv_state.runtime.slots import Read
from langchain_rwkv_state.state import RWKVState
from tests.helpers.card import card_runtime, greedy, host_runtime
from tests.helpers.checkpoints import DEFAULT_VOCAB
from tests.helpers.cuda_stand_in import StandIn

GREEDY = ChosenKernels(PlainKernels(), greedy)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A card on which the model, which lies on the CPU, is recorded."""
    made = StandIn(monkeypatch)
    graphs = recordings.CudaGraphs(torch.device("cuda", 0))
    monkeypatch.setattr(recordings, "captures", lambda device: graphs)
    return made


def opened(handle: RuntimeHandle, cards: StandIn) -> CudaSlots:
    slots = handle.slots(4)
    assert isinstance(slots, CudaSlots)
    cells = slots._room.cells
    cards.holds(cells.att_x, cells.ffn_x, cells.wkv)
    return slots


class Crowd:
    """Four slots at work, and what `forward` on the CPU says that each holds.

    Args:
        ours: The model on a card.
        slots: Its slots; all get the first state.
        chance: Decides what happens.
    """

    def __init__(self, ours: RuntimeHandle, slots: CudaSlots, chance: random.Random) -> None:
        self.slots, self.chance = slots, chance
        self.theirs = host_runtime()
        self.held = {slot: ours.zero_state() for slot in range(4)}
        self.chosen: dict[int, int] = {}
        self.pending: list[tuple[Callable[[], RWKVState], RWKVState]] = []
        for slot, state in self.held.items():
            slots.put(slot, state)

    def step(self) -> None:
        """Reads ids into some slots, or what they chose; meanwhile copies some."""
        slots = self.chance.sample(range(4), self.chance.randint(1, 4))
        reads, expected = zip(*map(self.read, slots), strict=True)
        step = self.slots.launch(reads)
        for read, (_, _, state) in zip(reads, expected, strict=True):
            if read.ids is not None and self.chance.random() < 0.5:  # the step is still at work
                self.pending.append((self.slots.begin_get(read.slot), state))
        for slot in set(self.held) - set(slots):
            if self.chance.random() < 0.3:
                target = self.chance.randrange(4, 8)
                self.slots.copy(slot, target)
                self.held[target] = self.held[slot]
        for read, found, wanted in zip(reads, step.found(), expected, strict=True):
            ids, chosen, state = wanted
            assert found.chosen == chosen
            if read.ids is None and self.chance.random() < 0.3:
                self.slots.abandon(read.slot)
                del self.chosen[read.slot]
                continue
            if read.ids is None:
                self.slots.confirm(read.slot, ids[0])
            self.held[read.slot], self.chosen[read.slot] = state, chosen

    def read(self, slot: int) -> tuple[Read, tuple[list[int], int, RWKVState]]:
        """Returns what a slot is to read, and the ids, the choice and the state behind it."""
        ahead = slot in self.chosen and self.chance.random() < 0.7
        length = 1 if ahead else self.chance.choice([1, 6])
        ids = [self.chance.randrange(DEFAULT_VOCAB) for _ in range(length)]
        if ahead:
            ids = [self.chosen[slot]]
        marks = ((4, 4 + slot),) if length > 1 else ()
        for at, into in marks:
            self.slots.clear(into)
            self.held[into] = self.theirs.forward(ids[:at], self.held[slot])[1]
        logits, state = self.theirs.forward(ids, self.held[slot])
        read = Read(slot, None if ahead else ids, choose=True, marks=marks)
        return read, (ids, int(logits.argmax()), state)

    def move(self) -> None:
        """Puts a state into a slot, begins copies out, and takes some that were begun."""
        for slot, state in self.held.items():
            if self.chance.random() < 0.2:
                self.pending.append((self.slots.begin_get(slot), state))
        if self.chance.random() < 0.3:
            slot = self.chance.randrange(4)
            self.held[slot] = self.chance.choice([*self.held.values()])
            self.slots.put(slot, self.held[slot])
            self.chosen.pop(slot, None)
        while self.pending and self.chance.random() < 0.4:
            self.take(self.pending.pop(self.chance.randrange(len(self.pending))))

    def take(self, one: tuple[Callable[[], RWKVState], RWKVState]) -> None:
        found, expected = one[0](), one[1]
        assert found.derivation == expected.derivation
        assert all((found[name] - expected[name]).abs().max() < 1e-4 for name in expected)


@pytest.mark.parametrize("seed", range(2))
def test_whatever_happens_slots_hold_what_forward_gives(cards: StandIn, seed: int) -> None:
    """Prompts, steps ahead, ids that were one too many, copies taken late, states put between."""
    ours = card_runtime(kernels=GREEDY)
    slots = opened(ours, cards)
    made = len(cards.captured)
    with cards.watch():
        crowd = Crowd(ours, slots, random.Random(seed))
        for _ in range(12):
            crowd.step()
            crowd.move()
        for one in crowd.pending:
            crowd.take(one)
        for slot, state in crowd.held.items():
            crowd.take((slots.begin_get(slot), state))
    assert made == len(cards.captured) == 3
    assert cards.syncs == 0


def test_a_snapshot_waits_for_what_goes_out_of_its_cell(cards: StandIn) -> None:
    ours = card_runtime(kernels=GREEDY)
    slots = opened(ours, cards)
    with cards.watch():
        for slot in (0, 4, 5):
            slots.put(slot, ours.zero_state())
        slots.begin_get(4)
        cell = slots._slots[4].cell if slots._slots[4] else None
        slots.clear(4)
        slots.clear(5)
        slots.launch([Read(0, [1, 2, 3], marks=((2, 4),))]).found()
        assert slots._slots[4] is not None
        assert slots._slots[4].cell == cell


def test_a_prompt_reads_no_state_but_its_own(cards: StandIn) -> None:
    """Another may be on its way into any cell."""
    ours = card_runtime(kernels=GREEDY)
    slots = opened(ours, cards)
    with cards.watch():
        for slot in (0, 1, 0):  # the first cell's comes last
            slots.put(slot, ours.zero_state())
        slots.launch([Read(1, [1, 2, 3])]).found()


def test_a_trial_waits_for_what_comes_into_its_cell(cards: StandIn) -> None:
    """A size is tried again amid requests, and is refused for good if its results differ."""
    ours = card_runtime(kernels=GREEDY)
    slots = opened(ours, cards)
    with cards.watch():
        slots.put(0, ours.zero_state())
        slots._room._trial(2)()


def test_recordings_and_copies_outlive_their_slots(cards: StandIn) -> None:
    """A copy may be on its way out when the next user's steps write to its cell."""
    ours = card_runtime(kernels=GREEDY)
    pending, chosen = [], []
    for _ in range(3):
        slots = opened(ours, cards)
        with cards.watch():
            slots.put(0, ours.zero_state())
            chosen.append(slots.launch([Read(0, [1], choose=True)]).found()[0].chosen)
            pending.append(slots.begin_get(0))
        del slots
    assert len(cards.captured) == 3
    assert len(set(chosen)) == 1
    states = [finished() for finished in pending]
    assert all(torch.equal(states[0][name], state[name]) for state in states for name in state)
