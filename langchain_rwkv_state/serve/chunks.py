"""Writes the events of a stream as OpenAI's completions have them, at the price of a text each.

What all events of one stream share is written once, before and behind what differs. The easy
mistake is a whole document, or an object that is checked, for each token: on a small model that
costs more than the token.
"""

from __future__ import annotations

from json.encoder import encode_basestring
from typing import Any

from langchain_rwkv_state.serve.replies import dumps

DONE = b"data: [DONE]\n\n"

_PLACE = '"\\u0000"'


class Chunks:
    """Makes the events of one stream.

    Args:
        shared: What each chunk holds, such as id and model.
        choice: What each choice holds beside what is new, its index and more.
        new: The name of what is new: ``delta`` or ``text``.
        with_usage: Whether the stream ends with what it cost.
    """

    def __init__(
        self, shared: dict[str, Any], choice: dict[str, Any], new: str, *, with_usage: bool
    ) -> None:
        self._shared = shared
        self._choice = choice
        self._new = new
        self._with_usage = with_usage
        whole = dumps(self._document({**choice, new: "\0"})).decode()
        self._head, self._tail = whole.split(_PLACE)
        self._head = f"data: {self._head}"
        self._tail = f"{self._tail}\n\n"

    def _document(self, choice: dict[str, Any]) -> dict[str, Any]:
        usage = {"usage": None} if self._with_usage else {}
        return {**self._shared, "choices": [choice], **usage}

    def plain(self, new: str) -> str:
        """Returns an event with nothing but what is new.

        Args:
            new: That, as JSON.
        """
        return f"{self._head}{new}{self._tail}"

    def more(self, new: Any, **choice: Any) -> str:
        """Returns an event that has more to say.

        Args:
            new: What is new.
            choice: What else the choice says.
        """
        document = self._document({**self._choice, self._new: new, **choice})
        return f"data: {dumps(document).decode()}\n\n"

    def usage(self, usage: dict[str, Any]) -> str:
        """Returns the event that tells the cost; empty where nobody asked for it."""
        if not self._with_usage:
            return ""
        document = {**self._shared, "choices": [], "usage": usage}
        return f"data: {dumps(document).decode()}\n\n"


def quoted(text: str) -> str:
    """Returns a text as JSON."""
    return encode_basestring(text)


def as_bytes(events: list[str]) -> bytes:
    """Returns events for one write."""
    return "".join(events).encode("utf-8", "replace")
