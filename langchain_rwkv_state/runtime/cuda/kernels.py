"""Names the kernels that a pass is made of, and gives each in plain PyTorch.

`Kernels` is what the pass asks for; `PlainKernels` is the oracle of the faster ones, and what runs
where there is no Triton. All compute in fp32 between what they read and what they write, and follow
`native/plain.py`, which has every formula once.

T rows of G segments (see `Spans`), C cells, S slots, D width, F channel-mix width, H heads, N head
size, R rank of a LoRA, V vocabulary size. "Compute dtype" is fp16, bf16 or fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from langchain_rwkv_state.runtime.cuda.spans import Spans
from langchain_rwkv_state.runtime.native.plain import DECAY, GROUP_NORM_EPS, relu_squared
from langchain_rwkv_state.runtime.native.weights import Lora, Norm

NORM_EPS = 1e-5
LEAST_LENGTH = 1e-12  # of a removal key, before it is normalised

Product: TypeAlias = Callable[[Tensor], Tensor]
"""``[T, in] -> [T, out]``."""


class Gates(NamedTuple):
    """What the low-rank maps give, ``[T, D]`` each.

    Attributes:
        decay: w, in (0.545, 1), fp32.
        rate: a, in (0, 1), in the compute dtype.
        value_mix: Share of the first layer's values, likewise; ``None`` in the first layer.
        gate: g, in the compute dtype.
    """

    decay: Tensor
    rate: Tensor
    value_mix: Tensor | None
    gate: Tensor


LowRank: TypeAlias = Callable[[Tensor], Gates]
"""``[6, T, D]``, the mixed inputs in the order r, k, v, w, a, g, to gates."""


@dataclass(frozen=True)
class Heads:
    """Weights of a layer's heads, ``[D]`` each, in the compute dtype.

    Attributes:
        k_k: Scale of the removal key.
        k_a: How much the rate bears on the key.
        r_k: Weight of the bonus.
        norm: The group norm behind the recurrence.
    """

    k_k: Tensor
    k_a: Tensor
    r_k: Tensor
    norm: Norm


class Kernels(Protocol):
    """The parts of a pass. What they are given stays as it is, but for the cells that are named."""

    name: str

    def embed(self, emb: Tensor, given: Tensor, slot: Tensor, last: Tensor) -> Tensor:
        """Returns the rows' embeddings, ``[T, D]``.

        Args:
            emb: ``[V, D]``, behind the first layer norm.
            given: The rows' ids, ``[T]``, int32; -1 for the id that a slot chose last.
            slot: The rows' slots, ``[T]``, int32.
            last: What each slot chose last, ``[S + 1]``, int32.
        """
        ...

    def mix(
        self, x: Tensor, add: Tensor | None, norm: Norm, lerp: Tensor, cells: Tensor, at: Spans
    ) -> tuple[Tensor, Tensor]:
        """Adds, norms, shifts and mixes: the beginning of a time-mix and of a channel-mix.

        Args:
            x: ``[T, D]``.
            add: What is added to it first, ``[T, D]``.
            norm: The layer norm.
            lerp: Shares of the row before in each of K results, ``[K, D]``.
            cells: Normed rows that came last, ``[C, D]``; those of `at.after` are written.
            at: Which rows belong together.

        Returns:
            ``x + add``, ``[T, D]``, and the mixed inputs, ``[K, T, D]``, contiguous.
        """
        ...

    def end(self, x: Tensor, add: Tensor, norm: Norm, at: Spans) -> Tensor:
        """Returns the norm of ``x + add`` in each segment's last row, ``[G, D]``."""
        ...

    def products(self, receptance: Tensor, key: Tensor, value: Tensor) -> Product:
        """Returns the three products of a time-mix in one: ``[3, T, D] -> [3, T, D]``.

        Args:
            receptance: ``[D, D]``, like the two others; they may be kept in another form.
            key: Likewise.
            value: Likewise.
        """
        ...

    def low_rank(self, decay: Lora, rate: Lora, value_mix: Lora | None, gate: Lora) -> LowRank:
        """Returns the low-rank maps of a time-mix, with what is applied to them."""
        ...

    def time_mix(
        self,
        rkv: Tensor,
        gates: Gates,
        v_first: Tensor | None,
        heads: Heads,
        wkv: Tensor,
        at: Spans,
    ) -> Tensor:
        """Reads rows into WKV states: all of a time-mix between its products.

        Args:
            rkv: Receptance, key and value, ``[3, T, D]``.
            gates: Decay, rate, share of the first values, and gate.
            v_first: The first layer's values, ``[T, D]``; ``None`` in the first layer.
            heads: The layer's weights.
            wkv: WKV states ``[C, H, N, N]`` (values by keys), fp32 or fp16; read from the cells of
                `at.before`, and written to those of `at.after`.
            at: Which rows belong together.

        Returns:
            What the output matrix is applied to, ``[T, D]``, in the compute dtype.
        """
        ...

    def relu_squared(self, x: Tensor) -> Tensor:
        """Returns ``relu(x)^2``, at most the dtype's largest number; `x` may be overwritten."""
        ...

    def channel(self, key: Tensor, value: Tensor) -> Product:
        """Returns ``value @ relu(key @ x)^2`` as one: ``[T, D] -> [T, D]``.

        Args:
            key: ``[F, D]``; may be kept in another form.
            value: ``[D, F]``; likewise.
        """
        ...


