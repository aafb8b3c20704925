"""What an agent whose memory is a state streams: in every mode, and as events."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.tools import tool
from langgraph.config import get_stream_writer
from langgraph.types import StreamMode

from langchain_rwkv_state.conversation.coverage import FIELD
from langchain_rwkv_state.prompt.markers import MARKER_TEXT, STATE_KEY
from tests.helpers.agents import called, refs_in, result, said, user
from tests.unit_tests.conversation.conftest import MakeAgent

ASKED = 'call note {"a": 1}, then say two words'
TOLD = (
    user("My name is Ann."),
    said("That was turn 1."),
    user(ASKED),
    called(("note", {"a": 1})),
    result("1"),
    said("two words"),
)


@tool
def note(a: int) -> str:
    """Writes to the stream."""
    get_stream_writer()({"noted": a})
    return str(a)


@pytest.mark.parametrize("mode", get_args(StreamMode))
async def test_each_mode_streams_and_leaves_the_same_thread(make_agent: MakeAgent, mode: Any):
    agent = make_agent(tools=[note], twin=False)
    await agent.say("My name is Ann.")
    given = await agent.stream(ASKED, stream_mode=mode)
    assert given
    assert MARKER_TEXT not in repr(given)
    await agent.expect(*TOLD)
    assert await agent.say("who am I?") == "You are Ann."


async def test_each_answer_has_one_chunk_with_its_reference(make_agent: MakeAgent):
    agent = make_agent(tools=[note], twin=False)
    await agent.say("My name is Ann.")
    given = [chunk for chunk, _ in await agent.stream(ASKED, stream_mode="messages")]
    chunks = [chunk for chunk in given if isinstance(chunk, AIMessageChunk)]
    carrying = [chunk for chunk in chunks if STATE_KEY in chunk.response_metadata]
    assert len(carrying) == len({chunk.id for chunk in chunks}) == 2
    refs = [chunk.response_metadata[STATE_KEY] for chunk in carrying]
    assert refs == refs_in((await agent.state()).values["messages"])
    last = [chunk for chunk in chunks if chunk.id == chunks[-1].id]
    assert len(last) > 2
    assert "".join(chunk.text for chunk in last) == "two words"


async def test_the_values_of_a_stream_end_as_the_thread_does(make_agent: MakeAgent):
    agent = make_agent(tools=[note], twin=False)
    await agent.say("My name is Ann.")
    values = await agent.stream(ASKED, stream_mode="values")
    assert values[-1]["messages"] == (await agent.state()).values["messages"]
    assert [m.text for m in values[-1]["messages"]] == [ASKED, "", "1", "two words"]
    assert FIELD not in await agent.run("and now?")  # what `invoke` gives has no private field


async def test_several_modes_at_once(make_agent: MakeAgent):
    agent = make_agent(tools=[note], twin=False)
    await agent.say("My name is Ann.")
    given = await agent.stream(ASKED, stream_mode=["custom", "messages", "updates"])
    modes = [mode for mode, _ in given]
    assert set(modes) == {"custom", "messages", "updates"}
    assert [value for mode, value in given if mode == "custom"] == [{"noted": 1}]
    await agent.expect(*TOLD)


async def test_events(make_agent: MakeAgent):
    agent = make_agent(tools=[note], twin=False)
    if not agent.is_async:
        pytest.skip("events are async alone")
    await agent.say("My name is Ann.")
    given = {"messages": [HumanMessage(ASKED)]}
    config: Any = {"configurable": {"thread_id": "t"}}
    events = [event async for event in agent.graph.astream_events(given, config, version="v2")]
    ends = [event for event in events if event["event"] == "on_chat_model_end"]
    streamed = [
        event["data"]["chunk"]
        for event in events
        if event["event"] == "on_chat_model_stream"
        and STATE_KEY in event["data"]["chunk"].response_metadata
    ]
    assert len(ends) == len(streamed) == 2
    await agent.expect(*TOLD)


async def test_a_stream_that_is_left_early_is_gone_on_with(make_agent: MakeAgent):
    agent = make_agent(tools=[note], twin=False)
    await agent.say("My name is Ann.")
    given: Any = {"messages": [HumanMessage(ASKED)]}
    config: Any = {"configurable": {"thread_id": "t"}}
    if agent.is_async:
        stream = agent.graph.astream(given, config, stream_mode="messages")
        await anext(stream)
        await stream.aclose()
    else:
        stream = agent.graph.stream(given, config, stream_mode="messages")
        next(stream)
        stream.close()
    await agent.run(None)
    await agent.expect(*TOLD)
