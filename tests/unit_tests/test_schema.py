"""Schemas: what a grammar cannot hold is refused by name and place, and nothing else is lost."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from llguidance import LLMatcher

from langchain_rwkv_state.errors import RWKVStateError, SchemaError
from langchain_rwkv_state.schema import _DO, _FORMATS, held_schema, parts


def object_of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties]}


@pytest.mark.parametrize("keyword", sorted(_DO))
def test_a_keyword_that_cannot_be_held_is_refused_by_name_and_place(keyword):
    schema = {"$defs": {"A": {keyword: True}}, **object_of(a={"items": {"$ref": "#/$defs/A"}})}
    with pytest.raises(SchemaError, match=r"has '.*' at '#/\$defs/A', which decoding") as caught:
        held_schema(schema, "The schema of the tool 'f'")
    assert f"The schema of the tool 'f' has {keyword!r}" in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, RWKVStateError)


def grammar_refuses(schema: dict[str, Any]) -> bool:
    return LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema)) != ""


def test_what_is_refused_is_what_the_grammar_refuses():
    for keyword in set(_DO) - {"x-guidance"}:
        assert grammar_refuses({keyword: {}}), keyword
    for name in _FORMATS:
        assert not grammar_refuses({"type": "string", "format": name}), name


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "uniqueItems": True}, "pydantic `set` has it: take a `list`"),
        (
            {"type": "string", "format": "binary"},
            "JSON has no bytes.*date, date-time.*or a pattern",
        ),
        ({"type": "string", "format": "path"}, "the format 'path' at '#'"),
        ({"type": "object", "x-guidance": {}}, "belongs to the grammar"),
        ({"$ref": "#/$defs/B"}, r"'#/\$defs/B' at '#', and nothing is there"),
        ({"$ref": "http://a/b"}, "a place in the same schema"),
        ({"$ref": "#"}, "refers to itself without end at '#'"),
        (object_of(x={"$ref": "#"}), "refers to itself without end"),
        (object_of(x={"type": "array", "minItems": 1, "items": {"$ref": "#"}}), "without end"),
        (object_of(x={"anyOf": [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}]}), "without end"),
        ({"type": "object", "minProperties": 1}, "'minProperties' at '#'.*may come twice"),
        ({"const": float("nan")}, "is not JSON"),
        ({"const": object()}, "is not JSON"),
        ("string", "must be a JSON schema, an object, got 'string'"),
    ],
)
def test_a_refusal_says_what_to_do(schema, message):
    with pytest.raises(SchemaError, match=message):
        held_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        object_of(next={"anyOf": [{"$ref": "#"}, {"type": "null"}]}),
        object_of(children={"type": "array", "items": {"$ref": "#"}}),
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"$ref": "#/$defs/A", "$defs": {"A": object_of(b={"type": "integer"})}},
        object_of(uniqueItems={"type": "string"}, format={"type": "string"}),
        {"type": "object", "default": {"not": 1}, "examples": [{"contains": 1}]},
        {"$defs": {"unused": {"uniqueItems": True}}, "type": "null"},
    ],
)
def test_what_ends_and_what_only_looks_like_a_keyword_is_taken(schema):
    held = held_schema(schema)
    assert [place for place, _ in parts(held)] == [place for place, _ in parts(schema)]


def test_an_object_that_lists_its_properties_gets_no_others():
    held = held_schema(object_of(a=object_of(b={"type": "object"})))
    assert held["additionalProperties"] is False
    assert held["properties"]["a"]["additionalProperties"] is False
    assert "additionalProperties" not in held["properties"]["a"]["properties"]["b"]


@pytest.mark.parametrize(
    "schema",
    [
        {**object_of(a={}), "additionalProperties": True},
        {**object_of(a={}), "patternProperties": {"^x": {}}},
        {**object_of(a={}), "minProperties": 1},
        {**object_of(a={}), "required": ["a", "b"]},
        {"allOf": [object_of(a={}), object_of(b={})]},
        {"$defs": {"A": object_of(a={})}, "allOf": [{"$ref": "#/$defs/A"}, object_of(b={})]},
        {**object_of(a={}), "anyOf": [object_of(b={}), {"type": "object"}]},
    ],
)
def test_an_object_that_may_need_others_gets_them(schema):
    assert held_schema(schema) == schema


def test_what_means_nothing_is_dropped():
    schema = object_of(n={"type": "integer", "format": "int64"}, a={"uniqueItems": False})
    held = held_schema(schema)
    assert held["properties"] == {"n": {"type": "integer"}, "a": {}}
    assert schema["properties"]["n"]["format"] == "int64"  # the caller's is as it was
    Draft202012Validator.check_schema(held)
