"""Packs the stacked tensors of a state into fewer bytes: one small scheme for each kind of number.

A packing turns one stack of layers into the tensors that are stored, and back; it knows no file and
no checksum. Lossless are ``exact`` and ``zstd``; ``fp16``, ``bf16``, ``int8`` and ``int4`` lose
digits, and packing what they gave loses nothing more. For that, numbers are divided by the scale as
it is stored, not as it was computed.

Glossary: L layers in the stack, R rows, N numbers a row (a row of a head's matrix, or N numbers of
a vector).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import zstandard

from langchain_rwkv_state.state.codec_names import LOSSY, CodecName
from langchain_rwkv_state.state.layout import TensorSpec
from langchain_rwkv_state.state.parts import kind

_UNPACKED_LIMIT_BYTES = 1 << 30  # fifteen times the state of the largest known model
_VECTOR_ROW = 64  # numbers of a vector that share a scale where the model has no heads
_FP16_MAX = 65504.0
_SIZES = {"int8": 127, "int4": 7}
_ZSTD_LEVEL = 1  # only signs and exponents shrink; higher levels find nothing more in them

Array = np.ndarray[Any, np.dtype[Any]]
Stored = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Stack:
    """The tensors of one kind and dtype, of all layers that have them.

    Attributes:
        name: Its name in a file, such as ``att_kv.fp32``.
        spec: Any of the tensors.
        layers: Their number, L.
        row: Numbers that share a scale, N.
    """

    name: str
    spec: TensorSpec
    layers: int
    row: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole."""
        return (self.layers, *self.spec.shape)

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return math.prod(self.shape)

    @classmethod
    def of(cls, name: str, spec: TensorSpec, layers: int, head_size: int) -> Stack:
        """Returns a stack whose rows are those of the heads, or as long where there are none."""
        width = spec.shape[-1]
        row = next((n for n in (head_size, _VECTOR_ROW) if n < width and width % n == 0), width)
        return cls(name, spec, layers, row)


def pack(codec: CodecName, stack: Stack, values: torch.Tensor) -> Stored:
    """Returns the tensors to store for a stack.

    Args:
        codec: How.
        stack: What it is.
        values: ``[L, ...]``, contiguous and on the CPU.

    Raises:
        ValueError: The codec is lossy and a number is NaN or infinite.
    """
    return {f"{stack.name}{end}": part for end, part in _scheme(codec, stack)[0](stack, values)}


def unpack(codec: CodecName, stack: Stack, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns the stack ``[L, ...]`` that `pack` was given, as far as the codec keeps it.

    Raises:
        LookupError: A stored tensor is missing.
        ValueError: One does not have the shape, dtype or length that the stack needs.
    """
    return _scheme(codec, stack)[1](stack, stored)


# -- lossless ------------------------------------------------------------------------------------


def _pack_exact(_: Stack, values: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    return [("", values)]


def _unpack_exact(stack: Stack, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return _take(stored, stack.name, stack.spec.dtype, stack.shape)


def _pack_zstd(_: Stack, values: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Compresses the numbers' bytes, first bytes first, with the sign behind the exponent.

    Numbers of a state have neighbours of their own size and no other likeness: exponents repeat,
    the digits do not. So the exponents must come to stand together.
    """
    size = values.dtype.itemsize
    bits = values.flatten().view(torch.uint8).numpy().view(f"<u{size}")
    turned: Array = bits << 1 | bits >> (8 * size - 1)
    planes = np.ascontiguousarray(turned.view(np.uint8).reshape(-1, size).T)
    frame = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj(size=planes.nbytes)
    packed = bytearray()
    for plane in planes:
        # A block has one table of codes: exponents must not share theirs with digits.
        packed += frame.compress(plane.tobytes())
        packed += frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    packed += frame.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH)
    return [(".zstd", torch.frombuffer(packed, dtype=torch.uint8))]


