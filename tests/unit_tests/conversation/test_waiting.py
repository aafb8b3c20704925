"""Turns of one session come one after another: who waits, who is refused, and who lets go."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import threading
import time
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage

from langchain_rwkv_state import DiskStateStore, MemoryStateStore
from langchain_rwkv_state.conversation import leases, waiting
from langchain_rwkv_state.conversation.leases import LEASES
from langchain_rwkv_state.conversation.session import SESSION_KEY, RWKVSession
from langchain_rwkv_state.errors import SessionConflict
from langchain_rwkv_state.store import turns
from tests.helpers.fake_chat import FakeChat

STRANGER = "5" * 32


class Gate:
    """Holds answers up until it is opened."""

    def __init__(self) -> None:
        self.asked, self.open = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.asked.set()
        assert self.open.wait(20)


@pytest.fixture(params=["memory", "disk"])
def store(request, store, tmp_path):
    if request.param == "memory":
        yield store
        return
    with DiskStateStore(tmp_path / "states") as on_disk:
        yield on_disk


@pytest.fixture
def fake(store) -> FakeChat:
    return FakeChat(store=store)


def talk(fake: FakeChat, session: str = "bob", **options: Any) -> RWKVSession:
    return RWKVSession(fake, fake.store, session, **options)


def said(text: str) -> list[HumanMessage]:
    return [HumanMessage(text)]


def in_thread(call: Any) -> tuple[threading.Thread, list[Any]]:
    """Runs a call in a thread of its own; gives its result, or what it raised, in a list."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, outcome


def keepers() -> int:
    return [thread.name for thread in threading.enumerate()].count("rwkv-state-turns")


def until(ready: Any) -> None:
    end = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.005)


class TestWaiting:
    def test_turns_of_many_threads_are_all_in_the_session(self, fake, store):
        calls = [in_thread(lambda n=n: talk(fake).invoke(said(f"{n}."))) for n in range(12)]
        for thread, _ in calls:
            thread.join(30)
        assert sorted(outcome[0].content for _, outcome in calls) == sorted(
            f"heard {n}" for n in range(1, 13)
        )
        assert store.session("bob").n_turns == 12
        assert store.queue("bob") == []

    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_behind_a_turn_of_this_process_asks_the_store_for_little(
        self, fake, store, monkeypatch, asynchronous
    ):
        looks: list[str] = []
        read = type(store).queue

        def counted(self: Any, name: str) -> Any:
            looks.append(name)
            return read(self, name)

        monkeypatch.setattr(type(store), "queue", counted)
        fake.before_answer = gate = Gate()
        calls = []
        for number in range(8):
            turn = talk(fake)
            call = (
                (lambda turn=turn: asyncio.run(turn.ainvoke(said("one"))))
                if asynchronous
                else (lambda turn=turn: turn.invoke(said("one")))
            )
            calls.append(in_thread(call))
            until(lambda n=number: len(read(store, "bob")) == n + 1)
        time.sleep(0.5)
        gate.open.set()
        for thread, _ in calls:
            thread.join(30)
        assert [outcome[0].content for _, outcome in calls] == [f"heard {n}" for n in range(1, 9)]
        assert len(looks) <= 30  # polled every 50 ms, seven took 70 in the half second alone

    async def test_turns_of_many_tasks_are_all_in_the_session(self, fake, store):
        answers = await asyncio.gather(*(talk(fake).ainvoke(said(f"{n}.")) for n in range(12)))
        assert len({answer.content for answer in answers}) == 12
        assert store.session("bob").n_turns == 12

    def test_the_order_is_that_in_which_they_came(self, fake, store):
        fake.before_answer = gate = Gate()
        calls = []
        for number in range(5):
            calls.append(in_thread(lambda n=number: talk(fake).invoke(said(f"turn {n}"))))
            until(lambda n=number: len(store.queue("bob")) == n + 1)
        gate.open.set()
        for thread, _ in calls:
            thread.join(30)
        told = fake.told("bob")
        assert [told.index(f"turn {n}") for n in range(5)] == sorted(
            told.index(f"turn {n}") for n in range(5)
        )

    def test_a_stream_keeps_the_others_waiting_until_its_end(self, fake, store):
        stream: Any = talk(fake).stream(said("one"))
        next(stream)
        thread, outcome = in_thread(lambda: talk(fake).invoke(said("two")))
        until(lambda: len(store.queue("bob")) == 2)
        assert outcome == []
        list(stream)
        thread.join(20)
        assert outcome[0].content == "heard 2"

    @pytest.mark.parametrize("how", ["closed", "forgotten"])
    def test_a_stream_that_is_left_lets_the_others_go_on(self, fake, store, how):
        stream: Any = talk(fake).stream(said("one"))
        next(stream)
        if how == "closed":
            stream.close()
        del stream
        gc.collect()
        assert talk(fake).invoke(said("two")).content == "heard 1"
        assert store.queue("bob") == []

    async def test_an_async_stream_does_the_same(self, fake, store):
        stream: Any = talk(fake).astream(said("one"))
        await anext(stream)
        waiting = asyncio.create_task(asyncio.to_thread(talk(fake).invoke, said("two")))
        await stream.aclose()
        await waiting
        assert store.session("bob").n_turns == 1
        assert store.queue("bob") == []

    def test_a_turn_that_fails_lets_the_others_go_on(self, fake, store):
        fake.script = [RuntimeError("no answer")]
        with pytest.raises(RuntimeError, match="no answer"):
            talk(fake).invoke(said("one"))
        assert store.queue("bob") == []
        assert talk(fake).invoke(said("two")).content == "heard 1"

    def test_other_sessions_do_not_wait(self, fake):
        stream: Any = talk(fake).stream(said("one"))
        next(stream)
        assert talk(fake, "ann").invoke(said("two")).content == "heard 1"
        stream.close()

    async def test_the_loop_goes_on_meanwhile(self, fake, store):
        store.enter_queue("bob", STRANGER, 15)
        waiting = asyncio.create_task(talk(fake).ainvoke(said("one")))
        ticks = 0
        while len(store.queue("bob")) < 2 or ticks < 20:
            await asyncio.sleep(0.002)
            ticks += 1
        store.leave_queue("bob", STRANGER)
        assert (await waiting).content == "heard 1"


