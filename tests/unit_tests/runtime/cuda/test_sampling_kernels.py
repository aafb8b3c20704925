"""The kernels that choose: the plain form's equals in Triton's interpreter, and they compile.

Triton decides at its import whether it interprets, so the kernels run in a process of their own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

from langchain_rwkv_state.engine import choices
from langchain_rwkv_state.runtime.cuda.sampling import SamplerArrays, sample
from tests.helpers.card_steps import Case, plain_case, run, some_case
from tests.helpers.devices import on_card

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is for Linux alone"
)

Results: TypeAlias = list[dict[str, Any]]

SEEDS, LARGE = range(4), 11
SIZES = (1, 33, 640, 5000)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KEPT = ("counts", "n", "last")

INTERPRETED = """
import sys, torch
from pathlib import Path
from langchain_rwkv_state.runtime.cuda.sampling_kernels import sample
from tests.unit_tests.runtime.cuda.test_sampling_kernels import cases, followed

results = [followed(sample, case) for case in cases()]
torch.save(results, sys.argv[1])
"""

COMPILED = """
import json
from langchain_rwkv_state.runtime.cuda import sampling_kernels as module
from tests.helpers.ahead_of_time import compiled_for

others = {"logits_at": "*fp16", "out_stride": "i32", "top_p_at": "*fp64"}
others |= dict.fromkeys(("sums_at", "key_at", "n_at"), "*i64")
others |= {
    f"{name}_at": "*i32"
    for name in ("slot", "mask", "masks", "places", "choose", "top_k", "last", "out")
}
settings = ("presence", "frequency", "temperature", "decay", "top_p", "top_k", "key", "n")
sizes = {"size": 65536, "tile": module.TILE, "tiles": 65536 // module.TILE}
found = {}
for capability in (80, 90, 100):
    for name, warps in (
        ("look", module.WARPS), ("weigh", module.WARPS), ("choose", module.DRAWING_WARPS)
    ):
        kernel = getattr(module, f"_{name}")
        fixed = sizes if name == "look" else sizes | {"wide": sizes["tiles"]}
        made = compiled_for(
            capability,
            kernel,
            {each: others.get(each, "*fp32") for each in kernel.arg_names if each not in fixed},
            fixed,
            loose=[*module._LOOSE, *(f"{each}_at" for each in settings)],
            num_warps=warps,
            enable_fp_fusion=False,
        )
        found[f"{name} {capability}"] = [
            made.registers * warps * 32,
            made.spilled,
            made.count(r"\\bfma\\."),
            made.count(r"\\bdiv\\.(full|approx)|ftz"),
        ]
print(json.dumps(found))
"""


def cases() -> list[Case]:
    """Steps of all kinds, few of them: the interpreter is slow."""
    rngs = [np.random.default_rng(seed) for seed in SEEDS]
    kinds = zip(rngs, SIZES, (torch.float32, *DTYPES), strict=True)
    found = [some_case(rng, size, 24 if size < 1000 else 3, dtype) for rng, size, dtype in kinds]
    for case in found:  # the interpreter reads the smallest numbers of bf16 as others
        case.logits[case.logits.abs() < 1e-30] = 0
    steep = torch.tensor([[0.0, -30.0, -30.0]]).repeat(12, 1)
    return [
        *found,
        some_case(np.random.default_rng(LARGE), 65_536, 1, torch.float16),
        plain_case(steep, 3e38, 1 - 1e-16),  # the first alone weighs just top-p
        plain_case(torch.zeros(6, 5000), 1.0, 1.0, 3),  # equals, over more than one tile
    ]


def followed(sample: Any, case: Case) -> dict[str, Any]:
    """What comes of steps over the same logits."""
    arrays = case.arrays()
    outs = [run(sample, case, arrays)]
    sums = arrays.sums[: len(case.logits)].sum(-1)
    outs += [run(sample, case, arrays) for _ in range(case.logits.shape[1] < 1000)]
    found: dict[str, Any] = {name: getattr(arrays, name) for name in KEPT} | {"sums": sums}
    return found | {"chosen": [out[0] for out in outs], "best and finite": outs[0][1:]}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    path = tmp_path_factory.mktemp("triton") / "results.pt"
    python(INTERPRETED, str(path), TRITON_INTERPRET="1")
    loaded: Results = torch.load(path)
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


@pytest.mark.parametrize("number", range(len(SIZES) + 3))
def test_they_equal_the_plain_form(results: Results, number: int) -> None:
    ours, case = results[number], cases()[number]
    theirs = followed(sample, case)
    for one, other in zip(ours["chosen"], theirs["chosen"], strict=True):
        assert one.tolist() == other.tolist()
    for name in KEPT:
        assert torch.equal(ours[name], theirs[name]), name
    finite = case.logits.isfinite().all(1)
    one, other = ours["best and finite"], theirs["best and finite"]
    assert one[1].tolist() == other[1].tolist() == finite.int().tolist()
    assert one[0][finite].tolist() == other[0][finite].tolist()


def test_they_choose_what_the_cpu_chooses(results: Results) -> None:
    chosen = [result["chosen"][0].tolist() for result in results]
    assert chosen == [case.expected() for case in cases()]
    assert sum(token >= 0 for row in chosen for token in row) > 10


def test_what_is_summed_is_what_the_cpu_sums(results: Results) -> None:
    """Tokens would rarely show a number that is off by its last bit."""
    compared = 0
    for result, case in zip(results, cases(), strict=True):
        rows = case.logits.float().numpy()
        for row, draw, sums in zip(rows, case.draws, result["sums"], strict=True):
            if draw is None or not draw.temperature or not np.isfinite(row).all():
                continue
            row[draw.ids] -= draw.penalties
            if draw.allowed is not None:
                row = row[choices._allowed(draw.allowed, len(row))]
            if len(row):
                left = choices.Candidates.of(row, draw)
                assert sums.tolist() == [left.masses.sum(), left.weights.sum()]
                compared += 1
    assert compared > 30


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="Triton's assembler may be missing")
def test_they_compile_for_cards_that_are_not_here(tmp_path: Path) -> None:
    """No value spills, no product is fused with a sum, no fp32 is rounded but as IEEE 754 says."""
    found = python(COMPILED, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    for name, (registers, *rest) in json.loads(found).items():
        assert rest == [0, 0, 0], name
        assert registers <= (65_536 if name.startswith("choose") else 16_384), name


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
