"""Strategies: what is read, what is refused, and before what."""

from __future__ import annotations

import pytest
import torch

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.strategy import Stage, Strategy


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("cpu fp32", [Stage("cpu", "fp32")]),
        ("cuda:1 bf16", [Stage("cuda:1", "bf16")]),
        ("cuda fp16i8", [Stage("cuda", "fp16", int8=True)]),
        (
            "cuda fp16i8 *10 -> cpu fp32",
            [Stage("cuda", "fp16", int8=True, layers=10), Stage("cpu", "fp32")],
        ),
        ("cuda fp16 *10+", [Stage("cuda", "fp16", layers=10, streams=True)]),
    ],
)
def test_strategies_of_the_package_are_read(text: str, stages: list[Stage]) -> None:
    parsed = Strategy.parse(text)
    assert parsed.stages == tuple(stages)
    assert str(parsed) == text


def test_spaces_do_not_matter() -> None:
    assert str(Strategy.parse(" cuda  fp16 *3->cpu fp32 ")) == "cuda fp16 *3 -> cpu fp32"


def test_auto_is_the_card_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert str(Strategy.parse("auto")) == "cuda fp16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(Strategy.parse("auto")) == "cpu fp32"


@pytest.mark.parametrize(
    "text", ["", "gpu fp16", "cpu", "cpu fp64", "cpu fp16 10", "cpu fp32 ->", "cpu fp32i4", "rocm"]
)
def test_an_unknown_strategy_is_refused_with_what_is_possible(text: str) -> None:
    with pytest.raises(ModelLoadError, match=r"not known: use 'auto' or '<device> <dtype>'"):
        Strategy.parse(text)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelLoadError, match="no CUDA device: use 'auto' or 'cpu fp32'"):
        Strategy.parse("cpu fp32 *1 -> cuda fp16").require_devices()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    Strategy.parse("cuda fp16").require_devices()
    with pytest.raises(ModelLoadError, match="only 1 CUDA device"):
        Strategy.parse("cuda:1 fp16").require_devices()


@pytest.mark.parametrize(
    "text", ["cpu fp32i8", "cpu fp32 *2", "cpu fp32 *2+", "cpu fp32 *1 -> cpu bf16", "dml fp32"]
)
def test_what_the_package_would_silently_drop_is_refused_for_rwkv_7(text: str) -> None:
    strategy = Strategy.parse(text)
    strategy.require_for("6")
    with pytest.raises(ModelLoadError, match="not possible for RWKV-7"):
        strategy.require_for("7")
