"""Checks that what a function is given are states, and that their numbers are numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from langchain_rwkv_state.errors import StateCorrupt
from langchain_rwkv_state.state.container import as_bytes

if TYPE_CHECKING:
    from langchain_rwkv_state.state.state import RWKVState


def require_states(function: str, *values: object, verb: str | None = None) -> None:
    """Checks that what a function is given are states, and not what they are found by.

    Args:
        function: Its name, for the message.
        values: What it was given.
        verb: The store's verb that takes names, such as ``store.blend(...)``; ``None`` for none.

    Raises:
        TypeError: One is a session's name, a reference, or anything else.
    """
    for value in values:
        if hasattr(value, "derivation"):  # the class itself is built on what uses this
            continue
        if not isinstance(value, str):
            raise TypeError(f"{function} takes an RWKVState, got {value!r:.100}.")
        use = f"{verb}, or " if verb else ""
        if value.startswith("rwkv1-"):
            raise TypeError(
                f"{function} takes states, and {value!r:.100} is a reference: use {use}"
                "store.get(ref)."
            )
        raise TypeError(
            f"{function} takes states, and {value!r:.100} is a session's name or reference: use "
            f"{use}store.get(store.head(name))."
        )


def require_finite(state: RWKVState) -> None:
    """Checks that all numbers of a state are numbers.

    Raises:
        StateCorrupt: One is NaN or infinite; the message names the tensor.
    """
    for name in state:
        if not _all_finite(state.shared(name)):
            raise StateCorrupt(
                f"The state's tensor {name!r} holds NaN or infinity, as after an overflow, so that "
                "nothing could be read from it: it is not kept. Load the model in fp32 or bf16; if "
                "it does the same there, its file is damaged."
            )


def _all_finite(tensor: torch.Tensor) -> bool:
    """Says whether all numbers of a tensor are finite; at the speed of memory, on one thread."""
    if not tensor.is_cpu:
        return bool(torch.isfinite(tensor).all())
    exponent = _EXPONENTS.get(tensor.dtype)
    if exponent is not None:
        bits = as_bytes(tensor.contiguous()).view(np.uint16)
        return bool(((bits & exponent) != exponent).all())
    numbers = tensor.contiguous().numpy()
    with np.errstate(all="ignore"):
        total = np.add.reduce(numbers, axis=None)
    return bool(np.isfinite(total) or np.isfinite(numbers).all())  # finite numbers may overflow


_EXPONENTS = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80}
"""Bits that are all set in a 16-bit number that is infinite or NaN, and in no other."""
