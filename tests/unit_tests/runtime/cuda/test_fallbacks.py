"""Fallbacks on a card: each is told in words, with what to do."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from langchain_rwkv_state.runtime.cuda import fallbacks
from langchain_rwkv_state.runtime.cuda.chosen import ChosenKernels

CARD = torch.device("cuda")


def chosen() -> ChosenKernels:
    return ChosenKernels.of(CARD, 64, torch.float16, torch.float32)


def test_without_triton_the_kernels_are_pytorchs_and_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.delenv("RWKV_STATE_COMPILED", raising=False)
    found = chosen()
    assert (found.layer.name, found.recordable) == ("PyTorch", False)
    assert found.fallbacks == fallbacks.expected() == (fallbacks.NO_TRITON,)


def test_kernels_that_are_switched_off_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_STATE_COMPILED", "0")
    assert chosen().fallbacks == fallbacks.expected() == (fallbacks.SWITCHED_OFF,)


def test_each_says_what_to_do() -> None:
    refused = fallbacks.refused("ptxas: no sm_52")
    told = [fallbacks.SWITCHED_OFF, fallbacks.NO_TRITON, refused]
    told.append(fallbacks.not_recorded(8, "CUDA error: out of memory"))
    for what, advice in map(fallbacks.split, told):
        assert " one by one" in what or "by itself" in what
        assert advice
        assert ": " not in advice
    assert fallbacks.split(refused)[0].startswith("the Triton kernels are not used (ptxas: no sm_")
