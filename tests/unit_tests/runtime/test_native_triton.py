"""The Triton kernel, in Triton's interpreter on the CPU: the same numbers as the readable step.

Triton decides at its import whether it interprets, so the kernel runs in a process of its own,
which reads all cases from one file and writes its results to another.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch

from langchain_rwkv_state.runtime.native import plain as plain
from langchain_rwkv_state.runtime.native.recurrence import Places, chunked, recur
from tests.helpers.tokens import random_tokens, stepped

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is for Linux alone"
)

Results: TypeAlias = dict[str, Any]

SHAPES = {
    "decode": ([0, 1, 2, 3], [4, 0, 2]),
    "one chunk": ([0, 16], [1]),
    "shorter than a chunk": ([0, 15], [0]),
    "ragged": ([0, 1, 18, 19, 54, 60], [3, 0, 5, 1, 2]),
}
SIZES = (24, 32, 64)
CASES = [(name, size) for name in SHAPES for size in SIZES]
SLOTS, HEADS = 6, 2

INTERPRETED = """
import sys, torch
from pathlib import Path
from langchain_rwkv_state.runtime.checkpoint import Checkpoint
from langchain_rwkv_state.runtime.native import triton_kernel
from langchain_rwkv_state.runtime.native import plain as plain
from langchain_rwkv_state.runtime.native.model import NativeModel
from langchain_rwkv_state.runtime.native.recurrence import Places, Tokens
from langchain_rwkv_state.runtime.strategy import Stage
from langchain_rwkv_state.state import zero_state
from tests.helpers.checkpoints import random_checkpoint

cpu, results = torch.device("cpu"), {}
for case, (tokens, wkv, start, slot) in torch.load(sys.argv[1]).items():
    y = triton_kernel.recur(Tokens(*tokens), wkv, Places.of(start, slot, cpu))
    results[case] = y, wkv

results["works"] = triton_kernel.works(cpu, 32)
right, triton_kernel.recur = triton_kernel.recur, lambda tokens, wkv, places: tokens.v * 1.001
results["works with wrong numbers"] = triton_kernel.works(cpu, 32)
triton_kernel.recur = lambda tokens, wkv, places: tokens.v * float("nan")
results["works with no numbers"] = triton_kernel.works(cpu, 32)
triton_kernel.recur = right

tensors = random_checkpoint(7, n_embd=64, head_size=32)
results["models"] = []
for choose in (plain._recurrence, lambda *_: triton_kernel.recur):
    plain._recurrence = choose
    checkpoint = Checkpoint.of(tensors, Path("m.pth"))
    model = NativeModel(dict(tensors), checkpoint, Stage("cpu", "fp32"), compiled=False)
    zero = zero_state(model.layout, "m")
    zeros = [zero.shared(name) for name in zero]
    results["models"].append(model.forward_batch([[1] * 20, [5], [7, 8]], [zeros] * 3))
torch.save(results, sys.argv[2])
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from langchain_rwkv_state.runtime.native import triton_kernel

for capability, chunks in ((80, False), (80, True), (90, True)):
    fixed = {"size": 64, "wide": 64, "block": triton_kernel.BLOCK, "chunk": 16, "chunks": chunks}
    others = {"start_at": "*i64", "slot_at": "*i64", "heads": "i32"}
    kernel = triton_kernel._kernel
    kinds = {name: others.get(name, "*fp32") for name in kernel.arg_names}
    kinds |= dict.fromkeys(fixed, "constexpr")
    made = triton.compile(
        ASTSource(fn=kernel, signature=kinds, constexprs=fixed),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": triton_kernel.warps(64, chunks=chunks)},
    )
    assert made.asm["cubin"]
    assert "tf32" not in made.asm["ptx"]
