"""What callers give to a store, checked before anything is done: settings, names, unread messages.

A store knows no messages; it looks at their form alone, at an append as at an import, or a session
could be exported and never be taken in again.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from langchain_rwkv_state.state import LOSSY, CodecName, require_codec
from langchain_rwkv_state.store.clock import TTL, ttl_seconds
from langchain_rwkv_state.store.records import LogKind
from langchain_rwkv_state.store.rows import NAME_MAX

DEFAULT_TTL = timedelta(days=30)
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


@dataclass(frozen=True)
class StoreSettings:
    """What a store is opened with, wherever it is; wrong values are refused.

    Attributes:
        ttl: How long sessions and states live, unless said otherwise.
        sliding: Whether commits and reads renew that.
        history: How many states before a session's head are kept.
        log: ``"tokens"`` keeps the token ids, so that `rebuild` can make states again.
        size_limit: The most bytes to store, ``None`` for no limit.
        codec: How states become bytes, ``None`` for as the store was made.
        clock: Gives Unix time.
        staged_bytes: The most bytes of staged states to hold in memory, where there are files.

    Raises:
        ValueError: One is out of range; the message says which and what is possible.
    """

    ttl: TTL = DEFAULT_TTL
    sliding: bool = True
    history: int = 1
    log: LogKind = "none"
    size_limit: int | None = None
    codec: CodecName | None = None
    clock: Callable[[], float] = time.time
    staged_bytes: int | None = None

    def __post_init__(self) -> None:
        ttl_seconds(self.ttl, 1.0)
        if not is_whole(self.history, 0):
            raise ValueError(
                f"history is how many states to keep before a head, got {self.history!r}."
            )
        if self.log not in _LOGS:
            raise ValueError(f"log is one of {', '.join(map(repr, _LOGS))}, got {self.log!r}.")
        if self.codec is not None:
            require_codec(self.codec)
        check_log(self.log, self.codec)
        if self.size_limit is not None and not is_whole(self.size_limit, 1):
            raise ValueError(
                f"size_limit is a positive number of bytes or None, got {self.size_limit!r}."
            )
        check_flag(self.sliding, "sliding")
        if not callable(self.clock):
            raise ValueError(f"clock is a function that gives Unix time, got {self.clock!r}.")  # noqa: TRY004 # one kind
        if self.staged_bytes is not None and not is_whole(self.staged_bytes, 0):
            raise ValueError(
                f"staged_bytes is a number of bytes, 0 or more, got {self.staged_bytes!r}."
            )


def check_opening(path: object, timeout_seconds: object, read_only: object, create: object) -> None:
    """Checks how a store on disk is opened.

    Raises:
        ValueError: A value is not possible.
    """
    if path is not None and not isinstance(path, str | os.PathLike):
        raise ValueError(f"A store's path is a text or a Path, got {path!r}.")
    is_number = isinstance(timeout_seconds, int | float) and not isinstance(timeout_seconds, bool)
    if not is_number or not 0 < float(str(timeout_seconds)) < math.inf:
        raise ValueError(f"timeout_seconds is a number above 0, got {timeout_seconds!r}.")
    for name, value in {"read_only": read_only, "create": create}.items():
        if value is not None:
            check_flag(value, name)


def check_flag(value: object, name: str) -> None:
    """Checks that a value is yes or no, and not a text that says so.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} is True or False, got {value!r}.")  # noqa: TRY004 # one kind


def check_texts(value: object, name: str) -> None:
    """Checks that a value is a sequence of texts.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{name} is a list of texts, got {value!r:.200}.")  # noqa: TRY004 # one kind
    for text in value:
        if not isinstance(text, str):
            raise ValueError(f"{name} is a list of texts, it holds {text!r:.200}.")  # noqa: TRY004 # one kind


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


def is_whole(value: object, least: int) -> bool:
    """Says whether a value is a whole number, and no less than `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


LIMIT_BYTES = 15 << 20
"""The most bytes of a session's unread messages, as JSON in a bundle's `session.json`."""

_MARK = "rwkv_state"  # `langchain_rwkv_state.prompt.markers.STATE_KEY`, above a store


def require_messages(texts: Iterable[str]) -> None:
    """Checks texts that are to wait unread.

    Raises:
        ValueError: One is no message in JSON that every store takes in; the message says why.
    """
    for text in texts:
        if bundled_bytes([text]) > LIMIT_BYTES:
            raise ValueError(
                f"An unread message takes {bundled_bytes([text])} bytes as JSON, and a session "
                f"holds at most {LIMIT_BYTES} of them: let the model read it instead."
            )
        try:
            found = json.loads(text.encode(), parse_constant=no_constant)
        except UnicodeEncodeError as error:
            raise ValueError(
                f"An unread message holds half a surrogate pair, which is no text: {text!r:.200}. "
                "Write it as JSON does, with \\u."
            ) from error
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"An unread message is a JSON text, got {text!r:.200} ({error!s:.100})."
            ) from error
        if _is_marker(found):
            raise ValueError(
                "An unread message is no state marker: it would stand for a conversation that is "
                f"not this session's. Leave it out: {text!r:.200}."
            )


def bundled_bytes(texts: Iterable[str]) -> int:
    """Returns how many bytes texts take in a bundle's `session.json`."""
    return sum(len(json.dumps(text)) + 3 for text in texts)


def no_constant(text: str) -> None:
    """Refuses NaN and infinity, which are no JSON."""
    raise ValueError(f"{text} is no number")


def _is_marker(found: object) -> bool:
    """Says whether JSON is a system message with a reference, in whatever form LangChain has."""
    if not isinstance(found, Mapping):
        return False
    parts = [found, found.get("data"), found.get("kwargs")]
    objects: list[Mapping[str, Any]] = [part for part in parts if isinstance(part, Mapping)]
    extras = [part.get("additional_kwargs") for part in objects]
    marked = any(isinstance(extra, Mapping) and _MARK in extra for extra in extras)
    kinds = [found.get("id"), *(part.get("type") for part in objects)]
    return marked and "system" in json.dumps(kinds).lower()
