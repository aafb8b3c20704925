"""The kernels that choose: the plain form's equals in Triton's interpreter, and they compile.

Triton decides at its import whether it interprets, so the kernels run in a process of their own.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

from langchain_rwkv_state.engine import choices
from langchain_rwkv_state.runtime.cuda.sampling import SamplerArrays, sample
from tests.helpers.ahead_of_time import Compiled, compiled_for
from tests.helpers.card_steps import Case, plain_case, run, some_case
from tests.helpers.devices import on_card
from tests.helpers.interpreter import Interpreter

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is for Linux alone"
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KEPT = ("counts", "n", "last")
STEPS = {
    "1": (0, 1, 6, torch.float32),
    "33": (1, 33, 12, torch.float32),
    "640": (2, 640, 8, torch.float16),
    "5000": (3, 5000, 3, torch.bfloat16),
}
"""What seeds a step, how many logits it has, how many slots choose in it, its dtype."""
THOROUGH = {
    "33 for 24": (1, 33, 24, torch.float32),
    "1 for 24": (0, 1, 24, torch.float32),
    "640 for 24": (2, 640, 24, torch.float16),
    "65536": (11, 65_536, 1, torch.float16),
}
PLAIN = ("steep", "equals")
INDICES = ("slot", "mask", "masks", "places", "choose", "top_k", "last", "out")
SETTINGS = ("presence", "frequency", "temperature", "decay", "top_p", "top_k", "key", "n")


def case_of(name: str) -> Case:
    """A step of all kinds of rows, few of them: the interpreter is slow."""
    if name == "steep":  # the first alone weighs just top-p
        return plain_case(torch.tensor([[0.0, -30.0, -30.0]]).repeat(6, 1), 3e38, 1 - 1e-16)
    if name == "equals":  # over more than one tile
        return plain_case(torch.zeros(3, 5000), 1.0, 1.0, 3)
    seed, size, count, dtype = {**STEPS, **THOROUGH}[name]
    case = some_case(np.random.default_rng(seed), size, count, dtype)
    # The interpreter reads the smallest numbers of bf16 as others.
    case.logits[case.logits.abs() < 1e-30] = 0
    return case


def followed(sample: Any, case: Case) -> dict[str, Any]:
    """What comes of steps over the same logits."""
    arrays = case.arrays()
    outs = [run(sample, case, arrays)]
    sums = arrays.sums[: len(case.logits)].sum(-1)
    outs += [run(sample, case, arrays) for _ in range(case.logits.shape[1] < 1000)]
    found: dict[str, Any] = {name: getattr(arrays, name) for name in KEPT} | {"sums": sums}
    return found | {"chosen": [out[0] for out in outs], "best and finite": outs[0][1:]}


def interpreted(case: Case) -> dict[str, Any]:
    """What comes of the kernels; for `Interpreter`."""
    from langchain_rwkv_state.runtime.cuda import sampling_kernels

    return followed(sampling_kernels.sample, case)


Found: TypeAlias = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def found(interpreter: Interpreter) -> Found:
    """What came of a step, by its name."""
    return cache(lambda name: interpreter.run(interpreted, case_of(name)))


def some(*names: str) -> list[Any]:
    """Returns these steps and those for a thorough run."""
    return [*names, *(pytest.param(name, marks=pytest.mark.thorough) for name in THOROUGH)]


@pytest.mark.parametrize("name", some(*STEPS, *PLAIN))
def test_they_equal_the_plain_form(found: Found, name: str) -> None:
    ours, case = found(name), case_of(name)
    theirs = followed(sample, case)
    for one, other in zip(ours["chosen"], theirs["chosen"], strict=True):
        assert one.tolist() == other.tolist()
    for name in KEPT:
        assert torch.equal(ours[name], theirs[name]), name
    finite = case.logits.isfinite().all(1)
    one, other = ours["best and finite"], theirs["best and finite"]
    assert one[1].tolist() == other[1].tolist() == finite.int().tolist()
    assert one[0][finite].tolist() == other[0][finite].tolist()


@pytest.mark.parametrize("name", some(*STEPS, *PLAIN))
def test_they_choose_what_the_cpu_chooses(found: Found, name: str) -> None:
    expected = case_of(name).expected()
    assert found(name)["chosen"][0].tolist() == expected
    assert any(token >= 0 for token in expected)


def compared(result: dict[str, Any], case: Case) -> int:
    """Sees that sums are those of a CPU; returns of how many rows."""
    rows, count = case.logits.float().numpy(), 0
    for row, draw, sums in zip(rows, case.draws, result["sums"], strict=True):
        if draw is None or not draw.temperature or not np.isfinite(row).all():
            continue
        row[draw.ids] -= draw.penalties
        if draw.allowed is not None:
            row = row[choices._allowed(draw.allowed, len(row))]
        if len(row):
            left = choices.Candidates.of(row, draw)
            assert sums.tolist() == [left.masses.sum(), left.weights.sum()]
            count += 1
    return count


def test_what_is_summed_is_what_the_cpu_sums(found: Found) -> None:
    """Tokens would rarely show a number that is off by its last bit."""
    assert sum(compared(found(name), case_of(name)) for name in (*STEPS, *PLAIN)) > 20


@pytest.mark.thorough
@pytest.mark.parametrize("name", THOROUGH)
def test_more_sums_are_those_of_the_cpu(found: Found, name: str) -> None:
    assert compared(found(name), case_of(name))


def compiled(name: str, capability: int) -> tuple[Compiled, int]:
    """Returns a kernel for World's vocabulary, and how many warps run it."""
    module: Any = importlib.import_module("langchain_rwkv_state.runtime.cuda.sampling_kernels")
    kinds = {"logits_at": "*fp16", "out_stride": "i32", "top_p_at": "*fp64"}
    kinds |= dict.fromkeys(("sums_at", "key_at", "n_at"), "*i64")
    kinds |= {f"{each}_at": "*i32" for each in INDICES}
    fixed = {"size": 65536, "tile": module.TILE, "tiles": 65536 // module.TILE}
    fixed |= {} if name == "look" else {"wide": fixed["tiles"]}
    warps = module.DRAWING_WARPS if name == "choose" else module.WARPS
    kernel = getattr(module, f"_{name}")
    made = compiled_for(
        capability,
        kernel,
        {each: kinds.get(each, "*fp32") for each in kernel.arg_names if each not in fixed},
        fixed,
        loose=[*module._LOOSE, *(f"{each}_at" for each in SETTINGS)],
        num_warps=warps,
        enable_fp_fusion=False,
    )
    return made, warps


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Triton's assembler may be missing")
@pytest.mark.parametrize(
    "capability", [90, *(pytest.param(each, marks=pytest.mark.thorough) for each in (80, 100))]
)
@pytest.mark.parametrize("name", ["look", "weigh", "choose"])
def test_they_compile_for_cards_that_are_not_here(
    name: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made, warps = compiled(name, capability)
    assert made.spilled == 0
    assert made.count(r"\bfma\.") == 0  # no product is fused with a sum
    assert made.count(r"\bdiv\.(full|approx)|ftz") == 0  # fp32 is rounded as IEEE 754 says
    assert made.registers * warps * 32 <= (65_536 if name == "choose" else 16_384)


@pytest.mark.parametrize("dtype", [on_card(each, name=str(each)) for each in DTYPES])
def test_on_a_card_they_choose_what_the_cpu_chooses(dtype: torch.dtype) -> None:
    """Recorded too, and never waited for."""
    from langchain_rwkv_state.runtime.cuda.sampling_kernels import sample as fast

    case = some_case(np.random.default_rng(2), 65_536, 64, dtype).on("cuda")
    assert run(fast, case, case.arrays())[0].tolist() == case.expected()  # compiled by now
    torch.cuda.set_sync_debug_mode("error")
    try:
        arrays, recording = case.arrays(), torch.cuda.CUDAGraph()
        out = run(fast, case, arrays)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    theirs = case.on("cpu")
    plain = theirs.arrays()
    assert out.tolist()[::2] == run(sample, theirs, plain).tolist()[::2]
    with torch.cuda.graph(recording):
        out = run(fast, case, arrays)
    for _ in range(2):
        recording.replay()
        assert out.tolist()[::2] == run(sample, theirs, plain).tolist()[::2]
    for name in KEPT:
        assert torch.equal(getattr(arrays, name).cpu(), getattr(plain, name)), name


def test_what_they_cannot_read_is_an_error() -> None:
    from langchain_rwkv_state.runtime.cuda import sampling_kernels

    arrays = SamplerArrays(2, 64, "cpu")
    numbers, masks = torch.zeros(3, dtype=torch.int32), torch.zeros(1, 2, dtype=torch.int32)
    for logits, said in (
        (torch.zeros(3, 64), "3 rows are to be sampled from, and there is room for 2"),
        (torch.zeros(64, 3).T[:2], "contiguous, got strides"),
    ):
        with pytest.raises(ValueError, match=said):
            sampling_kernels.sample(logits, numbers, numbers, numbers, masks, arrays, numbers)
