"""Structured output: three methods, three kinds of schema, and what was cut off."""

from __future__ import annotations

from typing import TypedDict

import pytest
from langchain_core.exceptions import OutputParserException
from pydantic import BaseModel

from langchain_rwkv_state.errors import SchemaError
from tests.helpers.scripted_chat import WORLD, ScriptedChat


class Person(BaseModel):
    """A person."""

    name: str
    age: int


class PersonDict(TypedDict):
    """A person."""

    name: str
    age: int


SCHEMA = {**Person.model_json_schema(), "title": "Person"}
KINDS = [Person, PersonDict, SCHEMA]
ANN = '{"name":"Ann","age":31}'
SAID = {
    "json_schema": f" {ANN}",
    "json_mode": f" {ANN}",
    "function_calling": f' ```json\n{{"name":"%s","arguments":{ANN}}}\n```',
}


@pytest.fixture(scope="module")
def scripted():
    scripted = ScriptedChat()
    yield scripted
    scripted.close()


def asked(scripted, schema, method, *, include_raw=False, **options):
    chain = scripted.chat.with_structured_output(
        schema, method=method, include_raw=include_raw, **options
    )
    first = chain.first.steps__["raw"] if include_raw else chain.first
    said = SAID[method]
    name = "PersonDict" if schema is PersonDict else "Person"
    scripted.will_say(said % name if "%" in said else said, **first.kwargs)
    return chain


@pytest.mark.parametrize("method", list(SAID))
@pytest.mark.parametrize("schema", KINDS, ids=["pydantic", "typeddict", "json"])
def test_an_object_comes_back(scripted, schema, method):
    chain = asked(scripted, schema, method)
    wanted = Person(name="Ann", age=31) if schema is Person else {"name": "Ann", "age": 31}
    assert chain.invoke("Hi.") == wanted
    *_, last = chain.stream("Hi.")
    assert last == wanted
    raw = asked(scripted, schema, method, include_raw=True).invoke("Hi.")
    assert (raw["parsed"], raw["parsing_error"]) == (wanted, None)
    assert raw["raw"].usage_metadata["output_tokens"] > 0


@pytest.mark.parametrize("method", list(SAID))
@pytest.mark.parametrize("schema", KINDS, ids=["pydantic", "typeddict", "json"])
def test_what_is_cut_off_is_an_error_and_not_mended(scripted, schema, method):
    for most in range(1, 6):
        chain = asked(scripted, schema, method, max_tokens=most)
        with pytest.raises(OutputParserException, match="max_tokens"):
            chain.invoke("Hi.")
        with pytest.raises(OutputParserException, match="max_tokens"):
            list(chain.stream("Hi."))
        raw = asked(scripted, schema, method, include_raw=True, max_tokens=most).invoke("Hi.")
        assert raw["parsed"] is None
        assert isinstance(raw["parsing_error"], OutputParserException)


def test_the_prompt_asks_for_it(scripted):
    def prompt(**options):
        chain = scripted.chat.with_structured_output(Person, **options)
        return WORLD.decode(scripted.prompt("Hi.", **chain.first.kwargs))

    line = "Person(name: string, age: integer) - A person."
    assert prompt() == f"System: Return only JSON: {line}\n\nUser: Hi.\n\nAssistant:"
    assert f"- {line}" in prompt(method="function_calling")
    assert prompt(method="json_mode") == "User: Hi.\n\nAssistant:"


@pytest.mark.parametrize(
    ("schema", "options", "error", "match"),
    [
        (Person, {"method": "json"}, ValueError, "'json_schema' or 'function_calling'"),
        (None, {}, ValueError, "needs a schema"),
        (3, {}, ValueError, "The schema is 3"),
        ({"type": "object"}, {}, ValueError, "title"),
        ({**SCHEMA, "not": {}}, {}, SchemaError, "not"),
        (Person, {"method": "json_mode", "tools": []}, ValueError, "tools="),
        (Person, {"method": "function_calling", "tool_choice": "none"}, ValueError, "sets"),
    ],
)
def test_what_cannot_be_had_says_why(scripted, schema, options, error, match):
    with pytest.raises(error, match=match):
        scripted.chat.with_structured_output(schema, **options)


@pytest.mark.parametrize("method", list(SAID))
def test_a_stop_text_cuts_nothing_off(scripted, method):
    chain = asked(scripted, Person, method)
    for stop in (',"age"', "A", "```", "\n"):
        bound = scripted.chat.with_structured_output(Person, method=method)
        assert bound.invoke("Hi.", stop=[stop]) == Person(name="Ann", age=31)
    assert chain.invoke("Hi.") == Person(name="Ann", age=31)


def test_no_schema_in_json_mode(scripted):
    chain = scripted.chat.with_structured_output(method="json_mode")
    scripted.will_say(f" {ANN}", **chain.first.kwargs)
    assert chain.invoke("Hi.") == {"name": "Ann", "age": 31}


def test_tools_beside_a_schema(scripted):
    def now() -> str:
        """The time."""
        return ""

    chain = scripted.chat.with_structured_output(Person, tools=[now], include_raw=True)
    options = chain.first.steps__["raw"].kwargs
    scripted.will_say(' ```json\n{"name":"now","arguments":{}}\n```', **options)
    assert chain.invoke("Hi.")["raw"].tool_calls[0]["name"] == "now"
    scripted.will_say(f" {ANN}", "Who?", **options)
    assert chain.invoke("Who?")["parsed"] == Person(name="Ann", age=31)


def test_a_session_gives_objects_too(scripted):
    talk = scripted.chat.with_session("structured", ttl=60)
    chain = talk.with_structured_output(Person)
    scripted.will_say(f" {ANN}", **chain.first.kwargs)
    assert chain.invoke("Hi.") == Person(name="Ann", age=31)
    assert talk.head is not None
    scripted.chat.store.delete_session("structured")


def test_the_profile_says_so(scripted):
    profile = scripted.chat.profile
    assert profile["structured_output"]
    assert profile["tool_calling"]
