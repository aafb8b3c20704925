"""Runs the `rwkv` package as a contender on a card, with its own CUDA kernels.

It knows nothing of this project. The package reads its switches while it is imported, and builds
its kernels when it first loads a model, for which it needs a CUDA compiler. It has no batch, so
states go one after the other.

    python -m benchmarks.peers.rwkv_cuda_speed MODEL.pth cuda|cpu
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence

from benchmarks.peers.served import Run, serve, some_ids


class Package:
    """The package's model.

    Args:
        model: A checkpoint with BlinkDL's names.
        device: ``cuda``, or ``cpu`` to see that this runs.
    """

    def __init__(self, model: str, device: str) -> None:
        on_card = device == "cuda"
        os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": str(int(on_card))}
        import torch
        from rwkv.model import RWKV

        torch.set_grad_enabled(False)
        strategy = "cuda fp16" if on_card else "cpu fp32"
        self._model = RWKV(model=model.removesuffix(".pth"), strategy=strategy)
        self._wait: Run = torch.cuda.synchronize if on_card else lambda: None
        self._vocab = self._model.z["head.weight"].shape[1]
        self.version = importlib.metadata.version("rwkv")

    def decoder(self, rows: int) -> Run:
        """Returns what reads one id into each of so many states, one after the other."""
        ids = some_ids(rows, self._vocab)
        states = [self._model.forward([token], None)[1] for token in ids]

        def run() -> None:
            for place, token in enumerate(ids):
                _, states[place] = self._model.forward([token], states[place])
            self._wait()

        return run

    def reader(self, length: int) -> Run:
        """Returns what reads a prompt from nothing."""
        ids = some_ids(length, self._vocab)

        def run() -> None:
            self._model.forward(ids, None)
            self._wait()

        return run

    def logits(self, ids: Sequence[int]) -> list[float]:
        """Returns the logits behind a prompt."""
        found: list[float] = self._model.forward(list(ids), None)[0].float().tolist()
        return found


if __name__ == "__main__":
    serve(lambda arguments: Package(*arguments))