class TestALimit:
    def test_of_the_wait_is_told_with_who_is_before(self, fake, store):
        store.enter_queue("bob", STRANGER, 15)
        with pytest.raises(SessionConflict, match=r"0.1 seconds .* 1 turn before this one .*'bob'"):
            talk(fake, wait_timeout=0.1).invoke(said("one"))
        assert [turn.token for turn in store.queue("bob")] == [STRANGER]

    async def test_is_kept_in_the_async_form(self, fake, store):
        store.enter_queue("bob", STRANGER, 15)
        with pytest.raises(SessionConflict, match="still 1 turn before"):
            await talk(fake, wait_timeout=0.1).ainvoke(said("one"))

    @pytest.mark.parametrize("wrong", [-1, float("inf"), float("nan")])
    def test_is_a_number_of_seconds(self, fake, wrong):
        with pytest.raises(ValueError, match="wait_timeout"):
            talk(fake, wait_timeout=wrong)

    @pytest.mark.parametrize("wrong", [None, "5", True])
    def test_of_another_type_is_refused(self, fake, wrong):
        with pytest.raises(TypeError, match=f"wait_timeout is {wrong!r}: pass a number"):
            talk(fake, wait_timeout=wrong)


class TestAPlace:
    def test_of_a_killed_process_runs_out(self, fake, store):
        store.enter_queue("bob", STRANGER, 0.3)
        began = time.monotonic()
        assert talk(fake).invoke(said("one")).content == "heard 1"
        assert 0.2 < time.monotonic() - began < 10

    def test_is_renewed_while_the_model_thinks(self, fake, store, monkeypatch):
        monkeypatch.setattr(turns, "LEASE_SECONDS", 0.3)
        fake.before_answer = lambda: time.sleep(1.2)
        first, slow = in_thread(lambda: talk(fake).invoke(said("slow")))
        until(lambda: store.queue("bob"))
        second, quick = in_thread(lambda: talk(fake).invoke(said("quick")))
        for thread in (first, second):
            thread.join(20)
        assert [slow[0].content, quick[0].content] == ["heard 1", "heard 2"]

    def test_is_renewed_while_it_waits(self, fake, store, monkeypatch):
        store.enter_queue("bob", STRANGER, 15)
        monkeypatch.setattr(turns, "LEASE_SECONDS", 0.3)
        thread, outcome = in_thread(lambda: talk(fake).invoke(said("one")))
        until(lambda: len(store.queue("bob")) == 2)
        token = store.queue("bob")[1].token
        time.sleep(0.8)
        assert [turn.token for turn in store.queue("bob")] == [STRANGER, token]
        store.leave_queue("bob", STRANGER)
        thread.join(20)
        assert outcome[0].content == "heard 1"

    def test_is_kept_by_nobody_after_the_turn(self, fake, monkeypatch):
        monkeypatch.setattr(leases, "_IDLE_SECONDS", 0.3)
        until(lambda: keepers() == 0)  # those of other tests' stores
        for _ in range(3):
            talk(fake).invoke(said("one"))
        stream: Any = talk(fake).stream(said("two"))
        next(stream)
        stream.close()
        assert LEASES._kept == {}
        assert keepers() == 1
        until(lambda: keepers() == 0)
        assert LEASES._rounds == {}
        assert talk(fake).invoke(said("three")).content == "heard 4"

    def test_is_renewed_though_another_store_keeps_its_keeper_waiting(
        self, fake, store, monkeypatch
    ):
        monkeypatch.setattr(turns, "LEASE_SECONDS", 0.3)
        gate = Gate()
        with MemoryStateStore() as locked:
            other: Any = talk(FakeChat(store=locked)).stream(said("one"))
            next(other)
            monkeypatch.setattr(locked, "enter_queue", lambda *_: gate())
            assert gate.asked.wait(10)
            stream: Any = talk(fake).stream(said("one"))
            next(stream)
            time.sleep(0.8)
            assert len(store.queue("bob")) == 1
            gate.open.set()
            stream.close()
            other.close()

    def test_runs_out_once_its_loop_is_closed(self, fake, store, monkeypatch):
        monkeypatch.setattr(turns, "LEASE_SECONDS", 0.3)
        loop = asyncio.new_event_loop()
        stream: Any = talk(fake).astream(said("one"))
        loop.run_until_complete(anext(stream))
        loop.close()
        begun = time.monotonic()
        assert talk(fake, wait_timeout=60).invoke(said("two")).content == "heard 1"
        assert time.monotonic() - begun < 30

    def test_that_ran_out_as_it_waited_is_taken_anew(self, fake, store):
        store.enter_queue("bob", STRANGER, 15)
        thread, outcome = in_thread(lambda: talk(fake).invoke(said("one")))
        until(lambda: len(store.queue("bob")) == 2)
        store.leave_queue("bob", store.queue("bob")[1].token)
        until(lambda: len(store.queue("bob")) == 2)
        store.leave_queue("bob", STRANGER)
        thread.join(20)
        assert outcome[0].content == "heard 1"

    def test_is_given_up_without_setting_a_context_variable(self, fake, store):
        stream: Any = talk(fake).stream(said("one"))
        next(stream)
        before = contextvars.copy_context().get(waiting._turns_here)
        stream.close()
        assert contextvars.copy_context().get(waiting._turns_here) is before
        assert store.queue("bob") == []

    def test_leaves_nothing_behind_in_the_context(self, fake):
        for number in range(20):
            talk(fake, f"s{number}").invoke(said("one"))
        assert len(waiting._turns_here.get()) == 1
        assert waiting._open_turns() == ()
        gc.collect()
        assert waiting._turns_here.get()[0]() is None

    def test_stays_the_parents_in_a_forked_child(self, fake, store, monkeypatch):
        stream: Any = talk(fake).stream(said("one"))
        next(stream)
        parent = os.getpid()
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: parent + 1)
            stream.close()
        assert len(store.queue("bob")) == 1
        assert waiting._open_turns() == ()

    async def test_is_given_up_by_a_task_that_is_cancelled_as_it_waits(self, fake, store):
        store.enter_queue("bob", STRANGER, 15)
        waiting = asyncio.create_task(talk(fake).ainvoke(said("one")))
        await asyncio.to_thread(until, lambda: len(store.queue("bob")) == 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert [turn.token for turn in store.queue("bob")] == [STRANGER]


class TestATurnInATurn:
    class Calling(BaseCallbackHandler):
        raise_error = True

        def __init__(self, call: Any) -> None:
            self.call = call

        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            self.call()

    def test_of_the_same_session_is_refused(self, fake, store):
        handler = self.Calling(lambda: talk(fake).invoke(said("inner")))
        with pytest.raises(SessionConflict, match="would wait for itself"):
            talk(fake).invoke(said("outer"), {"callbacks": [handler]})
        assert store.queue("bob") == []

    async def test_of_the_same_session_is_refused_in_the_async_form(self, fake):
        handler = self.Calling(lambda: talk(fake).invoke(said("inner")))
        with pytest.raises(SessionConflict, match="would wait for itself"):
            await talk(fake).ainvoke(said("outer"), {"callbacks": [handler]})

    def test_within_a_stream_is_refused(self, fake):
        stream: Any = talk(fake).stream(said("outer"))
        next(stream)
        with pytest.raises(SessionConflict, match="read to its end, or closed"):
            talk(fake).invoke(said("inner"))
        assert list(stream)
        assert talk(fake).invoke(said("next")).content == "heard 2"

    @pytest.mark.posix
    def test_is_seen_by_whatever_name_the_store_is_given(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "alias").symlink_to(tmp_path / "real")
        with DiskStateStore(tmp_path / "real") as one, DiskStateStore(tmp_path / "alias") as two:
            stream: Any = talk(FakeChat(store=one)).stream(said("outer"))
            next(stream)
            with pytest.raises(SessionConflict, match="would wait for itself"):
                talk(FakeChat(store=two), wait_timeout=2).invoke(said("inner"))
            stream.close()

    def test_of_another_session_is_none_of_its_business(self, fake, store):
        handler = self.Calling(lambda: talk(fake, "ann").invoke(said("inner")))
        talk(fake).invoke(said("outer"), {"callbacks": [handler]})
        assert store.session("ann").n_turns == store.session("bob").n_turns == 1

    def test_that_raises_or_forks_may_come_between(self, fake, store):
        forked: list[Any] = []
        inner = talk(fake, on_conflict="raise")
        handler = self.Calling(lambda: forked.append(inner.invoke(said("inner"))))
        outer = talk(fake, on_conflict="fork")
        answer = outer.invoke(said("outer"), {"callbacks": [handler]})
        assert answer.response_metadata[SESSION_KEY] != "bob"
        assert store.session("bob").n_turns == 1


class TestWhoDoesNotWait:
    def test_takes_no_place(self, fake, store):
        for how in ("raise", "fork"):
            store.enter_queue(how, STRANGER, 15)
            talk(fake, how, on_conflict=how).invoke(said("one"))
            assert [turn.token for turn in store.queue(how)] == [STRANGER]

    def test_makes_the_turn_of_who_waited_a_conflict(self, fake, store):
        stream: Any = talk(fake).stream(said("slow"))
        next(stream)
        talk(fake, on_conflict="raise").invoke(said("quick"))
        with pytest.raises(SessionConflict):
            list(stream)
        assert store.queue("bob") == []
        assert store.session("bob").n_turns == 1


def test_prefill_waits_for_its_turn_too(chat, store):
    assert chat.store is not None
    chat.store.enter_queue("bob", STRANGER, 15)
    thread, outcome = in_thread(lambda: chat.prefill(said("A document."), session="bob"))
    until(lambda: len(chat.store.queue("bob")) == 2)
    chat.store.leave_queue("bob", STRANGER)
    thread.join(20)
    assert outcome == [chat.store.head("bob")]
    assert chat.store.queue("bob") == []
