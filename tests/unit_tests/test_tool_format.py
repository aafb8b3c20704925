"""Tools as lines of a system prompt, and calls as answers write them."""

from __future__ import annotations

import pytest
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, Field

from langchain_rwkv_state.prompt.tools import ToolFormat, signature, type_text

FORMAT = ToolFormat()


class Person(BaseModel):
    """A person."""

    name: str = Field(description="as on the passport")
    age: int | None = None


def test_a_tool_is_one_line():
    @tool
    def add(a: int, b: int, note: str = "", tags: list[str] | None = None) -> int:
        """Add two

        numbers.
        """
        return a + b

    assert FORMAT.listing([convert_to_openai_tool(add)]) == (
        "Tools:\n"
        "- add(a: integer, b: integer, note?: string, tags?: string[]) - Add two numbers.\n"
        "Return only a JSON function call."
    )


@pytest.mark.parametrize(
    ("schema", "short"),
    [
        ({"type": "integer"}, "integer"),
        ({"enum": ["red", "blue"], "type": "string"}, '"red" | "blue"'),
        ({"const": 3}, "3"),
        ({"type": "array", "items": {"type": "array"}}, "any[][]"),
        ({"type": "array", "items": {"enum": [1, 2]}}, "(1 | 2)[]"),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, "string | null"),
        ({"type": ["integer", "null", "string"]}, "integer | string | null"),
        ({"$ref": "#/$defs/Loop"}, "any"),
        ({"$ref": "#/$defs/Point"}, "{x: number, y?: number (up)}"),
        ({"allOf": [{"$ref": "#/$defs/Empty"}]}, "object"),
        ({}, "any"),
    ],
)
def test_types_are_short(schema, short):
    up = {"type": "number", "description": "up"}
    shared = {
        "Loop": {"$ref": "#/$defs/Loop"},
        "Empty": {"properties": {}},
        "Point": {"properties": {"x": {"type": "number"}, "y": up}, "required": ["x"]},
    }
    assert type_text({**schema, "$defs": shared}) == short
    parameters = {"properties": {"x": schema}, "required": ["x"], "$defs": shared}
    assert signature({"name": "f", "parameters": parameters}) == f"f(x: {short})"


def test_json_of_a_schema_is_asked_for_in_one_line():
    schema = Person.model_json_schema()
    assert FORMAT.output("Person", schema) == (
        "Return only JSON: Person(name: string (as on the passport), age?: integer) - A person."
    )
    assert FORMAT.output("Names", {"type": "array", "items": {"type": "string"}}) == (
        "Return only JSON: string[]"
    )


def test_a_tool_without_parameters_or_with_another_partners_key():
    assert signature({"name": "now", "description": "The time."}) == "now() - The time."
    schema = {"properties": {"q": {"type": "string"}}, "required": ["q"]}
    assert signature({"name": "find", "input_schema": schema}) == "find(q: string)"


def test_a_schema_without_a_name_is_refused():
    with pytest.raises(ValueError, match="name"):
        FORMAT.listing([{"description": "x"}])
