"""Runs RWKV-4, 5, 6 and 7 by the `rwkv` package, on any of its strategies.

A `PackageModel` is loaded weights and the arithmetic on plain lists of tensors; who holds it, and
under which fingerprint, is `handle`'s business. It needs no lock: all that changes in a forward
belongs to that call. The easy mistake is to hand the package the tensors of a state: its CUDA
kernels write into the accumulators, and the older class replaces the entries of the list.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, cast

import torch

from langchain_rwkv_state.runtime.checkpoint import Checkpoint, in_loading_order
from langchain_rwkv_state.runtime.rwkv_package.namespace import Namespace
from langchain_rwkv_state.runtime.strategy import Strategy
from langchain_rwkv_state.state import StateLayout, Version, dtype_name

_AUTOCAST = {"cpu", "cuda", "mps"}  # devices where a caller's autocast would change the dtypes
# Bounds the memory of a prefill; at a quarter of it a CPU prefill is as fast.
_CHUNK_TOKENS = 512
# 5.0 and 5.1 build matrices of heads * tokens * 2 tokens.
_CHUNK_TOKENS_QUADRATIC = 128
# Compiling takes half a second and keeps 5 to 10 MB for good, at each load: too much for a model
# that is smaller than that.
_SCRIPTED_FROM_BYTES = 64 << 20
_FIRST = ("emb.weight", "blocks.0.ln0.weight", "blocks.0.ln0.bias")


class PackageModel:
    """One model that the `rwkv` package loaded.

    Args:
        tensors: The weights, as `read_tensors` gave them; emptied.
        checkpoint: What they are.
        strategy: A strategy that was checked for the version and for this machine.
        kernels: Whether to compile and use the package's CUDA kernels.
        scripted: Whether TorchScript compiles it; ``None`` for where that is faster.

    Attributes:
        layout: Names, shapes and dtypes of its states.
        weights: First part of its fingerprint.
        compute: Second part: the dtypes of its layers, without the devices.
        vocab_size: Number of logits, V.
        about: What runs it, in words.
    """

    about = "the rwkv package, one conversation at a time"

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        checkpoint: Checkpoint,
        strategy: Strategy,
        *,
        kernels: bool = False,
        scripted: bool | None = None,
    ) -> None:
        devices = {stage.device for stage in strategy.stages}
        ordered = in_loading_order(tensors)
        tensors.clear()
        self._is_7 = checkpoint.version == "7"
        if strategy.stages[0].dtype == "fp32":
            for name in _FIRST:  # which the package would norm in the file's dtype
                ordered[name] = ordered[name].float()
        if scripted is None:
            scripted = _worth_scripting(devices, sum(t.nbytes for t in ordered.values()))
        namespace = Namespace(
            version_7=self._is_7,
            deep_embed=checkpoint.deep_embed,
            scripted=scripted,
            kernels=kernels,
            directml="dml" in devices,
        )
        self._writes_into_state = kernels
        self._autocast_kinds = sorted({name.partition(":")[0] for name in devices} & _AUTOCAST)
        self._model: Any = namespace.load(ordered, strategy.for_package)
        layers = self._layers(checkpoint, strategy)
        self._devices = [device for device, _ in layers[: checkpoint.n_layer]]
        self._chunk = (
            _CHUNK_TOKENS_QUADRATIC if checkpoint.version in ("5", "5.1") else _CHUNK_TOKENS
        )
        self.vocab_size = checkpoint.vocab_size
        self.weights = checkpoint.weights
        self.compute = _runs([dtype for _, dtype in layers])
        self.layout = StateLayout(
            cast("Version", int(checkpoint.version[0])),
            checkpoint.n_layer,
            checkpoint.n_embd,
            checkpoint.n_head,
            checkpoint.head_size,
            tuple(dtype.removesuffix("i8") for _, dtype in layers[: checkpoint.n_layer]),
        )
        self._tuned = self._tuned_state() if checkpoint.tuned_state else {}

    def zero_tensors(self) -> Mapping[str, torch.Tensor]:
        """Returns the WKV tensors that a tuned checkpoint starts from, by name; else none."""
        return self._tuned

    def forward(
        self, tokens: list[int], tensors: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Reads tokens.

        Args:
            tokens: At least one token id, each in ``[0, V)``.
            tensors: A state's tensors in the layout's order, on any device; left as they are.

        Returns:
            The logits after the last token (``[V]``, fp32, on the CPU) and the new tensors, each
            on its layer's device, some of them views of larger ones.
        """
        if not tokens:
            raise ValueError("There are no tokens to read.")
        with torch.no_grad(), contextlib.ExitStack() as stack:
            for kind in self._autocast_kinds:
                stack.enter_context(torch.autocast(kind, enabled=False))
            state = self._placed(tensors)
            for start in range(0, len(tokens), self._chunk):
                logits, state = self._model.forward(tokens[start : start + self._chunk], state)
            return logits.to("cpu", torch.float32).contiguous(), state

    def forward_batch(
        self, tokens: Sequence[list[int]], states: Sequence[Sequence[torch.Tensor]]
    ) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        """Reads sequences one after the other: the package has no batch.

        Args:
            tokens: Ids, at least one for each sequence.
            states: As many states' tensors; left as they are.

        Returns:
            Logits ``[B, V]`` and the new tensors of each state.
        """
        logits = torch.empty(len(tokens), self.vocab_size)
        taken = []
        for row, (ids, tensors) in enumerate(zip(tokens, states, strict=True)):
            logits[row], after = self.forward(ids, tensors)
            taken.append(after)
        return logits, taken

    def _placed(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the tensors on their layers' devices, copied where they may be written into."""
        each = len(tensors) // self.layout.n_layer
        placed = []
        for index, tensor in enumerate(tensors):
            device = self._devices[index // each]
            moved = tensor if device == "cpu" and tensor.is_cpu else tensor.to(device)
            owned = moved.clone() if moved is tensor and self._writes_into_state else moved
            placed.append(owned)
        return placed

    def _layers(self, checkpoint: Checkpoint, strategy: Strategy) -> list[tuple[Any, str]]:
        """Returns device and dtype of each layer and of the head, as the package placed them."""
        if self._is_7:
            stage = strategy.stages[0]
            return [(stage.device, stage.dtype)] * (checkpoint.n_layer + 1)
        return [
            (layer.device, dtype_name(layer.atype) + "i8" * (layer.wtype == torch.uint8))
            for layer in self._model.strategy
        ]

    def _tuned_state(self) -> dict[str, torch.Tensor]:
        """Returns the start states as the package's own first forward would take them."""
        heads, size = self.layout.n_head, self.layout.head_size
        return {
            f"blocks.{layer}.att_kv": self._model.w[f"blocks.{layer}.att.time_state"]
            .reshape(heads, size, size)
            .transpose(1, 2)
            .to("cpu", torch.float32, copy=True)
            .contiguous()
            for layer in range(self.layout.n_layer)
        }


def _worth_scripting(devices: set[str], weights_bytes: int) -> bool:
    """Says whether TorchScript pays: it decodes a tenth faster on a CPU, where it loads slower.

    Python 3.14 does not support it.
    """
    large = weights_bytes >= _SCRIPTED_FROM_BYTES
    return (large or devices != {"cpu"}) and sys.version_info < (3, 14)


def _runs(dtypes: list[str]) -> str:
    """Returns dtypes by layer in short, such as ``fp16i8*10+fp32``; the last count is left out."""
    runs = [(dtype, len(list(group))) for dtype, group in groupby(dtypes)]
    counted = [f"{dtype}*{count}" for dtype, count in runs[:-1]]
    return "+".join([*counted, runs[-1][0]])
