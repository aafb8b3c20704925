"""Checks of what a store is opened with, before anything is opened or made.

The easy mistake is to check in the order of convenience: a wrong value must leave no directory
behind.
"""

from __future__ import annotations

from langchain_rwkv_state.state import LOSSY, require_codec
from langchain_rwkv_state.store.clock import TTL, ttl_seconds
from langchain_rwkv_state.store.rows import NAME_MAX

_LOGS = ("none", "tokens")


def check_name(value: object, what: str) -> None:
    """Checks a session's or owner's name.

    Args:
        value: The name.
        what: What it names, for the message.

    Raises:
        ValueError: It is no text of 1 to 512 characters.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= NAME_MAX:
        raise ValueError(
            f"A {what} name is a text of 1 to {NAME_MAX} characters, got {value!r:.200}."
        )


def check_session(session: object, ttl: TTL) -> None:
    """Checks what a session is named and how long it is to live, before anything is done for it.

    Args:
        session: Its name.
        ttl: Its time to live.

    Raises:
        ValueError: One is not possible.
    """
    check_name(session, "session")
    ttl_seconds(ttl, 1.0)


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
    if codec is not None:
        require_codec(codec)
    check_log(log, codec)
    if size_limit is not None and not _is_positive(size_limit):
        raise ValueError(f"size_limit is a positive number of bytes or None, got {size_limit!r}.")


def check_log(log: object, codec: object) -> None:
    """Checks that a store can keep token ids.

    Raises:
        ValueError: Its states are lossy, so that no token ids lead to them.
    """
    if log == "tokens" and codec in LOSSY:
        raise ValueError(
            f"log='tokens' keeps ids to make states again from, and no ids lead to a state of the "
            f"codec {codec!r}: use 'exact' or 'zstd', or log='none'."
        )


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