class PlainKernels:
    """The kernels in PyTorch alone: readable, on any device."""

    name = "PyTorch"

    def embed(self, emb: Tensor, given: Tensor, slot: Tensor, last: Tensor) -> Tensor:
        """See `Kernels.embed`."""
        return emb[torch.where(given < 0, last[slot.long()], given).long()]

    def mix(
        self, x: Tensor, add: Tensor | None, norm: Norm, lerp: Tensor, cells: Tensor, at: Spans
    ) -> tuple[Tensor, Tensor]:
        """See `Kernels.mix`."""
        x = x if add is None else x + add
        normed = _normed(x, norm)
        if at.longest == 1:  # and nothing waits for the device
            back = cells[at.before.long()]
            cells[at.after.long()] = normed
        else:
            above = torch.cat([normed[:1], normed[:-1]])
            begins = (at.before >= 0).unsqueeze(1)
            back = torch.where(begins, cells[at.before.clamp(min=0).long()], above)
            kept = (at.after >= 0).nonzero().squeeze(1)
            cells[at.after[kept].long()] = normed[kept]
        wide, apart = normed.float(), back.float() - normed.float()
        return x, (wide + apart * lerp.float().unsqueeze(1)).to(x.dtype)

    def end(self, x: Tensor, add: Tensor, norm: Norm, at: Spans) -> Tensor:
        """See `Kernels.end`."""
        return _normed((x + add)[at.last], norm)

    def products(self, receptance: Tensor, key: Tensor, value: Tensor) -> Product:
        """See `Kernels.products`."""
        return grouped(receptance, key, value)

    def low_rank(self, decay: Lora, rate: Lora, value_mix: Lora | None, gate: Lora) -> LowRank:
        """See `Kernels.low_rank`."""

        def up(lora: Lora, inner: Tensor) -> Tensor:
            outer = functional.linear(inner, lora.up).float()
            return outer if lora.bias is None else outer + lora.bias.float()

        def gates(mixed: Tensor) -> Gates:
            _, _, xv, xw, xa, xg = mixed
            w = up(decay, torch.tanh(functional.linear(xw, decay.down)))
            a = up(rate, functional.linear(xa, rate.down))
            g = up(gate, torch.sigmoid(functional.linear(xg, gate.down)))
            v = None
            if value_mix is not None:
                v = torch.sigmoid(up(value_mix, functional.linear(xv, value_mix.down))).to(xv.dtype)
            dtype = mixed.dtype
            return Gates(
                torch.exp(DECAY * torch.sigmoid(w)), torch.sigmoid(a).to(dtype), v, g.to(dtype)
            )

        return gates

    def time_mix(
        self,
        rkv: Tensor,
        gates: Gates,
        v_first: Tensor | None,
        heads: Heads,
        wkv: Tensor,
        at: Spans,
    ) -> Tensor:
        """See `Kernels.time_mix`."""
        size = wkv.shape[-1]
        wide = torch.promote_types(rkv.dtype, torch.float32)  # fp64 stays: the oracle of a trial

        def split(x: Tensor) -> Tensor:
            return x.to(wide).view(-1, x.shape[-1] // size, size)

        r, k, v = map(split, rkv)
        rate = split(gates.rate)
        if gates.value_mix is not None and v_first is not None:
            v = v + (split(v_first) - v) * split(gates.value_mix)
        removal = k * split(heads.k_k)
        removal = removal / removal.norm(dim=-1, keepdim=True).clamp(min=LEAST_LENGTH)
        k = k * (1 + (rate - 1) * split(heads.k_a))
        y = recurrence(r, split(gates.decay), k, v, -removal, removal * rate, wkv, at)
        y = functional.group_norm(
            y.flatten(1),
            y.shape[1],
            heads.norm.weight.to(wide),
            heads.norm.bias.to(wide),
            eps=GROUP_NORM_EPS,
        )
        bonus = (r * k * split(heads.r_k)).sum(-1, keepdim=True) * v
        return ((y + bonus.flatten(1)) * gates.gate.to(wide)).to(rkv.dtype)

    def relu_squared(self, x: Tensor) -> Tensor:
        """See `Kernels.relu_squared`."""
        return relu_squared(x)

    def channel(self, key: Tensor, value: Tensor) -> Product:
        """See `Kernels.channel`."""
        return lambda x: functional.linear(self.relu_squared(functional.linear(x, key)), value)


def grouped(receptance: Tensor, key: Tensor, value: Tensor) -> Product:
    """Returns three products of one shape as one batched product."""
    weights = torch.stack([receptance, key, value]).transpose(1, 2)
    return lambda x: torch.bmm(x, weights)


def recurrence(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, wkv: Tensor, at: Spans
) -> Tensor:
    """Reads tokens, ``[T, H, N]`` each, one by one; see `native/recurrence.py` for the formula.

    Where each segment is one token, all are read at once, and nothing waits for the device.
    """
    tokens = (r, w, k, v, a, b)
    if at.longest == 1:
        y, states = _step(tokens, wkv[at.before.long()].to(r.dtype))
        wkv[at.after.long()] = states.to(wkv.dtype)
        return y
    y = torch.empty_like(v)
    state = wkv[:1].to(r.dtype)
    places = zip(at.before.tolist(), at.after.tolist(), strict=True)
    for t, (source, target) in enumerate(places):
        rows = slice(t, t + 1)
        before = state if source < 0 else wkv[source : source + 1].to(r.dtype)
        y[rows], state = _step(tuple(part[rows] for part in tokens), before)
        if target >= 0:
            wkv[target] = state[0].to(wkv.dtype)
    return y


def _step(tokens: tuple[Tensor, ...], state: Tensor) -> tuple[Tensor, Tensor]:
    r, w, k, v, a, b = tokens
    removed = (state @ a.unsqueeze(-1)) * b.unsqueeze(-2)
    state = state * w.unsqueeze(-2) + removed + v.unsqueeze(-1) * k.unsqueeze(-2)
    return (state @ r.unsqueeze(-1)).squeeze(-1), state


def _normed(x: Tensor, norm: Norm) -> Tensor:
    wide = functional.layer_norm(
        x.float(), x.shape[-1:], norm.weight.float(), norm.bias.float(), eps=NORM_EPS
    )
    return wide.to(x.dtype)
