"""Reads a safetensors file tensor by tensor, each into memory of its own.

The `safetensors` library maps a file, or copies it twice; a model's weights are to be read once,
and given back one by one as a runtime packs them. What the library refuses is refused here: the
tensors must fill the file without holes, and the sizes in the header are compared with the file's
before anything is reserved for them.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch

from langchain_rwkv_state.runtime.checkpoint.own_memory import own_memory, read_into

_LENGTH_BYTES = 8
_LONGEST_HEADER_BYTES = 100_000_000  # the format's own limit
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a file by name.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no whole safetensors file.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(_exactly(file, _LENGTH_BYTES), "little")
        start = _LENGTH_BYTES + length
        if length > _LONGEST_HEADER_BYTES or start > size:
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        try:
            header = json.loads(_exactly(file, length))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its header is no JSON: {error}") from error
        places = _places(header, size - start)
        return {name: _tensor(file, *place) for name, place in places}


def _places(header: Any, size: int) -> list[tuple[str, tuple[torch.dtype, list[int]]]]:
    """Returns names, dtypes and shapes in the file's order."""
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")  # noqa: TRY004
    header.pop("__metadata__", None)
    found = []
    for name, entry in header.items():
        try:
            dtype, shape = _DTYPES[entry["dtype"]], [_count(n) for n in entry["shape"]]
            begin, end = map(_count, entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"its header says nothing known of {name!r}: {error}") from error
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name!r} has {end - begin} bytes for a shape of {shape}")
        found.append((begin, end, name, (dtype, shape)))
    at = 0
    for begin, end, name, _ in sorted(found, key=lambda each: each[:3]):
        if begin != at:
            raise ValueError(f"{name!r} begins at {begin}, where {at} is next")
        at = end
    if at != size:
        raise ValueError(f"its tensors have {at} bytes, and the file has {size} for them")
    return [(name, place) for *_, name, place in sorted(found, key=lambda each: each[:3])]


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _tensor(file: BinaryIO, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    memory = own_memory(math.prod(shape) * dtype.itemsize)
    read_into(file, memory)
    return memory.view(dtype).reshape(shape)


def _exactly(file: BinaryIO, count: int) -> bytes:
    memory = own_memory(count)
    read_into(file, memory)
    return memory.numpy().tobytes()
