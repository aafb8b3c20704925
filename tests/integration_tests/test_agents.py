"""Agents with threads and states on disk: whatever happens between two steps, the thread goes on.

Each step may be taken by another process: here everything is closed and opened anew; processes that
are killed are in `test_agent_kills`.
"""

from pathlib import Path
from typing import Any

import pytest
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.types import Command

from langchain_rwkv_state.conversation.coverage import DROPPED_MAX, FIELD, Coverage
from langchain_rwkv_state.errors import StateNotFound
from tests.helpers.agent_on_disk import ASKED, FIRST, LAST, Opened, opened
from tests.helpers.agents import called, result, said, user

ANN = [user(FIRST), said("That was turn 1.")]
WORK = [
    user(ASKED),
    called(("add", {"a": 1, "b": 2})),
    result("3"),
    said("done"),
]
WHO = [user(LAST), said("You are Ann.")]


def test_a_restart_between_any_two_steps_loses_nothing(tmp_path: Path):
    n_steps = 0
    for text in (FIRST, ASKED, LAST):
        given: Any = text
        while True:
            with opened(tmp_path) as agent:
                agent.run(given, interrupt_before="*")
                given, n_steps = None, n_steps + 1
                if not agent.state().next:
                    break
    assert n_steps > 9
    with opened(tmp_path) as agent:
        assert agent.heard() == [*ANN, *WORK, *WHO]
        assert agent.chat.calls == []  # nothing was read again to know it


def test_each_process_reads_what_came_since_and_no_more(tmp_path: Path):
    reads = []
    for text in (FIRST, ASKED, LAST):
        with opened(tmp_path) as agent:
            agent.say(text)
            reads += [call.read for call in agent.chat.calls]
    assert [read.count("User: ") for read in reads] == [1] * 4
    assert sum(FIRST in read for read in reads) == 1


def test_a_fork_is_two_threads_for_good(tmp_path: Path):
    with opened(tmp_path) as agent:
        agent.say(FIRST)
        place = agent.state().config
    ends = []
    for name in ("Bob", "Cid"):
        with opened(tmp_path) as agent:
            agent.say(f"My name is {name}.", place)
            ends.append(agent.state().config)
    for name, end in zip(("Bob", "Cid"), ends, strict=True):
        with opened(tmp_path) as agent:
            assert agent.say(LAST, end) == f"You are {name}."
            told = [user(f"My name is {name}."), said("That was turn 2.")]
            assert agent.heard() == [*ANN, *told, user(LAST), said(f"You are {name}.")]


def test_time_travel_to_each_checkpoint_after_a_restart(tmp_path: Path):
    with opened(tmp_path) as agent:
        for text in (FIRST, ASKED, "My name is Bob."):
            agent.say(text)
        history = list(agent.graph.get_state_history({"configurable": {"thread_id": "t"}}))
        rest = [(place.config, agent.heard(place.config)) for place in history if not place.next]
        steps = [place.config for place in history if place.next]
    assert len(rest) == 3
    for config, heard in rest:
        with opened(tmp_path) as agent:
            name = "Bob" if user("My name is Bob.") in heard else "Ann"
            assert agent.say(LAST, config) == f"You are {name}."
            assert agent.heard() == [*heard, user(LAST), said(f"You are {name}.")]
    whole = [*ANN, *WORK, user("My name is Bob."), said("That was turn 3.")]
    for config in steps:
        with opened(tmp_path) as agent:
            agent.run(None, config)
            heard = agent.heard()
            assert heard == whole[: len(heard)]
            assert heard[-1].startswith("Assistant: ")


def test_an_interrupt_is_resumed_by_another_process(tmp_path: Path):
    def person() -> Any:
        return HumanInTheLoopMiddleware({"add": True})

    with opened(tmp_path, person()) as agent:
        agent.say(FIRST)
        agent.run(ASKED)
        assert agent.state().next
    with opened(tmp_path, person()) as agent:
        agent.run(Command(resume={"decisions": [{"type": "approve"}]}))
    with opened(tmp_path, person()) as agent:
        assert agent.say(LAST) == "You are Ann."
        assert agent.heard() == [*ANN, *WORK, *WHO]


def _edit(agent: Opened, kind: Any, text: str) -> None:
    old = next(m for m in reversed(agent.state().values["messages"]) if isinstance(m, kind))
    config: Any = {"configurable": {"thread_id": "t"}}
    agent.graph.update_state(config, {"messages": [kind(text, id=old.id)]})


@pytest.mark.parametrize("kind", [AIMessage, HumanMessage])
def test_an_edit_is_honoured_by_another_process(tmp_path: Path, kind: type):
    with opened(tmp_path) as agent:
        agent.say(FIRST)
        agent.say("and now?")
    with opened(tmp_path) as agent:
        _edit(agent, kind, "My name is Mona.")
    with opened(tmp_path) as agent:
        assert agent.say(LAST) == "You are Mona."
        told = agent.heard()
    assert told[:2] == ANN
    assert len(told) == 6
    assert "My name is Mona." in told[2 if kind is HumanMessage else 3]


def test_a_step_that_failed_is_taken_again_by_another_process(tmp_path: Path):
    works: list[bool] = []

    @tool
    def flaky(a: int) -> str:
        """Fails in the first process."""
        if not works:
            raise ConnectionError("down")
        return str(a)

    text = 'call flaky {"a": 5}, then say done'
    with opened(tmp_path, tools=[flaky]) as agent:
        agent.say(FIRST)
        with pytest.raises(ConnectionError):
            agent.say(text)
    works.append(True)
    with opened(tmp_path, tools=[flaky]) as agent:
        agent.chat.failures.append(ConnectionError("down"))
        with pytest.raises(ConnectionError):
            agent.run(None)
    with opened(tmp_path, tools=[flaky]) as agent:
        assert agent.run(None)[-1].text == "done"
        call = called(("flaky", {"a": 5}))
        assert agent.heard() == [*ANN, user(text), call, result("5"), said("done")]


def test_a_thread_that_is_deleted_takes_its_states_along(tmp_path: Path):
    with opened(tmp_path) as agent:
        agent.say(FIRST)
        agent.say(FIRST, "other")
        agent.say("My name is Bob.")
        ref, others = agent.ref(), agent.ref("other")
        assert ref is not None
        assert others is not None
        agent.saver.delete_thread("t")
        agent.chat.store.release("thread:t")
        with pytest.raises(StateNotFound):
            agent.chat.store.get(ref)
        assert agent.chat.store.get(others)
        assert agent.say(LAST) == "I do not know."
        assert agent.say(LAST, "other") == "You are Ann."


def test_the_checkpoints_of_a_thread_stay_small(tmp_path: Path):
    sizes = []
    with opened(tmp_path) as agent:
        for _ in range(12):
            agent.say(ASKED)
            sizes.append(len(repr(agent.state().values)))
        field = agent.state().values[FIELD]
    assert len(Coverage.of(field).dropped) == DROPPED_MAX
    assert max(sizes[7:]) - min(sizes[7:]) < 30
