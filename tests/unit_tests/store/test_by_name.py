"""The toolbox by name: what the plain functions give, without a use of the sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from langchain_rwkv_state import state as states
from langchain_rwkv_state.errors import SessionConflict, StateMismatch, StateNotFound, StoreError
from langchain_rwkv_state.state import Derivation, RWKVState, StateLayout, zero_state
from langchain_rwkv_state.store import MemoryStateStore
from tests.helpers.states import DAY, random_state

ALICE, BOB = random_state([1, 2]), random_state([3])


@pytest.fixture
def store(store):
    store.commit("alice", store.stage(ALICE), None)
    store.commit("bob", store.stage(BOB), None)
    return store


class TestNames:
    def test_give_what_the_plain_functions_give(self, store):
        assert store.distance("alice", "bob") == states.distance(ALICE, BOB)
        assert store.distance("alice", "bob", "cosine") == states.distance(ALICE, BOB, "cosine")
        assert store.diff("alice", "bob") == states.diff(ALICE, BOB)
        assert store.inspect("alice") == states.inspect(ALICE)
        assert store.blend("alice", "bob", 0.3) == states.blend(ALICE, BOB, 0.3)
        assert store.blend("alice", "bob", parts=["wkv"]) == states.blend(
            ALICE, BOB, 0.5, parts=["wkv"]
        )

    async def test_and_so_do_the_async_twins(self, store):
        assert await store.adistance("alice", "bob") == states.distance(ALICE, BOB)
        assert await store.adiff("alice", "bob", "l2") == states.diff(ALICE, BOB, "l2")
        assert await store.ainspect("alice") == states.inspect(ALICE)
        assert await store.ablend("alice", "bob", 0.3) == states.blend(ALICE, BOB, 0.3)
        assert await store.astate_of("alice") == ALICE
        ref = await store.ablend("alice", "bob", into="both")
        assert store.head("both") == ref
        assert await store.abegin("again", BOB) == store.head("again")

    def test_are_no_use_of_the_sessions(self, store, clock):
        before = store.session("alice", renew=False).expires_seconds
        clock.advance(DAY / 2)
        store.distance("alice", "bob")
        store.diff("alice", "bob")
        store.inspect("alice")
        store.blend("alice", "bob", into="both")
        assert store.session("alice", renew=False).expires_seconds == before

    def test_that_are_not_there_are_told(self, store):
        with pytest.raises(StateNotFound, match=r"no session 'carol'.*store.sessions"):
            store.distance("alice", "carol")
        store.append_unread("dora", ["{}"])
        with pytest.raises(ValueError, match="has no state: only unread messages"):
            store.inspect("dora")
        with pytest.raises(TypeError, match="Name a session, a reference or a state, got 7"):
            store.inspect(7)

    def test_of_two_models_are_not_mixed(self, store):
        layout = StateLayout.of(7, n_layer=1, n_embd=64, head_size=64)
        store.begin("other", zero_state(layout, "another"))
        for verb in (store.blend, store.distance, store.diff):
            with pytest.raises(StateMismatch):
                verb("alice", "other")


class TestReferencesAndStates:
    def test_are_taken_beside_names(self, store):
        ref = store.head("alice")
        assert store.distance(ref, "bob") == store.distance(ALICE, "bob") > 0
        assert store.inspect(ref) == store.inspect(ALICE)

    def test_an_unknown_reference_is_told(self, store):
        with pytest.raises(StateNotFound):
            store.inspect("rwkv1-" + "0" * 64)

    def test_a_session_that_is_called_like_a_reference_is_refused(self, store):
        ref = store.head("alice")
        store.begin(ref, BOB)
        with pytest.raises(ValueError, match="and a session is called so too"):
            store.inspect(ref)


class TestInto:
    def test_a_new_session_begins_with_the_blend(self, store, clock):
        ref = store.blend("alice", "bob", 0.3, into="both", ttl=60)
        info = store.session("both")
        assert (info.head, info.n_turns) == (ref, 1)
        assert info.expires_seconds == clock() + 60
        assert store.get(ref) == states.blend(ALICE, BOB, 0.3)

    def test_a_session_that_is_there_stays(self, store):
        head = store.head("bob")
        with pytest.raises(SessionConflict, match="'bob' exists already"):
            store.blend("alice", "bob", into="bob")
        store.append_unread("dora", ["{}"])
        with pytest.raises(SessionConflict):
            store.begin("dora", ALICE)
        assert store.head("bob") == head

    def test_a_time_to_live_wants_a_session(self, store):
        with pytest.raises(ValueError, match="into="):
            store.blend("alice", "bob", ttl=60)


def test_a_closed_store_says_so():
    store = MemoryStateStore()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.inspect("alice")


PLAIN: dict[str, Callable[[Any], object]] = {
    "blend": lambda x: states.blend(ALICE, x, 0.5),
    "blend_many": lambda x: states.blend_many([x, ALICE], [0.5, 0.5]),
    "decay": lambda x: states.decay(x, 0.5),
    "renormalise": states.renormalise,
    "check_scale": states.check_scale,
    "distance": lambda x: states.distance(x, ALICE),
    "diff": lambda x: states.diff(x, ALICE),
    "difference_map": lambda x: states.difference_map(x, ALICE),
    "head_maps": states.head_maps,
    "inspect": states.inspect,
    "calibrate": lambda x: states.calibrate([ALICE, x]),
    "motion": lambda x: states.motion(ALICE, x, states.inspect(ALICE)),
    "lossy": lambda x: states.lossy(x, "int8"),
    "encode": states.encode,
    "try_codecs": states.try_codecs,
    "export_tensors": lambda x: states.export_tensors(x, "never.pt"),
    "memory": lambda x: states.memory(x, 10),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_function_says_what_to_do_with_a_name(name):
    with pytest.raises(TypeError, match=rf"{name} takes states, .*store.get\(store.head\(name\)\)"):
        PLAIN[name]("alice")
    with pytest.raises(
        TypeError, match=rf"{name} takes states, .*is a reference.*store.get\(ref\)"
    ):
        PLAIN[name]("rwkv1-" + "0" * 64)
    if name in ("blend", "distance", "diff", "inspect"):
        with pytest.raises(TypeError, match=rf"use store.{name}\(...\), or"):
            PLAIN[name]("alice")


def test_a_plain_function_says_what_else_is_no_state():
    with pytest.raises(TypeError, match="decay takes an RWKVState, got 3"):
        states.decay(3, 0.5)  # type: ignore[arg-type]


def test_a_state_of_another_kind_is_still_one():
    class Mine(RWKVState):
        pass

    mine = Mine(ALICE.layout, {name: ALICE[name] for name in ALICE}, Derivation("model"))
    assert states.distance(mine, ALICE) == 0
