"""Whatever is done with a thread, its state stands for what a transcript of it would say."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage
from langgraph.checkpoint.memory import InMemorySaver

from langchain_rwkv_state import MemoryStateStore
from langchain_rwkv_state.conversation.coverage import FIELD, Coverage
from tests.helpers.agents import Agent
from tests.helpers.text_model import TextRWKV, text_chat

ONE, TWO = 'add {"a": 1, "b": 2}', 'add {"a": 3, "b": 4}'

texts = st.sampled_from(
    [
        "My name is Ann.",
        "My name is Bob.",
        "who am I?",
        "and now?",
        f"call {ONE}, then call {TWO}, then say done",
        f"call {ONE} and {TWO}",
    ]
)
kinds = st.sampled_from([HumanMessage, AIMessage])
acts = st.one_of(
    st.tuples(st.just("say"), texts),
    st.tuples(st.just("edit"), kinds),
    st.tuples(st.just("remove")),
    st.tuples(st.just("go back"), st.integers(0, 4), texts),
    st.tuples(st.just("take again"), st.integers(0, 6)),
    st.tuples(st.just("send all"), texts, st.booleans()),
)
keeps = st.sampled_from([{}, {"keep_last": 1}, {"keep_last": 5}, {"keep_all": True}])


def _last(messages: list[BaseMessage], kind: Any) -> BaseMessage | None:
    found = (m for m in reversed(messages) if isinstance(m, kind) and m.text)
    return next(found, None)


async def _can_be_changed(agent: Agent, kind: Any) -> bool:
    """Says whether the thread still holds what its twin has last: else it cannot be changed."""
    last = [_last((await each.state()).values["messages"], kind) for each in agent.both()]
    return None not in last and len({m.text for m in last if m is not None}) == 1


async def _do(agent: Agent, act: Any) -> None:
    match act:
        case ("say", text):
            await agent.say(text)
        case ("edit", kind) if await _can_be_changed(agent, kind):
            await agent.update(lambda old: [kind("My name is Mona.", id=_last(old, kind).id)])  # type: ignore[union-attr]
        case ("remove",) if await _can_be_changed(agent, HumanMessage):
            await agent.update(lambda old: [RemoveMessage(_last(old, HumanMessage).id)])  # type: ignore[arg-type,union-attr]
        case ("go back", n, text):
            for each in agent.both():
                rests = [place for place in await each.history() if not place.next]
                await each.run_alone(text, rests[n % len(rests)].config)
        case ("take again", n):
            places = [
                [p for p in await each.history() if "model" in p.next] for each in agent.both()
            ]
            for each, steps in zip(agent.both(), places, strict=True):
                await each.run_alone(None, steps[n % len(places[0])].config)
        case ("send all", text, with_ids):
            values = (await agent.state()).values
            told = values["messages"]
            standing = Coverage.of(values[FIELD]).standing(told)
            # What was edited since is in no state: without ids, nothing tells that it comes again.
            with_ids = with_ids or next(standing).count < len(told)
            kept = {} if with_ids else {"id": None}
            await agent.run_alone([*(m.model_copy(update=kept) for m in told), HumanMessage(text)])
            assert agent.twin is not None
            await agent.twin.run_alone(text)


async def _play(chats: list[TextRWKV], keep: dict[str, Any], played: list[Any]) -> None:
    left = iter(chats)
    agent = Agent(make_chat=lambda: next(left), make_saver=InMemorySaver, is_async=False, keep=keep)
    await agent.say("My name is Eve.")
    for act in played:
        await _do(agent, act)
    await agent.say("who am I?")
    await agent.law()


@pytest.mark.slow
@given(keep=keeps, played=st.lists(acts, max_size=7))
def test_a_thread_stands_for_what_a_transcript_would_say(
    tiny_tokenizer_file: Path, keep: dict[str, Any], played: list[Any]
):
    chats = [text_chat(tiny_tokenizer_file, MemoryStateStore()) for _ in range(2)]
    try:
        asyncio.run(_play(chats, keep, played))
    finally:
        for chat in chats:
            chat.close()
            chat.store.close()
