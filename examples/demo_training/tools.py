"""Made-up tools, questions that need them, the calls as JSON and what comes back.

A tool here is a line of text for the system prompt and a way to ask for it; nothing is ever run.
The easy mistake is to let training see the tools that users write first: `get_weather`, `add` and
their like are held out, so that the evaluation says how an unseen tool fares.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from . import words
from .inventory import Inventory

Value = str | int


@dataclass(frozen=True)
class Tool:
    """A tool as the system prompt shows it.

    Attributes:
        name: Its name.
        kind: Which way of asking fits it, a key of `KINDS`.
        parameters: Pairs of name and type; an optional one's name ends in "?".
        description: One line, may be empty.
        topic: The words a question has in common with it.
    """

    name: str
    kind: str
    parameters: tuple[tuple[str, str], ...]
    description: str
    topic: str

    def line(self) -> str:
        """The tool's line in the system prompt."""
        inside = ", ".join(f"{n}: {t}" for n, t in self.parameters)
        return f"{self.name}({inside})" + (f" - {self.description}" if self.description else "")


@dataclass(frozen=True)
class Request:
    """A question, the arguments of the call it needs, and the value it is about."""

    text: str
    arguments: dict[str, Value]
    value: str = ""


@dataclass(frozen=True)
class Kind:
    """A sort of tool: how one is made, how it is asked for, and its share of all tools."""

    make: Callable[[Random, Inventory], Tool]
    ask: Callable[[Random, Inventory, Tool, bool], Request]
    share: float


def call_text(name: str, arguments: dict[str, Value]) -> str:
    """The assistant's whole answer where it calls a tool."""
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def make_tool(rng: Random, inventory: Inventory) -> Tool:
    """A tool with a name that the evaluation does not hold."""
    kind = rng.choices(list(KINDS), [k.share for k in KINDS.values()])[0]
    while True:
        tool = KINDS[kind].make(rng, inventory)
        if tool.name not in words.HELD_OUT["tool"]:
            return tool


