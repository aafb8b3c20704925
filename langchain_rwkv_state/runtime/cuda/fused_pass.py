"""Computes RWKV-7 over rows on a card, as few launches as its kernels allow.

It holds the weights in the form that the kernels want, and calls one after another: ten a layer
where each conversation reads one token. What they compute is said in `kernels.py`.

T rows of G segments, D width, V vocabulary size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from langchain_rwkv_state.runtime.cuda.cells import Cells
from langchain_rwkv_state.runtime.cuda.kernels import (
    NORM_EPS,
    Heads,
    Kernels,
    LowRank,
    Product,
)
from langchain_rwkv_state.runtime.cuda.matrices import Kind, matrix
from langchain_rwkv_state.runtime.cuda.spans import Spans
from langchain_rwkv_state.runtime.native.weights import Layer, Lora, Norm, Weights

_EMBEDDINGS = 4096  # rows at a time: all of them in fp32 would not fit beside the model


@dataclass(frozen=True)
class _CardLayer:
    """One block, ready to run."""

    att_norm: Norm
    att_lerp: Tensor
    products: Product
    low_rank: LowRank
    heads: Heads
    output: Product
    ffn_norm: Norm
    ffn_lerp: Tensor
    channel: Product


class FusedPass:
    """One pass of a model over ragged rows.

    Args:
        weights: The model; its layers are handed over.
        dtype: In which to compute.
        device: Where.
        kernels: What it is made of.
        kind: How the large matrices are kept.

    Attributes:
        kernels: What it is made of.
    """

    def __init__(
        self,
        weights: Weights,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels,
        kind: Kind,
    ) -> None:
        self.kernels = kernels
        self._device, self._dtype, self._kind = device, dtype, kind
        self._emb = self._embeddings(weights)
        self._layers = [self._layer(layer) for layer in weights.handed_over()]
        self._out_norm = self._norm(weights.out_norm)
        self._head = self._matrix(weights.head)

    def embed(self, given: Tensor, slot: Tensor, last: Tensor) -> Tensor:
        """Returns rows' embeddings, ``[T, D]``; see `Kernels.embed`."""
        return self.kernels.embed(self._emb, given, slot, last)

    def run(self, x: Tensor, cells: Cells, at: Spans) -> Tensor:
        """Reads rows.

        Where each segment is one row, nothing here waits for the device or makes a tensor from
        Python's numbers, so that it can be captured.

        Args:
            x: The rows' embeddings, ``[T, D]``.
            cells: The states; those of `at.after` are written.
            at: Which rows belong together, and their cells.

        Returns:
            Logits after each segment's last row, ``[G, V]``, in the compute dtype.
        """
        kernels = self.kernels
        add: Tensor | None = None
        v_first: Tensor | None = None
        for number, layer in enumerate(self._layers):
            x, mixed = kernels.mix(x, add, layer.att_norm, layer.att_lerp, cells.att_x[number], at)
            rkv, gates = layer.products(mixed[:3]), layer.low_rank(mixed)
            y = kernels.time_mix(rkv, gates, v_first, layer.heads, cells.wkv[number], at)
            v_first = rkv[2] if v_first is None else v_first
            add = layer.output(y)
            x, mixed = kernels.mix(x, add, layer.ffn_norm, layer.ffn_lerp, cells.ffn_x[number], at)
            add = layer.channel(mixed[0])
        assert add is not None  # noqa: S101  # there is a layer
        return self._head(kernels.end(x, add, self._out_norm, at))

    # -- weights -----------------------------------------------------------------------------

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, self._dtype, copy=True)  # what was read is given back

    def _norm(self, norm: Norm) -> Norm:
        return Norm(self._moved(norm.weight), self._moved(norm.bias))

    def _lora(self, lora: Lora) -> Lora:
        bias = None if lora.bias is None else self._moved(lora.bias)
        return Lora(self._moved(lora.down).contiguous(), self._moved(lora.up).contiguous(), bias)

    def _matrix(self, weight: Tensor) -> Product:
        return matrix(self._moved(weight), self._kind)

    def _embeddings(self, weights: Weights) -> Tensor:
        """Returns the embeddings behind the first norm, which is of the id alone."""
        count, width = weights.emb.shape
        found = torch.empty(count, width, dtype=self._dtype, device=self._device)
        scale, bias = (
            part.to(self._device, torch.float32)
            for part in (weights.emb_norm.weight, weights.emb_norm.bias)
        )
        for start in range(0, count, _EMBEDDINGS):
            rows = weights.emb[start : start + _EMBEDDINGS].to(self._device, torch.float32)
            found[start : start + _EMBEDDINGS] = functional.layer_norm(
                rows, (width,), scale, bias, eps=NORM_EPS
            )
        return found

    def _layer(self, layer: Layer) -> _CardLayer:
        kernels = self.kernels
        r, w, k, v, a, g = self._moved(layer.att_mix)
        rkv = (layer.receptance, layer.key, layer.value)
        if self._kind == "as_is":
            products = kernels.products(*map(self._moved, rkv))
            channel = kernels.channel(self._moved(layer.ffn_key), self._moved(layer.ffn_value))
        else:
            products = _side_by_side(*map(self._matrix, rkv))
            channel = _channel(kernels, self._matrix(layer.ffn_key), self._matrix(layer.ffn_value))
        return _CardLayer(
            att_norm=self._norm(layer.att_norm),
            att_lerp=torch.stack([r, k, v, w, a, g]),
            products=products,
            low_rank=kernels.low_rank(
                self._lora(layer.decay),
                self._lora(layer.rate),
                self._lora(layer.value_mix) if layer.value_mix else None,
                self._lora(layer.gate),
            ),
            heads=Heads(
                self._moved(layer.k_k),
                self._moved(layer.k_a),
                self._moved(layer.r_k),
                self._norm(layer.head_norm),
            ),
            output=self._matrix(layer.output),
            ffn_norm=self._norm(layer.ffn_norm),
            ffn_lerp=self._moved(layer.ffn_mix).unsqueeze(0),
            channel=channel,
        )


def _side_by_side(*products: Product) -> Product:
    def run(mixed: Tensor) -> Tensor:
        return torch.stack([each(part) for each, part in zip(products, mixed, strict=True)])

    return run


def _channel(kernels: Kernels, key: Product, value: Product) -> Product:
    return lambda x: value(kernels.relu_squared(key(x)))
