"""Runs this project's runtime on a card as a contender: whole steps, as the engine asks for them.

python -m benchmarks.cuda.ours MODEL STRATEGY
"""

from __future__ import annotations

import torch

from benchmarks.peers.served import serve
from benchmarks.runtime_speed import RuntimeSpeed
from langchain_rwkv_state.runtime import load_runtime


def load(arguments: list[str]) -> RuntimeSpeed:
    """Loads a runtime as the command's arguments say."""
    model, strategy = arguments
    torch.set_grad_enabled(False)
    return RuntimeSpeed(load_runtime(model, strategy))


if __name__ == "__main__":
    serve(load)
