"""A runtime in a process of its own: silent from the first import, and usable after a fork."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.checkpoints import write_checkpoint


def run(program: str, path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("version", [6, 7])
def test_a_process_that_loads_and_reads_says_nothing(tmp_path: Path, version: float) -> None:
    program = (
        "import sys\n"
        "from langchain_rwkv_state.runtime import load_runtime\n"
        "runtime = load_runtime(sys.argv[1], 'package cpu fp32')\n"
        "runtime.forward([1, 2, 3], runtime.zero_state())\n"
    )
    done = run(program, write_checkpoint(tmp_path / "m.pth", version))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_may_use_the_model(tmp_path: Path) -> None:
    """Without care it would wait forever for the threads that its parent's OpenMP had."""
    program = """
import os, sys, torch
from langchain_rwkv_state.runtime import load_runtime
torch.set_num_threads(2)
runtime = load_runtime(sys.argv[1], "package cpu fp32")
logits, state = runtime.forward(list(range(64)), runtime.zero_state())
large = torch.randn(1000, 1000)
torch.exp(large) @ large  # OpenMP has its threads now, as it has after a real model
child = os.fork()
if child == 0:
    torch.exp(large) @ large
    again, _ = runtime.forward(list(range(64)), runtime.zero_state())
    other = load_runtime(sys.argv[1], "package cpu bf16")
    other.forward([1], other.zero_state())
    runtime.close()
    os._exit(0 if torch.allclose(again, logits, atol=1e-5) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.get_num_threads() == 2
runtime.forward([1], state)
"""
    done = run(program, write_checkpoint(tmp_path / "m.pth", 7), OMP_NUM_THREADS="2")
    assert (done.returncode, done.stderr) == (0, "")
