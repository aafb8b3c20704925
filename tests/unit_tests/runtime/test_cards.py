"""Cards: CUDA itself is asked for none before a model is loaded onto one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from langchain_rwkv_state import ChatRWKV, MemoryStateStore
from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime import load_runtime
from langchain_rwkv_state.runtime.strategy import Strategy
from tests.helpers.checkpoints import write_checkpoint


def _no_question() -> int:
    raise AssertionError("CUDA was asked, so that no later fork can use a card.")


@pytest.fixture(autouse=True)
def nvml(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """PyTorch as if built for CUDA, without NVML, where whatever asks the driver fails."""
    monkeypatch.setattr(torch.cuda, "_is_compiled", lambda: True)
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: -1)
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", _no_question, raising=False)
    return monkeypatch


def test_a_strategy_is_checked_without_asking() -> None:
    with pytest.raises(AssertionError, match="CUDA was asked"):
        Strategy.parse("auto")  # so this does fail where something asks
    Strategy.check("auto")
    Strategy.check("cuda fp16")
    with pytest.raises(ModelLoadError, match="not known"):
        Strategy.check("automatic")


def test_a_chat_is_made_copied_and_bound_without_asking(tmp_path: Path) -> None:
    chat = ChatRWKV(model=str(write_checkpoint(tmp_path / "m.pth", 7)), store=MemoryStateStore())
    assert chat.strategy == "auto"
    chat.model_copy().bind(temperature=0)
    chat.stats()
    chat.unload()


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu int8", "package cpu fp32"])
def test_a_model_runs_on_the_cpu_without_asking(tmp_path: Path, strategy: str) -> None:
    runtime = load_runtime(write_checkpoint(tmp_path / "m.pth", 7), strategy)
    runtime.forward([1, 2], runtime.zero_state())
    runtime.close()


def test_where_nvml_counts_no_card_auto_asks_nobody_else(
    tmp_path: Path, nvml: pytest.MonkeyPatch
) -> None:
    nvml.setattr(torch.cuda, "_device_count_nvml", lambda: 0)
    assert str(Strategy.parse("auto")) == "cpu fp32"
    with pytest.raises(ModelLoadError, match="no CUDA device"):
        Strategy.parse("cuda:1 fp16").require_devices()
    runtime = load_runtime(write_checkpoint(tmp_path / "m.pth", 7))
    runtime.close()


@pytest.mark.parametrize("strategy", ["auto", "cuda fp16", "package cuda:1 bf16"])
def test_a_child_of_a_process_that_started_cuda_is_told_what_to_do(
    tmp_path: Path, nvml: pytest.MonkeyPatch, strategy: str
) -> None:
    nvml.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    path = write_checkpoint(tmp_path / "m.pth", 7)
    with pytest.raises(ModelLoadError, match=r"forked from one that had started CUDA.*spawn"):
        load_runtime(path, strategy)  # nor runs a model of a card's on the CPU without a word
    load_runtime(path, "cpu fp32").close()
