"""The kinds of fact a user may tell, and how each is stated, asked for, given back and not known.

Values in, sentences out; which fact is told when is in `dialogue`. Each answer
holds the value literally: whoever tests a memory looks for it there.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from . import words
from .words import phrases

USUAL = 0.35  # the share of the first of several ways to say a thing


@dataclass(frozen=True)
class Fact:
    """One slot of the memory.

    Attributes:
        key: What tells slots apart; a second fact of one key replaces the first.
        kind: The kind of its values, as the inventory has it.
        statements: How a user says it, with {v}; the usual way first.
        questions: How a user asks for it; the usual way first.
        answer: What the model answers, with {v}.
        acknowledgement: What the model answers to the statement.
        unknown: What the model answers where it was not told.
        changes: Further ways to say that it is now otherwise.
    """

    key: str
    kind: str
    statements: list[str]
    questions: list[str]
    answer: str
    acknowledgement: str
    unknown: str
    changes: list[str]


NAME = Fact(
    key="name",
    kind="name",
    statements=phrases(
        """
        My name is {v}. | I am {v}. | I'm {v}. | Call me {v}. | You can call me {v}.
        My name's {v}. | My first name is {v}. | People call me {v}. | Hey, it's {v}.
        Hi, I am {v}. | Hi, I'm {v}. | Hi! I am {v}. | Hello, I am {v}. | Good morning, I am {v}.
        Hi, my name is {v}. | Hello, my name is {v}. | Hello! My name is {v}.
        Please remember my name: {v}. | Remember that my name is {v}. | Nice to meet you, I am {v}.
        """
    ),
    questions=phrases(
        """
        What is my name? | What's my name? | Who am I? | What am I called? | Say my name.
        Do you remember my name? | Do you know my name? | Do you still know my name?
        Do you remember me? | Do you know who I am? | Tell me my name. | Can you tell me my name?
        What was my name? | What is my name again? | And my name? | What did I say my name was?
        """
    ),
    answer="Your name is {v}.",
    acknowledgement="Nice to meet you, {v}.",
    unknown="I don't know your name.",
    changes=phrases(
        "Please call me {v} from now on. | My name is {v} now. | I changed my name to {v}."
    ),
)
CITY = Fact(
    key="city",
    kind="city",
    statements=phrases(
        """
        I live in {v}. | I live in the city of {v}. | I am living in {v}. | My home is in {v}.
        My city is {v}. | My home town is {v}. | I have a house in {v}.
        I've lived in {v} for years. | Remember that I live in {v}.
        """
    ),
    questions=phrases(
        """
        Where do I live? | Which city do I live in? | What city do I live in? | What is my city?
        In which city do I live? | Where is my home? | Do you remember where I live?
        Do you know where I live? | Tell me where I live. | Can you tell me where I live?
        Where did I say I live?
        """
    ),
    answer="You live in {v}.",
    acknowledgement="I will remember that you live in {v}.",
    unknown="I don't know where you live.",
    changes=phrases("I moved to {v}. | I live in {v} now. | Now I live in {v}."),
)
MAIN_KEYS = ("name", "city", "pet", "number", "colour", "food")


def called(who: str, *, person: bool) -> Fact:
    """A pet or a relation with a name."""
    return Fact(
        key=who,
        kind="name" if person else "pet",
        statements=phrases(
            f"""
            My {who} is called {{v}}. | My {who}'s name is {{v}}. | My {who} is named {{v}}.
            The name of my {who} is {{v}}. | I have a {who} called {{v}}.
            I have a {who} named {{v}}.
            """
        ),
        questions=phrases(
            f"""
            What is my {who} called? | What's my {who} called? | What is my {who} named?
            What is my {who}'s name? | What is the name of my {who}? | Who is my {who}?
            Do you remember my {who}'s name? | Do you know what my {who} is called?
            Tell me the name of my {who}.
            """
        ),
        answer=f"Your {who} is called {{v}}.",
        acknowledgement=f"I will remember that your {who} is called {{v}}.",
        unknown=f"I don't know what your {who} is called.",
        changes=[f"My {who} is now called {{v}}."],
    )


def owned(rng: Random, noun: str, kind: str, key: str | None = None) -> Fact:
    """A thing of the user's, such as a lucky number, in British or American spelling."""
    if rng.random() < 0.35:
        noun = noun.replace("favourite", "favorite").replace("colour", "color")
    return Fact(
        key=key or noun,
        kind=kind,
        statements=phrases(
            f"""
            My {noun} is {{v}}. | {{v}} is my {noun}. | My {noun}: {{v}}.
            Remember that my {noun} is {{v}}.
            """
        ),
        questions=phrases(
            f"""
            What is my {noun}? | What's my {noun}? | What was my {noun}? | And my {noun}?
            Do you remember my {noun}? | Do you know my {noun}? | Tell me my {noun}.
            Can you tell me my {noun}?
            """
        ),
        answer=f"Your {noun} is {{v}}.",
        acknowledgement=f"I will remember that your {noun} is {{v}}.",
        unknown=f"I don't know your {noun}.",
        changes=phrases(
            f"My {noun} is {{v}} now. | Now my {noun} is {{v}}. | My {noun} has changed to {{v}}."
        ),
    )


