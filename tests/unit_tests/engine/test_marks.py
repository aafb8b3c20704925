"""Marks: positions within a read whose states the slots leave in spare ones, in one pass."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_rwkv_state.engine import Done, Request, RequestHandle
from langchain_rwkv_state.engine import slots as slots_module
from langchain_rwkv_state.engine.sequence import TokenSequence
from langchain_rwkv_state.engine.slots import SlotPool, Snapshot
from langchain_rwkv_state.prefix_cache import Caching, PrefixStateCache
from langchain_rwkv_state.runtime.slots import StateSlots
from tests.helpers.fake_runtime import FakeRuntime
from tests.helpers.scripted import GREEDY, WORLD


class MarkingSlots(StateSlots):
    """Slots that leave states on the way in others."""

    can_mark = True

    def mark(self, slot: int, ids: Any, marks: Any) -> None:
        at = 0
        for place, spare in [*marks, (len(ids), None)]:
            if ids[at:place]:
                self.read([(slot, ids[at:place])])
            at = place
            if spare is not None:
                self.copy(slot, spare)


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime(65_536)


@pytest.fixture
def pool(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> SlotPool:
    monkeypatch.setattr(slots_module, "open_slots", MarkingSlots)
    pool = SlotPool(runtime, 4)
    pool.make_room(4)
    return pool


def sequence_of(runtime: FakeRuntime, pool: SlotPool, **more: Any) -> TokenSequence:
    request = Request(runtime.zero_state(), list(range(1, 31)), **more)
    return TokenSequence(request, WORLD, RequestHandle(), pool, runtime.vocab_size)


def advance(pool: SlotPool, sequence: TokenSequence, count: int) -> tuple[int, bool]:
    """Reads as an engine does whose slots can mark; returns how many ids, and whether to sample."""
    marked: dict[int, Snapshot] = {}
    marks: list[tuple[int, int]] = []
    for place in sequence.marks(count):
        spare = pool.reserve()
        if spare is None:  # read up to there, where the state is copied
            count = place
            break
        marks.append((place, spare))
        marked[place] = pool.reserved(spare)
    slots = pool.slots
    assert isinstance(slots, MarkingSlots)
    slots.mark(sequence.slot, sequence.next_ids(count), marks)
    return count, sequence.advance(count, marked)


def done_of(sequence: TokenSequence) -> Done:
    (done,) = [event for event in sequence.handle if isinstance(event, Done)]
    return done


@pytest.mark.parametrize(("busy", "passes"), [(0, [30]), (1, [30]), (2, [10, 20]), (3, [4, 6, 20])])
def test_a_prompt_is_cut_only_where_no_slot_is_spare(runtime, pool, busy, passes):
    for _ in range(busy):
        pool.allocate(runtime.zero_state())
    sequence = sequence_of(runtime, pool, checkpoints=(10, 4, 30))
    sequence.begin()
    assert sequence.wanted == 30
    assert sequence.marks(9) == (4,)
    counts = []
    while not sequence.handle.over:
        counts.append(advance(pool, sequence, sequence.wanted)[0])
    assert counts == passes
    for at, state in zip((10, 4, 30), done_of(sequence).checkpoints, strict=True):
        assert state == runtime.forward(range(1, at + 1), runtime.zero_state())[1]


def test_in_pieces_each_mark_comes_in_its_turn_and_no_spare_slot_stays_taken(runtime, pool):
    cache = PrefixStateCache()
    settled = [*range(1, 25), 99]
    sequence = sequence_of(
        *(runtime, pool),
        max_tokens=5,
        sampling=GREEDY,
        settled=settled,
        caching=Caching(cache, ends=(7,)),
        checkpoints=(7,),
    )
    sequence.begin()
    steps: list[tuple[int, bool]] = []
    while not (steps and steps[-1][1]):
        steps.append(advance(pool, sequence, min(sequence.wanted, 9)))
    assert steps == [(9, False), (9, False), (9, False), (3, True)]
    sequence.leave()
    assert sorted(pool.allocate(runtime.zero_state()) for _ in range(4)) == [0, 1, 2, 3]
    ids = tuple(range(1, 31))
    for length, at in ((30, 24), (23, 7)):
        request = Request(runtime.zero_state(), ids[:length], caching=Caching(cache))
        again = TokenSequence(request, WORLD, RequestHandle(), pool, runtime.vocab_size)
        assert again.prefix is not None
        found = again.prefix.find()
        assert found is not None
        assert found.n_tokens == at
        assert found.cached.state == runtime.forward(ids[:at], runtime.zero_state())[1]


def test_a_reserved_slot_makes_room_for_a_request(runtime, pool):
    pool.allocate(runtime.zero_state())
    kept = []
    while (spare := pool.reserve()) is not None:
        pool.slots.put(spare, runtime.forward([spare + 1], runtime.zero_state())[1])
        kept.append((spare, pool.reserved(spare)))
    assert len(kept) == 3
    pool.allocate(runtime.zero_state())
    for spare, snapshot in kept:
        assert snapshot.state() == runtime.forward([spare + 1], runtime.zero_state())[1]


def test_a_state_that_is_passed_over_is_no_secret(runtime, pool):
    sequence = sequence_of(runtime, pool, checkpoints=(10,))
    sequence.begin()
    with pytest.raises(RuntimeError, match="behind 10 ids was wanted"):
        sequence.advance(12)


def test_slots_that_cannot_mark_have_prompts_cut(runtime):
    pool = SlotPool(runtime, 4)
    assert not pool.can_mark
    sequence = sequence_of(runtime, pool, checkpoints=(10, 4))
    sequence.begin()
    assert (sequence.wanted, sequence.marks(30)) == (4, (4, 10))
