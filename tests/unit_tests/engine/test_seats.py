"""Seats: opened as needed, and never mixed up."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_rwkv_state.engine import seats as seats_module
from langchain_rwkv_state.engine.seats import Seats
from langchain_rwkv_state.errors import StateMismatch
from langchain_rwkv_state.runtime import Slots, open_slots
from tests.helpers.fake_runtime import FakeRuntime


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


def state(runtime: FakeRuntime, *ids: int) -> Any:
    return FakeRuntime().forward(ids, runtime.zero_state())[1]


def test_they_grow_with_what_is_wanted_and_no_further(runtime):
    seats = Seats(runtime, 20)
    found = []
    for wanted in (0, 1, 2, 4, 5, 3, 17, 100):
        seats.make_room(wanted)
        found.append(seats.count)
    assert found == [0, 1, 4, 4, 16, 16, 20, 20]
    seats.drop()
    assert seats.count == 0


def test_states_stay_in_their_seats_as_more_are_opened(runtime):
    seats = Seats(runtime, 64)
    states = [state(runtime, n) for n in range(6)]
    taken = []
    for n, one in enumerate(states):
        seats.make_room(n + 1)
        taken.append(seats.take(one))
    assert [seat.snapshot() for seat in taken] == states
    seats.give_back(taken[2])
    seats.make_room(40)
    again = seats.take(states[0])
    assert again.slot == taken[2].slot
    assert [seat.snapshot() for seat in (*taken[3:], again)] == [*states[3:], states[0]]


def test_a_seat_takes_another_state(runtime):
    seats = Seats(runtime, 1)
    seat = seats.take(state(runtime, 1))
    seat.restore(state(runtime, 2))
    assert seat.snapshot() == state(runtime, 2)
    seats.read([(seat, (3, 4))])
    assert seat.snapshot() == state(runtime, 2, 3, 4)


def test_a_state_of_another_model_gets_no_seat(runtime):
    seats = Seats(runtime, 1)
    with pytest.raises(StateMismatch, match="another weights"):
        seats.take(runtime.zero_state().with_fingerprint("other/fp32/-/-"))
    assert seats.take(runtime.zero_state()).slot == 0


def test_where_memory_allows_no_more_the_number_stays(runtime, monkeypatch, caplog):
    def open_few(runtime: FakeRuntime, count: int) -> Slots:
        if count > 4:
            raise MemoryError("no room")
        return open_slots(runtime, count)

    monkeypatch.setattr(seats_module, "open_slots", open_few)
    seats = Seats(runtime, 64)
    seats.make_room(3)
    kept = seats.take(state(runtime, 1))
    seats.make_room(30)
    seats.make_room(30)
    assert seats.count == 4
    assert kept.snapshot() == state(runtime, 1)
    assert [record.message for record in caplog.records] == [
        "No more than 4 slots could be opened: no room"
    ]
    seats.drop()
    seats.give_back(kept)  # a seat that is void does no harm
