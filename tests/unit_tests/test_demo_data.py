"""The data of the demo model: literal values, unseen words kept apart, the template's ids."""

from __future__ import annotations

import json
from itertools import islice
from random import Random
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from tokenizers import Tokenizer

from examples.demo_training import facts, records, tools, words
from examples.demo_training.data import SEPARATOR, Encoder, example
from examples.demo_training.dialogue import Dialogue
from examples.demo_training.inventory import Inventory
from examples.demo_training.signature import (
    Parameter,
    call_text,
    result_text,
    signature,
    tool_list,
)
from examples.demo_training.tokenizer import with_format
from langchain_rwkv_state.demo import MODEL_PATH, TOKENIZER_PATH
from langchain_rwkv_state.prompt.template import DemoTemplate
from langchain_rwkv_state.prompt.tools import ToolFormat
from langchain_rwkv_state.tokenizer import JsonTokenizer

KINDS = ("name", "city", "pet", "colour", "food", "job", "word", "number")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(Tokenizer.from_file(str(TOKENIZER_PATH)))


@pytest.fixture(scope="module")
def template() -> DemoTemplate:
    return DemoTemplate(JsonTokenizer(TOKENIZER_PATH))


def test_every_statement_and_every_answer_holds_the_value_literally() -> None:
    rng, inventory = Random(1), Inventory()
    for _ in range(300):
        fact = facts.any_fact(rng)
        value = inventory.value(rng, fact.kind)
        assert value in facts.state(rng, fact, value)
        assert value in facts.correct(rng, fact, value)
        assert value in fact.answer.replace("{v}", value)
        assert value in fact.acknowledgement.replace("{v}", value)
        assert "{v}" not in fact.unknown + facts.ask(rng, fact)


def test_listed_words_of_training_and_evaluation_do_not_meet() -> None:
    kinds = set(words.HELD_OUT) - {"tool", "schema"}
    held_out = {w.lower() for kind in kinds for w in words.HELD_OUT[kind]}
    listed = [
        *words.NAMES, *words.CITIES, *words.PETS, *words.COLOURS, *words.FOODS, *words.JOBS,
        *words.WORDS,
    ]  # fmt: skip
    assert not held_out & {w.lower() for w in listed}


def test_training_never_draws_a_value_of_the_evaluation() -> None:
    rng, train, held_out = Random(2), Inventory(), Inventory(held_out=True)
    drawn = {train.value(rng, kind).lower() for kind in KINDS for _ in range(500)}
    kept = {held_out.value(rng, kind).lower() for kind in KINDS for _ in range(500)}
    assert not drawn & kept
    assert len(drawn) > 1000
    assert len(kept) > 500


def test_training_never_makes_a_tool_of_the_evaluation() -> None:
    rng, inventory = Random(3), Inventory()
    names = {t.name for _ in range(200) for t in tools.make_tools(rng, inventory, 3)}
    assert len(names) > 400
    assert not names & set(words.HELD_OUT["tool"])
    schemas = {records.make_schema(rng, inventory).name for _ in range(500)}
    assert len(schemas) > 100
    assert not schemas & set(words.HELD_OUT["schema"])


def test_tools_of_one_list_have_no_name_and_no_topic_in_common() -> None:
    rng, inventory = Random(8), Inventory()
    for _ in range(200):
        listed = tools.make_tools(rng, inventory, 5)
        topics = [word for t in listed for word in set(t.topic.lower().split())]
        assert len(topics) == len(set(topics))
        assert len({t.name for t in listed}) == len(listed)


def test_tools_and_calls_are_written_in_the_g1_format() -> None:
    unit = Parameter("unit", '"a" | "b"', optional=True, description="of it")
    line = signature("get_x", (Parameter("city"), unit), "X of a city.")
    assert line == 'get_x(city: string, unit?: "a" | "b" (of it)) - X of a city.'
    assert signature("now", (), "") == "now()"
    assert tool_list([line, "now()"]) == (
        f"Tools:\n- {line}\n- now()\nReturn only a JSON function call."
    )
    calls: list[dict[str, Any]] = [{"name": "now", "arguments": {"a": 1, "b": "é"}}] * 2
    one = '{"name":"now","arguments":{"a":1,"b":"é"}}'
    assert call_text(calls[:1]) == f"```json\n{one}\n```"
    assert call_text(calls) == f"```json\n[{one},{one}]\n```"
    assert result_text("21") == "Function output:\n21"


def test_the_package_writes_tools_and_calls_as_training_does() -> None:
    package = ToolFormat()
    unit = {"enum": ["a", "b"], "description": "of it"}
    properties = {"city": {"type": "string"}, "unit": unit}
    parameters = {"type": "object", "properties": properties, "required": ["city"]}
    schema = {"name": "get_x", "description": "X of a city.", "parameters": parameters}
    known = (Parameter("city"), Parameter("unit", '"a" | "b"', True, "of it"))
    line = signature("get_x", known, "X of a city.")
    assert package.listing([schema]) == tool_list([line])
    both: list[tuple[str, dict[str, Any]]] = [("f", {"x": 1}), ("g", {"y": "é"})]
    for calls in (both[:1], both):
        assert package.calls(calls) == call_text(
            [{"name": name, "arguments": arguments} for name, arguments in calls]
        )


def test_a_call_has_its_arguments_from_the_question() -> None:
    rng, inventory = Random(4), Inventory()
    for _ in range(300):
        [tool] = tools.make_tools(rng, inventory, 1)
        asked = tools.request(rng, inventory, tool, alone=True)
        needed = {p.name for p in tool.parameters if not p.optional}
        allowed = {p.name for p in tool.parameters}
        assert needed <= set(asked.arguments) <= allowed
        for value in asked.arguments.values():
            if not isinstance(value, bool):
                said = value if isinstance(value, list) else [value]
                assert all(str(v) in asked.text for v in said)