def secret(noun: str, kind: str) -> Fact:
    """A thing that is nobody's, such as a secret word."""
    return Fact(
        key=f"the {noun}",
        kind=kind,
        statements=phrases(
            f"""
            The {noun} is {{v}}. | Remember that the {noun} is {{v}}.
            Please remember the {noun}: {{v}}.
            """
        ),
        questions=phrases(
            f"""
            What is the {noun}? | What's the {noun}? | What was the {noun}? | Tell me the {noun}.
            Do you remember the {noun}?
            """
        ),
        answer=f"The {noun} is {{v}}.",
        acknowledgement=f"I will remember that the {noun} is {{v}}.",
        unknown=f"I don't know the {noun}.",
        changes=[f"The {noun} is {{v}} now."],
    )


def main_fact(rng: Random, key: str) -> Fact:
    """One of the six facts that the demo promises to keep."""
    if key == "name":
        return NAME
    if key == "city":
        return CITY
    if key == "pet":
        return called("pet", person=False)
    if key == "number":
        return owned(rng, "lucky number", "number", key)
    return owned(rng, f"favourite {key}", key, key)


def any_fact(rng: Random) -> Fact:
    """A fact of any kind, the six main ones most of the time."""
    share = rng.random()
    if share < 0.72:
        return main_fact(rng, rng.choice(MAIN_KEYS))
    if share < 0.79:
        return called(rng.choice(words.ANIMALS), person=False)
    if share < 0.84:
        return called(rng.choice(words.PEOPLE), person=True)
    if share < 0.90:
        return owned(rng, "favourite " + rng.choice(words.FAVOURITES), "word")
    if share < 0.94:
        noun = rng.choice(list(words.POSSESSIONS))
        return owned(rng, noun, words.POSSESSIONS[noun])
    noun = rng.choice(list(words.SECRETS))
    return secret(noun, words.SECRETS[noun])


def state(rng: Random, fact: Fact, value: str) -> str:
    """A sentence that tells the fact."""
    return _usually_first(rng, fact.statements).replace("{v}", value)


def ask(rng: Random, fact: Fact) -> str:
    """A sentence that asks for the fact."""
    return _usually_first(rng, fact.questions)


def correct(rng: Random, fact: Fact, value: str) -> str:
    """A sentence that says that the fact is otherwise than was told."""
    if rng.random() < 0.25:
        return rng.choice(fact.changes).replace("{v}", value)
    plain = [s for s in fact.statements if s.startswith(_PLAIN)]
    sentence = _usually_first(rng, plain).replace("{v}", value)
    return rng.choice(_LEADS) + continued(sentence)


def continued(sentence: str) -> str:
    """The sentence with a small first letter, unless it begins with I."""
    return sentence if sentence[:2] in ("I ", "I'") else sentence[0].lower() + sentence[1:]


def _usually_first(rng: Random, ways: list[str]) -> str:
    return ways[0] if rng.random() < USUAL else rng.choice(ways)


_PLAIN = ("My ", "I ", "I'm ", "Call ", "The ", "You can ")
_LEADS = ["Actually, "] * 3 + ["No, "] * 3
_LEADS += ["Sorry, ", "Wait, ", "I was wrong, ", "Correction: ", "Oh, ", "Actually ", "No wait, "]
