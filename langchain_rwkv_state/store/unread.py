"""What may wait unread behind a session's head: JSON that every store takes in, and no marker.

A store knows no messages; it looks at their form alone. The easy mistake is to take in at an append
what an import refuses: such a session could be exported and never be taken in again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

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
