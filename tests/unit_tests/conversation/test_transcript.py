"""A session that is given a transcript reads what is new, and refuses what is another branch."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables.history import RunnableWithMessageHistory

from langchain_rwkv_state import DiskStateStore, MemoryStateStore, RWKVStateHistory
from langchain_rwkv_state.conversation.session import SESSION_KEY, RWKVSession
from langchain_rwkv_state.conversation.transcript import only_new
from langchain_rwkv_state.errors import SessionConflict, StateCorrupt
from langchain_rwkv_state.prompt.markers import message_to_json, said_digests
from langchain_rwkv_state.store import LogEntry, rows
from tests.helpers.fake_chat import FakeChat
from tests.helpers.states import random_state

SYSTEM = SystemMessage("Be kind.")


@pytest.fixture
def fake(store) -> FakeChat:
    return FakeChat(store=store)


@pytest.fixture
def bob(fake, store) -> RWKVSession:
    return RWKVSession(fake, store, "bob")


def h(text: str) -> HumanMessage:
    return HumanMessage(text)


def thread_of(bob: RWKVSession, *texts: str) -> list[BaseMessage]:
    """Has a conversation, one message a turn; returns its transcript."""
    messages: list[BaseMessage] = []
    for text in texts:
        messages += [h(text), bob.invoke([h(text)])]
    return messages


class TestAGraphsThread:
    def test_is_read_once_however_often_it_is_resent(self, bob, fake, store):
        thread: list[BaseMessage] = []
        for number in range(5):
            thread.append(h(f"q{number}"))
            thread.append(bob.invoke({"messages": thread}))
        assert thread[-1].content == "heard 5"
        told = fake.told("bob")
        assert [told.count(f"human:q{number}\n") for number in range(5)] == [1] * 5
        assert store.session("bob").n_turns == 5

    def test_is_read_once_behind_a_system_prompt(self, bob, fake):
        thread: list[BaseMessage] = [SYSTEM]
        for number in range(3):
            thread.append(h(f"q{number}"))
            thread.append(bob.invoke(thread))
        assert fake.told("bob").count("human:q0\n") == 1
        assert fake.told("bob").count("Be kind.") == 1

    async def test_is_read_once_in_the_async_form_and_in_streams(self, bob, fake):
        thread: list[BaseMessage] = []
        for number in range(4):
            thread.append(h(f"q{number}"))
            if number == 0:
                answer: Any = await bob.ainvoke(thread)
            else:
                answer = None
                if number % 2:
                    async for chunk in bob.astream(thread):
                        answer = chunk if answer is None else answer + chunk
                else:
                    for chunk in bob.stream(thread):
                        answer = chunk if answer is None else answer + chunk
            thread.append(answer)
        told = fake.told("bob")
        assert [told.count(f"human:q{number}\n") for number in range(4)] == [1] * 4

    def test_that_was_trimmed_at_its_beginning_is_known_too(self, bob, fake):
        thread = thread_of(bob, "one", "two", "three")
        bob.invoke([*thread[2:], h("four")])
        assert fake.told("bob").count("human:two\n") == 1

    def test_that_begins_with_an_answer_is_known_too(self, bob, fake):
        thread = thread_of(bob, "one", "two")
        bob.invoke([thread[-1], h("three")])
        assert fake.told("bob").count("ai:heard 2\n") == 1

    def test_with_several_new_messages_is_read_from_the_first_of_them(self, bob, fake):
        thread = thread_of(bob, "one")
        bob.invoke([*thread, h("two"), AIMessage("by another model"), h("three")])
        told = fake.told("bob")
        assert told.endswith("human:two\nai:by another model\nhuman:three\nai:heard 3\n")
        assert told.count("human:one\n") == 1

    def test_with_tool_calls_is_known(self, bob, fake):
        call = AIMessage("", tool_calls=[{"name": "look", "args": {"at": "x"}, "id": "1"}])
        thread = [h("one"), call, ToolMessage("seen", tool_call_id="1"), h("and?")]
        thread.append(bob.invoke(thread))
        bob.invoke([*thread, h("two")])
        assert fake.told("bob").count("tool:seen\n") == 1
        other = call.model_copy(update={"tool_calls": [{**call.tool_calls[0], "args": {}}]})
        assert said_digests([call]) != said_digests([other])

    def test_with_nothing_new_says_so(self, bob, store):
        thread = thread_of(bob, "one", "two")
        with pytest.raises(ValueError, match=r"holds all 4 messages .* nothing new"):
            bob.invoke(thread)
        assert store.session("bob").n_turns == 2
        assert store.queue("bob") == []

    def test_is_known_to_prefill(self, chat, store):
        bob = chat.with_session("bob")
        thread = [h("One."), bob.invoke("One.")]
        ref = chat.prefill([*thread, h("A document.")], session="bob")
        assert ref == store.head("bob") == chat.prefill([*thread, h("A document.")])
        answer = bob.invoke([*thread, h("A document."), h("Two.")])
        whole = [*thread, h("A document."), h("Two."), AIMessage(answer.content)]
        assert store.head("bob") == chat.prefill(whole)


class TestOneMessage:
    def test_is_never_taken_for_a_transcript(self, bob, fake):
        for _ in range(3):
            bob.invoke("yes")
        assert fake.told("bob").count("human:yes\n") == 3


class TestAnotherBranch:
    @pytest.mark.parametrize(
        "edited",
        [
            lambda t: [*t[:2], h("another two"), *t[3:], h("next")],
            lambda t: [*t[:3], AIMessage("another answer"), h("next")],
            lambda t: [*t[:2], h("another two")],
            lambda t: t[:4],
            lambda t: t[:5],
        ],
        ids=["a question", "an answer", "time travel", "its beginning", "its last question"],
    )
    def test_is_refused_and_changes_nothing(self, bob, store, edited):
        thread = thread_of(bob, "one", "two", "three")
        head = store.head("bob")
        with pytest.raises(SessionConflict, match=r"parts from it after message \d .*[Rr]ewind"):
            bob.invoke(edited(thread))
        assert store.head("bob") == head
        assert store.queue("bob") == []

    def test_is_taken_once_the_session_was_rewound(self, fake):
        with MemoryStateStore(history=5) as store:
            fake.store = store
            bob = RWKVSession(fake, store, "bob")
            thread = thread_of(bob, "one", "two", "three")
            store.rewind("bob", 2)
            bob.invoke([*thread[:2], h("another two")])
            assert fake.told("bob") == ("human:one\nai:heard 1\nhuman:another two\nai:heard 2\n")

    def test_is_taken_by_a_fork_from_there(self, fake):
        with MemoryStateStore(history=5) as store:
            fake.store = store
            thread = thread_of(RWKVSession(fake, store, "bob"), "one", "two")
            store.fork("bob", "rob", at=store.log("bob")[1].ref)
            RWKVSession(fake, store, "rob").invoke([*thread[:2], h("another two")])
            assert fake.told("rob").endswith("ai:heard 1\nhuman:another two\nai:heard 2\n")

    def test_whose_first_message_was_edited_is_read_with_a_warning(self, bob, store):
        thread = thread_of(bob, "one", "two")
        with pytest.warns(UserWarning, match="turns that session 'bob' holds already"):
            bob.invoke([h("another one"), *thread[1:], h("three")])
        assert store.session("bob").n_turns == 3

    def test_whose_answers_were_rewritten_is_read_with_a_warning(self, bob, store):
        thread: list[BaseMessage] = [h("One."), AIMessage(f"{bob.invoke([h('One.')]).text}!")]
        for text in ("Two.", "Three."):
            thread.append(h(text))
            with pytest.warns(UserWarning, match="session 'bob' does, but hold other answers"):
                answer = bob.invoke(list(thread))
            thread.append(AIMessage(f"{answer.text}!"))
        assert store.session("bob").n_turns == 3

    def test_that_is_an_old_piece_is_read_with_a_warning(self, bob):
        thread = thread_of(bob, "one", "two", "three")
        with pytest.warns(UserWarning, match="holds already"):
            bob.invoke([*thread[2:4], h("four")])


class TestExamplesOfAPrompt:
    PROMPT = ChatPromptTemplate.from_messages(
        [
            ("system", "Add."),
            *[("human", "2+2"), ("ai", "4"), ("human", "3+4"), ("ai", "7")],
            ("human", "{text}"),
        ]
    )

    def test_are_read_as_they_are_given_at_every_turn(self, bob, fake, store):
        chain = self.PROMPT | bob
        for text in ("1+1", "5+5", "6+6"):
            chain.invoke({"text": text})
        told = fake.told("bob")
        assert told.count("human:2+2\n") == 3
        assert [told.count(f"human:{text}\n") for text in ("1+1", "5+5", "6+6")] == [1, 1, 1]

    def test_may_be_what_was_really_said_as_well(self, bob, fake):
        fake.script = ["4", "10", "12"]
        chain = self.PROMPT | bob
        for text in ("2+2", "5+5", "6+6"):
            chain.invoke({"text": text})
        assert fake.told("bob").count("human:6+6\n") == 1

    def test_in_front_of_a_new_session_are_no_transcript(self, bob, fake):
        bob.invoke([h("2+2"), AIMessage("4"), h("3+3")])
        assert fake.told("bob") == "human:2+2\nai:4\nhuman:3+3\nai:heard 2\n"


class TestWhatTheLogSays:
    def test_of_each_turn_what_it_added(self, bob, store):
        thread = thread_of(bob, "one", "two")
        assert [entry.said for entry in store.log("bob")] == [
            said_digests(thread[2:]),
            said_digests(thread[:2]),
        ]

    def test_system_messages_are_left_out(self, bob, store):
        bob.invoke([SYSTEM, h("one"), SystemMessage("It rains.")])
        assert len(store.log("bob")[0].said) == 2

    def test_unread_messages_are_among_it(self, bob, fake, store):
        missed = [h("missed"), AIMessage("indeed")]
        store.append_unread("bob", [message_to_json(message) for message in missed])
        answer = bob.invoke("one")
        assert store.log("bob")[0].said == said_digests([*missed, h("one"), answer])
        bob.invoke([*missed, h("one"), answer, h("two")])
        assert fake.told("bob").count("human:missed\n") == 1

    def test_unread_messages_that_are_resent_are_read_once(self, bob, fake, store):
        thread = thread_of(bob, "one")
        missed = [h("missed"), AIMessage("indeed")]
        store.append_unread("bob", [message_to_json(message) for message in missed])
        bob.invoke([*thread, *missed, h("two")])
        assert fake.told("bob").count("human:missed\n") == 1

    def test_a_history_tells_it_too(self, bob, fake, store):
        chain = RunnableWithMessageHistory(fake, lambda name: RWKVStateHistory(name, store))
        config: Any = {"configurable": {"session_id": "bob"}}
        answer = chain.invoke([h("one")], config)
        bob.invoke([h("one"), answer, h("two")])
        assert fake.told("bob").count("human:one\n") == 1

    def test_a_history_whose_turn_was_unread_tells_it_too(self, bob, fake, store):
        history = RWKVStateHistory("bob", store)
        fake.invoke([*history.messages, h("one")])
        history.add_messages([h("one"), AIMessage("rewritten")])
        fake.invoke([*history.messages, h("two")])
        history.add_messages([h("two"), AIMessage("rewritten too")])
        assert store.log("bob")[0].said == said_digests([h("one"), AIMessage("rewritten")])

    def test_a_fork_on_conflict_knows_what_came_before(self, fake, store):
        bob = RWKVSession(fake, store, "bob")
        thread = thread_of(bob, "one")
        slow = RWKVSession(fake, store, "bob", on_conflict="fork")
        stream = slow.stream([*thread, h("slow")])
        next(stream)
        bob_quick = RWKVSession(fake, store, "bob", on_conflict="raise")
        bob_quick.invoke([h("quick")])
        name = list(stream)[-1].response_metadata[SESSION_KEY]
        forked = RWKVSession(fake, store, name)
        forked.invoke([*thread, h("slow"), AIMessage("heard 2"), h("next")])
        assert fake.told(name).count("human:one\n") == 1

    def test_it_goes_with_forks_rewinds_and_bundles(self, fake, store, tmp_path):
        with DiskStateStore(tmp_path / "one", history=5) as one:
            fake.store = one
            bob = RWKVSession(fake, one, "bob")
            thread = thread_of(bob, "one", "two", "three")
            said = [entry.said for entry in one.log("bob")]
            one.fork("bob", "rob")
            assert [entry.said for entry in one.log("rob")] == said
            one.rewind("bob")
            assert [entry.said for entry in one.log("bob")] == said[1:]
            one.export_session("rob", tmp_path / "rob.zip")
            with DiskStateStore(tmp_path / "two") as two:
                two.import_session(tmp_path / "rob.zip")
                assert [entry.said for entry in two.log("rob")] == said
                assert two.check().problems == ()
        assert len(thread) == 6

    def test_a_bundle_with_wrong_digests_is_refused(self):
        from langchain_rwkv_state.store.bundle import _Fields

        assert _Fields("log", {}).digests("said") == ()
        for wrong in (["xyz"], [7], "0" * 16, ["0" * 17]):
            with pytest.raises(StateCorrupt):
                _Fields("log", {"said": wrong}).digests("said")

    def test_rows_of_earlier_releases_say_nothing(self):
        ref = "rwkv1-" + "0" * 64
        columns = rows.pack_turn("bob", LogEntry(ref, None, 7, 1.0, seq=1))
        assert columns[-1] is None
        assert rows.unpack_turn((*columns, rows.checksum("log", columns))).said == ()


class TestALogThatIsNotWhole:
    def entry(self, *messages: BaseMessage) -> LogEntry:
        return LogEntry("x", None, 1, 1.0, True, said_digests(messages))

    def test_is_found_further_behind_in_the_transcript(self):
        old = [h("old"), AIMessage("old answer")]
        known = [h("known"), AIMessage("known answer")]
        log = [self.entry(*known), LogEntry("x", None, 1, 1.0, True)]
        assert only_new([*old, *known, h("new")], log, session="bob", n_turns=2) == [h("new")]

    def test_of_more_turns_than_it_keeps_is_found_too(self):
        log = [self.entry(h("q3"), AIMessage("a3")), self.entry(h("q2"), AIMessage("a2"))]
        thread = [m for n in range(1, 4) for m in (h(f"q{n}"), AIMessage(f"a{n}"))]
        assert only_new([*thread, h("q4")], log, session="bob", n_turns=3) == [h("q4")]

    def test_that_says_nothing_leaves_all_as_it_is_given(self):
        log = [LogEntry("x", None, 1, 1.0, True)]
        given = [h("one"), AIMessage("two"), h("three")]
        assert only_new(given, log, session="bob", n_turns=1) == given


class TestDigests:
    def test_are_of_type_text_and_calls(self):
        call = {"name": "look", "args": {"at": "x"}, "id": "1"}
        said = [
            h("x"),
            AIMessage("x"),
            AIMessage("x", tool_calls=[call]),
            ToolMessage("x", tool_call_id="1"),
        ]
        assert len(set(said_digests(said))) == 4

    def test_are_the_same_for_chunks_ids_and_space_around(self):
        one = said_digests([AIMessage("x"), AIMessage("x", id="1"), AIMessage(" x\n")])
        assert len({*one, *said_digests([AIMessageChunk(content="x")])}) == 1
        calls = [AIMessage("", tool_calls=[{"name": "a", "args": {}, "id": n}]) for n in "12"]
        assert len(set(said_digests(calls))) == 1


WRONG = [
    ({"input": "My name is Marlow."}, "'input'"),
    ({"messages": [h("hi")], "context": "x"}, "'context'"),
    ({"role": "user", "content": "hi"}, "'role'"),
    ({}, "nothing"),
    (None, "None"),
    (7, "7"),
    (b"hi", "bytes"),
    ([], "empty list"),
    ({"messages": []}, "empty list"),
    ({"messages": None}, "None"),
    (h("hi"), "single HumanMessage"),
    ({h("x").content}, "set"),
]


class TestWhatIsNoInput:
    @pytest.mark.parametrize(("given", "words"), WRONG, ids=lambda v: str(v)[:30])
    def test_is_a_type_error_with_what_to_pass_everywhere(
        self, chat, make_llm, store, given, words
    ):
        for model in (chat.with_session("bob"), chat, make_llm(7)):
            with pytest.raises(TypeError, match=words) as told:
                model.invoke(given)
            assert "pass" in str(told.value)
        with pytest.raises(TypeError, match=words):
            chat.prefill(given, session="bob")
        assert store.sessions() == []

    async def test_is_one_in_every_form(self, chat, store):
        bob = chat.with_session("bob")
        with pytest.raises(TypeError):
            list(bob.stream(None))
        with pytest.raises(TypeError):
            await bob.ainvoke(None)
        with pytest.raises(TypeError):
            await anext(bob.astream(None))
        with pytest.raises(TypeError):
            await chat.aprefill({"input": "x"}, session="bob")

    @pytest.mark.parametrize(
        "given",
        [
            "hi",
            [h("hi")],
            (h("hi"),),
            [("human", "hi")],
            [{"role": "user", "content": "hi"}],
            {"messages": [h("hi")]},
            {"messages": [("human", "hi")]},
            {"messages": "hi"},
            ChatPromptValue(messages=[h("hi")]),
            StringPromptValue(text="hi"),
            {"messages": ChatPromptValue(messages=[h("hi")])},
        ],
        ids=str,
    )
    def test_is_none_of_these(self, bob, fake, given):
        bob.invoke(given)
        assert fake.told("bob") == "human:hi\nai:heard 1\n"

    def test_the_bare_models_unpack_a_graphs_state_too(self, chat, make_llm):
        messages = [h("Hello.")]
        for model in (chat, make_llm(7)):
            assert _text(model.invoke({"messages": messages})) == _text(model.invoke(messages))


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer.content)


def test_a_state_of_a_turn_that_moved_nothing_says_nothing(store):
    ref = store.stage(random_state([1]))
    store.commit("bob", ref, None, said=["0" * 16])
    store.commit("bob", ref, ref, said=["1" * 16])
    assert [entry.said for entry in store.log("bob")] == [("0" * 16,)]
