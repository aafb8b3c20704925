"""What a history shows, commits, keeps as unread and forgets: each rule as a statement."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import warnings
from collections.abc import Callable

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_rwkv_state.conversation.filings import Filing, filings_of
from langchain_rwkv_state.conversation.history import RWKVStateHistory
from langchain_rwkv_state.prompt.markers import (
    MARKER_TEXT,
    is_marker,
    marker,
    messages_digest,
    read_marker,
    text_digest,
)
from langchain_rwkv_state.store.base import StateStore
from tests.helpers.fake_chat import ZERO, FakeChat, read

Ask = Callable[..., AIMessage]


@pytest.fixture
def fake(store: StateStore) -> FakeChat:
    return FakeChat(store=store)


@pytest.fixture
def history(store: StateStore) -> RWKVStateHistory:
    return RWKVStateHistory("bob", store)


def turn(history: RWKVStateHistory, chat: FakeChat, text: str) -> AIMessage:
    """One turn, as a chain runs it."""
    question = HumanMessage(text)
    answer = chat.invoke([*history.messages, question])
    history.add_messages([question, answer])
    return answer


def stage(store: StateStore, text: str) -> str:
    return store.stage(read(ZERO, text))


def unread(store: StateStore, session: str = "bob") -> list[str]:
    """The texts that no state covers yet."""
    info = store.session(session)
    return [json.loads(text)["data"]["content"] for text in info.unread] if info else []


def mark_of(history: RWKVStateHistory):
    return read_marker(history.messages[0])


# -- what is shown -----------------------------------------------------------------------------


def test_a_new_session_shows_one_marker_that_stands_for_nothing(history):
    (message,) = history.messages
    assert is_marker(message)
    assert message.content == MARKER_TEXT
    assert read_marker(message).ref is None
    assert read_marker(message).n_unread == 0


def test_reading_a_new_session_stores_nothing(history, store):
    assert history.messages
    assert store.session("bob") is None


def test_a_session_with_turns_shows_one_marker_with_its_head(history, fake, store):
    for text in ("one", "two", "three"):
        turn(history, fake, text)
    (message,) = history.messages
    assert read_marker(message).ref == store.head("bob")


def test_unread_messages_stand_behind_the_marker_that_counts_them(history, store):
    history.add_messages([HumanMessage("hi"), AIMessage("hello")])
    head, *rest = history.messages
    assert read_marker(head).n_unread == 2
    assert rest == [HumanMessage("hi"), AIMessage("hello")]


def test_each_turn_has_a_fresh_turn_id_of_32_hex_digits(history, fake):
    ids = []
    for text in ("one", "two", "three"):
        ids.append(mark_of(history).turn_id)
        turn(history, fake, text)
    ids.append(mark_of(RWKVStateHistory("bob", history.store)).turn_id)
    assert len(set(ids)) == 4
    assert all(re.fullmatch("[0-9a-f]{32}", turn_id) for turn_id in ids)


def test_what_was_handed_out_stays_frozen_until_add_messages(history, fake, store):
    before = history.messages
    turn(RWKVStateHistory("bob", store), fake, "from elsewhere")
    RWKVStateHistory("bob", store).add_messages([HumanMessage("unread")])
    assert history.messages == before
    history.add_messages([HumanMessage("hi"), AIMessage("hello")])
    assert history.messages != before


def test_changing_the_list_that_was_handed_out_changes_nothing(history):
    before = history.messages
    history.messages.append(HumanMessage("mine"))
    assert history.messages == before


def test_a_frozen_turn_is_let_go_once_its_state_is_gone(history, fake, store):
    turn(history, fake, "one")
    stale = mark_of(history)  # a call that fails: no add_messages follows
    for text in ("two", "three", "four"):
        turn(RWKVStateHistory("bob", store), fake, text)
    store.delete_session("bob")
    assert mark_of(history).ref is None
    assert mark_of(history).turn_id != stale.turn_id


def test_a_failing_store_reaches_who_asks_for_messages(history, store, monkeypatch):
    def fail(session, *, renew=True):
        raise OSError("the disk is gone")

    monkeypatch.setattr(store, "session", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        _ = history.messages
    with pytest.raises(OSError, match="the disk is gone"):
        asyncio.run(history.aget_messages())


def test_a_history_gives_no_warnings_of_its_own(store):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = RWKVStateHistory("bob", store)
        history.add_messages([HumanMessage("hi"), AIMessage("hello")])
        _ = history.messages
        history.clear()


# -- what is committed -------------------------------------------------------------------------


def test_the_state_filed_for_the_turn_becomes_the_head(history, fake):
    answer = turn(history, fake, "hi")
    assert answer.content == "heard 1"
    assert fake.told("bob") == "human:hi\nai:heard 1\n"


def test_each_turn_goes_on_from_the_one_before(history, fake, store):
    answers = [turn(history, fake, text).content for text in ("one", "two", "three")]
    assert answers == ["heard 1", "heard 2", "heard 3"]
    assert unread(store) == []


def test_a_new_history_for_each_turn_goes_on_too(fake, store):
    for number in (1, 2, 3):
        answer = turn(RWKVStateHistory("bob", store), fake, str(number))
        assert answer.content == f"heard {number}"


@pytest.mark.parametrize("shown", ["heard 1", "  heard 1\n", "heard 1\n\n"])
def test_an_answer_with_other_space_around_it_is_still_the_models(history, fake, store, shown):
    fake.invoke([*history.messages, HumanMessage("hi")])
    history.add_messages([HumanMessage("hi"), AIMessage(shown)])
    assert fake.told("bob") == "human:hi\nai:heard 1\n"
    assert unread(store) == []


def test_a_retry_that_gave_the_same_answer_is_committed(history, fake, store):
    for _ in range(2):
        fake.invoke([*history.messages, HumanMessage("hi")])
    history.add_messages([HumanMessage("hi"), AIMessage("heard 1")])
    assert fake.told("bob") == "human:hi\nai:heard 1\n"


def test_of_two_answers_the_one_that_was_given_is_committed(history, fake, store):
    fake.script = ["first", "second"]
    for text in ("a", "b"):
        fake.invoke([*history.messages, HumanMessage(text)])
    history.add_messages([HumanMessage("a"), AIMessage("first")])
    assert fake.told("bob") == "human:a\nai:first\n"
    assert unread(store) == []


def test_a_turn_and_its_filings_are_forgotten_at_the_commit(history, fake, store):
    turn_id = mark_of(history).turn_id
    turn(history, fake, "hi")
    assert filings_of(store).of(turn_id) == []
    assert mark_of(history).turn_id != turn_id


def test_a_streamed_answer_arrives_as_a_chunk_and_is_committed(history, fake):
    fake.invoke([*history.messages, HumanMessage("hi")])
    history.add_messages([HumanMessage("hi"), AIMessageChunk(content="heard 1")])
    assert fake.told("bob") == "human:hi\nai:heard 1\n"


def test_the_time_to_live_goes_with_each_turn(fake, store, monkeypatch):
    seen = []
    commit, append = store.commit, store.append_unread

    def note_commit(session, ref, parent, ttl=None, **options):
        seen.append(ttl)
        commit(session, ref, parent, ttl, **options)

    def note_append(session, messages, ttl=None):
        seen.append(ttl)
        append(session, messages, ttl)

    monkeypatch.setattr(store, "commit", note_commit)
    monkeypatch.setattr(store, "append_unread", note_append)
    history = RWKVStateHistory("bob", store, ttl=60)
    turn(history, fake, "hi")
    history.add_messages([HumanMessage("foreign"), AIMessage("foreign")])
    assert seen == [60, 60]


# -- what stays unread -------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["HEARD 1", "heard", "", "heard 1 and more"])
def test_an_answer_rewritten_after_the_model_stays_unread(history, fake, store, said):
    fake.invoke([*history.messages, HumanMessage("hi")])
    history.add_messages([HumanMessage("hi"), AIMessage(said)])
    assert store.head("bob") is None
    assert unread(store) == ["hi", said]


def test_an_answer_that_no_model_of_this_store_filed_stays_unread(history, store):
    _ = history.messages
    history.add_messages([HumanMessage("hi"), AIMessage("from another model")])
    assert unread(store) == ["hi", "from another model"]


def test_equal_answers_with_different_states_stay_unread(history, fake, store):
    fake.script = ["yes", "yes"]
    for text in ("a", "b"):
        fake.invoke([*history.messages, HumanMessage(text)])
    history.add_messages([HumanMessage("a"), AIMessage("yes")])
    assert store.head("bob") is None
    assert unread(store) == ["a", "yes"]


def test_a_state_with_another_base_stays_uncommitted(history, store):
    mark = mark_of(history)
    foreign = stage(store, "another conversation")
    filings_of(store).file(
        mark.turn_id, Filing(text_digest("yes"), stage(store, "x"), base=foreign)
    )
    history.add_messages([HumanMessage("a"), AIMessage("yes")])
    assert store.head("bob") is None
    assert unread(store) == ["a", "yes"]


def test_a_state_filed_under_another_turn_stays_uncommitted(history, store):
    _ = history.messages
    filings_of(store).file("0" * 32, Filing(text_digest("yes"), stage(store, "x"), base=None))
    history.add_messages([HumanMessage("a"), AIMessage("yes")])
    assert unread(store) == ["a", "yes"]


def test_a_state_that_is_gone_leaves_the_turn_unread(history, store):
    mark = mark_of(history)
    gone = "rwkv1-" + "0" * 64
    filings_of(store).file(mark.turn_id, Filing(text_digest("yes"), gone, base=None))
    history.add_messages([HumanMessage("a"), AIMessage("yes")])
    assert unread(store) == ["a", "yes"]
    assert filings_of(store).of(mark.turn_id) == []


def test_unread_text_is_read_in_with_the_next_turn(history, fake, store):
    history.add_messages([HumanMessage("hi"), AIMessage("hello")])
    answer = turn(history, fake, "again")
    assert answer.content == "heard 2"
    assert fake.told("bob") == "human:hi\nai:hello\nhuman:again\nai:heard 2\n"
    assert unread(store) == []


def test_unread_text_never_outlives_one_turn(history, fake, store):
    history.add_messages([HumanMessage("1"), AIMessage("foreign")])
    fake.invoke([*history.messages, HumanMessage("2")])
    history.add_messages([HumanMessage("2"), AIMessage("rewritten")])
    assert fake.told("bob") == "human:1\nai:foreign\n"
    assert unread(store) == ["2", "rewritten"]
    fake.invoke([*history.messages, HumanMessage("3")])
    history.add_messages([HumanMessage("3"), AIMessage("rewritten too")])
    assert fake.told("bob") == "human:1\nai:foreign\nhuman:2\nai:rewritten\n"
    assert unread(store) == ["3", "rewritten too"]


def test_unread_text_that_no_model_read_waits_for_one_that_does(history, fake, store):
    for number in (1, 2):
        _ = history.messages
        history.add_messages([HumanMessage(f"q{number}"), AIMessage(f"a{number}")])
    assert unread(store) == ["q1", "a1", "q2", "a2"]
    turn(history, fake, "q3")
    assert fake.told("bob") == "human:q1\nai:a1\nhuman:q2\nai:a2\nhuman:q3\nai:heard 3\n"
    assert unread(store) == []


def test_a_state_that_did_not_read_the_unread_text_stays_uncommitted(history, fake, store):
    history.add_messages([HumanMessage("1"), AIMessage("foreign")])
    head, *_ = history.messages
    fake.invoke([head, HumanMessage("2")])  # a prompt that trims what it is given
    history.add_messages([HumanMessage("2"), AIMessage("heard 1")])
    assert store.head("bob") is None
    assert unread(store) == ["1", "foreign", "2", "heard 1"]


def test_a_state_of_other_unread_text_stays_uncommitted(history, store):
    history.add_messages([HumanMessage("1"), AIMessage("foreign")])
    other = messages_digest([HumanMessage("other")])
    ref = stage(store, "x")
    mark = mark_of(history)
    filings_of(store).file(mark.turn_id, Filing(text_digest("yes"), ref, None, ref, other))
    history.add_messages([HumanMessage("2"), AIMessage("yes")])
    assert store.head("bob") is None
    assert unread(store) == ["1", "foreign", "2", "yes"]


def test_a_lost_race_leaves_the_turn_unread_behind_the_new_head(fake, store):
    slow, quick = RWKVStateHistory("bob", store), RWKVStateHistory("bob", store)
    answer = fake.invoke([*slow.messages, HumanMessage("slow")])
    turn(quick, fake, "quick")
    slow.add_messages([HumanMessage("slow"), answer])
    assert fake.told("bob") == "human:quick\nai:heard 1\n"
    assert unread(store) == ["slow", "heard 1"]
    turn(slow, fake, "next")
    assert fake.told("bob") == (
        "human:quick\nai:heard 1\nhuman:slow\nai:heard 1\nhuman:next\nai:heard 3\n"
    )


def test_unread_text_that_two_turns_read_is_told_once(fake, store):
    RWKVStateHistory("bob", store).add_messages([HumanMessage("0"), AIMessage("foreign")])
    slow, quick = RWKVStateHistory("bob", store), RWKVStateHistory("bob", store)
    answer = fake.invoke([*slow.messages, HumanMessage("slow")])
    turn(quick, fake, "quick")
    slow.add_messages([HumanMessage("slow"), answer])
    turn(slow, fake, "next")
    assert fake.told("bob").count("foreign") == 1
    assert fake.told("bob").count("human:slow") == 1


# -- what may be added -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "messages",
    [
        [HumanMessage("only a question")],
        [AIMessage("only an answer")],
        [AIMessage("heard 1"), HumanMessage("the answer is not last")],
        [SystemMessage("a note"), HumanMessage("a"), HumanMessage("b")],
        [HumanMessage("a"), ToolMessage("22 degrees", tool_call_id="1")],
    ],
)
def test_messages_that_no_filed_answer_ends_stay_unread(history, store, messages):
    history.add_messages(messages)
    assert unread(store) == [message.content for message in messages]
    assert [message.type for message in history.messages[1:]] == [m.type for m in messages]


def test_a_turn_of_many_messages_that_ends_in_the_filed_answer_is_committed(history, fake, store):
    said: list[BaseMessage] = [HumanMessage("a"), HumanMessage("b")]
    answer = fake.invoke([*history.messages, *said])
    history.add_messages([*said, answer])
    assert fake.told("bob") == "human:a\nhuman:b\nai:heard 2\n"


def test_messages_added_one_by_one_stay_unread_in_order(history, store):
    history.add_user_message("hi")
    history.add_ai_message("hello")
    history.add_message(HumanMessage("bye"))
    assert unread(store) == ["hi", "hello", "bye"]


def test_markers_among_the_messages_are_dropped(history, store):
    foreign = marker(stage(store, "a secret"), turn_id="0" * 32, n_unread=2)
    history.add_messages([foreign, HumanMessage("hi"), foreign, AIMessage("hello")])
    assert unread(store) == ["hi", "hello"]


def test_a_malformed_marker_is_dropped_too(history, store):
    broken = SystemMessage("x", additional_kwargs={"rwkv_state": "../etc", "rwkv_turn": ["?"]})
    history.add_messages([broken, HumanMessage("hi"), AIMessage("hello")])
    assert unread(store) == ["hi", "hello"]


def test_what_was_handed_out_is_not_added_again(history, fake, store):
    history.add_messages([HumanMessage("0"), AIMessage("foreign")])
    given = history.messages
    answer = fake.invoke([*given, HumanMessage("1")])
    history.add_messages([*given, HumanMessage("1"), answer])
    assert fake.told("bob") == "human:0\nai:foreign\nhuman:1\nai:heard 2\n"
    assert unread(store) == []


def test_adding_nothing_ends_the_turn_and_stores_nothing(history, store):
    before = mark_of(history)
    history.add_messages([])
    assert store.session("bob") is None
    assert mark_of(history).turn_id != before.turn_id


def test_what_has_no_json_form_is_kept_as_text(history, store):
    tool = ToolMessage("a table", tool_call_id="1", artifact=object())
    history.add_messages([HumanMessage("hi"), tool, AIMessage("half \ud800 a pair")])
    assert unread(store) == ["hi", "a table", "half ? a pair"]


def test_plain_texts_that_a_parser_of_lists_gives_are_kept_as_answers(history, store):
    history.add_messages([HumanMessage("list them"), "one", "two"])
    assert unread(store) == ["list them", "one", "two"]
    assert history.messages[-1].type == "ai"


# -- clearing ----------------------------------------------------------------------------------


def test_clear_deletes_the_session(history, fake, store):
    turn(history, fake, "hi")
    history.add_messages([HumanMessage("unread")])
    history.clear()
    assert store.session("bob") is None
    assert mark_of(history).ref is None
    assert turn(history, fake, "hi").content == "heard 1"


async def test_aclear_deletes_the_session(history, fake, store):
    turn(history, fake, "hi")
    await history.aclear()
    assert store.session("bob") is None


# -- many at once ------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_two_threads_on_one_session_lose_no_turn(fake, store, shared):
    one = RWKVStateHistory("bob", store)
    together = threading.Barrier(2)
    errors = []

    def talk(name: str) -> None:
        try:
            history = one if shared else RWKVStateHistory("bob", store)
            for number in range(10):
                together.wait(10)
                turn(history, fake, f"{name}{number}.")
        except Exception as error:
            errors.append(error)
            together.abort()

    threads = [threading.Thread(target=talk, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    turn(one, fake, "last")
    if unread(store):
        turn(one, fake, "really last")
    told = fake.told("bob")
    for name in "ab":
        for number in range(10):
            assert told.count(f"human:{name}{number}.") == 1
    assert unread(store) == []


async def test_the_async_form_does_what_the_sync_form_does(history, fake, store):
    for number in (1, 2):
        question = HumanMessage(str(number))
        answer = await fake.ainvoke([*await history.aget_messages(), question])
        await history.aadd_messages([question, answer])
    assert fake.told("bob") == "human:1\nai:heard 1\nhuman:2\nai:heard 2\n"
    await history.aadd_messages([HumanMessage("3"), AIMessage("foreign")])
    assert len(await history.aget_messages()) == 3
    assert unread(store) == ["3", "foreign"]


async def test_the_async_form_never_blocks_the_loop(history, store, monkeypatch):
    loop_thread = threading.get_ident()
    seen = set()

    def noting(verb, real):
        def note(*args, **options):
            seen.add((verb, threading.get_ident() == loop_thread))
            return real(*args, **options)

        return note

    for verb in ("session", "commit", "append_unread", "log", "head"):
        monkeypatch.setattr(store, verb, noting(verb, getattr(store, verb)))
    await history.aadd_messages([HumanMessage("1"), AIMessage("foreign")])
    head, *waiting = await history.aget_messages()
    ref = stage(store, "x")
    filing = Filing(text_digest("yes"), ref, None, ref, messages_digest(waiting))
    filings_of(store).file(read_marker(head).turn_id or "", filing)
    await history.aadd_messages([HumanMessage("2"), AIMessage("yes")])
    assert {verb for verb, _ in seen} >= {"session", "append_unread", "commit"}
    assert not any(blocks for _, blocks in seen)
    assert store.head("bob") == ref


@pytest.mark.parametrize("wrong", [None, "x"])
def test_a_history_needs_a_store(wrong):
    with pytest.raises(TypeError, match="no StateStore: pass"):
        RWKVStateHistory("a", wrong)
