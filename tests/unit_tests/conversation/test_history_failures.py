"""A history whose store fails: no turn is lost, and nobody is left to think that all is well."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables.history import RunnableWithMessageHistory

from langchain_rwkv_state.conversation.history import RWKVStateHistory
from langchain_rwkv_state.errors import RWKVStateError, StoreFull
from langchain_rwkv_state.prompt.markers import message_from_json
from langchain_rwkv_state.store.base import StateStore
from tests.helpers.fake_chat import FakeChat

CONFIG: Any = {"configurable": {"session_id": "bob"}}


class Weather:
    """Makes verbs of a store fail while it storms."""

    def __init__(self, store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.monkeypatch = monkeypatch
        self.storms = 0

    def storm(self, *verbs: str, error: Exception | None = None, times: int = 1_000) -> None:
        self.storms = times
        for verb in verbs:
            self.monkeypatch.setattr(self.store, verb, self._failing(verb, error))

    def clear_up(self) -> None:
        self.storms = 0

    def _failing(self, verb: str, error: Exception | None) -> Any:
        real = getattr(self.store, verb)

        def call(*args: Any, **options: Any) -> Any:
            if self.storms > 0:
                self.storms -= 1
                raise error or OSError("the disk is gone")
            return real(*args, **options)

        return call


@pytest.fixture
def fake(store: StateStore) -> FakeChat:
    return FakeChat(store=store)


@pytest.fixture
def weather(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> Weather:
    return Weather(store, monkeypatch)


def bob(store: StateStore) -> RWKVStateHistory:
    """A new instance, as `get_session_history` may make one for each call."""
    return RWKVStateHistory("bob", store)


def turn(history: RWKVStateHistory, chat: FakeChat, text: str) -> AIMessage:
    question = HumanMessage(text)
    answer = chat.invoke([*history.messages, question])
    history.add_messages([question, answer])
    return answer


def unread(store: StateStore) -> list[str]:
    info = store.session("bob")
    return [str(message_from_json(text).text) for text in info.unread] if info else []


@pytest.mark.parametrize("verb", ["commit", "append_unread"])
@pytest.mark.parametrize(
    "error", [OSError("gone"), StoreFull("no room"), RuntimeError("?")], ids=lambda e: str(e)
)
def test_add_messages_never_raises(fake, store, weather, verb, error):
    history = bob(store)
    answer = fake.invoke([*history.messages, HumanMessage("one")])
    weather.storm(verb, error=error)
    history.add_messages([HumanMessage("one"), answer])
    history.add_messages([HumanMessage("two"), AIMessage("foreign")])
    weather.clear_up()
    turn(bob(store), fake, "three")
    told = fake.told("bob")
    assert [told.count(text) for text in ("human:one", "human:two", "human:three")] == [1, 1, 1]


async def test_aadd_messages_never_raises(fake, store, weather):
    history = bob(store)
    weather.storm("append_unread")
    await history.aadd_messages([HumanMessage("one"), AIMessage("foreign")])
    with pytest.raises(OSError, match="the disk is gone"):
        await bob(store).aget_messages()
    weather.clear_up()
    assert len(await bob(store).aget_messages()) == 3


def test_a_store_that_still_fails_says_so_at_the_next_messages(fake, store, weather):
    weather.storm("commit", "append_unread", error=StoreFull("no room for bob"))
    turn(bob(store), fake, "one")
    for _ in range(2):
        with pytest.raises(StoreFull, match="no room for bob"):
            _ = bob(store).messages


def test_a_turn_held_in_memory_is_committed_before_messages_are_handed_out(fake, store, weather):
    weather.storm("commit")
    turn(bob(store), fake, "one")
    with pytest.raises(OSError, match="the disk is gone"):
        _ = bob(store).messages
    weather.clear_up()
    assert len(bob(store).messages) == 1
    assert fake.told("bob") == "human:one\nai:heard 1\n"
    assert turn(bob(store), fake, "two").content == "heard 2"
    assert fake.told("bob") == "human:one\nai:heard 1\nhuman:two\nai:heard 2\n"


def test_a_passing_failure_loses_nothing_and_disturbs_nobody(fake, store, weather):
    weather.storm("commit", times=1)
    turn(bob(store), fake, "one")
    assert turn(bob(store), fake, "two").content == "heard 2"
    assert fake.told("bob") == "human:one\nai:heard 1\nhuman:two\nai:heard 2\n"
    assert unread(store) == []


def test_turns_held_in_memory_are_stored_in_their_order(fake, store, weather):
    histories = [bob(store) for _ in range(3)]
    weather.storm("append_unread")
    for number, history in enumerate(histories):
        history.add_messages([HumanMessage(f"q{number}"), AIMessage(f"a{number}")])
    weather.clear_up()
    assert [m.content for m in bob(store).messages[1:]] == ["q0", "a0", "q1", "a1", "q2", "a2"]


def test_a_failure_midway_keeps_the_rest_in_memory(fake, store, weather):
    histories = [bob(store) for _ in range(3)]
    weather.storm("append_unread", times=4)
    for number, history in enumerate(histories):
        history.add_messages([HumanMessage(f"q{number}")])
    with pytest.raises(OSError, match="the disk is gone"):
        _ = bob(store).messages
    assert [m.content for m in bob(store).messages[1:]] == ["q0", "q1", "q2"]
    assert unread(store) == ["q0", "q1", "q2"]


def test_the_failure_of_one_session_does_not_reach_another(fake, store, weather):
    weather.storm("commit")
    turn(bob(store), fake, "one")
    assert len(RWKVStateHistory("ann", store).messages) == 1


def test_a_failure_is_logged_where_it_happens(fake, store, weather, caplog):
    weather.storm("commit")
    turn(bob(store), fake, "one")
    (record,) = caplog.records
    assert "session 'bob'" in record.getMessage()
    assert "the disk is gone" in str(record.exc_info)


def test_a_chain_answers_then_says_that_its_store_failed(fake, store, weather):
    chain = RunnableWithMessageHistory(fake, lambda session_id: RWKVStateHistory(session_id, store))
    weather.storm("commit", "append_unread")
    assert chain.invoke([HumanMessage("one")], CONFIG).content == "heard 1"
    with pytest.raises(OSError, match="the disk is gone"):
        chain.invoke([HumanMessage("two")], CONFIG)
    weather.clear_up()
    assert chain.invoke([HumanMessage("three")], CONFIG).content == "heard 2"
    assert fake.told("bob") == "human:one\nai:heard 1\nhuman:three\nai:heard 2\n"


def test_a_closed_store_reaches_the_caller_at_the_next_messages(fake, disk_store):
    fake.store = disk_store
    history = RWKVStateHistory("bob", disk_store)
    answer = fake.invoke([*history.messages, HumanMessage("one")])
    disk_store.close()
    history.add_messages([HumanMessage("one"), answer])
    with pytest.raises(RWKVStateError):
        _ = history.messages


def test_a_name_that_no_session_can_have_reaches_the_caller(store):
    with pytest.raises((RWKVStateError, ValueError)):
        _ = RWKVStateHistory("", store).messages


def test_clear_drops_the_turns_held_in_memory(fake, store, weather):
    weather.storm("append_unread")
    history = bob(store)
    history.add_messages([HumanMessage("one"), AIMessage("foreign")])
    weather.clear_up()
    history.clear()
    assert len(history.messages) == 1
    assert store.session("bob") is None


@pytest.mark.parametrize("verb", ["commit", "append_unread"])
async def test_a_cancelled_end_of_turn_is_told_once(fake, store, monkeypatch, verb):
    began, go_on, done = (threading.Event() for _ in range(3))
    real = getattr(store, verb)

    def slow(*args: Any, **options: Any) -> None:
        began.set()
        go_on.wait(10)
        real(*args, **options)
        done.set()

    history = bob(store)
    answer = await fake.ainvoke([*await history.aget_messages(), HumanMessage("one")])
    said = answer if verb == "commit" else AIMessage("rewritten")
    monkeypatch.setattr(store, verb, slow)
    task = asyncio.create_task(history.aadd_messages([HumanMessage("one"), said]))
    await asyncio.to_thread(began.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await asyncio.to_thread(done.wait, 10)
    monkeypatch.undo()
    turn(bob(store), fake, "two")
    assert fake.told("bob") == f"human:one\nai:{said.content}\nhuman:two\nai:heard 2\n"
    assert unread(store) == []


async def test_a_turn_cancelled_before_it_reached_the_store_is_kept(fake, store, monkeypatch):
    stuck = asyncio.Event()

    async def wait(*_: Any, **__: Any) -> None:
        stuck.set()
        await asyncio.sleep(10)

    history = bob(store)
    answer = await fake.ainvoke([*await history.aget_messages(), HumanMessage("one")])
    monkeypatch.setattr(store, "acommit", wait)
    task = asyncio.create_task(history.aadd_messages([HumanMessage("one"), answer]))
    await stuck.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    turn(bob(store), fake, "two")
    assert fake.told("bob") == "human:one\nai:heard 1\nhuman:two\nai:heard 2\n"
