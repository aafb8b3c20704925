"""Runs a model's large matrix products alone, in PyTorch: the measure of all the rest's cost.

The time-mix's four square matrices, the channel-mix's two and, in decoding, the head, one after the
other on inputs that mean nothing; no LoRA, no recurrence, no norm. ``packed`` prepares the matrices
for oneDNN, ``plain`` is ``x @ W.t()``. Neither is the limit: on some processors the packed product
is three times as fast as the plain one, and a faster one may be written.

    python -m benchmarks.peers.products MODEL.pth THREADS plain|packed|cuda
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from benchmarks.peers.served import Run, serve

if TYPE_CHECKING:
    from torch import Tensor

_LARGE = re.compile(r"blocks\.\d+\.(att\.(receptance|key|value|output)|ffn\.(key|value))\.weight")


class Products:
    """The products of one model.

    Args:
        model: A checkpoint with BlinkDL's names.
        threads: Of PyTorch.
        kind: ``plain``, ``packed``, or ``cuda`` for plain ones in fp16 on a card.
    """

    def __init__(self, model: str, threads: int, kind: str) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._torch = torch
        self._cuda = kind == "cuda"
        self.version = str(torch.__version__)
        tensors = torch.load(model, map_location="cpu", weights_only=True, mmap=True)
        names = [name for name in tensors if _LARGE.fullmatch(name)]
        make = _packed if kind == "packed" else _plain
        self._body = [(tensors[n].shape[1], make(self._placed(tensors[n]))) for n in names]
        head = tensors["head.weight"]
        self._head = (head.shape[1], make(self._placed(head)))

    def _placed(self, weight: Tensor) -> Tensor:
        if self._cuda:
            return weight.to("cuda", self._torch.float16)
        return weight.to(self._torch.float32, copy=True)

    def decoder(self, rows: int) -> Run:
        """Returns what multiplies rows with every matrix and the head."""
        return self._products(rows, [*self._body, self._head])

    def reader(self, length: int) -> Run:
        """Returns what multiplies rows with every matrix; the head is for the last id alone."""
        return self._products(length, self._body)

    def logits(self, ids: Sequence[int]) -> None:
        """Returns nothing: these are products of nothing in particular."""

    def _products(self, rows: int, products: list[tuple[int, Callable[[Tensor], Tensor]]]) -> Run:
        widths = {width for width, _ in products}
        inputs = {width: self._placed(self._torch.randn(rows, width)) for width in widths}

        def run() -> None:
            for width, product in products:
                product(inputs[width])
            if self._cuda:
                self._torch.cuda.synchronize()

        return run


def _plain(weight: Tensor) -> Callable[[Tensor], Tensor]:
    transposed = weight.t()
    return lambda x: x @ transposed


def _packed(weight: Tensor) -> Callable[[Tensor], Tensor]:
    torch = importlib.import_module("torch")
    multiply = torch.ops.mkldnn._linear_pointwise
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    return lambda x: multiply(x, packed, None, "none", [], "")


if __name__ == "__main__":
    serve(lambda arguments: Products(arguments[0], int(arguments[1]), arguments[2]))
