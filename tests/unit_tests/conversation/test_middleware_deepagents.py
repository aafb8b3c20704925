"""deepagents' agents beside `RWKVStateMiddleware`: their files and subagents keep working."""

from __future__ import annotations

from typing import Any

import pytest
from deepagents import create_deep_agent
from langchain_core.messages import AIMessage
from langgraph.types import Command

from langchain_rwkv_state import RWKVStateMiddleware
from tests.helpers.agents import called, result, said, user
from tests.unit_tests.conversation.conftest import MakeAgent, MakeText

# Its tools' descriptions are long, and the models of these tests read bytes.
CAPACITY = 1 << 16
WRITTEN = '{"file_path": "/a.txt", "content": "My cat is Tom."}'
PATH = '{"file_path": "/a.txt"}'


async def test_files_are_written_read_and_listed(make_agent: MakeAgent, make_text: MakeText):
    agent = make_agent(
        create=create_deep_agent,
        make_chat=lambda: make_text(capacity=CAPACITY),
        tools=[],
    )
    await agent.say("My name is Ann.")
    steps = [f"call write_file {WRITTEN}", f"call read_file {PATH}", 'call ls {"path": "/"}']
    found = await agent.run(", then ".join([*steps, "say done"]))
    assert found["files"]["/a.txt"]["content"] == "My cat is Tom."
    edit = '{"file_path": "/a.txt", "old_string": "Tom", "new_string": "Tim"}'
    found = await agent.run(f"call edit_file {edit}, then say edited")
    assert found["files"]["/a.txt"]["content"] == "My cat is Tim."
    assert await agent.say("who am I?") == "You are Ann."
    turns = await agent.law()
    assert called(("read_file", {"file_path": "/a.txt"})) in turns
    assert result("['/a.txt']") in turns
    assert all("My cat is Tom" not in read for read in agent.reads()[-1:])


async def test_subagents_know_what_they_were_given_and_no_more(
    make_agent: MakeAgent, make_text: MakeText
):
    helper = make_text(capacity=CAPACITY)
    spec: Any = {
        "name": "helper",
        "description": "Helps.",
        "system_prompt": "Help.",
        "model": helper,
        "middleware": [RWKVStateMiddleware()],
    }
    agent = make_agent(
        create=create_deep_agent,
        make_chat=lambda: make_text(capacity=CAPACITY),
        tools=[],
        subagents=[spec],
        twin=False,
    )
    await agent.say("My name is Ann.")
    task = '{"description": "call write_file %s", "subagent_type": "helper"}'
    task %= WRITTEN.replace('"', '\\"')
    found = await agent.run(f"call task {task}, then say done")
    assert found["files"]["/a.txt"]["content"] == "My cat is Tom."
    who = '{"description": "who am I?", "subagent_type": "helper"}'
    assert await agent.say(f"call task {who}, then who am I?") == "You are Ann."
    told = agent.chat.text(await agent.ref()).split("\n\n")[1:]
    assert told[-3:] == [
        called(("task", {"description": "who am I?", "subagent_type": "helper"})),
        result("I do not know."),
        said("You are Ann."),
    ]
    assert told.count(user("My name is Ann.")) == 1
    assert not any("Ann" in call.before + call.read for call in helper.calls)


async def test_a_person_approves_of_a_file(make_agent: MakeAgent, make_text: MakeText):
    agent = make_agent(
        create=create_deep_agent,
        make_chat=lambda: make_text(capacity=CAPACITY),
        tools=[],
        interrupt_on={"write_file": True},
    )
    await agent.say("My name is Ann.")
    assert (await agent.run(f"call write_file {WRITTEN}, then say done"))["__interrupt__"]
    found = await agent.run(Command(resume={"decisions": [{"type": "approve"}]}))
    assert found["files"]
    assert await agent.say("who am I?") == "You are Ann."
    await agent.law()


async def test_an_answer_that_was_edited_is_the_answer(make_agent: MakeAgent, make_text: MakeText):
    agent = make_agent(
        create=create_deep_agent, make_chat=lambda: make_text(capacity=CAPACITY), tools=[]
    )
    await agent.say("My name is Ann.")
    await agent.say("and now?")
    await agent.update(lambda messages: [AIMessage("My name is Mona.", id=messages[-1].id)])
    assert await agent.say("who am I?") == "You are Mona."
    await agent.law()


@pytest.mark.filterwarnings("ignore:The feature `forked subagents` is in beta")
@pytest.mark.parametrize("keep_all", [False, True])
async def test_a_forked_subagent_knows_what_the_thread_still_holds(
    make_agent: MakeAgent, make_text: MakeText, keep_all: bool
):
    spec: Any = {
        "name": "helper",
        "description": "Helps.",
        "system_prompt": "Help.",
        "mode": "fork",
    }
    agent = make_agent(
        create=create_deep_agent,
        make_chat=lambda: make_text(capacity=CAPACITY),
        tools=[],
        subagents=[spec],
        keep={"keep_all": keep_all},
        twin=False,
    )
    await agent.say("My name is Ann.")
    who = '{"description": "who am I?", "subagent_type": "helper"}'
    assert await agent.say(f"call task {who}, then who am I?") == "You are Ann."
    inner = agent.chat.calls[-2]
    assert ("My name is Ann." in inner.before + inner.read) == keep_all
