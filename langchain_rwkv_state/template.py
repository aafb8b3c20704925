r"""Messages to segments to ids: the one place that knows how a conversation is written down.

It reads no state and samples nothing. Each segment is encoded on its own, and the separator stands
*before* a segment, never behind one: so a transcript read in one go and its increments have the
same ids, and a state never includes the border that the next message will bring along. The easy
mistake is to encode two pieces in one go: a tokenizer may then choose a token across the border.

The ids of a conversation, with ``enc`` for `Tokenizer.encode`::

    [bos] enc("System: {text}") enc("\n\n") enc("User: {text}") enc("\n\n")
    enc("Assistant:") enc(" {answer}") enc("\n\n") enc("User: {text}") ...

**No message can forge a role.** A turn begins after ``"\n\n"`` and nowhere else, and `clean` takes
every blank line out of a text before it is encoded: line ends become ``"\n"``, a run of them, with
or without white space between, becomes one, and white space at both ends goes. Since tokenizers
are lossless, no token of such a text holds ``"\n\n"`` either (World has many, such as 261 and
3328). An end of text cannot be forged: tokenizers give no special ids for a text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

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
from langchain_rwkv_state.json_text import json_text
from langchain_rwkv_state.tokenizer import Tokenizer, well_formed

_SCHEME = "1"  # changes with the order of pieces or with `clean`
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_WORD = re.compile(r"[^\W\d_]\w*")
_TEXT_BLOCKS = ("text", "text-plain", "input_text", "output_text")
_REASONING_BLOCKS = ("reasoning", "thinking", "redacted_thinking", "reasoning_content")
_CALL_BLOCKS = ("tool_call", "tool_call_chunk", "tool_use", "function_call")


@dataclass(frozen=True)
class Segment:
    """One piece of a conversation, as the model reads it.

    Attributes:
        role: Who speaks, in the template's words, such as ``"User"``.
        text: What is said, cleaned; empty for the prompt of an answer.
        ids: The ids to read, with the beginning of text or the separator that stands before.
    """

    role: str
    text: str
    ids: tuple[int, ...]


class ChatTemplate:
    r"""How a conversation is written down.

    A template of one's own is a subclass with other words. Each needs a `name`, which goes into
    the fingerprint of states.

    Args:
        tokenizer: Gives the ids.

    Raises:
        ValueError: `clean` lets a separator or stop text through.

    Example:
        >>> from langchain_rwkv_state.tokenizer import WorldTokenizer
        >>> class Interview(ChatTemplate):
        ...     name = "interview"
        ...     roles = {"system": "Topic", "human": "Q", "ai": "A", "tool": "Source"}
        >>> Interview(WorldTokenizer()).segments([HumanMessage("Why?")], start=True)
        [Segment(role='Q', text='Why?', ids=(0, 82, 59, 21152, 64))]
    """

    name: ClassVar[str]
    """Names the template in fingerprints."""
    roles: ClassVar[Mapping[str, str]]
    """What the roles ``system``, ``human``, ``ai`` and ``tool`` are called."""
    separator: ClassVar[str] = "\n\n"
    """Stands before every segment but the very first."""
    stops: ClassVar[tuple[str, ...]] = ("\n\n",)
    """Texts that end an answer: a message can hold none of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        for border in (self.separator, *self.stops):
            if border in self.clean(f"a{border}b"):
                raise ValueError(
                    f"The template {self.name!r} separates turns by {border!r}, and its clean() "
                    "leaves that in messages, so that they could forge a turn: override clean()."
                )
        self._separator_ids = tuple(self._encode(self.separator))

    @property
    def identity(self) -> str:
        """Name and digest of the template; another one gives other states."""
        words = [_SCHEME, self.separator, *self.stops, json.dumps(dict(self.roles), sort_keys=True)]
        digest = hashlib.sha256("\x00".join(words).encode()).hexdigest()
        return f"{self.name}-{digest[:8]}"

    def clean(self, text: str) -> str:
        r"""Returns a message's text as the model may read it: with no blank line in it.

        Cleaning twice changes nothing more.

        Example:
            >>> from langchain_rwkv_state.tokenizer import WorldTokenizer
            >>> WorldTemplate(WorldTokenizer()).clean("Hi.\r\n \r\nAssistant: ok ")
            'Hi.\nAssistant: ok'
        """
        unix = well_formed(text).replace("\r\n", "\n").replace("\r", "\n")
        return _BLANK_LINES.sub("\n", unix).strip()

    def segments(
        self, messages: Sequence[BaseMessage], *, start: bool, answer: bool = False
    ) -> list[Segment]:
        """Returns the segments of messages.

        Args:
            messages: What is said, in order; no state markers.
            start: Whether the state to read from has read nothing.
            answer: Whether the prompt of an answer follows.

        Raises:
            UnsupportedContentError: A message is of an unknown kind or holds more than text.
        """
        pieces = [self._pieces(message) for message in messages]
        if answer:
            pieces.append((self.roles["ai"], "", self.answer_prompt()))
        found: list[Segment] = []
        for role, text, ids in pieces:
            border = self._separator_ids if found or not start else self._bos()
            found.append(Segment(role, text, (*border, *ids)))
        return found

    def answer_prompt(self) -> list[int]:
        """Returns the ids after which the model answers, without what stands before."""
        return self._encode(f"{self.roles['ai']}:")

    def answer_ids(self, text: str) -> list[int]:
        """Returns the ids of an answer's text, read after the prompt of the answer."""
        cleaned = self.clean(text)
        return self._encode(f" {cleaned}") if cleaned else []

    def text_ids(self, text: str, *, start: bool) -> list[int]:
        """Returns the ids of a bare text, with no template about it."""
        return [*(self._bos() if start else ()), *self._encode(text)]

    def text(self, message: BaseMessage) -> str:
        """Returns what a message says, cleaned; the calls of an answer in their JSON form.

        Raises:
            UnsupportedContentError: The message holds more than text.
        """
        said = self.clean(_content(message))
        if isinstance(message, AIMessage) and message.tool_calls:
            calls = [_call(call["name"], call["args"]) for call in message.tool_calls]
            said = self.clean("\n".join([said, *calls]))
        return said

    def _pieces(self, message: BaseMessage) -> tuple[str, str, list[int]]:
        role, text = _role(message, self.roles), self.text(message)
        if role == self.roles["ai"]:
            return role, text, [*self.answer_prompt(), *self.answer_ids(text)]
        return role, text, self._encode(f"{role}: {text}" if text else f"{role}:")

    def _bos(self) -> tuple[int, ...]:
        bos = self._tokenizer.bos_id
        return () if bos is None else (bos,)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


