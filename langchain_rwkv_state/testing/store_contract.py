"""Tests what every `StateStore` must do: one suite, to be run against any implementation.

It uses the public verbs alone; what an implementation promises beyond them is tested beside it.
"""

from __future__ import annotations

import asyncio
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch

from langchain_rwkv_state.errors import (
    SessionConflict,
    StateCorrupt,
    StateExpired,
    StateNotFound,
    StoreError,
    StoreFull,
)
from langchain_rwkv_state.state import RWKVState, is_reference
from langchain_rwkv_state.store import StateStore
from langchain_rwkv_state.testing.states import DAY, Reader, SetClock, chat, random_state, turns

MakeStore: TypeAlias = Callable[..., Any]
NAMES = [
    "bob",
    "a/b",
    "../../etc/passwd",
    "nul\x00in it",
    "\ud800 alone",
    "日本語 🐦",
    " ",
    "x" * 512,
]


def _in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs an async test without any plugin of pytest."""

    @wraps(test)
    def run(*args: Any, **fixtures: Any) -> None:
        asyncio.run(test(*args, **fixtures))

    return run


class StateStoreContract(ABC):
    """The suite: derive from it, say how a store is opened, and pytest runs all of it.

    Example:
        >>> class TestMyStore(StateStoreContract):
        ...     def open_store(self, **settings):
        ...         return MemoryStateStore(**settings)
    """

    keeps_tokens = True
    """Whether the store takes ``log="tokens"`` and has `rebuild`; else their tests are skipped."""

    share_of_bytes = 1.0
    """What a codec leaves of a small state's bytes."""

    tmp_path: Path
    """An empty directory of each test."""

    @abstractmethod
    def open_store(self, **settings: Any) -> StateStore:
        """Opens a store that is empty, also where one test opens several.

        Args:
            settings: ``ttl``, ``sliding``, ``history``, ``log``, ``size_limit`` and ``clock``, as
                of `MemoryStateStore`; those that a test leaves out have that store's defaults.
        """

    @pytest.fixture
    def make_store(self, tmp_path: Path) -> Iterator[Callable[..., StateStore]]:
        """Opens empty stores and closes them at the end."""
        self.tmp_path = tmp_path
        made: list[StateStore] = []

        def make(**settings: Any) -> StateStore:
            if settings.get("log") == "tokens" and not self.keeps_tokens:
                pytest.skip("This store keeps no token ids.")
            made.append(self.open_store(**settings))
            return made[-1]

        yield make
        for store in made:
            store.close()

    @pytest.fixture
    def clock(self) -> SetClock:
        """The store's clock, which stands until a test sets it."""
        return SetClock()

    @pytest.fixture
    def store(self, make_store: MakeStore, clock: SetClock) -> StateStore:
        """An empty store."""
        opened: StateStore = make_store(clock=clock)
        return opened

    # -- states ----------------------------------------------------------------------------------

    def test_a_put_state_comes_back_bit_for_bit(self, store: Any) -> None:
        state = random_state([1, 2, 3])
        ref = store.put(state)
        assert is_reference(ref)
        assert store.get(ref) == state
        assert store.get(ref).system_digest is None

    def test_a_states_block_digest_comes_back(self, store: Any) -> None:
        ref = store.put(random_state([1]).with_system_digest("digest"))
        assert store.get(ref).block == "digest"

    def test_two_stores_name_one_state_differently(self, make_store: MakeStore) -> None:
        state = random_state([1])
        assert make_store().put(state) != make_store().put(state)

    def test_one_text_has_one_reference_however_it_was_read(self, store: Any) -> None:
        assert store.put(random_state([1, 2])) == store.stage(random_state([1, 2]))

    def test_the_first_bytes_under_a_reference_stay(self, store: Any) -> None:
        first = random_state([1])
        other = first.advanced({name: first[name] + 1e-6 for name in first}, [])
        ref = store.put(first)
        assert store.put(other) == ref
        assert store.get(ref) == first

    def test_a_staged_state_is_readable_and_not_stored(self, store: Any) -> None:
        state = random_state([1])
        ref = store.stage(state)
        assert store.get(ref) == state
        stats = store.stats()
        assert (stats.states, stats.staged) == (0, 1)
        assert stats.staged_nbytes == state.nbytes

    def test_a_staged_state_goes_after_a_quarter_of_an_hour_and_the_error_says_so(
        self, store: Any, clock: SetClock
    ) -> None:
        ref = store.stage(random_state([1]))
        clock.advance(14 * 60)
        assert store.get(ref) == random_state([1])
        clock.advance(2 * 60)
        with pytest.raises(StateExpired, match="was staged and expired 60 seconds ago"):
            store.get(ref)
        with pytest.raises(StateExpired, match="was staged and expired"):
            store.commit("bob", ref, None)
        assert store.head("bob") is None
        store.commit("bob", store.stage(random_state([1])), None)
        assert store.head("bob") == ref

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_state_that_is_no_numbers_is_neither_staged_nor_stored(
        self, store: Any, value: Any
    ) -> None:
        sound = random_state([1])
        tensors = {name: sound[name] for name in sound}
        tensors[next(iter(tensors))].view(-1)[-1] = value
        broken = sound.advanced(tensors, [2])
        for verb in (store.stage, store.put):
            with pytest.raises(StateCorrupt, match="NaN or infinity"):
                verb(broken)
        assert (store.stats().states, store.stats().staged) == (0, 0)

    def test_large_numbers_are_stored(self, store: Any) -> None:
        sound = random_state([1])
        large = sound.advanced({name: torch.full_like(sound[name], 3e38) for name in sound}, [2])
        assert store.get(store.put(large)) == large

    @pytest.mark.parametrize(
        ("ttl", "seconds"), [("90", 90), ("1h", 3600), ("30m", 1800), ("2d", 172_800)]
    )
    def test_a_time_to_live_may_be_a_text(
        self, store: Any, clock: SetClock, ttl: Any, seconds: float
    ) -> None:
        turns(store, "bob", 1)
        store.commit("al", store.stage(random_state([3])), None, ttl)
        assert store.session("al").expires_seconds == clock() + seconds

    def test_any_number_of_staged_states_live(self, store: Any) -> None:
        refs = [store.stage(random_state([number])) for number in range(40)]
        for number, ref in enumerate(refs):
            assert store.get(ref) == random_state([number])
            store.commit(f"session {number}", ref, None)
        assert store.stats().staged == 0

    def test_two_turns_with_one_text_can_both_be_committed(self, make_store: MakeStore) -> None:
        store = make_store(history=0)
        refs = [store.stage(random_state([7])), store.stage(random_state([7]))]
        store.commit("a", refs[0], None)
        store.delete_session("a")
        store.commit("b", refs[1], None)
        assert store.get(refs[1]) == random_state([7])

    def test_an_unknown_reference_is_not_found(self, store: Any) -> None:
        with pytest.raises(StateNotFound, match="another store"):
            store.get("rwkv1-" + "0" * 64)

    @pytest.mark.parametrize("value", ["", "x", "rwkv1-", "rwkv1-" + "G" * 64, None, 7, b"x"])
    def test_what_is_no_reference_is_named(self, store: Any, value: Any) -> None:
        turns(store, "bob", 1)
        for verb in (
            lambda: store.get(value),
            lambda: store.keep(value, "thread"),
            lambda: store.commit("bob", value, None),
            lambda: value is None or store.commit("bob", store.head("bob"), value),
            lambda: value is None or store.fork("bob", "al", at=value),
            lambda: value is None or store.rewind("bob", to=value),
            lambda: value is None or store.stage(random_state([1]), parent=value),
        ):
            try:
                done = verb()
            except ValueError as error:
                assert repr(value) in str(error)  # noqa: PT017
            else:
                assert done is True

    # -- keep and release ------------------------------------------------------------------------

    def test_an_owner_holds_a_staged_state_durably(self, store: Any, clock: SetClock) -> None:
        ref = store.stage(random_state([1]))
        store.keep(ref, "thread:1")
        clock.advance(16 * 60)
        assert store.get(ref) == random_state([1])
        assert store.sessions() == []

    def test_release_lets_go_of_all_that_an_owner_keeps(self, store: Any) -> None:
        refs = [store.put(random_state([n])) for n in range(2)]
        refs.append(store.stage(random_state([3])))
        for ref in refs[1:]:
            store.keep(ref, "thread:1")
            store.keep(ref, "thread:1")
        assert store.release("thread:1") == 2
        assert store.release("thread:1") == 0
        store.get(refs[1])
        with pytest.raises(StateNotFound):
            store.get(refs[2])

    def test_one_owners_name_may_begin_with_anothers(self, store: Any) -> None:
        refs = [store.stage(random_state([n])) for n in range(2)]
        store.keep(refs[0], "t")
        store.keep(refs[1], "t\x00")
        assert store.release("t") == 1
        store.get(refs[1])

    def test_a_kept_state_outlives_its_session(self, store: Any) -> None:
        (ref,) = turns(store, "bob", 1)
        store.keep(ref, "thread:1")
        store.delete_session("bob")
        store.get(ref)
        store.release("thread:1")
        with pytest.raises(StateNotFound):
            store.get(ref)

    def test_keeping_what_is_not_there_fails(self, store: Any) -> None:
        with pytest.raises(StateNotFound):
            store.keep("rwkv1-" + "0" * 64, "thread:1")

    def test_what_an_owner_keeps_is_listed_oldest_first(self, store: Any, clock: SetClock) -> None:
        refs = []
        for number in (3, 1, 2):
            refs.append(store.stage(random_state([number])))
            store.keep(refs[-1], "thread:1", ttl=number * 100)
            clock.advance(10)
        store.keep(refs[0], "thread:1", ttl=400)
        store.keep(store.put(random_state([9])), "thread:10")
        assert store.kept("thread:1") == refs
        assert store.kept("thread:2") == []
        clock.advance(180)
        assert store.kept("thread:1") == [refs[0], refs[2]], "one has run out, and is not listed"
        store.release("thread:1")
        assert store.kept("thread:1") == []

    def test_listing_what_is_kept_renews_nothing(
        self, make_store: MakeStore, clock: SetClock
    ) -> None:
        store = make_store(clock=clock)
        store.keep(store.stage(random_state([1])), "thread", ttl=100)
        clock.advance(60)
        store.kept("thread")
        clock.advance(60)
        assert store.kept("thread") == []

    def test_a_copied_owner_keeps_the_same_states_on_its_own(
        self, store: Any, clock: SetClock
    ) -> None:
        refs = [store.stage(random_state([n])) for n in range(3)]
        for ref, ttl in zip(refs, (100, 200, math.inf), strict=True):
            store.keep(ref, "thread:1", ttl=ttl)
        clock.advance(90)
        assert store.copy_kept("thread:1", "thread:2") == 3
        assert sorted(store.kept("thread:2")) == sorted(refs)
        assert store.release("thread:1") == 3
        clock.advance(99)
        assert len(store.kept("thread:2")) == 3, "their times to live began anew with the copy"
        clock.advance(2)
        assert sorted(store.kept("thread:2")) == sorted(refs[1:]), "and are as long as they were"
        store.get(refs[2])

    def test_a_copied_owner_may_have_a_time_of_its_own(self, store: Any, clock: SetClock) -> None:
        store.keep(store.stage(random_state([1])), "thread:1", ttl=100)
        assert store.copy_kept("thread:1", "thread:2", ttl="1h") == 1
        assert store.copy_kept("nobody", "thread:3") == 0
        clock.advance(3599)
        assert (len(store.kept("thread:1")), len(store.kept("thread:2"))) == (0, 1)
        clock.advance(2)
        assert store.kept("thread:2") == []

    def test_what_has_run_out_is_not_copied(self, store: Any, clock: SetClock) -> None:
        store.keep(store.stage(random_state([1])), "thread:1", ttl=100)
        clock.advance(101)
        assert store.copy_kept("thread:1", "thread:2") == 0

    def test_keeping_renews_all_that_the_owner_keeps(
        self, make_store: MakeStore, clock: SetClock
    ) -> None:
        store = make_store(clock=clock)
        for owner in ("thread:1", "thread:2"):
            store.keep(store.put(random_state([1])), owner, ttl=100)
        for number in range(2, 6):
            clock.advance(60)
            store.keep(store.stage(random_state([number])), "thread:1", ttl=100)
        assert len(store.kept("thread:1")) == 5
        assert store.kept("thread:2") == [], "another owner's time went on"
        clock.advance(101)
        assert store.kept("thread:1") == []

    def test_keeping_what_is_kept_renews_all_too(
        self, make_store: MakeStore, clock: SetClock
    ) -> None:
        store = make_store(clock=clock)
        refs = [store.stage(random_state([n])) for n in range(2)]
        for ref in refs:
            store.keep(ref, "thread", ttl=100)
        for _ in range(3):
            clock.advance(60)
            store.keep(refs[1], "thread", ttl=100)
        assert sorted(store.kept("thread")) == sorted(refs)

    def test_keeping_within_a_tenth_of_the_time_renews_no_other(
        self, make_store: MakeStore, clock: SetClock
    ) -> None:
        store = make_store(clock=clock)
        refs = [store.stage(random_state([n])) for n in range(2)]
        store.keep(refs[0], "thread", ttl=100)
        clock.advance(9)
        store.keep(refs[1], "thread", ttl=100)
        clock.advance(92)
        assert store.kept("thread") == [refs[1]]

    def test_keeping_renews_no_other_in_a_store_that_does_not_slide(
        self, make_store: MakeStore, clock: SetClock
    ) -> None:
        store = make_store(clock=clock, sliding=False)
        refs = [store.stage(random_state([n])) for n in range(2)]
        store.keep(refs[0], "thread", ttl=100)
        clock.advance(60)
        store.keep(refs[1], "thread", ttl=100)
        clock.advance(60)
        assert store.kept("thread") == [refs[1]]

    # -- commit ----------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", NAMES, ids=ascii)
    def test_any_name_of_up_to_512_characters_will_do(self, store: Any, name: Any) -> None:
        (ref,) = turns_of_any_name(store, name)
        assert store.head(name) == ref
        assert store.sessions() == [name]
        assert store.session(name).session == name
        assert store.delete_session(name)
        assert store.sessions() == []

    @pytest.mark.parametrize("name", ["", "x" * 513, None, 7, b"bob"], ids=repr)
    def test_other_names_are_refused(self, store: Any, name: Any) -> None:
        ref = store.put(random_state([1]))
        for verb in (
            lambda: store.head(name),
            lambda: store.session(name),
            lambda: store.log(name),
            lambda: store.commit(name, ref, None),
            lambda: store.create_session(name),
            lambda: store.append_unread(name, ["{}"]),
            lambda: store.fork(name, "al"),
            lambda: store.fork("al", name),
            lambda: store.rewind(name),
            lambda: store.delete_session(name),
        ):
            with pytest.raises(ValueError, match="1 to 512 characters"):
                verb()

    def test_a_new_session_has_no_head(self, store: Any) -> None:
        assert store.head("bob") is None
        assert store.session("bob") is None
        assert store.log("bob") == []
        assert store.delete_session("bob") is False

    def test_a_commit_moves_the_head(self, store: Any, clock: SetClock) -> None:
        refs = turns(store, "bob", 3)
        assert store.head("bob") == refs[-1]
        info = store.session("bob")
        assert (info.head, info.n_turns, info.n_tokens) == (refs[-1], 3, 3 + 3)
        assert info.created_seconds == info.updated_seconds == clock.seconds
        assert info.expires_seconds == clock.seconds + 30 * DAY
        assert info.nbytes == pytest.approx(
            2 * self.share_of_bytes * random_state([1]).nbytes, rel=0.05
        )

    def test_a_committed_state_is_no_longer_staged(self, store: Any) -> None:
        turns(store, "bob", 2)
        assert store.stats().staged == 0

    def test_a_lost_race_leaves_the_other_turn(self, store: Any) -> None:
        (first,) = turns(store, "bob", 1)
        mine, theirs = store.stage(random_state([8])), store.stage(random_state([9]))
        store.commit("bob", theirs, first)
        with pytest.raises(SessionConflict) as caught:
            store.commit("bob", mine, first)
        assert all(part in str(caught.value) for part in ("'bob'", first, theirs))
        assert store.head("bob") == theirs
        assert store.session("bob").n_turns == 2
        assert store.get(mine) == random_state([8])

    def test_a_session_that_exists_is_not_new(self, store: Any) -> None:
        turns(store, "bob", 1)
        with pytest.raises(SessionConflict):
            store.commit("bob", store.stage(random_state([8])), None)

    def test_a_session_that_does_not_exist_has_no_parent(self, store: Any) -> None:
        ref = store.put(random_state([1]))
        with pytest.raises(SessionConflict):
            store.commit("bob", store.stage(random_state([8])), ref)
        assert store.head("bob") is None

    def test_a_turn_that_read_nothing_may_be_committed(self, store: Any) -> None:
        refs = turns(store, "bob", 2)
        store.commit("bob", refs[-1], refs[-1])
        assert store.session("bob").n_turns == 2

    def test_committing_an_unknown_state_changes_nothing(self, store: Any) -> None:
        refs = turns(store, "bob", 1)
        with pytest.raises(StateNotFound):
            store.commit("bob", "rwkv1-" + "0" * 64, refs[0])
        assert store.head("bob") == refs[0]

    def test_one_state_of_two_sessions_is_stored_once(self, store: Any) -> None:
        for name in ("a", "b"):
            store.commit(name, store.stage(random_state([1])), None)
        assert store.stats().states == 1
        store.delete_session("a")
        assert store.get(store.head("b")) == random_state([1])
        store.delete_session("b")
        assert store.stats().states == 0

    def test_a_state_may_be_held_by_many(self, store: Any) -> None:
        ref = store.put(random_state([1]))
        for number in range(70):
            store.commit(f"s{number}", ref, None)
            store.keep(ref, f"thread {number}")
        assert store.get(ref)
        for number in range(70):
            store.delete_session(f"s{number}")
            store.release(f"thread {number}")
        assert store.get(ref)
        assert store.check().sound

    def test_eight_threads_lose_no_turn(self, store: Any) -> None:
        wins: list[str] = []

        def write(worker: int) -> None:
            torch.set_num_threads(1)
            for number in range(5):
                while True:
                    head = store.head("bob")
                    ref = store.stage(random_state([worker, number, len(wins)]), parent=head)
                    try:
                        store.commit("bob", ref, head)
                    except SessionConflict:
                        continue
                    wins.append(ref)
                    break

        threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wins) == 40
        assert store.session("bob").n_turns == 40
        log = store.log("bob")
        assert {entry.ref for entry in log} == set(wins)
        assert all(newer.parent == older.ref for newer, older in pairwise(log))
        assert store.stats().states == 2
        assert store.check().sound

    # -- sessions without a turn -----------------------------------------------------------------

    def test_a_session_may_be_there_before_its_first_turn(self, store: Any) -> None:
        store.create_session("bob")
        info = store.session("bob")
        assert (info.head, info.unread, info.n_turns, info.n_tokens) == (None, (), 0, 0)
        assert (store.sessions(), store.head("bob"), store.log("bob")) == (["bob"], None, [])
        assert store.stats().states == 0
        ref = store.stage(random_state([1]))
        store.commit("bob", ref, None)
        assert (store.head("bob"), store.session("bob").n_turns) == (ref, 1)

    def test_a_session_that_is_there_is_not_made_again(self, store: Any) -> None:
        store.append_unread("bob", ['"one"'])
        with pytest.raises(SessionConflict, match="bob"):
            store.create_session("bob")
        assert store.session("bob").unread == ('"one"',)

    def test_a_session_without_a_turn_runs_out_as_any(self, store: Any, clock: SetClock) -> None:
        store.create_session("bob", ttl=50)
        clock.advance(51)
        assert store.session("bob") is None
        store.create_session("bob")
        assert store.delete_session("bob")
        assert store.sessions() == []

    # -- unread ----------------------------------------------------------------------------------

    def test_unread_messages_wait_behind_any_head(self, store: Any) -> None:
        store.append_unread("bob", ['"one"'])
        info = store.session("bob")
        assert (info.head, info.unread, info.n_turns) == (None, ('"one"',), 0)
        assert store.sessions() == ["bob"]
        store.append_unread("bob", ['"two"', '"three"'])
        ref = store.stage(random_state([1]))
        store.commit("bob", ref, None, unread_covered=2)
        assert store.session("bob").unread == ('"three"',)
        assert store.head("bob") == ref

    def test_a_lost_race_leaves_the_unread_messages(self, store: Any) -> None:
        store.append_unread("bob", ['"one"'])
        store.commit("bob", store.stage(random_state([1])), None)
        with pytest.raises(SessionConflict):
            store.commit("bob", store.stage(random_state([2])), None, unread_covered=1)
        assert store.session("bob").unread == ('"one"',)

    @pytest.mark.parametrize("covered", [-1, 2])
    def test_what_was_not_there_cannot_be_covered(self, store: Any, covered: int) -> None:
        store.append_unread("bob", ['"one"'])
        with pytest.raises(ValueError, match=str(covered)):
            store.commit("bob", store.stage(random_state([1])), None, unread_covered=covered)
        assert store.session("bob").unread == ('"one"',)

    def test_threads_append_unread_messages_without_losing_one(self, store: Any) -> None:
        def write(worker: int) -> None:
            for number in range(10):
                store.append_unread("bob", [f'"{worker}-{number}"'])

        threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(store.session("bob").unread)) == 40

    @pytest.mark.parametrize(
        "odd",
        [
            {"sliding": "no"},
            {"sliding": 1},
            {"said": [5]},
            {"said": "abc"},
            {"said": 5},
            {"unread_covered": "x"},
            {"unread_covered": True},
        ],
    )
    def test_what_could_not_be_read_again_is_not_written(
        self, store: Any, make_store: MakeStore, odd: Any
    ) -> None:
        ref = store.stage(random_state([1]))
        with pytest.raises(ValueError, match=next(iter(odd))):
            store.commit("bob", ref, None, **odd)
        assert store.session("bob") is None
        if "sliding" in odd:
            with pytest.raises(ValueError, match="sliding is True or False"):
                make_store(**odd)

    @pytest.mark.parametrize("value", ["x", None, 5])
    def test_what_is_no_state_is_refused(self, store: Any, value: Any) -> None:
        for verb in (store.stage, store.put):
            with pytest.raises(ValueError, match="keeps RWKVStates"):
                verb(value)

    def test_unread_messages_are_texts(self, store: Any) -> None:
        with pytest.raises(ValueError, match="list of texts"):
            store.append_unread("bob", "{}")
        store.append_unread("bob", [])
        assert store.session("bob") is None

    # -- history and log -------------------------------------------------------------------------

    @pytest.mark.parametrize("history", [0, 1, 3])
    def test_as_many_states_are_kept_as_history_says(
        self, make_store: MakeStore, history: int
    ) -> None:
        store = make_store(history=history)
        refs = turns(store, "bob", 5)
        assert [entry.kept for entry in store.log("bob")] == [
            number <= history for number in range(5)
        ]
        assert store.stats().states == history + 1
        for ref in refs[4 - history :]:
            store.get(ref)
        for ref in refs[: 4 - history]:
            with pytest.raises(StateNotFound):
                store.get(ref)

    def test_the_log_is_newest_first_and_names_parents(self, store: Any, clock: SetClock) -> None:
        refs = turns(store, "bob", 3)
        log = store.log("bob")
        assert [entry.ref for entry in log] == refs[::-1]
        assert [entry.parent for entry in log] == [refs[1], refs[0], None]
        assert [entry.n_tokens for entry in log] == [6, 5, 4]
        assert {entry.created_seconds for entry in log} == {clock.seconds}

    def test_the_log_keeps_its_last_100_entries(self, store: Any) -> None:
        refs = turns(store, "bob", 104)
        assert [entry.ref for entry in store.log("bob")] == refs[:-101:-1]
        assert store.session("bob").n_turns == 104
        with pytest.raises(StateNotFound, match="reaches back to turn 5"):
            store.rewind("bob", 101)

    def test_a_session_takes_a_fixed_number_of_states_however_long_it_is(self, store: Any) -> None:
        turns(store, "bob", 20)
        assert store.session("bob").nbytes <= 1.05 * 2 * random_state([1]).nbytes

    # -- fork ------------------------------------------------------------------------------------

    def test_a_fork_is_a_second_name_that_goes_its_own_way(self, store: Any) -> None:
        refs = turns(store, "bob", 3)
        assert store.fork("bob", "al") == refs[-1]
        assert store.stats().states == 2
        store.commit("al", store.stage(random_state([99])), refs[-1])
        assert store.head("bob") == refs[-1]
        assert [entry.ref for entry in store.log("al")][1:] == refs[::-1]
        assert store.session("al").n_turns == 4
        store.delete_session("bob")
        assert store.rewind("al") == refs[-1]

    def test_a_fork_at_an_earlier_state_has_the_log_up_to_there(
        self, make_store: MakeStore
    ) -> None:
        store = make_store(history=5)
        refs = turns(store, "bob", 4)
        assert store.fork("bob", "al", at=refs[1]) == refs[1]
        assert [entry.ref for entry in store.log("al")] == [refs[1], refs[0]]
        assert store.session("al").n_turns == 2
        assert store.session("al").n_tokens == 5

    def test_a_fork_of_the_head_takes_the_unread_messages_along(self, store: Any) -> None:
        refs = turns(store, "bob", 2)
        store.append_unread("bob", ['"one"'])
        store.fork("bob", "al")
        store.fork("bob", "cy", at=refs[0])
        assert store.session("al").unread == ('"one"',)
        assert store.session("cy").unread == ()

    def test_a_fork_takes_the_time_to_live_along(self, store: Any, clock: SetClock) -> None:
        ref = store.stage(random_state([1]))
        store.commit("bob", ref, None, ttl=100, sliding=False)
        clock.advance(50)
        store.fork("bob", "al")
        assert store.session("al").expires_seconds == clock.seconds + 100

    def test_a_fork_does_not_overwrite_a_session(self, store: Any) -> None:
        turns(store, "bob", 1)
        (other,) = turns(store, "al", 1)
        with pytest.raises(SessionConflict, match="'al' exists"):
            store.fork("bob", "al")
        assert store.head("al") == other

    def test_what_is_not_there_cannot_be_forked(self, store: Any) -> None:
        refs = turns(store, "bob", 4)
        foreign = store.put(random_state([99]))
        with pytest.raises(StateNotFound, match="'al'"):
            store.fork("al", "cy")
        with pytest.raises(StateNotFound, match="not in the log"):
            store.fork("bob", "cy", at=foreign)
        with pytest.raises(StateNotFound, match="no longer kept"):
            store.fork("bob", "cy", at=refs[0])
        store.append_unread("dan", ['"one"'])
        with pytest.raises(StateNotFound):
            store.fork("dan", "cy")
        assert store.head("cy") is None

    # -- rewind ----------------------------------------------------------------------------------

    def test_a_rewind_undoes_the_last_turn(self, store: Any) -> None:
        refs = turns(store, "bob", 3)
        assert store.rewind("bob") == refs[1]
        assert store.head("bob") == refs[1]
        assert [entry.ref for entry in store.log("bob")] == [refs[1], refs[0]]
        assert store.session("bob").n_turns == 2
        with pytest.raises(StateNotFound):
            store.get(refs[2])
        new = store.stage(random_state([5]))
        store.commit("bob", new, refs[1])
        assert [entry.ref for entry in store.log("bob")] == [new, refs[1], refs[0]]

    def test_a_rewind_goes_as_far_as_states_are_kept(self, make_store: MakeStore) -> None:
        store = make_store(history=5)
        refs = turns(store, "bob", 5)
        assert store.rewind("bob", 2) == refs[2]
        assert store.rewind("bob", to=refs[0]) == refs[0]
        assert store.rewind("bob", to=refs[0]) == refs[0]

    def test_a_rewind_beyond_what_is_kept_changes_nothing(self, store: Any) -> None:
        refs = turns(store, "bob", 4)
        with pytest.raises(StateNotFound, match="no longer kept"):
            store.rewind("bob", 2)
        with pytest.raises(StateNotFound, match="has 4 turns"):
            store.rewind("bob", 5)
        with pytest.raises(StateNotFound, match="not in the log"):
            store.rewind("bob", to="rwkv1-" + "0" * 64)
        with pytest.raises(StateNotFound, match="no session 'al'"):
            store.rewind("al")
        assert store.head("bob") == refs[-1]
        assert len(store.log("bob")) == 4

    def test_a_rewind_to_before_the_first_turn_leaves_a_session_with_no_head(
        self, store: Any
    ) -> None:
        turns(store, "bob", 2)
        store.append_unread("bob", ['"one"'])
        assert store.rewind("bob", 2) is None
        info = store.session("bob")
        assert (info.head, info.n_turns, info.n_tokens, info.unread) == (None, 0, 0, ())
        assert store.log("bob") == []
        assert store.stats().states == 0
        turns(store, "bob", 1)
        assert store.session("bob").n_turns == 1

    @pytest.mark.parametrize("count", [0, -1, 1.5, True, "1"])
    def test_a_rewind_is_by_one_turn_or_more(self, store: Any, count: Any) -> None:
        turns(store, "bob", 1)
        with pytest.raises(ValueError, match="1 turn or more"):
            store.rewind("bob", count)

    # -- rename ----------------------------------------------------------------------------------

    def test_a_renamed_session_has_all_that_it_had(
        self, make_store: MakeStore, clock: SetClock
    ) -> None:
        store = make_store(clock=clock, history=3)
        refs = turns(store, "bob", 5)
        store.append_unread("bob", ['"one"'], ttl=500)
        store.keep(refs[-1], "thread")
        clock.advance(20)
        before, log, stats = store.session("bob", renew=False), store.log("bob"), store.stats()
        store.rename("bob", "al")
        assert store.session("al", renew=False) == replace(before, session="al")
        assert store.log("al") == log
        assert store.sessions() == ["al"]
        assert store.head("bob") is None
        assert store.log("bob") == []
        assert (store.stats().sessions, store.stats().states) == (1, stats.states)
        assert store.check().problems == ()
        assert store.rewind("al", 2) == refs[2]
        clock.advance(501)
        assert store.session("al") is None
        store.prune()
        assert store.stats().sessions == 0
        assert store.release("thread") == 1
        assert store.stats().states == 0
        assert store.check().problems == ()

    def test_a_renamed_session_goes_on_and_its_old_name_is_new(self, store: Any) -> None:
        refs = turns(store, "bob", 2)
        store.rename("bob", "al")
        turns(store, "al", 1, start=2)
        assert [entry.ref for entry in store.log("al")][1:] == refs[::-1]
        turns(store, "bob", 1)
        assert store.session("bob").n_turns == 1
        assert store.check().problems == ()

    def test_a_token_log_moves_with_its_session(self, make_store: MakeStore) -> None:
        store = make_store(log="tokens")
        runtime = Reader()
        refs, _ = chat(store, runtime, "bob", 4)
        store.rename("bob", "al")
        assert store.rebuild(refs[0], runtime).n_tokens > 0
        store.delete_session("al")
        with pytest.raises(StateNotFound):
            store.rebuild(refs[0], runtime)
        assert store.check().problems == ()

    def test_a_rename_does_not_overwrite_a_session(self, store: Any) -> None:
        turns(store, "bob", 1)
        (other,) = turns(store, "al", 1)
        for taken in ("al", "bob"):
            with pytest.raises(SessionConflict, match=f"'{taken}' exists"):
                store.rename("bob", taken)
        with pytest.raises(StateNotFound, match="'cy'"):
            store.rename("cy", "dan")
        for name in ("", 7, "x" * 513):
            with pytest.raises(ValueError, match="A new name is a text"):
                store.rename("bob", name)
        assert store.head("al") == other

    def test_the_name_of_an_expired_session_is_free(
        self, make_store: MakeStore, clock: SetClock
    ) -> None:
        store = make_store(clock=clock)
        ref = store.stage(random_state([1]))
        store.commit("al", ref, None, ttl=10)
        turns(store, "bob", 2)
        clock.advance(11)
        store.rename("bob", "al")
        assert store.session("al").n_turns == 2
        assert store.check().problems == ()

    def test_a_turn_that_is_under_way_keeps_its_sessions_name(
        self, store: Any, clock: SetClock
    ) -> None:
        turns(store, "bob", 1)
        for name in ("bob", "al"):  # a first turn begins under the new name, too
            store.enter_queue(name, "mine", 15)
            store.enter_queue(name, "another", 15)
            with pytest.raises(SessionConflict, match=f"'{name}' is under way .*, and 1 wait"):
                store.rename("bob", "al")
            store.leave_queue(name, "another")
            clock.advance(16)  # nobody holds the other place any more
        store.rename("bob", "al")
        assert store.sessions() == ["al"]

    # -- whose a session is ----------------------------------------------------------------------

    def test_a_session_tells_its_model(self, store: Any) -> None:
        state = random_state([1])
        store.commit("bob", store.stage(state), None)
        store.append_unread("al", ['"one"'])
        info = store.session("bob")
        assert info.fingerprint == state.fingerprint
        layout = state.layout
        assert info.model.startswith(f"RWKV-{layout.version} {layout.n_layer}x{layout.n_embd} ")
        assert (store.session("al").model, store.session("al").fingerprint) == (None, None)

    # -- sessions, delete ------------------------------------------------------------------------

    def test_sessions_are_listed_sorted_by_prefix(self, store: Any) -> None:
        for name in ("b", "ab", "a/", "a", "ä"):
            turns(store, name, 1)
        assert store.sessions() == ["a", "a/", "ab", "b", "ä"]
        assert store.sessions("a") == ["a", "a/", "ab"]
        assert store.sessions("zz") == []

    def test_a_deleted_session_is_new_and_its_states_are_gone(self, store: Any) -> None:
        refs = turns(store, "bob", 3)
        store.append_unread("bob", ['"one"'])
        assert store.delete_session("bob") is True
        assert store.session("bob") is None
        stats = store.stats()
        assert (stats.sessions, stats.states) == (0, 0)
        for ref in refs:
            with pytest.raises(StateNotFound):
                store.get(ref)
        turns(store, "bob", 1)

    # -- time ------------------------------------------------------------------------------------

    def test_an_expired_session_is_new(self, store: Any, clock: SetClock) -> None:
        (ref,) = turns(store, "bob", 1)
        clock.advance(31 * DAY)
        assert store.head("bob") is None
        assert store.session("bob") is None
        assert store.log("bob") == []
        assert store.sessions() == []
        assert store.delete_session("bob") is False
        with pytest.raises(StateExpired, match="expired"):
            store.get(ref)
        new = store.stage(random_state([5]))
        with pytest.raises(SessionConflict):
            store.commit("bob", new, ref)
        store.commit("bob", new, None)
        assert store.session("bob").n_turns == 1
        assert [entry.ref for entry in store.log("bob")] == [new]

    @pytest.mark.parametrize("history", [0, 1])
    def test_an_expired_session_may_begin_anew_with_the_same_text(
        self, make_store: MakeStore, clock: SetClock, history: int
    ) -> None:
        store = make_store(clock=clock, history=history)
        for _ in range(3):
            turns(store, "bob", 2)
            clock.advance(31 * DAY)
        assert store.head("bob") is None
        refs = turns(store, "bob", 1)
        assert store.get(refs[0]) == random_state([*b"bob", 0])
        assert store.check().sound

    @pytest.mark.parametrize("pruned", [False, True])
    def test_an_expired_state_leaves_a_tombstone_for_a_week(
        self, store: Any, clock: SetClock, pruned: bool
    ) -> None:
        ref = store.put(random_state([1]), ttl=10)
        clock.advance(10)
        if pruned:
            assert store.prune() == 1
        with pytest.raises(StateExpired):
            store.get(ref)
        clock.advance(7 * DAY - 1)
        with pytest.raises(StateExpired):
            store.get(ref)
        clock.advance(2)
        with pytest.raises(StateNotFound):
            store.get(ref)
        store.prune()
        with pytest.raises(StateNotFound):
            store.get(ref)
        assert store.check().sound

    def test_an_expired_state_can_be_stored_again(self, store: Any, clock: SetClock) -> None:
        ref = store.put(random_state([1]), ttl=10)
        clock.advance(11)
        store.prune()
        assert store.put(random_state([1]), ttl=10) == ref
        assert store.get(ref) == random_state([1])
        assert store.check().sound

    def test_each_commit_renews_a_sliding_session(self, store: Any, clock: SetClock) -> None:
        for number in range(4):
            turns(store, "bob", 1, start=number)
            clock.advance(20 * DAY)
        assert store.session("bob").n_turns == 4

    def test_a_read_renews_a_sliding_session_and_its_states(
        self, store: Any, clock: SetClock
    ) -> None:
        refs = turns(store, "bob", 2)
        for _ in range(5):
            clock.advance(20 * DAY)
            assert store.head("bob") == refs[1]
        store.get(refs[1])
        store.get(refs[0])

    def test_a_read_within_a_tenth_of_the_time_writes_nothing(
        self, store: Any, clock: SetClock
    ) -> None:
        ref = store.stage(random_state([1]))
        store.commit("bob", ref, None, ttl=100)
        expires = store.session("bob").expires_seconds
        clock.advance(9)
        assert store.session("bob").expires_seconds == expires
        clock.advance(2)
        assert store.session("bob").expires_seconds == clock.seconds + 100

    def test_a_fixed_session_is_not_renewed(self, store: Any, clock: SetClock) -> None:
        head = None
        for number in range(3):
            ref = store.stage(random_state([number]))
            store.commit("bob", ref, head, sliding=False, ttl=100 if head is None else None)
            clock.advance(30)
            head = store.head("bob")
        clock.advance(11)
        assert store.head("bob") is None
        with pytest.raises(StateExpired):
            store.get(ref)

    def test_a_time_to_live_given_at_a_commit_counts_from_there(
        self, store: Any, clock: SetClock
    ) -> None:
        (first,) = turns(store, "bob", 1)
        store.commit("bob", store.stage(random_state([8])), first, ttl=timedelta(minutes=1))
        assert store.session("bob").expires_seconds == clock.seconds + 60
        clock.advance(61)
        assert store.head("bob") is None

    def test_a_session_can_live_for_ever(self, store: Any, clock: SetClock) -> None:
        store.commit("bob", store.stage(random_state([1])), None, ttl=math.inf)
        for _ in range(20):
            clock.advance(100 * DAY)
            store.prune()
        assert store.session("bob").expires_seconds == math.inf

    @pytest.mark.parametrize(
        "ttl", [0, -1, math.nan, timedelta(0), timedelta(-1), "soon", "0h", "-1", True]
    )
    def test_an_impossible_time_to_live_is_refused(
        self, store: Any, make_store: MakeStore, ttl: Any
    ) -> None:
        ref = store.put(random_state([1]))
        for verb in (
            lambda: store.put(random_state([1]), ttl=ttl),
            lambda: store.commit("bob", ref, None, ttl=ttl),
            lambda: store.keep(ref, "thread", ttl=ttl),
            lambda: store.create_session("new", ttl=ttl),
            lambda: store.append_unread("bob", ["{}"], ttl=ttl),
            lambda: make_store(ttl=ttl),
        ):
            with pytest.raises(ValueError, match="time to live"):
                verb()
        assert store.sessions() == []

    def test_a_put_state_has_a_time_of_its_own(self, store: Any, clock: SetClock) -> None:
        ref = store.put(random_state([1]), ttl=100)
        store.commit("bob", ref, None, ttl=10)
        clock.advance(11)
        assert store.head("bob") is None
        store.get(ref)

    def test_putting_again_renews(self, store: Any, clock: SetClock) -> None:
        ref = store.put(random_state([1]), ttl=100)
        clock.advance(99)
        store.put(random_state([1]), ttl=100)
        clock.advance(99)
        store.get(ref)

    def test_reading_a_put_or_kept_state_renews_it(self, store: Any, clock: SetClock) -> None:
        ref = store.put(random_state([1]), ttl=100)
        kept = store.put(random_state([2]), ttl=10)
        store.keep(kept, "thread", ttl=100)
        for _ in range(4):
            clock.advance(60)
            store.get(ref)
            store.get(kept)
        clock.advance(101)
        for each in (ref, kept):
            with pytest.raises(StateExpired):
                store.get(each)

    def test_a_look_at_a_session_does_not_renew_it(
        self, make_store: MakeStore, clock: SetClock
    ) -> None:
        store = make_store(clock=clock, ttl=100)
        store.commit("bob", store.put(random_state([1])), None)
        expires = store.session("bob").expires_seconds
        clock.advance(50)
        assert store.session("bob", renew=False).expires_seconds == expires
        assert store.session("bob").expires_seconds == expires + 50

    def test_a_store_that_does_not_slide_renews_nothing_on_reading(
        self, make_store: MakeStore, clock: SetClock
    ) -> None:
        store = make_store(clock=clock, sliding=False, ttl=100)
        ref = store.put(random_state([1]))
        turns(store, "bob", 1)
        clock.advance(60)
        store.get(ref)
        store.head("bob")
        clock.advance(60)
        assert store.head("bob") is None
        with pytest.raises(StateExpired):
            store.get(ref)

    @pytest.mark.parametrize("years", [-60, -1, 1, 60])
    def test_a_leap_of_the_clock_expires_nothing(
        self, store: Any, clock: SetClock, years: int
    ) -> None:
        refs = turns(store, "bob", 2)
        put = store.put(random_state([77]), ttl=60)
        clock.advance(years * 365 * DAY)
        assert store.prune() == 0
        assert store.head("bob") == refs[-1]
        store.get(put)
        turns(store, "bob", 1, start=2)
        clock.advance(61)
        with pytest.raises(StateExpired):
            store.get(put)
        clock.advance(31 * DAY)
        assert store.head("bob") is None

    def test_a_small_step_back_stops_time_and_no_more(self, store: Any, clock: SetClock) -> None:
        ref = store.put(random_state([1]), ttl=100)
        clock.advance(-50)
        store.get(ref)
        clock.advance(151)
        with pytest.raises(StateExpired):
            store.get(ref)

    def test_prune_removes_what_has_expired_and_nothing_else(
        self, store: Any, clock: SetClock
    ) -> None:
        for number in range(60):
            store.commit(f"s{number}", store.stage(random_state([number])), None, ttl=10 + number)
        living = turns(store, "bob", 3)
        clock.advance(39)
        assert store.prune() == 2 * 30
        assert store.prune() == 0
        stats = store.stats()
        assert (stats.sessions, stats.states) == (31, 32)
        assert store.get(living[-1])
        assert store.check().sound

    def test_prune_follows_a_time_to_live_that_was_shortened(
        self, store: Any, clock: SetClock
    ) -> None:
        (ref,) = turns(store, "bob", 1)
        store.commit("bob", ref, ref, ttl=5)
        store.put(random_state([8]), ttl=1000)
        store.put(random_state([8]), ttl=5)
        clock.advance(6)
        assert store.prune() == 3
        assert store.check().sound

    def test_prune_spares_what_was_renewed(self, store: Any, clock: SetClock) -> None:
        turns(store, "bob", 1)
        ref = store.put(random_state([8]))
        for _ in range(5):
            clock.advance(20 * DAY)
            store.head("bob")
            store.get(ref)
            assert store.prune() == 0
        assert store.sessions() == ["bob"]
        clock.advance(31 * DAY)
        assert store.prune() == 3
        assert store.check().sound

    # -- limits ----------------------------------------------------------------------------------

    def test_a_full_store_refuses_and_what_was_there_stays(
        self, make_store: MakeStore, clock: SetClock
    ) -> None:
        size = random_state([1]).nbytes
        store = make_store(clock=clock, size_limit=int(3.5 * size))
        refs = turns(store, "bob", 1)
        store.put(random_state([50]))
        store.put(random_state([51]))
        mine = store.stage(random_state([52]))
        for verb in (
            lambda: store.commit("bob", mine, refs[0]),
            lambda: store.keep(mine, "thread"),
            lambda: store.put(random_state([53])),
            lambda: store.append_unread("bob", ['"' + "x" * size + '"']),
        ):
            with pytest.raises(StoreFull, match="size limit"):
                verb()
        assert store.head("bob") == refs[0]
        assert store.get(refs[0])
        assert store.get(mine)
        assert store.stats().states == 3
        assert store.stats().nbytes <= int(3.5 * size)
        assert store.check().sound
        assert store.delete_session("bob")
        store.commit("al", mine, None)

    def test_a_session_at_the_limit_goes_on(self, make_store: MakeStore) -> None:
        size = random_state([1]).nbytes
        store = make_store(size_limit=int(2.5 * size), history=1)
        turns(store, "bob", 10)
        assert store.stats().states == 2

    def test_what_has_expired_makes_room(self, make_store: MakeStore, clock: SetClock) -> None:
        size = random_state([1]).nbytes
        store = make_store(clock=clock, size_limit=int(2.5 * size))
        for number in range(6):
            store.put(random_state([number]), ttl=10)
            clock.advance(6)

    # -- the token log ---------------------------------------------------------------------------

    def test_without_a_token_log_nothing_is_rebuilt(self, store: Any) -> None:
        if not self.keeps_tokens:
            pytest.skip("This store rebuilds nothing.")
        state = random_state([1])
        ref = store.stage(state, tokens=[1])
        store.commit("bob", ref, None)
        with pytest.raises(StateNotFound):
            store.rebuild("rwkv1-" + "0" * 64, Reader())

    def test_any_state_of_a_token_log_can_be_rebuilt(self, make_store: MakeStore) -> None:
        store, runtime = make_store(log="tokens"), Reader()
        refs, said = chat(store, runtime, "bob", 105)
        before = runtime.tokens_read
        for number in (104, 103, 60, 6, 5):
            state = store.rebuild(refs[number], runtime)
            assert state == runtime.read(said[number])
        assert runtime.tokens_read > before
        with pytest.raises(StateNotFound, match="log='tokens'"):
            store.rebuild(refs[0], runtime)

    def test_a_rebuild_reads_from_the_nearest_state_that_is_kept(
        self, make_store: MakeStore
    ) -> None:
        store, runtime = make_store(log="tokens", history=0), Reader()
        refs, said = chat(store, runtime, "bob", 10)
        store.fork("bob", "al")
        chat(store, runtime, "bob", 3, said[-1])
        lost = store.log("bob")[1].ref
        runtime.tokens_read = 0
        state = store.rebuild(lost, runtime)
        assert state.n_tokens == len(said[-1]) + 8
        assert runtime.tokens_read == 8
        assert store.get(refs[-1])

    def test_what_goes_on_from_a_blend_is_rebuilt_while_that_is_kept(
        self, make_store: MakeStore
    ) -> None:
        store, runtime = make_store(log="tokens", history=0), Reader()
        chat(store, runtime, "bob", 1)
        chat(store, runtime, "al", 2)
        blended = store.blend("bob", "al", into="both")
        assert store.rebuild(blended, runtime) == store.get(blended)
        _, after = runtime.forward([5, 6], store.get(blended))
        store.commit("both", store.stage(after, parent=blended, tokens=[5, 6]), blended)
        with pytest.raises(StateCorrupt, match=r"lead to another state.*as after a blend"):
            store.rebuild(blended, runtime)

    def test_another_model_rebuilds_from_zero(self, make_store: MakeStore) -> None:
        store, runtime = make_store(log="tokens"), Reader()
        refs, said = chat(store, runtime, "bob", 5)
        other = Reader("v7-other/fp32/tok/chat")
        state = store.rebuild(refs[-1], other)
        assert state == other.read(said[-1])
        assert store.rebuild(refs[0], other) == other.read(said[0])
        assert state.fingerprint == other.fingerprint

    def test_another_tokenizer_is_refused(self, make_store: MakeStore) -> None:
        from langchain_rwkv_state.errors import StateMismatch

        store, runtime = make_store(log="tokens"), Reader()
        refs, _ = chat(store, runtime, "bob", 2)
        with pytest.raises(StateMismatch, match="tokenizer"):
            store.rebuild(refs[-1], Reader("v7-other/fp32/other/chat"))

    def test_tokens_are_followed_through_states_that_were_only_staged(
        self, make_store: MakeStore
    ) -> None:
        store, runtime = make_store(log="tokens"), Reader()
        first = runtime.read([1, 2])
        warm = store.stage(first, tokens=[1, 2])
        store.put(first)
        second = store.stage(runtime.read([1, 2, 3]), parent=warm, tokens=[3])
        third = store.stage(runtime.read([1, 2, 3, 4]), parent=second, tokens=[4])
        store.commit("bob", third, None)
        other = Reader("v7-other/fp32/tok/chat")
        assert store.rebuild(third, other) == other.read([1, 2, 3, 4])

    # -- bundles ---------------------------------------------------------------------------------

    def test_a_session_moves_to_another_store(self, make_store: MakeStore, clock: SetClock) -> None:
        there, here = make_store(clock=clock, history=2), make_store(clock=clock, history=2)
        refs = turns(there, "bob", 5)
        there.append_unread("bob", ['"one"', '"\\ud83d"'])
        clock.advance(5)
        before = there.stats()
        there.export_session("bob", self.tmp_path / "bob.zip")
        assert there.stats() == before
        info = here.import_session(self.tmp_path / "bob.zip")
        assert info == here.session("bob")
        assert here.head("bob") == info.head != there.head("bob")
        assert_same_log(here, "bob", there, "bob")
        old = there.session("bob")
        assert info == replace(old, head=info.head, expires_seconds=clock.seconds + 30 * DAY)
        assert here.descends(info.head, here.log("bob")[2].ref)
        assert here.check().problems == there.check().problems == ()
        assert [entry.ref for entry in here.log("bob")][3:] == [refs[1], refs[0]]

    def test_an_imported_session_goes_on_as_the_original(
        self, make_store: MakeStore, clock: SetClock
    ) -> None:
        there, here = make_store(clock=clock), make_store(clock=clock)
        turns(there, "bob", 3)
        there.export_session("bob", self.tmp_path / "bob.zip")
        here.import_session(self.tmp_path / "bob.zip")
        for store in (there, here):
            turns(store, "bob", 2, start=3)
            store.rewind("bob")
            store.fork("bob", "al")
        assert_same_log(here, "bob", there, "bob")
        assert_same_log(here, "al", there, "al")
        assert here.session("bob").n_turns == 4
        assert here.check().sound

    @pytest.mark.parametrize("name", NAMES, ids=ascii)
    def test_a_session_of_any_name_moves(self, make_store: MakeStore, name: Any) -> None:
        there, here = make_store(), make_store()
        turns_of_any_name(there, name)
        there.export_session(name, self.tmp_path / "any.zip")
        assert here.import_session(self.tmp_path / "any.zip").session == name
        assert here.sessions() == [name]

    def test_all_that_came_is_kept_until_the_next_commit(self, make_store: MakeStore) -> None:
        there, here = make_store(history=4), make_store(history=1)
        turns(there, "bob", 6)
        there.export_session("bob", self.tmp_path / "bob.zip")
        here.import_session(self.tmp_path / "bob.zip")
        assert [entry.kept for entry in here.log("bob")] == [True] * 5 + [False]
        assert here.stats().states == 5
        turns(here, "bob", 1, start=6)
        assert [entry.kept for entry in here.log("bob")] == [True] * 2 + [False] * 5
        assert here.stats().states == 2

    def test_states_that_only_others_hold_come_along(self, make_store: MakeStore) -> None:
        there, here = make_store(history=0), make_store(history=0)
        refs = turns(there, "bob", 2)
        kept = there.stage(random_state([9]), parent=refs[1])
        there.commit("bob", kept, refs[1])
        there.keep(kept, "thread")
        turns(there, "bob", 1, start=7)
        there.export_session("bob", self.tmp_path / "bob.zip")
        here.import_session(self.tmp_path / "bob.zip")
        assert_same_log(here, "bob", there, "bob")
        assert here.get(here.log("bob")[1].ref) == random_state([9])

    def test_a_log_of_100_entries_moves_with_its_numbers(self, make_store: MakeStore) -> None:
        there, here = make_store(), make_store()
        turns(there, "bob", 104)
        there.export_session("bob", self.tmp_path / "bob.zip")
        assert here.import_session(self.tmp_path / "bob.zip").n_turns == 104
        assert_same_log(here, "bob", there, "bob")
        turns(here, "bob", 1, start=104)
        assert len(here.log("bob")) == 100
        with pytest.raises(StateNotFound, match="reaches back to turn 6"):
            here.rewind("bob", 101)
        assert here.check().sound

    def test_an_import_into_the_same_store_stores_no_state_twice(self, store: Any) -> None:
        refs = turns(store, "bob", 3)
        store.export_session("bob", self.tmp_path / "bob.zip")
        assert store.import_session(self.tmp_path / "bob.zip", "al").head == refs[-1]
        assert [entry.ref for entry in store.log("al")] == refs[::-1]
        assert store.stats().states == 2
        store.delete_session("bob")
        assert store.get(refs[-1]) == random_state([*b"bob", 0, 1, 2])
        assert store.check().sound

    def test_an_import_does_not_use_up_what_somebody_staged(self, make_store: MakeStore) -> None:
        there, here = make_store(), make_store(size_limit=3000)
        turns(there, "bob", 1)
        there.export_session("bob", self.tmp_path / "bob.zip")
        state = there.get(there.head("bob"))
        ref = here.stage(state)
        with pytest.raises(StoreFull):
            here.import_session(self.tmp_path / "bob.zip")
        assert here.get(ref) == state

    def test_a_session_with_unread_messages_alone_moves(self, make_store: MakeStore) -> None:
        there, here = make_store(), make_store()
        there.append_unread("bob", ['"one"'])
        there.export_session("bob", self.tmp_path / "bob.zip")
        info = here.import_session(self.tmp_path / "bob.zip")
        assert (info.head, info.unread, info.n_turns) == (None, ('"one"',), 0)
        assert here.stats().states == 0
        turns(here, "bob", 1)
        assert here.check().sound

    def test_an_import_is_refused_where_the_name_is_taken(self, make_store: MakeStore) -> None:
        there, here = make_store(), make_store()
        turns(there, "bob", 1)
        there.export_session("bob", self.tmp_path / "bob.zip")
        (mine,) = turns(here, "bob", 1)
        before = here.stats()
        with pytest.raises(SessionConflict, match="'bob' exists"):
            here.import_session(self.tmp_path / "bob.zip")
        assert (here.stats(), here.head("bob")) == (before, mine)
        assert here.import_session(self.tmp_path / "bob.zip", "al").session == "al"

    def test_the_place_of_an_expired_session_is_free(
        self, make_store: MakeStore, clock: SetClock
    ) -> None:
        store = make_store(clock=clock)
        turns(store, "bob", 2)
        store.export_session("bob", self.tmp_path / "bob.zip")
        clock.advance(31 * DAY)
        head = store.import_session(self.tmp_path / "bob.zip").head
        assert store.get(head) == random_state([*b"bob", 0, 1])
        assert store.session("bob").n_turns == 2
        assert store.check().sound

    def test_a_sliding_session_lives_anew_and_a_fixed_one_keeps_its_end(
        self, make_store: MakeStore, clock: SetClock
    ) -> None:
        there, here = make_store(clock=clock), make_store(clock=clock, ttl=7)
        for name, sliding in (("slides", True), ("ends", False)):
            there.commit(name, there.put(random_state([1])), None, ttl=100, sliding=sliding)
            there.export_session(name, self.tmp_path / name)
        end = clock.seconds + 100
        clock.advance(60)
        assert here.import_session(self.tmp_path / "slides").expires_seconds == clock.seconds + 100
        assert here.import_session(self.tmp_path / "ends").expires_seconds == end
        clock.advance(30)
        assert here.session("slides").expires_seconds == clock.seconds + 100
        assert here.session("ends").expires_seconds == end
        clock.advance(10)
        assert here.sessions() == ["slides"]
        before = here.stats()
        with pytest.raises(StateExpired, match="'ends'"):
            here.import_session(self.tmp_path / "ends", "late")
        assert here.stats() == before
        late = here.import_session(self.tmp_path / "ends", "late", ttl=timedelta(minutes=1))
        assert late.expires_seconds == clock.seconds + 60
        clock.advance(50)
        assert here.session("late").expires_seconds == late.expires_seconds, "still a fixed one"

    def test_an_export_is_no_use_of_a_session(self, make_store: MakeStore, clock: SetClock) -> None:
        store = make_store(clock=clock, ttl=100)
        turns(store, "bob", 1)
        expires = store.session("bob").expires_seconds
        clock.advance(50)
        store.export_session("bob", self.tmp_path / "bob.zip")
        assert store.session("bob", renew=False).expires_seconds == expires

    def test_a_session_that_lives_for_ever_does_so_elsewhere(
        self, make_store: MakeStore, clock: SetClock
    ) -> None:
        there, here = make_store(clock=clock), make_store(clock=clock)
        there.commit("bob", there.stage(random_state([1])), None, ttl=math.inf)
        there.export_session("bob", self.tmp_path / "bob.zip")
        assert here.import_session(self.tmp_path / "bob.zip").expires_seconds == math.inf

    def test_an_import_into_a_full_store_leaves_nothing_behind(
        self, make_store: MakeStore, clock: SetClock
    ) -> None:
        size = random_state([1]).nbytes
        there = make_store(clock=clock, history=3)
        turns(there, "bob", 4)
        there.export_session("bob", self.tmp_path / "bob.zip")
        here = make_store(clock=clock, size_limit=int(4.5 * self.share_of_bytes * size))
        (mine,) = turns(here, "al", 1)
        before = here.stats()
        with pytest.raises(StoreFull):
            here.import_session(self.tmp_path / "bob.zip")
        assert here.stats() == before
        assert here.sessions() == ["al"]
        assert here.get(mine)
        assert here.check().sound
        here.delete_session("al")
        assert here.import_session(self.tmp_path / "bob.zip").n_turns == 4

    def test_a_full_store_can_be_left(self, make_store: MakeStore) -> None:
        size = random_state([1]).nbytes
        store = make_store(size_limit=int(1.02 * self.share_of_bytes * size) + 2000, history=0)
        turns(store, "bob", 1)
        store.export_session("bob", self.tmp_path / "bob.zip")
        assert make_store().import_session(self.tmp_path / "bob.zip").n_turns == 1

    def test_what_is_not_there_is_not_exported(self, store: Any, clock: SetClock) -> None:
        with pytest.raises(StateNotFound, match="no session 'bob'"):
            store.export_session("bob", self.tmp_path / "bob.zip")
        turns(store, "bob", 1)
        clock.advance(31 * DAY)
        with pytest.raises(StateNotFound, match="no session 'bob'"):
            store.export_session("bob", self.tmp_path / "bob.zip")
        with pytest.raises(FileNotFoundError):
            store.import_session(self.tmp_path / "bob.zip")
        assert not list(self.tmp_path.glob("*.zip"))

    @pytest.mark.parametrize("name", ["", "x" * 513, 7, b"bob"], ids=repr)
    def test_other_names_are_not_carried(self, store: Any, name: Any) -> None:
        turns(store, "bob", 1)
        store.export_session("bob", self.tmp_path / "bob.zip")
        for verb in (
            lambda: store.export_session(name, self.tmp_path / "x.zip"),
            lambda: store.import_session(self.tmp_path / "bob.zip", name),
        ):
            with pytest.raises(ValueError, match="1 to 512 characters"):
                verb()
        with pytest.raises(ValueError, match="time to live"):
            store.import_session(self.tmp_path / "bob.zip", "al", ttl=0)
        assert store.sessions() == ["bob"]

    def test_token_ids_go_along_only_where_they_are_asked_for(self, make_store: MakeStore) -> None:
        there, here, plain = make_store(log="tokens"), make_store(log="tokens"), make_store()
        runtime = Reader()
        chat(there, runtime, "bob", 3)
        for name, tokens in (("without", False), ("with", True)):
            there.export_session("bob", self.tmp_path / name, tokens=tokens)
        data = (self.tmp_path / "without").read_bytes()
        assert b'"origin"' not in data
        assert b'"tokens"' not in data
        for store, name in ((here, "without"), (plain, "with")):
            store.import_session(self.tmp_path / name)
            assert_same_log(store, "bob", there, "bob")
            with pytest.raises(StateNotFound, match="No token ids"):
                store.rebuild(store.log("bob")[2].ref, runtime)
        turns(plain, "al", 1)
        with pytest.raises(ValueError, match="No token ids of the session 'al'"):
            plain.export_session("al", self.tmp_path / "al", tokens=True)
        assert not (self.tmp_path / "al").exists()

    def test_every_state_of_an_imported_token_log_can_be_rebuilt(
        self, make_store: MakeStore
    ) -> None:
        there, here = make_store(log="tokens"), make_store(log="tokens")
        runtime, other = Reader(), Reader("v7-other/fp32/tok/chat")
        refs, said = chat(there, runtime, "bob", 6)
        there.export_session("bob", self.tmp_path / "bob.zip", tokens=True)
        here.import_session(self.tmp_path / "bob.zip")
        assert_same_log(here, "bob", there, "bob")
        names = [entry.ref for entry in reversed(here.log("bob"))]
        assert not set(names) & set(refs), "entries without a state are named anew, too"
        for name, tokens in zip(names, said, strict=True):
            assert here.rebuild(name, runtime) == runtime.read(tokens)
            assert here.rebuild(name, other) == other.read(tokens)
        here.keep(names[-1], "thread")
        more, said_more = chat(here, runtime, "bob", 2, said[-1])
        assert here.rebuild(more[-1], other) == other.read(said_more[-1])
        here.keep(more[-1], "thread")
        here.delete_session("bob")
        assert here.rebuild(names[-1], other) == other.read(said[-1])
        assert here.rebuild(more[-1], other) == other.read(said_more[-1])
        assert here.check().sound

    def test_token_ids_that_begin_at_a_donor_move_as_far_as_they_tell(
        self, make_store: MakeStore
    ) -> None:
        there, here = make_store(log="tokens", history=0), make_store(log="tokens")
        runtime = Reader()
        root = replace(runtime.read([1, 2]).derivation, root="donor")
        donor = RWKVState(runtime.layout, dict(runtime.read([1, 2])), root)
        there.commit("bob", there.stage(donor), None)
        chat(there, runtime, "bob", 2)
        there.export_session("bob", self.tmp_path / "bob.zip", tokens=True)
        here.import_session(self.tmp_path / "bob.zip")
        assert_same_log(here, "bob", there, "bob")
        chat(here, runtime, "bob", 2)
        state = here.rebuild(here.log("bob")[0].ref, runtime)
        assert state == here.get(here.head("bob"))
        assert here.check().sound

    # -- async, closing --------------------------------------------------------------------------

    @_in_a_loop
    async def test_every_verb_has_an_async_twin(self, store: Any) -> None:
        state = random_state([1])
        ref = await store.aput(state)
        assert await store.aget(ref) == state
        await store.akeep(ref, "thread")
        assert await store.arelease("thread") == 1
        staged = await store.astage(random_state([2]), parent=ref, tokens=[2])
        await store.acommit("bob", staged, None, 50, sliding=False)
        assert await store.ahead("bob") == staged
        await store.aappend_unread("bob", ['"x"'])
        assert (await store.asession("bob")).unread == ('"x"',)
        assert len(await store.alog("bob")) == 1
        assert await store.asessions() == ["bob"]
        assert await store.afork("bob", "al") == staged
        assert await store.arewind("al") is None
        await store.arename("al", "cleared")
        assert await store.adelete_session("bob") is True
        await store.aappend_unread("bob", ['"x"'])
        await store.aexport_session("bob", self.tmp_path / "bob.zip")
        info = await store.aimport_session(self.tmp_path / "bob.zip", "cy", ttl=9)
        assert info.unread == ('"x"',)
        assert await store.aprune() == 0
        assert (await store.astats()).sessions == 3
        assert (await store.acheck()).sound
        await store.aclose()

    def test_each_public_verb_has_its_twin(self, store: Any) -> None:
        verbs = {name for name in dir(type(store)) if not name.startswith("_")}
        sync = set(StateStore.__abstractmethods__)
        assert sync <= verbs
        assert {f"a{name}" for name in sync} <= verbs

    @_in_a_loop
    async def test_async_verbs_do_not_block_the_loop(
        self, store: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own, loop_went_on = store.put, threading.Event()

        def put_once_the_loop_went_on(state: RWKVState, *, ttl: Any = None) -> str:
            assert loop_went_on.wait(30)
            return str(own(state, ttl=ttl))

        monkeypatch.setattr(store, "put", put_once_the_loop_went_on)
        putting = asyncio.create_task(store.aput(random_state([1])))
        await asyncio.sleep(0.01)
        assert not putting.done()
        loop_went_on.set()
        assert is_reference(await putting)

    def test_a_closed_store_says_so_and_closes_again(self, make_store: MakeStore) -> None:
        store = make_store()
        ref = store.put(random_state([1]))
        store.close()
        store.close()
        for verb in (
            lambda: store.put(random_state([1])),
            lambda: store.stage(random_state([1])),
            lambda: store.get(ref),
            lambda: store.keep(ref, "thread"),
            lambda: store.kept("thread"),
            lambda: store.copy_kept("thread", "other"),
            lambda: store.release("thread"),
            lambda: store.head("bob"),
            lambda: store.session("bob"),
            lambda: store.commit("bob", ref, None),
            lambda: store.create_session("new"),
            lambda: store.append_unread("bob", ["{}"]),
            lambda: store.log("bob"),
            lambda: store.sessions(),
            lambda: store.fork("bob", "al"),
            lambda: store.rewind("bob"),
            lambda: store.rename("bob", "al"),
            lambda: store.delete_session("bob"),
            lambda: store.export_session("bob", self.tmp_path / "bob.zip"),
            lambda: store.import_session(self.tmp_path / "bob.zip"),
            lambda: store.prune(),
            lambda: store.stats(),
            lambda: store.check(),
        ):
            with pytest.raises(StoreError, match="is closed"):
                verb()

    @_in_a_loop
    async def test_a_store_is_a_context_manager(self, make_store: MakeStore) -> None:
        with make_store() as store:
            store.sessions()
        async with make_store() as another:
            await another.asessions()
        for closed in (store, another):
            with pytest.raises(StoreError, match="is closed"):
                closed.sessions()

    def test_a_used_store_is_sound(self, make_store: MakeStore, clock: SetClock) -> None:
        store = make_store(clock=clock, history=3, log="tokens")
        chat(store, Reader(), "bob", 6)
        store.fork("bob", "al")
        store.rewind("bob", 2)
        store.keep(store.head("al"), "thread", ttl=5)
        store.append_unread("cy", ["{}"])
        store.put(random_state([1]), ttl=3)
        clock.advance(4)
        assert store.check().problems == ()
        store.prune()
        store.delete_session("al")
        clock.advance(4)
        store.prune()
        assert store.check(fix=True).problems == ()

    @pytest.mark.parametrize(
        ("settings", "word"),
        [
            ({"history": -1}, "history"),
            ({"history": 1.5}, "history"),
            ({"log": "text"}, "tokens"),
            ({"size_limit": 0}, "size_limit"),
        ],
    )
    def test_impossible_settings_are_refused(
        self, make_store: MakeStore, settings: dict[str, Any], word: str
    ) -> None:
        with pytest.raises(ValueError, match=word):
            make_store(**settings)


def assert_same_log(store: StateStore, session: str, other: StateStore, original: str) -> None:
    """Compares two sessions of two stores, whose references differ: entries, states, structure."""
    log, expected = store.log(session), other.log(original)
    assert [(e.n_tokens, e.created_seconds, e.kept) for e in log] == [
        (e.n_tokens, e.created_seconds, e.kept) for e in expected
    ]
    names = dict(zip([e.ref for e in expected], [e.ref for e in log], strict=True))
    assert len(set(names.values())) == len(names)
    for entry, old in zip(log, expected, strict=True):
        assert entry.parent == (names.get(old.parent, old.parent) if old.parent else None)
        if entry.kept:
            state, original_state = store.get(entry.ref), other.get(old.ref)
            assert state == original_state
            assert state.system_digest == original_state.system_digest
    assert store.head(session) == (log[0].ref if log else None)


def turns_of_any_name(store: StateStore, session: str) -> list[str]:
    """Commits one turn to a session of any name."""
    ref = store.stage(random_state([1]))
    store.commit(session, ref, None)
    return [ref]
