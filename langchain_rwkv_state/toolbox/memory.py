"""What remembering costs: the bytes of an RWKV state beside those of a key-value cache.

Arithmetic on shapes; it measures nothing. The easy mistake is to give a count of numbers as a count
of bytes, and to compare with attention as nobody builds it any more: most transformers share keys
and values between several heads, which divides their cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from langchain_rwkv_state.state.layout import StateLayout
from langchain_rwkv_state.state.state import require_states


@dataclass(frozen=True)
class Memory:
    """Bytes at one length of the context.

    Attributes:
        context: Tokens read.
        state: Bytes of the RWKV state, whatever the context.
        cache: Bytes of the cache of a transformer with as many layers of the same width.
        grouped: The same where several heads share their keys and values.
    """

    context: int
    state: int
    cache: int
    grouped: int


class HasLayout(Protocol):
    """Whatever knows the layout of its states: a `Runtime`, an `RWKVState`."""

    @property
    def layout(self) -> StateLayout:
        """Names, shapes and dtypes."""
        ...


def memory(
    model: StateLayout | HasLayout,
    context: int,
    *,
    bytes_a_number: int = 2,
    heads_a_group: int = 4,
) -> Memory:
    """Compares an RWKV state with a transformer's cache.

    A transformer of L layers and width D keeps ``2 * L * D`` numbers a token, keys and values;
    where g heads share theirs (Ainslie et al., arXiv 2305.13245), ``2 * L * D / g``. A state has
    ``L * (2 D + H N N)`` numbers in RWKV-5, 6 and 7 and ``5 L D`` in RWKV-4, once.

    Args:
        model: An RWKV model's layout, or what has one: a runtime, or one of its states.
        context: Tokens read, from 0 on.
        bytes_a_number: Of the cache; 2 for fp16 and bf16.
        heads_a_group: How many heads share keys and values; 4 is that of Llama 3 8B.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> layout = StateLayout.of(7, n_layer=32, n_embd=4096, head_size=64)
        >>> found = memory(layout, 8192)
        >>> found.state, found.cache, found.grouped
        (34603008, 4294967296, 1073741824)
    """
    if isinstance(model, str):
        require_states("memory", model)
    if context < 0 or bytes_a_number < 1 or heads_a_group < 1:
        raise ValueError(
            f"context must not be negative and the others at least 1, got {context}, "
            f"{bytes_a_number} and {heads_a_group}."
        )
    layout = model if isinstance(model, StateLayout) else model.layout
    cache = 2 * layout.n_layer * layout.n_embd * bytes_a_number * context
    return Memory(context, layout.nbytes, cache, cache // heads_a_group)
