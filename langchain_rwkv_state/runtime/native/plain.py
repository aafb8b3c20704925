"""Computes RWKV-7 in readable PyTorch: every formula once, on any device, in fp32, bf16 or fp16.

The oracle of the compiled pass, and what runs where there is no compiler or no CPU; a CUDA card has
a pass of its own (`runtime/cuda`). It follows `RWKV_x070` of the `rwkv` package, whose roundings it
shares: WKV states in fp32, the rest in the compute dtype; but for three places that fp16 does not
stand (`relu_squared`, the removal key, the decay's bias), which are computed in fp32.
The row above belongs to the same conversation only inside a segment.

T rows (tokens) of G segments, each one conversation's ids in a slot; D width, H heads, N head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from langchain_rwkv_state.runtime.native.arrays import StateArrays
from langchain_rwkv_state.runtime.native.linear import Linear, pack
from langchain_rwkv_state.runtime.native.recurrence import Places, Tokens, recur
from langchain_rwkv_state.runtime.native.weights import Layer, Lora, Norm, Weights

DECAY = -0.606531  # -exp(-0.5), as the package has it
GROUP_NORM_EPS = 64e-5


@dataclass(frozen=True)
class Segments:
    """How T rows belong to G conversations.

    Attributes:
        start: Where each segment's rows begin, and T last, ``G + 1`` numbers.
        slot: Each segment's slot.
    """

    start: tuple[int, ...]
    slot: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        """Number of rows, T."""
        return self.start[-1]


class PlainPass:
    """One pass of a model over ragged rows.

    Args:
        weights: The model; its layers are handed over.
        head_size: Size of a head, N.
        dtype: In which to compute.
        device: Where.
    """

    def __init__(
        self, weights: Weights, head_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype, copy=True)  # what was read is given back

        self._layers = [
            _PlainLayer(layer, head_size=head_size, moved=moved) for layer in weights.handed_over()
        ]
        self._out_norm = _Normed(weights.out_norm, moved)
        self._head = pack(moved(weights.head))

    def __call__(self, x: Tensor, segments: Segments, arrays: StateArrays) -> Tensor:
        """Reads rows into slots.

        Args:
            x: The rows' embeddings, ``[T, D]``.
            segments: Which rows belong together, and their slots.
            arrays: The states; the named slots are updated in place.

        Returns:
            Logits after each segment's last row, ``[G, V]``.
        """
        return self.run(x, Places.of(segments.start, segments.slot, x.device), arrays)

    def run(self, x: Tensor, at: Places, arrays: StateArrays) -> Tensor:
        """Does the same with index tensors that are on the device already.

        Where each segment is one row, nothing here waits for the device or makes a tensor from
        Python's numbers, so that it can be captured.

        Args:
            x: The rows' embeddings, ``[T, D]``.
            at: Which rows belong together, and their slots.
            arrays: The states; the named slots are updated in place.

        Returns:
            Logits after each segment's last row, ``[G, V]``.
        """
        v_first: Tensor | None = None
        for number, layer in enumerate(self._layers):
            mixed, v_first = layer.time_mix(
                x, v_first, arrays.att_x[number], arrays.wkv[number], at
            )
            x = x + mixed
            x = x + layer.channel_mix(x, arrays.ffn_x[number], at)
        return self._head(self._out_norm(x[at.last]))


def _shifted(x: Tensor, before: Tensor, at: Places) -> Tensor:
    """Returns each row's predecessor, and leaves the last of each segment in its slot."""
    back = torch.cat([x[:1], x[:-1]])
    back[at.first] = before[at.slot]
    before[at.slot] = x[at.last]
    return back


class _Normed:
    """A layer norm."""

    def __init__(self, norm: Norm, moved: Linear) -> None:
        self.weight, self.bias = moved(norm.weight), moved(norm.bias)

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias)


