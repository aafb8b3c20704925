"""An engine over a model on a card: it answers as one over the CPU does, a step ahead."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from langchain_rwkv_state.engine import Done, Engine, Limits, Request, Sampling
from langchain_rwkv_state.engine import engine as engine_module
from langchain_rwkv_state.errors import EngineError
from langchain_rwkv_state.runtime.cuda import recordings
from langchain_rwkv_state.runtime.cuda import room as room_module
from langchain_rwkv_state.runtime.cuda.chosen import ChosenKernels
from langchain_rwkv_state.runtime.cuda.kernels import PlainKernels
from langchain_rwkv_state.runtime.cuda.model import CudaModel
from langchain_rwkv_state.runtime.cuda.recordings import CudaGraphs
from langchain_rwkv_state.runtime.cuda.room import Room
from langchain_rwkv_state.runtime.cuda.sampling import SamplerArrays
from langchain_rwkv_state.runtime.handle import RuntimeHandle
from langchain_rwkv_state.runtime.sampling import SamplerState
from langchain_rwkv_state.tokenizer import WorldTokenizer
from tests.helpers.card import card_runtime, greedy, host_runtime
from tests.helpers.cuda_stand_in import StandIn
from tests.helpers.scripted import WORLD
from tests.helpers.watch import wait_until

VOCAB = 65_536


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


def answers(runtime: RuntimeHandle, count: int, *, slots: int, **settings: Any) -> Iterator[Done]:
    engine = Engine(runtime, WORLD, slots=slots)
    try:
        asked = [replace(request, **settings) for request in requests(runtime, count)]
        handles = [engine.submit(request) for request in asked]
        for handle in handles:
            yield handle.result()
    finally:
        engine.close()


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one.float() - other.float()).abs().max() < 1e-3)


def likely(done: Done) -> list[tuple[int, Any]]:
    """How likely the answer's tokens were, to be compared with another's."""
    assert done.logprobs is not None
    return [(each.id, pytest.approx(each.logprob, abs=1e-3)) for each in done.logprobs]


def test_a_crowd_gets_on_a_card_what_it_gets_on_the_cpu(cards: StandIn) -> None:
    ours = answers(card_runtime(vocab=VOCAB), 24, slots=5, logprobs=0)
    theirs = answers(host_runtime(vocab=VOCAB), 24, slots=5, logprobs=0)
    for found, expected in zip(ours, theirs, strict=True):
        assert found.text == expected.text
        assert found.answer_ids == expected.answer_ids
        assert [(each.id, each.logprob) for each in found.logprobs or ()] == likely(expected)
        assert found.state.derivation == expected.state.derivation
        for name in expected.state:
            assert near(found.state[name], expected.state[name])
        for one, other in zip(found.checkpoints, expected.checkpoints, strict=True):
            assert all(near(one[name], other[name]) for name in other)


def watched(cards: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the stand-in watch the engine's worker, and what a room has on its card."""
    monkeypatch.setattr(recordings, "captures", lambda device: CudaGraphs(torch.device("cuda:0")))
    monkeypatch.setattr(room_module, "_WARM_LENGTHS", (2, 3))  # for a compiler that is not here
    work, made, static = Engine._work, CudaModel._made, Room._static_of

    def watch(engine: Engine) -> None:
        with cards.watch():
            work(engine)

    def hold(model: CudaModel, *args: Any, **kwargs: Any) -> Room:
        room = made(model, *args, **kwargs)
        for owner in (room, room.cells, room.samplers):
            cards.holds(*(each for each in vars(owner).values() if isinstance(each, torch.Tensor)))
        return room

    def hold_static(room: Room, size: int) -> Any:
        found = static(room, size)
        cards.holds(found.inputs, found.out)
        return found

    monkeypatch.setattr(Engine, "_work", watch)
    monkeypatch.setattr(CudaModel, "_made", hold)
    monkeypatch.setattr(Room, "_static_of", hold_static)


def test_nothing_is_read_before_it_is_there(
    cards: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"sampling": Sampling(temperature=0), "logprobs": 1}
    expected = [*answers(host_runtime(vocab=VOCAB), 16, slots=4, **settings)]
    watched(cards, monkeypatch)
    runtime = card_runtime(kernels=ChosenKernels(PlainKernels(), greedy), vocab=VOCAB)
    model = runtime._open()
    assert isinstance(model, CudaModel)
    found = [*answers(runtime, 16, slots=4, **settings)]
    assert [each.answer_ids for each in found] == [each.answer_ids for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert [(each.id, each.logprob) for each in one.logprobs or ()] == likely(other)
    assert model._room is not None
    assert model._room.recordings is not None
    assert model._room.recordings.recorded == [1, 2, 4]
    assert not model.fallbacks


def test_a_request_that_fails_as_its_prompt_is_read_keeps_no_slot(cards: StandIn) -> None:
    def fail(at: int, end: int) -> None:
        raise ValueError("in the callback")

    runtime = card_runtime(vocab=VOCAB)
    engine = Engine(runtime, WORLD, slots=2)
    asked = Request(runtime.zero_state(), [1, 2, 3, 4], checkpoints=(1, 2, 3), on_progress=fail)
    with pytest.raises(EngineError, match="in the callback"):
        engine.submit(asked).result()
    wait_until(lambda: len(engine._slots._free) == engine._slots.slots.count)
    assert not engine._slots._snapshots
    engine.close()


def test_slots_that_were_opened_for_nobody_are_closed_with_their_engine(cards: StandIn) -> None:
    engine = Engine(card_runtime(vocab=VOCAB), WORLD, slots=2)
    engine.open()
    assert engine.stats().slots == 2
    engine.limits = Limits(slots=3)
    engine.open()
    assert engine.stats().slots == 3
    engine.close()
    assert not engine.stats().slots


def test_no_thread_is_left_when_there_is_nothing_to_do(
    cards: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_IDLE_SECONDS", 0.05)
    before = set(threading.enumerate())
    runtime = card_runtime(vocab=VOCAB)
    engine = Engine(runtime, WORLD)
    for _ in range(2):
        asked = Request(runtime.zero_state(), [1], max_tokens=2)
        assert engine.submit(asked).result().answer_tokens == 2
        wait_until(lambda: set(threading.enumerate()) == before)
    engine.close()


class _Spelt(WorldTokenizer):
    """Another tokenizer, as far as anybody knows."""

    identity = "0123456789ab"


@pytest.mark.parametrize(("tokenizer", "loads"), [(WorldTokenizer(), 1), (_Spelt(), 0)])
def test_the_card_chooses_for_an_equal_tokenizer_whichever_object_it_is(
    cards: StandIn, monkeypatch: pytest.MonkeyPatch, tokenizer: WorldTokenizer, loads: int
) -> None:
    loaded, load = [], SamplerArrays.load

    def count(arrays: SamplerArrays, slot: int, state: SamplerState) -> None:
        loaded.append(slot)
        load(arrays, slot, state)

    monkeypatch.setattr(SamplerArrays, "load", count)
    runtime = card_runtime(vocab=VOCAB)
    engine = Engine(runtime, WORLD)
    asked = Request(runtime.zero_state(), [1], max_tokens=5, tokenizer=tokenizer)
    assert engine.submit(asked).result().answer_tokens == 5
    assert len(loaded) == loads
    engine.close()
