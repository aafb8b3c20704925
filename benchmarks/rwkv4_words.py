"""Makes a toy language to be remembered: facts told, sentences between, questions.

A hundred-odd words, one id each: a few kinds of facts and their values, and a grammar of short
sentences that stands for ordinary text. It trains and asks no model. `Case` says how many words
came between a fact and its question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

KINDS = ("name", "city", "pet", "colour", "food", "number")
VALUES = (
    *("marlow", "anna", "boris", "clara", "edgar", "freya", "gustav", "heidi"),
    *("lisbon", "oslo", "quito", "ulm", "fox", "hen", "newt", "otter"),
    *("amber", "green", "ivory", "teal", "bread", "figs", "plums", "soup"),
    *("one", "two", "three", "four", "five", "six", "seven", "eight"),
)
"""Any of them may be told of any kind, so that a value cannot be guessed from the question."""

_GRAMMAR: dict[str, tuple[tuple[str, ...], ...]] = {
    "sentence": (("noun phrase", "verb phrase", "."), ("place", "noun phrase", "verb phrase", ".")),
    "noun phrase": (("the", "noun"), ("the", "adjective", "noun"), ("a", "noun")),
    "verb phrase": (("goes", "adverb"), ("verb", "noun phrase"), ("verb", "noun phrase", "place")),
    "place": (("near", "the", "site"), ("behind", "the", "site"), ("at", "the", "site")),
    "noun": tuple(
        (w,)
        for w in (
            "child",
            "farmer",
            "baker",
            "sailor",
            "dog",
            "horse",
            "boat",
            "lamp",
            "letter",
            "coat",
        )
    ),
    "adjective": tuple(
        (w,) for w in ("old", "young", "tall", "quiet", "broken", "wet", "small", "red")
    ),
    "verb": tuple((w,) for w in ("sees", "finds", "carries", "hears", "paints", "sells")),
    "adverb": tuple((w,) for w in ("slowly", "home", "early", "away")),
    "site": tuple((w,) for w in ("river", "market", "harbour", "mill", "bridge", "station")),
}
_PLAIN = sorted({w for rules in _GRAMMAR.values() for rule in rules for w in rule} - set(_GRAMMAR))
WORDS = ("<start>", "?", *KINDS, *VALUES, *_PLAIN)
"""The vocabulary: a word's place is its id. No text holds ``<start>`` but at its beginning."""

_IDS = {word: place for place, word in enumerate(WORDS)}


def ids(words: Sequence[str]) -> list[int]:
    """Returns the ids of known words."""
    return [_IDS[word] for word in words]


def sentence(rng: Random) -> list[str]:
    """Returns a sentence of the grammar, word by word."""
    return _derived("sentence", rng)


def filler(rng: Random, words: int) -> list[str]:
    """Returns at least so many words of whole sentences."""
    found: list[str] = []
    while len(found) < words:
        found += sentence(rng)
    return found


@dataclass(frozen=True)
class Case:
    """One question about facts told earlier.

    Attributes:
        told: What is read before the question: facts, then sentences.
        asked: The question.
        answer: The right next word.
        between: Words between the fact and its question.
    """

    told: tuple[str, ...]
    asked: tuple[str, ...]
    answer: str
    between: int


def case(rng: Random, kinds: Sequence[str], between: int) -> Case:
    """Returns a question about the first of some facts.

    Args:
        rng: Chooses everything else.
        kinds: Of the facts that are told, each once.
        between: At least so many words stand between the facts and the question.
    """
    values = rng.sample(VALUES, len(kinds))
    told = ["<start>"]
    for kind, value in zip(kinds, values, strict=True):
        told += [kind, value, "."]
    rest = filler(rng, between) if between else []
    apart = len(told) - 3 + len(rest)
    return Case((*told, *rest), (kinds[0], "?"), values[0], apart)


def lesson(rng: Random, words: int) -> tuple[list[int], list[bool]]:
    """Returns a text that tells facts, changes them, asks for them, and says other things.

    Args:
        rng: Chooses everything.
        words: Its length.

    Returns:
        Its ids, and for each whether it is the answer to a question.
    """
    found, answers, known = ["<start>"], [False], dict[str, str]()
    while len(found) < words:
        dice = rng.random()
        if dice < 0.25 or not known:
            kind, value = rng.choice(KINDS), rng.choice(VALUES)
            known[kind] = value
            said, marks = [kind, value, "."], [False] * 3
        elif dice < 0.6:
            kind = rng.choice(sorted(known))
            said, marks = [kind, "?", known[kind], "."], [False, False, True, False]
        else:
            said = filler(rng, rng.choice((1, 1, 1, 10, 40)))
            marks = [False] * len(said)
        found += said
        answers += marks
    return ids(found[:words]), answers[:words]


def _derived(symbol: str, rng: Random) -> list[str]:
    if symbol not in _GRAMMAR:
        return [symbol]
    return [word for part in rng.choice(_GRAMMAR[symbol]) for word in _derived(part, rng)]