def test_an_object_has_its_values_from_the_sentence() -> None:
    rng, inventory = Random(9), Inventory()
    for _ in range(300):
        schema = records.make_schema(rng, inventory)
        filled = records.fill(rng, inventory, schema)
        needed = {p.name for p, _ in schema.fields if not p.optional}
        assert needed <= set(filled.value) <= {p.name for p, _ in schema.fields}
        for value in filled.value.values():
            if schema.sort != "joke" and not isinstance(value, bool):
                said = value if isinstance(value, list) else [value]
                assert all(str(v).lower() in filled.text.lower() for v in said)
        if filled.value:
            asked = records.with_keys(rng, filled)
            assert all(key in asked for key in filled.value)


def test_a_call_has_a_closed_fence_and_a_result_is_in_the_answer() -> None:
    fenced = told = 0
    for seed in range(200):
        dialogue = Dialogue(Random(seed), Inventory(), 400)
        for turn in islice(dialogue.turns(lambda: False), 8):
            if turn.answer.startswith("```json\n"):
                json.loads(turn.answer.removeprefix("```json\n").removesuffix("\n```"))
                fenced += 1
            for said in (*turn.before, turn.text):
                if said.startswith("Function output:\n"):
                    back = said.removeprefix("Function output:\n").removeprefix("Error: ")
                    assert back in turn.answer
                    told += 1
    assert fenced > 100
    assert told > 50


def test_a_known_fact_is_given_back_and_another_is_not_known() -> None:
    dialogue = Dialogue(Random(5), Inventory(), 500, plain=True)
    for _ in range(4):
        dialogue.tell()
    for key, (_, value) in dialogue.known.items():
        assert value in dialogue.ask(key).answer
    assert "don't know" in dialogue.ask_unknown().answer


def test_a_correction_replaces_the_value() -> None:
    dialogue = Dialogue(Random(6), Inventory(), 500, plain=True)
    dialogue.tell()
    ((key, (_, old)),) = dialogue.known.items()
    dialogue.correct()
    new = dialogue.known[key][1]
    assert new != old
    assert new in dialogue.ask(key).answer


def test_no_text_holds_the_separator() -> None:
    for seed in range(60):
        dialogue = Dialogue(Random(seed), Inventory(), 1000)
        assert SEPARATOR not in dialogue.system
        for turn in islice(dialogue.turns(lambda: False), 20):
            assert all(SEPARATOR not in said for said in (*turn.before, turn.text, turn.answer))


def test_the_separator_is_one_token_and_in_no_other(encoder: Encoder) -> None:
    vocabulary = Tokenizer.from_file(str(TOKENIZER_PATH)).get_vocab()
    assert encoder.separator == [vocabulary["ĊĊ"]]
    assert [token for token in vocabulary if "ĊĊ" in token] == ["ĊĊ"]
    assert vocabulary["<|endoftext|>"] == 0


def test_the_words_of_the_format_have_new_ids_and_no_old_id_is_another() -> None:
    shipped = Tokenizer.from_file(str(TOKENIZER_PATH))
    again = with_format(shipped)
    assert again.get_vocab() == shipped.get_vocab()
    assert shipped.token_to_id("Ġ```") == 640 + 2
    text = "My name is Bob. What is my lucky number?"
    assert max(shipped.encode(text).ids) < 640
    assert len(shipped.encode(' ```json\n{"name":"').ids) == 6
    assert shipped.decode(shipped.encode(' ```json\n[{"name":"x"}]').ids) == (
        ' ```json\n[{"name":"x"}]'
    )


@pytest.mark.parametrize("seed", range(12))
def test_ids_of_training_equal_those_of_the_template(
    encoder: Encoder, template: DemoTemplate, seed: int
) -> None:
    made = example(Random(seed), Inventory(), encoder, 400)
    text = Tokenizer.from_file(str(TOKENIZER_PATH)).decode(made.ids[1:])
    *said, rest = text.split(SEPARATOR)
    assert rest == ""
    messages = [_message(*segment.split(": ", 1)) for segment in said]
    segments = template.segments(messages, start=True)
    ids = [i for segment in segments for i in segment.ids] + encoder.separator
    assert made.ids == ids


def _message(speaker: str, text: str) -> BaseMessage:
    if speaker == "Assistant":
        return AIMessage(text)
    return SystemMessage(text) if speaker == "System" else HumanMessage(text)


def test_answers_are_marked_and_nothing_else(encoder: Encoder) -> None:
    made = example(Random(7), Inventory(), encoder, 300)
    tokenizer = Tokenizer.from_file(str(TOKENIZER_PATH))
    answers = tokenizer.decode([i for i, a in zip(made.ids, made.is_answer, strict=True) if a])
    assert "User:" not in answers
    assert "Assistant:" not in answers
    assert made.ids[0] == 0
    assert made.ids[-1] == encoder.separator[0]


def test_examples_fill_the_length_that_was_asked_for(encoder: Encoder) -> None:
    for length in (112, 224, 736):
        sizes = [len(example(Random(s), Inventory(), encoder, length).ids) for s in range(20)]
        assert max(sizes) <= length
        assert sum(sizes) / len(sizes) > 0.75 * length


def test_the_files_are_small_and_there() -> None:
    assert 1_000_000 < MODEL_PATH.stat().st_size < 3_000_000
    assert TOKENIZER_PATH.stat().st_size < 100_000
