"""What the native runtime does on a card: recorded decoding, copies beside the work, the kernel.

Everything but the recording and the copying themselves runs here without a card too: a recording
is replaced by calling the same work again on the same tensors, and the streams by a diary.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from langchain_rwkv_state.runtime import open_slots
from langchain_rwkv_state.runtime.checkpoint import Checkpoint
from langchain_rwkv_state.runtime.handle import RuntimeHandle
from langchain_rwkv_state.runtime.native import arrays as arrays_module
from langchain_rwkv_state.runtime.native import model as model_module
from langchain_rwkv_state.runtime.native.arrays import CudaArrays, StateArrays
from langchain_rwkv_state.runtime.native.graphs import Decode, Work, captures, padded
from langchain_rwkv_state.runtime.native.model import NativeModel
from langchain_rwkv_state.runtime.native.plain import _recurrence
from langchain_rwkv_state.runtime.native.recurrence import Places
from langchain_rwkv_state.runtime.strategy import Stage
from langchain_rwkv_state.state import RWKVState, StateLayout
from tests.helpers.checkpoints import DEFAULT_VOCAB, random_checkpoint
from tests.helpers.tokens import random_tokens, stepped

TOLERANCE = 1e-4
cuda = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


class Recorder:
    """Stands in for CUDA graphs: does the work a few times at recording, and again at replay."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.recorded = self.replayed = 0

    def __call__(self, work: Work) -> Work:
        if self.fails:
            raise RuntimeError("the card does not record today")
        self.recorded += 1
        for _ in range(3):
            work()

        def replay() -> torch.Tensor:
            self.replayed += 1
            return work()

        return replay


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Recordings on the CPU."""
    made = Recorder()
    monkeypatch.setattr(model_module, "captures", lambda device: made)
    return made


def native(device: str = "cpu", dtype: str = "fp32") -> RuntimeHandle:
    tensors = random_checkpoint(7, n_embd=64, head_size=32)
    checkpoint = Checkpoint.of(tensors, Path("random.pth"))
    model = NativeModel(tensors, checkpoint, Stage(device, dtype), compiled=False)
    return RuntimeHandle(model, lambda: None, name="random")


def ids(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(DEFAULT_VOCAB, (count,), generator=generator).tolist()


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() < TOLERANCE)


def same_state(one: RWKVState, other: RWKVState) -> bool:
    return one.derivation == other.derivation and all(close(one[name], other[name]) for name in one)


# -- recorded decoding -------------------------------------------------------------------------


def follow(runtime: RuntimeHandle, expected: RuntimeHandle) -> None:
    """Decodes crowds of changing size and order, with prefill between, beside `forward`."""
    pool = open_slots(runtime, 6)
    alone: dict[int, RWKVState] = {}
    for slot in range(6):
        alone[slot] = expected.forward(ids(3 + slot, slot), expected.zero_state())[1]
        pool.put(slot, alone[slot])
    rounds = [[4, 0, 2], [5], [1, 2, 3, 0, 5], [3, 1, 4], [0, 1], [2, 5, 0]]
    for turn, slots in enumerate(rounds):
        reads = [(slot, ids(9 if turn == 3 else 1, 10 * turn + slot)) for slot in slots]
        logits = pool.read(reads).clone()
        for row, (slot, tokens) in enumerate(reads):
            single, alone[slot] = expected.forward(tokens, alone[slot])
            assert close(logits[row], single)
        untouched = set(alone) - set(slots)
        assert all(same_state(pool.get(slot), alone[slot]) for slot in untouched)
    for slot, state in alone.items():
        assert same_state(pool.get(slot), state)


def test_recorded_decoding_gives_the_numbers_of_the_eager_pass(recorder: Recorder) -> None:
    follow(native(), native())
    # Sizes 4, 1, 8 and 2; the round of nine tokens each is not recorded.
    assert recorder.recorded == 4
    assert recorder.replayed == 5


def test_where_recording_fails_the_eager_pass_serves(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.fails = True
    follow(native(), native())
    assert caplog.text.count("not recorded as a CUDA graph") == 1


def test_recording_can_be_switched_off(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_STATE_COMPILED", "0")
    follow(native(), native())
    assert recorder.recorded == 0


def test_passing_batches_are_not_recorded(recorder: Recorder) -> None:
    """Their arrays are gone after the call, and a recording with them."""
    runtime = native()
    runtime.forward_batch([[1], [2]], [runtime.zero_state()] * 2)
    assert recorder.recorded == 0


def test_recordings_go_with_their_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(work: Work) -> Work:
        output = work()
        return lambda: output  # as a CUDA graph, which knows addresses alone

    monkeypatch.setattr(model_module, "captures", lambda device: forgetful)
    runtime = native()
    model = runtime._open()
    assert isinstance(model, NativeModel)
    arrays = model.arrays(2)
    model.read(arrays, [(0, [1]), (1, [2])])
    assert list(model._decodes) == [arrays]
    alive = weakref.ref(arrays)
    del arrays
    gc.collect()
    assert alive() is None
    assert not model._decodes


def test_every_replay_reads_the_tensors_of_the_recording() -> None:
    addresses = set()

    def run(x: torch.Tensor, places: Places, arrays: StateArrays) -> torch.Tensor:
        tensors = (x, places.start, places.slot, places.first, places.last)
        addresses.add(tuple(tensor.data_ptr() for tensor in tensors))
        assert places.longest == 1
        assert places.single is not None
        assert places.single[1] is places.slot
        return torch.cat([x, places.slot.unsqueeze(1)], 1)

    layout = StateLayout.of(7, n_layer=1, n_embd=64, head_size=32)
    arrays = StateArrays(layout, 7, torch.device("cpu"), spare=True)
    assert (arrays.count, arrays.spare) == (7, 7)
    assert arrays.wkv.shape[1] == arrays.att_x.shape[1] == 8
    decode = Decode(run, Recorder())
    for slots in ([3, 1, 6], [0, 2, 5, 4], [6, 5, 4]):
        x = torch.randn(len(slots), 64)
        found = decode(x, slots, arrays)
        assert torch.equal(found[:, :-1], x)
        assert found[:, -1].tolist() == slots
    assert len(addresses) == 1


def test_arrays_without_a_spare_slot_are_refused() -> None:
    layout = StateLayout.of(7, n_layer=1, n_embd=64, head_size=32)
    arrays = StateArrays(layout, 2, torch.device("cpu"))
    with pytest.raises(ValueError, match="need arrays with a spare slot"):
        Decode(lambda x, places, arrays: x, Recorder())(torch.zeros(1, 64), [0], arrays)


def test_sizes_are_powers_of_two() -> None:
    assert [padded(count) for count in (1, 2, 3, 4, 5, 31, 32, 33)] == [1, 2, 4, 4, 8, 32, 32, 64]


def test_only_cuda_records() -> None:
    assert captures(torch.device("cpu")) is None
    assert captures(torch.device("cuda")) is not None


# -- copies beside the work --------------------------------------------------------------------


class Diary(list[str]):
    """Writes down what streams and events were asked to do, in order."""

    def stream(self, name: str) -> Any:
        return _Stream(self, name)


class _Stream:
    def __init__(self, diary: Diary, name: str) -> None:
        self.diary, self.name, self.events = diary, name, 0

    def wait_stream(self, other: _Stream) -> None:
        self.diary.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> _Event:
        self.events += 1
        return _Event(self.diary, f"{self.name} {self.events}")


class _Event:
    def __init__(self, diary: Diary, name: str) -> None:
        self.diary, self.name = diary, name

    def wait(self, stream: _Stream) -> None:
        self.diary.append(f"{stream.name} waits for {self.name}")

    def synchronize(self) -> None:
        self.diary.append(f"we wait for {self.name}")


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> Diary:
    """Takes the place of a card's streams and of pinned memory."""
    kept = Diary()
    work = kept.stream("work")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: kept.stream("copy"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: work)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(arrays_module, "pinned", torch.empty_like)
    return kept


