"""Runs the pass of `plain.py` as one call into `kernels.cpp`, on a CPU in fp32.

Weights are kept in the dtype of their file, in the order in which they are read, and widened to
fp32 in registers: a checkpoint in bf16 or fp16 takes half the memory, and decodes twice as fast,
with the same results. With `int8` the large matrices are rounded to 8 bits per output; where the
processor sums products of bytes, what they multiply is rounded too, row by row. The C++ holds bare
addresses: `_kept` owns every tensor behind them.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from langchain_rwkv_state.runtime.native.arrays import StateArrays
from langchain_rwkv_state.runtime.native.large_pages import room
from langchain_rwkv_state.runtime.native.plain import Segments
from langchain_rwkv_state.runtime.native.weights import Layer, Lora, Norm, Weights

LARGEST_HEAD = 256  # for which the kernel has room
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
_DOT8 = 4
_DOT = 4  # bytes that the processor multiplies and sums at once


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("kind", ctypes.c_int64),
    )


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))


_LARGE = ("receptance", "key", "value", "output", "ffn_key", "ffn_value")
_LORAS = {"w": "decay", "a": "rate", "v": "value_mix", "g": "gate"}


class _Layer(ctypes.Structure):
    _fields_ = (
        ("att_norm", _Norm),
        ("ffn_norm", _Norm),
        ("att_mix", ctypes.c_void_p),
        ("ffn_mix", ctypes.c_void_p),
        *((name, _Matrix) for name in _LARGE),
        *((f"{letter}{number}", _Matrix) for letter in _LORAS for number in (1, 2)),
        *((name, ctypes.c_void_p) for name in ("k_k", "k_a", "r_k")),
        ("head_norm", _Norm),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("layers_count", "width", "head_size", "ffn")),
        ("layers", ctypes.c_void_p),
        ("out_norm", _Norm),
        ("head", _Matrix),
    )


class CompiledPass:
    """One pass of a model over ragged rows.

    Args:
        weights: The model; its layers are handed over.
        head_size: Size of a head, at most `LARGEST_HEAD`.
        library: What `build.library` returned.
        int8: Whether the large matrices and the head are rounded to 8 bits per output.
    """

    def __init__(
        self, weights: Weights, head_size: int, library: ctypes.CDLL, *, int8: bool = False
    ) -> None:
        self._library: Any = library
        self._library.workspace.restype = ctypes.c_int64
        self._panel = int(library.panel_width())
        self._fp16, self._dots = bool(library.keeps_fp16()), bool(library.has_dots())
        self._int8 = int8
        self._kept: list[Any] = []
        count, ffn = len(weights.layers), len(weights.layers[0].ffn_key)
        layers = (_Layer * count)(*map(self._layer, weights.handed_over()))
        self._kept.append(layers)
        self._vocab_size, width = weights.head.shape
        self._model = _Model(
            count,
            width,
            head_size,
            ffn,
            ctypes.addressof(layers),
            self._norm(weights.out_norm),
            self._matrix(weights.head, large=True),
        )

    def __call__(self, x: Tensor, segments: Segments, arrays: StateArrays) -> Tensor:
        """Reads rows into slots; see `PlainPass`.

        Args:
            x: The rows' embeddings, ``[T, D]``, fp32; overwritten.
            segments: Which rows belong together, and their slots.
            arrays: The states; the named slots are updated in place.

        Returns:
            Logits after each segment's last row, ``[G, V]``, until the next pass over `arrays`.
        """
        rows, count = segments.n_rows, len(segments.slot)
        start = (ctypes.c_int64 * (count + 1))(*segments.start)
        slot = (ctypes.c_int64 * count)(*segments.slot)
        model, n = ctypes.byref(self._model), ctypes.c_int64
        space = arrays.scratch("space", self._library.workspace(model, n(rows), n(count)))
        logits = arrays.scratch("logits", count * self._vocab_size).view(count, -1)
        tensors = (x, arrays.att_x, arrays.wkv, arrays.ffn_x, space, logits)
        places = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
        self._library.forward(
            model,
            n(torch.get_num_threads()),
            n(rows),
            n(count),
            start,
            slot,
            n(arrays.count),
            *places,
        )
        return logits

    def _layer(self, layer: Layer) -> _Layer:
        made = _Layer(att_norm=self._norm(layer.att_norm), ffn_norm=self._norm(layer.ffn_norm))
        made.att_mix, made.ffn_mix = self._vector(layer.att_mix), self._vector(layer.ffn_mix)
        for name in _LARGE:
            setattr(made, name, self._matrix(getattr(layer, name), large=True))
        for letter, name in _LORAS.items():
            lora: Lora | None = getattr(layer, name)
            if lora is not None:
                setattr(made, f"{letter}1", self._matrix(lora.down))
                setattr(made, f"{letter}2", self._matrix(lora.up, lora.bias))
        for name in ("k_k", "k_a", "r_k"):
            setattr(made, name, self._vector(getattr(layer, name)))
        made.head_norm = self._norm(layer.head_norm)
        return made

    def _norm(self, norm: Norm) -> _Norm:
        return _Norm(self._vector(norm.weight), self._vector(norm.bias))

    def _vector(self, tensor: Tensor) -> int:
        return self._place(tensor.to(torch.float32, copy=True).contiguous())

    def _matrix(
        self, weight: Tensor, bias: Tensor | None = None, *, large: bool = False
    ) -> _Matrix:
        n, k = weight.shape
        made = _Matrix(n=n, k=k, bias=None if bias is None else self._vector(bias))
        if large and self._int8:
            weight, scale = rounded(weight)
            made.scale = self._vector(scale)
        elif weight.dtype == torch.float16 and not self._fp16:
            weight = weight.float()
        made.kind, together = _KINDS[weight.dtype], 1
        if weight.dtype == torch.int8 and self._dots and k % _DOT == 0:
            made.kind, together = _DOT8, _DOT
            made.sums = self._place(panels(weight, self._panel).sum((1, 3), dtype=torch.int32))
        packed = panels(weight, self._panel, together)
        made.data = self._place(room(packed.shape, packed.dtype).copy_(packed))
        return made

    def _place(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()


def panels(weight: Tensor, width: int, together: int = 1) -> Tensor:
    """Returns ``[out, in]`` as ``[panels, in / together, width, together]``.

    Outputs that do not exist are zero.
    """
    missing = -len(weight) % width
    if missing:
        weight = torch.cat([weight, weight.new_zeros(missing, weight.shape[1])])
    return weight.reshape(-1, width, weight.shape[1] // together, together).transpose(1, 2)


def rounded(weight: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Rounds a matrix to 8 bits, symmetrically per output.

    Args:
        weight: ``[out, in]``.
        dtype: Of the scales.

    Returns:
        int8 ``[out, in]`` and scales ``[out]``: ``weight = integers * scale`` within half a scale.
    """
    wide = weight.float()
    scale = (wide.abs().amax(1).clamp(min=torch.finfo(dtype).tiny) / 127).to(dtype)
    # By a scale that was rounded down, the largest would be a little more.
    integers = (wide / scale.float().unsqueeze(1)).round().clamp(-127, 127)
    return integers.to(torch.int8), scale
