"""Runs the `rwkv` package alone, as its README does: what a turn costs with nothing around it.

It knows nothing of this project, keeps the state in a variable and samples greedily. It runs in a
process of its own, reads one turn a line from standard input (JSON: ``ids`` and ``n``) and answers
with a line (JSON: ``seconds`` and ``answer``). The environment is set before anything is imported:
the package reads its flags while it is imported.

    python benchmarks/bare_loop.py MODEL.pth STRATEGY THREADS
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any


def load(path: str, strategy: str, threads: int) -> Any:
    os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    from rwkv.model import RWKV

    return RWKV(model=path.removesuffix(".pth"), strategy=strategy)


def turn(model: Any, state: Any, ids: list[int], n: int) -> tuple[list[int], Any]:
    """Reads a prompt and samples `n` tokens; the state behind the last one is kept."""
    answer: list[int] = []
    logits, state = model.forward(ids, state)
    for _ in range(n):
        answer.append(int(logits.argmax()))
        logits, state = model.forward([answer[-1]], state)
    return answer, state


def main(path: str, strategy: str, threads: str) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        model = load(path, strategy, int(threads))
    print("ready", flush=True)
    state = None
    for line in sys.stdin:
        task = json.loads(line)
        start = time.perf_counter()
        answer, state = turn(model, state, task["ids"], task["n"])
        # Sampling waits for the device, so nothing is left to wait for here.
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "answer": answer}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