def request(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    """A question that needs the tool.

    Args:
        rng: The source of chance.
        inventory: The source of values.
        tool: The tool.
        alone: Whether no other listed tool is of its kind; only then may the question leave the
            tool's own words out.
    """
    return KINDS[tool.kind].ask(rng, inventory, tool, alone)


def _join(rng: Random, *parts: str) -> str:
    """A tool's name, mostly in snake case."""
    name = "_".join(parts).replace(" ", "_")
    if rng.random() < 0.06:
        first, *rest = name.split("_")
        return first + "".join(w.capitalize() for w in rest)
    return name


def _word(rng: Random, inventory: Inventory, listed: list[str], made: float) -> str:
    return inventory.made_up(rng) if rng.random() < made else rng.choice(listed)


# A property of something: get_price(product: string) ---------------------------------------------


def _make_noun(rng: Random, inventory: Inventory) -> Tool:
    noun = _word(rng, inventory, words.TOOL_NOUNS, 0.35)
    param = _word(rng, inventory, words.TOOL_PARAMS + ["city"] * 12, 0.15)
    verb = rng.choice(words.TOOL_VERBS)
    name = _join(rng, verb, noun) if rng.random() < 0.85 else _join(rng, noun)
    description = rng.choice(
        [
            f"{noun.capitalize()} of a {param}.",
            f"{noun.capitalize()} in a {param}.",
            f"{noun.capitalize()}.",
            f"Get the {noun} of a {param}.",
            f"Get the {noun} for a {param}.",
            f"Get {noun}.",
            f"Look up the {noun} for a {param}.",
            f"The {noun} of the {param}.",
            f"Gives the {noun} in a {param}.",
            f"Returns the {noun}.",
            f"Return the current {noun}.",
            f"Get the current {noun} in a given {param}.",
            "",
        ]
    )
    optional: tuple[tuple[str, str], ...] = ()
    if rng.random() < 0.1:
        extra = rng.choice(["units?", "unit?", "lang?", "limit?", "date?"])
        optional = ((extra, rng.choice(["string", "integer"])),)
    return Tool(name, "noun", ((param, "string"), *optional), description, noun)


def _ask_noun(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    del alone
    t, name = tool.topic, tool.name
    v = inventory.value(rng, rng.choice(["city", "city", "city", "name", "word", "pet"]))
    if rng.random() < 0.06:
        v = inventory.phrase(rng, 2)
    text = rng.choice(
        [
            f"What is the {t} of {v}?",
            f"What is the {t} in {v}?",
            f"What is the {t} in {v}?",
            f"What is the {t} for {v}?",
            f"What's the {t} in {v}?",
            f"What is the {t} in {v} now?",
            f"What is the {t} like in {v}?",
            f"What {t} is it in {v}?",
            f"How is the {t} in {v}?",
            f"How is the {t} in {v} today?",
            f"Tell me the {t} of {v}.",
            f"Tell me the {t} in {v}.",
            f"Show me the {t} of {v}, please.",
            f"Can you check the {t} in {v}?",
            f"I need the {t} for {v}.",
            f"Please get the {t} for {v}.",
            f"Find the {t} of {v}.",
            f"{t.capitalize()} in {v}?",
            f"{t.capitalize()} of {v}?",
            f"Use {name} with {v}.",
            f"Call {name} for {v}.",
        ]
    )
    return Request(text, {tool.parameters[0][0]: v}, v)


# Something done to two numbers: combine(a: integer, b: integer) ----------------------------------


def _make_pair(rng: Random, inventory: Inventory) -> Tool:
    verb = _word(rng, inventory, words.PAIR_VERBS, 0.45)
    first, second = rng.choice(words.PAIR_PARAMS)
    kind = rng.choice(["integer", "integer", "integer", "number"])
    name = rng.choice([verb, verb, verb, f"{verb}_numbers", f"{verb}_two", f"my_{verb}_tool"])
    cap = verb.capitalize()
    description = rng.choice(
        [
            f"{cap} two numbers.",
            f"{cap} two integers.",
            f"{cap}s two numbers.",
            f"{cap} {first} and {second}.",
            f"{cap} {first} by {second}.",
            f"Use this to {verb} numbers.",
            "Add two numbers.",
            "Multiply two numbers.",
            "A sum of two numbers.",
            "",
        ]
    )
    return Tool(name, "pair", ((first, kind), (second, kind)), description, verb)


def _ask_pair(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    x, y = int(inventory.number(rng)), int(inventory.number(rng))
    t, cap, name = tool.topic, tool.topic.capitalize(), tool.name
    forms = [
        f"{cap} {x} and {y}.",
        f"{cap} {x} by {y}.",
        f"{cap} {x} with {y}.",
        f"{cap} {x} to {y}.",
        f"{cap} the numbers {x} and {y}.",
        f"Please {t} {x} and {y}.",
        f"Can you {t} {x} and {y}?",
        f"What do you get if you {t} {x} and {y}?",
        f"What is {x} {t} {y}?",
        f"Use {name} with {x} and {y}.",
        f"Call {name} with {x} and {y}.",
        f"What is the value of {name}({x}, {y})? Use the tool.",
    ]
    if alone:
        op = rng.choice([*_OPERATORS, inventory.made_up(rng)])
        forms += [f"What is {x} {op} {y}?"] * 4 + [
            f"{x} {op} {y}?",
            f"How much is {x} {op} {y}?",
            f"Calculate {x} {op} {y}.",
            f"Compute {x} {op} {y}.",
            f"I need {x} {op} {y}.",
            f"What is the sum of {x} and {y}?",
            f"Add {x} and {y}.",
            f"Multiply {x} by {y}.",
            f"Multiply {x} and {y}.",
        ]
    first, second = (p for p, _ in tool.parameters)
    return Request(rng.choice(forms), {first: x, second: y}, str(x))


_OPERATORS = ["plus", "plus", "times", "times", "minus", "and", "+", "*", "-", "/", "with"]
_OPERATORS += ["divided by", "multiplied by"]


# Something looked for: find_notes(query: string) -------------------------------------------------


def _make_seek(rng: Random, inventory: Inventory) -> Tool:
    verb = _word(rng, inventory, words.SEEK_VERBS, 0.3)
    corpus = _word(rng, inventory, words.CORPORA, 0.2)
    name = rng.choice([verb, _join(rng, verb, corpus), _join(rng, corpus, verb)])
    description = rng.choice(
        [
            f"{verb.capitalize()} the {corpus}.",
            f"{verb.capitalize()} in the {corpus}.",
            f"{verb.capitalize()} for something.",
            f"Search the {corpus}.",
            "",
        ]
    )
    return Tool(name, "seek", ((rng.choice(words.SEEK_PARAMS), "string"),), description, verb)


def _ask_seek(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    v = inventory.phrase(rng) if rng.random() < 0.7 else inventory.value(rng, "name")
    t, cap = tool.topic, tool.topic.capitalize()
    forms = [
        f"{cap} for {v}.",
        f"{cap} {v}.",
        f"{cap}: {v}",
        f"Please {t} {v}.",
        f"Can you {t} {v}?",
        f"I want you to {t} {v}.",
        f"Use {tool.name} to find {v}.",
    ]
    if alone:
        forms += [f"Search for {v}.", f"Look for {v}.", f"{cap} the web for {v}."]
    return Request(rng.choice(forms), {tool.parameters[0][0]: v}, v)


# Something sent: send_note(to: string, text: string) ---------------------------------------------


def _make_send(rng: Random, inventory: Inventory) -> Tool:
    verb = rng.choice(words.SEND_VERBS)
    thing = _word(rng, inventory, words.SEND_THINGS, 0.2)
    to, body = rng.choice(words.TO_PARAMS), rng.choice(words.BODY_PARAMS)
    parameters = ((to, "string"), (body, "string"))[: rng.choice([1, 2, 2, 2])]
    description = rng.choice(
        [
            f"{verb.capitalize()} a {thing}.",
            f"{verb.capitalize()}s a {thing}.",
            f"{verb.capitalize()} a {thing} to somebody.",
            "",
        ]
    )
    return Tool(_join(rng, verb, thing), "send", parameters, description, f"{verb} {thing}")


def _ask_send(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    del alone
    v = inventory.value(rng, "name")
    verb, thing = tool.topic.split()
    up = verb.capitalize()
    to = tool.parameters[0][0]
    if len(tool.parameters) == 1:
        forms = [
            f"{up} a {thing} to {v}.",
            f"{up} {v} a {thing}.",
            f"Please {verb} a {thing} to {v}.",
        ]
        return Request(rng.choice(forms), {to: v}, v)
    text = inventory.phrase(rng)
    forms = [
        f"{up} a {thing} to {v} saying {text}.",
        f"{up} a {thing} to {v} saying {text}.",
        f"{up} a {thing} to {v} about {text}.",
        f"{up} {v} a {thing}: {text}",
        f"Please {verb} a {thing} to {v} that says {text}.",
    ]
    return Request(rng.choice(forms), {to: v, tool.parameters[1][0]: text}, v)


# Something done to one number, or to nothing -----------------------------------------------------


def _make_single(rng: Random, inventory: Inventory) -> Tool:
    verb = _word(rng, inventory, [*words.PAIR_VERBS, "square", "double", "halve", "negate"], 0.5)
    name = rng.choice([verb, f"{verb}_number", f"{verb}_function", f"my_{verb}"])
    param = rng.choice(["x", "n", "number", "input", "_input", "value", "a", "i"])
    cap = verb.capitalize()
    applied = f"Applies a {verb} function to an input."
    description = rng.choice([f"{cap} a number.", f"{cap}s a number.", applied, ""])
    return Tool(name, "single", ((param, "integer"),), description, verb)


def _ask_single(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    del alone
    x = int(inventory.number(rng))
    t, name = tool.topic, tool.name
    forms = [
        f"{t.capitalize()} {x}.",
        f"Please {t} {x}.",
        f"Can you {t} {x}?",
        f"Call {name} with {x}.",
        f"What is {name} of {x}?",
        f"What is the value of {name}({x})?",
        f"What is the value of {name}({x})? Use the tool.",
    ]
    return Request(rng.choice(forms), {tool.parameters[0][0]: x}, str(x))


def _make_none(rng: Random, inventory: Inventory) -> Tool:
    noun = _word(rng, inventory, words.TOOL_NOUNS, 0.4)
    name = _join(rng, rng.choice(words.TOOL_VERBS), noun)
    description = rng.choice(
        [f"{noun.capitalize()}.", f"Get the {noun}.", f"Returns the {noun}.", ""]
    )
    return Tool(name, "none", (), description, noun)


def _ask_none(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    del inventory, alone
    t, name = tool.topic, tool.name
    forms = [
        f"What is the {t}?",
        f"Tell me the {t}.",
        f"Show me the {t}.",
        f"Get the {t}.",
        f"Call {name}.",
        f"What is the value of {name}()? Use the tool.",
    ]
    return Request(rng.choice(forms), {})


# Structured output: Person(name: string, age: integer), Joke(setup: string, punchline: string) ---


def _make_record(rng: Random, inventory: Inventory) -> Tool:
    listed = ["Person", "Someone", "Human", "Visitor", "Guest", "Member", "Student", "Contact"]
    name = rng.choice([*listed, inventory.made_up(rng).capitalize()])
    second = rng.choice([("age", "integer")] * 3 + [("years", "integer"), ("city", "string")])
    description = rng.choice([f"A {name.lower()}.", f"Information about a {name.lower()}.", ""])
    return Tool(name, "record", (("name", "string"), second), description, name)


def _ask_record(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    del alone
    v, second = inventory.value(rng, "name"), tool.parameters[1][0]
    if second == "city":
        place = inventory.value(rng, "city")
        text = rng.choice([f"{v} lives in {place}.", f"This is {v} from {place}."])
        return Request(text, {"name": v, "city": place}, v)
    age = rng.randint(3, 99)
    forms = [
        f"{v} is {age} years old.",
        f"{v}, aged {age}.",
        f"{v} is {age}.",
        f"I met {v}, who is {age}.",
        f"Her name is {v} and she is {age}.",
        f"His name is {v} and he is {age} years old.",
        f"My friend {v} is {age} years old.",
    ]
    return Request(rng.choice(forms), {"name": v, second: age}, v)


def _make_joke(rng: Random, inventory: Inventory) -> Tool:
    name = rng.choice(["Joke", "Joke", inventory.made_up(rng).capitalize()])
    optional = (("rating?", "integer"),) if rng.random() < 0.4 else ()
    description = rng.choice(["Joke to tell user.", "A joke.", ""])
    required = (("setup", "string"), ("punchline", "string"))
    return Tool(name, "joke", (*required, *optional), description, "joke")


def _ask_joke(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    del tool, alone
    thing = inventory.value(rng, "word")
    forms = [f"Tell me a joke about {thing}s.", f"Tell me a joke about {thing}."]
    setup, punchline = "Why did the cat sit on the computer?", "To watch the mouse."
    return Request(
        rng.choice([*forms, f"A joke about a {thing}, please."]),
        {"setup": setup, "punchline": punchline},
    )


KINDS: dict[str, Kind] = {
    "noun": Kind(_make_noun, _ask_noun, 30),
    "pair": Kind(_make_pair, _ask_pair, 26),
    "seek": Kind(_make_seek, _ask_seek, 13),
    "send": Kind(_make_send, _ask_send, 16),
    "single": Kind(_make_single, _ask_single, 6),
    "none": Kind(_make_none, _ask_none, 3),
    "record": Kind(_make_record, _ask_record, 5),
    "joke": Kind(_make_joke, _ask_joke, 1.5),
}


def result(rng: Random, inventory: Inventory, tool: Tool, asked: Request) -> tuple[str, str]:
    """What the tool gives back, and the answer that uses it."""
    if tool.kind in ("pair", "single"):
        text = inventory.number(rng)
    elif tool.kind in ("noun", "none"):
        degrees, sky = rng.randint(0, 40), rng.choice(["Sunny", "Rainy", "Cloudy", "Windy"])
        colour, word = inventory.value(rng, "colour"), inventory.value(rng, "word")
        text = rng.choice(
            [
                inventory.number(rng),
                word,
                inventory.phrase(rng, 2),
                f"{colour.capitalize()}, {degrees} degrees.",
                f"{sky}, {degrees} degrees.",
                f"{degrees} degrees",
                f"{rng.randint(0, 23)}:{rng.randint(10, 59)}",
                f"{inventory.number(rng)} km",
                f"The {tool.topic} is {word}.",
                f"It is {word.lower()} in {asked.value}." if asked.value else "Done.",
                f'{{"value": {inventory.number(rng)}}}',
            ]
        )
    elif tool.kind == "send":
        text = rng.choice(["Sent.", "Done.", "ok", "delivered", f"Sent to {asked.value}."])
    else:
        text = rng.choice(["Done.", "ok", inventory.phrase(rng), inventory.value(rng, "word")])
    return text, f"The result is: {text}"
