"""Words for what runs slower than it could on a card; behind the last colon stands what to do.

They are what `Model.fallbacks` holds, what the loader warns of once, and what ``doctor`` shows.
"""

from __future__ import annotations

import importlib.util

from langchain_rwkv_state.runtime.native import build

SWITCHED_OFF = (
    "RWKV_STATE_COMPILED=0 switches the kernels and the recorded steps off, so PyTorch's own "
    "kernels run one by one: unset it"
)
NO_TRITON = (
    "Triton is not installed, so PyTorch's own kernels run one by one: pip install "
    "'langchain-rwkv-state[cuda]'"
)


def refused(reason: str) -> str:
    """Returns the words for kernels that do not compile, or do not compute what they should."""
    return (
        f"the Triton kernels are not used ({reason}), so PyTorch's own run one by one: install the "
        "Triton that belongs to this PyTorch, and tell us what `rwkv-state doctor` says"
    )


def not_recorded(size: int, reason: str) -> str:
    """Returns the words for steps of a size that are not recorded as CUDA graphs."""
    return (
        f"steps of {size} tokens are not recorded as a CUDA graph ({reason}), so each kernel is "
        "started by itself: free memory on the card, and tell us what `rwkv-state doctor` says"
    )


def expected() -> tuple[str, ...]:
    """Returns what is known before anything is loaded."""
    if not build.enabled():
        return (SWITCHED_OFF,)
    return () if importlib.util.find_spec("triton") else (NO_TRITON,)


def split(fallback: str) -> tuple[str, str]:
    """Returns what runs slower, and what to do.

    Example:
        >>> split("Triton is missing: install it")
        ('Triton is missing', 'install it')
    """
    what, _, advice = fallback.rpartition(": ")
    return (what, advice) if what else (advice, "see the page on runtimes")
