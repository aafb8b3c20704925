"""Reads a GGUF file tensor by tensor, each into memory of its own.

The `gguf` package maps a file and makes an object of each of the vocabulary's texts, which takes
longer than the weights; here the header is walked over, and the package is asked for what it alone
knows: how quantised blocks become numbers. F32, F16 and BF16 need nothing but this module. The file
gives a shape with its innermost dimension first.

Layout: ``GGUF``, version, counts; pairs of key and value; name, shape, type and place of each
tensor; the numbers, aligned. All little-endian.
"""

from __future__ import annotations

import importlib
import logging
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch

from langchain_rwkv_state.errors import ModelLoadError
from langchain_rwkv_state.runtime.checkpoint.own_memory import own_memory, read_into

logger = logging.getLogger(__name__)

_VERSIONS = (2, 3)
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_TEXT, _ARRAY = 8, 9
_PLAIN = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}
_INTEGERS = range(24, 28)
_MOST_DIMENSIONS = 4
_BUFFER_BYTES = 1 << 20
_CHUNK = 1 << 21  # numbers that are dequantised at a time, in fp32

_Take: TypeAlias = Callable[[int, int], torch.Tensor]  # place and size to bytes, ``[n]``, uint8


@dataclass(frozen=True)
class _Entry:
    """One tensor's place in the file."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class GGUF:
    """What a file holds.

    Attributes:
        metadata: Numbers and texts by key; lists, such as the vocabulary, are left out.
        tensors: By llama.cpp's names.
        quantised: Names of the types that were dequantised, such as ``Q8_0``.
    """

    metadata: dict[str, Any]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    quantised: frozenset[str] = frozenset()


def read_gguf_metadata(path: Path) -> dict[str, Any]:
    """Returns the numbers and texts that describe a model.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no whole GGUF file of a known version.
    """
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        return _Header(file).metadata


def read_gguf(path: Path, *, mapped: bool) -> GGUF:
    """Reads a file.

    Quantised tensors become fp16, with one line in the log that says so and what it costs.

    Args:
        path: The file.
        mapped: Whether to map what is not quantised, for a quick look; then nothing is logged.

    Raises:
        ModelLoadError: It holds what is no weight, or what needs the `gguf` package.
        OSError: It cannot be read.
        ValueError: It is no whole GGUF file of a known version.
    """
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        header = _Header(file)
        entries = sorted(header.entries(), key=lambda each: each.offset)
        start, size = header.data_start(), os.fstat(file.fileno()).st_size
    types = _types(path, entries)
    with path.open("rb", buffering=0) as raw:
        take = _mapped(raw) if mapped else _read(raw)
        tensors: dict[str, torch.Tensor] = {}
        in_file = in_memory = 0
        for entry in entries:
            if entry.name in tensors:
                raise ValueError(f"it holds {entry.name!r} twice")
            kind = types[entry.type]
            at, nbytes = start + entry.offset, kind.nbytes(entry)
            if at + nbytes > size:
                raise ValueError(f"it ends before {entry.name!r} does")
            tensors[entry.name] = kind.tensor(take(at, nbytes), entry.shape)
            if isinstance(kind, _Quantised):
                in_file, in_memory = in_file + nbytes, in_memory + tensors[entry.name].nbytes
    quantised = frozenset(kind.name for kind in types.values() if isinstance(kind, _Quantised))
    if quantised and not mapped:
        logger.warning(
            "%s is quantised (%s): it is dequantised to fp16, which takes %.0f MB in memory where "
            "the file has %.0f MB. strategy='cpu int8' keeps 8 bits of RWKV-7 in memory.",
            path,
            ", ".join(sorted(quantised)),
            in_memory / 1e6,
            in_file / 1e6,
        )
    return GGUF(header.metadata, tensors, quantised)


class _Header:
    """Walks over everything that stands before the numbers.

    Args:
        file: A buffered file at its beginning.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        if self._exactly(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._one("I")
        if version not in _VERSIONS:
            kind = "of a big-endian machine" if version & 0xFFFF == 0 else f"of version {version}"
            raise ValueError(f"it is {kind}, where versions 2 and 3, little-endian, are read")
        self._tensors, pairs = self._one("Q"), self._one("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key, kind = self._text(), self._one("I")
            value = self._value(kind)
            if value is not None:
                self.metadata[key] = value

    def entries(self) -> Iterator[_Entry]:
        """Yields the tensors' places; to be read once, to its end."""
        for _ in range(self._tensors):
            name, dimensions = self._text(), self._one("I")
            if dimensions > _MOST_DIMENSIONS:
                raise ValueError(f"{name!r} has {dimensions} dimensions")
            shape = tuple(self._one("Q") for _ in range(dimensions))[::-1]
            yield _Entry(name, shape, self._one("I"), self._one("Q"))

    def data_start(self) -> int:
        """Returns where the numbers begin, once all entries were read."""
        align = self.metadata.get("general.alignment", 32)
        if not isinstance(align, int) or align < 1:
            raise ValueError(f"its alignment is {align!r}")
        return -(-self._file.tell() // align) * align

    def _value(self, kind: int) -> Any:
        """Reads a value; ``None`` for a list, which is passed over."""
        if kind in _SCALARS:
            return self._one(_SCALARS[kind])
        if kind == _TEXT:
            return self._text()
        if kind != _ARRAY:
            raise ValueError(f"its header holds a value of the unknown type {kind}")
        inner, count = self._one("I"), self._one("Q")
        if inner in _SCALARS:
            self._exactly(count * struct.calcsize(f"<{_SCALARS[inner]}"))
        elif inner == _TEXT:
            read, length = self._file.read, struct.Struct("<Q").unpack
            for _ in range(count):
                self._exactly(length(read(8))[0])
        else:
            raise ValueError(f"its header holds a list of the unknown type {inner}")
        return None

    def _text(self) -> str:
        return self._exactly(self._one("Q")).decode(errors="replace")

    def _one(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._exactly(struct.calcsize(f"<{code}")))[0]

    def _exactly(self, count: int) -> bytes:
        found = self._file.read(count) if count <= self._size else b""
        if len(found) != count:
            raise ValueError("its header ends too early")
        return found


class _Plain:
    """Numbers as they are in memory."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def nbytes(self, entry: _Entry) -> int:
        return math.prod(entry.shape) * self._dtype.itemsize

    def tensor(self, memory: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        return memory.view(self._dtype).reshape(shape)


class _Quantised:
    """Blocks that the `gguf` package makes numbers of."""

    def __init__(self, gguf: Any, number: int) -> None:
        self._type = gguf.GGMLQuantizationType(number)
        self._block: int
        self._block_bytes: int
        self._block, self._block_bytes = gguf.GGML_QUANT_SIZES[self._type]
        self._dequantize = gguf.quants.dequantize
        self.name = str(self._type.name)

    def nbytes(self, entry: _Entry) -> int:
        count = math.prod(entry.shape)
        if not count or entry.shape[-1] % self._block:
            raise ValueError(f"{entry.name!r} has rows that are no whole blocks of {self.name}")
        return count // self._block * self._block_bytes

    def tensor(self, memory: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        row = shape[-1] // self._block * self._block_bytes
        rows, step = memory.view(-1, row).numpy(), max(1, _CHUNK // shape[-1])
        found = own_memory(2 * math.prod(shape)).view(torch.float16).view(-1, shape[-1])
        for at in range(0, len(rows), step):
            with np.errstate(all="ignore"):  # of a damaged scale; infinities show in the logits
                numbers = self._dequantize(rows[at : at + step], self._type)
            found[at : at + step] = torch.from_numpy(numbers)
        return found.view(shape)


def _types(path: Path, entries: list[_Entry]) -> dict[int, _Plain | _Quantised]:
    """Returns what makes numbers of each type that a file holds."""
    found: dict[int, _Plain | _Quantised] = {}
    for entry in entries:
        number = entry.type
        if number in found:
            continue
        if number in _PLAIN:
            found[number] = _Plain(_PLAIN[number])
            continue
        if number in _INTEGERS:
            raise ModelLoadError(f"{path} holds {entry.name!r} in integers, which are no weights.")
        try:
            gguf: Any = importlib.import_module("gguf")
        except ImportError as error:
            raise ModelLoadError(
                f"{path} is quantised, and the gguf package, which reads that, is not installed: "
                "run \"pip install 'langchain-rwkv-state[gguf]'\", or use a GGUF in F16."
            ) from error
        try:
            found[number] = _Quantised(gguf, number)
        except (ValueError, KeyError) as error:
            raise ModelLoadError(
                f"{path} holds {entry.name!r} in a type that the gguf package does not know "
                f"({number}): upgrade gguf, or use a GGUF in F16."
            ) from error
    return found


def _read(file: BinaryIO) -> _Take:
    def take(at: int, nbytes: int) -> torch.Tensor:
        memory = own_memory(nbytes)
        file.seek(at)
        read_into(file, memory)
        return memory

    return take


def _mapped(file: BinaryIO) -> _Take:
    view = mmap.mmap(
        file.fileno(), 0, access=mmap.ACCESS_COPY
    )  # tensors are writable, the file not

    def take(at: int, nbytes: int) -> torch.Tensor:
        if not nbytes or at + nbytes > len(view):
            return own_memory(nbytes)
        return torch.frombuffer(view, dtype=torch.uint8, count=nbytes, offset=at)

    return take
