"""Recordings, on cards that a stand-in plays: what is recorded, what fails, what is left of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from langchain_rwkv_state.runtime.cuda import recordings as module
from langchain_rwkv_state.runtime.cuda.cells import Cells
from langchain_rwkv_state.runtime.cuda.kernels import Heads, PlainKernels
from langchain_rwkv_state.runtime.cuda.recordings import Recordings, Step, captures, padded, sizes
from langchain_rwkv_state.runtime.cuda.spans import Spans
from langchain_rwkv_state.runtime.native.weights import Lora, Norm
from langchain_rwkv_state.state import StateLayout
from tests.helpers.cuda_stand_in import CudaError, StandIn, lint


class Adder:
    """A model whose step adds what a slot reads to what is in its cell, into another cell.

    Args:
        cards: The stand-in.
        most: Most slots of a step.
        card: Where it lives.
        amiss: Called in each step with its size.
    """

    def __init__(
        self,
        cards: StandIn,
        most: int = 4,
        card: int = 0,
        amiss: Callable[[int], None] = lambda size: None,
        **options: int,
    ) -> None:
        self.cards, self.card, self.amiss = cards, card, amiss
        self.device = torch.device("cuda", card)
        self.cells = torch.zeros(2 * most + 1)
        self.spare = 2 * most
        self.inputs: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self.out: dict[int, Tensor] = {}
        self.trials: list[int] = []
        self.eager: list[int] = []
        cards.holds(self.cells, card=card)
        capture = captures(self.device)
        assert capture is not None
        self.recordings = Recordings(
            capture,
            self.step_of,
            most=most,
            outputs=lambda size: [self.out[size]],
            **options,
        )

    def step_of(self, size: int) -> Step:
        self.trials.append(size)
        if size not in self.inputs:
            ids, before, after = (torch.zeros(size, dtype=torch.int64) for _ in range(3))
            self.inputs[size] = ids, before, after
            self.out[size] = torch.zeros(size)
            self.cards.holds(*self.inputs[size], self.out[size], card=self.card)
        ids, before, after = self.inputs[size]
        ids.fill_(1)
        before.fill_(0)
        after.fill_(self.spare)

        def step() -> None:
            self.eager.append(size)
            self.amiss(size)
            found = self.cells[before] + ids
            self.cells[after] = found
            self.out[size].copy_(found * 2)

        return step

    def read(self, reads: list[tuple[int, int, int]]) -> list[float]:
        """Reads ids from cells into others, and returns what came of each, twice."""
        size = self.recordings.prepare(len(reads))
        filled = [*reads, *[(0, self.spare, self.spare)] * (size - len(reads))]
        for tensor, numbers in zip(self.inputs[size], zip(*filled, strict=True), strict=True):
            tensor.copy_(torch.tensor(numbers))
        self.eager.clear()
        self.recordings.replay(len(reads))
        return self.out[size][: len(reads)].tolist()


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Two cards."""
    return StandIn(monkeypatch, cards=2)


def out_of_memory(at: set[int]) -> Callable[[int], None]:
    def amiss(size: int) -> None:
        if size in at:
            raise torch.OutOfMemoryError(f"CUDA out of memory at {size}")

    return amiss


def test_sizes_are_few_and_near() -> None:
    assert sizes(1) == [1]
    assert sizes(9) == [1, 2, 4, 8, 16]
    assert sizes(130) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 96, 128, 160]
    found = sizes(400)
    for count in range(1, 401):
        assert padded(count) == min(size for size in found if size >= count)


def test_only_cuda_records() -> None:
    assert captures(torch.device("cpu")) is None
    assert captures(torch.device("cuda")) is not None


def test_recordings_do_what_the_step_does(cards: StandIn) -> None:
    model = Adder(cards, most=9)
    told: list[tuple[int, int]] = []
    with cards.watch():
        model.recordings.record_all(lambda done, total: told.append((done, total)))
        assert model.trials == [16, 8, 4, 2, 1]
        assert told == [(done, 5) for done in range(1, 6)]
        assert model.cells[:-1].tolist() == [0.0] * 18
        assert model.read([(5, 0, 1), (7, 2, 3), (1, 0, 4)]) == [10, 14, 2]
        assert model.read([(10, 1, 0)]) == [30]
        assert model.read([(1, 0, 5)] * 9) == [32] * 9
        assert model.cells[:6].tolist() == [15, 5, 0, 7, 1, 16]
    assert model.eager == []
    assert model.recordings.failed == {}


def test_a_size_is_recorded_at_its_first_use(cards: StandIn) -> None:
    model = Adder(cards)
    assert model.read([(3, 0, 1), (4, 0, 2), (5, 0, 3)]) == [6, 8, 10]
    assert (model.recordings.recorded, model.eager) == ([4], [])


def test_a_step_of_too_many_slots_is_refused(cards: StandIn) -> None:
    with pytest.raises(ValueError, match=r"1 to 4 slots, got 5"):
        Adder(cards).recordings.prepare(5)


