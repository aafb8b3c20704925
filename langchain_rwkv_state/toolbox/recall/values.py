"""What is told and asked: six kinds of facts, their values, and other things to say in between.

Every choice comes from the caller's source of chance, so a case is the same in every run. The easy
mistake is to let the turns in between repeat the fact that is asked for later.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from langchain_rwkv_state.demo.held_out import is_held_out
from langchain_rwkv_state.toolbox.recall.nouns import WORDS

FACTS = {
    "name": ("My name is {v}.", "What is my name?"),
    "city": ("I live in {v}.", "Where do I live?"),
    "pet": ("My pet is called {v}.", "What is my pet called?"),
    "number": ("My lucky number is {v}.", "What is my lucky number?"),
    "colour": ("My favourite colour is {v}.", "What is my favourite colour?"),
    "food": ("My favourite food is {v}.", "What is my favourite food?"),
}
"""How a fact of each kind is told, and how it is asked for."""

KINDS = tuple(FACTS)
_SMALL_TALK = (
    *("How are you?", "Good morning.", "Thanks!", "Tell me a joke.", "Ok.", "That is nice."),
    *("I had a long day.", "Say something nice.", "Hello!", "I am tired.", "What can you do?"),
)
_WITH_VALUES = (
    *("Where is {city}?", "Tell me about {city}.", "Who is {name}?", "{name} came to visit."),
    *("What is the capital of {city}?", "I had {food} for lunch.", "Do you like {food}?"),
    *("{name} called me.", "What is {number} plus {number}?", "The train to {city} was late."),
)
_OTHER = (
    *("The bus took ages again.", "I have to buy milk on the way home."),
    *("Did you hear that noise?", "My knee hurts a little.", "It is quite windy out there."),
    *("What shall we talk about?", "I am reading the paper.", "The kettle is on."),
    *("You have a point.", "Hmm, let me see."),
)
_OTHER_FACT_SHARE = 0.2
_WHOLE_WORD = r"(?<!\w){}(?!\w)"

Values = Callable[[Random, str], str]


def value(rng: Random, kind: str) -> str:
    """Returns a value of a kind of fact: a real word, or a number of two to five digits.

    None of them was drawn in the built-in model's training.
    """
    return number(rng) if kind == "number" else rng.choice(WORDS[kind])


def number(rng: Random) -> str:
    """Returns a whole number of two to five digits."""
    while True:
        digits = rng.randint(2, 5)
        found = str(rng.randrange(10 ** (digits - 1), 10**digits))
        if is_held_out(found):
            return found


def values(rng: Random, kinds: tuple[str, ...]) -> dict[str, str]:
    """Returns a value for each kind, no two of them the same."""
    found: dict[str, str] = {}
    for kind in kinds:
        made = value(rng, kind)
        while made in found.values():
            made = value(rng, kind)
        found[kind] = made
    return found


def other_turn(rng: Random, fact: str | None = None, value_of: Values = value) -> str:
    """Returns something else to say: small talk, questions, remarks.

    Args:
        rng: The source of chance.
        fact: The kind of fact that is to be remembered; a fifth of the turns then tell or ask for
            facts of the other kinds. ``None`` for no facts at all.
        value_of: Makes the values.
    """
    if fact is not None and rng.random() < _OTHER_FACT_SHARE:
        other = rng.choice([kind for kind in KINDS if kind != fact])
        return rng.choice(FACTS[other]).format(v=value_of(rng, other))
    share = rng.random()
    if share < 0.5:
        return rng.choice(_SMALL_TALK)
    if share < 0.8:
        text = rng.choice(_WITH_VALUES)
        for kind in KINDS:
            while f"{{{kind}}}" in text:
                text = text.replace(f"{{{kind}}}", value_of(rng, kind), 1)
        return text
    return rng.choice(_OTHER)


def holds(answer: str, wanted: str) -> bool:
    """Says whether an answer holds a value, letter by letter and as a whole word.

    Example:
        >>> holds("Your name is Orson.", "Orson"), holds("Orsonia", "Orson")
        (True, False)
    """
    return re.search(_WHOLE_WORD.format(re.escape(wanted)), answer) is not None
