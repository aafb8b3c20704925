"""Lets a thousand conversations come and go at random, and compares each with itself alone.

The built-in model, greedy, sessions on disk, fewer slots than conversations; a tenth is given up at
a random point. Every answer must be that of the same conversation alone. A difference is excused
only where the two best logits at the first differing token are nearer to each other than rounding
may move them, and such cases are counted. Arrivals are bounded: what waits
holds memory, so that a queue that grows would look like a leak.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil
import torch
from langchain_core.messages import AIMessageChunk, HumanMessage

from benchmarks import values
from benchmarks.cases import other_turn
from langchain_rwkv_state import ChatRWKV, DiskStateStore, MemoryStateStore
from langchain_rwkv_state.loaded import Loaded
from langchain_rwkv_state.prompt.plan import ids_of
from langchain_rwkv_state.toolbox.recall.values import FACTS, KINDS

MAX_TOKENS = 48
NEAR = 1e-3  # between the two best logits
_CANCELLED_SHARE = 0.1
_CROWDING = 2.0  # arrivals a second, over what one at a time can answer
_OPEN_AT_ONCE = 3  # conversations under way, over the slots; those that come then wait outside
_RSS_AT = (0.25, 1.0)  # shares of the conversations that are over


@dataclass
class Plan:
    """One conversation.

    Attributes:
        said: What is said, turn by turn.
        arrives_after: Seconds since the one before.
        given_up: The turn that is given up, and after how many pieces of its answer and how many
            seconds; ``None`` where it is held to its end.
    """

    said: list[str]
    arrives_after: float = 0.0
    given_up: tuple[int, int, float] | None = None


@dataclass
class Storm:
    """What came of it.

    Attributes:
        conversations: Number of them.
        cancelled: How many were given up.
        answers: Answers that could be compared.
        same: Answers that are those of the conversation alone.
        near_ties: Answers that differ where two logits are as good as equal.
        wrong: Differing answers, what was said and both texts.
        first_token_seconds: Of each answered turn.
        whole_seconds: Likewise.
        rss_bytes: When a quarter and when all were over.
        seconds: For all.
        alone_seconds: For the same conversations one after another, in memory.
        arrivals_a_second: Their mean rate.
    """

    conversations: int
    cancelled: int = 0
    answers: int = 0
    same: int = 0
    near_ties: int = 0
    wrong: list[str] = field(default_factory=list)
    first_token_seconds: list[float] = field(default_factory=list)
    whole_seconds: list[float] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    alone_seconds: float = 0.0
    arrivals_a_second: float = 0.0


def plans(number: int, turns: int) -> list[Plan]:
    """Returns conversations: a fact, other turns, and the question for it."""
    rng, made = Random("storm"), []
    for index in range(number):
        kind = KINDS[index % len(KINDS)]
        tell, ask = FACTS[kind]
        others = [other_turn(rng, kind) for _ in range(turns - 2)]
        plan = Plan([tell.format(v=values.value(rng, kind)), *others, ask])
        plan.arrives_after = rng.expovariate(1.0)
        if rng.random() < _CANCELLED_SHARE:
            plan.given_up = (rng.randrange(turns), rng.randrange(8), rng.random() * 0.05)
        made.append(plan)
    return made


def storm(
    directory: str, strategy: str, threads: int, number: int, slots: int, turns: int
) -> Storm:
    """Holds the conversations alone, then as a crowd, and compares.

    Args:
        directory: For the store.
        strategy: How the built-in model runs.
        threads: Of PyTorch.
        number: Of conversations.
        slots: Of the engine.
        turns: Of each conversation, at least 2.
    """
    torch.set_num_threads(threads)
    planned, found = plans(number, turns), Storm(number)
    start = time.perf_counter()
    alone = _alone(planned, strategy)
    found.alone_seconds = time.perf_counter() - start
    found.arrivals_a_second = _CROWDING * number / found.alone_seconds
    chat = ChatRWKV(
        model="demo",
        strategy=strategy,
        store=DiskStateStore(Path(directory) / "storm"),
        temperature=0,
        max_tokens=MAX_TOKENS,
        slots=slots,
        prefix_cache=False,
    )
    try:
        start = time.perf_counter()
        room = _OPEN_AT_ONCE * slots
        crowd = asyncio.run(_Crowd(chat, planned, found, room).hold())
        found.seconds = time.perf_counter() - start
        for plan, theirs, ours in zip(planned, alone, crowd, strict=True):
            _compare(chat.loaded(), plan.said, theirs, ours, found)
    finally:
        chat.unload()
    return found


def _alone(planned: list[Plan], strategy: str) -> list[list[str]]:
    store = MemoryStateStore()
    chat = ChatRWKV(
        model="demo",
        strategy=strategy,
        store=store,
        temperature=0,
        max_tokens=MAX_TOKENS,
        prefix_cache=False,
    )
    answers = []
    for plan in planned:
        session = chat.with_session("alone")
        answers.append([str(session.invoke(text).text) for text in plan.said])
        store.delete_session("alone")
    chat.unload()
    return answers


class _Crowd:
    """The conversations at once, as they arrive.

    Args:
        chat: The model.
        planned: The conversations.
        found: Takes the measures.
        room: Conversations under way at most.
    """

    def __init__(self, chat: ChatRWKV, planned: list[Plan], found: Storm, room: int) -> None:
        self._chat, self._planned, self._found = chat, planned, found
        self._room = asyncio.Semaphore(room)
        self._over = 0
        self._looks = [round(share * len(planned)) for share in _RSS_AT]

    async def hold(self) -> list[list[str]]:
        """Returns the answers of each conversation, as far as it went."""
        tasks = []
        for number, plan in enumerate(self._planned):
            await asyncio.sleep(plan.arrives_after / self._found.arrivals_a_second)
            await self._room.acquire()
            tasks.append(asyncio.create_task(self._converse(number, plan)))
        return await asyncio.gather(*tasks)

    async def _converse(self, number: int, plan: Plan) -> list[str]:
        try:
            return await self._turns(number, plan)
        finally:
            self._room.release()

    async def _turns(self, number: int, plan: Plan) -> list[str]:
        session, answers = self._chat.with_session(f"storm {number}"), []
        for turn, text in enumerate(plan.said):
            stream = session.astream(text)
            if plan.given_up and plan.given_up[0] == turn:
                self._found.cancelled += 1
                await self._give_up(stream, plan.given_up[1], plan.given_up[2])
                break
            answers.append(await self._answer(stream))
        self._over += 1
        if self._over in self._looks:
            self._found.rss_bytes.append(psutil.Process().memory_info().rss)
        return answers

    async def _answer(self, stream: AsyncIterator[AIMessageChunk]) -> str:
        start, first, texts = time.perf_counter(), None, []
        async for chunk in stream:
            first = first or time.perf_counter()
            texts.append(str(chunk.text))
        end = time.perf_counter()
        self._found.first_token_seconds.append((first or end) - start)
        self._found.whole_seconds.append(end - start)
        return "".join(texts)

    async def _give_up(
        self, stream: AsyncIterator[AIMessageChunk], pieces: int, seconds: float
    ) -> None:
        """Leaves a stream after some pieces of text, or its task after some time."""

        async def read() -> None:
            taken = 0
            async with aclosing(stream) as open_stream:  # type: ignore[type-var]
                async for _ in open_stream:
                    taken += 1
                    if taken >= pieces:
                        return

        task = asyncio.create_task(read())
        await asyncio.wait([task], timeout=None if pieces else seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _compare(
    loaded: Loaded, said: list[str], alone: list[str], crowd: list[str], found: Storm
) -> None:
    for turn, (theirs, ours) in enumerate(zip(alone, crowd, strict=False)):
        found.answers += 1
        if theirs == ours:
            found.same += 1
        elif _near_tie(loaded, said[: turn + 1], alone[:turn], theirs, ours):
            found.near_ties += 1
            return  # from here on they are two conversations
        else:
            found.wrong.append(f"{said[turn]!r}: {ours!r}, alone {theirs!r}")
            return


def _near_tie(loaded: Loaded, said: list[str], answers: list[str], theirs: str, ours: str) -> bool:
    """Says whether two answers part where the two best logits are as good as equal."""
    template, state = loaded.template, loaded.zero
    for turn, text in enumerate(said):
        asked = template.segments([HumanMessage(text)], start=turn == 0, answer=True)
        logits, state = loaded.runtime.forward(ids_of(asked), state)
        if turn < len(answers):
            ids = template.answer_ids(answers[turn])
            _, state = loaded.runtime.forward(ids, state)
    one, other = template.answer_ids(theirs), template.answer_ids(ours)
    for ours_id, their_id in zip(one, other, strict=False):
        if ours_id != their_id:
            break
        logits, state = loaded.runtime.forward([ours_id], state)
    best = logits.topk(2).values
    return bool(best[0] - best[1] < NEAR)
