"""Runs a runtime of this project as a contender of `benchmarks.speed`: many states through slots.

``plain`` is the native runtime without its compiled part; every other name is a strategy. A runtime
has its process to itself: PyTorch keeps a pool of threads for each thread that computes.

    python -m benchmarks.runtime_speed MODEL THREADS plain|STRATEGY
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.peers.served import Run, serve, some_ids
from langchain_rwkv_state import __version__
from langchain_rwkv_state.runtime import Runtime, load_runtime, open_slots
from langchain_rwkv_state.runtime.checkpoint import Checkpoint, read_tensors
from langchain_rwkv_state.runtime.handle import RuntimeHandle
from langchain_rwkv_state.runtime.native.model import NativeModel
from langchain_rwkv_state.runtime.strategy import Stage


class RuntimeSpeed:
    """A loaded runtime.

    Args:
        runtime: The runtime.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.version = __version__

    def decoder(self, rows: int) -> Run:
        """Returns what reads one id into each of many slots."""
        slots, zero = open_slots(self._runtime, rows), self._runtime.zero_state()
        for slot in range(rows):
            slots.put(slot, zero)
        ids = some_ids(rows, self._runtime.vocab_size)
        reads = [(slot, [token]) for slot, token in enumerate(ids)]
        return lambda: slots.read(reads)

    def reader(self, length: int) -> Run:
        """Returns what reads a prompt into a slot with the zero state."""
        slots, zero = open_slots(self._runtime, 1), self._runtime.zero_state()
        ids = some_ids(length, self._runtime.vocab_size)

        def run() -> None:
            slots.put(0, zero)
            slots.read([(0, ids)])

        return run

    def logits(self, ids: Sequence[int]) -> list[float]:
        """Returns the logits behind a prompt."""
        found, _ = self._runtime.forward(ids, self._runtime.zero_state())
        behind: list[float] = found.tolist()
        return behind


def load(arguments: list[str]) -> RuntimeSpeed:
    """Loads a runtime as the command's arguments say."""
    model, threads, strategy = arguments
    torch.set_num_threads(int(threads))
    torch.set_grad_enabled(False)
    if strategy != "plain":
        return RuntimeSpeed(load_runtime(model, strategy))
    return RuntimeSpeed(load_plain(model))


def load_plain(model: str) -> Runtime:
    """Loads the native runtime without its compiled part, on the CPU in fp32."""
    tensors = read_tensors(Path(model))
    checkpoint = Checkpoint.of(tensors, Path(model))
    plain = NativeModel(tensors, checkpoint, Stage("cpu", "fp32"), compiled=False)
    return RuntimeHandle(plain, lambda: None, name="plain")


if __name__ == "__main__":
    serve(load)
