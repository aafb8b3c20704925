"""What programs put into messages becomes JSON, the same in each process, or a sentence."""

import dataclasses
import datetime
import decimal
import enum
import pathlib
import uuid

import pytest
from langchain_core.messages import AIMessage
from pydantic import BaseModel

from langchain_rwkv_state.errors import UnsupportedContentError
from langchain_rwkv_state.prompt.json_text import json_text
from langchain_rwkv_state.prompt.markers import message_from_json, message_to_json
from langchain_rwkv_state.prompt.template import WorldTemplate
from langchain_rwkv_state.tokenizer import WorldTokenizer


class Colour(enum.Enum):
    RED = "red"


class Place(BaseModel):
    name: str
    since: datetime.date


@dataclasses.dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, 2.5, None, True, "\u00e9"]}, '{"a": [1, 2.5, null, true, "\u00e9"]}'),
        (datetime.date(2026, 1, 2), '"2026-01-02"'),
        (datetime.datetime(2026, 1, 2, 3, 4), '"2026-01-02T03:04:00"'),
        (datetime.timedelta(hours=1), '"PT1H"'),
        (decimal.Decimal("1.50"), '"1.50"'),
        (uuid.UUID(int=7), '"00000000-0000-0000-0000-000000000007"'),
        (pathlib.PurePosixPath("a/b"), '"a/b"'),
        (Colour.RED, '"red"'),
        (Place(name="Lisbon", since=datetime.date(2020, 1, 1)), None),
        (Point(3), '{"x": 3}'),
        ({"b", "a", "c"}, '["a", "b", "c"]'),
        (b"abc", '"abc"'),
    ],
)
def test_values_have_the_form_that_pydantic_gives_them(value, text):
    expected = text or '{"name": "Lisbon", "since": "2020-01-01"}'
    assert json_text(value, what="It") == expected


def test_a_call_with_a_date_is_read_and_kept():
    call = {"name": "remind", "args": {"day": datetime.date(2026, 1, 2)}, "id": "1"}
    message = AIMessage("", tool_calls=[call])
    said = WorldTemplate(WorldTokenizer()).text(message)
    assert said == '```json\n{"name":"remind","arguments":{"day":"2026-01-02"}}\n```'
    back = message_from_json(message_to_json(message))
    assert WorldTemplate(WorldTokenizer()).text(back) == said


@pytest.mark.parametrize("value", [object(), {(1, 2): 3}, [lambda: 1], b"\xff"])
def test_what_has_no_form_is_an_error_that_names_the_tool(value):
    message = AIMessage("", tool_calls=[{"name": "remind", "args": {"x": value}, "id": "1"}])
    with pytest.raises(UnsupportedContentError, match="call of the tool 'remind' cannot be"):
        WorldTemplate(WorldTokenizer()).text(message)


def test_a_value_that_holds_itself_is_an_error():
    loop: list = []
    loop.append(loop)
    with pytest.raises(UnsupportedContentError, match="cannot be written as JSON"):
        json_text(loop, what="It")
