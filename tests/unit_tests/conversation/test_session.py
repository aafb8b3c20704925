import threading
from datetime import timedelta

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from langchain_rwkv_state import DiskStateStore, MemoryStateStore
from langchain_rwkv_state.conversation.session import SESSION_KEY
from langchain_rwkv_state.errors import SessionConflict, StateNotFound, StoreFull
from langchain_rwkv_state.prompt.markers import STATE_KEY, marker, message_to_json


def ref_of(message: AIMessage) -> str:
    return str(message.response_metadata[STATE_KEY])


@pytest.mark.each_device
class TestMemory:
    def test_a_session_remembers_what_it_was_told(self, demo):
        bob = demo.with_session("bob")
        bob.invoke("My name is Zanzibar.")
        assert "Zanzibar" in bob.invoke("What is my name?").content

    def test_sessions_do_not_know_of_each_other(self, demo):
        demo.with_session("bob").invoke("My name is Zanzibar.")
        assert "Zanzibar" not in demo.with_session("ada").invoke("What is my name?").content

    def test_it_is_in_the_store_and_not_in_the_object(self, demo):
        demo.with_session("bob").invoke("My name is Zanzibar.")
        assert "Zanzibar" in demo.with_session("bob").invoke("What is my name?").content

    def test_it_outlives_model_and_store(self, make_chat, tmp_path):
        with DiskStateStore(tmp_path / "states") as store:
            make_chat("demo", store=store).with_session("bob").invoke("My name is Zanzibar.")
        with DiskStateStore(tmp_path / "states") as store:
            bob = make_chat("demo", store=store).with_session("bob")
            assert "Zanzibar" in bob.invoke("What is my name?").content

    def test_a_system_prompt_is_obeyed_and_read_once(self, demo, store):
        bob, question = demo.with_session("bob"), HumanMessage("What is your name?")
        system = SystemMessage("Your name is Quillon.")
        bob.invoke([system, HumanMessage("Good morning.")])
        store.fork("bob", "rob")
        answer = bob.invoke([system, question])
        assert "Quillon" in answer.content
        without = demo.with_session("rob").invoke([question])
        assert answer.usage_metadata == without.usage_metadata
        assert ref_of(answer) == ref_of(without)

    def test_a_chain_remembers(self, demo):
        prompt = ChatPromptTemplate.from_messages([("human", "{text}")])
        chain = prompt | demo.with_session("bob") | StrOutputParser()
        chain.invoke({"text": "My name is Zanzibar."})
        assert "Zanzibar" in chain.invoke({"text": "What is my name?"})
        assert "Zanzibar" in "".join(chain.stream({"text": "What is my name?"}))


