"""Pinned prefixes in a store: what is written and let go, and what a killed writer leaves."""

import logging

import pytest

from langchain_rwkv_state.errors import StateExpired, StateNotFound, StoreError
from langchain_rwkv_state.state import StateLayout
from langchain_rwkv_state.store.pins import PinNews
from tests.helpers.shared_pins import SharingStore
from tests.helpers.states import SetClock, random_state

LAYOUT = StateLayout.of(7, n_layer=1, n_embd=16, head_size=16)
A, B = tuple(range(40)), tuple(range(100, 150))


def state(ids):
    return random_state(ids, layout=LAYOUT)


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture
def store(clock):
    with SharingStore(clock=clock, ttl=60) as made:
        yield made


@pytest.fixture
def pins(store):
    return store.shared_pins()


def kept(store):
    """Returns how many states the store has."""
    store.prune()
    return store.stats().states


def test_what_is_pinned_is_listed_and_stays_for_good(store, pins, clock):
    pins.put_pin("support", "model/-", A, state(A))
    clock.advance(1e6)
    store.prune()
    (pin,) = pins.pins().pins
    assert (pin.name, pin.namespace, pin.ids) == ("support", "model/-", A)
    assert pins.pinned_state(pin) == state(A)


def test_a_look_reads_all_only_when_something_changed(store, pins):
    pins.put_pin("a", "model", A, state(A))
    news = pins.pins()
    assert pins.pins(news.generation) == PinNews(news.generation, None)
    pins.put_pin("b", "model", B, state(B))
    assert {pin.name for pin in pins.pins(news.generation).pins} == {"a", "b"}
    assert store.pin_rows.whole_reads == 2


def test_a_name_holds_one_prefix_in_each_namespace(store, pins):
    for namespace, ids in (("x", A), ("y", A), ("x", B)):
        pins.put_pin("a", namespace, ids, state(ids))
    assert {(pin.namespace, pin.ids) for pin in pins.pins().pins} == {("x", B), ("y", A)}
    assert pins.drop_pin("a", "y") == 1
    assert kept(store) == 1
    assert pins.drop_pin("a") == 1
    assert pins.drop_pin("a") == 0
    assert (pins.pins().pins, kept(store), store.pin_rows.old) == ((), 0, [])


def test_a_state_of_two_pins_goes_with_the_second(store, pins):
    for name in ("a", "b"):
        pins.put_pin(name, "model", A, state(A))
    pins.drop_pin("a")
    (pin,) = pins.pins().pins
    assert pins.pinned_state(pin) == state(A)


def test_what_a_killed_writer_leaves_goes_by_itself(store, pins, clock, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(store.pin_rows, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        pins.put_pin("a", "model", A, state(A))
    monkeypatch.undo()
    assert pins.pins().pins == ()
    clock.advance(3601)
    assert kept(store) == 0


def test_what_was_not_released_is_by_the_next(store, pins, monkeypatch):
    pins.put_pin("a", "model", A, state(A))

    def away(*_):
        raise StoreError("The server is away.")

    monkeypatch.setattr(store, "release", away)
    with pytest.raises(StoreError, match="away"):
        pins.drop_pin("a")
    monkeypatch.undo()
    assert (pins.pins().pins, kept(store)) == ((), 1)
    pins.put_pin("b", "model", B, state(B))
    assert kept(store) == 1


@pytest.mark.parametrize("others", [A, B])
def test_of_two_that_pin_one_name_at_once_the_first_leaves_no_state_for_good(
    store, pins, monkeypatch, others
):
    put = store.pin_rows.put

    def put_before_another(*given):
        monkeypatch.undo()
        put(*given)
        pins.put_pin("a", "model", others, state(others))

    monkeypatch.setattr(store.pin_rows, "put", put_before_another)
    pins.put_pin("a", "model", A, state(A))
    assert [pin.ids for pin in pins.pins().pins] == [others]
    assert kept(store) == 1
    pins.drop_pin("a")
    assert kept(store) == 0


def test_a_changed_row_is_told_of_and_hides_no_other(store, pins, caplog):
    pins.put_pin("a", "model", A, state(A))
    pins.put_pin("b", "model", B, state(B))
    key = next(iter(store.pin_rows.rows))
    row = bytearray(store.pin_rows.rows[key])
    row[-1] ^= 1
    store.pin_rows.rows[key] = bytes(row)
    with caplog.at_level(logging.WARNING):
        assert [pin.name for pin in pins.pins().pins] == ["b"]
    assert "of no use" in caplog.text


def test_a_state_that_went_is_an_error(store, pins):
    pins.put_pin("a", "model", A, state(A))
    (pin,) = pins.pins().pins
    pins.drop_pin("a")
    store.close()
    again = SharingStore().shared_pins()
    with pytest.raises((StateNotFound, StateExpired)):
        again.pinned_state(pin)


def test_a_lossy_store_pins_nothing():
    with SharingStore(codec="int8") as lossy, pytest.raises(StoreError, match="must be exact"):
        lossy.shared_pins().put_pin("a", "model", A, state(A))


def test_a_name_is_checked(pins):
    with pytest.raises(ValueError, match="pin name"):
        pins.put_pin("", "model", A, state(A))


def test_no_other_store_has_pins(disk_store):
    assert not disk_store.shares_pins
    with pytest.raises(StoreError, match="shares no pinned prefixes"):
        disk_store.shared_pins()
