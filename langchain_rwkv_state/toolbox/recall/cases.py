"""The cases of a recall run: each tells, talks, asks, and yields what came of it.

A case is a function of its conversations, its source of chance and its number; who runs it, and how
many at once, is `measure`'s business. The easy mistake is to draw from the source of chance in
another order for another model: every model is to be asked the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple

from langchain_rwkv_state.state import blend, decay
from langchain_rwkv_state.toolbox.recall.talk import Talk, Talks
from langchain_rwkv_state.toolbox.recall.values import (
    FACTS,
    KINDS,
    holds,
    other_turn,
    value,
    values,
)

DISTANCES = (0, 4, 8, 16, 30)
COUNTS = (1, 2, 4, 6)
ALPHAS = (0.0, 0.3, 0.5, 0.7, 1.0)
FACTORS = (1.0, 0.7, 0.5, 0.3, 0.1)
CODEC_DISTANCE = 4
"""Turns between telling and asking in a store of a codec, each of which takes the codec's loss."""
BLENDED = (
    (("first name", "name"), ("second name", "name")),
    (("name", "name"), ("city", "city")),
)
"""Pairs of conversations to blend: for each of the two a series, and the kind of its fact."""
ZERO, STRANGER = "zero state", "another conversation"
STATE, REPLAY, RECALLED = "state", "transcript read again", "recalled"

Outcome = tuple[str, float | str, bool]
"""Series, place on its axis, and whether the answer held the fact."""
Case = Callable[[Talks, Random, int], Iterator[Outcome]]


class Told(NamedTuple):
    """A conversation that was told one fact: its kind, its value, and how it is asked for."""

    talk: Talk
    kind: str
    wanted: str
    question: str


def told_one(talks: Talks, rng: Random, number: int) -> Told:
    """Begins a conversation with a fact of the kind whose turn it is."""
    kind = KINDS[number % len(KINDS)]
    tell, question = FACTS[kind]
    wanted = value(rng, kind)
    talk = talks.begin("told")
    talk.say(tell.format(v=wanted))
    return Told(talk, kind, wanted, question)


def at_distances(
    talks: Talks, rng: Random, number: int, distances: Sequence[int]
) -> Iterator[Outcome]:
    """A fact, asked for after so many other turns; beside it the transcript."""
    talk, kind, wanted, question = told_one(talks, rng, number)
    for turn in range(max(distances) + 1):
        if turn in distances:
            yield STATE, turn, holds(talk.ask(question), wanted)
            yield REPLAY, turn, holds(talk.replay(question), wanted)
        if turn < max(distances):
            talk.say(other_turn(rng, kind))


def of_many(talks: Talks, rng: Random, number: int) -> Iterator[Outcome]:
    """Facts of several kinds, told one after another, each asked for at the end."""
    for count in COUNTS:
        kinds = tuple(rng.sample(KINDS, count))
        told = values(rng, kinds)
        talk = talks.begin(f"{count} facts of {number}")
        for kind in kinds:
            talk.say(FACTS[kind][0].format(v=told[kind]))
        for kind in kinds:
            question = FACTS[kind][1]
            yield STATE, count, holds(talk.ask(question), told[kind])
            yield REPLAY, count, holds(talk.replay(question), told[kind])


def through_a_store(
    talks: Talks, rng: Random, number: int, label: str, turns: int
) -> Iterator[Outcome]:
    """A fact that went through the store, and its codec, at every turn."""
    talk, _, wanted, question = told_one(talks, rng, number)
    for _ in range(turns):
        talk.say(other_turn(rng))
    yield RECALLED, label, holds(talk.ask(question), wanted)


def controls(talks: Talks, rng: Random, number: int) -> Iterator[Outcome]:
    """What a zero state, and somebody who was told another value, give for the same question."""
    kind = KINDS[number % len(KINDS)]
    tell, question = FACTS[kind]
    wanted = value(rng, kind)
    yield RECALLED, ZERO, holds(talks.begin("new").ask(question), wanted)
    other = value(rng, kind)
    while other == wanted:
        other = value(rng, kind)
    stranger = talks.begin("stranger")
    stranger.say(tell.format(v=other))
    yield RECALLED, STRANGER, holds(stranger.ask(question), wanted)


def blended(talks: Talks, rng: Random, number: int) -> Iterator[Outcome]:
    """Two conversations with a fact each, added with weights; both facts are asked for."""
    for pair in BLENDED:
        told = [value(rng, kind) for _, kind in pair]
        while told[0] == told[1]:
            told = [value(rng, kind) for _, kind in pair]
        states = []
        for (series, kind), wanted in zip(pair, told, strict=True):
            talk = talks.begin(f"{series} of {number}")
            talk.say(FACTS[kind][0].format(v=wanted))
            talk.say(other_turn(rng))
            states.append(talk.state())
        for alpha in ALPHAS:
            mixed = blend(states[0], states[1], alpha)
            for (series, kind), wanted in zip(pair, told, strict=True):
                yield series, alpha, holds(talks.ask(mixed, FACTS[kind][1]), wanted)


def decayed(talks: Talks, rng: Random, number: int) -> Iterator[Outcome]:
    """A fact, one other turn, then the past made weaker, then the question."""
    talk, _, wanted, question = told_one(talks, rng, number)
    talk.say(other_turn(rng))
    for factor in FACTORS:
        yield RECALLED, factor, holds(talks.ask(decay(talk.state(), factor), question), wanted)
