"""What is filed in memory under a turn, and the turns that wait to be stored."""

from __future__ import annotations

import pytest

from langchain_rwkv_state import DiskStateStore, MemoryStateStore
from langchain_rwkv_state.conversation.filings import EndedTurn, Filing, Filings, filings_of
from tests.helpers.states import SetClock, random_state

TURN = EndedTurn(('"one"',), None, None, None, 0, None)


def test_filings_are_given_back_in_order_until_forgotten():
    filings, filed = Filings(), [Filing("digest", f"ref {n}", None) for n in range(2)]
    for filing in filed:
        filings.file("turn", filing)
    assert filings.of("turn") == filed
    assert filings.of("other") == filings.of(None) == []
    filings.forget("turn")
    filings.forget("turn")
    assert filings.of("turn") == []


def test_filings_go_after_a_quarter_of_an_hour():
    clock = SetClock()
    filings = Filings(clock)
    filings.file("turn", Filing("digest", "ref", None))
    clock.advance(14 * 60)
    assert len(filings.of("turn")) == 1
    clock.advance(2 * 60)
    assert filings.of("turn") == []


def test_two_objects_of_one_store_share_them(tmp_path):
    with DiskStateStore(tmp_path) as one, DiskStateStore(tmp_path) as other:
        assert filings_of(one) is filings_of(other)
    with MemoryStateStore() as one, MemoryStateStore() as other:
        assert filings_of(one) is not filings_of(other)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_turns_that_wait_to_be_stored_move_with_their_session(kind, tmp_path):
    with MemoryStateStore() if kind == "memory" else DiskStateStore(tmp_path) as store:
        store.commit("bob", store.stage(random_state([1])), None)
        filings_of(store).note_unsaved("bob", TURN)
        store.rename("bob", "al")
        assert filings_of(store).take_unsaved("bob") == []
        assert filings_of(store).take_unsaved("al") == [TURN]


def test_a_turn_that_waits_to_be_stored_outlives_the_object_that_it_was_noted_by(tmp_path):
    store = DiskStateStore(tmp_path)
    filings_of(store).note_unsaved("bob", TURN)
    del store
    with DiskStateStore(tmp_path) as later:
        assert filings_of(later).take_unsaved("bob") == [TURN]