print("compiled")
"""


def given(name: str, size: int) -> tuple[Any, torch.Tensor, list[int], list[int]]:
    start, slot = SHAPES[name]
    generator = torch.Generator().manual_seed(size)
    wkv = torch.randn(SLOTS, HEADS, size, size, generator=generator)
    return random_tokens(start[-1], HEADS, size), wkv, start, slot


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("triton")
    cases = {}
    for name, size in CASES:
        tokens, *rest = given(name, size)
        cases[f"{name} {size}"] = (list(tokens), *rest)
    torch.save(cases, folder / "cases.pt")
    python(INTERPRETED, str(folder / "cases.pt"), str(folder / "results.pt"), TRITON_INTERPRET="1")
    loaded: Results = torch.load(folder / "results.pt")
    return loaded


def python(program: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("name", "size"), CASES)
def test_it_equals_the_step(results: Results, name: str, size: int) -> None:
    expected_y, expected = stepped(*given(name, size))
    y, wkv = results[f"{name} {size}"]
    assert (y - expected_y).abs().max() < 1e-5 * expected_y.abs().max()
    assert (wkv - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("size", SIZES)
def test_it_equals_the_chunked_form(results: Results, size: int) -> None:
    tokens, wkv, start, slot = given("ragged", size)
    y, ours = results[f"ragged {size}"]
    for number, into in enumerate(slot):
        rows = slice(start[number], start[number + 1])
        expected, after = chunked(tokens.at(rows), wkv[into])
        assert (y[rows] - expected).abs().max() < 1e-5 * expected.abs().max()
        assert (ours[into] - after).abs().max() < 1e-5 * after.abs().max()


@pytest.mark.parametrize(("name", "size"), CASES)
def test_slots_that_are_not_named_stay_bit_for_bit(results: Results, name: str, size: int) -> None:
    _, before, _, slot = given(name, size)
    _, after = results[f"{name} {size}"]
    others = [number for number in range(SLOTS) if number not in slot]
    assert others
    assert torch.equal(after[others], before[others])


def test_the_whole_model_agrees_with_the_plain_form(results: Results) -> None:
    (logits, states), (ours, our_states) = results["models"]
    assert (ours - logits).abs().max() < 1e-4
    for state, other in zip(states, our_states, strict=True):
        for tensor, counterpart in zip(state, other, strict=True):
            assert (tensor - counterpart).abs().max() < 1e-4


def test_a_kernel_that_is_off_is_found_out(results: Results) -> None:
    assert results["works"]
    assert not results["works with wrong numbers"]
    assert not results["works with no numbers"]


def test_a_kernel_that_does_not_run_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    from langchain_rwkv_state.runtime.native import triton_kernel

    assert not triton_kernel.works(torch.device("cpu"), 32)
    assert "not used" in caplog.text


@pytest.mark.parametrize("works", [True, False])
def test_only_cuda_takes_the_kernel_and_only_where_it_works(
    works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from langchain_rwkv_state.runtime.native import triton_kernel

    monkeypatch.setattr(triton_kernel, "works", lambda device, size: works)
    cuda = torch.device("cuda")
    assert plain._recurrence(cuda, 64) is (triton_kernel.recur if works else recur)
    assert plain._recurrence(torch.device("cpu"), 64) is recur
    monkeypatch.setenv("RWKV_STATE_COMPILED", "0")
    assert plain._recurrence(cuda, 64) is recur


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Triton's assembler may be missing")
def test_it_compiles_for_cards_that_are_not_here(tmp_path: Path) -> None:
    """The interpreter is more patient than the compiler, and there may be no card to ask."""
    assert python(COMPILED, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0") == "compiled\n"


def test_the_plain_form_equals_the_step() -> None:
    for name, size in CASES:
        tokens, wkv, start, slot = given(name, size)
        expected_y, expected = stepped(tokens, wkv, start, slot)
        y = recur(tokens, wkv, Places.of(start, slot, torch.device("cpu")))
        assert (y - expected_y).abs().max() < 1e-5 * expected_y.abs().max()
        assert (wkv - expected).abs().max() < 1e-5 * expected.abs().max()
