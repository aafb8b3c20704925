"""Places in the queue of a session's turns, in memory and on disk."""

from __future__ import annotations

import pytest

from langchain_rwkv_state import DiskStateStore, MemoryStateStore, StateStore
from langchain_rwkv_state.errors import SessionConflict, StoreError
from tests.helpers.states import random_state

A, B, C = "a" * 32, "b" * 32, "c" * 32


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "disk"])
def store(request, tmp_path, clock):
    made: StateStore
    if request.param == "memory":
        made = MemoryStateStore(clock=clock)
    else:
        made = DiskStateStore(tmp_path / "states", clock=clock)
    yield made
    made.close()


def tokens(store, session: str = "bob") -> list[str]:
    return [turn.token for turn in store.queue(session)]


def test_places_are_taken_in_order(store):
    assert [store.enter_queue("bob", token, 15) for token in (A, B, C)] == [0, 1, 2]
    assert tokens(store) == [A, B, C]


def test_sessions_have_queues_of_their_own(store):
    assert [store.enter_queue(name, A, 15) for name in ("bob", "bo", "bobb")] == [0, 0, 0]
    store.leave_queue("bo", A)
    assert tokens(store, "bob") == tokens(store, "bobb") == [A]


def test_who_leaves_lets_the_next_one_come(store):
    for token in (A, B):
        store.enter_queue("bob", token, 15)
    assert store.leave_queue("bob", A)
    assert not store.leave_queue("bob", A)
    assert tokens(store) == [B]
    assert store.enter_queue("bob", B, 15) == 0


def test_a_place_that_is_renewed_stays_where_it_is(store, clock):
    for token in (A, B):
        store.enter_queue("bob", token, 15)
    clock.now += 10
    assert store.enter_queue("bob", B, 15) == 1
    assert store.enter_queue("bob", A, 15) == 0
    clock.now += 10
    assert tokens(store) == [A, B]


def test_a_place_that_is_not_renewed_is_lost(store, clock):
    store.enter_queue("bob", A, 15)
    clock.now += 10
    store.enter_queue("bob", B, 15)
    clock.now += 5
    assert tokens(store) == [B]
    assert store.enter_queue("bob", A, 15) == 1


def test_a_commit_gives_the_place_up(store):
    for token in (A, B):
        store.enter_queue("bob", token, 15)
    store.commit("bob", store.stage(random_state([1])), None, place=A)
    assert tokens(store) == [B]


def test_a_commit_that_fails_leaves_the_place(store):
    store.enter_queue("bob", A, 15)
    first = store.stage(random_state([1]))
    with pytest.raises(SessionConflict):
        store.commit("bob", store.stage(random_state([2])), first, place=A)
    assert tokens(store) == [A]


def test_a_turn_whose_place_was_lost_to_another_is_not_committed(store, clock):
    store.enter_queue("bob", A, 15)
    clock.now += 15
    store.enter_queue("bob", B, 15)
    with pytest.raises(SessionConflict, match="another turn began"):
        store.commit("bob", store.stage(random_state([1])), None, place=A)
    assert store.head("bob") is None


def test_a_turn_whose_place_was_lost_to_nobody_is_committed(store, clock):
    store.enter_queue("bob", A, 15)
    clock.now += 15
    store.commit("bob", store.stage(random_state([1])), None, place=A)
    assert store.head("bob") is not None
    assert tokens(store) == []


def test_a_queue_outlives_its_session(store):
    store.commit("bob", store.stage(random_state([1])), None)
    store.enter_queue("bob", A, 15)
    store.delete_session("bob")
    assert tokens(store) == [A]
    store.commit("bob", store.stage(random_state([2])), None, place=A)


def test_a_queue_is_not_copied_by_a_fork(store):
    store.commit("bob", store.stage(random_state([1])), None)
    store.enter_queue("bob", A, 15)
    store.fork("bob", "rob")
    assert tokens(store, "rob") == []


def test_prune_removes_lost_places_and_leaves_the_others(store, clock):
    store.enter_queue("ann", A, 15)
    clock.now += 10
    store.enter_queue("bob", B, 15)
    clock.now += 5
    store.prune()
    assert store._backend.sql("SELECT session, seq FROM queue") == [(b"bob", 1)]


def test_a_store_with_queues_is_sound(store):
    for token in (A, B):
        store.enter_queue("bob", token, 15)
    assert store.check().problems == ()


def test_a_place_that_was_changed_is_nobodys_and_check_removes_it(store):
    store.enter_queue("bob", A, 15)
    store._backend.transact(lambda sql: sql("UPDATE queue SET token = 7", ()))
    assert tokens(store) == []
    assert "queue row of 'bob', place 1" in store.check(fix=True).problems[0]
    assert store.check().sound


def test_two_processes_stores_see_one_queue(tmp_path):
    with DiskStateStore(tmp_path / "s") as one, DiskStateStore(tmp_path / "s") as other:
        assert one.enter_queue("bob", A, 15) == 0
        assert other.enter_queue("bob", B, 15) == 1
        assert tokens(one) == tokens(other) == [A, B]


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_a_place_holds_for_some_seconds(store, seconds):
    with pytest.raises(ValueError, match="some seconds"):
        store.enter_queue("bob", A, seconds)


def test_a_session_needs_a_name(store):
    for verb in (
        lambda: store.enter_queue("", A, 15),
        lambda: store.leave_queue("", A),
        lambda: store.queue(""),
    ):
        with pytest.raises(ValueError, match="name"):
            verb()


def test_a_closed_store_says_so(store):
    store.close()
    for verb in (
        lambda: store.enter_queue("bob", A, 15),
        lambda: store.leave_queue("bob", A),
        lambda: store.queue("bob"),
    ):
        with pytest.raises(StoreError, match="closed"):
            verb()


async def test_the_async_twins_do_the_same(store):
    assert await store.aenter_queue("bob", A, 15) == 0
    assert [turn.token for turn in await store.aqueue("bob")] == [A]
    assert await store.aleave_queue("bob", A)
