"""What a model takes on its device, from names and shapes alone."""

from __future__ import annotations

import re

import pytest
import torch

from langchain_rwkv_state.runtime.needed_memory import free_bytes, weights_bytes
from langchain_rwkv_state.runtime.strategy import Strategy
from tests.helpers.checkpoints import random_checkpoint

_LARGE = re.compile(r"(receptance|key|value|output|head)\.weight$")


@pytest.mark.parametrize(
    ("strategy", "each", "large"),
    [
        ("cuda fp16", 2, 2),
        ("cuda bf16 state_fp16", 2, 2),
        ("cuda fp32", 4, 4),
        ("cuda int8", 2, 1),
        ("cuda fp8", 2, 1),
        ("cpu fp32", 2, 2),  # as the file has it
        ("cpu int8", 2, 1),
    ],
)
def test_weights_are_counted_as_they_are_kept(strategy: str, each: int, large: int) -> None:
    tensors = {name: t.to("meta") for name, t in random_checkpoint(7, dtype=torch.float16).items()}
    matrices = sum(t.numel() for name, t in tensors.items() if _LARGE.search(name))
    everything = sum(t.numel() for t in tensors.values())
    assert 0.3 < matrices / everything < 1
    counted = weights_bytes(tensors, Strategy.parse(strategy).stages[0])
    assert counted == matrices * large + (everything - matrices) * each


def test_the_package_computes_in_the_dtype_that_was_asked_for() -> None:
    tensors = random_checkpoint(6, dtype=torch.float16)
    stage = Strategy.parse("cpu fp32").stages[0]
    everything = sum(tensor.numel() for tensor in tensors.values())
    assert weights_bytes(tensors, stage, is_native=False) == 4 * everything


def test_a_card_is_asked_for_its_own_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", {"cuda:1": (7, 9)}.__getitem__)
    assert free_bytes(Strategy.parse("cuda:1 fp16").stages[0]) == 7
    assert free_bytes(Strategy.parse("cpu fp32").stages[0]) > 7