def some_state(layout: StateLayout, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(spec.shape, generator=generator).to(torch.float32) for spec in layout.specs]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


LAYOUT = StateLayout.of(7, n_layer=3, n_embd=64, head_size=32)


def test_work_on_a_slot_waits_for_its_copies_and_for_no_others(diary: Diary) -> None:
    arrays = CudaArrays(LAYOUT, 3, torch.device("cpu"))
    states = [some_state(LAYOUT, seed) for seed in range(3)]
    for slot, state in enumerate(states):
        arrays.put(slot, state)
    assert diary == ["copy waits for work"] * 3
    diary.clear()
    arrays.settle([2, 0])
    arrays.settle([2, 0])
    assert diary == ["work waits for copy 3", "work waits for copy 1"]
    diary.clear()
    finished = arrays.begin_get(1)
    assert diary == ["copy waits for work"]
    arrays.settle([1])
    assert diary.pop() == "work waits for copy 4"
    assert equal(finished(), states[1])
    assert diary.pop() == "we wait for copy 4"


def test_a_slot_is_copied_into_another_once_both_are_there(diary: Diary) -> None:
    arrays = CudaArrays(LAYOUT, 3, torch.device("cpu"))
    states = [some_state(LAYOUT, seed) for seed in range(3)]
    for slot, state in enumerate(states):
        arrays.put(slot, state)
    diary.clear()
    arrays.copy(0, 2)
    assert diary == ["work waits for copy 1", "work waits for copy 3"]
    arrays.put(0, states[1])
    assert equal(arrays.get(2), states[0])
    assert equal(arrays.get(1), states[1])


