"""A model on a card: the CPU's numbers, states that stay where they are, and what is missing.

Where there is no card the plain kernels run on the CPU's memory, with a stand-in for streams and
graphs; with one, the same tests run on it, with what it really has.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from langchain_rwkv_state.engine import Sampling
from langchain_rwkv_state.engine.sampler import Sampler
from langchain_rwkv_state.errors import ModelLoadError, StateMismatch
from langchain_rwkv_state.runtime.cuda import room, sizing
from langchain_rwkv_state.runtime.cuda.cells import Cells, cell_bytes
from langchain_rwkv_state.runtime.cuda.chosen import ChosenKernels
from langchain_rwkv_state.runtime.cuda.model import CudaModel
from langchain_rwkv_state.runtime.cuda.slots import CudaSlots
from langchain_rwkv_state.runtime.handle import RuntimeHandle
from langchain_rwkv_state.runtime.slots import ChoosingSlots, Read
from langchain_rwkv_state.runtime.strategy import Stage
from langchain_rwkv_state.state import RWKVState
from tests.helpers.ahead_slots import AheadSlots
from tests.helpers.card import card_runtime, host_runtime
from tests.helpers.checkpoints import DEFAULT_VOCAB
from tests.helpers.cuda_stand_in import StandIn
from tests.helpers.devices import on_card
from tests.helpers.interpreter import Interpreter
from tests.helpers.scripted import GREEDY

Make = Callable[..., RuntimeHandle]


@pytest.fixture(params=["stand-in", on_card("cuda")])
def on_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes models on a card, or on what stands for one."""
    if request.param == "cuda":
        return lambda dtype="fp32", **shape: card_runtime(
            Stage("cuda", dtype), kernels=None, **shape
        )
    StandIn(monkeypatch)
    return lambda dtype="fp32", **shape: card_runtime(Stage("cpu", dtype), **shape)


def ids(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(DEFAULT_VOCAB, (count,), generator=generator).tolist()


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() < 1e-4)


def same(one: RWKVState, other: RWKVState) -> bool:
    return one.derivation == other.derivation and all(close(one[name], other[name]) for name in one)


def slots_of(runtime: RuntimeHandle, count: int) -> CudaSlots:
    slots = runtime.slots(count)
    assert isinstance(slots, CudaSlots)
    assert isinstance(slots, ChoosingSlots)
    return slots


def test_it_gives_the_numbers_of_the_cpu(on_device: Make) -> None:
    ours, theirs = on_device(), host_runtime()
    for count in (1, 5, 40):
        logits, state = ours.forward(ids(count), ours.zero_state())
        expected, after = theirs.forward(ids(count), theirs.zero_state())
        assert close(logits, expected)
        assert same(state, after)


def answered(slots: ChoosingSlots, zero: RWKVState) -> dict[str, Any]:
    """Reads two prompts in a step, and what is chosen behind them one by one, a step ahead."""
    slots.count_by("all", lambda: [1.0] * DEFAULT_VOCAB)
    for slot, sampling in enumerate(
        (Sampling(temperature=0), Sampling(top_p=0.9, frequency_penalty=0.5, seed=1))
    ):
        slots.put(slot, zero)
        slots.load_sampler(slot, Sampler(sampling).handed_over())
    step = slots.launch([Read(0, ids(20), choose=True), Read(1, ids(1), choose=True)])
    chosen = [[found.chosen for found in step.found()]]
    for _ in range(2):
        step = slots.launch([Read(slot, None, choose=True, logits=True) for slot in range(2)])
        for slot, token in enumerate(chosen[-1]):
            assert token is not None
            slots.confirm(slot, token)
        chosen.append([found.chosen for found in step.found()])
    logits = [torch.from_numpy(step.logits(slot)) for slot in range(2)]
    states = [slots.get(slot) for slot in range(2)]
    return {
        "chosen": chosen,
        "logits": logits,
        "states": [[state[name] for name in state] for state in states],
    }


def answered_by_kernels() -> dict[str, Any]:
    """The same with all that Triton interprets; for `Interpreter`."""
    from langchain_rwkv_state.runtime.cuda import sampling_kernels
    from langchain_rwkv_state.runtime.cuda.layer_kernels import TritonKernels

    kernels = ChosenKernels(TritonKernels(), sampling_kernels.sample, recordable=False)
    with pytest.MonkeyPatch.context() as patch:
        StandIn(patch)
        runtime = card_runtime(kernels=kernels)
        return answered(slots_of(runtime, 2), runtime.zero_state())


