"""What a prefix cache keeps of turns that were taken out of a session: nothing, on disk neither."""

from __future__ import annotations

import logging

import pytest
from langchain_core.messages import BaseMessage, HumanMessage

from langchain_rwkv_state import ChatRWKV, DiskStateStore, MemoryStateStore, PrefixStateCache
from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.prefix_cache import CachedState, Namespace
from langchain_rwkv_state.prefix_cache.redacted import StandsOn
from langchain_rwkv_state.prompt.plan import ids_of
from langchain_rwkv_state.state import Derivation, StateLayout
from langchain_rwkv_state.store.redacted_ids import RedactedIds, listeners
from tests.helpers.found import forms_of_ids, found_in
from tests.helpers.states import random_state

LAYOUT = StateLayout.of(7, n_layer=1, n_embd=16, head_size=16)
ZERO = Namespace("model")
BEFORE, TURN, BEHIND = tuple(range(40)), tuple(range(100, 140)), tuple(range(200, 240))
REDACTED = RedactedIds(Derivation("model"), (*BEFORE, *TURN, *BEHIND), ((40, 80),))
OTHER = tuple(range(300, 340))


def kept(ids: tuple[int, ...]) -> CachedState:
    return CachedState(random_state(ids, layout=LAYOUT))


@pytest.mark.parametrize(
    ("ids", "goes", "goes_pinned"),
    [
        (BEFORE, False, False),
        ((*BEFORE, *TURN), True, True),
        ((*BEFORE, *TURN, *BEHIND), True, True),
        ((*BEFORE, *TURN, *OTHER), True, True),
        ((*BEFORE, *TURN[:3]), True, False),
        ((*BEFORE, *TURN[:3], *OTHER), False, False),
        ((*BEFORE, *TURN[:30], *OTHER), True, False),
        ((*BEFORE, *OTHER), False, False),
        ((*OTHER, *TURN), False, False),
        (OTHER, False, False),
    ],
)
def test_what_stands_on_the_turn_goes(ids, goes, goes_pinned):
    stands = StandsOn(REDACTED)
    key = b"".join(token.to_bytes(4, "little") for token in ids)
    assert stands(ZERO, key, pinned=False) == goes
    assert stands(ZERO, key, pinned=True) == goes_pinned
    assert not stands(Namespace("another model"), key, pinned=False)


@pytest.mark.parametrize(
    ("read", "ids", "goes"),
    [
        (BEFORE, (*TURN, 1), True),
        (BEFORE, OTHER, False),
        (BEFORE[:9], BEFORE[9:], False),
        (BEFORE[:9], (*BEFORE[9:], *TURN), True),
        ((*BEFORE, *TURN), (1, 2), True),
        ((*BEFORE, *TURN[:5]), (1, 2), True),
        (OTHER, (1, *TURN, 2), True),
        ((*BEFORE, *TURN, *OTHER), (1, 2), True),
    ],
)
def test_so_does_what_was_read_from_a_state_along_the_way(read, ids, goes):
    base = Namespace.of(random_state(read, layout=LAYOUT))
    key = b"".join(token.to_bytes(4, "little") for token in ids)
    assert StandsOn(REDACTED)(base, key, pinned=False) == goes
    assert not StandsOn(REDACTED)(
        Namespace.of(random_state(OTHER, layout=LAYOUT)), key, pinned=True
    )


@pytest.mark.parametrize(("ids", "goes"), [((1, *TURN, 2), True), ((1, *TURN[:30], 2), False)])
def test_a_transcript_goes_by_the_turn_where_the_beginning_is_not_known(ids, goes):
    later = RedactedIds(
        random_state(BEFORE, layout=LAYOUT).derivation, (*TURN, *BEHIND), ((0, 40),)
    )
    key = b"".join(token.to_bytes(4, "little") for token in ids)
    assert StandsOn(later)(ZERO, key, pinned=False) == goes
    other = Namespace.of(random_state(OTHER, layout=LAYOUT))
    assert not StandsOn(later)(other, key, pinned=True), "somebody wants it"


