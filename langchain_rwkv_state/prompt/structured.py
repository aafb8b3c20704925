"""Asks for structured output as LangChain's partners do, and reads it: options and parsers.

The constraint on decoding makes answers fit; this only asks for it and reads the result. An answer
that `max_tokens` cut off is refused: LangChain's JSON parsers complete it, and half a name is then
a name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, TypeAlias, TypeVar

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import (
    JsonOutputParser,
    PydanticOutputParser,
)
from langchain_core.output_parsers.base import BaseOutputParser
from langchain_core.output_parsers.openai_tools import (
    JsonOutputKeyToolsParser,
    PydanticToolsParser,
)
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass

from langchain_rwkv_state.prompt.call_options import as_tools, pydantic_schema
from langchain_rwkv_state.prompt.tools import function_of

Method: TypeAlias = Literal["json_schema", "function_calling", "json_mode"]
"""How structured output is asked for."""

_METHODS = ("json_schema", "function_calling", "json_mode")


def tool_options(
    tools: Sequence[Any],
    *,
    tool_choice: Any = None,
    parallel_tool_calls: bool | None = None,
    strict: bool | None = None,
) -> dict[str, Any]:
    """Returns the options by which a call is given tools; what is not set is left out.

    Raises:
        ValueError: A tool cannot be read.
    """
    options: dict[str, Any] = {"tools": list(as_tools(tools, strict=strict))}
    if tool_choice is not None:
        options["tool_choice"] = tool_choice
    if parallel_tool_calls is not None:
        options["parallel_tool_calls"] = parallel_tool_calls
    return options


@dataclass(frozen=True)
class Structured:
    """An object that is asked for.

    Attributes:
        options: Those of a call that ask for it.
        parser: Reads the answer.
    """

    options: dict[str, Any]
    parser: Runnable[Any, Any]

    @classmethod
    def of(
        cls,
        schema: Any,
        *,
        method: str,
        strict: bool | None = None,
        tools: Sequence[Any] | None = None,
    ) -> Structured:
        """Returns how a schema is asked for.

        Args:
            schema: A pydantic model, a TypedDict, or a JSON schema with a title; with
                ``json_mode`` it may be ``None``.
            method: One of `Method`.
            strict: Passed on in the schema.
            tools: Tools that may be called besides.

        Raises:
            ValueError: There is no such method, or it cannot have this schema.
        """
        if method not in _METHODS:
            raise ValueError(f"method is {' or '.join(map(repr, _METHODS))}, got {method!r}.")
        if schema is None and method != "json_mode":
            raise ValueError(
                f"method={method!r} needs a schema: pass a pydantic model, a TypedDict or a JSON "
                "schema."
            )
        if tools is not None and method != "json_schema":
            raise ValueError(f"tools= goes with method='json_schema', not with {method!r}.")
        schema = _unwrapped(schema)
        traced = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
        options: dict[str, Any] = {"ls_structured_output_format": traced}
        model = schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None
        if method == "function_calling":
            bound = tool_options([schema], parallel_tool_calls=False, strict=strict)
            name = str(function_of(bound["tools"][0])["name"])
            parser: Runnable[Any, Any] = (
                _WholeToolsParser(tools=[model], first_tool_only=True)
                if model is not None
                else _WholeKeyToolsParser(key_name=name, first_tool_only=True)
            )
            return cls(options | bound | {"tool_choice": name}, parser)
        read: Runnable[Any, Any] = (
            _WholePydanticParser(pydantic_object=model) if model is not None else _WholeJsonParser()
        )
        if method == "json_mode":
            return cls(options | {"response_format": {"type": "json_object"}}, read)
        as_schema = _as_schema(schema)
        wanted = {"name": as_schema.get("title", "Output"), "schema": as_schema}
        options["response_format"] = {"type": "json_schema", "json_schema": wanted}
        if tools is not None:
            options |= tool_options(tools, strict=strict)
        return cls(options, read)

    def chain(
        self, llm: Runnable[LanguageModelInput, AIMessage], *, include_raw: bool
    ) -> Runnable[LanguageModelInput, Any]:
        """Returns a model that was given the options, with the parser behind it.

        Args:
            llm: The model.
            include_raw: Whether the chain gives the answer and a parser's error too.
        """
        if not include_raw:
            return llm | self.parser
        assign = RunnablePassthrough.assign(
            parsed=itemgetter("raw") | self.parser, parsing_error=lambda _: None
        )
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        fallback = assign.with_fallbacks([failed], exception_key="parsing_error")
        return RunnableMap(raw=llm) | fallback


def _unwrapped(schema: Any) -> Any:
    """Returns the schema in OpenAI's ``{"name", "schema", "strict"}``, and any other as it is."""
    wrapped = isinstance(schema, Mapping) and isinstance(schema.get("schema"), Mapping)
    if wrapped and "name" in schema and not {"type", "properties"} & {*schema}:
        return {"title": schema["name"], **schema["schema"]}
    return schema


def _as_schema(schema: Any) -> dict[str, Any]:
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return pydantic_schema(schema)
    if isinstance(schema, Mapping) and "$ref" in schema and "title" not in schema:
        schema = {"title": str(schema["$ref"]).rsplit("/", 1)[-1], **schema}
    try:
        shares = isinstance(schema, Mapping) and "$defs" in schema
        return dict(schema) if shares else convert_to_json_schema(schema)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"The schema is {schema!r:.100}, which cannot be read ({error}): pass a pydantic "
            "model, a TypedDict, or a JSON schema with a title."
        ) from error


T = TypeVar("T")


class _Whole(BaseOutputParser[T]):
    """A parser that refuses an answer which was cut off."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> T:
        first = result[0]
        if isinstance(first, ChatGeneration):
            about: Mapping[str, Any] = first.message.response_metadata
            if about.get("finish_reason") == "length":
                raise OutputParserException(
                    "The answer was cut off at max_tokens before its JSON ended: ask for more "
                    "tokens, or for less.",
                    llm_output=first.text,
                )
        found: T = super().parse_result(result, partial=partial)
        return found


class _WholeJsonParser(_Whole[Any], JsonOutputParser):
    """JSON, whole."""


class _WholePydanticParser(_Whole[Any], PydanticOutputParser[Any]):
    """A pydantic object from JSON, whole."""


class _WholeToolsParser(_Whole[Any], PydanticToolsParser):
    """A pydantic object from a call, whole."""


class _WholeKeyToolsParser(_Whole[Any], JsonOutputKeyToolsParser):
    """The arguments of a call, whole."""
