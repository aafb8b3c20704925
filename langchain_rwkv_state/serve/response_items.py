"""Reads what a request of the Responses API says: items become LangChain's messages.

An answer of the API is several items, its thought, its text and each of its calls, and one message
for a model: what follows upon one another is put together again. What cannot be read is an error
that names its place, as ``input[2].content[0]``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.tool import invalid_tool_call, tool_call

from langchain_rwkv_state.prompt.content import REASONING_KEY
from langchain_rwkv_state.serve.errors import ApiError, unsupported

_TEXT_PARTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


def read_items(given: object, *, whole: bool = True, named: str = "input") -> list[BaseMessage]:
    """Returns what is said, as messages.

    Args:
        given: A text, or a list of items.
        whole: Whether all that was ever said is here, so that the result of a call needs the call.
        named: The field that they stand in.

    Raises:
        ApiError: An item is none, or none that can be read.
    """
    if isinstance(given, str):
        return [HumanMessage(given)]
    if not isinstance(given, list):
        raise _wrong(named, f"is {given!r:.100}: pass a text or a list of items")
    if not given:
        raise _wrong(named, "is empty, with nothing to answer: pass at least one item")
    found = _Messages(whole=whole)
    for place, item in enumerate(given):
        found.take(item, f"{named}[{place}]")
    return found.end()


class _Messages:
    """Puts messages together from items."""

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole
        self._said: list[BaseMessage] = []
        self._calls: set[str] = set()
        self._answer: AIMessage | None = None

    def take(self, item: object, at: str) -> None:
        if not isinstance(item, Mapping):
            raise _wrong(at, f"is {item!r:.100}: pass an object")
        kind = item.get("type") or ("message" if "role" in item else None)
        read = _ITEMS.get(kind) if isinstance(kind, str) else None
        if read is None:
            raise unsupported(f"{at}.type", _why_not(kind))
        read(self, item, at)

    def end(self) -> list[BaseMessage]:
        self._close()
        return self._said

    def _close(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and (
            answer.content or answer.tool_calls or answer.invalid_tool_calls
        ):
            self._said.append(answer)

    def _message(self, item: Mapping[str, Any], at: str) -> None:
        role, text = item.get("role"), text_of(item.get("content"), f"{at}.content")
        if role == "assistant":
            if self._answer is None or self._answer.content or self._answer.tool_calls:
                self._close()
                self._answer = AIMessage("")
            self._answer.content = text
            if not text:  # it was said, and nothing was in it
                self._said.append(self._answer)
                self._answer = None
            return
        self._close()
        if role == "user":
            self._said.append(HumanMessage(text))
        elif role in ("system", "developer"):
            self._said.append(SystemMessage(text))
        else:
            raise _wrong(
                f"{at}.role", f"is {role!r:.100}: pass user, assistant, system or developer"
            )

    def _thought(self, item: Mapping[str, Any], at: str) -> None:
        said = item.get("content") or item.get("summary") or []
        text = text_of(said, f"{at}.content", between="\n")
        self._close()
        self._answer = AIMessage("", additional_kwargs={REASONING_KEY: text} if text else {})

    def _call(self, item: Mapping[str, Any], at: str) -> None:
        name, said = _text(item, "name", at), _text(item, "arguments", at)
        call_id = _text(item, "call_id", at)
        self._calls.add(call_id)
        if self._answer is None:
            self._answer = AIMessage("")
        try:
            arguments = json.loads(said)
        except (ValueError, RecursionError):
            arguments = None
        if isinstance(arguments, dict):
            self._answer.tool_calls.append(tool_call(name=name, args=arguments, id=call_id))
            return
        broken = invalid_tool_call(
            name=name, args=said, id=call_id, error="its arguments are no JSON object"
        )
        self._answer.invalid_tool_calls.append(broken)

    def _result(self, item: Mapping[str, Any], at: str) -> None:
        call_id = _text(item, "call_id", at)
        if self._whole and call_id not in self._calls:
            raise _wrong(
                f"{at}.call_id",
                f"is {call_id!r:.100}, which is no function_call of the input: pass the call "
                "before its output, or the previous_response_id of the answer that made it",
            )
        self._close()
        self._said.append(
            ToolMessage(text_of(item.get("output"), f"{at}.output"), tool_call_id=call_id)
        )


_ITEMS: Mapping[str, Callable[[_Messages, Mapping[str, Any], str], None]] = {
    "message": _Messages._message,
    "reasoning": _Messages._thought,
    "function_call": _Messages._call,
    "function_call_output": _Messages._result,
}


def text_of(content: object, at: str, *, between: str = "") -> str:
    """Returns the text of an item's content.

    Args:
        content: A text, or a list of parts.
        at: Where it stands.
        between: Stands between parts.

    Raises:
        ApiError: A part is no text.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise _wrong(at, f"is {content!r:.100}: pass a text or a list of parts")
    return between.join(_part(part, f"{at}[{place}]") for place, part in enumerate(content))


def _part(part: object, at: str) -> str:
    if not isinstance(part, Mapping):
        raise _wrong(at, f"is {part!r:.100}: pass an object with type and text")
    kind = part.get("type")
    if kind == "refusal":
        return _text(part, "refusal", at)
    if kind not in _TEXT_PARTS:
        raise unsupported(f"{at}.type", f"a text model reads no {kind!r:.100}. Pass its text.")
    return _text(part, "text", at)


def _text(item: Mapping[str, Any], key: str, at: str) -> str:
    found = item.get(key)
    if not isinstance(found, str):
        raise _wrong(f"{at}.{key}", f"is {found!r:.100}: pass a text")
    return found


def _why_not(kind: object) -> str:
    if kind == "item_reference":
        return "no items are kept, only the state behind an answer. Pass previous_response_id."
    return f"an item is one of {', '.join(_ITEMS)}, and this is {kind!r:.100}."


def _wrong(param: str, what: str) -> ApiError:
    return ApiError(400, f"{param} {what}.", param=param)
