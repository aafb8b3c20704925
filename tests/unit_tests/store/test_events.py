"""Following a session: every change is seen, nothing is renewed, and nothing is held back."""

from __future__ import annotations

from itertools import islice

import pytest

from langchain_rwkv_state.errors import StateNotFound, StoreError
from langchain_rwkv_state.store.events import parent_of_head, snapshot_of, state_if_kept, watch
from tests.helpers.states import DAY, random_state


def turn(store, *tokens, session="bob"):
    """Commits a state to a session; returns its reference."""
    head = store.head(session)
    ref = store.stage(random_state(tokens), parent=head)
    store.commit(session, ref, head)
    return ref


class Script:
    """Happens between two looks: one step at each pause, and after the last a stop."""

    class OverError(Exception):
        pass

    def __init__(self, *steps):
        self.steps = list(steps)
        self.pauses: list[float] = []

    def __call__(self, seconds):
        self.pauses.append(seconds)
        if not self.steps:
            raise Script.OverError
        step = self.steps.pop(0)
        if step is not None:
            step()


def seen(store, clock, *steps, session="bob"):
    """Returns what a follower saw while the steps happened, one between two looks."""
    found = []
    script = Script(*steps)
    try:
        for event in watch(store, session, sleep=script, now=clock):
            found.append(event)
    except Script.OverError:
        return found
    raise AssertionError("following ended by itself")


def test_a_session_is_waited_for_and_every_head_is_seen_once(store, clock):
    found = seen(
        store,
        clock,
        None,
        lambda: turn(store, 1),
        None,
        lambda: turn(store, 1, 2),
        None,
    )
    assert [each.kind for each in found] == ["absent", "head", "head"]
    assert [each.first for each in found] == [True, False, False]
    assert [each.info.n_turns for each in found[1:]] == [1, 2]
    assert [each.state for each in found[1:]] == [random_state([1]), random_state([1, 2])]


def test_the_first_look_brings_the_state_before(store, clock):
    turn(store, 1)
    turn(store, 1, 2)
    (only,) = seen(store, clock)
    assert only.first
    assert only.before == random_state([1])


def test_of_two_turns_at_once_the_last_is_seen_with_the_one_before(store, clock):
    turn(store, 1)
    first, second = seen(store, clock, lambda: (turn(store, 1, 2), turn(store, 1, 2, 3)))
    assert first.before is None
    assert second.state == random_state([1, 2, 3])
    assert second.before == random_state([1, 2])


def test_a_rewind_is_a_new_head(store, clock):
    turn(store, 1)
    turn(store, 1, 2)
    found = seen(store, clock, lambda: store.rewind("bob"), lambda: store.rewind("bob"))
    assert [each.info.n_turns for each in found] == [2, 1, 0]
    assert found[1].state == random_state([1])
    assert found[2].state is None


def test_deleted_expired_and_made_anew_are_told_apart(store, clock):
    turn(store, 1)
    found = seen(
        store,
        clock,
        lambda: store.delete_session("bob"),
        None,
        lambda: turn(store, 1),
        lambda: clock.advance(2 * DAY),
        lambda: turn(store, 2),
        lambda: (store.delete_session("bob"), clock.advance(1), turn(store, 2)),
    )
    assert [each.kind for each in found] == [
        *("head", "deleted", "head", "expired", "head", "head")
    ]
    assert found[1].info.n_turns == 1


def test_a_head_whose_state_has_gone_by_then_is_seen_without_it(store, clock, monkeypatch):
    turn(store, 1)

    own = store.session

    def then_gone(session, *, renew=True):
        info = own(session, renew=renew)
        if info is not None:
            store.delete_session(session)
        return info

    monkeypatch.setattr(store, "session", then_gone)
    (first, *_) = seen(store, clock)
    assert first.kind == "head"
    assert first.state is None


def test_following_renews_nothing_and_holds_nothing(store, clock):
    ref = turn(store, 1)
    store.keep(ref, "agent", ttl=DAY)
    expires = store.session("bob", renew=False).expires_seconds
    assert len(seen(store, clock, *[lambda: clock.advance(DAY / 5)] * 4)) == 1
    assert store.session("bob", renew=False).expires_seconds == expires
    clock.advance(DAY / 5)
    assert store.session("bob", renew=False) is None
    store.prune()
    assert state_if_kept(store, ref) is None  # the agent's hold has ended too


def test_states_are_trimmed_as_if_nobody_looked(store, clock):
    refs = [turn(store, 1)]
    script = Script(*[lambda n=n: refs.append(turn(store, *range(n + 2))) for n in range(4)], None)
    events = list(islice(watch(store, "bob", sleep=script, now=clock), 5))
    assert len(events) == 5
    assert store.stats().states == 2  # the head and the one before it
    assert [state_if_kept(store, ref) is not None for ref in refs] == [False] * 3 + [True] * 2


def test_looking_at_a_state_does_not_renew_what_keeps_it(store, clock):
    ref = store.put(random_state([1]), ttl=DAY)
    clock.advance(DAY / 2)
    store.get(ref, renew=False)
    clock.advance(DAY / 2 + 1)
    assert state_if_kept(store, ref) is None


def test_the_head_before_is_in_the_log(store):
    one = turn(store, 1)
    assert parent_of_head(store, store.session("bob")) is None
    turn(store, 1, 2)
    assert parent_of_head(store, store.session("bob")) == one


def test_the_pause_is_what_was_asked_for(store):
    script = Script(None, None)
    with pytest.raises(Script.OverError):
        list(watch(store, "bob", every_seconds=0.25, sleep=script))
    assert script.pauses == [0.25] * 3
    with pytest.raises(ValueError, match="above 0"):
        next(watch(store, "bob", every_seconds=0))


def test_a_store_that_fails_is_an_error_and_not_an_absent_session(store, clock):
    turn(store, 1)
    with pytest.raises(StoreError):
        seen(store, clock, store.close)


# -- one look ------------------------------------------------------------------------------------


def test_a_session_is_seen_as_it_stood_at_one_moment(store, monkeypatch):
    for token in range(3):
        turn(store, token)
    log = store.log

    def log_after_a_turn(session):
        turn(store, 9)  # of somebody else, between two looks
        return log(session)

    monkeypatch.setattr(store, "log", log_after_a_turn)
    found = snapshot_of(store, "bob")
    assert found is not None
    assert found.info.n_turns == len(found.log) == 3
    assert found.log[0].ref == found.info.head
    assert found.state == random_state([2])
    assert store.session("bob").n_turns == 4


def test_a_state_that_is_trimmed_between_two_looks_is_looked_for_anew(store, monkeypatch):
    turn(store, 0)
    get = store.get
    raced: list[int] = []

    def get_after_turns(ref, **options):
        if len(raced) < 3:
            raced.append(1)
            for token in (10 + len(raced), 20 + len(raced)):
                turn(store, token)
        return get(ref, **options)

    monkeypatch.setattr(store, "_staging", type(store._staging)())
    monkeypatch.setattr(store, "get", get_after_turns)
    found = snapshot_of(store, "bob")
    assert found is not None
    assert found.state == random_state([23])
    assert len(raced) == 3


def test_what_cannot_be_looked_at_is_said(store, monkeypatch):
    assert snapshot_of(store, "nobody") is None
    store.append_unread("waiting", ["{}"])
    with pytest.raises(ValueError, match="only unread messages"):
        snapshot_of(store, "waiting")
    turn(store, 1)

    def gone(ref, **options):
        raise StateNotFound(ref)

    monkeypatch.setattr(store, "get", gone)
    with pytest.raises(StateNotFound):
        snapshot_of(store, "bob")
