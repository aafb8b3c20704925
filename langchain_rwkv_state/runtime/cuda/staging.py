"""Keeps pinned memory, through which numbers go to a card and come from it beside its work.

Taking pinned memory stops the card, so there is little of it and it is used in turn. A buffer that
the card has not read yet must not be written, nor one read before the card has written it: each use
ends with an event, and the next use of the same buffer waits for it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

T = TypeVar("T")


class Event(Protocol):
    """A point in a card's work, as `torch.cuda.Event`."""

    def synchronize(self) -> None:
        """Waits until the work before it is done."""
        ...


class Ring:
    """Pinned buffers, used in turn. One thread begins uses; any may wait for what comes of one.

    Args:
        nbytes: Bytes of each.
        depth: How many: uses that may be under way at once without waiting.
    """

    def __init__(self, nbytes: int, *, depth: int = 3) -> None:
        self._buffers = [Buffer(nbytes) for _ in range(depth)]
        self._turn = 0

    def next(self) -> Buffer:
        """Returns the buffer whose turn it is, once its last use is over."""
        buffer = self._buffers[self._turn]
        self._turn = (self._turn + 1) % len(self._buffers)
        buffer.finish()
        return buffer

    def send(self, numbers: npt.ArrayLike, to: Tensor) -> None:
        """Begins to copy numbers to the beginning of a contiguous tensor on the card, int32."""
        flat = np.asarray(numbers, dtype=np.int32).ravel()
        buffer = self.next()
        staged = buffer.bytes.view(torch.int32)[: flat.size]
        staged.numpy()[...] = flat
        to.view(-1)[: flat.size].copy_(staged, non_blocking=True)
        buffer.used(torch.cuda.current_stream(to.device).record_event())

    def fetch(self, source: Tensor) -> Callable[[], Tensor]:
        """Begins to copy a tensor from the card; the function returned waits for that alone."""
        buffer = self.next()
        staged = buffer.bytes[: source.nbytes].view(source.dtype).view(source.shape)
        staged.copy_(source, non_blocking=True)
        return buffer.comes(
            torch.cuda.current_stream(source.device).record_event(), lambda: staged.clone()
        )


class Buffer:
    """Pinned memory.

    Args:
        nbytes: How much.

    Attributes:
        bytes: ``[nbytes]``, uint8.
    """

    def __init__(self, nbytes: int) -> None:
        self.bytes = pinned(nbytes)
        self._event: Event | None = None
        self._coming: weakref.ref[_Coming[Any]] | None = None

    def used(self, until: Event) -> None:
        """Says until when the card reads what is in it."""
        self._event = until

    def comes(self, until: Event, taken: Callable[[], T]) -> Callable[[], T]:
        """Says until when the card writes into it.

        Args:
            until: When the card is done.
            taken: Copies out what the card wrote.

        Returns:
            A function that waits, and returns what `taken` gave; any thread may call it, at any
            time, also when the buffer has served others since.
        """
        coming = _Coming(until, taken)
        self._event = until
        self._coming = weakref.ref(coming)
        return coming

    def finish(self) -> None:
        """Waits for the last use, and has what came of it copied out if it is still wanted."""
        coming = self._coming and self._coming()
        if coming is not None:
            coming()
        if self._event is not None:  # another thread may have been the one who waited
            self._event.synchronize()
        self._event = self._coming = None


class _Coming(Generic[T]):
    """What the card is to write into a buffer."""

    def __init__(self, until: Event, taken: Callable[[], T]) -> None:
        self._until, self._taken = until, taken
        self._found: list[T] = []
        self._lock = threading.Lock()

    def __call__(self) -> T:
        with self._lock:
            if not self._found:
                self._until.synchronize()
                self._found.append(self._taken())
        return self._found[0]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns an ordinary tensor on a device, behind the work given to it; nobody waits.

    PyTorch keeps the pinned memory between, and gives it to no other copy before this one is over.
    """
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def pinned(nbytes: int) -> Tensor:
    """Returns pinned memory, uint8."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
