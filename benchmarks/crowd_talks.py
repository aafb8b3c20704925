"""Times conversations at once and one after another, and what LangChain costs in a crowd.

The same turns go four ways: sessions on disk one conversation after the other; the same for all at
once under asyncio; a chat model at once without sessions; and requests straight to the engine. All
run in a process that `benchmarks.crowd` started for one strategy alone. Answers are greedy, of a
fixed number of tokens, to questions of one length.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import torch
from langchain_core.messages import HumanMessage

from benchmarks.conversation import THINGS
from langchain_rwkv_state import ChatRWKV, DiskStateStore
from langchain_rwkv_state.engine import Request, Sampling
from langchain_rwkv_state.prompt.markers import STATE_KEY, marker
from langchain_rwkv_state.prompt.plan import ids_of


@dataclass(frozen=True)
class Talked:
    """What came of some conversations.

    Attributes:
        seconds: For all of them.
        answers: Of each conversation, turn by turn.
    """

    seconds: float
    answers: list[list[str]]


def question(number: int, turn: int) -> str:
    """Returns what a conversation says in a turn; all are of one length in tokens."""
    first, second = THINGS[number % len(THINGS)], THINGS[(number + turn * 7 + 1) % len(THINGS)]
    return f"What do you think of the {first} and the {second}, are they good?"


class Talks:
    """One loaded model that conversations are held with.

    Args:
        model: A random model that speaks words.
        strategy: How it runs.
        directory: Of the store.
        turns: Of each conversation.
        answer_tokens: Of each answer.
    """

    def __init__(
        self, model: str, strategy: str, directory: str, turns: int, answer_tokens: int
    ) -> None:
        self._turns, self._answer_tokens = turns, answer_tokens
        self._names = itertools.count()
        self._chat = ChatRWKV(
            model=model,
            strategy=strategy,
            store=DiskStateStore(directory),
            temperature=0,
            max_tokens=answer_tokens,
            prefix_cache=False,
        )
        self._chat.invoke("Hello.")  # loads, and warms up

    def one_after_another(self, number: int) -> Talked:
        """Holds conversations in sessions, each when the one before is over."""
        answers, start = [], time.perf_counter()
        for talk in range(number):
            session = self._chat.with_session(f"alone {next(self._names)}")
            turns = range(self._turns)
            answers.append([str(session.invoke(question(talk, turn)).text) for turn in turns])
        return Talked(time.perf_counter() - start, answers)

    def sessions(self, number: int) -> Talked:
        """Holds conversations in sessions, all at once."""
        return self._at_once(number, self._in_session)

    def without_sessions(self, number: int) -> Talked:
        """Holds conversations through the chat model, all at once; nothing is committed."""
        return self._at_once(number, self._by_markers)

    def engine_alone(self, number: int) -> Talked:
        """Hands the same ids to the engine, all conversations at once."""
        return self._at_once(number, self._by_requests)

    def _at_once(
        self, number: int, talk: Callable[[int], Coroutine[Any, Any, list[str]]]
    ) -> Talked:
        async def all_of_them() -> list[list[str]]:
            return await asyncio.gather(*map(talk, range(number)))

        start = time.perf_counter()
        answers = asyncio.run(all_of_them())
        return Talked(time.perf_counter() - start, answers)

    async def _in_session(self, number: int) -> list[str]:
        session, answers = self._chat.with_session(f"crowd {next(self._names)}"), []
        for turn in range(self._turns):
            answer = await session.ainvoke(question(number, turn))
            answers.append(str(answer.text))
        return answers

    async def _by_markers(self, number: int) -> list[str]:
        answers, ref = [], None
        for turn in range(self._turns):
            message = HumanMessage(question(number, turn))
            said = [message] if ref is None else [marker(ref), message]
            answer = await self._chat.ainvoke(said)
            ref = answer.response_metadata[STATE_KEY]
            answers.append(str(answer.text))
        return answers

    async def _by_requests(self, number: int) -> list[str]:
        loaded = self._chat.loaded()
        template, state, answers = loaded.template, loaded.zero, []
        for turn in range(self._turns):
            said = [HumanMessage(question(number, turn))]
            request = Request(
                base=state,
                prompt=ids_of(template.segments(said, start=turn == 0, answer=True)),
                max_tokens=self._answer_tokens,
                sampling=Sampling(temperature=0),
                stop=tuple(template.stops),
                stop_ids=loaded.tokenizer.eos_ids,
                canonical=template.answer_ids,
            )
            done = await loaded.engine.submit(request).aresult()
            state = done.state
            answers.append(done.text)
        return answers


_TALKS: list[Talks] = []


def start(
    model: str, strategy: str, directory: str, threads: int, turns: int, answer_tokens: int
) -> None:
    """Loads the model in this process."""
    torch.set_num_threads(threads)
    _TALKS.append(Talks(model, strategy, directory, turns, answer_tokens))


def talk(way: str, number: int) -> Talked:
    """Holds so many conversations with the loaded model, in one of the ways of `Talks`."""
    held: Talked = getattr(_TALKS[0], way)(number)
    return held