@pytest.mark.each_device
class TestTurns:
    def test_each_is_committed_with_its_answer(self, chat, store):
        bob = chat.with_session("bob")
        assert store.head("bob") is None
        first = bob.invoke("One.")
        assert bob.head == ref_of(first) == store.head("bob")
        assert first.response_metadata[SESSION_KEY] == "bob"
        second = bob.invoke("Two.")
        log = bob.log()
        assert [entry.ref for entry in log] == [ref_of(second), ref_of(first)]
        assert [entry.parent for entry in log] == [ref_of(first), None]

    def test_equal_a_transcript_read_in_one_go(self, chat, store):
        bob, transcript = chat.with_session("bob"), []
        for text in ("One.", "Two.", "Three."):
            answer = bob.invoke(text)
            transcript += [HumanMessage(text), AIMessage(answer.content)]
        assert bob.head == chat.prefill(transcript)

    def test_read_only_what_is_new(self, chat):
        bob, read = chat.with_session("bob"), []
        for _ in range(4):
            usage = bob.invoke("One and the same text.").usage_metadata
            read.append(usage["input_tokens"] - usage["input_token_details"]["cache_read"])
        assert len(set(read[1:])) == 1

    def test_of_a_stream_are_committed_before_its_last_chunk(self, chat, store):
        bob = chat.with_session("bob")
        total = None
        for chunk in bob.stream("Hello."):
            last = STATE_KEY in chunk.response_metadata
            assert (store.head("bob") is not None) == last
            total = chunk if total is None else total + chunk
        assert isinstance(total, AIMessageChunk)
        assert ref_of(total) == bob.head
        assert total.response_metadata[SESSION_KEY] == "bob"

    def test_left_in_the_middle_never_happened(self, chat, store):
        bob = chat.with_session("bob")
        head = ref_of(bob.invoke("One."))
        expected = chat.invoke([marker(head), HumanMessage("Two.")])
        stream = bob.stream("Something else entirely.")
        next(stream)
        stream.close()
        assert store.head("bob") == head
        assert len(store.log("bob")) == 1
        assert bob.invoke("Two.").content == expected.content

    def test_that_fail_are_not_committed(self, chat, store):
        bob = chat.with_session("bob")
        head = ref_of(bob.invoke("One."))
        with pytest.raises(ValueError, match="top_p"):
            bob.invoke("Two.", top_p=9)
        assert store.head("bob") == head

    def test_of_a_batch_follow_one_another(self, chat, store):
        texts = ["One.", "Two.", "Three."]
        answers = chat.with_session("batch").batch(texts)
        one_by_one = [chat.with_session("single").invoke(text) for text in texts]
        assert [ref_of(a) for a in answers] == [ref_of(a) for a in one_by_one]
        assert len(store.log("batch")) == 3

    async def test_of_an_async_batch_follow_one_another(self, chat, store):
        texts = ["One.", "Two.", "Three."]
        answers = await chat.with_session("batch").abatch(texts)
        one_by_one = [await chat.with_session("single").ainvoke(text) for text in texts]
        assert [ref_of(a) for a in answers] == [ref_of(a) for a in one_by_one]

    async def test_are_the_same_by_every_path(self, chat, store):
        heads = set()
        for number, call in enumerate(("invoke", "stream", "ainvoke", "astream")):
            session = chat.with_session(f"bob-{number}")
            for text in ("One.", "Two."):
                if call == "invoke":
                    session.invoke(text)
                elif call == "stream":
                    list(session.stream(text))
                elif call == "ainvoke":
                    await session.ainvoke(text)
                else:
                    async for _ in session.astream(text):
                        pass
            heads.add(store.head(f"bob-{number}"))
        assert len(heads) == 1

    @pytest.mark.parametrize("nothing", ["", " \n"])
    def test_that_say_nothing_are_refused(self, chat, store, nothing):
        bob = chat.with_session("bob")
        for call in (bob.invoke, lambda text: list(bob.stream(text)), bob.ask_aside):
            with pytest.raises(ValueError, match="an empty text"):
                call(nothing)
        assert store.sessions() == []

    def test_take_options_of_the_model(self, chat):
        answer = chat.with_session("bob").invoke("Hello.", max_tokens=2)
        assert answer.usage_metadata["output_tokens"] == 2

    def test_may_be_undone(self, chat, store):
        bob = chat.with_session("bob")
        first, second = bob.invoke("One."), bob.invoke("Two.")
        store.rewind("bob")
        assert bob.head == ref_of(first)
        assert ref_of(bob.invoke("Two.")) == ref_of(second)

    def test_may_be_forked(self, chat, store):
        bob = chat.with_session("bob")
        bob.invoke("One.")
        store.fork("bob", "rob")
        second = bob.invoke("Two.")
        assert ref_of(chat.with_session("rob").invoke("Two.")) == ref_of(second)


