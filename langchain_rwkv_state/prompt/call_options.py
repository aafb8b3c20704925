"""Reads what a call asks of a model beside its messages: tools, JSON of a schema, a thought.

It reads LangChain's options, says what of them is wrong, and gives what the layers below need: the
lines of the system prompt and the constraint on decoding. It loads no model. Which tool must be
called is no part of the system prompt: a conversation whose turns choose otherwise would read that
prompt again at each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.messages import BaseMessage, SystemMessage
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from langchain_rwkv_state.grammar.constraint import (
    Constraint,
    calls_constraint,
    json_object_constraint,
    json_schema_constraint,
    no_calls_constraint,
)
from langchain_rwkv_state.prompt.content import text_of
from langchain_rwkv_state.prompt.markers import leading_system
from langchain_rwkv_state.prompt.template import ChatTemplate, Reasoning
from langchain_rwkv_state.prompt.tools import ToolFormat, function_of, parameters_of

ASK_OPTIONS = (
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "strict",
    "reasoning",
    "keep_reasoning",
)
"""Options of a call that are read here."""

_LEVELS: Final = ("low", "medium", "high")
_CHOICES = ("auto", "any", "required", "none")


@dataclass(frozen=True)
class Output:
    """JSON that is asked for in place of words.

    Attributes:
        name: What it is called.
        schema: Its JSON schema; ``None`` for any object.
    """

    name: str
    schema: Mapping[str, Any] | None


@dataclass(frozen=True)
class Ask:
    """What is asked for.

    Attributes:
        tools: OpenAI-style schemas of tools.
        choice: ``auto``, ``any``, ``none``, or the name of a tool behind ``=``.
        parallel: Whether one answer may call several tools.
        output: JSON that the answer is to be.
        reasoning: Whether to think before the answer.
        keep_reasoning: Whether what was thought stays in the state.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    choice: str = "auto"
    parallel: bool = True
    output: Output | None = None
    reasoning: Reasoning = None
    keep_reasoning: bool = False

    @classmethod
    def of(
        cls,
        options: Mapping[str, Any],
        *,
        reasoning: Reasoning = None,
        keep_reasoning: bool = False,
    ) -> Ask:
        """Reads a call's options.

        Args:
            options: Those named in `ASK_OPTIONS` are read.
            reasoning: The model's own setting.
            keep_reasoning: The model's own setting.

        Raises:
            ValueError: One has a value that it cannot have.
        """
        tools = as_tools(() if options.get("tools") is None else options["tools"])
        if options.get("strict") is not None:
            _flag("strict", options["strict"])
        given = options.get("reasoning")
        kept = options.get("keep_reasoning")
        parallel = options.get("parallel_tool_calls")
        return cls(
            tools=tools,
            choice=_choice(options.get("tool_choice"), tools),
            parallel=True if parallel is None else _flag("parallel_tool_calls", parallel),
            output=_output(options.get("response_format")),
            reasoning=reasoning if given is None else as_reasoning(given),
            keep_reasoning=keep_reasoning if kept is None else _flag("keep_reasoning", kept),
        )

    @property
    def may_call(self) -> bool:
        """Whether an answer may call a tool."""
        return bool(self.tools) and self.choice != "none"

    def reasoning_before(self, constraint: Constraint | None) -> Reasoning:
        """Returns the setting that the prompt is written for.

        Where decoding is held to JSON from the first token on, a thought is off already.
        """
        held = constraint is not None and constraint.holds_at_once
        return None if held and self.reasoning is False else self.reasoning

    def system(self, template: ChatTemplate) -> str:
        """Returns the lines that stand below a system prompt's own."""
        lines = [template.tools.listing(self.tools)] if self.tools else []
        if self.output is not None and self.output.schema is not None:
            lines.append(template.tools.output(self.output.name, self.output.schema))
        return "\n".join(lines)

    def constraint(self, tools: ToolFormat) -> Constraint | None:
        """Returns what an answer may be; ``None`` for anything.

        Args:
            tools: How calls are written.

        Raises:
            SchemaError: A schema has a keyword that decoding cannot be held to.
        """
        output = self.output
        if output is not None and not self.may_call:
            if output.schema is None:
                return json_object_constraint()
            return json_schema_constraint(output.schema)
        if not self.tools:
            return None
        if self.choice == "none":
            return no_calls_constraint(f" {tools.opening}")
        known = [
            {"name": function["name"], "parameters": parameters_of(function)}
            for function in map(function_of, self.tools)
        ]
        also: Mapping[str, Any] | None = None
        if output is not None and self.choice != "auto":
            raise ValueError(
                "response_format asks for JSON and tool_choice for a call, and an answer is one or "
                "the other: leave one of them out."
            )
        if output is not None:
            also = {"type": "object"} if output.schema is None else output.schema
        return calls_constraint(
            known,
            choice=self.choice.removeprefix("="),
            parallel=self.parallel,
            opening=f" {tools.opening}",
            closing=tools.closing,
            also=also,
        )


