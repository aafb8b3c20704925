"""What is told and asked is the same in every run, and keeps to what was asked for."""

from __future__ import annotations

from random import Random

import pytest

from langchain_rwkv_state.toolbox.recall.nouns import WORDS
from langchain_rwkv_state.toolbox.recall.values import (
    FACTS,
    KINDS,
    holds,
    other_turn,
    value,
    values,
)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_same_for_the_same_number_and_many(kind):
    drawn = [value(Random(n), kind) for n in range(200)]
    assert drawn == [value(Random(n), kind) for n in range(200)]
    assert len(set(drawn)) > 15


def test_every_list_is_long_and_repeats_nothing():
    for kind in set(KINDS) - {"number"}:
        assert len(WORDS[kind]) >= 20
        assert len(set(WORDS[kind])) == len(WORDS[kind])


def test_values_that_are_told_together_differ():
    for n in range(100):
        told = values(Random(n), KINDS)
        assert tuple(told) == KINDS
        assert len(set(told.values())) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_turns_in_between_neither_tell_nor_ask_the_fact(kind):
    tell, question = FACTS[kind]
    said = {other_turn(Random(n), kind) for n in range(500)}
    assert question not in said
    assert not any(text.startswith(tell.partition("{")[0]) for text in said)
    assert any(text in {ask for _, ask in FACTS.values()} for text in said)


def test_without_a_fact_no_turn_tells_one():
    told = tuple(tell.partition("{")[0] for tell, _ in FACTS.values())
    assert not any(other_turn(Random(n)).startswith(told) for n in range(500))


@pytest.mark.parametrize(
    ("answer", "wanted", "held"),
    [
        ("Your name is Zoë.", "Zoë", True),
        ("Your lucky number is 17.", "7", False),
        ("Your name is Annabel.", "Anna", False),
        ("You live in Ulm.", "ulm", False),
        ("You live in Ulm!", "Ulm", True),
        ("It is 3.5 (a+b).", "a+b", True),
        ("", "Ulm", False),
    ],
)
def test_an_answer_holds_a_value_as_a_whole_word(answer, wanted, held):
    assert holds(answer, wanted) is held