class _PlainLayer:
    """One block."""

    def __init__(self, layer: Layer, *, head_size: int, moved: Linear) -> None:
        self._size = head_size
        self._att_norm, self._ffn_norm = (
            _Normed(layer.att_norm, moved),
            _Normed(layer.ffn_norm, moved),
        )
        self._att_mix, self._ffn_mix = moved(layer.att_mix), moved(layer.ffn_mix)
        self._receptance, self._key = pack(moved(layer.receptance)), pack(moved(layer.key))
        self._value, self._output = pack(moved(layer.value)), pack(moved(layer.output))
        assert layer.decay.bias is not None  # noqa: S101  # every checkpoint has it: w0
        self._decay_bias = layer.decay.bias.to(self._att_mix.device, torch.float32, copy=True)
        self._decay = _low_rank(replace(layer.decay, bias=None), moved)
        self._rate, self._gate = _low_rank(layer.rate, moved), _low_rank(layer.gate, moved)
        self._value_mix = _low_rank(layer.value_mix, moved) if layer.value_mix else None
        self._k_k, self._k_a, self._r_k = moved(layer.k_k), moved(layer.k_a), moved(layer.r_k)
        self._head_norm = moved(layer.head_norm.weight), moved(layer.head_norm.bias)
        self._ffn_key, self._ffn_value = pack(moved(layer.ffn_key)), pack(moved(layer.ffn_value))

    def time_mix(
        self,
        x: Tensor,
        v_first: Tensor | None,
        before: Tensor,
        wkv: Tensor,
        at: Places,
    ) -> tuple[Tensor, Tensor]:
        """Reads rows into the WKV states; returns what is added to x, and the first values."""
        x = self._att_norm(x)
        back = _shifted(x, before, at)
        xr, xw, xk, xv, xa, xg = x + (back - x) * self._att_mix.unsqueeze(1)
        r, k, v = self._receptance(xr), self._key(xk), self._value(xv)
        # The decay is taken in fp32, its bias too: where it is long, its bias is most of it.
        down, up = self._decay
        before_decay = up(torch.tanh(down(xw))).float() + self._decay_bias
        w = torch.exp(DECAY * torch.sigmoid(before_decay))
        down, up = self._rate
        rate = torch.sigmoid(up(down(xa)))
        down, up = self._gate
        gate = up(torch.sigmoid(down(xg)))
        # In fp16 the least norm that is divided by would be zero, and a head of zeros NaN.
        kk = functional.normalize(self._heads((k * self._k_k).float()), dim=-1)
        k = k * (1 + (rate - 1) * self._k_a)
        if v_first is None or self._value_mix is None:
            v_first = v
        else:
            down, up = self._value_mix
            v = v + (v_first - v) * torch.sigmoid(up(down(xv)))
        parts = (r, w, k, v, -kk, kk * self._heads(rate))
        tokens = Tokens(*(self._heads(part.flatten(1)).float() for part in parts))
        y = recur(tokens, wkv, at)
        y = y.to(x.dtype).flatten(1)
        heads = y.shape[1] // self._size
        y = functional.group_norm(y, heads, *self._head_norm, eps=GROUP_NORM_EPS)
        bonus = self._heads(r * k * self._r_k).sum(-1, keepdim=True) * self._heads(v)
        return self._output((y + bonus.flatten(1)) * gate), v_first

    def channel_mix(self, x: Tensor, before: Tensor, at: Places) -> Tensor:
        """Returns what is added to x."""
        x = self._ffn_norm(x)
        k = x + (_shifted(x, before, at) - x) * self._ffn_mix
        return self._ffn_value(relu_squared(self._ffn_key(k)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1, self._size)


def relu_squared(x: Tensor) -> Tensor:
    """Returns relu(x)^2, at most the largest number of the dtype: in fp16 256^2 is none.

    Example:
        >>> relu_squared(torch.tensor([-1.0, 3.0, 300.0], dtype=torch.float16)).tolist()
        [0.0, 9.0, 65504.0]
    """
    wide = torch.relu(x).float().square()
    return wide.clamp(max=torch.finfo(x.dtype).max).to(x.dtype)


def _low_rank(lora: Lora, moved: Linear) -> tuple[Linear, Linear]:
    bias = None if lora.bias is None else moved(lora.bias)
    return pack(moved(lora.down)), pack(moved(lora.up), bias)
