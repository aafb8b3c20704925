"""A question beside the conversation: answered from where it stands, and never committed."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage

from langchain_rwkv_state import MemoryStateStore, StateStore
from langchain_rwkv_state.conversation.session import SESSION_KEY, RWKVSession
from langchain_rwkv_state.errors import SessionConflict
from langchain_rwkv_state.prompt.markers import STATE_KEY, marker, message_to_json
from tests.helpers.fake_chat import FakeChat


@pytest.fixture
def fake(store) -> FakeChat:
    return FakeChat(store=store)


@pytest.fixture
def bob(fake, store) -> RWKVSession:
    return RWKVSession(fake, store, "bob")


def joined(chunks: Iterable[AIMessageChunk]) -> AIMessageChunk:
    found, *more = chunks
    for chunk in more:
        found = found + chunk
    return found


def usage(answer: AIMessage) -> int:
    assert answer.usage_metadata is not None
    return answer.usage_metadata["output_tokens"]


def expiry(store: StateStore) -> float:
    info = store.session("bob", renew=False)
    assert info is not None
    return info.expires_seconds


class TestAnAside:
    async def test_is_answered_from_the_head_by_every_path_and_changes_nothing(self, bob, store):
        bob.invoke("One.")
        before = store.session("bob"), store.log("bob")
        answers = [
            bob.ask_aside("Two?"),
            await bob.aask_aside("Two?"),
            joined(bob.stream_aside("Two?")),
            joined([chunk async for chunk in bob.astream_aside("Two?")]),
        ]
        assert [answer.content for answer in answers] == ["heard 2"] * 4
        assert (store.session("bob"), store.log("bob")) == before
        assert store.queue("bob") == []

    def test_of_a_new_session_is_that_of_a_new_conversation(self, bob, store):
        assert bob.ask_aside("One?").content == "heard 1"
        assert joined(bob.stream_aside("One?")).content == "heard 1"
        assert store.sessions() == []

    def test_names_its_state_which_is_staged_and_in_no_session(self, bob, fake, store):
        bob.invoke("One.")
        answer = bob.ask_aside("Two?")
        ref = answer.response_metadata[STATE_KEY]
        assert store.get(ref).n_tokens > 0
        assert store.descends(ref, store.head("bob"))
        assert SESSION_KEY not in answer.response_metadata

    def test_reads_the_unread_messages_and_leaves_them_unread(self, bob, fake, store):
        bob.invoke("One.")
        store.append_unread("bob", [message_to_json(HumanMessage("Unread."))])
        answer = bob.ask_aside("Three?")
        assert answer.content == "heard 3"
        assert "human:Unread.\n" in fake.texts[answer.response_metadata[STATE_KEY]]
        assert len(store.session("bob").unread) == 1

    def test_waits_for_no_turn_and_holds_none_up(self, fake, store):
        bob = RWKVSession(fake, store, "bob", wait_timeout=0)
        bob.invoke("One.")
        seen = []

        def meanwhile() -> None:
            fake.before_answer = None
            seen.append(bob.ask_aside("Aside?").content)

        fake.before_answer = meanwhile
        bob.invoke("Two.")
        assert seen == ["heard 2"]
        stream = bob.stream_aside("Aside?")
        next(stream)
        assert bob.invoke("Three.").content == "heard 3"

    async def test_renews_no_time_to_live(self):
        now = [1_000_000.0]
        store = MemoryStateStore(ttl=3600, clock=lambda: now[0])
        bob = RWKVSession(FakeChat(store=store), store, "bob")
        bob.invoke("One.")
        expires = expiry(store)
        now[0] += 1800
        bob.ask_aside("Two?")
        list(bob.stream_aside("Two?"))
        await bob.aask_aside("Two?")
        assert [chunk async for chunk in bob.astream_aside("Two?")]
        assert expiry(store) == expires
        now[0] += 1801
        assert store.sessions() == []

    def test_drops_markers_like_a_turn(self, bob, store):
        bob.invoke("One.")
        foreign = bob.ask_aside("Secret?").response_metadata[STATE_KEY]
        assert bob.ask_aside([marker(foreign), HumanMessage("Two?")]).content == "heard 2"

    def test_of_a_transcript_reads_what_is_new(self, bob):
        first = bob.invoke("One.")
        assert (
            bob.ask_aside([HumanMessage("One."), first, HumanMessage("Two?")]).content == "heard 2"
        )

    async def test_says_so_where_the_session_moved_on(self, fake, monkeypatch):
        store = fake.store
        bob = RWKVSession(fake, store, "bob")
        bob.invoke("One.")
        session = store.session

        def overtaken(name, **options):
            info = session(name, **options)
            monkeypatch.setattr(store, "session", session)
            bob.invoke("Quick.")
            bob.invoke("Quicker.")
            return info

        for ask in (bob.ask_aside, lambda text: list(bob.stream_aside(text))):
            monkeypatch.setattr(store, "session", overtaken)
            with pytest.raises(SessionConflict, match="repeat the turn"):
                ask("Slow?")
        monkeypatch.setattr(store, "session", overtaken)
        with pytest.raises(SessionConflict):
            await bob.aask_aside("Slow?")


class TestWithTheModel:
    def test_it_knows_what_the_session_knows_and_is_forgotten(self, demo):
        bob = demo.with_session("bob")
        bob.invoke([SystemMessage("Your name is Quillon."), HumanMessage("My name is Zanzibar.")])
        head = bob.head
        assert "Zanzibar" in bob.ask_aside("What is my name?").content
        assert "Quillon" in joined(bob.stream_aside("What is your name?")).content
        assert bob.head == head

    async def test_it_equals_the_turn_that_it_is_not(self, chat):
        bob = chat.with_session("bob")
        bob.invoke("One.")
        asides = [bob.ask_aside("Two."), await bob.aask_aside("Two.")]
        turn = bob.invoke("Two.")
        for aside in asides:
            assert aside.content == turn.content
            assert aside.response_metadata[STATE_KEY] == turn.response_metadata[STATE_KEY]

    async def test_what_is_bound_holds_for_it_too(self, chat):
        bob = chat.bind(max_tokens=2).with_session("bob")
        assert usage(bob.ask_aside("One.")) == 2
        assert usage(bob.ask_aside("One.", max_tokens=1)) == 1
        assert usage(bob.with_config(tags=["x"]).ask_aside("One.")) == 2
        assert usage(chat.with_session("bob").with_config(tags=["x"]).ask_aside("One.")) > 2
        answers: list[AIMessage] = [
            joined(bob.stream_aside("One.")),
            joined([chunk async for chunk in bob.astream_aside("One.")]),
            await bob.aask_aside("One."),
        ]
        assert [usage(answer) for answer in answers] == [2, 2, 2]
        for ask in (bob.with_retry().ask_aside, bob.with_retry().bind_tools):
            with pytest.raises(TypeError, match=r"Asides and tools .*: ask the session itself"):
                ask([])
