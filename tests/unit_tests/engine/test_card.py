"""An engine over a model on a card: it answers as one over the CPU does, a step ahead."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from langchain_rwkv_state.engine import Done, Engine, Request, Sampling
from langchain_rwkv_state.runtime.handle import RuntimeHandle
from tests.helpers.card import card_runtime, host_runtime
from tests.helpers.cuda_stand_in import StandIn
from tests.helpers.scripted import WORLD

VOCAB = 65_536
SHAPE = {"n_embd": 64, "head_size": 32, "vocab": VOCAB}


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn(monkeypatch)


def requests(runtime: RuntimeHandle, count: int) -> list[Request]:
    chance = random.Random(3)
    zero = runtime.zero_state()
    return [
        Request(
            zero,
            [chance.randrange(1, 60_000) for _ in range(chance.choice([1, 2, 17, 40]))],
            max_tokens=chance.choice([0, 1, 2, 9, 14]),
            sampling=chance.choice(
                [
                    Sampling(temperature=0),
                    Sampling(top_p=0.3, seed=number),
                    Sampling(top_p=0.8, presence_penalty=1, frequency_penalty=0.5, seed=number),
                ]
            ),
            stop=chance.choice([(), ("e",)]),
            stop_ids=frozenset({0}),
            checkpoints=(1,) if number % 3 else (),
        )
        for number in range(count)
    ]


def answers(runtime: RuntimeHandle, count: int, **settings: int) -> Iterator[Done]:
    engine = Engine(runtime, WORLD, **settings)
    try:
        handles = [engine.submit(request) for request in requests(runtime, count)]
        for handle in handles:
            yield handle.result()
    finally:
        engine.close()


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one.float() - other.float()).abs().max() < 1e-3)


def test_a_crowd_gets_on_a_card_what_it_gets_on_the_cpu(cards: StandIn) -> None:
    ours = answers(card_runtime(**SHAPE), 24, slots=5)
    theirs = answers(host_runtime(**SHAPE), 24, slots=5)
    for found, expected in zip(ours, theirs, strict=True):
        assert found.text == expected.text
        assert found.answer_ids == expected.answer_ids
        assert found.state.derivation == expected.state.derivation
        for name in expected.state:
            assert near(found.state[name], expected.state[name])
        for one, other in zip(found.checkpoints, expected.checkpoints, strict=True):
            assert all(near(one[name], other[name]) for name in other)
