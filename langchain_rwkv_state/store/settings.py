"""Checks of what a store is opened with, before anything is opened or made.

The easy mistake is to check in the order of convenience: a wrong value must leave no directory
behind.
"""

from __future__ import annotations

from langchain_rwkv_state.store.clock import TTL, ttl_seconds

_CODECS = ("exact",)
_LOGS = ("none", "tokens")


def check_settings(
    ttl: TTL, history: object, log: object, size_limit: object, codec: object
) -> None:
    """Checks a store's settings.

    Raises:
        ValueError: One is out of range; the message says which and what is possible.
    """
    ttl_seconds(ttl, 1.0)
    if history != 0 and not _is_positive(history):
        raise ValueError(f"history is how many states to keep before a head, got {history!r}.")
    if log not in _LOGS:
        raise ValueError(f"log is one of {', '.join(map(repr, _LOGS))}, got {log!r}.")
    if codec not in _CODECS:
        raise ValueError(
            f"The codec {codec!r} is not supported by this release, which has "
            f"{', '.join(map(repr, _CODECS))}."
        )
    if size_limit is not None and not _is_positive(size_limit):
        raise ValueError(f"size_limit is a positive number of bytes or None, got {size_limit!r}.")


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
