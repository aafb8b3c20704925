r"""How tools are listed, called and answered: the format of RWKV-7 G1, and the place of others.

The authority is ``RWKV-v7/RWKV7-G1x-templates.txt`` in BlinkDL/RWKV-LM: a line for each tool in
the system prompt, a call as compact JSON in a fence, a result as a turn of the user. It writes
texts and knows no tokens. The easy mistake is to list a tool by its whole JSON schema: small models
lose the question behind it, and every conversation has to read it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from langchain_rwkv_state.prompt.content import call_json

Call = tuple[str, Mapping[str, Any]]
"""A tool's name, and its arguments."""

_DEEPEST = 6  # a schema may refer to itself


class ToolFormat:
    """How one family of models reads and calls tools: G1's. Another format is a subclass.

    A call is always compact JSON with ``name`` and ``arguments``, several of them a list; what
    stands around it, and how tools are listed, is a subclass's choice.

    Example:
        >>> number = {"type": "integer"}
        >>> schema = {"properties": {"a": number, "b": number}, "required": ["a"]}
        >>> add = {"name": "add", "description": "Add two numbers.", "parameters": schema}
        >>> print(ToolFormat().listing([{"type": "function", "function": add}]))
        Tools:
        - add(a: integer, b?: integer) - Add two numbers.
        Return only a JSON function call.
        >>> print(ToolFormat().calls([("add", {"a": 1, "b": 2})]))
        ```json
        {"name":"add","arguments":{"a":1,"b":2}}
        ```
    """

    opening: ClassVar[str] = "```json\n"
    """Stands before calls."""
    closing: ClassVar[str] = "\n```"
    """Stands behind calls."""
    result_lead: ClassVar[str] = "Function output:\n"
    """Stands before a result where it comes as a turn of the user."""

    @property
    def begins(self) -> tuple[str, ...]:
        """What calls begin with, one or several."""
        return tuple(f'{self.opening}{lead}{{"name":"' for lead in ("", "["))

    def begun(self, text: str) -> bool:
        """Says whether a text is the first part of what calls begin with."""
        return any(each.startswith(text) for each in self.begins)

    def listing(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """Returns the lines by which a system prompt lists tools.

        Args:
            tools: OpenAI-style tool schemas, as LangChain's ``convert_to_openai_tool`` makes them.

        Raises:
            ValueError: One has no name.
        """
        lines = [f"- {signature(function_of(tool))}" for tool in tools]
        return "\n".join(["Tools:", *lines, "Return only a JSON function call."])

    def output(self, name: str, schema: Mapping[str, Any]) -> str:
        """Returns the line by which a system prompt asks for JSON of a schema.

        Args:
            name: What it is called.
            schema: A JSON schema.
        """
        schema = resolved(schema)
        if schema.get("properties"):
            function = {
                "name": name,
                "description": schema.get("description"),
                "parameters": schema,
            }
            return f"Return only JSON: {signature(function)}"
        return f"Return only JSON: {type_text(schema)}"

    def calls(self, calls: Sequence[Call], cut: str = "") -> str:
        """Returns calls as an answer writes them.

        Args:
            calls: Names and arguments.
            cut: The beginning of one more call, which was never finished.

        Raises:
            UnsupportedContentError: An argument has no form in JSON.
        """
        whole = [call_json(name, arguments) for name, arguments in calls]
        if cut:
            return self.opening + ("[" if whole else "") + ",".join([*whole, cut])
        body = whole[0] if len(whole) == 1 else f"[{','.join(whole)}]"
        return f"{self.opening}{body}{self.closing}"

    def result(self, text: str, *, failed: bool) -> str:
        """Returns what a tool gave back, as the model reads it.

        Args:
            text: The result.
            failed: Whether it is an error's text.
        """
        return f"Error: {text}" if failed and not text.lower().startswith("error") else text


def function_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the function in a tool's schema.

    Raises:
        ValueError: It has no name.
    """
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not function.get("name"):
        raise ValueError(f"A tool schema needs a name, got {dict(tool)!r}.")
    return function


def parameters_of(function: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the JSON schema of a function's arguments."""
    found = function.get("parameters") or function.get("input_schema")
    return found or {"type": "object", "properties": {}}


def signature(function: Mapping[str, Any]) -> str:
    """Returns a function's line: its name, its parameters, and what it does.

    Example:
        >>> unit = {"enum": ["celsius", "fahrenheit"], "description": "of the answer"}
        >>> print(signature({"name": "weather", "parameters": {"properties": {"unit": unit}}}))
        weather(unit?: "celsius" | "fahrenheit" (of the answer))
    """
    schema = resolved(parameters_of(function))
    inside = _members(schema, _shared(schema), 0)
    description = _line(function.get("description") or "")
    return f"{_line(function['name'])}({inside})" + (f" - {description}" if description else "")


def type_text(schema: Mapping[str, Any]) -> str:
    """Returns a JSON schema in short, as TypeScript writes types.

    Example:
        >>> type_text({"type": "array", "items": {"properties": {"x": {"type": "number"}}}})
        '{x?: number}[]'
    """
    return _type(schema, _shared(schema), 0)


def resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a schema, or what it refers to as a whole, with what is shared."""
    named = _shared(schema).get(str(schema.get("$ref", "")).rsplit("/", 1)[-1])
    return {**schema, **named} if isinstance(named, Mapping) else schema


def _shared(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return schema.get("$defs") or schema.get("definitions") or {}


def _members(schema: Mapping[str, Any], shared: Mapping[str, Any], depth: int) -> str:
    required = schema.get("required") or ()
    return ", ".join(
        _member(name, part, shared, depth, optional=name not in required)
        for name, part in (schema.get("properties") or {}).items()
    )


def _member(
    name: str, schema: Any, shared: Mapping[str, Any], depth: int, *, optional: bool
) -> str:
    known: Mapping[str, Any] = schema if isinstance(schema, Mapping) else {}
    kind = _type(known, shared, depth)
    if optional:
        kind = " | ".join(one for one in kind.split(" | ") if one != "null") or "null"
    description = _line(known.get("description") or "")
    about = f" ({description})" if description else ""
    return f"{_line(name)}{'?' if optional else ''}: {kind}{about}"


def _type(schema: Mapping[str, Any], shared: Mapping[str, Any], depth: int) -> str:
    def inner(part: Any) -> str:
        return _type(part, shared, depth + 1) if isinstance(part, Mapping) else "any"

    if depth > _DEEPEST:
        return "any"
    if "$ref" in schema:
        name = str(schema["$ref"]).rsplit("/", 1)[-1]
        return inner(shared.get(name))
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is not None:
        return " | ".join(_line(json.dumps(v, ensure_ascii=False, default=str)) for v in values)
    cases = schema.get("anyOf") or schema.get("oneOf")
    if cases:
        return _either(cases, inner)
    if len(schema.get("allOf") or ()) == 1:
        return inner(schema["allOf"][0])
    kind = schema.get("type", "object" if "properties" in schema else "any")
    if isinstance(kind, list):
        return _either([{**schema, "type": one} for one in kind], inner)
    if kind == "array":
        item = inner(schema.get("items"))
        return f"({item})[]" if " | " in item else f"{item}[]"
    if kind == "object" and schema.get("properties"):
        return f"{{{_members(schema, shared, depth + 1)}}}"
    return _line(kind)


def _either(parts: Sequence[Any], inner: Callable[[Any], str]) -> str:
    kinds = dict.fromkeys(kind for part in parts for kind in inner(part).split(" | "))
    last = [kind for kind in kinds if kind == "null"]
    return " | ".join([kind for kind in kinds if kind != "null"] + last) or "any"


def _line(text: Any) -> str:
    return " ".join(str(text).split())
