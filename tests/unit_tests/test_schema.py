"""Schemas: what a grammar cannot hold is refused by name and place, and nothing else is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from llguidance import LLMatcher

from langchain_rwkv_state.errors import RWKVStateError, SchemaError
from langchain_rwkv_state.grammar.constraint import json_schema_constraint
from langchain_rwkv_state.grammar.json_schema import _DO, _FORMATS, held_schema, parts
from tests.unit_tests.test_constraint import fits


def object_of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties]}


INT, TEXT = {"type": "integer"}, {"type": "string"}
A, B = object_of(a=INT), object_of(b=TEXT)


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
        ({"pattern": r"\p{L}"}, r"the pattern '.*' at '#', which.*Python's syntax"),
        ({"patternProperties": {"(?i)a": {}}}, r"the pattern '\(\?i\)a' at '#', which.*flags"),
        (
            {"patternProperties": {"a": {}, "b": {"type": "null"}}},
            "'patternProperties' at '#' of several",
        ),
        (
            {"allOf": [{"patternProperties": {"a": {}}}, A]},
            "'patternProperties' at '#/allOf/0' beside other",
        ),
        (object_of(n={"multipleOf": 0.1}), r"'multipleOf' at '#/properties/n' of 0.1.*0.3 is none"),
        ({"type": "array", "minItems": "2"}, "'minItems' at '#' as '2', where a whole number"),
        ({"type": "array", "minItems": True}, "'minItems' at '#' as True"),
        ({"$defs": [1], "$ref": "#/$defs/0"}, r"'\$defs' at '#' as \[1\], where an object"),
        (object_of(**{"{x}": {"not": {}}}), "'not' at '#/properties/{x}', which"),
        ({"required": "a"}, "'required' at '#' as 'a'"),
        ({"properties": {"a": 1}}, "'properties' at '#' as"),
        ({"anyOf": {}}, "'anyOf' at '#' as"),
        ({"items": [{}], "prefixItems": [{}]}, "take one of them"),
        ({"const": "\ud800"}, "is not JSON.*surrogates"),
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
    ("schema", "good", "bad"),
    [
        ({**A, "additionalProperties": TEXT}, '{"a":1}', '{"a":1,"\\u0061":"x"}'),
        ({**A, "additionalProperties": True}, '{"a":1}', '{"a":1,"a":"x"}'),
        ({**A, "patternProperties": {"^x": TEXT}}, '{"a":1}', '{"a":1,"xa":1}'),
        ({**A, "patternProperties": {"^a": {"maximum": 3}}}, '{"a":1}', '{"a":4}'),
        ({**A, "minProperties": 1}, '{"a":1}', '{"a":1,"a":"x"}'),
        ({**A, "required": ["a", "b"]}, '{"a":1,"b":[]}', '{"a":1}'),
        (
            {**A, "required": ["a", "b"], "additionalProperties": TEXT},
            '{"a":1,"b":"x"}',
            '{"a":1,"b":1}',
        ),
        ({"allOf": [A, B]}, '{"a":1,"b":"x"}', '{"a":1,"b":"x","\\u0061":"x"}'),
        (
            {"$defs": {"A": A}, "allOf": [{"$ref": "#/$defs/A"}, B]},
            '{"a":1,"b":"x"}',
            '{"a":1,"b":"x","a":"x"}',
        ),
        (
            {
                "$defs": {"A": A},
                **object_of(x={"allOf": [{"$ref": "#/$defs/A"}, B]}, y={"$ref": "#/$defs/A"}),
            },
            '{"x":{"a":1,"b":"x"},"y":{"a":1}}',
            '{"x":{"a":1,"b":"x"},"y":{"a":1,"\\u0061":"x"}}',
        ),
        ({**A, "anyOf": [B, {"type": "object"}]}, '{"a":1}', '{"a":1,"\\u0061":"x"}'),
        ({**A, "anyOf": [B, {"type": "object"}]}, '{"a":1,"b":"x"}', '{"a":1,"c":1}'),
        ({"anyOf": [A, {"type": "null"}]}, "null", '{"a":1,"\\u0061":"x"}'),
        (
            {"type": ["object", "null"], "properties": {"a": INT}},
            '{"a":1}',
            '{"a":1,"\\u0061":"x"}',
        ),
        ({"type": "object", "patternProperties": {"^x": INT}}, '{"xy":1}', '{"\\u0078":"a"}'),
        (
            {
                "type": "object",
                "patternProperties": {"^x": INT, "y$": INT},
                "additionalProperties": TEXT,
            },
            '{"xy":1,"ay":2}',
            '{"z":"a"}',
        ),
        ({"type": "object", "additionalProperties": INT}, '{"a":1,"b":2}', '{"a":"x"}'),
    ],
)
def test_no_name_can_come_twice_with_another_value(schema, good, bad):
    assert fits(json_schema_constraint(schema, lead=""), good)
    Draft202012Validator(schema).validate(json.loads(good))
    assert not fits(json_schema_constraint(schema, lead=""), bad)


def test_what_means_nothing_is_dropped():
    schema = object_of(n={"type": "integer", "format": "int64"}, a={"uniqueItems": False})
    held = held_schema(schema)
    assert held["properties"] == {"n": {"type": "integer"}, "a": {}}
    assert schema["properties"]["n"]["format"] == "int64"  # the caller's is as it was
    Draft202012Validator.check_schema(held)


def test_a_tuple_of_draft_7():
    schema = {"type": "array", "items": [INT, TEXT], "additionalItems": False, "minItems": 2}
    constraint = json_schema_constraint(schema, lead="")
    assert fits(constraint, '[1,"x"]')
    for wrong in ('["x",1]', '[1,"x",1]', "[1]"):
        assert not fits(constraint, wrong), wrong