def test_with_all_its_kernels_it_answers_as_the_cpu_does(interpreter: Interpreter) -> None:
    pytest.importorskip("triton")
    host = host_runtime()
    ours = interpreter.run(answered_by_kernels)
    theirs = answered(AheadSlots(host, 2), host.zero_state())
    assert ours["chosen"] == theirs["chosen"]
    assert all(map(close, ours["logits"], theirs["logits"]))
    for one, other in zip(ours["states"], theirs["states"], strict=True):
        assert all(map(close, one, other))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_narrow_dtypes_stay_near(on_device: Make, dtype: str) -> None:
    ours, exact = on_device(dtype), host_runtime()
    logits, _ = ours.forward(ids(40), ours.zero_state())
    expected, _ = exact.forward(ids(40), exact.zero_state())
    assert (logits.softmax(0) - expected.softmax(0)).abs().max() < 0.02


def test_states_that_are_handed_in_come_back_read(on_device: Make) -> None:
    ours, theirs = on_device(), host_runtime()
    states = [theirs.forward(ids(4, seed), theirs.zero_state())[1] for seed in range(3)]
    for count in (3, 1, 2):
        rows = [ids(length, length) for length in (30, 1, CudaModel.budgets.most_rows + 3)][:count]
        logits, after = ours.forward_batch(rows, states[:count])
        expected, known = theirs.forward_batch(rows, states[:count])
        assert close(logits, expected)
        assert all(map(same, after, known))
    model = ours._open()
    assert isinstance(model, CudaModel)
    assert model._passing is not None
    assert model._passing.served == 3  # made once


def test_a_prompt_longer_than_a_pass_is_read_in_several(on_device: Make) -> None:
    ours, theirs = on_device(), host_runtime()
    long = CudaModel.budgets.most_rows + 7
    slots = slots_of(ours, 1)
    slots.put(0, ours.zero_state())
    expected, after = theirs.forward(ids(long), theirs.zero_state())
    assert close(slots.read([(0, ids(long))])[0], expected)
    assert same(slots.get(0), after)
    assert close(ours.forward(ids(long), ours.zero_state())[0], expected)


def test_crowds_of_changing_size_and_order_follow_the_cpu(on_device: Make) -> None:
    ours, expected = on_device(), host_runtime()
    pool = slots_of(ours, 6)
    alone: dict[int, RWKVState] = {}
    for slot in range(6):
        alone[slot] = expected.forward(ids(3 + slot, slot), expected.zero_state())[1]
        pool.put(slot, alone[slot])
    for turn, named in enumerate([[4, 0, 2], [5], [1, 2, 3, 0, 5], [3, 1, 4], [0, 1], [2, 5, 0]]):
        reads = [(slot, ids(9 if turn == 3 else 1, 10 * turn + slot)) for slot in named]
        logits = pool.read(reads)
        for row, (slot, tokens) in enumerate(reads):
            single, alone[slot] = expected.forward(tokens, alone[slot])
            assert close(logits[row], single)
    for slot, state in alone.items():
        assert same(pool.get(slot), state)


def test_copies_cost_no_cell_until_one_goes_on(on_device: Make) -> None:
    ours, theirs = on_device(), host_runtime()
    slots = slots_of(ours, 2)
    slots.put(0, ours.zero_state())
    slots.read([(0, ids(7))])
    free = slots._cells.free
    slots.copy(0, 2)
    slots.copy(2, 3)
    assert slots._cells.free == free
    slots.read([(0, [3])])
    _, after = theirs.forward(ids(7), theirs.zero_state())
    assert same(slots.get(2), after)
    assert same(slots.get(3), after)
    for slot in (0, 2, 3):
        slots.clear(slot)
    assert slots._cells.free == slots._cells.count


