"""The data of the demo model: literal values, unseen words kept apart, the template's ids."""

from __future__ import annotations

import json
from itertools import islice
from random import Random

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from tokenizers import Tokenizer

from examples.demo_training import facts, tools, words
from examples.demo_training.data import SEPARATOR, Encoder, example
from examples.demo_training.dialogue import Dialogue
from examples.demo_training.inventory import Inventory
from langchain_rwkv_state.demo import MODEL_PATH, TOKENIZER_PATH
from langchain_rwkv_state.template import WorldTemplate, tools_block
from langchain_rwkv_state.tokenizer import JsonTokenizer

KINDS = ("name", "city", "pet", "colour", "food", "job", "word", "number")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(Tokenizer.from_file(str(TOKENIZER_PATH)))


@pytest.fixture(scope="module")
def template() -> WorldTemplate:
    return WorldTemplate(JsonTokenizer(TOKENIZER_PATH))


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
    held_out = {w.lower() for kind, ws in words.HELD_OUT.items() if kind != "tool" for w in ws}
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
    names = {tools.make_tool(rng, inventory).name for _ in range(500)}
    assert not names & set(words.HELD_OUT["tool"])


def test_a_tool_is_listed_as_the_template_lists_it() -> None:
    tool = tools.Tool("get_x", "noun", (("city", "string"), ("n?", "integer")), "X of a city.", "x")
    properties = {"city": {"type": "string"}, "n": {"type": "integer"}}
    schema = {
        "name": "get_x",
        "description": "X of a city.",
        "parameters": {"type": "object", "properties": properties, "required": ["city"]},
    }
    assert f"Tools:\n{tool.line()}" == tools_block([{"type": "function", "function": schema}])


def test_a_call_has_its_arguments_from_the_question() -> None:
    rng, inventory = Random(4), Inventory()
    for _ in range(200):
        tool = tools.make_tool(rng, inventory)
        if tool.kind == "joke":  # the one tool whose arguments are the model's own
            continue
        asked = tools.request(rng, inventory, tool, alone=True)
        call = json.loads(tools.call_text(tool.name, asked.arguments))
        assert call["name"] == tool.name
        assert all(str(value) in asked.text for value in call["arguments"].values())


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
            assert SEPARATOR not in turn.text + turn.answer


def test_the_separator_is_one_token_and_in_no_other(encoder: Encoder) -> None:
    vocabulary = Tokenizer.from_file(str(TOKENIZER_PATH)).get_vocab()
    assert encoder.separator == [vocabulary["ĊĊ"]]
    assert [token for token in vocabulary if "ĊĊ" in token] == ["ĊĊ"]
    assert vocabulary["<|endoftext|>"] == 0


@pytest.mark.parametrize("seed", range(12))
def test_ids_of_training_equal_those_of_the_template(
    encoder: Encoder, template: WorldTemplate, seed: int
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
    if speaker == "Tool":
        return ToolMessage(text, tool_call_id="1")
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