def with_system(messages: Sequence[BaseMessage], lines: str) -> list[BaseMessage]:
    """Returns messages whose system prompt ends with these lines.

    They stand below the last of the leading system messages, or alone where there is none.
    """
    if not lines:
        return list(messages)
    count = leading_system(messages)
    if not count:
        return [SystemMessage(lines), *messages]
    text = "\n".join(part for part in (text_of(messages[count - 1]).strip(), lines) if part)
    return [*messages[: count - 1], SystemMessage(text), *messages[count:]]


def as_tools(tools: Sequence[Any], *, strict: bool | None = None) -> tuple[dict[str, Any], ...]:
    """Returns tools as OpenAI-style schemas.

    Args:
        tools: Functions, pydantic models, TypedDicts, JSON schemas or LangChain tools.
        strict: Passed on in the schemas; arguments fit them either way.

    Raises:
        ValueError: One is none of these, or two that differ have one name.
    """
    if isinstance(tools, Mapping | str) or not isinstance(tools, Sequence):
        raise ValueError(  # noqa: TRY004 # a value of a call's option
            f"tools is a list of tools, got {tools!r:.100}: pass [tool]."
        )
    found: dict[str, dict[str, Any]] = {}
    for each in (_as_tool(tool, strict) for tool in tools):
        name = function_of(each)["name"]
        known = found.setdefault(name, each)
        try:
            is_same = known is each or _untitled(known) == _untitled(each)
        except RecursionError:
            is_same = False
        if not is_same:
            raise ValueError(f"Two tools are called {name!r}: give them names that differ.")
    return tuple(found.values())


def as_reasoning(value: Any) -> Reasoning:
    """Returns a setting of `reasoning`.

    Raises:
        ValueError: There is no such setting.
    """
    if value is None or isinstance(value, bool):
        return value
    for level in _LEVELS:
        if value == level:
            return level
    raise ValueError(
        f"reasoning is None, False, True, 'low', 'medium' or 'high', got {value!r}: None leaves it "
        "to the model, False switches it off."
    )


def _as_tool(tool: Any, strict: bool | None) -> dict[str, Any]:
    convert: Callable[..., dict[str, Any]] = convert_to_openai_tool
    try:
        found = convert(tool) if strict is None else convert(tool, strict=strict)
        model = _model_of(tool)
        if model is not None and "$defs" in (schema := pydantic_schema(model)):
            # LangChain writes out what is shared, and of what refers to itself it writes nothing.
            found["function"]["parameters"] = schema
        function_of(found)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"A tool is {tool!r:.100}, which cannot be read ({error}): pass a function with "
            "annotations, a pydantic model, a TypedDict, a JSON schema with a title, or a "
            "LangChain tool."
        ) from error
    return found


def _untitled(schema: Any) -> Any:
    """Returns a schema without titles, which some ways of writing one have and others not."""
    if isinstance(schema, Mapping):
        kept = {key: _untitled(value) for key, value in schema.items()}
        return {k: v for k, v in kept.items() if k != "title" or not isinstance(v, str)}
    return [_untitled(each) for each in schema] if isinstance(schema, list) else schema


def pydantic_schema(model: Any) -> dict[str, Any]:
    """Returns the JSON schema of a pydantic model, with what it shares under ``$defs``."""
    whole: dict[str, Any] = (
        model.model_json_schema() if hasattr(model, "model_json_schema") else model.schema()
    )
    return {"title": model.__name__, **whole}


def _model_of(tool: Any) -> Any:
    """Returns the pydantic model of a tool's arguments, where it has one."""
    found = tool.tool_call_schema if isinstance(tool, BaseTool) else tool
    return found if isinstance(found, type) and is_basemodel_subclass(found) else None


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(  # noqa: TRY004 # a value of a call's option
            f"{name} is True, False or None, got {value!r}."
        )
    return value


def _choice(given: Any, tools: Sequence[Mapping[str, Any]]) -> str:
    if given is None or given is False:
        return "auto"
    if isinstance(given, Mapping):
        function = given.get("function", given)
        named = function.get("name") if isinstance(function, Mapping) else None
        given = named or given.get("type")
    if given is True:
        given = "any"
    names = [str(function_of(tool)["name"]) for tool in tools]
    if given in names:
        return f"={given}"
    if given not in _CHOICES:
        raise ValueError(
            f"tool_choice is {given!r}: pass 'auto', 'any', 'none', or the name of a bound tool "
            f"({', '.join(names) or 'there is none'})."
        )
    if not tools and given in ("any", "required"):
        raise ValueError(f"tool_choice={given!r} asks for a call, and there are no tools.")
    return "any" if given == "required" else str(given)


def _output(given: Any) -> Output | None:
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object" and set(given) == {"type"}:
        return Output("object", None)
    inner = given.get("json_schema") if kind == "json_schema" else None
    if isinstance(inner, Mapping) and isinstance(inner.get("schema"), Mapping):
        schema = inner["schema"]
        return Output(str(inner.get("name") or schema.get("title") or "Output"), schema)
    raise ValueError(
        f"response_format is {given!r:.100}: pass "
        '{"type": "json_schema", "json_schema": {"name": ..., "schema": ...}} or '
        '{"type": "json_object"}.'
    )
