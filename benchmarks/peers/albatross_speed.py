"""Runs Albatross as a contender on a card, from a checkout of BlinkDL/Albatross.

It is called as its own benchmark does: its newest `rwkv7_fast_*.py`, states made by `zero_state`,
one pass recorded as a CUDA graph and replayed. The embedding is on the card and part of the
recording; nothing is sampled. Its settings are its command line's own, so DeltaLog, which leaves
states unfinished for a few steps, is off. Its CUDA code is built when it is first loaded; products
of many rows want CUTLASS's headers (``CUTLASS_INCLUDE_DIR``), and its version says where they lack.

    python -m benchmarks.peers.albatross_speed MODEL.pth cuda CHECKOUT fp16|fp32
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from benchmarks.peers.served import Run, serve, some_ids

_STATES = {"fp16": "fp16", "fp32": "fp32io16"}


def newest(checkout: str) -> Path:
    """Returns a checkout's newest engine.

    Raises:
        ImportError: It has none.
    """
    found = sorted(Path(checkout).expanduser().glob("*/rwkv7_fast_*.py"))
    if not found:
        raise ImportError(
            f"there is no */rwkv7_fast_*.py in {checkout!r}: give a checkout of BlinkDL/Albatross "
            "of May 2026 or later"
        )
    return found[-1]


class Albatross:
    """A model of the engine.

    Args:
        model: A checkpoint with BlinkDL's names, in bf16.
        device: ``cuda``, or ``cpu`` to see with a stand-in that this runs.
        checkout: Where Albatross is.
        states: Dtype of the WKV states.
    """

    def __init__(self, model: str, device: str, checkout: str, states: str) -> None:
        import torch

        self._torch, self._device = torch, device
        path = newest(checkout)
        module = self._module = _loaded(path)
        # Its command line sets these globals.
        vars(module).update(MODEL_PATH=model, WKV_MODE=_STATES[states], EMB_DEVICE="gpu")
        module.load_extensions(_STATES[states])
        self._model = module.RWKV7()
        self.version = path.parent.name
        if not getattr(module, "ROWS_CUTLASS_AVAILABLE", True):
            self.version += " without CUTLASS"

    def decoder(self, rows: int) -> Run:
        """Returns what reads one more id into each of so many sequences."""
        return self._recorded(rows, 1)

    def reader(self, length: int) -> Run:
        """Returns what reads a prompt."""
        return self._recorded(1, length)

    def logits(self, ids: Sequence[int]) -> list[float]:
        """Returns the logits behind a prompt."""
        tokens = self._torch.tensor([list(ids)], device=self._device)
        found = self._model.forward(tokens, self._model.zero_state(1))
        behind: list[float] = found.flatten().float().tolist()
        return behind

    def _recorded(self, rows: int, length: int) -> Run:
        ids = some_ids(rows * length, self._module.V)
        tokens = self._torch.tensor(ids, device=self._device).view(rows, length)
        state = self._model.zero_state(rows)
        if self._device != "cuda":
            return lambda: self._model.forward(tokens, state)
        cuda = self._torch.cuda
        aside = cuda.Stream()
        aside.wait_stream(cuda.current_stream())
        with cuda.stream(aside):
            for _ in range(3):
                self._model.forward(tokens, state)
        cuda.current_stream().wait_stream(aside)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph, stream=aside):
            output = self._model.forward(tokens, state)

        def run() -> object:
            graph.replay()
            cuda.synchronize()
            return output  # whose memory the graph writes

        return run


def _loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("albatross", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    serve(lambda arguments: Albatross(*arguments))