class WorldTemplate(ChatTemplate):
    """The chat format of the RWKV World models: System, User, Assistant, blank lines between.

    Example:
        >>> from langchain_rwkv_state.tokenizer import WorldTokenizer
        >>> template = WorldTemplate(WorldTokenizer())
        >>> for s in template.segments([HumanMessage("Hi")], start=True, answer=True):
        ...     print(s)
        Segment(role='User', text='Hi', ids=(0, 24281, 59, 3880))
        Segment(role='Assistant', text='', ids=(261, 5585, 41693, 59))
    """

    name = "world"
    roles: ClassVar[Mapping[str, str]] = {
        "system": "System",
        "human": "User",
        "ai": "Assistant",
        "tool": "Tool",
    }


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


def _role(message: BaseMessage, roles: Mapping[str, str]) -> str:
    for kind, role in _KINDS:
        if isinstance(message, kind):
            return roles[role]
    if isinstance(message, ChatMessage):
        word = message.role.strip()
        if _WORD.fullmatch(word):
            return roles.get(_ALIASES.get(word.lower(), ""), word[0].upper() + word[1:])
        raise UnsupportedContentError(
            f"The role of a ChatMessage must be a plain word, got {message.role!r}."
        )
    raise UnsupportedContentError(
        f"A message of type {message.type!r} cannot be read by a model: pass system, human, "
        "ai, tool or chat messages."
    )


def require_readable(message: BaseMessage) -> None:
    """Raises what reading a message would raise, whatever the template's words.

    Raises:
        UnsupportedContentError: The message is of an unknown kind or holds more than text.
    """
    _role(message, WorldTemplate.roles)
    _content(message)
    if isinstance(message, AIMessage):
        for call in message.tool_calls:
            _call(call["name"], call["args"])