def test_a_copy_in_ordinary_memory_is_what_is_handed_out(diary: Diary) -> None:
    arrays = CudaArrays(LAYOUT, 1, torch.device("cpu"))
    state = some_state(LAYOUT, 0)
    arrays.put(0, state)
    taken = arrays.get(0)
    assert [tuple(tensor.shape) for tensor in taken] == [spec.shape for spec in LAYOUT.specs]
    arrays.put(0, some_state(LAYOUT, 1))
    assert equal(taken, state)
    own = {tensor.untyped_storage().data_ptr() for tensor in taken}
    assert len(own) == len(taken)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in taken)


# -- on each device ----------------------------------------------------------------------------


def test_the_recurrence_equals_the_step_on_each_device(device: str) -> None:
    start, slot = [0, 1, 18, 19, 54, 60], [3, 0, 5, 1, 2]
    for size in (32, 64):
        tokens = random_tokens(60, 2, size)
        wkv = torch.randn(6, 2, size, size, generator=torch.Generator().manual_seed(size))
        expected_y, expected = stepped(tokens, wkv, start, slot)
        place = torch.device(device)
        recur = _recurrence(place, size)
        on_device, ours = type(tokens)(*(part.to(place) for part in tokens)), wkv.to(place)
        y = recur(on_device, ours, Places.of(start, slot, place)).cpu()
        assert (y - expected_y).abs().max() < 1e-5 * expected_y.abs().max()
        assert (ours.cpu() - expected).abs().max() < 1e-5 * expected.abs().max()
        assert torch.equal(ours[4].cpu(), wkv[4])


def test_slots_follow_the_cpu_on_each_device(device: str) -> None:
    follow(native(device), native())


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_narrow_dtypes_stay_near_on_each_device(device: str, dtype: str) -> None:
    ours, exact = native(device, dtype), native()
    logits, _ = ours.forward(ids(40), ours.zero_state())
    expected, _ = exact.forward(ids(40), exact.zero_state())
    assert (logits.softmax(0) - expected.softmax(0)).abs().max() < 0.02


def test_states_survive_a_stay_in_a_slot_bit_for_bit(device: str) -> None:
    model = native(device)._open()
    assert isinstance(model, NativeModel)
    arrays = model.arrays(4)
    states = [some_state(model.layout, seed) for seed in range(4)]
    for slot, state in enumerate(states):
        arrays.put(slot, state)
    pending: list[Callable[[], list[torch.Tensor]]] = [arrays.begin_get(slot) for slot in range(4)]
    model.read(arrays, [(slot, [7]) for slot in range(4)])
    assert all(equal(taken(), state) for taken, state in zip(pending, states, strict=True))


@pytest.mark.parametrize("place", [pytest.param("cuda", marks=cuda)])
def test_a_card_takes_the_kernel_and_records(place: str) -> None:
    pytest.importorskip("triton")
    from langchain_rwkv_state.runtime.native import triton_kernel

    assert _recurrence(torch.device(place), 32) is triton_kernel.recur
    model = native(place)._open()
    assert isinstance(model, NativeModel)
    arrays = model.arrays(3)
    model.read(arrays, [(0, [1]), (2, [2])])
    decode = model._decodes[arrays]
    assert list(decode._recorded) == [2]
    assert not decode._failed
