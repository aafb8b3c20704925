"""What the prefix cache saves of a prompt that ends with what is not settled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from langchain_rwkv_state.engine import Done, Engine, Request, Thought
from langchain_rwkv_state.prefix_cache import PrefixStateCache
from langchain_rwkv_state.prompt.plan import Reading
from langchain_rwkv_state.reuse import launch
from tests.helpers.fake_runtime import FakeRuntime
from tests.helpers.scripted import GREEDY, WORLD

TURN = [0, *WORLD.encode("System: " + "Some rules to keep. " * 20), 261]
BEFORE = [*TURN, *WORLD.encode("User: Hi"), 261, *WORLD.encode("Assistant:")]
THINKS = [*BEFORE, *WORLD.encode(" <think")]


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime(65_536)


@pytest.fixture
def engine(runtime: FakeRuntime) -> Iterator[Engine]:
    engine = Engine(runtime, WORLD)
    yield engine
    engine.close()


def ask(
    runtime: FakeRuntime, engine: Engine, cache: PrefixStateCache, prompt: list[int], **more: Any
) -> tuple[Done, int]:
    """Answers through the cache; returns the end, and how many ids were reused."""
    zero = runtime.zero_state()
    reading = Reading(zero, None, tuple(prompt), ends=(len(TURN), len(BEFORE)))
    request = Request(
        zero,
        prompt,
        max_tokens=9,
        sampling=GREEDY,
        stop_ids=WORLD.eos_ids,
        canonical=lambda text: WORLD.encode(f" {text}") if text else [],
        **more,
    )
    flight = launch(engine, request, reading, cache=cache)
    done = flight.ticket.result()
    flight.landed(done)
    return done, flight.reused


def test_what_is_settled_is_reused_and_the_opened_thought_is_not(runtime, engine):
    runtime.script(THINKS, [*WORLD.encode("> Hm.</think> Yes"), 0])
    runtime.script(BEFORE, [*WORLD.encode(" No"), 0])
    cache = PrefixStateCache()
    special = {"settled": BEFORE, "thought": Thought(">", "</think>")}
    first, reused = ask(runtime, engine, cache, THINKS, **special)
    assert (first.text, first.thought, reused) == ("Yes", "Hm.", 0)
    again, reused = ask(runtime, engine, cache, THINKS, **special)
    assert (again.text, again.thought, again.state) == ("Yes", "Hm.", first.state)
    assert len(TURN) <= reused <= len(BEFORE)
    ids = [*BEFORE, *WORLD.encode(" Yes")]
    assert first.state == FakeRuntime(65_536).forward(ids, runtime.zero_state())[1]
    # The next turn begins where the answer ended, without its thought.
    following = [*ids, 261, *WORLD.encode("User: So?"), 261, *WORLD.encode("Assistant:")]
    assert ask(runtime, engine, cache, following)[1] == len(ids)
    assert ask(runtime, engine, cache, BEFORE)[0].text == "No"
