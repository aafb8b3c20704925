"""Stands in for CUDA cards on a machine without one: streams, events, graphs, pinned memory.

What is "on a card" lies in ordinary memory, and work is done at once; what the stand-in adds is
what a card would not forgive. It keeps, for each stream and each thread, what it has waited for,
and fails where one of them touches what another may still be writing. Its graphs know addresses
alone: they do nothing as they are captured, and repeat the same operations on the same memory as
they are replayed, if that memory is still there. Kernels that bypass PyTorch's dispatcher are not
seen.
"""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from langchain_rwkv_state.runtime.cuda import room, staging

SYNCS = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "unique2",
    "_unique2",
}
"""Operations whose result the host must wait for."""

Who = str
"""A stream or a thread of the host."""


class CudaError(RuntimeError):
    """What CUDA or PyTorch would have refused."""


class RaceError(AssertionError):
    """What a card would have done silently: wrong numbers, now and then."""


@dataclass
class _Access:
    runs: list[tuple[int, int]]
    writes: bool
    who: Who
    at: int


@dataclass
class _Known:
    """A storage that is on a card, or pinned.

    Attributes:
        alive: Tells whether it still is.
        card: Which card; ``None`` for pinned memory.
        accesses: Who touched which bytes.
    """

    alive: StorageWeakRef
    card: int | None
    accesses: list[_Access] = field(default_factory=list)


