"""Measures what a loaded model takes, what a conversation adds, and whether reading adds more.

Run in a fresh process, since one that did other things gives back less. Every slot is written
before memory is looked at, since room that is never touched takes none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from langchain_rwkv_state.runtime import load_runtime, open_slots
from langchain_rwkv_state.runtime.checkpoint import read_tensors
from langchain_rwkv_state.runtime.slots import Slots
from langchain_rwkv_state.state import RWKVState


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        weights: Of all tensors in the file.
        loaded: That a loaded model added to the process, after a first pass.
        state: Of one state.
        conversation: That one more conversation in a slot adds.
        grown: That all conversations added while each read `tokens` ids.
        tokens: Number of ids.
        conversations: Number of conversations.
    """

    weights: int
    loaded: int
    state: int
    conversation: float
    grown: int
    tokens: int
    conversations: int


def measure(
    model: str, small: str, strategy: str, threads: int, conversations: int, tokens: int
) -> Memory:
    """Loads a model and fills slots.

    Args:
        model: The file.
        small: A small model, read first, so that what any first pass takes is not counted.
        strategy: How both run.
        threads: Of PyTorch.
        conversations: Number of slots.
        tokens: Ids that each reads.
    """
    torch.set_num_threads(threads)
    warm = load_runtime(small, strategy)
    warm.forward([1, 2], warm.zero_state())
    warm.close()
    before = _used()
    runtime = load_runtime(model, strategy)
    zero = runtime.zero_state()
    runtime.forward([1, 2], zero)
    loaded = _used() - before
    first = open_slots(runtime, conversations)
    _fill(first, zero)
    _read(first, 4)  # a first pass of this size takes room for all later ones
    before = _used()
    more = [open_slots(runtime, conversations) for _ in range(2)]
    for slots in more:
        _fill(slots, zero)
    each = (_used() - before) / (2 * conversations)
    _read(first, 4)
    before = _used()
    _read(first, tokens)
    grown = _used() - before
    runtime.close()
    return Memory(_weights(model), loaded, zero.nbytes, each, grown, tokens, conversations)


def _fill(slots: Slots, state: RWKVState) -> None:
    for slot in range(slots.count):
        slots.put(slot, state)


def _read(slots: Slots, tokens: int) -> None:
    for token in range(1, tokens + 1):
        slots.read([(slot, [token]) for slot in range(slots.count)])


def _weights(model: str) -> int:
    return sum(tensor.nbytes for tensor in read_tensors(Path(model)).values())


def _used() -> int:
    """Returns the bytes in use on the card where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    used: int = psutil.Process().memory_info().rss
    return used
