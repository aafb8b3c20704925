"""Reads OpenAI's messages as LangChain's.

What a message holds that no text model reads, such as an image, is an error that names it. Markers
of states are LangChain's affair: no message of a client's becomes one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolCall,
    ToolMessage,
)
from langchain_core.messages.tool import invalid_tool_call, tool_call

from langchain_rwkv_state.prompt.content import REASONING_KEY
from langchain_rwkv_state.serve.errors import ApiError, unsupported

_FIELDS: Mapping[str, tuple[str, ...]] = {
    "system": ("content", "name"),
    "developer": ("content", "name"),
    "user": ("content", "name"),
    "assistant": ("content", "name", "refusal", "tool_calls", REASONING_KEY),
    "tool": ("content", "name", "tool_call_id"),
}
_PASSED = ("annotations",)
"""What answers hold and nobody reads when they come back."""


def to_langchain(messages: Sequence[Any]) -> list[BaseMessage]:
    """Returns messages as LangChain has them.

    Args:
        messages: Those of a request for a chat completion.

    Raises:
        ApiError: One is none of OpenAI's, or holds what cannot be read.

    Example:
        >>> to_langchain([{"role": "user", "content": "Hi."}])
        [HumanMessage(content='Hi.', additional_kwargs={}, response_metadata={})]
    """
    if not messages:
        raise ApiError(400, "messages is empty: send one at least.", param="messages")
    return [_message(each, f"messages[{at}]") for at, each in enumerate(messages)]


def _message(given: Any, where: str) -> BaseMessage:
    if not isinstance(given, Mapping):
        raise _wrong(where, f"is an object with a role and content, got {given!r:.100}")
    role = given.get("role")
    fields = _FIELDS.get(role) if isinstance(role, str) else None
    if fields is None:
        raise _wrong(f"{where}.role", f"is one of {', '.join(_FIELDS)}, got {role!r:.100}")
    for name, value in given.items():
        if name not in ("role", *fields, *_PASSED) and value is not None:
            raise unsupported(f"{where}.{name}", f"a message of the role {role!r} has none.")
    name = given.get("name")
    if name is not None and not isinstance(name, str):
        raise _wrong(f"{where}.name", f"is a text, got {name!r:.100}")
    return _READERS[str(role)](given, where, name)


def _system(given: Mapping[str, Any], where: str, name: str | None) -> BaseMessage:
    return SystemMessage(_text(given.get("content"), where), name=name)


def _user(given: Mapping[str, Any], where: str, name: str | None) -> BaseMessage:
    return HumanMessage(_text(given.get("content"), where), name=name)


def _tool(given: Mapping[str, Any], where: str, name: str | None) -> BaseMessage:
    call_id = given.get("tool_call_id")
    if not isinstance(call_id, str):
        raise _wrong(f"{where}.tool_call_id", f"is the id of the call, got {call_id!r:.100}")
    return ToolMessage(_text(given.get("content"), where), tool_call_id=call_id, name=name)


def _assistant(given: Mapping[str, Any], where: str, name: str | None) -> BaseMessage:
    content, refusal = given.get("content"), given.get("refusal")
    calls = given.get("tool_calls") or []
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise _wrong(f"{where}.tool_calls", f"is a list, got {calls!r:.100}")
    if content is None:
        content = refusal if isinstance(refusal, str) else "" if calls else None
    thought = given.get(REASONING_KEY)
    if thought is not None and not isinstance(thought, str):
        raise _wrong(f"{where}.{REASONING_KEY}", f"is a text, got {thought!r:.100}")
    whole: list[ToolCall] = []
    broken: list[InvalidToolCall] = []
    for at, call in enumerate(calls):
        called = _call(call, f"{where}.tool_calls[{at}]")
        if called["type"] == "tool_call":
            whole.append(called)
        else:
            broken.append(called)
    return AIMessage(
        content=_text(content, where),
        name=name,
        tool_calls=whole,
        invalid_tool_calls=broken,
        additional_kwargs={REASONING_KEY: thought} if thought else {},
    )


_READERS: Mapping[str, Callable[[Mapping[str, Any], str, str | None], BaseMessage]] = {
    "system": _system,
    "developer": _system,
    "user": _user,
    "assistant": _assistant,
    "tool": _tool,
}


def _call(given: Any, where: str) -> ToolCall | InvalidToolCall:
    """Returns a call; one whose arguments are no JSON object is what was cut off."""
    if isinstance(given, Mapping) and given.get("type", "function") != "function":
        raise unsupported(f"{where}.type", "functions are the only tools.")
    function = given.get("function") if isinstance(given, Mapping) else None
    known = function if isinstance(function, Mapping) else {}
    name, arguments = known.get("name"), known.get("arguments")
    call_id = given.get("id") if isinstance(given, Mapping) else None
    if not (isinstance(name, str) and isinstance(arguments, str) and isinstance(call_id, str)):
        raise _wrong(where, "is an id and a function with a name and arguments, all of them texts")
    try:
        read = json.loads(arguments)
    except (ValueError, RecursionError):
        read = None
    if isinstance(read, dict):
        return tool_call(name=name, args=read, id=call_id)
    return invalid_tool_call(name=name, args=arguments, id=call_id, error="no JSON object")


def _text(content: Any, where: str) -> str:
    """Returns the text of a message's content.

    Raises:
        ApiError: There is none, or a part of it is no text.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise _wrong(f"{where}.content", f"is a text or a list of parts, got {content!r:.100}")
    return "".join(_part(part, f"{where}.content[{at}]") for at, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("text", "refusal"):
        if isinstance(kind, str):
            raise unsupported(f"{where}.type", f"the model reads text, and {kind!r} is none.")
        raise _wrong(where, f"is an object with a type and a text, got {part!r:.100}")
    text = part.get(kind)
    if not isinstance(text, str):
        raise _wrong(f"{where}.{kind}", f"is a text, got {text!r:.100}")
    return text


def _wrong(where: str, what: str) -> ApiError:
    return ApiError(400, f"{where} {what}.", param=where)
