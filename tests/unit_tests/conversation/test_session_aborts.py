"""A turn that is left before its answer is whole: forgotten, or its question is kept."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import aclosing
from contextvars import copy_context
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.output_parsers import StrOutputParser
from pydantic import BaseModel

from langchain_rwkv_state import MemoryStateStore
from langchain_rwkv_state.conversation.session import RWKVSession
from langchain_rwkv_state.conversation.sessions import RWKVSessions
from langchain_rwkv_state.conversation.transcript import without_resent
from langchain_rwkv_state.errors import SessionConflict, StoreError, StoreFull
from langchain_rwkv_state.prompt.markers import marker, message_from_json, message_to_json
from tests.helpers.fake_chat import FakeChat


@pytest.fixture
def fake(store) -> FakeChat:
    return FakeChat(store=store)


@pytest.fixture
def bob(fake, store) -> RWKVSession:
    return keeping(fake)


def keeping(fake: FakeChat, **options: Any) -> RWKVSession:
    return RWKVSession(fake, fake.store, "bob", on_abort="keep_question", **options)


def h(text: str) -> HumanMessage:
    return HumanMessage(text)


def unread(store) -> list[str]:
    info = store.session("bob", renew=False)
    return [message_from_json(text).text for text in info.unread] if info else []


def leave(bob: Any, given: Any) -> None:
    """Streams a turn, and leaves it behind its first chunk."""
    stream = bob.stream(given)
    next(stream)
    stream.close()


def interrupted(fake: FakeChat) -> None:
    """Has Ctrl-C come during the next answer."""

    def press() -> None:
        fake.before_answer = None
        raise KeyboardInterrupt

    fake.before_answer = press


def begun_elsewhere(bob: RWKVSession, given: Any) -> Any:
    """Begins a streamed turn that is not around whoever comes next, who so may wait for it."""
    stream = bob.stream(given)
    copy_context().run(next, stream)
    return stream


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 # no event tells
            await asyncio.sleep(0.005)


class Held:
    """Holds the next answer up, once its model was asked."""

    def __init__(self, fake: FakeChat) -> None:
        self.asked, self.go_on = threading.Event(), threading.Event()

        def wait() -> None:
            fake.before_answer = None
            self.asked.set()
            assert self.go_on.wait(20)

        fake.before_answer = wait


async def aleave(bob: Any, given: Any) -> None:
    stream: Any = bob.astream(given)
    await anext(stream)
    await stream.aclose()


async def cancel_stream(bob: RWKVSession, given: Any) -> None:
    begun = asyncio.Event()

    async def read() -> None:
        async with aclosing(bob.astream(given)) as stream:  # type: ignore[type-var]
            async for _ in stream:
                begun.set()
                await asyncio.sleep(20)

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def cancel_call(bob: RWKVSession, given: Any) -> None:
    held = Held(bob.chat)  # type: ignore[arg-type]
    task = asyncio.create_task(bob.ainvoke(given))
    await asyncio.to_thread(held.asked.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    held.go_on.set()


async def close(bob: RWKVSession, given: Any) -> None:
    leave(bob, given)


async def press(bob: RWKVSession, given: Any) -> None:
    interrupted(bob.chat)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        bob.invoke(given)


async def press_in_stream(bob: RWKVSession, given: Any) -> None:
    interrupted(bob.chat)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        list(bob.stream(given))


async def drop(bob: RWKVSession, given: Any) -> None:
    stream = bob.stream(given)
    next(stream)
    del stream


@pytest.fixture(params=[close, drop, press, press_in_stream, aleave, cancel_stream, cancel_call])
def abort(request: pytest.FixtureRequest) -> Any:
    return request.param


class TestAnAbortedTurn:
    async def test_is_forgotten_by_default(self, fake, store, abort):
        bob = RWKVSession(fake, store, "bob")
        await abort(bob, "One.")
        assert store.sessions() == []
        assert store.queue("bob") == []

    async def test_leaves_its_question_and_no_part_of_its_answer(self, bob, fake, store, abort):
        bob.invoke("One.")
        head = bob.head
        await abort(bob, [h("Two.")])
        assert bob.head == head
        assert unread(store) == ["Two."]
        assert store.queue("bob") == []
        assert bob.invoke("Three.").content == "heard 3"
        assert fake.told("bob").endswith("human:Two.\nhuman:Three.\nai:heard 3\n")
        assert unread(store) == []

    async def test_begins_a_session_that_was_new(self, bob, fake, store, abort):
        await abort(bob, "One.")
        assert bob.head is None
        assert bob.invoke("Two.").content == "heard 2"

    async def test_that_is_asked_again_is_read_once(self, bob, fake, store, abort):
        bob.invoke("One.")
        await abort(bob, "Two.")
        await abort(bob, "Two.")
        assert unread(store) == ["Two."]
        assert bob.invoke("Two.").content == "heard 2"
        assert unread(store) == []
        assert bob.invoke("Two.").content == "heard 3"

    async def test_and_another_one_leave_both(self, bob, store, abort):
        bob.invoke("One.")
        await abort(bob, "Two.")
        await abort(bob, "Three.")
        assert unread(store) == ["Two.", "Three."]
        assert bob.invoke("Three.").content == "heard 3"

    @pytest.mark.parametrize("ask", ["ask_aside", "stream_aside"])
    def test_aside_leaves_nothing(self, bob, fake, store, ask):
        bob.invoke("One.")
        before = store.session("bob", renew=False)
        interrupted(fake)
        with pytest.raises(KeyboardInterrupt):
            list(getattr(bob, ask)("Two?"))
        stream = bob.stream_aside("Two?")
        next(stream)
        stream.close()
        assert store.session("bob", renew=False) == before

    async def test_aside_that_is_cancelled_leaves_nothing(self, bob, store):
        bob.invoke("One.")
        stream: Any = bob.astream_aside("Two?")
        await anext(stream)
        await stream.aclose()
        assert unread(store) == []

    def test_whose_last_chunk_was_seen_is_no_aborted_one(self, bob, store):
        stream = bob.stream("One.")
        for chunk in stream:
            if chunk.response_metadata:
                break
        stream.close()
        assert len(bob.log()) == 1
        assert unread(store) == []

    @pytest.mark.posix
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_in_a_forked_child_is_the_parents(self, disk_store):
        stream: Any = keeping(FakeChat(store=disk_store)).stream("One.")
        next(stream)
        child = os.fork()
        if not child:
            stream.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert unread(disk_store) == []
        stream.close()
        assert unread(disk_store) == ["One."]

    def test_by_the_end_of_the_process_leaves_its_question(self, bob, fake, store):
        def end() -> None:
            raise SystemExit

        fake.before_answer = end
        with pytest.raises(SystemExit):
            bob.invoke("One.")
        assert unread(store) == ["One."]

    async def test_is_read_as_if_it_had_been_said_with_the_next_one(self, make_chat, store):
        """The state knows both questions, as one that read them together does."""
        chat = make_chat(7, temperature=0)
        bob = chat.with_session("bob", on_abort="keep_question")
        bob.invoke("One.")
        store.fork("bob", "rob")
        leave(chat.bind(max_tokens=500).with_session("bob", on_abort="keep_question"), "Two.")
        kept = bob.invoke("Three.")
        told = chat.with_session("rob").invoke([h("Two."), h("Three.")])
        assert kept.response_metadata["rwkv_state"] == told.response_metadata["rwkv_state"]

    def test_that_was_never_begun_leaves_nothing(self, bob, store):
        bob.stream("One.").close()
        assert store.sessions() == []

    @pytest.mark.parametrize("error", [ValueError("no"), StoreError("no")])
    def test_is_none_where_model_or_store_failed(self, bob, fake, store, error):
        fake.script = [error]
        with pytest.raises(type(error)):
            bob.invoke("One.")
        assert store.sessions() == []

    def test_of_many_sessions_is_kept_in_its_own(self, fake, store):
        config: Any = {"configurable": {"session_id": "bob"}}
        leave(RWKVSessions(fake, store, on_abort="keep_question").with_config(config), "One.")
        assert unread(store) == ["One."]
        assert store.sessions() == ["bob"]

    def test_in_a_chain_there_is_none_since_langchain_reads_it_to_its_end(self, bob, fake, store):
        leave(bob | StrOutputParser(), "One.")
        assert fake.told("bob") == "human:One.\nai:heard 1\n"
        assert unread(store) == []

    async def test_in_an_async_chain_leaves_its_question(self, bob, store):
        await aleave(bob | StrOutputParser(), "One.")
        await until(lambda: unread(store) == ["One."])

    def test_lives_as_long_as_a_turn(self):
        store = MemoryStateStore(ttl=3600, clock=lambda: 1_000_000.0)
        leave(keeping(FakeChat(store=store), ttl=60), "One.")
        info = store.session("bob", renew=False)
        assert info is not None
        assert info.expires_seconds == 1_000_060.0

    def test_with_another_word_for_it_is_an_error(self, fake, store):
        with pytest.raises(ValueError, match="on_abort is 'forget' or 'keep_question', not 'keep'"):
            RWKVSession(fake, store, "bob", on_abort="keep")  # type: ignore[arg-type]


class TestWhatIsKept:
    def test_is_what_was_new_without_system_prompt_and_markers(self, bob, fake, store):
        first = bob.invoke("One.")
        foreign = bob.ask_aside("Secret?").response_metadata["rwkv_state"]
        thread = [SystemMessage("Be kind."), h("One."), first, marker(foreign), h("Two.")]
        leave(bob, thread)
        assert unread(store) == ["Two."]

    def test_with_reminders_among_it_stays_in_order(self, bob, store):
        bob.invoke("One.")
        leave(bob, [h("Two."), SystemMessage("It rains.")])
        assert unread(store) == ["Two.", "It rains."]

    def test_is_the_results_of_tools_too(self, bob, fake, store):
        bob.invoke("One.")
        results = [ToolMessage("4", tool_call_id="a"), ToolMessage("4", tool_call_id="b")]
        leave(bob, results)
        bob.invoke(results)
        assert fake.told("bob").count("tool:4\n") == 2

    def test_of_what_has_no_json_form_is_its_text(self, bob, fake, store):
        leave(bob, [HumanMessage("One.", additional_kwargs={"lock": threading.Lock()})])
        assert unread(store) == ["One."]

    @pytest.mark.parametrize("how", ["tools", "structured"])
    async def test_of_an_answer_that_is_held_to_a_schema_is_the_question(
        self, make_chat, store, how
    ):
        class Person(BaseModel):
            name: str

        chat, long = make_chat(7, prefix_cache=False), "Ann. " * 20_000
        session: Any = chat.with_session("bob", on_abort="keep_question")
        if how == "tools":
            session = session.bind_tools([Person], tool_choice="any")
        else:
            session = session.with_structured_output(Person)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.ainvoke(long), 0.2)
        assert unread(store) == [long]


class TestATranscriptAfterAnAbort:
    @pytest.fixture
    def thread(self, bob) -> list[BaseMessage]:
        return [h("One."), bob.invoke([h("One.")])]

    def test_with_the_question_is_answered(self, bob, fake, thread):
        leave(bob, [*thread, h("Two.")])
        answer = bob.invoke([*thread, h("Two.")])
        assert answer.content == "heard 2"
        bob.invoke([*thread, h("Two."), answer, h("Three.")])
        assert fake.told("bob").count("human:") == 3

    def test_without_the_question_has_it_read_first(self, bob, fake, thread):
        leave(bob, "Two.")
        bob.invoke([*thread, h("Three.")])
        assert fake.told("bob").endswith("human:Two.\nhuman:Three.\nai:heard 3\n")

    def test_with_a_part_of_the_answer_reads_that_part(self, bob, fake, thread):
        leave(bob, "Two.")
        bob.invoke([*thread, h("Two."), AIMessage("hea"), h("Three.")])
        assert fake.told("bob").endswith("human:Two.\nai:hea\nhuman:Three.\nai:heard 3\n")

    def test_of_a_hundred_turns_is_recognised_too(self, bob, fake, store):
        thread: list[BaseMessage] = []
        for number in range(103):
            thread += [h(f"q{number}"), bob.invoke([h(f"q{number}")])]
        leave(bob, [*thread, h("Two.")])
        assert unread(store) == ["Two."]
        assert bob.invoke([*thread, h("Two.")]).content == "heard 104"

    def test_with_examples_in_each_prompt_is_read_once(self, bob, fake):
        examples = [h("2+2"), AIMessage("4")]
        leave(bob, [*examples, h("3+3")])
        bob.invoke([*examples, h("3+3")])
        assert fake.told("bob") == "human:2+2\nai:4\nhuman:3+3\nai:heard 2\n"

    def test_that_holds_nothing_new_leaves_nothing_of_it(self, bob, store, thread):
        store.append_unread("bob", [message_to_json(h("Two."))])
        with pytest.raises(ValueError, match="nothing new"):
            bob.invoke(thread)
        assert unread(store) == ["Two."]

    def test_is_read_as_given_by_a_prefill(self, chat, store):
        bob = chat.with_session("bob", on_abort="keep_question")
        leave(bob, "One.")
        chat.prefill([h("One.")], session="bob")
        assert len(store.log("bob")[0].said) == 2

    @pytest.mark.parametrize(
        ("given", "waiting", "new"),
        [
            (["a"], ["a"], []),
            (["a", "b"], ["a"], ["b"]),
            (["b"], ["a", "b"], []),
            (["a", "b", "c"], ["a", "b"], ["c"]),
            (["a"], ["a", "b"], ["a"]),
            (["a"], [], ["a"]),
            ([], ["a"], []),
        ],
    )
    def test_leaves_out_what_the_waiting_messages_end_with(self, given, waiting, new):
        found = without_resent(list(map(h, given)), list(map(h, waiting)))
        assert [message.text for message in found] == new


class TestAnAbortAmongOthers:
    def test_before_its_place_came_keeps_the_question_behind_the_turn_before(self, fake, store):
        begun, out = threading.Event(), KeyboardInterrupt()
        first = keeping(fake)
        stream = first.stream("One.")
        next(stream)
        second = keeping(fake)
        real = store.queue

        def queue(session: str) -> Any:
            begun.set()
            raise out

        def turn() -> None:
            store.queue = queue
            try:
                with pytest.raises(KeyboardInterrupt):
                    second.invoke("Two.")
            finally:
                store.queue = real

        thread = threading.Thread(target=turn)
        thread.start()
        thread.join(20)
        assert begun.is_set()
        list(stream)
        assert unread(store) == ["Two."]
        assert first.invoke("Three.").content == "heard 3"
        assert "ai:heard 1\nhuman:Two.\nhuman:Three." in fake.told("bob")

    async def test_cancelled_as_it_waits_keeps_the_question(self, fake, store):
        stream = begun_elsewhere(keeping(fake), "One.")
        task = asyncio.create_task(RWKVSession.ainvoke(keeping(fake), "Two."))
        await until(lambda: len(store.queue("bob")) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stream.close()
        assert unread(store) == ["Two.", "One."]

    async def test_twice_by_a_page_that_was_reloaded_is_kept_once(self, fake, store):
        """The second turn waits for the first one, and both are aborted with one question."""
        stream = begun_elsewhere(keeping(fake), "One.")
        task = asyncio.create_task(keeping(fake).ainvoke("One."))
        await until(lambda: len(store.queue("bob")) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stream.close()
        assert unread(store) == ["One."]

    async def test_is_read_by_the_turn_that_waited_for_it(self, bob, fake, store):
        stream = begun_elsewhere(bob, "One.")
        task = asyncio.create_task(bob.ainvoke("Two."))
        await until(lambda: len(store.queue("bob")) == 2)
        stream.close()
        assert (await task).content == "heard 2"
        assert fake.told("bob").startswith("human:One.\nhuman:Two.")

    @pytest.mark.parametrize("on_conflict", ["raise", "fork"])
    def test_that_the_head_went_past_is_kept_behind_the_new_head(self, fake, store, on_conflict):
        bob = keeping(fake, on_conflict=on_conflict)
        bob.invoke("One.")
        stream: Any = bob.stream("Slow.")
        next(stream)
        bob.invoke("Quick.")
        stream.close()
        assert unread(store) == ["Slow."]
        assert bob.invoke("Four.").content == "heard 4"
        assert store.sessions() == ["bob"]

    @pytest.mark.parametrize("again", [False, True])
    def test_of_a_session_that_was_deleted_brings_nothing_back(self, fake, again):
        now = [1_000_000.0]
        fake.store = store = MemoryStateStore(clock=lambda: now[0])
        bob = keeping(fake)
        bob.invoke("My name is Bob.")
        stream: Any = bob.stream("Who am I?")
        next(stream)
        store.delete_session("bob")
        now[0] += 1
        if again:
            RWKVSession(fake, store, "bob", on_conflict="raise").invoke("Hello.")
        stream.close()
        assert unread(store) == []
        assert store.sessions() == (["bob"] if again else [])


class TestAnAbortAtTheCommit:
    @pytest.mark.parametrize("written", [False, True])
    def test_keeps_the_question_only_where_it_was_not_written(
        self, bob, store, monkeypatch, written
    ):
        bob.invoke("One.")
        commit = store.commit

        def interrupted(*args: Any, **options: Any) -> None:
            if written:
                commit(*args, **options)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(store, "commit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                bob.invoke("Two.")
        assert len(bob.log()) == 1 + written
        assert unread(store) == ([] if written else ["Two."])
        assert store.queue("bob") == []
        assert bob.invoke("Three.").content == "heard 3"

    def test_of_a_fork_keeps_the_question_where_it_was_asked(self, fake, store, monkeypatch):
        bob = keeping(fake, on_conflict="fork")
        bob.invoke("One.")
        commit = store.commit

        def interrupted(session: str, *args: Any, **options: Any) -> None:
            if session != "bob":
                raise KeyboardInterrupt
            commit(session, *args, **options)

        monkeypatch.setattr(store, "commit", interrupted)
        stream = bob.stream("Slow.")
        next(stream)
        bob.invoke("Quick.")
        with pytest.raises(KeyboardInterrupt):
            list(stream)
        assert unread(store) == ["Slow."]

    async def test_of_a_task_that_is_cancelled_there_is_none(self, bob, store, monkeypatch):
        began, go_on = threading.Event(), threading.Event()
        commit = store.commit

        def slow(*args: Any, **options: Any) -> None:
            began.set()
            assert go_on.wait(20)
            commit(*args, **options)

        monkeypatch.setattr(store, "commit", slow)
        task = asyncio.create_task(bob.ainvoke("One."))
        await asyncio.to_thread(began.wait, 20)
        task.cancel()
        go_on.set()
        await task
        assert len(bob.log()) == 1
        assert unread(store) == []

    @pytest.mark.parametrize("verb", ["session", "append_unread"])
    async def test_that_is_cancelled_once_more_as_it_is_kept_is_kept(
        self, bob, fake, store, monkeypatch, verb
    ):
        bob.invoke("One.")
        held = Held(fake)
        task = asyncio.create_task(bob.ainvoke("Two."))
        await asyncio.to_thread(held.asked.wait, 20)
        began, go_on = threading.Event(), threading.Event()
        real = getattr(store, verb)

        def slow(*args: Any, **options: Any) -> Any:
            began.set()
            assert go_on.wait(20)
            return real(*args, **options)

        monkeypatch.setattr(store, verb, slow)
        task.cancel()
        await asyncio.to_thread(began.wait, 20)
        task.cancel()
        await asyncio.sleep(0.02)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        held.go_on.set()
        assert unread(store) == ["Two."]


class TestAStoreThatFailsThen:
    @pytest.mark.parametrize(
        ("verb", "error"), [("append_unread", StoreFull("no room")), ("session", StoreError("no"))]
    )
    def test_is_told_by_a_warning_beside_what_aborted_the_turn(
        self, bob, fake, store, monkeypatch, verb, error
    ):
        bob.invoke("One.")

        def press() -> None:
            def fail(*_: Any, **__: Any) -> None:
                raise error

            monkeypatch.setattr(store, verb, fail)
            raise KeyboardInterrupt

        fake.before_answer = press
        with (
            pytest.warns(UserWarning, match=r"'bob' was aborted, .* could not be kept .*no.*again"),
            pytest.raises(KeyboardInterrupt),
        ):
            bob.invoke("Two.")
        assert store.queue("bob") == []

    def test_is_logged_where_warnings_are_errors(self, bob, store, monkeypatch, caplog):
        def fail(*_: Any, **__: Any) -> None:
            raise StoreFull("no room")

        monkeypatch.setattr(store, "append_unread", fail)
        leave(bob, "One.")  # this suite's warnings are errors
        assert "could not be kept" in caplog.text

    def test_is_met_at_the_bound_of_unread_messages(self, bob, store, monkeypatch):
        monkeypatch.setattr("langchain_rwkv_state.store.store.LIMIT_BYTES", 300)
        leave(bob, "One.")
        with pytest.warns(UserWarning, match="StoreFull"):
            leave(bob, "Two. " * 100)
        assert unread(store) == ["One."]

    def test_as_of_another_branch_is_told_too(self, bob, fake, store, monkeypatch):
        """What is a transcript of another branch would not have been read, either."""
        thread = [h("One."), bob.invoke([h("One.")])]
        bob.invoke("Two.")

        def interrupted(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(store, "enter_queue", interrupted)
        with (
            pytest.warns(UserWarning, match="another branch"),
            pytest.raises(KeyboardInterrupt),
        ):
            bob.invoke([*thread, h("Other.")])
        assert unread(store) == []


def test_a_question_that_another_turn_kept_unread_is_read_once(fake, store):
    """By whomever it was kept: the store alone remembers."""
    leave(keeping(fake), "One.")
    plain = RWKVSession(fake, store, "bob")
    assert plain.ask_aside("One.").content == "heard 1"
    assert plain.invoke("One.").content == "heard 1"


def test_conflicts_of_a_wait_that_is_over_are_no_abort(fake, store):
    bob = keeping(fake, wait_timeout=0)
    stream = bob.stream("One.")
    next(stream)
    thread_error: list[BaseException] = []

    def turn() -> None:
        try:
            bob.invoke("Two.")
        except SessionConflict as error:
            thread_error.append(error)

    thread = threading.Thread(target=turn)
    thread.start()
    thread.join(20)
    assert thread_error
    list(stream)
    assert unread(store) == []