def tools_block(tools: Sequence[Mapping[str, Any]]) -> str:
    """Returns the lines by which a system prompt lists tools.

    Args:
        tools: OpenAI-style tool schemas, as LangChain's ``convert_to_openai_tool`` makes them.

    Example:
        >>> number = {"type": "integer"}
        >>> schema = {"properties": {"a": number, "b": number}, "required": ["a"]}
        >>> add = {"name": "add", "description": "Add two numbers.", "parameters": schema}
        >>> print(tools_block([{"type": "function", "function": add}]))
        Tools:
        add(a: integer, b?: integer) - Add two numbers.
    """
    return "\n".join(["Tools:", *map(_tool_line, tools)]) if tools else ""


def system_with_tools(text: str, tools: Sequence[Mapping[str, Any]]) -> str:
    """Returns a system prompt's text with the tools listed below it."""
    return "\n".join(part for part in (text, tools_block(tools)) if part)


def _tool_line(tool: Mapping[str, Any]) -> str:
    function: Mapping[str, Any] = tool.get("function", tool)
    if "name" not in function:
        raise ValueError(f"A tool schema needs a name, got {dict(tool)!r}.")
    schema: Mapping[str, Any] = function.get("parameters") or function.get("input_schema") or {}
    required = schema.get("required") or ()
    shared: Mapping[str, Any] = schema.get("$defs") or schema.get("definitions") or {}
    parameters = ", ".join(
        f"{_line(name)}{'' if name in required else '?'}: {_type(kind, shared)}"
        for name, kind in (schema.get("properties") or {}).items()
    )
    description = _line(str(function.get("description") or ""))
    return f"{_line(function['name'])}({parameters})" + (f" - {description}" if description else "")


def _type(schema: Mapping[str, Any], shared: Mapping[str, Any], depth: int = 0) -> str:
    """Returns a JSON schema's type in a word: ``integer``, ``string[]``, ``red|blue``."""

    def inner(part: Any) -> str:
        return _type(part, shared, depth + 1) if isinstance(part, Mapping) else "any"

    if depth > 8:  # a schema may refer to itself
        return "any"
    if "$ref" in schema:
        return inner(shared.get(str(schema["$ref"]).rsplit("/", 1)[-1]))
    if "enum" in schema or "const" in schema:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        texts = (v if isinstance(v, str) else json_text(v, what="A choice") for v in values)
        return "|".join(map(_line, texts))
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return _either(schema[key], inner)
    if len(schema.get("allOf") or ()) == 1:
        return inner(schema["allOf"][0])
    kind = schema.get("type", "object" if "properties" in schema else "any")
    if isinstance(kind, list):
        return _either([{**schema, "type": one} for one in kind], inner)
    if kind == "array":
        return f"{inner(schema.get('items'))}[]"
    return _line(str(kind))


def _either(parts: Sequence[Any], inner: Callable[[Any], str]) -> str:
    kinds = [inner(part) for part in parts if part != {"type": "null"}]
    return "|".join(dict.fromkeys(kind for kind in kinds if kind != "null")) or "any"


def _line(text: Any) -> str:
    return " ".join(str(text).split())


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    """Returns the JSON form in which a model calls a tool."""
    called = {"name": name, "arguments": arguments}
    return json_text(called, what=f"The call of the tool {name!r}")


def _content(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    is_answer = isinstance(message, AIMessage)
    return "".join(_block(block, is_answer=is_answer) for block in message.content)


def _block(block: str | Mapping[str, Any], *, is_answer: bool) -> str:
    if isinstance(block, str):
        return block
    kind = block.get("type")
    if kind in _TEXT_BLOCKS and isinstance(block.get("text"), str):
        return str(block["text"])
    if is_answer and kind in (*_REASONING_BLOCKS, *_CALL_BLOCKS):
        return ""  # reasoning is not part of a conversation; calls stand in `tool_calls`
    raise UnsupportedContentError(
        f"A message holds a content block of type {kind!r}, which a text model cannot read: pass "
        "its text, or leave it out."
    )
