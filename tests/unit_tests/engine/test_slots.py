"""Slots: opened as needed, and never mixed up; snapshots lie in those that are spare."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_rwkv_state.engine import slots as slots_module
from langchain_rwkv_state.engine.slots import SlotPool
from langchain_rwkv_state.errors import StateMismatch
from langchain_rwkv_state.runtime import Slots, open_slots
from langchain_rwkv_state.runtime.base import Budgets
from tests.helpers.fake_runtime import FakeRuntime


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


def state(runtime: FakeRuntime, *ids: int) -> Any:
    return FakeRuntime().forward(ids, runtime.zero_state())[1]


def test_they_grow_with_what_is_wanted_and_no_further(runtime):
    pool = SlotPool(runtime, 20)
    found = []
    for wanted in (0, 1, 2, 4, 5, 3, 17, 100):
        pool.make_room(wanted)
        found.append(pool.count)
    assert found == [0, 1, 4, 4, 16, 16, 20, 20]
    pool.close()
    assert pool.count == 0


def test_states_stay_in_their_slots_as_more_are_opened(runtime):
    pool = SlotPool(runtime, 64)
    states = [state(runtime, n) for n in range(6)]
    taken = []
    for n, one in enumerate(states):
        pool.make_room(n + 1)
        taken.append(pool.allocate(one))
    assert [pool.state(slot) for slot in taken] == states
    pool.free(taken[2])
    pool.make_room(40)
    again = pool.allocate(states[0])
    assert again == taken[2]
    assert [pool.state(slot) for slot in (*taken[3:], again)] == [*states[3:], states[0]]


def test_a_slot_takes_another_state(runtime):
    pool = SlotPool(runtime, 1)
    slot = pool.allocate(state(runtime, 1))
    pool.slots.put(slot, state(runtime, 2))
    assert pool.state(slot) == state(runtime, 2)
    pool.slots.read([(slot, (3, 4))])
    assert pool.state(slot) == state(runtime, 2, 3, 4)


def test_a_state_of_another_model_gets_no_slot(runtime):
    pool = SlotPool(runtime, 1)
    with pytest.raises(StateMismatch, match="another weights"):
        pool.allocate(runtime.zero_state().with_fingerprint("other/fp32/-/-"))
    assert pool.allocate(runtime.zero_state()) == 0


def test_where_memory_allows_no_more_the_number_stays(runtime, monkeypatch, caplog):
    def open_few(runtime: FakeRuntime, count: int) -> Slots:
        if count > 4:
            raise MemoryError("no room")
        return open_slots(runtime, count)

    monkeypatch.setattr(slots_module, "open_slots", open_few)
    pool = SlotPool(runtime, 64)
    pool.make_room(3)
    kept = pool.allocate(state(runtime, 1))
    pool.make_room(30)
    pool.make_room(30)
    assert pool.count == 4
    assert pool.state(kept) == state(runtime, 1)
    assert [record.message for record in caplog.records] == [
        "No more than 4 slots could be opened: no room"
    ]
    pool.close()
    pool.free(kept)  # a slot that is void does no harm


def test_the_first_slots_that_are_opened_are_as_many_as_there_is_memory_for(
    runtime, monkeypatch, caplog
):
    tried = []

    def open_few(runtime: FakeRuntime, count: int) -> Slots:
        tried.append(count)
        if count > 9:
            raise MemoryError("no room")
        return open_slots(runtime, count)

    monkeypatch.setattr(slots_module, "open_slots", open_few)
    monkeypatch.setattr(runtime, "budgets", Budgets(grows=False), raising=False)
    pool = SlotPool(runtime, 64)
    pool.make_room(1)
    assert (tried, pool.count, pool.most) == ([64, 32, 16, 8], 8, 8)
    assert [record.message for record in caplog.records] == [
        "No more than 8 slots could be opened: no room"
    ]


class TestSnapshots:
    def test_one_is_of_now_whatever_its_slot_reads_later(self, runtime):
        pool = SlotPool(runtime, 4)
        pool.make_room(2)
        slot = pool.allocate(state(runtime, 1))
        first, second = pool.snapshot(slot), pool.snapshot(slot)
        pool.slots.read([(slot, (2,))])
        assert first.state() == state(runtime, 1)
        second.restore(slot)
        assert pool.state(slot) == state(runtime, 1)

    def test_nothing_comes_to_the_host_before_it_is_wanted(self, runtime, monkeypatch):
        pool = SlotPool(runtime, 4)
        pool.make_room(2)
        slot = pool.allocate(state(runtime, 1))
        with monkeypatch.context() as patch:
            patch.setattr(pool, "state", lambda _: pytest.fail("it came to the host"))
            for _ in range(20):
                pool.snapshot(slot).drop()
        assert pool.snapshot(slot).state() == state(runtime, 1)

    def test_they_make_room_for_requests_and_stay_what_they_were(self, runtime):
        pool = SlotPool(runtime, 4)
        pool.make_room(4)
        slot = pool.allocate(state(runtime, 0))
        kept = []
        for n in range(1, 5):
            pool.slots.put(slot, state(runtime, n))
            kept.append(pool.snapshot(slot))
        others = [pool.allocate(state(runtime, 9)) for _ in range(3)]
        assert len({slot, *others}) == 4
        assert [one.state() for one in kept] == [state(runtime, n) for n in range(1, 5)]
        for one in kept:
            one.drop()
        for taken in (slot, *others):
            pool.free(taken)
        assert sorted(pool.allocate(state(runtime, 1)) for _ in range(4)) == [0, 1, 2, 3]

    def test_the_oldest_goes_to_the_host_so_that_those_of_a_moment_stay_where_they_are(
        self, runtime, monkeypatch
    ):
        pool = SlotPool(runtime, 4)
        pool.make_room(2)
        slot, *_ = (pool.allocate(state(runtime, n)) for n in (1, 2, 3))
        kept, asked, fetch = pool.snapshot(slot), [], pool.state

        def count(one: int) -> Any:
            asked.append(one)
            return fetch(one)

        monkeypatch.setattr(pool, "state", count)
        for n in range(20):  # one line end after another, as it is in a full crowd
            pool.slots.put(slot, state(runtime, n))
            passing = pool.snapshot(slot)
            passing.drop()
        assert len(asked) == 1
        assert kept.state() == state(runtime, 1)