def test_each_card_records_on_a_stream_of_its_own(
    cards: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[Any] = []
    make = torch.cuda.CUDAGraph

    def keep() -> Any:
        graphs.append(make())
        return graphs[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", keep)
    models = [Adder(cards, card=card) for card in (0, 1)]
    for model in models:
        model.recordings.record_all()
        assert model.read([(3, 0, 1)]) == [6]
    assert cards.captured == [0] * 3 + [1] * 3
    assert cards.card_of(None) == 0
    with pytest.raises(CudaError, match="another card"):
        graphs[-1].replay()


def test_two_models_that_record_at_once_are_both_recorded(cards: StandIn) -> None:
    meeting = threading.Barrier(2, timeout=10)
    models: list[Adder] = []
    streams = []

    def live(card: int) -> None:
        model = Adder(cards, card=card)
        models.append(model)
        meeting.wait()
        model.recordings.record_all()
        assert model.read([(3, 0, 1)]) == [6]
        streams.append(cards.current_stream(card).is_default)

    threads = [threading.Thread(target=live, args=(0,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [model.recordings.recorded for model in models] == [[1, 2, 4]] * 2
    assert streams == [True, True]


def test_out_of_memory_at_one_size_leaves_the_others(
    cards: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    model = Adder(cards, most=8, amiss=out_of_memory({8, 2}))
    model.recordings.record_all()
    assert model.recordings.recorded == [1, 4]
    assert model.recordings.failed.keys() == {2, 8}
    assert "out of memory at 2" in model.recordings.failed[2]
    assert caplog.text.count("Steps of 2, 8 slots are not recorded") == len(caplog.records) == 1
    # The next larger recording serves.
    assert model.read([(3, 0, 1), (4, 0, 2)]) == [6, 8]
    assert model.eager == []
    # There is none larger: eagerly.
    model.amiss = out_of_memory(set())
    assert model.read([(3, 0, 1)] * 7) == [6] * 7
    assert model.eager == [8]
    assert len(caplog.records) == 1


def test_a_failed_size_is_tried_again_later_and_ever_more_rarely(
    cards: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    model = Adder(cards, most=2, amiss=out_of_memory({2}), retry_after=3)
    model.recordings.record_all()
    model.trials.clear()
    tries = []
    for use in range(30):
        model.recordings.prepare(2)
        tries += [use] * len(model.trials)
        model.trials.clear()
    assert tries == [3, 10, 23]
    model.amiss = out_of_memory(set())
    for _ in range(30):
        assert model.read([(1, 0, 1), (2, 0, 2)]) == [2, 4]
    assert model.recordings.recorded == [1, 2]
    assert (model.recordings.failed, model.eager) == ({}, [])
    assert len(caplog.records) == 1


@pytest.mark.parametrize("when", ["warm-up", "second run", "capture", "end"])
def test_after_a_failure_everything_is_as_it_was(cards: StandIn, when: str) -> None:
    """The thread's stream and card, the lock, the stream for captures, and what is in the cells."""

    def amiss(size: int) -> None:
        captures = cards.current_stream().graph
        if when == "warm-up" and captures is None:
            raise RuntimeError("failed")
        if when == "second run" and next(runs) == 2:  # after the eager one and the first warm-up
            raise RuntimeError("failed")
        if when == "capture" and captures is not None:
            raise RuntimeError("failed")
        if when == "end" and captures is not None:
            torch.tensor([1.0]).item()  # which no capture allows

    runs = iter(range(99))
    model = Adder(cards, card=1, most=2, retry_after=0)
    model.recordings.prepare(2)
    model.amiss = amiss
    with cards.watch(), torch.cuda.device(1):
        model.recordings.record_all()
        model.cells[model.spare] = 0.0  # waits for what was begun on another stream
    assert model.recordings.recorded == [2]
    named = {"end": "stream is capturing: lift_fresh"}.get(when, "failed")
    assert model.recordings.failed[1].endswith(named)
    with torch.cuda.device(0):
        model.recordings.prepare(1)
        assert cards.card_of(None) == 0
    assert all(cards.current_stream(card).is_default for card in (0, 1))
    assert not module.capturing.locked()
    assert cards._capturing is None
    assert model.cells[:-1].tolist() == [0.0] * 4
    model.amiss = lambda size: None
    assert model.read([(3, 0, 1)]) == [6]
    assert (model.recordings.recorded, model.eager) == ([1, 2], [])


def test_a_recording_that_is_off_is_refused_for_good(
    cards: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    class Forgetful:
        def __call__(self, step: Step) -> Step:
            return lambda: None

    model = Adder(cards, most=1, retry_after=0)
    model.recordings._capture = Forgetful()
    for _ in range(5):
        assert model.read([(3, 0, 1)]) == [6]
        assert model.eager == [1]
    assert model.trials == [1]
    assert "differs from the eager step's" in model.recordings.failed[1]
    assert len(caplog.records) == 1


def test_a_replay_of_memory_that_is_gone_is_found_out(cards: StandIn) -> None:
    """What the tests here rest on: the stand-in's graphs know addresses alone."""
    for change in ("freed", "moved"):
        model = Adder(cards, most=1)
        model.recordings.record_all()
        if change == "freed":
            model.cells = torch.zeros(3)
        else:
            model.cells.untyped_storage().resize_(1 << 20)
        with pytest.raises(CudaError, match=change):
            model.read([(3, 0, 1)])


def test_idle_and_other_work_leave_recordings_alone(cards: StandIn) -> None:
    """Cells are made once: nothing grows, and no recording is made anew."""
    model = Adder(cards, most=16)
    model.recordings.record_all()
    made = len(cards.captured)
    for count in (1, 3, 12, 16, 1):
        assert model.read([(3, 0, 1)] * count) == [6] * count
    assert len(cards.captured) == made == len(sizes(16))


# -- what a step may do ------------------------------------------------------------------------


class Layer:
    """A time-mix in plain PyTorch over one id in each of 4 slots.

    Args:
        device: Where; on the CPU its numbers are random.
    """

    def __init__(self, device: str) -> None:
        layout = StateLayout.of(7, n_layer=1, n_embd=64, head_size=32)
        random = torch.Generator().manual_seed(0)

        def some(*shape: int) -> Tensor:
            return (torch.randn(shape, generator=random) * 0.3).to(device)

        norm = Norm(some(64), some(64))
        lora = Lora(some(8, 64), some(64, 8), some(64))
        heads = Heads(some(64), some(64), some(64), norm)
        kernels = PlainKernels()
        products = kernels.products(some(64, 64), some(64, 64), some(64, 64))
        low_rank = kernels.low_rank(lora, lora, lora, lora)
        emb, lerp, v_first = some(300, 64), some(6, 64), some(4, 64)
        self.cells = Cells(layout, 8, torch.device(device))
        self.before, self.after, self.ids, self.slot, self.last = (
            torch.zeros(4, dtype=torch.int32, device=device) for _ in range(5)
        )
        at = Spans.of_each(self.before, self.after)
        self.out = torch.zeros(4, 64, device=device)

        def step() -> None:
            x = kernels.embed(emb, self.ids, self.slot, self.last)
            x, mixed = kernels.mix(x, None, norm, lerp, self.cells.att_x[0], at)
            wkv = self.cells.wkv[0]
            found = kernels.time_mix(products(mixed[:3]), low_rank(mixed), v_first, heads, wkv, at)
            self.out.copy_(found)

        self.step = step


def test_a_layer_of_the_pass_neither_waits_nor_copies() -> None:
    assert len(lint(Layer("meta").step)) > 20


def test_a_layer_of_the_pass_is_recorded(cards: StandIn) -> None:
    recorded, eager = Layer("cpu"), Layer("cpu")
    cells = recorded.cells
    cards.holds(cells.att_x, cells.ffn_x, cells.wkv, recorded.out, recorded.before, recorded.after)
    capture = captures(torch.device("cuda"))
    assert capture is not None
    recorded.before[:] = torch.arange(4)
    recorded.after[:] = cells.spare
    recordings = Recordings(
        capture, lambda size: recorded.step, most=4, outputs=lambda size: [recorded.out]
    )
    assert recordings.prepare(4) == 4
    for turn in range(3):
        for layer in (recorded, eager):
            layer.before[:] = torch.tensor([0, 3, 4, 7])[torch.arange(4) - turn]
            layer.after[:] = torch.tensor([1, 2, 5, 6])[torch.arange(4) - 2 * turn]
            layer.ids[:] = torch.arange(4) + 10 * turn
        recordings.replay(4)
        eager.step()
        assert torch.equal(recorded.out, eager.out)
        for cell in range(8):
            assert torch.equal(cells.wkv[:, cell], eager.cells.wkv[:, cell])
            assert torch.equal(cells.att_x[:, cell], eager.cells.att_x[:, cell])
    assert cells.wkv[0, 1].any()
    assert recordings.recorded == [4]


@pytest.mark.parametrize(
    ("amiss", "message"),
    [
        (lambda x: x.sum().item(), "waits for the device"),
        (lambda x: x[x > 0], "waits for the device"),
        (lambda x: x + torch.zeros(4), "outside the device"),
        (lambda x: x.copy_(torch.tensor([1.0] * 4)), "outside the device"),
    ],
)
def test_the_lint_finds_what_a_step_may_not_do(
    amiss: Callable[[Tensor], object], message: str
) -> None:
    x = torch.empty(4, device="meta")
    assert lint(lambda: x.mul_(2).add(1)) == ["mul_", "add"]
    with pytest.raises(CudaError, match=message):
        lint(lambda: amiss(x))
