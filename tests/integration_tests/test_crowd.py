"""The law in a crowd: who else is served, how long they are and when they leave changes nothing."""

from __future__ import annotations

import asyncio
import random

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from langchain_rwkv_state import MemoryStateStore
from langchain_rwkv_state.runtime.native import build
from tests.helpers.devices import ON_CARD, ON_CPU, on_card
from tests.helpers.law import assert_same, read_once

MODELS = ["demo", 7, 6]
CROWD = 20
TURNS = 3


def said_by(name: int, turn: int) -> str:
    """Returns what one of the crowd says: of any length, from a word to some hundred tokens."""
    chance = random.Random(100 * name + turn)
    return " ".join(f"I have {chance.randrange(1000)} pets." for _ in range(chance.randint(1, 12)))


@pytest.fixture(
    params=[*((model, ON_CPU) for model in MODELS), on_card((7, ON_CARD))],
    ids=lambda param: f"rwkv-{param[0]}-{param[1]}",
)
def crowded_chat(request, make_chat):
    """A model, and whether it gives the same bits in any batch and any chunks.

    Elsewhere the last digits differ, and may decide between two tokens that are as likely.
    """
    model, strategy = request.param
    exact = model != 6 and strategy == ON_CPU and build.library() is not None
    return make_chat(model, strategy=strategy, max_tokens=12, store=MemoryStateStore()), exact


async def test_conversations_in_a_crowd_are_what_each_is_alone(crowded_chat):
    chat, exact = crowded_chat
    chance = random.Random(0)

    async def converse(name: int) -> list[BaseMessage]:
        session, transcript = chat.with_session(f"user {name}"), []
        for turn in range(TURNS):
            human = HumanMessage(said_by(name, turn))
            await asyncio.sleep(chance.random() / 20)
            answer = await session.ainvoke([human], temperature=1.0, seed=name)
            transcript += [human, AIMessage(answer.content)]
        return transcript

    async def leave(name: int) -> None:
        task = asyncio.create_task(converse(name))
        await asyncio.sleep(chance.random() / 5)
        task.cancel()
        await asyncio.wait([task])

    leaving = asyncio.gather(*(leave(name) for name in range(CROWD, CROWD + 6)))
    transcripts = await asyncio.gather(*map(converse, range(CROWD)))
    await leaving
    engine = chat.loaded().engine
    assert engine.stats().active == engine.stats().queued == 0
    for name, transcript in enumerate(transcripts):
        head = chat.store.head(f"user {name}")
        assert_same(chat, chat.store.get(head), read_once(chat, transcript))
        if exact:
            alone = chat.with_session(f"alone {name}")
            for human, answer in zip(transcript[::2], transcript[1::2], strict=True):
                again = alone.invoke([human], temperature=1.0, seed=name)
                assert again.content == answer.content


def test_batch_answers_as_one_by_one(crowded_chat):
    chat, exact = crowded_chat
    texts = [said_by(name, 0) for name in range(CROWD)]
    for text, answer in zip(texts, chat.batch(texts), strict=True):
        human = HumanMessage(text)
        state = chat.store.get(answer.response_metadata["rwkv_state"])
        assert_same(chat, state, read_once(chat, [human, AIMessage(answer.content)]))
        if exact:
            assert chat.invoke([human]).content == answer.content
