"""What becomes of an agent's thread: forks, time travel, edits, clients, failures, lost states.

Each scenario runs sync, with threads in memory, and async, with threads in SQLite; see
`tests.helpers.agents`.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from langchain.agents import create_agent
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Command, interrupt

from langchain_rwkv_state import MemoryStateStore, RWKVStateMiddleware, marker
from langchain_rwkv_state.conversation.coverage import FIELD
from langchain_rwkv_state.errors import StateExpired, StateMismatch, StateNotFound
from langchain_rwkv_state.prompt.markers import STATE_KEY
from tests.helpers.agents import Agent, as_config, called, refs_in, result, said, user
from tests.helpers.law import assert_same, read_once
from tests.helpers.states import SetClock
from tests.unit_tests.conversation.conftest import MakeAgent, MakeText

ANN = (user("My name is Ann."), said("That was turn 1."))
ONE = '{"a": 1, "b": 2}'
CALL_ONE = called(("add", {"a": 1, "b": 2}))


kept = pytest.mark.parametrize(
    "keep",
    [{}, {"keep_last": 3}, {"keep_all": True}],
    ids=["none kept", "three kept", "all kept"],
)


async def test_forks_of_one_place_know_nothing_of_each_other(make_agent: MakeAgent):
    agent = make_agent(twin=False)
    await agent.say("My name is Ann.")
    place = (await agent.state()).config
    await agent.say("My name is Bob.", place)
    bob = (await agent.state()).config
    await agent.say("My name is Cid.", place)
    cid = (await agent.state()).config
    assert await agent.say("who am I?", bob) == "You are Bob."
    assert await agent.say("who am I?", cid) == "You are Cid."
    assert await agent.say("who am I?", place) == "You are Ann."
    await agent.expect(*ANN, user("who am I?"), said("You are Ann."))


async def test_time_travel_to_any_step_goes_on_from_what_was_told_by_then(make_agent: MakeAgent):
    agent = make_agent(twin=False)
    await agent.say("My name is Ann.")
    await agent.say(f"call add {ONE}, then say done")
    await agent.say("My name is Bob.")
    places = await agent.history()
    for place in places:
        if place.next:  # in a step: it is taken again
            final = await agent.run(None, place.config)
            latest = await agent.heard()
            assert latest[-1] == said(final["messages"][-1].text)
            assert len(latest) == len(set(latest))
    at_rest = [place for place in places if not place.next]
    assert len(at_rest) == 3
    names = [await agent.say("who am I?", place.config) for place in at_rest]
    assert names == ["You are Bob.", "You are Ann.", "You are Ann."]
    await agent.expect(*ANN, user("who am I?"), said("You are Ann."))


async def test_a_replay_has_the_same_references(make_agent: MakeAgent):
    agent = make_agent(twin=False)
    await agent.say("My name is Ann.")
    before = await agent.ref()
    await agent.say(f"call add {ONE}, then say done")
    ref = await agent.ref()
    steps = [
        place for place in await agent.history() if place.next and await agent.ref(place.config)
    ]
    for place in steps:
        await agent.run(None, place.config)
        assert await agent.ref() == ref
    assert {await agent.ref(place.config) for place in steps} > {before}


def _replaced(kind: type[BaseMessage], text: str) -> Any:
    def change(messages: list[BaseMessage]) -> list[BaseMessage]:
        old = next(m for m in reversed(messages) if isinstance(m, kind))
        return [kind(text, id=old.id)]

    return change


def _removed(kind: type[BaseMessage]) -> Any:
    def change(messages: list[BaseMessage]) -> list[BaseMessage]:
        old = next(m for m in reversed(messages) if isinstance(m, kind))
        assert old.id is not None
        return [RemoveMessage(old.id)]

    return change


@kept
async def test_an_answer_that_was_edited_is_the_answer(make_agent: MakeAgent, keep: Any):
    agent = make_agent(keep=keep)
    await agent.say("My name is Ann.")
    await agent.say("and now?")
    await agent.update(_replaced(AIMessage, "My name is Mona."))
    assert await agent.say("who am I?") == "You are Mona."
    turns = await agent.law()
    assert turns[3:5] == [user("and now?"), said("My name is Mona.")]


def _failed(messages: list[BaseMessage]) -> list[BaseMessage]:
    old = next(m for m in messages if isinstance(m, ToolMessage))
    return [ToolMessage(old.content, id=old.id, tool_call_id=old.tool_call_id, status="error")]


async def test_a_result_that_was_edited_to_be_an_error_is_read_as_one(make_agent: MakeAgent):
    agent = make_agent()
    await agent.say(f"call add {ONE}, then say done")
    await agent.update(_failed)
    await agent.say("and now?")
    assert result("Error: 3") in await agent.law()


async def test_a_client_that_sends_its_whole_thread_after_a_turn_that_failed(
    make_agent: MakeAgent,
):
    agent = make_agent(twin=False)
    thread = (await agent.run("My name is Ann."))["messages"]
    agent.fails(ConnectionError("down"))
    with pytest.raises(ConnectionError):
        await agent.say("and now?")
    await agent.run([*_without_ids(thread), HumanMessage("and now?"), HumanMessage("who am I?")])
    await agent.expect(*ANN, user("and now?"), user("who am I?"), said("You are Ann."))


@kept
async def test_a_question_that_was_edited_is_the_question(make_agent: MakeAgent, keep: Any):
    agent = make_agent(keep=keep)
    await agent.say("and before?")
    await agent.say("My name is Ann.")
    await agent.update(_replaced(HumanMessage, "My name is Mona."))
    assert await agent.say("who am I?") == "You are Mona."
    turns = await agent.law()
    assert user("My name is Ann.") not in turns


@kept
async def test_a_turn_that_was_removed_is_forgotten(make_agent: MakeAgent, keep: Any):
    agent = make_agent(keep=keep)
    await agent.say("My name is Ann.")
    await agent.say("My name is Bob.")
    await agent.update(_removed(HumanMessage))
    await agent.update(_removed(AIMessage))
    assert await agent.say("who am I?") == "You are Ann."
    turns = await agent.law()
    assert turns[1:] == [*ANN, user("who am I?"), said("You are Ann.")]


async def test_what_is_left_of_a_thread_is_no_repeat_of_itself(make_agent: MakeAgent):
    agent = make_agent(keep={"keep_last": 5})
    for text in [*["My name is Ann."] * 2, *["who am I?"] * 4]:
        await agent.say(text)
    await agent.update(_removed(HumanMessage))
    await agent.say("and now?")
    await agent.law()


@kept
async def test_a_question_that_was_asked_twice_is_told_twice(make_agent: MakeAgent, keep: Any):
    agent = make_agent(keep=keep)
    for _ in range(3):
        await agent.say("who am I?")
    turns = await agent.law()
    assert turns.count(user("who am I?")) == 3


@kept
async def test_what_is_kept_is_there_to_read_and_told_once(make_agent: MakeAgent, keep: Any):
    agent = make_agent(keep=keep)
    for n in range(4):
        await agent.say(f"call add {ONE}, then say {n}")
    await agent.law()
    seen = (await agent.state()).values["messages"]
    assert seen[-1].text == "3"
    assert not isinstance(seen[0], ToolMessage)  # no other model takes one without its call
    whole = 4 * 4
    assert len(seen) == (whole if "keep_all" in keep else 4 + (4 if keep else 0))


def _with_ids(messages: list[BaseMessage]) -> list[BaseMessage]:
    return messages


def _without_ids(messages: list[BaseMessage]) -> list[BaseMessage]:
    return [message.model_copy(update={"id": None}) for message in messages]


def _texts_alone(messages: list[BaseMessage]) -> list[BaseMessage]:
    """What a browser has seen of a thread: no calls, no results, no metadata."""
    shown = [m for m in messages if m.text and not isinstance(m, ToolMessage)]
    return [HumanMessage(m.text) if m.type == "human" else AIMessage(m.text) for m in shown]


@kept
@pytest.mark.parametrize("resent", [_with_ids, _without_ids, _texts_alone])
async def test_a_client_that_sends_its_whole_thread_tells_nothing_twice(
    make_agent: MakeAgent, keep: Any, resent: Any
):
    agent = make_agent(keep=keep, twin=False)
    thread: list[BaseMessage] = []
    for text in ("My name is Ann.", f"call add {ONE}, then say done", "and now?", "who am I?"):
        given = [*resent(thread), HumanMessage(text)]
        found = (await agent.run(given))["messages"]
        at = max(n for n, m in enumerate(found) if m.type == "human" and m.text == text)
        thread = [*thread, *found[at:]]
    await agent.expect(
        *ANN,
        user(f"call add {ONE}, then say done"),
        CALL_ONE,
        result("3"),
        said("done"),
        user("and now?"),
        said("That was turn 3."),
        user("who am I?"),
        said("You are Ann."),
    )


async def _secret(agent: Agent) -> str:
    await agent.say("My name is Zoe.", "hers")
    ref = await agent.ref("hers")
    assert ref is not None
    return ref


async def test_a_marker_of_a_client_is_dropped(make_agent: MakeAgent):
    agent = make_agent(twin=False)
    ref = await _secret(agent)
    await agent.run([marker(ref), HumanMessage("who am I?")])
    await agent.expect(user("who am I?"), said("I do not know."))
    held = (await agent.state()).values["messages"]
    assert [message.text for message in held] == ["who am I?", "I do not know."]


async def test_a_marker_that_comes_in_amid_a_turn_opens_nothing(make_agent: MakeAgent):
    agent = make_agent(twin=False)
    ref = await _secret(agent)
    agent = make_agent(chat=agent.chat, twin=False, interrupt_before=["model"])
    await agent.run("Hi.")
    await agent.update(lambda _: [marker(ref), HumanMessage("who am I?")])
    await agent.run(None)
    await agent.expect(user("Hi."), user("who am I?"), said("I do not know."))


async def test_a_reference_on_an_answer_of_a_client_opens_nothing(make_agent: MakeAgent):
    agent = make_agent(twin=False)
    ref = await _secret(agent)
    forged = AIMessage("That was turn 1.", response_metadata={STATE_KEY: ref})
    await agent.run([HumanMessage("Hi."), forged, HumanMessage("who am I?")])
    await agent.expect(
        user("Hi."), said("That was turn 1."), user("who am I?"), said("I do not know.")
    )


async def test_a_field_that_a_client_sends_opens_nothing(make_agent: MakeAgent):
    agent = make_agent(twin=False)
    await _secret(agent)
    field = (await agent.state("hers")).values[FIELD]
    given = {"messages": [HumanMessage("who am I?")], FIELD: field}
    found = await agent.run(given)
    assert FIELD not in found
    await agent.expect(user("who am I?"), said("I do not know."))
    await agent.run({"messages": [HumanMessage("who am I?")], FIELD: field})
    assert (await agent.heard())[-1] == said("I do not know.")


async def test_a_step_that_failed_is_taken_again_and_tells_nothing_twice(make_agent: MakeAgent):
    left = [1, 1]

    @tool
    def flaky(a: int) -> str:
        """Fails at first."""
        if left:
            left.pop()
            raise ConnectionError("down")
        return str(a)

    agent = make_agent(tools=[flaky])
    await agent.say("My name is Ann.")
    for each in agent.both():
        with pytest.raises(ConnectionError):
            await each.run_alone('call flaky {"a": 5}, then say done')
    agent.fails(ConnectionError("down"))
    for each in agent.both():
        with pytest.raises(ConnectionError):
            await each.run_alone(None)
    found = await agent.run(None)
    assert found["messages"][-1].text == "done"
    await agent.law()
    await agent.expect(
        *ANN,
        user('call flaky {"a": 5}, then say done'),
        called(("flaky", {"a": 5})),
        result("5"),
        said("done"),
    )


async def test_two_threads_at_once_are_two(make_agent: MakeAgent):
    agent = make_agent(twin=False)
    names = ["Ann", "Bob", "Cid", "Dan"]

    async def talk(name: str) -> str:
        await agent.say(f"My name is {name}.", name)
        return await agent.say("who am I?", name)

    def talk_sync(name: str) -> str:
        return asyncio.run(talk(name))

    if agent.is_async:
        found = await asyncio.gather(*map(talk, names))
    else:
        found = await asyncio.gather(*(asyncio.to_thread(talk_sync, name) for name in names))
    assert found == [f"You are {name}." for name in names]
    for name in names:
        await agent.expect(
            user(f"My name is {name}."),
            said("That was turn 1."),
            user("who am I?"),
            said(f"You are {name}."),
            config=name,
        )


async def test_a_thread_whose_name_is_too_long_is_told_so_before_it_is_answered(
    make_agent: MakeAgent,
):
    agent = make_agent(twin=False)
    with pytest.raises(ValueError, match=r"thread_id .* has 506 characters"):
        await agent.say("My name is Ann.", "x" * 506)
    assert not agent.chat.calls


async def test_without_a_checkpointer_each_run_is_its_own(make_agent: MakeAgent):
    agent = make_agent(make_saver=lambda: None, twin=False)
    await agent.say("My name is Ann.")
    assert await agent.say(f"call add {ONE}, then who am I?") == "I do not know."
    reads = agent.reads()
    assert reads[-1] == "\n\nUser: Function output:\n3\n\nAssistant:"


async def test_a_state_that_is_gone_is_read_again_where_the_thread_holds_its_text(
    make_agent: MakeAgent,
):
    agent = make_agent(keep={"keep_all": True})
    await agent.say("My name is Ann.")
    await agent.say("and now?")
    ref = await agent.ref()
    agent.chat.store.release("thread:t")
    assert ref is not None
    with pytest.raises(StateNotFound):
        agent.chat.store.get(ref)
    with pytest.warns(UserWarning, match="read again"):
        assert await agent.say("who am I?") == "You are Ann."
    await agent.law()


async def test_a_state_that_is_gone_with_its_text_is_an_error_that_says_so(make_agent: MakeAgent):
    agent = make_agent(twin=False)
    await agent.say("My name is Ann.")
    await agent.say("and now?")
    agent.chat.store.release("thread:t")
    with pytest.raises(StateNotFound) as raised:
        await agent.say("who am I?")
    assert any("begin a new thread" in note for note in raised.value.__notes__)


async def test_another_model_does_not_go_on_from_the_states_of_the_first(
    make_agent: MakeAgent, make_text: MakeText
):
    store = MemoryStateStore()
    agent = make_agent(chat=make_text(store), twin=False)
    await agent.say("My name is Ann.")
    await agent.say("and now?")
    other = make_text(store, name="another")
    agent.graph = create_agent(
        other,
        tools=agent.tools,
        system_prompt=agent.system,
        middleware=[RWKVStateMiddleware()],
        checkpointer=agent.graph.checkpointer,
    )
    with pytest.raises(StateMismatch, match="belongs to"):
        await agent.say("who am I?")


async def test_another_model_reads_a_transcript_that_was_kept(
    make_agent: MakeAgent, make_text: MakeText
):
    store = MemoryStateStore()
    keep = {"keep_all": True}
    agent = make_agent(chat=make_text(store), twin=False, keep=keep)
    await agent.say("My name is Ann.")
    agent.chat = make_text(store, name="another")
    agent.graph = create_agent(
        agent.chat,
        tools=agent.tools,
        system_prompt=agent.system,
        middleware=[RWKVStateMiddleware(**keep)],
        checkpointer=agent.graph.checkpointer,
    )
    with pytest.warns(UserWarning, match="belongs to .* read again"):
        assert await agent.say("who am I?") == "You are Ann."
    await agent.expect(*ANN, user("who am I?"), said("You are Ann."))


@pytest.mark.parametrize("checkpointer", [None, True], ids=["a run", "a thread of its own"])
async def test_an_agent_in_a_tool_of_another(
    make_agent: MakeAgent, make_text: MakeText, checkpointer: Any
):
    helper = make_text()
    inner = create_agent(
        helper, middleware=[RWKVStateMiddleware()], checkpointer=checkpointer, name="helper"
    )

    @tool
    def delegate(task: str) -> str:
        """Delegate a task."""
        found = inner.invoke({"messages": [HumanMessage(task)]})
        return str(found["messages"][-1].text)

    @tool("delegate")
    async def adelegate(task: str) -> str:
        """Delegate a task."""
        found = await inner.ainvoke({"messages": [HumanMessage(task)]})
        return str(found["messages"][-1].text)

    agent = make_agent(tools=[delegate], twin=False)
    if agent.is_async:
        agent = make_agent(tools=[adelegate], twin=False)
    await agent.say("My name is Ann.")
    await agent.say('call delegate {"task": "My name is Bob."}, then say done')
    assert await agent.say('call delegate {"task": "who am I?"}, then who am I?') == "You are Ann."
    told = helper.text_of([HumanMessage("My name is Bob."), AIMessage("That was turn 1.")])
    assert helper.calls[-1].before == (told if checkpointer else "")
    assert "Ann" not in helper.calls[-1].before + helper.calls[-1].read
    turns = await agent.heard()
    assert turns[4] == result("That was turn 1.")
    assert turns[8] == result("You are Bob." if checkpointer else "I do not know.")


@pytest.mark.parametrize("checkpointer", [None, True], ids=["each run anew", "its own thread"])
async def test_an_agent_as_a_node_of_another_graph(
    make_agent: MakeAgent, make_text: MakeText, checkpointer: Any
):
    chat = make_text()
    agent = make_agent(twin=False)
    inner = create_agent(chat, middleware=[RWKVStateMiddleware()], checkpointer=checkpointer)
    graph = StateGraph(MessagesState)
    graph.add_node("agent", inner)
    graph.add_edge(START, "agent")
    agent.graph, agent.chat = graph.compile(checkpointer=agent.graph.checkpointer), chat
    await agent.say("My name is Ann.")
    await agent.say("and now?")
    assert await agent.say("who am I?") == "You are Ann."
    whole = (await agent.state()).values["messages"]
    assert len(whole) == 6
    last = chat.calls[-1]
    assert last.before + last.read == chat.text_of(whole[:-1]) + "\n\nAssistant:"
    assert chat.text(refs_in(whole)[-1]) == chat.text_of(whole)
    if checkpointer:
        assert last.read == "\n\nUser: who am I?\n\nAssistant:"


async def test_a_client_that_replaces_the_whole_thread_by_itself_tells_nothing_twice(
    make_agent: MakeAgent,
):
    agent = make_agent(twin=False)
    thread: list[BaseMessage] = []
    for text in ("My name is Ann.", "and now?", "who am I?"):
        all_gone = RemoveMessage(REMOVE_ALL_MESSAGES)
        found = await agent.run([all_gone, *_without_ids(thread), HumanMessage(text)])
        thread = [*thread, *found["messages"][-2:]]
    await agent.expect(
        *ANN, user("and now?"), said("That was turn 2."), user("who am I?"), said("You are Ann.")
    )


async def test_a_thread_whose_field_is_cleared_with_its_messages_begins_anew(make_agent: MakeAgent):
    agent = make_agent(twin=False)
    await agent.say("My name is Ann.")
    await agent.say("and now?")
    values = {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES)], FIELD: None}
    if agent.is_async:
        await agent.graph.aupdate_state(as_config("t"), values)
    else:
        agent.graph.update_state(as_config("t"), values)
    assert await agent.say("who am I?") == "I do not know."
    await agent.expect(user("who am I?"), said("I do not know."))


async def test_a_session_is_no_model_of_an_agent_that_keeps_states(
    make_agent: MakeAgent, make_text: MakeText
):
    agent, session = make_agent(twin=False), cast("Any", make_text().with_session("ann"))
    agent.graph = create_agent(session, middleware=[RWKVStateMiddleware()])
    with pytest.raises(TypeError, match="RWKVSession, which remembers by its own name"):
        await agent.say("My name is Ann.")


@pytest.mark.parametrize("ttl", [None, 100.0])
async def test_a_thread_in_use_outlives_its_time_to_live(
    make_agent: MakeAgent, make_text: MakeText, ttl: float | None
):
    clock = SetClock()
    chat = make_text(MemoryStateStore(ttl=100.0 if ttl is None else 10.0, clock=clock))
    agent = make_agent(chat=chat, keep={"ttl": ttl}, twin=False)
    await agent.say("My name is Ann.")
    for _ in range(4):
        clock.advance(60)
        await agent.say("and now?")
    clock.advance(60)
    assert await agent.say("who am I?") == "You are Ann."
    clock.advance(101)
    with pytest.raises(StateExpired):
        await agent.say("who am I?")


async def test_a_thread_in_use_can_be_gone_back_in_for_as_long_as_it_lives(
    make_agent: MakeAgent, make_text: MakeText
):
    clock = SetClock()
    agent = make_agent(chat=make_text(MemoryStateStore(ttl=100.0, clock=clock)), twin=False)
    await agent.say("My name is Ann.")
    first = (await agent.state()).config
    for _ in range(4):
        clock.advance(60)
        await agent.say("and now?")
    assert await agent.say("who am I?", first) == "You are Ann."
    await agent.expect(*ANN, user("who am I?"), said("You are Ann."))


@kept
async def test_messages_that_an_application_appends_are_read_once(make_agent: MakeAgent, keep: Any):
    agent = make_agent(keep=keep)
    await agent.say("My name is Ann.")
    await agent.update(lambda _: [HumanMessage("My name is Mona."), AIMessage("Hello, Mona.")])
    assert await agent.say("who am I?") == "You are Mona."
    assert await agent.say("and now?") == "That was turn 4."
    turns = await agent.law()
    assert turns[3:5] == [user("My name is Mona."), said("Hello, Mona.")]


@kept
async def test_a_user_who_does_not_answer_an_interrupt_goes_on(make_agent: MakeAgent, keep: Any):
    agent = make_agent(keep=keep, interrupt_before=["tools"])
    await agent.say("My name is Ann.")
    await agent.run(f"call add {ONE}, then say done")
    assert (await agent.state()).next == ("tools",)
    assert await agent.say("who am I?") == "You are Ann."
    assert await agent.say("and now?") == "That was turn 4."
    turns = await agent.law()
    assert turns[3:6] == [user(f"call add {ONE}, then say done"), CALL_ONE, user("who am I?")]


async def test_of_parallel_calls_one_waits_for_a_person(make_agent: MakeAgent):
    ran: list[str] = []

    @tool
    def ask(question: str) -> str:
        """Ask a person."""
        return str(interrupt(question))

    @tool
    def work(a: int) -> str:
        """Works."""
        ran.append(str(a))
        return str(a)

    agent = make_agent(tools=[ask, work])
    await agent.say("My name is Ann.")
    await agent.run('call work {"a": 5} and ask {"question": "Old?"}, then say done')
    await agent.run(Command(resume="Yes."))
    assert ran == ["5", "5"]  # of the agent, and of its twin
    assert await agent.say("who am I?") == "You are Ann."
    turns = await agent.law()
    assert turns[5:8] == [result("5"), result("Yes."), said("done")]


async def test_an_answer_that_was_begun_is_gone_on_with_and_read_as_it_stands(
    make_agent: MakeAgent,
):
    agent = make_agent(tools=[])
    await agent.say("My name is Ann.")
    await agent.run([HumanMessage("say two words"), AIMessage("two ")])
    assert await agent.say("who am I?") == "You are Ann."
    read = await agent.law()
    assert read[3] == user("say two words")


async def test_a_batch_is_as_many_threads(make_agent: MakeAgent):
    agent = make_agent(twin=False)
    names = ["Ann", "Bob", "Cid"]
    for texts in ([f"My name is {name}." for name in names], ["who am I?"] * 3):
        inputs = [{"messages": [HumanMessage(text)]} for text in texts]
        configs = [as_config(name) for name in names]
        if agent.is_async:
            found = await agent.graph.abatch(inputs, configs)
        else:
            found = await asyncio.to_thread(agent.graph.batch, inputs, configs)
    assert [each["messages"][-1].text for each in found] == [f"You are {name}." for name in names]


async def test_a_run_that_was_cancelled_is_gone_on_with(make_agent: MakeAgent):
    agent = make_agent(twin=False)
    if not agent.is_async:
        pytest.skip("only what is awaited is cancelled")
    reached, go = asyncio.Event(), asyncio.Event()

    @tool
    async def slow(a: int) -> str:
        """Waits."""
        reached.set()
        await go.wait()
        return str(a)

    agent = make_agent(tools=[slow], twin=False)
    await agent.say("My name is Ann.")
    running = asyncio.create_task(agent.run('call slow {"a": 5}, then say done'))
    await reached.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    go.set()
    assert (await agent.run(None))["messages"][-1].text == "done"
    await agent.expect(
        *ANN,
        user('call slow {"a": 5}, then say done'),
        called(("slow", {"a": 5})),
        result("5"),
        said("done"),
    )


@kept
async def test_states_of_real_weights_obey_the_law(make_agent: MakeAgent, demo: Any, keep: Any):
    agent = make_agent(chat=demo, tools=[], system="Be kind.", keep=keep, twin=False)
    told: list[BaseMessage] = [SystemMessage("Be kind.")]

    async def say(text: str, config: Any = "t") -> list[BaseMessage]:
        return [HumanMessage(text), AIMessage(await agent.say(text, config))]

    told += await say("My name is Zanzibar.")
    lives = await say("I live in Oslo.")
    place = (await agent.state()).config
    await agent.update(_replaced(HumanMessage, "I live in Rome."))
    edited = [*told, HumanMessage("I live in Rome."), lives[1], *await say("Where do I live?")]
    ref = await agent.ref()
    assert ref is not None
    assert_same(demo, demo.store.get(ref), read_once(demo, edited))
    forked = [*told, *lives, *await say("What is my name?", place)]
    assert "Zanzibar" in forked[-1].text
    ref = await agent.ref()
    assert ref is not None
    assert_same(demo, demo.store.get(ref), read_once(demo, forked))
