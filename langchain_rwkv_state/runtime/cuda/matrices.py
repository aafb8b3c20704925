"""Keeps a large matrix in its dtype, in 8-bit integers or in 8-bit floats, and multiplies by it.

Narrow are the six large matrices of a layer and the head; LoRAs, norms and the embedding are not
worth it. Only the narrow bytes are kept. Nothing here waits for the device, so that a recorded step
may hold it, and a row's result never depends on its neighbours.

PyTorch has a product of its own for 8-bit integers (`_weight_int8pack_mm`), but its kernel for CUDA
gives each output to one thread, which walks down a row of the matrix alone, in fp32, and uses no
tensor core. Here a few MB of the matrix at a time, which the card's cache can hold, are widened for
the ordinary product: int8 saves memory, and no time.

T rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.native.compiled import rounded

Kind: TypeAlias = Literal["as_is", "int8", "fp8"]

_SLICE_NUMBERS = 1 << 24  # widened at a time: 32 MB in fp16
_FP8 = torch.float8_e4m3fn
_LARGEST_FP8 = torch.finfo(_FP8).max
_LEAST_LARGEST = 1e-30  # of a row; so much of a row of zeros can still be divided by
_FP8_CAPABILITY = (8, 9)  # Ada, the first to multiply it
_FP8_STEP = 16  # of which both sizes have to be multiples


class Matrix(Protocol):
    """A product with a matrix: ``[T, I] -> [T, O]``, in the dtype of what comes in.

    Attributes:
        nbytes: What is kept.
    """

    nbytes: int

    def __call__(self, x: Tensor) -> Tensor:
        """Multiplies rows by the matrix."""
        ...


def matrix(weight: Tensor, kind: Kind = "as_is") -> Matrix:
    """Returns the product with a matrix.

    Args:
        weight: ``[O, I]``, on its device and in the dtype in which to compute.
        kind: ``as_is``; ``int8``, within half a step of 1/127 of a row's largest weight; or
            ``fp8`` (e4m3: 3 bits behind the leading one), to which the rows that it is multiplied
            by are rounded as well, each by its own scale.

    Raises:
        ModelLoadError: The card, or the matrix, is none for fp8.

    Example:
        >>> product = matrix(torch.eye(16), "int8")
        >>> product.nbytes, product(torch.ones(1, 16)).sum().item()
        (320, 16.0)
    """
    return _KINDS[kind](weight)


class _AsIs:
    """The ordinary product."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight.contiguous()
        self.nbytes = self._weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._weight)


class _Int8:
    """Weights in 8-bit integers with a scale for each output, widened as they are used."""

    def __init__(self, weight: Tensor) -> None:
        self._rows = max(1, _SLICE_NUMBERS // weight.shape[1])
        self._integers = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        self._scale = weight.new_empty(len(weight), 1)
        for integers, scale, part in zip(
            *self._slices(), torch.split(weight, self._rows), strict=True
        ):
            found, by = rounded(part, weight.dtype)
            integers.copy_(found)
            scale.copy_(by.unsqueeze(1))
        self.nbytes = self._integers.nbytes + self._scale.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        parts = [
            functional.linear(x, integers * scale)
            for integers, scale in zip(*self._slices(), strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _slices(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return torch.split(self._integers, self._rows), torch.split(self._scale, self._rows)


class _Fp8:
    """Weights in 8-bit floats with a scale for each output.

    Rows and outputs are scaled beside the product, which is given scales of one: not every card and
    library that multiplies fp8 takes a scale for each row.
    """

    def __init__(self, weight: Tensor) -> None:
        _require_fp8(weight)
        self._narrow = torch.empty(weight.shape, dtype=_FP8, device=weight.device)
        self._scale = torch.empty(len(weight), 1, device=weight.device)
        rows = max(1, _SLICE_NUMBERS // weight.shape[1])
        targets = (torch.split(each, rows) for each in (self._narrow, self._scale, weight))
        for narrow, scale, part in zip(*targets, strict=True):
            found, by = _to_fp8(part)
            narrow.copy_(found)
            scale.copy_(by)
        self._scale = self._scale.view(1, -1)
        self._one = torch.ones((), device=weight.device)
        self.nbytes = self._narrow.nbytes + self._scale.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        narrow, scale = _to_fp8(x)
        y: Tensor = torch._scaled_mm(
            narrow,
            self._narrow.t(),
            scale_a=self._one,
            scale_b=self._one,
            out_dtype=torch.float32,
        )
        return (y * scale * self._scale).to(x.dtype)


def _to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds rows to fp8, each by its own scale.

    Returns:
        ``[T, I]`` in e4m3 and ``[T, 1]`` in fp32, by which it is to be multiplied.
    """
    wide = x.float()
    scale = wide.abs().amax(1, keepdim=True).clamp(min=_LEAST_LARGEST) / _LARGEST_FP8
    # What is beyond the largest by a rounding would be NaN.
    return (wide / scale).clamp(-_LARGEST_FP8, _LARGEST_FP8).to(_FP8), scale


def _require_fp8(weight: Tensor) -> None:
    """Checks that a matrix can be multiplied in fp8 where it is."""
    if weight.is_cuda:
        found = torch.cuda.get_device_capability(weight.device)
        if found < _FP8_CAPABILITY:
            name = torch.cuda.get_device_name(weight.device)
            raise ModelLoadError(
                f"{name} has compute capability {found[0]}.{found[1]}, and fp8 takes 8.9 or more "
                "(Ada, Hopper, Blackwell): use 'cuda int8'."
            )
    if any(size % _FP8_STEP for size in weight.shape):
        shape = " x ".join(map(str, weight.shape))
        raise ModelLoadError(
            f"A matrix of {shape} cannot be kept in fp8, which wants multiples of {_FP8_STEP}: use "
            "'cuda int8'."
        )


_KINDS: Mapping[Kind, Callable[[Tensor], Matrix]] = {"as_is": _AsIs, "int8": _Int8, "fp8": _Fp8}