class StandIn:
    """Cards, in place of `torch.cuda`, for the length of a test.

    Args:
        monkeypatch: Puts it there.
        cards: How many.

    Attributes:
        captured: For each capture that was begun, its stream's card.
        syncs: How often the host waited for what a card computed, unasked.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cards: int = 1) -> None:
        self.captured: list[int] = []
        self.syncs = 0
        self._cards = cards
        self._numbers = itertools.count()
        self._mine = threading.local()
        self._known: dict[int, _Known] = {}
        self._after: defaultdict[Who, dict[Who, int]] = defaultdict(dict)
        self._lock = threading.RLock()
        self._capturing: _Graph | None = None
        self._broken_pools: list[Any] = []
        self._defaults = [_Stream(self, card) for card in range(cards)]
        for name, value in {
            "device": lambda device: self._on(self.card_of(device)),
            "Stream": lambda device=None: _Stream(self, self.card_of(device)),
            "Event": lambda: _Event(self),
            "stream": self._stream,
            "current_stream": self.current_stream,
            "synchronize": self.synchronize,
            "empty_cache": self.empty_cache,
            "CUDAGraph": lambda: _Graph(self),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
        monkeypatch.setattr(staging, "pinned", self.pinned)
        # Plain kernels compile nothing, and read a prompt's rows one by one.
        monkeypatch.setattr(room, "_WARM_LENGTHS", (2, 3))

    # -- what torch.cuda has -------------------------------------------------------------------

    def card_of(self, device: Any) -> int:
        """Returns a device's card: the current one where none is named."""
        if isinstance(device, int):
            return device
        index = None if device is None else torch.device(device).index
        card: int = getattr(self._mine, "card", 0) if index is None else index
        return card

    def current_stream(self, device: Any = None) -> _Stream:
        """Returns the thread's current stream on a card."""
        card = self.card_of(device)
        stream: _Stream = self._streams.get(card, self._defaults[card])
        return stream

    def synchronize(self, device: Any = None) -> None:
        """Waits for all of a card's streams."""
        card = self.card_of(device)
        self._refuse_while_capturing("synchronize")
        with self._lock:
            for who, after in list(self._after.items()):
                if who.startswith(f"card {card} "):
                    self.wait(self.host, after)

    def empty_cache(self) -> None:
        """Gives memory back, which PyTorch cannot do while anybody captures."""
        if self._capturing is not None:
            raise CudaError("captures_underway.empty() INTERNAL ASSERT FAILED")

    def pinned(self, nbytes: int) -> Tensor:
        """Returns memory that counts as pinned."""
        self._refuse_while_capturing("allocation of pinned memory")
        memory = torch.zeros(nbytes, dtype=torch.uint8)
        self._know(memory, None)
        return memory

    @contextmanager
    def _on(self, card: int) -> Iterator[None]:
        before = self.card_of(None)
        self._mine.card = card
        try:
            yield
        finally:
            self._mine.card = before

    @contextmanager
    def _stream(self, stream: _Stream) -> Iterator[None]:
        before, streams = self.card_of(None), dict(self._streams)
        self._mine.card = stream.card
        self._streams[stream.card] = stream
        try:
            yield
        finally:
            self._mine.card = before
            self._mine.streams = streams

    @property
    def _streams(self) -> dict[int, _Stream]:
        if not hasattr(self._mine, "streams"):
            self._mine.streams = {}
        streams: dict[int, _Stream] = self._mine.streams
        return streams

    def _refuse_while_capturing(self, what: str) -> None:
        stream = self.current_stream()
        if stream.graph is not None:
            stream.graph.broken = True
            raise CudaError(f"operation not permitted when stream is capturing: {what}")

    # -- what a test says ----------------------------------------------------------------------

    def holds(self, *tensors: Tensor, card: int = 0) -> None:
        """Says that tensors are on a card."""
        for tensor in tensors:
            self._know(tensor, card)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watches what this thread does; what it makes of a card's tensors is on the card too."""
        with _Numpy(self), _Watch(self):
            yield

    # -- who comes after whom ------------------------------------------------------------------

    @property
    def host(self) -> Who:
        """The calling thread."""
        return f"thread {threading.get_ident()}"

    def clock(self, who: Who) -> dict[Who, int]:
        """Returns a copy of what somebody comes after."""
        with self._lock:
            return dict(self._after[who])

    def wait(self, who: Who, after: dict[Who, int]) -> None:
        """Notes that what somebody does from now on comes after something."""
        with self._lock:
            mine = self._after[who]
            for other, at in after.items():
                mine[other] = max(mine.get(other, 0), at)

    def touch(self, who: Who, touched: Iterable[tuple[Tensor, bool]]) -> None:
        """Notes reads and writes, each a tensor and whether it is written.

        Raises:
            RaceError: Somebody may be at the same memory.
        """
        with self._lock:
            mine = self._after[who]
            at = mine[who] = mine.get(who, 0) + 1
            for tensor, writes in touched:
                known = self.known(tensor)
                if known is None:
                    continue
                access = _Access(_runs(tensor), writes, who, at)
                for other in known.accesses:
                    conflicts = (writes or other.writes) and _overlap(access.runs, other.runs)
                    if conflicts and mine.get(other.who, 0) < other.at:
                        kind = "pinned memory" if known.card is None else "a tensor"
                        raise RaceError(
                            f"{who} {'writes' if writes else 'reads'} {kind} that {other.who} may "
                            f"still be {'writing' if other.writes else 'reading'}"
                        )
                known.accesses = [
                    other
                    for other in known.accesses
                    if other.runs != access.runs
                    or not (writes or (other.who, other.writes) == (who, False))
                ]
                known.accesses.append(access)

    def known(self, tensor: Tensor) -> _Known | None:
        """Returns what is known of a tensor's memory, ``None`` for the host's own."""
        key = tensor.untyped_storage()._cdata
        known = self._known.get(key)
        if known is not None and known.alive.expired():
            del self._known[key]
            return None
        return known

    def _know(self, tensor: Tensor, card: int | None) -> None:
        if self.known(tensor) is None:
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = _Known(StorageWeakRef(storage), card)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operation as a card or the host would, watched."""
        touched = list(_touched(func, args, kwargs))
        places = [known for tensor, _ in touched if (known := self.known(tensor)) is not None]
        cards = {place.card for place in places if place.card is not None}
        if not cards:
            if places and not _is_view(func):
                self.touch(self.host, touched)
            return func(*args, **kwargs)
        stream = self.current_stream()
        if cards != {stream.card}:
            raise CudaError(f"{func}: tensors of cards {sorted(cards)} on {stream.name}")
        if not _is_view(func):
            self.wait(stream.name, self.clock(self.host))
            self.touch(stream.name, touched)
        if _name(func) in SYNCS:
            self._refuse_while_capturing(_name(func))
            self.syncs += 1
            self.wait(self.host, self.clock(stream.name))
        found = func(*args, **kwargs)
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and self.known(tensor) is None:
                self._know(tensor, stream.card)
        return found


class _Stream:
    def __init__(self, cards: StandIn, card: int) -> None:
        self.cards, self.card = cards, card
        self.device = torch.device("cuda", card)
        number = next(cards._numbers)
        self.is_default = number < cards._cards
        self.name = f"card {card} stream {number}"
        self.graph: _Graph | None = None

    def record_event(self) -> _Event:
        event = _Event(self.cards)
        event.record(self)
        return event

    def wait_stream(self, other: _Stream) -> None:
        other.record_event().wait(self)

    def wait_event(self, event: _Event) -> None:
        event.wait(self)

    def synchronize(self) -> None:
        self.record_event().synchronize()


class _Event:
    def __init__(self, cards: StandIn) -> None:
        self.cards = cards
        self.after: dict[Who, int] = {}

    def record(self, stream: _Stream | None = None) -> None:
        stream = stream or self.cards.current_stream()
        self.cards.wait(stream.name, self.cards.clock(self.cards.host))
        self.after = self.cards.clock(stream.name)

    def wait(self, stream: _Stream | None = None) -> None:
        self.cards.wait((stream or self.cards.current_stream()).name, self.after)

    def synchronize(self) -> None:
        self.cards._refuse_while_capturing("event synchronize")
        self.cards.wait(self.cards.host, self.after)


# -- watching ----------------------------------------------------------------------------------


class _Watch(TorchDispatchMode):
    """Sees each operation of a thread."""

    def __init__(self, cards: StandIn) -> None:
        super().__init__()
        self.cards = cards

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.cards.run(func, args, kwargs or {})


class _Numpy(TorchFunctionMode):
    """Sees where memory leaves PyTorch: what NumPy does with it counts as writing to it."""

    def __init__(self, cards: StandIn) -> None:
        super().__init__()
        self.cards = cards

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.numpy:
            known = self.cards.known(args[0])
            if known is not None and known.card is not None:
                raise TypeError("can't convert a tensor on a card to numpy: copy it first")
            self.cards.touch(self.cards.host, [(args[0], True)])
        return func(*args, **(kwargs or {}))


def _name(func: Any) -> str:
    return str(func._schema.name).partition("::")[2]


def _is_view(func: Any) -> bool:
    """Whether an operation moves no numbers."""
    returns = func._schema.returns
    return any(one.alias_info is not None and not one.alias_info.is_write for one in returns)


def _touched(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[Tensor, bool]]:
    """Yields the tensors that an operation reads and writes; of indexed ones the rows alone."""
    for number, argument in enumerate(func._schema.arguments):
        value = kwargs.get(argument.name, args[number] if number < len(args) else None)
        writes = argument.alias_info is not None and argument.alias_info.is_write
        indices = args[1] if number == 0 and _name(func) in ("index", "index_put_") else None
        if indices is not None and len(indices) == 1 and indices[0].dtype != torch.bool:
            yield from ((value[row], writes) for row in indices[0].tolist())
            continue
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor):
                yield tensor, writes


def _runs(tensor: Tensor) -> list[tuple[int, int]]:
    """Returns the ranges of bytes that a tensor consists of."""
    if not tensor.numel():
        return []
    size, inner = 1, tensor.dim()
    while inner and tensor.stride(inner - 1) in (size, 0 if tensor.shape[inner - 1] == 1 else size):
        inner -= 1
        size *= tensor.shape[inner]
    outer = zip(tensor.shape[:inner], tensor.stride()[:inner], strict=True)
    starts: list[int] = [0]
    for count, stride in outer:
        starts = [start + place * stride for start in starts for place in range(count)]
    each = tensor.element_size()
    first = int(tensor.storage_offset())
    return [((first + start) * each, (first + start + size) * each) for start in starts]


def _overlap(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> bool:
    return any(start < stop and begin < end for begin, stop in one for start, end in other)


# -- graphs ------------------------------------------------------------------------------------


class _Memory:
    """An address that a graph was recorded with."""

    def __init__(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._alive = StorageWeakRef(storage)
        self._address = storage.data_ptr()
        self._meta = (tensor.storage_offset(), tensor.shape, tensor.stride())
        self._dtype = tensor.dtype

    def tensor(self) -> Tensor:
        if self._alive.expired():
            raise CudaError("illegal memory access: a recorded step reads memory that was freed")
        storage = torch.UntypedStorage._new_with_weak_ptr(self._alive.cdata)
        if storage.data_ptr() != self._address:
            raise CudaError("illegal memory access: a recorded step reads memory that was moved")
        return torch.empty(0, dtype=self._dtype).set_(storage, *self._meta)


class _Graph(TorchDispatchMode):
    """Records operations and the addresses that they touch, and repeats them."""

    def __init__(self, cards: StandIn) -> None:
        super().__init__()
        self._cards = cards
        self._steps: list[tuple[Any, Any, Any, Any]] = []
        self._own: dict[int, Tensor] = {}  # what was made inside, by storage
        self._restored: dict[int, tuple[Tensor, Tensor]] = {}
        self._stream: _Stream | None = None
        self.broken = False

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        cards, stream = self._cards, self._cards.current_stream()
        if stream.is_default:
            raise CudaError("CUDA graphs must be captured on a non-default stream")
        if any(pool is broken for broken in cards._broken_pools):
            raise CudaError("beginAllocateToPool: already recording to mempool_id")
        with cards._lock:
            if stream.graph is not None or cards._capturing is not None:
                raise CudaError("operation not permitted when stream is capturing")
            cards._capturing = stream.graph = self
        cards.captured.append(stream.card)
        self._stream, self._pool = stream, pool or object()
        self.__enter__()

    def capture_end(self) -> None:
        stream = self._cards.current_stream()
        if stream is not self._stream:
            raise CudaError("Capture must end on the same stream it began on.")
        self.__exit__(None, None, None)
        self._cards._capturing = stream.graph = None
        with torch.no_grad():
            for memory, before in self._restored.values():
                memory.copy_(before)  # nothing of it has happened
        self._restored.clear()
        if self.broken:
            self._cards._broken_pools.append(self._pool)
            raise CudaError("operation failed due to a previous error during capture")

    def pool(self) -> Any:
        return self._pool

    def replay(self) -> None:
        cards, stream = self._cards, self._cards.current_stream()
        if self._stream is None or stream.card != self._stream.card:
            raise CudaError("a graph is replayed on another card than its own")
        if stream.graph is not None:
            raise CudaError("operation not permitted when stream is capturing")

        with torch.no_grad(), _disable_current_modes():
            for func, args, kwargs, made in self._steps:
                found = cards.run(func, *tree_map_only(_Memory, _Memory.tensor, (args, kwargs)))
                for old, new in zip(made, tree_leaves(found), strict=True):
                    if old is not None:
                        old.copy_(new)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with _disable_current_modes():
            return self._record(func, args, kwargs or {})

    def _record(self, func: Any, args: Any, kwargs: Any) -> Any:
        if _name(func) in (*SYNCS, "lift_fresh", "_pin_memory"):
            self.broken = True
            raise CudaError(f"operation not permitted when stream is capturing: {_name(func)}")
        for tensor, writes in _touched(func, args, kwargs):
            known = self._cards.known(tensor)
            card = None if known is None else known.card
            if self._stream is not None and card not in (None, self._stream.card):
                self.broken = True
                raise CudaError(f"{func}: a tensor of card {card} on {self._stream.name}")
            key = tensor.untyped_storage()._cdata
            if writes and key not in self._own and key not in self._restored:
                flat = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                self._restored[key] = flat, flat.clone()
        found = func(*args, **kwargs)
        given = {
            one.untyped_storage()._cdata
            for one in tree_leaves((args, kwargs))
            if isinstance(one, Tensor)
        }
        made: list[Tensor | None] = []
        for one in tree_leaves(found):
            is_made = isinstance(one, Tensor) and one.untyped_storage()._cdata not in given
            made.append(one if is_made else None)
            if is_made:
                self._own[one.untyped_storage()._cdata] = one
                if self._stream is not None:
                    self._cards.holds(one, card=self._stream.card)
        kept = tree_map_only(Tensor, self._kept, (args, kwargs))
        self._steps.append((func, *kept, made))
        return found

    def _kept(self, tensor: Tensor) -> Tensor | _Memory:
        return tensor if tensor.untyped_storage()._cdata in self._own else _Memory(tensor)


# -- lint --------------------------------------------------------------------------------------


class Lint(TorchDispatchMode):
    """Refuses what a recorded step may not do, of a step over tensors of the meta device.

    Attributes:
        launches: Operations that move numbers; about as many kernels in plain PyTorch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = _name(func)
        if name in SYNCS:
            raise CudaError(f"{name} waits for the device")
        try:
            found = func(*args, **(kwargs or {}))
        except NotImplementedError as error:  # the shape of what comes depends on the numbers
            raise CudaError(f"{name} waits for the device") from error
        devices = {
            one.device.type for one in tree_leaves((args, kwargs, found)) if isinstance(one, Tensor)
        }
        if devices - {"meta"}:
            raise CudaError(f"{name} is, or copies, outside the device: {sorted(devices)}")
        if not _is_view(func):
            self.launches.append(name)
        return found


def lint(step: Callable[[], Any]) -> list[str]:
    """Returns the launches of a step over tensors of the meta device.

    Raises:
        CudaError: It waits for the device, or moves numbers between it and the host.
    """
    seen = Lint()
    with torch.no_grad(), seen:
        step()
    return seen.launches
