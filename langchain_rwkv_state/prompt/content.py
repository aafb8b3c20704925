"""What a LangChain message says and who says it, before any template writes it down.

It knows kinds of messages and of content blocks, and no model's format. The easy mistake is to
take what cannot be read for an empty text: an image that is dropped in silence is an answer about
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_rwkv_state.errors import UnsupportedContentError
from langchain_rwkv_state.prompt.json_text import json_text

REASONING_KEY = "reasoning_content"
"""Key in an answer's `additional_kwargs` of what was thought before it, as other partners have."""

_WORD = re.compile(r"[^\W\d_]\w*")
_TEXT_BLOCKS = ("text", "text-plain", "input_text", "output_text")
_REASONING_BLOCKS = ("reasoning", "thinking", "redacted_thinking", "reasoning_content")
_CALL_BLOCKS = ("tool_call", "tool_call_chunk", "tool_use", "function_call", "invalid_tool_call")

_KINDS: tuple[tuple[type[BaseMessage], str], ...] = (
    (SystemMessage, "system"),
    (HumanMessage, "human"),
    (AIMessage, "ai"),
    (ToolMessage, "tool"),
    (FunctionMessage, "tool"),
)
_ALIASES = {
    "system": "system",
    "user": "human",
    "human": "human",
    "assistant": "ai",
    "ai": "ai",
    "tool": "tool",
    "function": "tool",
}


def kind_of(message: BaseMessage) -> str:
    """Returns who speaks: ``system``, ``human``, ``ai``, ``tool``, or another speaker's own word.

    Raises:
        UnsupportedContentError: The message is of an unknown kind.
    """
    for kind, role in _KINDS:
        if isinstance(message, kind):
            return role
    if isinstance(message, ChatMessage):
        word = message.role.strip()
        if _WORD.fullmatch(word):
            return _ALIASES.get(word.lower(), word)
        raise UnsupportedContentError(
            f"The role of a ChatMessage must be a plain word, got {message.role!r}."
        )
    raise UnsupportedContentError(
        f"A message of type {message.type!r} cannot be read by a model: pass system, human, "
        "ai, tool or chat messages."
    )


def text_of(message: BaseMessage) -> str:
    """Returns the text that a message holds; of an answer neither its thought nor its calls.

    Raises:
        UnsupportedContentError: It holds a block that is no text.
    """
    if isinstance(message.content, str):
        return message.content
    is_answer = isinstance(message, AIMessage)
    return "".join(_block(block, is_answer=is_answer) for block in message.content)


def thought_of(message: AIMessage) -> str:
    """Returns what was thought before an answer, empty where nothing was."""
    said = message.additional_kwargs.get(REASONING_KEY)
    if isinstance(said, str):
        return said
    if isinstance(message.content, str):
        return ""
    blocks = [block for block in message.content if isinstance(block, Mapping)]
    kinds = ("reasoning", "thinking")
    texts = (block.get(kind) for block in blocks if (kind := block.get("type")) in kinds)
    return "".join(text for text in texts if isinstance(text, str))


def call_json(name: str, arguments: Mapping[str, Any]) -> str:
    """Returns the JSON form of a tool's call, as G1 models write it.

    Raises:
        UnsupportedContentError: An argument has no form in JSON.

    Example:
        >>> call_json("add", {"a": 1})
        '{"name":"add","arguments":{"a":1}}'
    """
    called = {"name": name, "arguments": arguments}
    return json_text(called, what=f"The call of the tool {name!r}", compact=True)


def require_readable(message: BaseMessage) -> None:
    """Raises what reading a message would raise, whatever the template's words.

    Raises:
        UnsupportedContentError: The message is of an unknown kind or holds more than text.
    """
    kind_of(message)
    text_of(message)
    if isinstance(message, AIMessage):
        for call in message.tool_calls:
            call_json(call["name"], call["args"])


def _block(block: str | Mapping[str, Any], *, is_answer: bool) -> str:
    if isinstance(block, str):
        return block
    kind = block.get("type")
    if kind in _TEXT_BLOCKS and isinstance(block.get("text"), str):
        return str(block["text"])
    if is_answer and kind in (*_REASONING_BLOCKS, *_CALL_BLOCKS):
        return ""  # a thought stands apart; calls stand in `tool_calls`
    raise UnsupportedContentError(
        f"A message holds a content block of type {kind!r}, which a text model cannot read: pass "
        "its text, or leave it out."
    )
