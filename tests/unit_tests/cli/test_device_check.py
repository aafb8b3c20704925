"""What ``doctor`` says of cards: with stand-ins, since it must not need one."""

from __future__ import annotations

import ctypes
import importlib.util
import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from langchain_rwkv_state.cli.app import app
from langchain_rwkv_state.cli.device_check import check_devices, slower_of
from langchain_rwkv_state.cli.findings import Finding
from langchain_rwkv_state.runtime import cards
from langchain_rwkv_state.runtime.cuda import fallbacks

GIB = 1 << 30


class _Nvml:
    """The library of the driver, as far as it is asked."""

    def nvmlInit_v2(self) -> int:  # its name
        return 0

    def nvmlSystemGetDriverVersion(self, said: ctypes.Array[ctypes.c_char], size: int) -> int:
        assert size == len(said)
        said.value = b"570.86.15"
        return 0


def found() -> dict[str, Finding]:
    return {finding.name: finding for finding in check_devices()}


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with two cards, and Triton."""
    free = [70 * GIB, 3 * GIB]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free[number], 80 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (9 - number, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: ["H100", "A100"][number])
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 12080, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: _Nvml())
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.delenv("RWKV_STATE_COMPILED", raising=False)
    return monkeypatch


@pytest.mark.usefixtures("two_cards")
def test_each_card_is_named_with_its_memory_and_what_runs_there() -> None:
    said = found()
    assert said["cuda:0"].value == "H100, compute capability 9.0, 75.2 GB free of 85.9 GB"
    assert said["cuda:1"].value == "A100, compute capability 8.0, 3.2 GB free of 85.9 GB"
    assert said["cuda:1"].figure == 3 * GIB
    assert said["driver"].value == "570.86.15, for CUDA 12.8; PyTorch is built for CUDA 12.6"
    assert said["triton"].value
    assert said["auto"].value == "cuda fp16"
    assert not any(finding.advice for finding in said.values())


@pytest.mark.parametrize(
    ("cause", "what", "advice"),
    [
        ("no triton", "Triton is not installed", "pip install 'langchain-rwkv-state[cuda]'"),
        ("switch", "RWKV_STATE_COMPILED=0", "unset it"),
    ],
)
def test_what_runs_slower_than_it_could_comes_with_advice(
    two_cards: pytest.MonkeyPatch, cause: str, what: str, advice: str
) -> None:
    if cause == "switch":
        two_cards.setenv("RWKV_STATE_COMPILED", "0")
    else:
        two_cards.setattr(importlib.util, "find_spec", lambda _: None)
    said = found()["slower"]
    assert said.value.startswith(what)
    assert said.advice == advice


@pytest.mark.parametrize(
    ("driven", "cuda", "value", "advice"),
    [
        (0, None, "no device: models run on the CPU", ""),
        (-1, "12.6", "no device: models run on the CPU", ""),
        (1, None, "1 card in this machine, but PyTorch cannot use it", "built without CUDA"),
        (2, "12.6", "2 cards in this machine, but PyTorch cannot use them", "for CUDA 12.6"),
    ],
)
def test_a_card_that_pytorch_cannot_use_is_told(
    monkeypatch: pytest.MonkeyPatch, driven: int, cuda: str | None, value: str, advice: str
) -> None:
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: driven)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    said = found()
    assert said["cuda"].value.startswith(value)
    assert advice in said["cuda"].advice
    assert bool(said["cuda"].advice) == bool(advice)
    assert said["auto"].value == "cpu fp32"
    assert cards.found() == []
    assert cards.driver().startswith("a release that it does not name")


def test_what_a_loaded_runtime_says_is_shown() -> None:
    class Loaded:
        fallbacks = (fallbacks.refused("CompilationError: sm_52"), fallbacks.not_recorded(8, "why"))

    first, second = slower_of(Loaded())
    assert "(CompilationError: sm_52), so PyTorch's own" in first.value
    assert first.advice.startswith("install the Triton that belongs to this PyTorch")
    assert second.advice.startswith("free memory")
    assert not list(slower_of(object()))


def test_doctor_holds_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("langchain_rwkv_state.cli.doctor._demo", lambda: iter(()))
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: 1)
    result = CliRunner().invoke(app, ["doctor", "--json", "--store", str(tmp_path / "none")])
    said = {each["name"]: each for each in json.loads(result.stdout)["findings"]}
    assert (said["cuda"]["section"], bool(said["cuda"]["advice"])) == ("device", True)
    assert result.exit_code == 1
