"""Pins that several caches share through one store, as replicas on several machines do."""

import logging
import threading
import time

import pytest

from langchain_rwkv_state import MemoryStateStore, PrefixStateCache
from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.prefix_cache import CachedState, Namespace, shared
from langchain_rwkv_state.state import Derivation, StateLayout
from langchain_rwkv_state.store import urls
from langchain_rwkv_state.store.redacted_ids import RedactedIds
from tests.helpers.shared_pins import SharingStore
from tests.helpers.states import random_state

LAYOUT = StateLayout.of(7, n_layer=1, n_embd=16, head_size=16)
MODEL = Namespace("model")
A, B = tuple(range(40)), tuple(range(100, 150))


def kept(ids) -> CachedState:
    return CachedState(random_state(ids, layout=LAYOUT))


@pytest.fixture
def store():
    with SharingStore() as made:
        yield made


@pytest.fixture
def replica(store, monkeypatch):
    """Makes a replica's cache, which has loaded the model and looks for news at each prompt."""
    monkeypatch.setattr(shared, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(shared, "_RETRY_SECONDS", 0.0)
    made: list[PrefixStateCache] = []

    def make(**options) -> PrefixStateCache:
        cache = PrefixStateCache(**{"ram_bytes": 1 << 20, "shared": store, **options})
        cache.warm("model")
        made.append(cache)
        return cache

    yield make
    _looks_end()
    for cache in made:
        cache.close()


def looked(cache, namespace, ids):
    """Looks up twice: what the first look brings, the second finds."""
    _looks_end()
    cache.lookup(namespace, ids)
    _looks_end()
    return cache.lookup(namespace, ids)


def _looks_end():
    for thread in threading.enumerate():
        if thread.name == "rwkv-shared-pins":
            thread.join(5)


def test_what_one_pins_another_finds(replica):
    one, other = replica(), replica()
    one.pin(MODEL, A, kept(A), "support")
    hit = looked(other, MODEL, (*A, 1))
    assert hit is not None
    assert (hit.n_tokens, hit.cached.state) == (len(A), kept(A).state)
    assert other.stats().pinned == ("support",)


def test_one_that_comes_later_has_it_when_its_model_is_loaded(replica):
    replica().pin(MODEL, A, kept(A), "support")
    later = replica()
    assert later.lookup(MODEL, (*A, 1)) is not None
    assert later.stats().pinned == ("support",)


def test_another_models_pins_wait_until_it_is_loaded(replica):
    other = Namespace("another")
    ids = CachedState(random_state(A, layout=LAYOUT, fingerprint="another"))
    replica().pin(other, A, ids, "support")
    later = replica()
    assert later.stats().pinned == ()
    later.warm("another")
    assert later.lookup(other, (*A, 1)) is not None


def test_a_salts_pin_stays_with_it(replica):
    mine, theirs = (Namespace("model", salt=salt) for salt in ("1" * 32, "2" * 32))
    replica().pin(mine, A, kept(A), "support")
    later = replica()
    assert later.lookup(theirs, (*A, 1)) is None
    assert later.lookup(MODEL, (*A, 1)) is None
    assert later.lookup(mine, (*A, 1)) is not None


def test_what_one_unpins_or_pins_anew_others_let_go(replica):
    one, other = replica(), replica()
    one.pin(MODEL, A, kept(A), "support")
    looked(other, MODEL, A)
    one.pin(MODEL, B, kept(B), "support")
    assert looked(other, MODEL, (*B, 1)) is not None
    assert [entry.node.depth for entry in other._index.entries() if entry.pin] == [len(B)]
    assert other.unpin("support")
    looked(one, MODEL, B)
    assert one.stats().pinned == ()
    assert not one.unpin("support")


def test_a_prompt_waits_for_no_look(replica, store, monkeypatch):
    cache = replica()
    asked, go_on = threading.Event(), threading.Event()
    real = store.shared_pins

    def slow():
        asked.set()
        assert go_on.wait(10)
        return real()

    monkeypatch.setattr(store, "shared_pins", slow)
    begun = time.monotonic()
    for _ in range(5):
        cache.lookup(MODEL, A)
    assert asked.wait(5)
    cache.lookup(MODEL, A)
    assert time.monotonic() - begun < 5
    go_on.set()


def test_looks_are_no_more_often_than_every_few_seconds(replica, store, monkeypatch):
    monkeypatch.setattr(shared, "LOOK_SECONDS", 60.0)
    cache = replica()
    for _ in range(5):
        looked(cache, MODEL, A)
    assert (store.pin_rows.looks, store.pin_rows.whole_reads) == (1, 1)


def test_a_store_that_is_away_is_a_warning_and_comes_back(replica, store, caplog):
    store.away = True
    with caplog.at_level(logging.WARNING):
        cache = replica()
        assert looked(cache, MODEL, A) is None
    assert "are not shared for a while: The server is away" in caplog.text
    assert cache.stats().errors >= 1
    with pytest.raises(StoreError, match="away"):
        cache.pin(MODEL, B, kept(B), "mine")
    assert cache.lookup(MODEL, (*B, 1)) is not None
    store.away = False
    replica().pin(MODEL, A, kept(A), "support")
    assert looked(cache, MODEL, (*A, 1)) is not None


def test_a_store_that_does_not_answer_keeps_no_model_from_loading(replica, store, monkeypatch):
    go_on = threading.Event()

    def silent():
        assert go_on.wait(10)
        raise StoreError("The server went away.")

    monkeypatch.setattr(shared, "_WARM_SECONDS", 0.01)
    monkeypatch.setattr(store, "shared_pins", silent)
    begun = time.monotonic()
    replica()
    assert time.monotonic() - begun < 5
    go_on.set()


def test_a_state_of_another_prompt_is_of_no_use(replica, store, caplog):
    store.shared_pins().put_pin("support", shared._written(MODEL), B, kept(A).state)
    with caplog.at_level(logging.WARNING):
        cache = replica()
        assert looked(cache, MODEL, (*B, 1)) is None
    assert caplog.text.count("of no use: It is the state of another prompt") == 1


def test_what_does_not_fit_is_told_once(replica, caplog):
    replica().pin(MODEL, A, kept(A), "support")
    with caplog.at_level(logging.WARNING):
        small = replica(ram_bytes=100)
        assert looked(small, MODEL, (*A, 1)) is None
    assert caplog.text.count("does not fit") == 1


def test_what_stands_on_a_redacted_turn_goes_from_the_store(replica, store):
    one, other = replica(), replica()
    one.pin(MODEL, A, kept(A), "support")
    one.pin(MODEL, B, kept(B), "stays")
    assert other.forget(RedactedIds(Derivation("model"), A, ((10, 20),))) >= 1
    assert [pin.name for pin in store.shared_pins().pins().pins] == ["stays"]
    looked(one, MODEL, A)
    assert one.stats().pinned == ("stays",)


def test_cleared_it_finds_again_what_is_pinned_for_all(replica):
    cache = replica()
    cache.pin(MODEL, A, kept(A), "support")
    cache.clear()
    assert cache.depth(MODEL, (*A, 1), limit=99) == 0
    assert looked(cache, MODEL, (*A, 1)) is not None


def test_a_store_that_shares_nothing_is_refused():
    for kind in (MemoryStateStore(), "memory:", "file:somewhere"):
        with pytest.raises(ValueError, match="shares no pins"):
            PrefixStateCache(shared=kind)


def test_closed_it_closes_what_it_opened_and_no_other(store, monkeypatch):
    given = PrefixStateCache(shared=store)
    given.close()
    assert store.sessions() == []
    monkeypatch.setattr(urls, "_redis_class", lambda: lambda *_, **__: store)
    named = PrefixStateCache(shared="redis://test_shared")
    named.warm("model")
    named.close()
    with pytest.raises(StoreError, match="closed"):
        store.sessions()


def test_its_text_shows_no_password():
    cache = PrefixStateCache(shared="redis://u:s3cret@h")
    assert "shared=open_store('redis://u:***@h')" in repr(cache)
