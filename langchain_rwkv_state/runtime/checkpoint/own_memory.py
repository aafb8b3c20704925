"""Reads files into memory that goes back to the system as soon as its tensor is gone.

malloc keeps tens of megabytes of what a thread gave back. Small tensors stay with malloc: mapped,
each would take a page at least.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, BinaryIO

import torch

_MAPPED_FROM_BYTES = 1 << 20
_PIECE_BYTES = 1 << 26  # whoever watches sees so much of a large tensor at a time
_count: ContextVar[Callable[[int], None]] = ContextVar("bytes_read", default=lambda _: None)
# By default a child that was forked would share it, and write into it.
_PRIVATE: dict[str, Any] = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if sys.platform != "win32" else {}
)


def own_memory(nbytes: int) -> torch.Tensor:
    """Returns so many bytes, ``[nbytes]``, uint8."""
    if nbytes < _MAPPED_FROM_BYTES:
        return torch.empty(nbytes, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(-1, nbytes, **_PRIVATE), dtype=torch.uint8)


@contextmanager
def counting(on_bytes: Callable[[int], None]) -> Iterator[None]:
    """Calls a function with the size of every piece that `read_into` reads, in this thread.

    Args:
        on_bytes: Called with a number of bytes, until the body ends.
    """
    token = _count.set(on_bytes)
    try:
        yield
    finally:
        _count.reset(token)


def read_into(file: BinaryIO, memory: torch.Tensor) -> None:
    """Fills bytes from an unbuffered file, from where it stands.

    Raises:
        ValueError: The file ends too early.
    """
    space, tell = memory.numpy().data, _count.get()
    while len(space):
        count = file.readinto(space[:_PIECE_BYTES])  # type: ignore[attr-defined]
        if not count:
            raise ValueError(f"it ends {len(space)} bytes too early")
        tell(count)
        space = space[count:]
