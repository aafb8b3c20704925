"""Makes messages texts that a session keeps unread, and makes those readable for a model.

A turn that another model answered is kept as its messages, and among them may be some that RWKV
cannot read, such as an image. None is left out: a commit counts how many it covers.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_rwkv_state.errors import RWKVStateError
from langchain_rwkv_state.prompt.content import require_readable
from langchain_rwkv_state.prompt.markers import message_to_json

logger = logging.getLogger(__name__)
_KINDS = (SystemMessage, HumanMessage, AIMessage, ToolMessage, FunctionMessage)
_NAME_LENGTH = 40

_EXTRAS: dict[str, Any] = {
    "additional_kwargs": {},
    "response_metadata": {},
    "tool_calls": [],
    "invalid_tool_calls": [],
    "usage_metadata": None,
    "artifact": None,
}
"""What messages hold besides their text, and what stands for nothing of it."""


def as_unread(message: BaseMessage) -> str:
    """Returns a message as JSON, with nothing but its text where the rest has no JSON form."""
    try:
        text = message_to_json(message)
    except (TypeError, ValueError):
        fields = type(message).model_fields
        update = {name: empty for name, empty in _EXTRAS.items() if name in fields}
        text = message_to_json(message.model_copy(update={**update, "content": str(message.text)}))
    return text.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair has no UTF-8


def readable(messages: Sequence[BaseMessage], session: str) -> list[BaseMessage]:
    """Returns as many messages, of which those that RWKV cannot read are reduced to their text.

    Where there is no text, the kind of what was there stands in its place, as in ``[image]``. One
    warning says so.

    Args:
        messages: A session's unread messages.
        session: Its name.
    """
    found = [message if _is_readable(message) else _reduced(message) for message in messages]
    changed = sum(one is not other for one, other in zip(found, messages, strict=True))
    if changed:
        warn_or_log(
            f"Of the unread messages of session {session!r}, {changed} hold what RWKV cannot read "
            "(an image or a role of another kind, for example); another model answered them. Their "
            "text alone is read now, or a word such as [image] where there is none."
        )
    return found


def _is_readable(message: BaseMessage) -> bool:
    try:
        require_readable(message)
    except (RWKVStateError, TypeError, ValueError, KeyError, AttributeError):
        return False
    return True


def _reduced(message: BaseMessage) -> BaseMessage:
    text = str(message.text)
    if not text.strip():
        text = f"[{_what_is_there(message)}]"
    if not isinstance(message, _KINDS):
        return HumanMessage(text)
    plain = message.model_copy(update={"content": text})
    if _is_readable(plain):
        return plain
    return AIMessage(text)  # the calls of an answer, which have no form in JSON


def _what_is_there(message: BaseMessage) -> str:
    blocks = message.content if isinstance(message.content, list) else []
    kinds = [str(block.get("type", "?")) for block in blocks if isinstance(block, Mapping)]
    return (", ".join(dict.fromkeys(kinds)) or message.type)[:_NAME_LENGTH]


def warn_or_log(text: str) -> None:
    """Warns, or logs where warnings are errors: raised, it would stand in the way of a turn."""
    try:
        warnings.warn(text, stacklevel=2)
    except Warning:
        logger.warning("%s", text)