class TestMarkersInTheInput:
    def test_are_dropped(self, chat):
        secret = ref_of(chat.invoke("The password is swordfish."))
        mallory = chat.with_session("mallory")
        answer = mallory.invoke([marker(secret), HumanMessage("What is it?")])
        assert ref_of(answer) == ref_of(chat.invoke("What is it?"))

    def test_are_dropped_even_if_malformed(self, chat):
        forged = SystemMessage("x", additional_kwargs={STATE_KEY: "junk"})
        assert chat.with_session("mallory").invoke([forged, HumanMessage("Hello.")])

    def test_are_dropped_by_prefill_into_a_session(self, chat, store):
        secret = ref_of(chat.invoke("The password is swordfish."))
        hello = HumanMessage("Hello.")
        ref = chat.prefill([marker(secret), hello], session="mallory")
        assert ref == chat.prefill([hello])


class TestConflicts:
    @pytest.fixture
    def race(self, chat, store):
        """Lets another turn be committed while one is being answered."""
        bob = chat.with_session("bob")
        head = ref_of(bob.invoke("One."))

        def run(on_conflict):
            slow = chat.with_session("bob", on_conflict=on_conflict)
            stream = slow.stream("Slow.")
            next(stream)
            winner = bob.invoke("Quick.")
            return head, winner, stream

        return run

    def test_the_second_of_two_turns_is_told(self, race, store):
        _, winner, stream = race("raise")
        with pytest.raises(SessionConflict):
            list(stream)
        assert store.head("bob") == ref_of(winner)

    def test_or_becomes_a_fork(self, race, store, chat):
        _head, winner, stream = race("fork")
        last = list(stream)[-1]
        name = last.response_metadata[SESSION_KEY]
        assert name != "bob"
        assert store.head("bob") == ref_of(winner)
        assert store.head(name) == ref_of(last)
        assert name in store.sessions()

    def test_two_threads_lose_no_turn_silently(self, chat, store):
        outcomes: list[str] = []

        def turn(text: str) -> None:
            try:
                chat.with_session("bob").invoke(text)
                outcomes.append("committed")
            except SessionConflict:
                outcomes.append("refused")

        threads = [threading.Thread(target=turn, args=(f"Text {n}.",)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(outcomes) == 6
        assert outcomes.count("committed") == len(store.log("bob")) >= 1

    def test_prefill_is_told_too(self, chat, store, monkeypatch):
        session = store.session

        def overtaken(name, **options):
            info = session(name, **options)
            monkeypatch.setattr(store, "session", session)
            chat.with_session("bob").invoke("Quick.")
            return info

        monkeypatch.setattr(store, "session", overtaken)
        with pytest.raises(SessionConflict):
            chat.prefill("Slow.", session="bob")

    def test_another_way_is_refused(self, chat):
        with pytest.raises(ValueError, match="'ignore'"):
            chat.with_session("bob", on_conflict="ignore")


class TestTimeToLive:
    @pytest.fixture
    def now(self):
        return [1_000_000.0]

    @pytest.fixture
    def chat(self, make_chat, now):
        return make_chat(7, store=MemoryStateStore(ttl=3600, clock=lambda: now[0]))

    def test_an_expired_session_is_a_new_one(self, chat, now):
        bob = chat.with_session("bob", ttl=60)
        first = bob.invoke("Hello.")
        now[0] += 61
        assert bob.head is None
        assert ref_of(bob.invoke("Hello.")) == ref_of(first)
        assert len(bob.log()) == 1

    def test_each_turn_renews_it(self, chat, now):
        bob = chat.with_session("bob", ttl=timedelta(seconds=60))
        for _ in range(4):
            bob.invoke("Hello.")
            now[0] += 45
        assert len(bob.log()) == 4

    def test_the_store_has_a_default(self, chat, now):
        chat.with_session("bob").invoke("Hello.")
        now[0] += 3599
        assert chat.store.sessions() == ["bob"]
        now[0] += 3600
        assert chat.store.sessions() == []

    @pytest.mark.parametrize("wrong", [0, -1, float("nan")])
    def test_a_wrong_one_is_refused(self, chat, wrong):
        with pytest.raises(ValueError, match="time to live"):
            chat.with_session("bob", ttl=wrong).invoke("Hello.")
        assert chat.store.sessions() == []


class TestAFullStore:
    def test_is_told_and_the_old_head_stays(self, make_chat):
        big_enough_for_one = 40_000
        store = MemoryStateStore(size_limit=big_enough_for_one, history=5)
        bob = make_chat(7, store=store).with_session("bob")
        answers = []

        def fill() -> None:
            for number in range(20):
                answers.append(bob.invoke(f"Turn {number}."))

        with pytest.raises(StoreFull):
            fill()
        assert answers
        assert bob.head == ref_of(answers[-1])
        assert store.get(bob.head).n_tokens > 0


class TestUnreadMessages:
    def test_of_a_history_are_read_with_the_next_turn(self, chat, store):
        bob = chat.with_session("bob")
        head = ref_of(bob.invoke("One."))
        missed = [HumanMessage("Missed."), AIMessage("Indeed.")]
        store.append_unread("bob", [message_to_json(message) for message in missed])
        answer = bob.invoke("Two.")
        by_hand = chat.invoke([marker(head), *missed, HumanMessage("Two.")])
        assert ref_of(answer) == ref_of(by_hand)
        assert store.session("bob").unread == ()

    def test_of_a_new_session_are_read_too(self, chat, store):
        store.append_unread("bob", [message_to_json(HumanMessage("Missed."))])
        answer = chat.with_session("bob").invoke("Two.")
        assert ref_of(answer) == ref_of(
            chat.invoke([HumanMessage("Missed."), HumanMessage("Two.")])
        )
        assert store.session("bob").unread == ()

    def test_are_read_by_prefill(self, chat, store):
        store.append_unread("bob", [message_to_json(HumanMessage("Missed."))])
        ref = chat.prefill([HumanMessage("Two.")], session="bob")
        assert ref == chat.prefill([HumanMessage("Missed."), HumanMessage("Two.")])
        assert store.session("bob").unread == ()


def test_a_session_needs_a_name(chat):
    for wrong in ("", "x" * 513):
        with pytest.raises(ValueError, match="name"):
            chat.with_session(wrong).invoke("Hello.")


def test_a_model_that_is_asked_about_anothers_store_says_so(make_chat):
    mine, yours = make_chat(7), make_chat(7, store=MemoryStateStore())
    ref = ref_of(yours.invoke("Hello."))
    with pytest.raises(StateNotFound):
        mine.invoke([marker(ref), HumanMessage("Hello.")])


@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "prefill"])
async def test_a_session_that_moves_before_its_state_is_read_is_a_conflict(
    chat, store, monkeypatch, way
):
    bob = chat.with_session("bob", on_conflict="raise")
    bob.invoke("Hello.")
    look = store.session

    def look_too_early(session, **options):
        info = look(session, **options)
        monkeypatch.setattr(store, "session", look)
        store.delete_session("bob")
        return info

    monkeypatch.setattr(store, "session", look_too_early)

    async def turn():
        match way:
            case "ainvoke":
                await bob.ainvoke("Again.")
            case "prefill":
                chat.prefill("Again.", session="bob")
            case _:
                list(getattr(bob, way)("Again."))

    with pytest.raises(SessionConflict, match="'bob' was rewound, deleted or moved on"):
        await turn()
    assert store.head("bob") is None


def test_what_is_prefilled_is_read_as_often_as_it_is_given(chat, store):
    said = [HumanMessage("Where is the ladder?"), AIMessage("In the attic.")]
    lengths = []
    for _ in range(3):
        chat.prefill(said, session="rag")
        lengths.append(store.session("rag").n_tokens)
    assert lengths[2] - lengths[1] == lengths[1] - lengths[0] > 0


def test_a_session_shows_its_name_and_no_salt(chat):
    bob = chat.with_session("bob")
    assert "'bob'" in repr(bob)
    assert "secret" not in repr(bob.bind(cache_salt="secret"))
    assert "secret" not in repr(bob.bind(max_tokens=2).bind(cache_salt="secret"))