def _unpack_zstd(stack: Stack, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
    size = stack.spec.dtype.itemsize
    wanted = stack.count * size
    packed = stored[f"{stack.name}.zstd"]
    if packed.dtype != torch.uint8 or packed.ndim != 1:
        raise ValueError(f"{stack.name!r} is not compressed as it should be")
    data = packed.numpy().tobytes()
    try:
        found = zstandard.get_frame_parameters(data).content_size
        if found != wanted or wanted > _UNPACKED_LIMIT_BYTES:
            raise ValueError(f"{stack.name!r} unpacks to {found} bytes, not to {wanted}")
        planes = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"{stack.name!r} cannot be unpacked: {error}") from error
    turned = np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(size, -1).T)
    bits: Array = turned.view(f"<u{size}").reshape(-1)
    numbers: Array = bits >> 1 | bits << (8 * size - 1)
    return torch.from_numpy(numbers.view(np.uint8)).view(stack.spec.dtype).view(stack.shape)


# -- 16 bits -------------------------------------------------------------------------------------


def _pack_fp16(stack: Stack, values: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Halves the bytes; a layer too large for fp16 is divided by a power of two."""
    numbers = _finite(stack, values).reshape(stack.layers, -1)
    peak = np.maximum(np.abs(numbers).max(1), 1e-30)
    scale = np.exp2(np.maximum(0, np.ceil(np.log2(peak / _FP16_MAX)))).astype(np.float32)
    small = (numbers / scale[:, None]).astype(np.float16)
    return [
        (".fp16", torch.from_numpy(small).view(stack.shape)),
        (".scale", torch.from_numpy(scale)),
    ]


def _unpack_fp16(stack: Stack, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
    small = _take(stored, f"{stack.name}.fp16", torch.float16, stack.shape).numpy()
    scale = _take(stored, f"{stack.name}.scale", torch.float32, (stack.layers,)).numpy()
    numbers = small.reshape(stack.layers, -1).astype(np.float32) * scale[:, None]
    return torch.from_numpy(numbers).view(stack.shape).to(stack.spec.dtype)


def _pack_bf16(stack: Stack, values: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Halves the bytes and keeps fp32's range, with a third of its digits."""
    bits = _bf16_bits(_finite(stack, values))
    return [(".bf16", torch.from_numpy(bits).view(torch.bfloat16).view(stack.shape))]


def _unpack_bf16(stack: Stack, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
    small = _take(stored, f"{stack.name}.bf16", torch.bfloat16, stack.shape)
    numbers = _from_bf16_bits(small.view(torch.int16).numpy().view(np.uint16))
    return torch.from_numpy(numbers).view(stack.shape).to(stack.spec.dtype)


# -- integers ------------------------------------------------------------------------------------


def _pack_integers(stack: Stack, values: torch.Tensor, form: str) -> list[tuple[str, torch.Tensor]]:
    """Divides each row by a scale of its own, bf16, and rounds to the nearest integer.

    The scale is the largest number over the largest integer, rounded to bf16: off by less than
    half an integer, so that the largest number always becomes the largest integer, and packing
    what came out gives the same integers and scales again.
    """
    largest = _SIZES[form]
    numbers = _finite(stack, values).reshape(-1, stack.row)
    bits = _bf16_bits(np.abs(numbers).max(1) / np.float32(largest))
    bits[bits < 0x0100] = 0  # below bf16's normal numbers a scale has too few digits
    scale = _from_bf16_bits(bits)[:, None]
    divided = np.divide(numbers, scale, out=np.zeros_like(numbers), where=scale > 0)
    whole = np.clip(np.rint(divided), -largest, largest).astype(np.int8)
    kept = torch.from_numpy(bits).view(torch.bfloat16)
    if form == "int8":
        return [(".int8", torch.from_numpy(whole).view(stack.shape)), (".scale", kept)]
    flat = (whole.reshape(-1) + 8).astype(np.uint8)
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    return [(".int4", torch.from_numpy(flat[::2] | flat[1::2] << 4)), (".scale", kept)]


def _unpack_integers(stack: Stack, stored: Mapping[str, torch.Tensor], form: str) -> torch.Tensor:
    rows = stack.count // stack.row
    kept = _take(stored, f"{stack.name}.scale", torch.bfloat16, (rows,))
    scale = _from_bf16_bits(kept.view(torch.int16).numpy().view(np.uint16))
    if form == "int8":
        whole = _take(stored, f"{stack.name}.int8", torch.int8, stack.shape).numpy().reshape(-1)
    else:
        shape = ((stack.count + 1) // 2,)
        pairs = _take(stored, f"{stack.name}.int4", torch.uint8, shape).numpy()
        flat = np.stack([pairs & 15, pairs >> 4], -1).reshape(-1)[: stack.count]
        whole = flat.astype(np.int8) - 8
    numbers = whole.reshape(rows, stack.row).astype(np.float32) * scale[:, None]
    return torch.from_numpy(numbers).view(stack.shape).to(stack.spec.dtype)


def _pack_int8(stack: Stack, values: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    return _pack_integers(stack, values, "int8")


def _unpack_int8(stack: Stack, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return _unpack_integers(stack, stored, "int8")


def _pack_int4(stack: Stack, values: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    return _pack_integers(stack, values, "int4")


def _unpack_int4(stack: Stack, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return _unpack_integers(stack, stored, "int4")


# -- which scheme for which tensor ----------------------------------------------------------------

_Pack = Callable[[Stack, torch.Tensor], list[tuple[str, torch.Tensor]]]
_Unpack = Callable[[Stack, Mapping[str, torch.Tensor]], torch.Tensor]
_SCHEMES: dict[str, tuple[_Pack, _Unpack]] = {
    "exact": (_pack_exact, _unpack_exact),
    "zstd": (_pack_zstd, _unpack_zstd),
    "fp16": (_pack_fp16, _unpack_fp16),
    "bf16": (_pack_bf16, _unpack_bf16),
    "int8": (_pack_int8, _unpack_int8),
    "int4": (_pack_int4, _unpack_int4),
}


def _scheme(codec: CodecName, stack: Stack) -> tuple[_Pack, _Unpack]:
    """Returns how a codec treats a stack: most as its name says, some with more digits.

    A log-scale is an exponent, in which every digit counts; the denominators, divided out before,
    are 0 or 1, which 16 bits hold exactly; and the token shifts are a hundredth of the bytes and
    the whole of what the next token sees of the last, so that 4 bits would save nothing. Tensors
    that have 16 bits already stay as they are where the codec would give them as many.
    """
    if codec not in LOSSY:
        return _SCHEMES[codec]
    last = kind(stack.spec.name)
    halves = codec in ("fp16", "bf16")
    if last == "att_pp" or (halves and stack.spec.dtype != torch.float32):
        return _SCHEMES["exact"]
    if last == "att_bb" and not halves:
        return _SCHEMES["fp16"]
    if last.endswith("x_prev") and codec == "int4":
        return _SCHEMES["int8"]
    return _SCHEMES[codec]


def _take(
    stored: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> torch.Tensor:
    tensor = stored[name]
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ValueError(
            f"{name!r} should be {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}"
        )
    return tensor


def require_finite(name: str, numbers: Array) -> None:
    """Checks that a lossy codec can keep numbers.

    Raises:
        ValueError: One is NaN or infinite.
    """
    if not np.isfinite(numbers).all():
        raise ValueError(
            f"{name!r} holds NaN or infinity, which a lossy codec cannot keep: find out where it "
            "comes from, or use the codec 'exact'."
        )


def _finite(stack: Stack, values: torch.Tensor) -> Array:
    numbers: Array = values.float().numpy()
    require_finite(stack.name, numbers)
    return numbers


def _bf16_bits(numbers: Array) -> Array:
    """Rounds fp32 to the nearest bf16, ties to even, but never beyond the largest."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    rounded: Array = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    rounded = np.where(rounded & 0x7FFF == 0x7F80, rounded - 1, rounded)
    return rounded.astype(np.uint16)


def _from_bf16_bits(bits: Array) -> Array:
    numbers: Array = (bits.astype(np.uint32) << 16).view(np.float32)
    return numbers
