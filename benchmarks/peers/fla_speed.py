"""Runs flash-linear-attention's RWKV-7 as a contender on a card.

It gets the shape of the model and random weights of its own, so its logits are not compared. It
is called eagerly, as `generate` does: the library records no steps.

    python -m benchmarks.peers.fla_speed MODEL.pth cuda
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.served import Run, serve, some_ids


class Fla:
    """A model of the library.

    Args:
        model: A checkpoint with BlinkDL's names, for its sizes.
        device: The card.
    """

    def __init__(self, model: str, device: str) -> None:
        import torch

        fla = importlib.import_module("fla.models")
        # Its layers ask here whether to fill their weights number by number, which takes minutes.
        vars(importlib.import_module("transformers.modeling_utils"))["_init_weights"] = False
        torch.set_grad_enabled(False)
        self._torch, self._device = torch, device
        tensors = torch.load(model, map_location="cpu", weights_only=True, mmap=True)
        self._vocab, width = tensors["emb.weight"].shape
        config = fla.RWKV7Config(
            hidden_size=width,
            num_hidden_layers=1 + max(int(n.split(".")[1]) for n in tensors if "blocks." in n),
            head_dim=tensors["blocks.0.att.r_k"].shape[-1],
            vocab_size=self._vocab,
            **{
                f"{name}_low_rank_dim": tensors[f"blocks.0.att.{letter}1"].shape[1]
                for name, letter in (("decay", "w"), ("a", "a"), ("v", "v"), ("gate", "g"))
            },
        )
        with torch.device("meta"):  # and so does what is left of it
            empty = fla.RWKV7ForCausalLM(config)
        self._model = empty.half().to_empty(device=device).eval()
        for name, weight in self._model.named_parameters():
            weight.fill_(1) if "norm.weight" in name else weight.normal_(std=width**-0.5)
        self.version = importlib.metadata.version("flash-linear-attention")

    def decoder(self, rows: int) -> Run:
        """Returns what reads one more id into each of so many sequences."""
        ids = self._torch.tensor(some_ids(rows, self._vocab), device=self._device).unsqueeze(1)
        cache: list[Any] = [None]

        def run() -> None:
            found = self._model(input_ids=ids, past_key_values=cache[0], use_cache=True)
            cache[0] = found.past_key_values
            self._torch.cuda.synchronize()

        return run

    def reader(self, length: int) -> Run:
        """Returns what reads a prompt from nothing."""
        ids = self._torch.tensor([some_ids(length, self._vocab)], device=self._device)

        def run() -> None:
            self._model(input_ids=ids, use_cache=True, logits_to_keep=1)
            self._torch.cuda.synchronize()

        return run

    def logits(self, ids: Sequence[int]) -> None:
        """Returns nothing: its weights are others."""


if __name__ == "__main__":
    serve(lambda arguments: Fla(*arguments))
