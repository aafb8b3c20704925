"""Formats: whatever is drawn from their patterns is one to the checkers and to pydantic."""

from __future__ import annotations

import datetime as dt
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter

from langchain_rwkv_state.grammar.constraint import json_schema_constraint
from langchain_rwkv_state.grammar.formats import FORMAT_PATTERNS
from langchain_rwkv_state.grammar.json_schema import held_schema
from tests.unit_tests.test_constraint import fits
from tests.unit_tests.test_patterns import drawn

TYPES: dict[str, type] = {
    "date": dt.date,
    "time": dt.time,
    "date-time": dt.datetime,
    "duration": dt.timedelta,
}


def check(name: str, text: str) -> None:
    schema = {"type": "string", "format": name}
    Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(text)
    TypeAdapter(TYPES[name]).validate_json(f'"{text}"')


@pytest.mark.parametrize("name", FORMAT_PATTERNS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_whatever_fits_a_format_is_one(name, data):
    check(name, data.draw(st.from_regex(FORMAT_PATTERNS[name], fullmatch=True)))


@pytest.mark.parametrize("name", FORMAT_PATTERNS)
def test_what_a_grammar_draws_is_one(name):
    held = held_schema({"type": "string", "format": name})["pattern"]
    found = [text for seed in range(8) if (text := drawn(held, seed)) is not None]
    assert found
    for text in found:
        check(name, text)


def test_days_that_are_and_that_are_not():
    pattern = re.compile(FORMAT_PATTERNS["date"])
    for year in (1000, 1900, 2000, 2023, 2024, 2999):
        for month in range(14):
            for day in range(33):
                text = f"{year:04}-{month:02}-{day:02}"
                try:
                    dt.date(year, month, day)
                    there = True
                except ValueError:
                    there = False
                assert bool(pattern.search(text)) is there, text


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date", "2024-02-29", "0000-01-01"),
        ("time", "23:59:59.123456+23:59", "23:59:59.1234567Z"),
        ("date-time", "2024-02-29T00:00:00Z", "2023-02-29T00:00:00Z"),
        ("duration", "P1DT2H3M", "P111427830M"),
    ],
)
def test_formats_in_a_grammar(name, good, bad):
    for schema in (
        {"type": "string", "format": name},
        {"type": "string", "format": name, "pattern": "[0-9]"},
    ):
        constraint = json_schema_constraint(schema, lead="")
        assert fits(constraint, f'"{good}"')
        assert not fits(constraint, f'"{bad}"')
    wanted = {"type": "string", "format": name, "const": good}
    assert fits(json_schema_constraint(wanted, lead=""), f'"{good}"')