def test_entries_go_from_memory_and_from_every_byte_on_disk(tmp_path):
    path = tmp_path / "prefixes"
    cache = PrefixStateCache(disk=path)
    for ids in (BEFORE, (*BEFORE, *TURN), (*BEFORE, *TURN, *BEHIND), OTHER):
        cache.insert(ZERO, ids, kept(ids))
    cache.pin(ZERO, BEFORE, kept(BEFORE), "before")
    assert cache.flush()
    wanted = forms_of_ids(TURN)
    wanted["its state"] = kept((*BEFORE, *TURN)).state["blocks.0.att_kv"].numpy().tobytes()[:64]
    assert {word.partition(":")[0] for word in found_in(path, wanted)} == {
        "ids",
        "its state",
    }
    assert cache.forget(REDACTED) == 2
    assert found_in(path, wanted) == []
    for ids, length in (((*BEFORE, *TURN, *BEHIND), 40), ((*OTHER, 1), 40)):
        hit = cache.lookup(ZERO, ids)
        assert hit is not None
        assert hit.n_tokens == length
    assert cache.forget(REDACTED) == 0
    cache.close()
    assert found_in(path, forms_of_ids(BEFORE)) != []


def test_what_another_process_wrote_goes_too(tmp_path):
    path = tmp_path / "prefixes"
    ids = (*BEFORE, *TURN)
    with_it = PrefixStateCache(disk=path)
    with_it.insert(ZERO, ids, kept(ids))
    with_it.close()
    cache = PrefixStateCache(disk=path)
    assert cache.forget(REDACTED) == 1
    assert found_in(path, forms_of_ids(TURN)) == []
    cache.close()


def test_a_directory_that_cannot_be_used_is_told_of(tmp_path, caplog):
    path = tmp_path / "prefixes"
    cache = PrefixStateCache(disk=path)
    path.write_text("no directory")
    with caplog.at_level(logging.CRITICAL), pytest.raises(StoreError, match="cannot be used"):
        cache.forget(REDACTED)
    path.unlink()
    cache.close()


def test_one_cache_that_cannot_be_used_keeps_no_other_from_forgetting(monkeypatch):
    ids = (*BEFORE, *TURN)
    caches = [PrefixStateCache() for _ in range(3)]
    for cache in caches:
        cache.insert(ZERO, ids, kept(ids))

    def forget(_: RedactedIds) -> int:
        raise StoreError("The directory cannot be used.")

    monkeypatch.setattr(caches[0], "forget", forget)
    monkeypatch.setattr("langchain_rwkv_state.prefix_cache.cache._caches", caches)
    with pytest.raises(StoreError, match="cannot be used"):
        sum(listener(REDACTED) for listener in listeners)
    assert [cache.stats().entries for cache in caches] == [1, 0, 0]


def test_a_session_that_lost_a_turn_left_none_of_it_in_the_caches(tmp_path):
    """What was read as a transcript lies on disk; a document in a session, in memory."""
    cache = PrefixStateCache(disk=tmp_path / "prefixes")
    with DiskStateStore(tmp_path / "store", log="tokens") as store:
        chat = ChatRWKV(model="demo", store=store, prefix_cache=cache, temperature=0, max_tokens=24)
        session = chat.with_session("bob")
        said: list[BaseMessage] = []
        for text in ("My name is Marlow.", "My dog is called Rex. " * 20, "I like tea."):
            said.append(HumanMessage(text))
            said.append(session.invoke(text))
        question = [*said, HumanMessage("What is my name?")]
        chat.invoke(question)  # as a transcript, which others may begin with
        assert cache.flush()
        ids = forms_of_ids(ids_of(chat.loaded().template.segments(said[2:4], start=False)))
        assert found_in(tmp_path / "prefixes", ids) != []
        before = cache.stats().entries
        done = store.redact("bob", turns=[2])
        assert done.cached >= 2
        assert cache.stats().entries < before
        assert found_in(tmp_path, ids) == []
        assert "Marlow" in chat.invoke(question).text, "what it does not know is read again"
    chat.unload()
    cache.close()


def test_nothing_is_left_of_a_document_that_a_fork_read_behind_the_turn():
    cache = PrefixStateCache()
    with MemoryStateStore(log="tokens") as store:
        chat = ChatRWKV(model="demo", store=store, prefix_cache=cache, temperature=0, max_tokens=8)
        for text in ("My name is Marlow.", "My dog is called Rex.", "I like tea."):
            chat.with_session("bob").invoke(text)
        store.fork("bob", "al")
        for text in ("I live in Lisbon.", "A document says many things. " * 20):
            chat.with_session("al").invoke(text)
        assert cache.stats().entries > 0
        done = store.redact("bob", turns=[2])
        assert (done.sessions, cache.stats().entries) == (("al",), 0)
    chat.unload()
    cache.close()