def test_states_are_left_at_marks_within_a_read(on_device: Make) -> None:
    ours, theirs = on_device(), host_runtime()
    slots = slots_of(ours, 2)
    slots.put(0, ours.zero_state())
    slots.put(1, ours.zero_state())
    step = slots.launch(
        [
            Read(0, ids(40), logits=True, marks=((1, 2), (16, 3))),
            Read(1, ids(3, 1), logits=True),
        ]
    )
    step.found()
    logits, after = theirs.forward(ids(40), theirs.zero_state())
    assert close(torch.from_numpy(step.logits(0)), logits)
    assert same(slots.get(0), after)
    for at, slot in ((1, 2), (16, 3)):
        assert same(slots.get(slot), theirs.forward(ids(40)[:at], theirs.zero_state())[1])


def test_what_is_read_ahead_is_taken_or_dropped(on_device: Make) -> None:
    ours, theirs = on_device(), host_runtime()
    slots = slots_of(ours, 1)
    slots.put(0, ours.zero_state())
    best = slots.launch([Read(0, ids(5), logits=True)]).found()[0].best
    _, before = theirs.forward(ids(5), theirs.zero_state())
    slots._room.samplers.last[0] = best
    ahead = slots.launch([Read(0, None, logits=True)])
    assert same(slots.get(0), before)
    slots.abandon(0)
    assert same(slots.get(0), before)
    again = slots.launch([Read(0, None, logits=True)])
    slots.confirm(0, best)
    expected, after = theirs.forward([best], before)
    for step in (ahead, again):
        step.found()
        assert close(torch.from_numpy(step.logits(0)), expected)
    assert same(slots.get(0), after)
    with pytest.raises(ValueError, match="read nothing ahead"):
        slots.confirm(0, best)


def test_what_is_read_ahead_is_settled_before_more_is_read(on_device: Make) -> None:
    ours = on_device()
    slots = slots_of(ours, 2)
    slots.put(0, ours.zero_state())
    slots.load_sampler(0, Sampler(GREEDY).handed_over())
    slots.launch([Read(0, [1], choose=True)])
    slots.launch([Read(0, None, choose=True)])
    free = slots._cells.free
    for ids in (None, [3]):
        with pytest.raises(ValueError, match="Slot 0 read ahead: confirm or abandon"):
            slots.launch([Read(0, ids, choose=True)])
    assert slots._cells.free == free
    slots.abandon(0)
    slots.launch([Read(0, [3])])


def test_a_state_is_that_of_its_moment_though_the_slot_goes_on(on_device: Make) -> None:
    ours = on_device()
    slots = slots_of(ours, 2)
    states = [ours.forward(ids(4, seed), ours.zero_state())[1] for seed in range(2)]
    for slot, state in enumerate(states):
        slots.put(slot, state)
    pending = [slots.begin_get(slot) for slot in range(2)]
    slots.read([(0, [7]), (1, [7])])
    slots.put(1, ours.zero_state())
    for finished, state in zip(pending, states, strict=True):
        found = finished()
        assert all(torch.equal(found[name], state[name]) for name in state)


def test_who_comes_next_finds_the_room_as_it_was_left(on_device: Make) -> None:
    ours = on_device()
    model = ours._open()
    assert isinstance(model, CudaModel)
    first = slots_of(ours, 2)
    room = first._room
    first.put(0, ours.zero_state())
    other = slots_of(ours, 2)
    assert other._room is not room  # two at once share nothing
    del first, other
    again = slots_of(ours, 2)
    assert again._room is room
    assert again._cells.free == again._cells.count
    del again
    assert slots_of(ours, 1)._room is not room


def test_two_that_open_slots_at_once_share_nothing(
    on_device: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = on_device()
    slots_of(ours, 2)  # whose room is there for one of them
    clear = Cells.clear

    def slow(cells: Cells) -> None:
        clear(cells)
        time.sleep(0.05)

    monkeypatch.setattr(Cells, "clear", slow)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: slots_of(ours, 2), range(2))
    assert one._room is not other._room


