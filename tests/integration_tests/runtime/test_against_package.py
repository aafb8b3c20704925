"""The adapter computes what the plain `rwkv` package computes, for every version and head size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from langchain_rwkv_state.runtime import load_runtime
from tests.helpers.checkpoints import VERSIONS, write_checkpoint
from tests.helpers.reference import Logits, reference_logits

TOLERANCE = 1e-5
TOKENS = [(7 * n * n + 3 * n) % 288 for n in range(40)]
CASES: list[tuple[float, dict[str, Any]]] = [
    (version, options)
    for version in VERSIONS
    for options in (
        {"n_embd": 128, "head_size": 64},
        {"n_embd": 96, "head_size": 32, "n_layer": 3},
        {"n_embd": 64, "head_size": 16, "vocab": 300},
        {"n_embd": 64, "head_size": 64},
    )
    # The package itself fails on one head of 5.0 and 5.1.
    if version not in (5.0, 5.1) or options != {"n_embd": 64, "head_size": 64}
] + [(5.2, {"tuned_state": True}), (6, {"tuned_state": True, "head_size": 32})]

Known = dict[int, tuple[Path, Logits]]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """Runs the package once for RWKV-7 and once for the others."""
    found: Known = {}
    for version_7 in (True, False):
        folder = tmp_path_factory.mktemp("reference")
        cases = [(n, case) for n, case in enumerate(CASES) if (case[0] == 7) == version_7]
        paths = [
            write_checkpoint(folder / f"{n}.pth", version, **options)
            for n, (version, options) in cases
        ]
        answers = reference_logits(paths, TOKENS, folder, version_7=version_7)
        found |= {
            n: (path, answer) for (n, _), path, answer in zip(cases, paths, answers, strict=True)
        }
    return found


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda n: str(CASES[n]))
def test_logits_and_states_equal_those_of_the_package(known: Known, case: int) -> None:
    path, expected = known[case]
    runtime = load_runtime(path, "package cpu fp32")
    sequence, _ = runtime.forward(TOKENS, runtime.zero_state())
    _, state = runtime.forward(TOKENS[:-1], runtime.zero_state())
    mixed, _ = runtime.forward(TOKENS[-1:], state)
    state = runtime.zero_state()
    for token in TOKENS:
        steps, state = runtime.forward([token], state)
    runtime.close()
    for name, logits in {"sequence": sequence, "mixed": mixed, "steps": steps}.items():
        assert (logits - expected[name]).abs().max() <= TOLERANCE, name
    for number, name in enumerate(state):
        theirs = expected[f"state.{number}"]
        assert (state[name] - theirs).abs().max() <= TOLERANCE, name


def test_the_readings_of_the_package_itself_differ_by_no_more(known: Known) -> None:
    """Else the tolerance would say nothing about the adapter."""
    for _, expected in known.values():
        assert torch.allclose(expected["sequence"], expected["steps"], atol=TOLERANCE, rtol=0)
