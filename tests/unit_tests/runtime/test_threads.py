"""The caller's thread computes nothing in PyTorch, so that the model's thread keeps the cores.

OpenMP keeps a pool of threads for every thread that computed. Where these outnumber the cores they
sleep between operations, and the model decodes at two thirds of its speed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COUNTED = """
import os, sys, time, torch
from langchain_rwkv_state.runtime import load_runtime
from langchain_rwkv_state.state import StateLayout, decode, encode, zero_state

torch.set_num_threads(2)
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
state = zero_state(StateLayout.of(7, n_layer=2, n_embd=1024, head_size=64), "model")
assert decode(encode(state)).state == state
assert threads() == before, "a state was copied by PyTorch's threads"
load_runtime(sys.argv[1], "cpu fp32").zero_state()
deadline = time.monotonic() + 30
while threads() > before and time.monotonic() < deadline:
    time.sleep(0.05)
assert threads() == before, "loading left a pool of threads"
torch.ones(1 << 20).add_(1)
assert threads() > before, "this test counts nothing"
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads by Linux's means")
def test_neither_loading_nor_copying_states_leaves_a_pool_of_threads(tmp_path: Path) -> None:
    from tests.helpers.checkpoints import write_checkpoint

    model = write_checkpoint(tmp_path / "m.pth", 7, n_embd=256, head_size=64)
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, str(model)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
