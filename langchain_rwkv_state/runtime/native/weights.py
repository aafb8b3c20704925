"""Sorts the tensors of an RWKV-7 checkpoint into layers, by the names of its formulas.

It computes nothing and keeps every dtype. The checkpoint keeps a LoRA's matrices ``[in, out]``, and
all the others ``[out, in]``. Here every matrix is ``[out, in]``.

D width, F channel-mix width, R rank of a LoRA, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class Norm:
    """A layer norm's weight and bias, ``[D]`` each."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Lora:
    """A low-rank map: ``up @ activation(down @ x) + bias``.

    Attributes:
        down: ``[R, D]``.
        up: ``[D, R]``.
        bias: ``[D]``, or ``None``.
    """

    down: Tensor
    up: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Layer:
    """One block.

    Attributes:
        att_norm: Before the time-mix.
        att_mix: Shares of the token before in each input of the time-mix, ``[6, D]``: r, w, k, v,
            a, g.
        receptance: ``[D, D]``, as are `key`, `value` and `output`.
        decay: w; its bias is ``w0``.
        rate: a, the in-context learning rate.
        gate: g.
        value_mix: v, the share of the first layer's values; ``None`` in the first layer.
        k_k: Scale of the removal key, ``[D]``.
        k_a: How much the rate bears on the key, ``[D]``.
        r_k: Weight of the bonus, ``[D]``.
        head_norm: The group norm behind the recurrence.
        ffn_norm: Before the channel-mix.
        ffn_mix: Share of the token before, ``[D]``.
        ffn_key: ``[F, D]``.
        ffn_value: ``[D, F]``.
    """

    att_norm: Norm
    att_mix: Tensor
    receptance: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    decay: Lora
    rate: Lora
    gate: Lora
    value_mix: Lora | None
    k_k: Tensor
    k_a: Tensor
    r_k: Tensor
    head_norm: Norm
    ffn_norm: Norm
    ffn_mix: Tensor
    ffn_key: Tensor
    ffn_value: Tensor


@dataclass(frozen=True)
class Weights:
    """A whole model.

    Attributes:
        emb: ``[V, D]``; what a layer reads is its row behind `emb_norm`.
        emb_norm: The first block's ``ln0``.
        layers: The blocks; `handed_over` empties them.
        out_norm: Before the head.
        head: ``[V, D]``.
    """

    emb: Tensor
    emb_norm: Norm
    layers: list[Layer]
    out_norm: Norm
    head: Tensor

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], n_layer: int) -> Weights:
        """Sorts a checkpoint's tensors, whose names and shapes were checked.

        Args:
            tensors: Tensors by BlinkDL's names.
            n_layer: Number of layers.
        """
        z = {name: tensor.squeeze() for name, tensor in tensors.items()}
        return cls(
            emb=tensors["emb.weight"],
            emb_norm=_norm(z, "blocks.0.ln0"),
            layers=[_layer(z, tensors, layer) for layer in range(n_layer)],
            out_norm=_norm(z, "ln_out"),
            head=tensors["head.weight"],
        )

    def handed_over(self) -> Iterator[Layer]:
        """Yields each layer and lets go of it, so that a model is in memory once, not twice."""
        while self.layers:
            yield self.layers.pop(0)


def _layer(z: Mapping[str, Tensor], whole: Mapping[str, Tensor], layer: int) -> Layer:
    block = f"blocks.{layer}."
    att, ffn = block + "att.", block + "ffn."

    def matrix(name: str) -> Tensor:
        return whole[f"{name}.weight"]

    return Layer(
        att_norm=_norm(z, block + "ln1"),
        att_mix=torch.stack([z[f"{att}x_{name}"] for name in "rwkvag"]),
        receptance=matrix(att + "receptance"),
        key=matrix(att + "key"),
        value=matrix(att + "value"),
        output=matrix(att + "output"),
        decay=_lora(z, whole, att + "w"),
        rate=_lora(z, whole, att + "a"),
        gate=_lora(z, whole, att + "g"),
        value_mix=_lora(z, whole, att + "v") if layer else None,
        k_k=z[att + "k_k"],
        k_a=z[att + "k_a"],
        r_k=z[att + "r_k"].flatten(),
        head_norm=_norm(z, att + "ln_x"),
        ffn_norm=_norm(z, block + "ln2"),
        ffn_mix=z[ffn + "x_k"],
        ffn_key=matrix(ffn + "key"),
        ffn_value=matrix(ffn + "value"),
    )


def _lora(z: Mapping[str, Tensor], whole: Mapping[str, Tensor], name: str) -> Lora:
    return Lora(whole[f"{name}1"].t(), whole[f"{name}2"].t(), z.get(f"{name}0"))


def _norm(z: Mapping[str, Tensor], name: str) -> Norm:
    return Norm(z[f"{name}.weight"], z[f"{name}.bias"])
