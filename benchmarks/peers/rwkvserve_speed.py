"""Runs rwkvserve's RWKV-7 on the CPU, in fp32: the nearest thing in Python that has a batch.

Its model alone, without its server. Of the tensors that `load_state_dict` expects, only the first
layer's value mix, which is never used, may be missing.

    python -m benchmarks.peers.rwkvserve_speed MODEL.pth THREADS
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.served import Run, serve, some_ids

_UNUSED = {f"blocks.0.att.v{place}" for place in "012"}


class Rwkvserve:
    """A loaded model.

    Args:
        model: A ``.pth`` with BlinkDL's names.
        threads: Of PyTorch.
    """

    def __init__(self, model: str, threads: int) -> None:
        config = importlib.import_module("rwkvserve.models.rwkv7.config").SimpleTrainConfig
        network = importlib.import_module("rwkvserve.models.rwkv7.model").RWKV7Model
        self.version = importlib.metadata.version("rwkvserve")
        self._torch = torch = importlib.import_module("torch")
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        tensors = torch.load(model, map_location="cpu", weights_only=True)
        self._vocab, width = tensors["emb.weight"].shape
        last = max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        att = f"blocks.{last}.att."
        self._model: Any = network(
            config(
                n_layer=last + 1,
                n_embd=width,
                vocab_size=self._vocab,
                dim_att_lora=tensors[f"{att}w1"].shape[1],
                dim_gate_lora=tensors[f"{att}g1"].shape[1],
                dim_mv_lora=tensors[f"{att}v1"].shape[1],
            )
        )
        wide = {name: tensor.float() for name, tensor in tensors.items()}
        missing = set(self._model.load_state_dict(wide, strict=False).missing_keys) - _UNUSED
        if missing:
            raise RuntimeError(f"rwkvserve wants tensors that the model has not: {sorted(missing)}")
        self._model = self._model.float().eval()

    def decoder(self, rows: int) -> Run:
        """Returns what decodes a batch."""
        state = self._model.init_state(rows)
        ids = self._torch.tensor(some_ids(rows, self._vocab)).unsqueeze(1)

        def run() -> None:
            nonlocal state
            _, state = self._model.forward_with_state(ids, state)

        return run

    def reader(self, length: int) -> Run:
        """Returns what reads a prompt."""
        ids = self._torch.tensor([some_ids(length, self._vocab)])
        return lambda: self._model.forward_with_state(ids, None)

    def logits(self, ids: Sequence[int]) -> list[float]:
        """Returns the logits behind a prompt."""
        found, _ = self._model.forward_with_state(self._torch.tensor([list(ids)]), None)
        behind: list[float] = found[0, -1].float().tolist()
        return behind


if __name__ == "__main__":
    serve(lambda arguments: Rwkvserve(arguments[0], int(arguments[1])))
