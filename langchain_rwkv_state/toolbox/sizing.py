"""Computes what a service takes: memory for weights and slots, room for sessions: `size_of`.

Arithmetic on shapes; nothing is loaded or measured. The easy mistake is to count one state a
session: a store keeps ``history`` states behind each head, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from langchain_rwkv_state.engine import Limits
from langchain_rwkv_state.runtime.cuda.cells import cell_bytes
from langchain_rwkv_state.runtime.cuda.sizing import CELLS_A_SLOT
from langchain_rwkv_state.state.codec import encode_parts, lossy
from langchain_rwkv_state.state.codec_names import LOSSY, CodecName, require_codec
from langchain_rwkv_state.state.layout import StateLayout
from langchain_rwkv_state.state.state import zero_state
from langchain_rwkv_state.store.staging import STAGED_BUDGET_BYTES

_REFERENCE = f"rwkv1-{'0' * 64}"  # as long as any
_FINGERPRINT = "0" * 80  # about as long as those are
_FINE_BYTES = 16_384  # up to here Redis' allocator wastes too little to count
_REDIS_HEADER_BYTES = 32  # of a value, before its bytes


@dataclass(frozen=True)
class ServiceSize:
    """What one process, and one store, take.

    Attributes:
        weights_bytes: Of the weights, on their device.
        state_bytes: Of a conversation's state in memory.
        slots: Conversations computed at once.
        slots_bytes: Of their states, on the device of the weights.
        staged_bytes: The most of answers that nothing has committed yet, in memory.
        sessions: How many are kept.
        states_a_session: Its head, and the states behind it.
        codec: How the store writes states.
        stored_state_bytes: Of a state's file. For ``zstd``, which depends on the numbers, that of
            ``exact``: it is seldom a tenth less.
        redis_state_bytes: Of a state's value in Redis, in the pieces that its allocator hands out.
    """

    weights_bytes: int
    state_bytes: int
    slots: int
    slots_bytes: int
    staged_bytes: int
    sessions: int
    states_a_session: int
    codec: CodecName
    stored_state_bytes: int
    redis_state_bytes: int

    @property
    def stored_bytes(self) -> int:
        """Bytes of all sessions' states, on a disk or in a directory beside Redis."""
        return self.sessions * self.states_a_session * self.stored_state_bytes

    @property
    def redis_bytes(self) -> int:
        """Bytes of all sessions' states in the memory of Redis."""
        return self.sessions * self.states_a_session * self.redis_state_bytes


def size_of(
    layout: StateLayout,
    weights_bytes: int,
    *,
    slots: int = Limits.slots,
    sessions: int = 1_000,
    history: int = 1,
    codec: CodecName = "exact",
    on_card: bool = False,
    state_dtype: torch.dtype = torch.float32,
) -> ServiceSize:
    """Computes what a model and its sessions take.

    Args:
        layout: Of the model's states.
        weights_bytes: Of its weights, as they are kept: `runtime.needed_memory.weights_bytes`.
        slots: Conversations computed at once.
        sessions: How many are kept.
        history: States that are kept behind each head.
        codec: How the store writes states.
        on_card: Whether the native runtime computes on a card, where a slot is three cells.
        state_dtype: Of WKV states in such a cell.

    Raises:
        ValueError: A number is out of range, or the codec is unknown.

    Example:
        >>> layout = StateLayout.of(7, n_layer=12, n_embd=768, head_size=64)
        >>> found = size_of(layout, 382_000_000, sessions=1_000)
        >>> found.state_bytes, found.slots_bytes, found.stored_bytes > 2_000 * found.state_bytes
        (2433024, 155713536, True)
    """
    if slots < 1 or sessions < 0 or history < 0:
        raise ValueError(
            f"slots must be at least 1, sessions and history not negative, got {slots}, "
            f"{sessions} and {history}."
        )
    require_codec(codec)
    slot = CELLS_A_SLOT * cell_bytes(layout, state_dtype) if on_card else layout.nbytes
    stored = _stored_bytes(layout, codec)
    return ServiceSize(
        weights_bytes=weights_bytes,
        state_bytes=layout.nbytes,
        slots=slots,
        slots_bytes=slots * slot,
        staged_bytes=STAGED_BUDGET_BYTES,
        sessions=sessions,
        states_a_session=1 + history,
        codec=codec,
        stored_state_bytes=stored,
        redis_state_bytes=redis_value_bytes(stored),
    )


def redis_value_bytes(nbytes: int) -> int:
    """Returns what a value of so many bytes takes of the memory of Redis.

    Its allocator, jemalloc, hands out pieces of a few sizes: four for each doubling, so that up to
    a fifth of a piece lies idle.

    Example:
        >>> redis_value_bytes(2_450_000), redis_value_bytes(34_610_000)
        (2621440, 41943040)
    """
    wanted = nbytes + _REDIS_HEADER_BYTES
    if wanted <= _FINE_BYTES:
        return wanted
    step = 1 << ((wanted - 1).bit_length() - 3)
    return -(-wanted // step) * step


def _stored_bytes(layout: StateLayout, codec: CodecName) -> int:
    """Returns the bytes of a state's file; all but zstd's depend on the shapes alone."""
    state = zero_state(layout, _FINGERPRINT)
    written: CodecName = "exact" if codec == "zstd" else codec
    parts = encode_parts(
        lossy(state, written) if written in LOSSY else state,
        parent=_REFERENCE,
        ref=_REFERENCE,
        created_seconds=1_764_428_400.123456,
        codec=written,
    )
    return sum(memoryview(part).nbytes for part in parts)
