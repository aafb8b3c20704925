"""One object for all sessions: the name comes with the call, and all else is as for one session."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory

from langchain_rwkv_state import RWKVStateHistory
from langchain_rwkv_state.conversation.session import SESSION_KEY
from langchain_rwkv_state.conversation.sessions import RWKVSessions
from langchain_rwkv_state.errors import SessionConflict
from langchain_rwkv_state.prompt.markers import STATE_KEY
from tests.helpers.fake_chat import FakeChat


@pytest.fixture
def fake(store) -> FakeChat:
    return FakeChat(store=store)


@pytest.fixture
def sessions(fake, store) -> RWKVSessions:
    return RWKVSessions(fake, store)


def of(session: Any, key: str = "session_id") -> RunnableConfig:
    return {"configurable": {key: session}}


class TestTheName:
    @pytest.mark.parametrize("key", ["session_id", "thread_id"])
    def test_comes_with_the_call(self, sessions, store, key):
        assert sessions.invoke("One.", of("bob", key)).content == "heard 1"
        assert sessions.invoke("Two.", of("bob", key)).content == "heard 2"
        assert sessions.invoke("One.", of("ada", key)).content == "heard 1"
        assert store.sessions() == ["ada", "bob"]

    def test_may_be_given_twice_but_not_as_two(self, sessions):
        both = {"configurable": {"session_id": "bob", "thread_id": "bob"}}
        assert sessions.invoke("One.", both).response_metadata[SESSION_KEY] == "bob"
        with pytest.raises(ValueError, match=r"session_id 'bob' and thread_id 'ada'.*pass one"):
            sessions.invoke("One.", {"configurable": {"session_id": "bob", "thread_id": "ada"}})

    @pytest.mark.parametrize("config", [None, {}, {"configurable": {"session_id": None}}])
    def test_that_is_missing_is_told_with_an_example(self, sessions, config):
        with pytest.raises(ValueError, match=r'config=\{"configurable": \{"session_id": "bob"\}\}'):
            sessions.invoke("One.", config)

    @pytest.mark.parametrize("name", ["", "x" * 513, 7])
    def test_is_one_that_a_session_can_have(self, sessions, name):
        with pytest.raises(ValueError, match="A session name is a text of 1 to 512 characters"):
            sessions.invoke("One.", of(name))

    async def test_comes_by_every_path(self, sessions, store):
        sessions.invoke("One.", of("a"))
        list(sessions.stream("Two.", of("a")))
        await sessions.ainvoke("Three.", of("a"))
        async for _ in sessions.astream("Four.", of("a")):
            pass
        assert store.session("a").n_turns == 4

    def test_may_be_bound(self, sessions, store):
        bob = sessions.with_config(of("bob")).bind(stop=["x"])
        bob.invoke("One.")
        assert bob.ask_aside("Two.").content == "heard 2"
        assert store.session("bob").n_turns == 1

    def test_is_known_to_a_chains_configuration(self, sessions):
        chain = ChatPromptTemplate.from_template("{text}") | sessions | StrOutputParser()
        fields = chain.config_schema(include=["configurable"]).model_json_schema()
        assert set(fields["$defs"]["Configurable"]["properties"]) == {"session_id", "thread_id"}

    def test_does_not_quarrel_with_a_historys(self, sessions, fake, store):
        history = RunnableWithMessageHistory(fake, lambda name: RWKVStateHistory(store, name))
        specs = (sessions | RunnableLambda(lambda m: [m]) | history).config_specs
        assert sorted(spec.id for spec in specs) == ["session_id", "thread_id"]


class TestInAChain:
    def test_turns_are_remembered_and_the_system_prompt_is_read_once(self, sessions, fake, store):
        prompt = ChatPromptTemplate.from_messages([("system", "Be kind."), ("human", "{text}")])
        chain = prompt | sessions | StrOutputParser()
        assert [chain.invoke({"text": "Hm."}, of("bob")) for _ in range(3)] == [
            "heard 1",
            "heard 2",
            "heard 3",
        ]
        assert fake.told("bob").count("Be kind.") == 1
        assert "".join(chain.stream({"text": "Hm."}, of("bob"))) == "heard 4"

    def test_a_transcript_is_read_once(self, sessions, fake):
        thread: list[Any] = [SystemMessage("Be kind.")]
        for number in range(3):
            thread.append(HumanMessage(f"q{number}"))
            thread.append(sessions.invoke({"messages": thread}, of("bob", "thread_id")))
        told = fake.told("bob")
        assert [told.count(f"human:q{number}\n") for number in range(3)] == [1] * 3

    def test_a_node_hands_its_configuration_on_or_need_not(self, sessions, store):
        def handed(state: dict[str, Any], config: RunnableConfig) -> dict[str, Any]:
            return {"messages": [sessions.invoke(state["messages"], config)]}

        def inherited(state: dict[str, Any]) -> dict[str, Any]:
            return {"messages": [sessions.invoke(state["messages"])]}

        for node in (handed, inherited):
            found = RunnableLambda(node).invoke({"messages": [HumanMessage("Hm.")]}, of("bob"))
            assert found["messages"][0].response_metadata[SESSION_KEY] == "bob"
        assert store.session("bob").n_turns == 2

    async def test_an_async_node_need_not_either(self, sessions, store):
        async def node(text: str) -> None:
            await sessions.ainvoke(text)

        await RunnableLambda(node).ainvoke("Hm.", of("bob"))
        assert store.session("bob").n_turns == 1


class TestABatch:
    TEXTS = ("a1", "b1", "a2", "b2", "a3")

    @property
    def configs(self) -> list[RunnableConfig]:
        return [of(text[0]) for text in self.TEXTS]

    async def test_keeps_the_order_of_each_session(self, sessions, fake):
        expected = ["heard 1", "heard 1", "heard 2", "heard 2", "heard 3"]
        found = sessions.batch(list(self.TEXTS), self.configs)
        assert [answer.content for answer in found] == expected
        assert [line for line in fake.told("a").splitlines() if "human" in line] == [
            f"human:a{n}" for n in (1, 2, 3)
        ]
        found = await sessions.abatch(list(self.TEXTS), self.configs)
        assert [answer.content for answer in found] == [
            "heard 4",
            "heard 3",
            "heard 5",
            "heard 4",
            "heard 6",
        ]

    async def test_begins_a_turn_once_the_one_before_it_has_ended(self, fake, store):
        sessions = RWKVSessions(fake, store, on_conflict="raise")  # which waits for nobody
        fake.before_answer = lambda: time.sleep(0.05)
        configs = [of("bob")] * 3
        sessions.batch(["One.", "Two.", "Three."], configs)
        await sessions.abatch(["One.", "Two.", "Three."], configs)
        assert store.session("bob").n_turns == 6

    async def test_keeps_the_order_of_a_session_where_answers_are_told_as_they_come(
        self, fake, store
    ):
        sessions = RWKVSessions(fake, store, on_conflict="raise")  # which waits for nobody
        fake.before_answer = lambda: time.sleep(0.02)
        texts, configs = ["One.", "Two.", "Three.", "One."], [of("a"), of("a"), of("a"), of("b")]
        found = list(sessions.batch_as_completed(texts, configs))
        assert [at for at, _ in found if at < 3] == [0, 1, 2]
        assert {at: answer.content for at, answer in found}[3] == "heard 1"
        found = [each async for each in sessions.abatch_as_completed(texts, configs)]
        assert [answer.content for at, answer in found if at < 3] == [
            "heard 4",
            "heard 5",
            "heard 6",
        ]
        assert list(sessions.batch_as_completed([])) == []
        assert [each async for each in sessions.abatch_as_completed([])] == []

    async def test_says_as_they_come_what_went_wrong(self, sessions, store):
        texts, configs = ["One.", "Two.", "Three."], [of("a"), {}, of("b")]
        for found in (
            dict(sessions.batch_as_completed(texts, configs, return_exceptions=True)),
            dict(
                [
                    each
                    async for each in sessions.abatch_as_completed(
                        texts, configs, return_exceptions=True
                    )
                ]
            ),
        ):
            assert isinstance(found[1], ValueError)
            assert [isinstance(found[at], AIMessage) for at in (0, 2)] == [True, True]
        with pytest.raises(ValueError, match="No session is named"):
            list(sessions.batch_as_completed(texts, configs))
        with pytest.raises(ValueError, match="No session is named"):
            _ = [each async for each in sessions.abatch_as_completed(texts, configs)]

    async def test_that_is_left_begins_no_further_turn(self, fake, sessions, store):
        fake.before_answer = lambda: time.sleep(0.05)
        texts, configs = ["One.", "Two.", "Three."], [of("bob")] * 3
        some = sessions.batch_as_completed(texts, configs)
        next(some)
        some.close()
        held = store.session("bob").n_turns
        assert held < 3
        more = sessions.abatch_as_completed(texts, [of("ada")] * 3)
        await anext(more)
        await more.aclose()
        assert store.session("ada").n_turns < 3
        assert store.session("bob").n_turns == held

    def test_serves_sessions_beside_one_another(self, fake, sessions):
        both = threading.Barrier(2, timeout=20)
        fake.before_answer = lambda: both.wait() and None
        sessions.batch(["One.", "One."], [of("a"), of("b")])  # one after another, it would break

    async def test_serves_sessions_beside_one_another_async_too(self, fake, sessions):
        both = threading.Barrier(2, timeout=20)
        fake.before_answer = lambda: both.wait() and None
        await sessions.abatch(["One.", "One."], [of("a"), of("b")])

    def test_of_one_configuration_is_one_conversation(self, sessions, store):
        found = sessions.batch(["One.", "Two."], of("bob"))
        assert [answer.content for answer in found] == ["heard 1", "heard 2"]

    def test_of_nothing_is_nothing(self, sessions):
        assert sessions.batch([]) == []
        assert asyncio.run(sessions.abatch([])) == []

    async def test_says_at_its_place_what_went_wrong(self, sessions):
        configs = [of("a"), {}, of("b")]
        for found in (
            sessions.batch(["One."] * 3, configs, return_exceptions=True),
            await sessions.abatch(["One."] * 3, configs, return_exceptions=True),
        ):
            assert isinstance(found[1], ValueError)
            assert [isinstance(found[at], AIMessage) for at in (0, 2)] == [True, True]
        with pytest.raises(ValueError, match="No session is named"):
            sessions.batch(["One."] * 3, configs)


class TestSettings:
    def test_are_checked_at_once(self, fake, store):
        with pytest.raises(ValueError, match="on_conflict"):
            RWKVSessions(fake, store, on_conflict="ignore")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="wait_timeout"):
            RWKVSessions(fake, store, wait_timeout=-1)
        with pytest.raises(ValueError, match="soon"):
            RWKVSessions(fake, store, ttl="soon")

    def test_hold_for_each_session(self, fake, store):
        sessions = RWKVSessions(fake, store, ttl="1h", on_conflict="raise")
        sessions.invoke("One.", of("bob"))
        info = store.session("bob")
        assert info.expires_seconds - info.updated_seconds == 3600

        def overtaken() -> None:
            fake.before_answer = None
            sessions.invoke("Quick.", of("bob"))

        fake.before_answer = overtaken
        with pytest.raises(SessionConflict):
            sessions.invoke("Slow.", of("bob"))


class TestWithTheModel:
    def test_a_chain_remembers_who_is_who(self, demo):
        chain = (
            ChatPromptTemplate.from_template("{text}")
            | demo.with_sessions(ttl="1h")
            | StrOutputParser()
        )
        chain.invoke({"text": "My name is Zanzibar."}, of("bob"))
        chain.invoke({"text": "My name is Beatrice."}, of("ada"))
        assert "Zanzibar" in chain.invoke({"text": "What is my name?"}, of("bob"))
        assert "Beatrice" in chain.invoke({"text": "What is my name?"}, of("ada"))

    def test_a_turn_is_that_of_one_session(self, chat, store):
        chat.with_session("one").invoke("Hello.", max_tokens=3)
        chat.with_sessions().invoke("Hello.", of("other"), max_tokens=3)
        assert store.head("one") == store.head("other")

    def test_what_is_bound_before_and_behind_stays(self, chat, demo, store):
        bound = chat.bind(max_tokens=2).with_sessions(ttl=60)
        answer = bound.invoke("Hello.", of("bob"))
        assert answer.usage_metadata["output_tokens"] == 2
        assert bound.ask_aside("Hello.", of("bob")).usage_metadata["output_tokens"] == 2
        info = store.session("bob")
        assert info.expires_seconds - info.updated_seconds == 60

        def look(at: str) -> str:
            """Look at something."""
            return at

        with_tools = demo.bind(max_tokens=40).with_sessions().bind_tools([look], tool_choice="any")
        assert with_tools.kwargs["max_tokens"] == 40
        assert with_tools.invoke("Look at it.", of("eye")).tool_calls[0]["name"] == "look"
        schema = {"title": "Place", "type": "object", "properties": {"at": {"enum": ["x"]}}}
        wanted = demo.with_sessions().with_structured_output({**schema, "required": ["at"]})
        assert wanted.invoke("Where?", of("ear")) == {"at": "x"}

    def test_a_configuration_that_was_bound_stays(self, chat):
        seen = UsageMetadataCallbackHandler()
        watched: RunnableConfig = {**of("bob"), "callbacks": [seen]}
        for number, bound in enumerate(
            (
                chat.with_config(watched).bind(max_tokens=2),
                chat.bind(max_tokens=2).with_config(watched),
                chat.bind_tools([], max_tokens=2).with_config(watched),
            )
        ):
            assert bound.with_sessions().invoke("Hello.").usage_metadata["output_tokens"] == 2
            assert bound.with_session("ada").invoke("Hello.").usage_metadata["output_tokens"] == 2
            (found,) = seen.usage_metadata.values()
            assert found["output_tokens"] == 4 * (number + 1)

    def test_behind_a_retry_there_is_no_session(self, chat):
        with pytest.raises(TypeError, match="take the session first"):
            chat.bind(max_tokens=2).with_retry().with_sessions()


def test_the_state_behind_an_answer_is_named(sessions, store):
    assert sessions.invoke("One.", of("bob")).response_metadata[STATE_KEY] == store.head("bob")
