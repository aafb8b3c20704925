"""The kernels that choose: the plain form's equals in Triton's interpreter, and they compile.

Triton decides at its import whether it interprets, so the kernels run in a process of their own.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from langchain_rwkv_state.runtime.cuda.sampling import SamplerArrays, sample
from tests.helpers.ahead_of_time import Compiled, compiled_for
from tests.helpers.card_steps import Case, run, some_case
from tests.helpers.devices import on_card
from tests.helpers.interpreter import Interpreter

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is for Linux alone"
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KEPT = ("counts", "n", "last")
STEPS = {
    1: (0, 6, torch.float32),
    33: (1, 6, torch.float32),
    640: (2, 6, torch.float16),
    5000: (3, 3, torch.bfloat16),
    65_536: (11, 1, torch.float16),
}
"""By the number of logits: what seeds a step, how many slots choose in it, its dtype."""

INDICES = ("slot", "mask", "masks", "places", "choose", "top_k", "last", "out")
SETTINGS = ("presence", "frequency", "temperature", "decay", "top_p", "top_k", "key", "n")


def case_of(size: int) -> Case:
    """A step of all kinds of rows, few of them: the interpreter is slow."""
    seed, count, dtype = STEPS[size]
    case = some_case(np.random.default_rng(seed), size, count, dtype)
    # The interpreter reads the smallest numbers of bf16 as others.
    case.logits[case.logits.abs() < 1e-30] = 0
    return case


def followed(sample: Any, case: Case) -> dict[str, Any]:
    """What comes of steps over the same logits."""
    arrays = case.arrays()
    outs = [run(sample, case, arrays) for _ in range(3 if case.logits.shape[1] < 1000 else 1)]
    found: dict[str, Any] = {name: getattr(arrays, name) for name in KEPT}
    return found | {"chosen": [out[0] for out in outs], "best and finite": outs[0][1:]}


def interpreted(case: Case) -> dict[str, Any]:
    """What comes of the kernels; for `Interpreter`."""
    from langchain_rwkv_state.runtime.cuda import sampling_kernels

    return followed(sampling_kernels.sample, case)


@pytest.mark.parametrize(
    "size", [pytest.param(each, marks=[pytest.mark.thorough] * (each > 5000)) for each in STEPS]
)
def test_they_equal_the_plain_form(interpreter: Interpreter, size: int) -> None:
    case = case_of(size)
    ours, theirs = interpreter.run(interpreted, case), followed(sample, case)
    for one, other in zip(ours["chosen"], theirs["chosen"], strict=True):
        assert one.tolist() == other.tolist()
    for name in KEPT:
        assert torch.equal(ours[name], theirs[name]), name
    finite = case.logits.isfinite().all(1)
    one, other = ours["best and finite"], theirs["best and finite"]
    assert one[1].tolist() == other[1].tolist() == finite.int().tolist()
    assert one[0][finite].tolist() == other[0][finite].tolist()
    assert ours["chosen"][0].tolist() == case.expected()  # as a CPU chooses


def test_there_is_something_to_choose_in_most_rows() -> None:
    chosen = [token for size in STEPS if size <= 5000 for token in case_of(size).expected()]
    assert sum(token >= 0 for token in chosen) > 10


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
