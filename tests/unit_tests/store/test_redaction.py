"""Turns that are taken out of a session: what stays, what goes, and what is refused.

The law: a session that lost a turn stands where it would if the turn had never been. A `Reader`'s
states depend on the ids alone, so references say whether it does.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
from contextlib import closing
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from langchain_rwkv_state.errors import (
    ModelLoadError,
    SessionConflict,
    StateCorrupt,
    StateMismatch,
    StateNotFound,
    StoreError,
    StoreFull,
)
from langchain_rwkv_state.state import reference
from langchain_rwkv_state.store import DiskStateStore, MemoryStateStore, redaction
from langchain_rwkv_state.store.records import unpack_tokens
from tests.helpers.found import forms_of_ids, forms_of_ref, found_in
from tests.helpers.states import DAY, Reader, SetClock, chat, random_state, turns


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture(params=["memory", "disk"])
def store(request, clock, tmp_path):
    settings: dict[str, Any] = {"ttl": DAY, "clock": clock, "log": "tokens"}
    made = (
        MemoryStateStore(**settings)
        if request.param == "memory"
        else DiskStateStore(tmp_path / "store", **settings)
    )
    with made as opened:
        yield opened


@pytest.fixture
def runtime():
    return Reader()


@pytest.fixture(scope="module")
def long_session():
    with MemoryStateStore(log="tokens") as store:
        chat(store, Reader(), "bob", 102)
        yield store


def told(store: Any, session: str) -> list[list[int]]:
    """Returns the ids of each turn of a session, oldest first."""
    log = store._view().log(session)[::-1]
    return [unpack_tokens(turn.origin.tokens) for turn in log]


def all_of(turns_: list[list[int]]) -> list[int]:
    """Returns the ids of turns, one after the other."""
    return list(chain.from_iterable(turns_))


def require_as_if(store: Any, session: str, tokens: list[int], runtime: Reader) -> None:
    """Checks that a session stands where these ids lead, and can go on from there."""
    expected = runtime.read(tokens)
    head = store.head(session)
    assert store.get(head) == expected
    assert head == store.stage(expected)
    assert [entry.seq for entry in store.log(session)] == list(
        range(store.session(session).n_turns, 0, -1)
    )
    assert store.session(session).n_tokens == len(tokens)
    assert store.check().problems == ()
    for entry in store.log(session):
        store.rebuild(entry.ref, runtime)


class Written:
    """A chat object, as far as a store asks one: ids are letters, a turn begins with 7."""

    def __init__(self, runtime: Reader) -> None:
        self.runtime = runtime
        self.tokenizer = SimpleNamespace(decode=lambda ids: "".join(chr(65 + n % 26) for n in ids))
        self.template = self

    def loaded(self) -> Any:
        """As of a chat object."""
        return self

    def opening_ids(self, ids: Any) -> tuple[int, ...]:
        """As of a template: 9 begins a conversation."""
        return (9, *ids)

    def block_length(self, ids: Any, digest: str) -> int | None:
        """As of a template; a digest is the number, in words."""
        return int(digest) if digest.isdigit() else None


# -- the transcript ------------------------------------------------------------------------------


def test_a_transcript_has_the_turns_oldest_first_with_their_numbers(store, clock, runtime):
    refs, _ = chat(store, runtime, "bob", 3)
    found = store.transcript("bob", Written(runtime))
    assert [turn.number for turn in found] == [1, 2, 3]
    assert [turn.ref for turn in found] == refs
    assert [turn.text for turn in found] == ["ABCD", "BBCD", "CBCD"]
    assert {turn.created_seconds for turn in found} == {clock()}
    assert not any(turn.joined for turn in found)


def test_a_transcript_is_no_use_of_the_session(store, clock, runtime):
    chat(store, runtime, "bob", 1)
    clock.advance(DAY - 10)
    store.transcript("bob", Written(runtime))
    clock.advance(11)
    assert store.head("bob") is None


def test_the_oldest_turn_of_a_long_log_says_that_others_are_in_it(long_session, runtime):
    found = long_session.transcript("bob", Written(runtime))
    assert [turn.number for turn in found] == list(range(3, 103))
    assert [turn.joined for turn in found[:2]] == [True, False]
    assert found[0].text == "ABCDBBCDCBCD"


def test_turns_whose_ids_were_not_kept_are_named_without_a_text(tmp_path, runtime):
    with DiskStateStore(tmp_path / "store") as store:
        chat(store, runtime, "bob", 2)
        with pytest.raises(ValueError, match=r"No token ids of the session 'bob' .*'tokens'"):
            store.transcript("bob", Written(runtime))
        with pytest.raises(ValueError, match="No token ids of the session 'bob' are kept"):
            store.redact("bob", [1], runtime)
    with DiskStateStore(tmp_path / "store", log="tokens") as store:
        chat(store, runtime, "bob", 1)
        found = store.transcript("bob", Written(runtime))
        assert [turn.text for turn in found] == [None, None, "ABCD"]
        for number in (1, 2):
            with pytest.raises(ValueError, match=rf"token ids of turn {number} .* are not kept"):
                store.redact("bob", [number], runtime)
        before = store.log("bob")[1].ref
        assert store.redact("bob", [3], runtime).head == before
        assert store.check().problems == ()


def test_a_session_that_is_not_there_has_no_transcript(store, runtime):
    with pytest.raises(StateNotFound, match="There is no session 'bob'"):
        store.transcript("bob", Written(runtime))
    with pytest.raises(StateNotFound, match="There is no session 'bob'"):
        store.redact("bob", [1], runtime)


def test_without_a_model_that_fits_the_error_says_what_to_do(store, runtime):
    chat(store, runtime, "bob", 1)
    for verb in (store.transcript, lambda name: store.redact(name, turns=[1])):
        with pytest.raises(ModelLoadError, match="make a ChatRWKV with its model and use it once"):
            verb("bob")
    other = Reader("v7-two/fp32/other/chat")
    with pytest.raises(StateMismatch, match="pass a chat object of the session's model"):
        store.transcript("bob", Written(other))
    with pytest.raises(StateMismatch, match="v7-two/fp32/tok/chat"):
        store.redact("bob", [1], Reader("v7-two/fp32/tok/chat"))
    with pytest.raises(TypeError, match="a chat object or a Runtime, got 'demo'"):
        store.redact("bob", [1], "demo")
    with pytest.raises(ValueError, match="A runtime has no tokenizer"):
        store.transcript("bob", runtime)


# -- what stays ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [[2], [4], [2, 3], [3, 4], [2, 4], [4, 2, 4]], ids=str)
def test_a_session_stands_where_it_would_if_the_turns_had_never_been(store, runtime, gone):
    chat(store, runtime, "bob", 4)
    before = told(store, "bob")
    said = store.redact("bob", gone, runtime)
    left = [ids for number, ids in enumerate(before, 1) if number not in gone]
    assert told(store, "bob") == left
    require_as_if(store, "bob", all_of(left), runtime)
    assert said.session == "bob"
    assert said.turns == tuple(sorted(set(gone)))
    assert said.head == store.head("bob")
    assert said.sessions == said.owners == ()
    chat(store, runtime, "bob", 1)
    assert store.session("bob").n_turns == len(left) + 1


def test_the_turn_that_a_conversation_begins_with_can_go(store, runtime):
    chat(store, runtime, "bob", 3)
    before = told(store, "bob")
    with pytest.raises(ValueError, match="pass the chat object of the model"):
        store.redact("bob", [1], runtime)
    store.redact("bob", [1], Written(runtime))
    require_as_if(store, "bob", [9, *before[1], *before[2]], runtime)


def test_the_system_block_that_it_began_with_stays(store, runtime):
    head = None
    state = runtime.zero_state()
    for ids, block in (([1, 2, 3, 4], "2"), ([5, 6], "2")):
        _, state = runtime.forward(ids, state)
        state = state.with_system_digest(block)
        ref = store.stage(state, parent=head, tokens=ids)
        store.commit("bob", ref, head)
        head = ref
    store.redact("bob", [1], Written(runtime))
    assert store.get(store.head("bob")).system_digest == "2"
    require_as_if(store, "bob", [1, 2, 5, 6], runtime)


def test_what_stays_of_two_turns_is_still_known_as_the_system_block(store, runtime):
    head, state = None, runtime.zero_state()
    for ids in ([1, 2, 3, 4], [5, 6], [7, 8]):
        _, state = runtime.forward(ids, state)
        state = state.with_system_digest("2")
        ref = store.stage(state, parent=head, tokens=ids)
        store.commit("bob", ref, head)
        head = ref
    store.redact("bob", [1, 2], Written(runtime))
    assert store.get(store.head("bob")).system_digest == "2", "else it would be read again"
    require_as_if(store, "bob", [1, 2, 7, 8], runtime)


def test_a_system_block_that_cannot_be_told_from_the_turn_goes_and_is_read_anew(store, runtime):
    head, state = None, runtime.zero_state()
    for ids in ([1, 2, 3, 4], [5, 6]):
        _, state = runtime.forward(ids, state)
        state = state.with_system_digest("unknown")
        ref = store.stage(state, parent=head, tokens=ids)
        store.commit("bob", ref, head)
        head = ref
    store.redact("bob", [1], Written(runtime))
    assert store.get(store.head("bob")).system_digest is None
    require_as_if(store, "bob", [9, 5, 6], runtime)


def test_a_session_of_which_nothing_is_left_is_as_one_before_its_first_turn(store, runtime):
    chat(store, runtime, "bob", 2)
    said = store.redact("bob", [1, 2], runtime)
    info = store.session("bob")
    assert (said.head, info.head, info.n_turns, info.n_tokens) == (None, None, 0, 0)
    assert store.stats().states == 0
    assert store.check().problems == ()
    chat(store, runtime, "bob", 1)


def test_what_the_turns_said_and_when_stays_and_so_do_unread_messages(store, clock, runtime):
    head = None
    for number in range(3):
        clock.advance(60)
        state = runtime.read(list(range(10 * number + 10)))
        ids = list(range(10 * number, 10 * number + 10)) if number else list(range(10))
        ref = store.stage(state, parent=head, tokens=ids)
        store.commit("bob", ref, head, said=[f"said {number}"])
        head = ref
    store.append_unread("bob", ['"later"'])
    before, info = store.log("bob"), store.session("bob", renew=False)
    clock.advance(60)
    store.redact("bob", [2], runtime)
    after = store.log("bob")
    assert [entry.said for entry in after] == [("said 2",), ("said 0",)]
    assert [e.created_seconds for e in after] == [e.created_seconds for e in (before[0], before[2])]
    now = store.session("bob", renew=False)
    assert now.unread == ('"later"',)
    assert now.expires_seconds == info.expires_seconds, "it is no use of the session"


@pytest.mark.parametrize("history", [0, 1, 3])
def test_as_many_states_are_kept_as_before(tmp_path, runtime, history):
    with DiskStateStore(tmp_path / "store", history=history, log="tokens") as store:
        chat(store, runtime, "bob", 6)
    with DiskStateStore(tmp_path / "store", history=0, log="tokens") as store:
        store.redact("bob", [3], runtime)
        kept = [entry.kept for entry in store.log("bob")]
        assert kept == [at <= history for at in range(5)]
        store.redact("bob", [5], runtime)
        assert store.log("bob")[0].kept, "the head is read again where it was not kept"
        assert store.check().problems == ()


# -- what goes -----------------------------------------------------------------------------------


def test_a_fork_that_took_the_turn_over_loses_it_too(store, runtime):
    _, texts = chat(store, runtime, "bob", 1)
    store.fork("bob", "before")
    chat(store, runtime, "bob", 2, said=texts[0])
    store.fork("bob", "al")
    store.fork("bob", "cy", at=store.log("bob")[1].ref)
    chat(store, runtime, "al", 2)
    before = told(store, "al")
    untouched = store.session("before")
    said = store.redact("bob", [2], runtime)
    assert said.sessions == ("al", "cy")
    assert told(store, "al") == [before[0], *before[2:]]
    require_as_if(store, "al", all_of(told(store, "al")), runtime)
    require_as_if(store, "cy", before[0], runtime)
    assert store.session("before") == untouched


def test_a_fork_that_began_with_one_commit_of_all_loses_it_too(store, runtime):
    chat(store, runtime, "bob", 3)
    before = all_of(told(store, "bob"))
    _, state = runtime.forward([50, 51], store.get(store.head("bob")))
    store.commit("fork", store.stage(state, parent=store.head("bob"), tokens=[50, 51]), None)
    said = store.redact("bob", [2], runtime)
    assert said.sessions == ("fork",)
    require_as_if(store, "fork", [*before[:4], *before[8:], 50, 51], runtime)


def test_whoever_said_the_same_words_himself_keeps_them(store, clock, runtime):
    chat(store, runtime, "bob", 3)
    clock.advance(1)
    chat(store, runtime, "al", 2)
    info, heads = store.session("al", renew=False), store.log("al")
    on_its_way = store.stage(random_state([1]), parent=store.head("al"))
    said = store.redact("bob", [2], runtime)
    assert said.sessions == ()
    assert store.session("al", renew=False) == info
    assert store.log("al") == heads
    store.commit("al", on_its_way, store.head("al"))
    assert store.check().problems == ()


def test_nobody_keeps_a_state_that_stood_on_the_turn(store, runtime):
    refs, _ = chat(store, runtime, "bob", 4)
    amid = runtime.read(all_of(told(store, "bob"))[:6])
    store.put(amid)
    behind = runtime.read([*all_of(told(store, "bob")), 99])
    for owner, state in (("thread:1", behind), ("thread:2", amid)):
        store.keep(store.stage(state, parent=refs[3], tokens=[99]), owner)
    store.keep(refs[2], "thread:1")
    store.put(store.get(refs[3]))
    store.keep(refs[3], "thread:3")
    said = store.redact("bob", [2], runtime)
    assert said.owners == ("thread:1", "thread:2", "thread:3")
    assert store.kept("thread:1") == store.kept("thread:2") == []
    assert store.stats().states == 2, "the head, and one before it"
    for state in (amid, behind):
        with pytest.raises(StateNotFound):
            store.get(reference(state.derivation, store._key))
    assert store.check().problems == ()


def test_a_state_that_was_read_in_one_go_is_known_by_its_ids(store, runtime):
    chat(store, runtime, "bob", 3)
    ids = all_of(told(store, "bob"))
    whole = store.stage(runtime.read([*ids, 77]), tokens=[*ids, 77])
    store.keep(whole, "thread")
    other = store.stage(runtime.read([*ids[:4], 77]), tokens=[*ids[:4], 77])
    store.keep(other, "other")
    assert store.redact("bob", [2], runtime).owners == ("thread",)
    assert store.kept("other") == [other], "it parts from the session before the turn"


def test_what_is_staged_on_the_turn_is_dropped(store, runtime):
    refs, _ = chat(store, runtime, "bob", 2)
    behind = store.stage(random_state([1]), parent=refs[1])
    further = store.stage(random_state([2]), parent=behind)
    elsewhere = store.stage(random_state([3]), parent=refs[0])
    store.redact("bob", [2], runtime)
    for ref in (behind, further):
        with pytest.raises(StateNotFound):
            store.get(ref)
    store.get(elsewhere)


def test_what_was_being_read_on_from_it_is_staged_no_more(store, runtime):
    """An answer under way, which else would be committed as a fork or kept by an owner."""
    refs, _ = chat(store, runtime, "bob", 2)
    under_way = runtime.read([*all_of(told(store, "bob")), 5])
    store.redact("bob", [2], runtime)
    with pytest.raises(StateNotFound, match="was redacted while an answer was read on"):
        store.stage(under_way, parent=refs[1], tokens=[5])
    chat(store, runtime, "bob", 1)
    store.stage(runtime.read([*all_of(told(store, "bob")), 5]), parent=store.head("bob"))


def test_a_turn_that_was_said_twice_stays_once_and_goes_on(store, runtime):
    head, state = None, runtime.zero_state()
    for ids in ([1, 2], [3, 4], [3, 4]):
        _, state = runtime.forward(ids, state)
        ref = store.stage(state, parent=head, tokens=ids)
        store.commit("bob", ref, head)
        head = ref
    store.redact("bob", [2], runtime)
    require_as_if(store, "bob", [1, 2, 3, 4], runtime)
    chat(store, runtime, "bob", 1)


def test_an_expired_fork_goes_as_a_whole(store, clock, runtime):
    chat(store, runtime, "bob", 2)
    store.fork("bob", "al")
    clock.advance(DAY - 10)
    store.session("bob")
    clock.advance(20)
    before = store.stats().sessions
    store.redact("bob", [2], runtime)
    assert (before, store.stats().sessions) == (2, 1)
    assert store.check().problems == ()


def test_a_bundle_that_is_made_afterwards_holds_nothing_of_it(store, runtime, tmp_path):
    chat(store, runtime, "bob", 3)
    store.redact("bob", [2], runtime)
    store.export_session("bob", tmp_path / "bob.zip", tokens=True)
    with MemoryStateStore(log="tokens") as other:
        other.import_session(tmp_path / "bob.zip")
        assert told(other, "bob") == told(store, "bob")


def test_no_byte_of_it_is_left_on_the_disk(tmp_path, runtime):
    path = tmp_path / "store"
    with DiskStateStore(path, log="tokens", staged_bytes=0, history=2) as store:
        wanted: dict[str, bytes] = {}
        for number in range(40):  # pages split and join, and old ones go back to the free list
            chat(store, runtime, f"other {number}", 2, said=[number])
        head, state = None, runtime.zero_state()
        turns_of_bob = [[200 + n, 17, 3, 99, 21, 55, number] for number, n in enumerate(range(6))]
        for ids in turns_of_bob:
            _, state = runtime.forward(ids, state)
            ref = store.stage(state, parent=head, tokens=ids)
            store.commit("bob", ref, head, said=[f"digest of {ids[0]} xyz"])
            wanted |= forms_of_ref(ref) if ids[0] > 202 else {}
            head = ref
        store.fork("bob", "al")
        store.keep(store.stage(state, parent=head), "thread")
        spilled = runtime.read([*all_of(turns_of_bob), 5])
        store.stage(spilled, parent=head, tokens=[5])
        store.stage(random_state([1]))  # for which the one before goes to a file
        wanted |= forms_of_ids(turns_of_bob[3]) | {"its digest in the log": b"digest of 203 xyz"}
        for name, each in (("head", state), ("staged", spilled)):
            wanted[f"bytes of the {name}"] = each["blocks.0.att_kv"].numpy().tobytes()[:64]
        before = {word.partition(":")[0] for word in found_in(path, wanted)}
        assert before >= wanted.keys() - {"ids", *(f"ids in base64 ({n})" for n in range(3))}
        assert any(word.startswith("ids in base64") for word in before)
        store.redact("bob", [4], runtime)
        assert found_in(path, wanted) == []
        assert found_in(path, forms_of_ids(turns_of_bob[4])) != [], "the search does find things"
        assert store.check().problems == ()
    assert found_in(path, wanted) == []


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns_", "said"),
    [
        ([], "turns is a list of turns' numbers"),
        ("3", "turns is a list of turns' numbers"),
        (3, "turns is a list of turns' numbers"),
        ([0], "has turns 1 to 102, and 0 is none of them"),
        ([103], "has turns 1 to 102, and 103 is none of them"),
        ([True], "True is none of them"),
        (["2"], "'2' is none of them"),
        ([2], r"Turn 2 .* lies before its log, which reaches back to turn 3"),
        ([3], r"Turn 3 .* is the oldest in its log"),
    ],
)
def test_turns_that_are_not_there_are_named(long_session, runtime, turns_, said):
    store = long_session
    head = store.head("bob")
    with pytest.raises(ValueError, match=said):
        store.redact("bob", turns_, runtime)
    assert store.head("bob") == head


def test_the_first_turn_in_a_long_log_that_can_go(long_session, runtime):
    assert long_session.redact("bob", [4], runtime).turns == (4,)
    assert long_session.transcript("bob", Written(runtime))[0].number == 3
    assert long_session.check().problems == ()


def test_what_was_not_read_from_ids_alone_is_refused(store, runtime):
    chat(store, runtime, "bob", 1)
    donor = runtime.read([1, 2, 3])
    store.keep(store.begin("both", donor), "somebody")
    chat(store, runtime, "both", 2)
    head = store.head("both")
    with pytest.raises(StateCorrupt, match="not read from them alone"):
        store.redact("both", [1], runtime)
    assert store.head("both") == head
    store.redact("both", [2], runtime)
    assert store.check().problems == ()


def test_a_turn_under_way_keeps_its_session_as_it_is(store, runtime):
    chat(store, runtime, "bob", 2)
    head = store.head("bob")
    store.enter_queue("bob", "token", 60)
    with pytest.raises(SessionConflict, match="A turn of session 'bob' is under way"):
        store.redact("bob", [1], Written(runtime))
    assert store.head("bob") == head
    assert store.check().problems == ()


@pytest.mark.parametrize("moved", ["bob", "al"])
def test_a_session_that_moves_meanwhile_is_not_lost(store, runtime, moved):
    chat(store, runtime, "bob", 3)
    store.fork("bob", "al")

    class Slow(Reader):
        came = False

        def forward(self, tokens: Any, state: Any) -> Any:
            if state.n_tokens and not self.came:  # the state before is there by then
                self.came = True
                turns(store, moved, 1)
            return super().forward(tokens, state)

    with pytest.raises(SessionConflict, match=f"The session '{moved}' moved"):
        store.redact("bob", [2], Slow())
    assert store.session(moved).n_turns == 4
    assert store.session("bob").n_turns == 4 if moved == "bob" else 3
    assert store.check().problems == ()


def test_a_message_that_comes_meanwhile_stays_unread(store, runtime):
    chat(store, runtime, "bob", 3)

    class Slow(Reader):
        came = False

        def forward(self, tokens: Any, state: Any) -> Any:
            if state.n_tokens and not self.came:
                self.came = True
                store.append_unread("bob", ['"later"'])
            return super().forward(tokens, state)

    store.redact("bob", [2], Slow())
    assert store.session("bob").unread == ('"later"',)
    assert store.session("bob").n_turns == 2


def test_a_fork_that_comes_meanwhile_is_seen(store, runtime):
    chat(store, runtime, "bob", 3)

    class Slow(Reader):
        came = False

        def forward(self, tokens: Any, state: Any) -> Any:
            if state.n_tokens and not self.came:  # the state before is there by then
                self.came = True
                store.fork("bob", "al")
            return super().forward(tokens, state)

    with pytest.raises(SessionConflict, match="The session 'al' moved"):
        store.redact("bob", [2], Slow())
    assert store.redact("bob", [2], runtime).sessions == ("al",)


def test_a_fork_whose_own_ids_do_not_reach_back_is_named(tmp_path, runtime):
    with DiskStateStore(tmp_path / "store", log="tokens") as store:
        chat(store, runtime, "bob", 3)
        store.fork("bob", "al")
    with DiskStateStore(tmp_path / "store") as store:
        turns(store, "al", 1)
        head = store.head("bob")
        with pytest.raises(ValueError, match=r"turn 4 of the session 'al' are not kept"):
            store.redact("bob", [2], runtime)
        assert store.head("bob") == head


def test_a_full_store_leaves_the_session_as_it_was(tmp_path, runtime, monkeypatch):
    with DiskStateStore(tmp_path / "store", log="tokens") as store:
        chat(store, runtime, "bob", 5)
        head, files = store.head("bob"), sorted(tmp_path.rglob("*.safetensors"))
        monkeypatch.setattr(store, "_write", _full)
        with pytest.raises(StoreFull):
            store.redact("bob", [2], runtime)
        assert store.head("bob") == head
        assert sorted(tmp_path.rglob("*.safetensors")) == files


def _full(*_: object) -> None:
    raise StoreFull("No room.")


def test_a_read_only_store_is_not_changed(tmp_path, runtime):
    path = tmp_path / "store"
    with DiskStateStore(path, log="tokens") as store:
        chat(store, runtime, "bob", 2)
    with DiskStateStore(path, read_only=True) as store:
        assert len(store.transcript("bob", Written(runtime))) == 2
        with pytest.raises(StoreError, match="read-only"):
            store.redact("bob", [2], runtime)


# -- the scrubbing -------------------------------------------------------------------------------


def test_somebody_who_reads_what_was_there_before_is_told_of(tmp_path, runtime):
    path = tmp_path / "store"
    store = DiskStateStore(path, log="tokens", timeout_seconds=0.2)
    chat(store, runtime, "bob", 3)
    ids = told(store, "bob")[1]
    with closing(sqlite3.connect(path / "cache.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM log").fetchall()
        with pytest.raises(StoreError, match="still in its log of changes"):
            store.redact("bob", [2], runtime)
        assert len(store.log("bob")) == 2, "it is done"
    store.close()
    with DiskStateStore(path, log="tokens") as store:
        assert store._view().meta("scrub") is None
        assert ids not in told(store, "bob")
        assert store.check().problems == ()


@pytest.mark.parametrize("error", [StoreFull("No room."), StoreError("It is locked.")], ids=str)
def test_where_it_cannot_be_scrubbed_the_error_says_that_it_is_done(
    tmp_path, runtime, monkeypatch, error
):
    with DiskStateStore(tmp_path / "store", log="tokens") as store:
        chat(store, runtime, "bob", 2)

        def scrub(_: object) -> None:
            raise error

        monkeypatch.setattr(store._backend, "scrub", scrub)
        with pytest.raises(StoreError, match=f"The turns are out of the session 'bob', .*{error}"):
            store.redact("bob", [2], runtime)
        assert len(store.log("bob")) == 1


def test_what_a_killed_program_left_is_scrubbed_as_the_store_is_opened(
    tmp_path, runtime, monkeypatch
):
    path = tmp_path / "store"
    with DiskStateStore(path, log="tokens") as store:
        refs, _ = chat(store, runtime, "bob", 3)
        with monkeypatch.context() as patch:
            patch.setattr(redaction, "finish", lambda *_: None)
            patch.setattr(store._backend, "drop_blobs", lambda _: None)
            store.redact("bob", [2], runtime)
        wanted = {**forms_of_ref(refs[1]), **forms_of_ref(refs[2])}
        assert found_in(path, wanted) != []
    with DiskStateStore(path) as store:
        assert found_in(path, wanted) == []
        assert store.check().problems == ()


@pytest.mark.parametrize("nth", [1, 2])
def test_two_redactions_at_once_are_both_scrubbed(tmp_path, runtime, monkeypatch, nth):
    path = tmp_path / "store"
    with DiskStateStore(path, log="tokens") as store:
        chat(store, runtime, "bob", 2)
        store.commit("al", store.stage(runtime.read([99]), tokens=[99]), None)
        refs, _ = chat(store, runtime, "al", 1)
        scrub, asked = store._backend.scrub, []

        def beside(digests: Any) -> None:
            scrub(digests)
            asked.append(digests)
            if len(asked) == nth:  # the other has committed, and its scrubbing is to come
                with monkeypatch.context() as patch:
                    patch.setattr(redaction, "finish", lambda *_: None)
                    store.redact("al", [2], runtime)

        monkeypatch.setattr(store._backend, "scrub", beside)
        store.redact("bob", [2], runtime)
        assert refs[0][-64:] in set().union(*asked)
        assert found_in(path, forms_of_ref(refs[0])) == []
        assert store._view().meta("scrub") is None


def test_a_store_that_cannot_be_scrubbed_opens_and_says_so(tmp_path, runtime, monkeypatch, caplog):
    path = tmp_path / "store"
    with DiskStateStore(path, log="tokens") as store:
        chat(store, runtime, "bob", 2)
        monkeypatch.setattr(redaction, "finish", lambda *_: None)
        store.redact("bob", [2], runtime)
    monkeypatch.undo()

    def busy(*_: object) -> None:
        raise StoreError("Somebody reads.")

    monkeypatch.setattr("langchain_rwkv_state.store.disk_backend.DiskBackend.scrub", busy)
    with caplog.at_level(logging.WARNING), DiskStateStore(path) as store:
        assert len(store.log("bob")) == 1
    assert "What was redacted is not off the disk yet: Somebody reads." in caplog.text


def test_the_async_twins_do_the_same(store, runtime):
    chat(store, runtime, "bob", 3)

    async def both() -> tuple[Any, Any]:
        done = await store.aredact("bob", [2], runtime)
        return done, await store.atranscript("bob", Written(runtime))

    done, found = asyncio.run(both())
    assert done.turns == (2,)
    assert [turn.number for turn in found] == [1, 2]


def test_files_that_were_put_aside_go_too(tmp_path, runtime):
    path: Path = tmp_path / "store"
    with DiskStateStore(path, log="tokens") as store:
        refs, _ = chat(store, runtime, "bob", 3)
        aside = path / "damaged"
        aside.mkdir()
        (aside / f"{refs[1][-64:]}-0123456789abcdef.safetensors").write_bytes(b"old")
        (aside / f"{refs[0][-64:]}-0123456789abcdef.safetensors").write_bytes(b"other")
        store.redact("bob", [2], runtime)
        assert [each.read_bytes() for each in aside.iterdir()] == [b"other"]


def test_scrubbing_leaves_no_row_that_was_deleted_on_any_page(tmp_path):
    """SQLite's secure_delete does not do that by itself: pages that are rebuilt keep old rows."""
    dice, path = random.Random(6), tmp_path / "store"
    with DiskStateStore(path) as store:
        for number in range(400):
            mark = b"MARK%06d" % number

            def work(sql: Any, mark: bytes = mark) -> None:
                for _ in range(dice.randint(1, 4)):
                    key = b"s%d" % dice.randint(0, 20), dice.randint(0, 60)
                    body = mark * dice.randint(3, 60)
                    row = (*key, None, None, 0, 0.0, None, body, b"")
                    sql("INSERT OR REPLACE INTO log VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
                if dice.random() < 0.3:
                    of = b"s%d" % dice.randint(0, 20), dice.randint(0, 60)
                    sql("DELETE FROM log WHERE session = ? AND seq > ?", of)

            store._backend.transact(work)
        store._backend.scrub(frozenset())
        living = b"".join(body for (body,) in store._backend.sql("SELECT said FROM log"))
        marks = [b"MARK%06d" % number for number in range(400)]
        files = b"".join(each.read_bytes() for each in path.iterdir() if each.is_file())
        assert [mark for mark in marks if mark in files and mark not in living] == []
        assert any(mark in files for mark in marks)
