"""Constraints as values: what their grammars say of texts."""

from __future__ import annotations

from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from langchain_rwkv_state.errors import SchemaError
from langchain_rwkv_state.grammar.constraint import (
    Constraint,
    calls_constraint,
    json_object_constraint,
    json_schema_constraint,
    no_calls_constraint,
)


class Bytes:
    """A vocabulary of single bytes."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"\xff<|end|>")
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


TABLES = LLTokenizer(TokenizerWrapper(Bytes()))
ADD = {
    "name": "add",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
}
NOW: dict[str, Any] = {"name": "now", "parameters": None}
CALL = '{"name":"add","arguments":{"a":1,"b":2}}'
FENCED = f" ```json\n{CALL}\n```"


def fits(constraint: Constraint, text: str) -> bool:
    matcher = LLMatcher(TABLES, constraint.grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = list(text.encode())
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def test_json_of_a_schema_is_compact_and_stands_behind_a_blank():
    schema = ADD["parameters"]
    assert isinstance(schema, dict)
    constraint = json_schema_constraint(schema)
    assert fits(constraint, ' {"a":1,"b":-2}')
    for wrong in ('{"a":1,"b":2}', ' {"a": 1,"b":2}', ' {"a":1}', ' {"a":1,"b":2,"c":3}', " 1"):
        assert not fits(constraint, wrong), wrong
    assert fits(json_schema_constraint(schema, lead=""), '{"a":1,"b":2}')
    assert constraint == json_schema_constraint(dict(schema))
    assert hash(constraint) == hash(json_schema_constraint(dict(schema)))


def test_some_object():
    assert fits(json_object_constraint(), ' {"any":[1,{"thing":null}]}')
    assert not fits(json_object_constraint(), " [1]")


def test_any_is_one_call_or_several():
    several = calls_constraint([ADD, NOW], choice="any", parallel=True)
    now = '{"name":"now","arguments":{}}'
    assert several.triggers == ()
    assert fits(several, FENCED)
    assert fits(several, f" ```json\n[{CALL},{now},{CALL}]\n```")
    assert fits(several, f" ```json\n{now}\n```")
    one = calls_constraint([ADD, NOW], choice="any", parallel=False)
    assert fits(one, FENCED)
    for wrong in (
        f" ```json\n[{CALL}]\n```",
        " Hi",
        CALL,
        f" ```json\n{CALL}\n",
        " ```json\n{}\n```",
    ):
        assert not fits(one, wrong), wrong


def test_one_tool_by_name():
    constraint = calls_constraint([ADD, NOW], choice="add", parallel=False)
    assert fits(constraint, FENCED)
    assert not fits(constraint, ' ```json\n{"name":"now","arguments":{}}\n```')


def test_auto_holds_from_where_a_call_begins():
    constraint = calls_constraint([ADD], choice="auto", parallel=True)
    assert constraint.triggers == ('```json\n{"name":"', '```json\n[{"name":"')
    assert fits(constraint, FENCED.lstrip())
    assert no_calls_constraint().forbid == constraint.triggers
    assert no_calls_constraint().grammar == ""


def test_other_words_around_calls():
    constraint = calls_constraint([ADD], choice="auto", parallel=False, opening=" ", closing="")
    assert constraint.triggers[0] == '{"name":"'
    assert fits(constraint, CALL)
    any_ = calls_constraint(
        [ADD], choice="any", parallel=False, opening=" <call>", closing="</call>"
    )
    assert fits(any_, f" <call>{CALL}</call>")


@pytest.mark.parametrize("choice", ["auto", "any"])
def test_a_call_or_an_answer_of_a_schema(choice):
    also = {"type": "object", "properties": {"x": {"type": "null"}}, "required": ["x"]}
    constraint = calls_constraint([ADD], choice=choice, parallel=False, also=also)
    assert constraint.triggers == ()
    assert fits(constraint, FENCED)
    assert fits(constraint, ' {"x":null}')
    assert not fits(constraint, " Hi")


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object", "properties": {}}])
def test_a_tool_without_parameters_has_an_empty_object(parameters):
    tool = {"name": "now", "parameters": parameters}
    constraint = calls_constraint([tool], choice="any", parallel=False)
    assert fits(constraint, ' ```json\n{"name":"now","arguments":{}}\n```')
    assert not fits(constraint, ' ```json\n{"name":"now","arguments":{"a":1}}\n```')


def test_names_of_every_kind():
    tool = {"name": 'say "é"\n', "parameters": None}
    constraint = calls_constraint([tool], choice="any", parallel=False)
    assert fits(constraint, ' ```json\n{"name":"say \\"é\\"\\n","arguments":{}}\n```')


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ([], "any", "need names"),
        ([ADD, ADD], "any", "each another one"),
        ([ADD], "sub", r"the name of a tool \(add\), got 'sub'"),
    ],
)
def test_tools_that_make_no_sense_are_refused(tools, choice, message):
    with pytest.raises(ValueError, match=message):
        calls_constraint(tools, choice=choice, parallel=True)


def test_a_schema_that_cannot_be_held_is_that_of_its_tool():
    tool = {"name": "f", "parameters": {"type": "object", "not": {}}}
    with pytest.raises(SchemaError, match="The schema of the tool 'f' has 'not' at '#'"):
        calls_constraint([tool], choice="auto", parallel=True)
    with pytest.raises(SchemaError, match="must be that of an object, got type 'array'"):
        calls_constraint(
            [{"name": "f", "parameters": {"type": "array"}}], choice="any", parallel=True
        )
    with pytest.raises(SchemaError, match="The response format has 'not'"):
        calls_constraint([ADD], choice="any", parallel=True, also={"not": {}})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grammar": ""}, "needs a grammar"),
        ({"grammar": "", "triggers": ("a",), "forbid": ("b",)}, "needs a grammar"),
        ({"grammar": "start: ", "triggers": ("",)}, "none of them empty"),
        ({"grammar": "start: ", "forbid": "ab"}, "must be a tuple"),
    ],
)
def test_what_is_no_constraint_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Constraint(**given)


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ({"name": "f", "parameters": [1]}, r"tool 'f' must be that of an object, got \[1\]"),
        ({"name": "f\ud800"}, "half a character"),
        (
            {"name": "f", "parameters": {"properties": {"a": {"enum": [*range(10_001)]}}}},
            r"tool 'f' is more than can be compiled in time: 10003 parts and values of 'enum'",
        ),
    ],
)
def test_a_tool_that_cannot_be_taken_is_named(tool, message):
    with pytest.raises(SchemaError, match=message):
        calls_constraint([tool], choice="any", parallel=False)


def test_tools_that_are_too_many_together_are_refused_and_the_largest_named():
    tools = [
        {"name": f"f{at}", "parameters": {"properties": {"a": {"enum": [*range(2_000 + at)]}}}}
        for at in range(6)
    ]
    with pytest.raises(SchemaError, match=r"largest is that of 'f5'.*12027 parts"):
        calls_constraint(tools, choice="any", parallel=False)
