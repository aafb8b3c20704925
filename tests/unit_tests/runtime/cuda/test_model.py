"""A model on a card that is not here: plain kernels, and stand-ins for streams and graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from langchain_rwkv_state.runtime.checkpoint import Checkpoint
from langchain_rwkv_state.runtime.cuda import sampling
from langchain_rwkv_state.runtime.cuda.chosen import ChosenKernels
from langchain_rwkv_state.runtime.cuda.kernels import PlainKernels
from langchain_rwkv_state.runtime.cuda.model import CudaModel
from langchain_rwkv_state.runtime.handle import RuntimeHandle
from langchain_rwkv_state.runtime.native.model import NativeModel
from langchain_rwkv_state.runtime.slots import ChoosingSlots
from langchain_rwkv_state.runtime.strategy import Stage
from tests.helpers.checkpoints import DEFAULT_VOCAB, random_checkpoint
from tests.helpers.cuda_stand_in import StandIn

PLAIN = ChosenKernels(PlainKernels(), sampling.sample, recordable=False)


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn(monkeypatch)


def on_card() -> RuntimeHandle:
    tensors = random_checkpoint(7, n_embd=64, head_size=32)
    checkpoint = Checkpoint.of(tensors, Path("random.pth"))
    model = CudaModel(tensors, checkpoint, Stage("cpu", "fp32"), kernels=PLAIN)
    return RuntimeHandle(model, lambda: None, name="random")


def on_cpu() -> RuntimeHandle:
    tensors = random_checkpoint(7, n_embd=64, head_size=32)
    checkpoint = Checkpoint.of(tensors, Path("random.pth"))
    return RuntimeHandle(
        NativeModel(tensors, checkpoint, Stage("cpu", "fp32"), compiled=False),
        lambda: None,
        name="random",
    )


def ids(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(DEFAULT_VOCAB, (count,), generator=generator).tolist()


def test_it_gives_the_numbers_of_the_cpu() -> None:
    ours, theirs = on_card(), on_cpu()
    for count in (1, 5, 40):
        logits, state = ours.forward(ids(count), ours.zero_state())
        expected, after = theirs.forward(ids(count), theirs.zero_state())
        assert (logits - expected).abs().max() < 1e-4
        assert all((state[name] - after[name]).abs().max() < 1e-4 for name in state)
        assert state.derivation == after.derivation


def test_slots_read_copy_and_go_back() -> None:
    ours, theirs = on_card(), on_cpu()
    slots = ours.slots(2)
    assert isinstance(slots, ChoosingSlots)
    slots.put(0, ours.zero_state())
    logits = slots.read([(0, ids(7))])
    slots.copy(0, 3)
    slots.read([(0, [3])])
    expected, after = theirs.forward(ids(7), theirs.zero_state())
    assert (logits[0] - expected).abs().max() < 1e-4
    kept = slots.get(3)
    assert all((kept[name] - after[name]).abs().max() < 1e-4 for name in kept)
    assert kept.derivation == after.derivation