def test_what_makes_no_sense_is_refused_and_changes_nothing(on_device: Make) -> None:
    ours = on_device()
    slots = slots_of(ours, 1)
    slots.put(0, ours.zero_state())
    slots.put(1, ours.zero_state())
    with pytest.raises(ValueError, match="Slot 0 is empty"):
        slots_of(ours, 1).read([(0, [1])])
    with pytest.raises(ValueError, match="not in the model's vocabulary"):
        slots.read([(0, [DEFAULT_VOCAB])])
    with pytest.raises(ValueError, match="at most once"):
        slots.read([(0, [1]), (0, [2])])
    with pytest.raises(ValueError, match="2 slots are to read in a step of 1"):
        slots.launch([Read(0, [1]), Read(1, [1])])
    with pytest.raises(StateMismatch):
        slots.put(0, host_runtime(n_embd=128).zero_state())
    for wrong in ([], [DEFAULT_VOCAB], [1, -1]):
        with pytest.raises(ValueError, match=r"no tokens|vocabulary"):
            slots.launch([Read(0, wrong)])
    for marks in (((0, 1),), ((3, 1),), ((2, 1), (1, 7))):
        with pytest.raises(ValueError, match="reads 3 ids: marks are to be between"):
            slots.launch([Read(0, [1, 2, 3], marks=marks)])
    with pytest.raises(ValueError, match="at most once"):
        slots.launch([Read(0, [1, 2, 3], marks=((1, 0),))])
    with pytest.raises(ValueError, match="read nothing ahead"):
        slots.confirm(0, 1)
    assert same(slots.get(0), ours.zero_state())


def test_a_step_that_fails_leaves_every_state(
    on_device: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = on_device(), host_runtime()
    slots = slots_of(ours, 2)
    _, before = theirs.forward(ids(3), theirs.zero_state())
    slots.put(0, before)
    free = slots._cells.free
    run = slots._room._model.run

    def fails(*args: Any) -> torch.Tensor:
        run(*args)
        raise torch.OutOfMemoryError("no memory for the logits")

    with monkeypatch.context() as broken:
        broken.setattr(slots._room._model, "run", fails)
        with pytest.raises(torch.OutOfMemoryError):
            slots.read([(0, ids(20))])
    assert slots._cells.free == free
    assert same(slots.get(0), before)


def test_as_many_are_served_as_there_is_memory_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    StandIn(monkeypatch)
    runtime = card_runtime()
    model = runtime._open()
    assert isinstance(model, CudaModel)
    each = cell_bytes(model.layout)
    free = [0]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], free[0]))
    monkeypatch.setattr(sizing.PassShape, "reserve_bytes", 1_000_000)
    free[0] = int((1_000_000 + 14 * each) / 0.95) + 1
    with caplog.at_level(logging.WARNING):
        assert model._fitting(8) == 4
    assert "4 requests at once fit on the card, not the 8 asked for" in caplog.text
    free[0] = 900_000
    with pytest.raises(ModelLoadError, match="3 states of one request do not fit"):
        model._fitting(8)


def test_a_step_is_recorded_on_its_card_and_as_the_model_says_whatever_the_caller_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    StandIn(monkeypatch)
    made = slots_of(card_runtime(), 2)._room
    run, seen, entered = made._model.run, [], []

    def watched(*args: Any) -> torch.Tensor:
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return run(*args)

    def current(device: torch.device) -> nullcontext[None]:
        entered.append(device)
        return nullcontext()

    monkeypatch.setattr(made._model, "run", watched)
    monkeypatch.setattr(room, "current", current)
    with torch.autocast("cpu", torch.bfloat16):
        made._trial(2)()
    assert seen == [(False, False)]
    assert entered == [torch.device("cpu")]


def test_it_says_what_it_had_to_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_STATE_COMPILED", "0")
    chosen = ChosenKernels.of(torch.device("cpu"), 64, torch.float32, torch.float32)
    assert "switches the kernels and the recorded steps off" in chosen.fallbacks[0]
    assert not chosen.recordable
    monkeypatch.delenv("RWKV_STATE_COMPILED")
    pytest.importorskip("triton")
    chosen = ChosenKernels.of(torch.device("cpu"), 64, torch.float32, torch.float32)
    assert "the Triton kernels are not used" in chosen.fallbacks[0]
    StandIn(monkeypatch)
    assert card_runtime(kernels=chosen).fallbacks == chosen.fallbacks


def test_ids_that_no_tokenizer_knows_add_nothing_to_counts_as_on_the_host(on_device: Make) -> None:
    sampler = Sampler(Sampling(frequency_penalty=1))
    sampler.saw(7, b"")
    assert sampler.handed_over().counts.tolist() == [0]
    slots = on_device().slots(1)
    assert isinstance(slots, CudaSlots)
    slots.count_by("of ten", lambda: [1.0] * 10)
    counted = slots._room.samplers.counted
    assert counted[:10].tolist() == [1] * 10
    assert not counted[10:].any()
