"""Made-up tools, questions that need them, and what comes back.

A tool here is a line of text for the system prompt and a way to ask for it; nothing is ever run.
Tools of one list have no topic in common, and every question names the topic, so that one tool is
right. Do not let training see the tools that users write first: `get_weather`,
`add` and their like are held out, so that the evaluation says how an unseen tool fares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from . import words
from .inventory import Inventory
from .parameters import (
    Arguments,
    decimal,
    described,
    foreign,
    integer,
    some_extras,
    some_word,
    with_extras,
)
from .signature import Parameter, compact, signature


@dataclass(frozen=True)
class Tool:
    """A tool as the system prompt shows it.

    Attributes:
        name: Its name.
        kind: Which way of asking fits it, a key of `KINDS`.
        parameters: What it takes.
        description: One line, may be empty.
        topic: The words by which a question tells it from the others.
        other: What else its questions are made of, by kind.
    """

    name: str
    kind: str
    parameters: tuple[Parameter, ...]
    description: str
    topic: str
    other: Any = ""

    def line(self) -> str:
        """The tool's line in the system prompt."""
        return signature(self.name, self.parameters, self.description)


@dataclass(frozen=True)
class Request:
    """A question, the arguments of the call it needs, and the value it is about."""

    text: str
    arguments: Arguments
    value: str = ""


@dataclass(frozen=True)
class Kind:
    """A sort of tool: how one is made, how it is asked for, and its share of all tools.

    `make` takes the first tool of that kind in the list, if there is one, to be like it.
    """

    make: Callable[[Random, Inventory, Tool | None], Tool]
    ask: Callable[[Random, Inventory, Tool, bool], Request]
    share: float


def make_tools(rng: Random, inventory: Inventory, count: int) -> list[Tool]:
    """A list of tools whose names the evaluation does not hold; half of the lists are of a kind."""
    kinds, shares = list(KINDS), [k.share for k in KINDS.values()]
    like = rng.choices(kinds, shares)[0] if rng.random() < 0.38 else ""
    out: list[Tool] = []
    for _ in range(20 + 6 * count):
        kind = like or rng.choices(kinds, shares)[0]
        if like and rng.random() < 0.12:
            kind = rng.choices(kinds, shares)[0]
        same = next((t for t in out if t.kind == kind), None)
        tool = KINDS[kind].make(rng, inventory, same)
        if not _held_out(tool.name) and fits(tool, out):
            out.append(tool)
        if len(out) == count:
            break
    return out


def _held_out(name: str) -> bool:
    return name.replace("_", "").lower() in {n.replace("_", "") for n in words.HELD_OUT["tool"]}


def fits(tool: Tool, others: list[Tool]) -> bool:
    """Whether a tool can stand beside others: no name and no topic twice."""
    mine = set(tool.topic.lower().split())
    return all(t.name != tool.name and not mine & set(t.topic.lower().split()) for t in others)


def request(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    """A question that needs the tool.

    Args:
        rng: The source of chance.
        inventory: The source of values.
        tool: The tool.
        alone: Whether no other listed tool is of its kind; only then may the question leave the
            tool's own words out.
    """
    asked = KINDS[tool.kind].ask(rng, inventory, tool, alone)
    if len(tool.parameters) == 1 and rng.random() < 0.08:  # as people type
        said = {k: v.lower() if isinstance(v, str) else v for k, v in asked.arguments.items()}
        return Request(asked.text.lower(), said, asked.value.lower())
    return asked


def called(tool: Tool, asked: Request) -> dict[str, Any]:
    """The call that a question needs."""
    return {"name": tool.name, "arguments": asked.arguments}


def _join(rng: Random, *parts: str) -> str:
    """A tool's name, mostly in snake case."""
    name = "_".join(parts).replace(" ", "_")
    style = rng.random()
    if style < 0.1:
        first, *rest = name.split("_")
        return first + "".join(w.capitalize() for w in rest)
    if style < 0.14:
        return "".join(w.capitalize() for w in name.split("_"))
    if style < 0.17:
        return name + rng.choice(["_tool", "_function", "_api", "2"])
    return name


# A property of something: get_price(product: string) ---------------------------------------------


def _make_noun(rng: Random, inventory: Inventory, like: Tool | None) -> Tool:
    noun = some_word(rng, inventory, words.TOOL_NOUNS, 0.25, words.COMMON_NOUNS)
    if like and rng.random() < 0.75:
        param, verb = like.parameters[0].name, like.other[0]
    else:
        param = some_word(rng, inventory, words.TOOL_PARAMS + ["city", "location"] * 8, 0.15)
        verb = rng.choice(words.TOOL_VERBS)
    name = _join(rng, verb, noun) if rng.random() < 0.85 else _join(rng, noun)
    description = rng.choice(
        [
            f"{noun.capitalize()} of a {param}.",
            f"{noun.capitalize()} in a {param}.",
            f"{noun.capitalize()}.",
            f"Get the {noun} of a {param}.",
            f"Get the {noun} for a {param}.",
            f"Get the {noun} at a {param}.",
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
    extras = some_extras(rng, inventory, {param}, [78, 19, 3])
    first = described(rng, Parameter(param), f"the {param}", f"Name of the {param}")
    parameters = (first, *(e.parameter for e in extras))
    return Tool(name, "noun", parameters, description, noun, (verb, extras))


def _ask_noun(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    del alone
    t, name = tool.topic, tool.name
    v = inventory.value(rng, rng.choice(["city", "city", "city", "name", "word", "pet"]))
    share = rng.random()
    if share < 0.06:
        v = inventory.phrase(rng, 2)
    elif share < 0.12:
        v = f"{inventory.value(rng, 'city')}, {rng.choice(words.STATES)}"
    elif share < 0.17:
        v = foreign(rng)
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
            f"Use the {name} tool for {v}.",
        ]
    )
    arguments: Arguments = {tool.parameters[0].name: v}
    return Request(with_extras(rng, inventory, text, arguments, tool.other[1]), arguments, v)


# Something done to two numbers: combine(a: integer, b: integer) ----------------------------------


def _make_pair(rng: Random, inventory: Inventory, like: Tool | None) -> Tool:
    first, second = rng.choice(words.PAIR_PARAMS)
    kind = rng.choice(["integer", "integer", "integer", "number"])
    if like and rng.random() < 0.75:
        (first, second), kind = (p.name for p in like.parameters), like.parameters[0].type
    if rng.random() < 0.72:
        family = rng.choice(words.SUMS)
        verb = rng.choice(family["names"])
        description = rng.choice(
            [*family["descriptions"], ""] if verb in family["clear"] else family["descriptions"]
        )
        topic, other = family["topic"][0], family["forms"]
    else:
        verb = topic = some_word(rng, inventory, words.PAIR_VERBS, 0.35, words.COMMON_VERBS)
        other = []
        cap = verb.capitalize()
        description = rng.choice(
            [
                f"{cap} two numbers.",
                f"{cap} two integers.",
                f"{cap}s two numbers.",
                f"{cap} {first} and {second}.",
                f"{cap} {first} by {second}.",
                f"Use this to {verb} numbers.",
                "",
            ]
        )
    name = rng.choice([verb, verb, verb, f"{verb}_numbers", f"{verb}_two", f"my_{verb}_tool"])
    parameters = (Parameter(first, kind), Parameter(second, kind))
    return Tool(name, "pair", parameters, description, topic, other)


def _ask_pair(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    make = integer if tool.parameters[0].type == "integer" else decimal
    x, y = make(rng, inventory), make(rng, inventory)
    name = tool.name
    named = [
        f"Use {name} with {x} and {y}.",
        f"Call {name} with {x} and {y}.",
        f"What is the value of {name}({x}, {y})? Use the tool.",
    ]
    if tool.other:
        forms = [f.replace("{x}", str(x)).replace("{y}", str(y)) for f in tool.other]
        text = rng.choice(forms) if rng.random() < 0.9 else rng.choice(named)
    else:
        t, cap = tool.topic, tool.topic.capitalize()
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
            *named,
        ]
        if alone and rng.random() < 0.12:
            op = rng.choice([*_OPERATORS, inventory.made_up(rng)])
            forms = [f"What is {x} {op} {y}?", f"Calculate {x} {op} {y}."]
        text = rng.choice(forms)
    first, second = (p.name for p in tool.parameters)
    return Request(text, {first: x, second: y}, str(x))


_OPERATORS = ["and", "with", "against", "over", "on", "to"]


# Something looked for: find_notes(query: string) -------------------------------------------------


def _make_seek(rng: Random, inventory: Inventory, like: Tool | None) -> Tool:
    verb = some_word(
        rng, inventory, [*words.SEEK_VERBS, "search", "search"], 0.3, words.COMMON_VERBS
    )
    corpus = some_word(rng, inventory, words.CORPORA, 0.35, words.COMMON_NOUNS)
    by_corpus = rng.random() < 0.5
    param = rng.choice(words.SEEK_PARAMS)
    if like:
        param, by_corpus = like.parameters[0].name, like.topic != like.other[0]
        if by_corpus and rng.random() < 0.7:
            verb = like.other[0]
    both = [_join(rng, verb, corpus), _join(rng, verb, corpus), _join(rng, corpus, verb)]
    name = rng.choice(both if by_corpus else [verb, *both])
    description = rng.choice(
        [
            f"{verb.capitalize()} the {corpus}.",
            f"{verb.capitalize()} in the {corpus}.",
            f"{verb.capitalize()} the {corpus} for something.",
            f"Searches the {corpus}.",
            "",
        ]
    )
    topic = corpus if by_corpus else verb
    if not by_corpus:
        description = rng.choice([description, f"{verb.capitalize()} for something.", ""])
    return Tool(name, "seek", (Parameter(param),), description, topic, (verb, corpus))


def _ask_seek(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    v = inventory.phrase(rng) if rng.random() < 0.7 else inventory.value(rng, "name")
    if rng.random() < 0.05:
        v = foreign(rng)
    verb, corpus = tool.other
    cap = verb.capitalize()
    if tool.topic == corpus:
        forms = [
            f"{cap} the {corpus} for {v}.",
            f"{cap} {v} in the {corpus}.",
            f"Look for {v} in the {corpus}.",
            f"Please {verb} the {corpus} for {v}.",
            f"What does the {corpus} say about {v}?",
            f"Is there something about {v} in the {corpus}?",
        ]
    else:
        forms = [
            f"{cap} for {v}.",
            f"{cap} {v}.",
            f"{cap}: {v}",
            f"Please {verb} {v}.",
            f"Can you {verb} {v}?",
            f"I want you to {verb} {v}.",
            f"{cap} the {corpus} for {v}.",
        ]
    if alone:
        forms += [f"Use {tool.name} to find {v}.", f"Search for {v}.", f"Look for {v}."]
    return Request(rng.choice(forms), {tool.parameters[0].name: v}, v)


# Something sent: send_note(to: string, text: string) ---------------------------------------------


def _make_send(rng: Random, inventory: Inventory, like: Tool | None) -> Tool:
    verb = rng.choice(words.SEND_VERBS)
    thing = some_word(rng, inventory, words.SEND_THINGS, 0.35, words.COMMON_NOUNS)
    to, body = rng.choice(words.TO_PARAMS), rng.choice(words.BODY_PARAMS)
    parameters: tuple[Parameter, ...] = (Parameter(to), Parameter(body))[: rng.choice([1, 2, 2, 2])]
    if like and rng.random() < 0.75:
        verb, parameters = like.other[0], like.parameters
    elif rng.random() < 0.15:
        parameters = parameters[::-1]
    description = rng.choice(
        [
            f"{verb.capitalize()} a {thing}.",
            f"{verb.capitalize()}s a {thing}.",
            f"{verb.capitalize()} a {thing} to somebody.",
            "",
        ]
    )
    return Tool(_join(rng, verb, thing), "send", parameters, description, thing, (verb,))


def _ask_send(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    del alone
    v = inventory.value(rng, "name")
    (verb,), thing = tool.other, tool.topic
    up = verb.capitalize()
    arguments: Arguments = {}
    if len(tool.parameters) == 1:
        forms = [
            f"{up} a {thing} to {v}.",
            f"{up} {v} a {thing}.",
            f"Please {verb} a {thing} to {v}.",
        ]
        return Request(rng.choice(forms), {tool.parameters[0].name: v}, v)
    text = inventory.phrase(rng)
    if rng.random() < 0.2:
        text = inventory.fill(rng, rng.choice(words.MESSAGES)).rstrip(".")
    forms = [
        f"{up} a {thing} to {v} saying {text}.",
        f"{up} a {thing} to {v} saying {text}.",
        f"{up} a {thing} to {v} about {text}.",
        f"{up} {v} a {thing}: {text}",
        f"{up} {v} a {thing} saying {text}.",
        f"Please {verb} a {thing} to {v} that says {text}.",
    ]
    for p in tool.parameters:
        arguments[p.name] = text if p.name in words.BODY_PARAMS else v
    return Request(rng.choice(forms), arguments, v)


# Something to be done: create_task(title: string, priority?: "low" | "high") ---------------------


def _make_command(rng: Random, inventory: Inventory, like: Tool | None) -> Tool:
    verb = some_word(rng, inventory, words.COMMANDS, 0.3, words.COMMON_VERBS)
    noun = some_word(rng, inventory, words.COMMAND_NOUNS, 0.35, words.COMMON_NOUNS)
    by_verb = rng.random() < 0.5
    param = rng.choice(["name", "title", "label", "id", "target", "what", "item", "owner"])
    if like:
        by_verb = like.topic == like.other[0]
        param = like.parameters[0].name if rng.random() < 0.7 else param
        if rng.random() < 0.8:
            verb, noun = (verb, like.other[1]) if by_verb else (like.other[0], noun)
    extras = some_extras(rng, inventory, {param}, [42, 40, 18])
    main = Parameter(param)
    if rng.random() < 0.15:
        main = Parameter(param, "integer")
    description = rng.choice(
        [
            f"{verb.capitalize()} a {noun}.",
            f"{verb.capitalize()} the {noun}.",
            f"{verb.capitalize()}s a {noun}.",
            f"Use this to {verb} a {noun}.",
            "",
        ]
    )
    first = described(rng, main, f"the {param} of the {noun}")
    parameters = (first, *(e.parameter for e in extras))
    topic = verb if by_verb else noun
    return Tool(
        _join(rng, verb, noun), "command", parameters, description, topic, (verb, noun, extras)
    )


def _ask_command(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    del alone
    verb, noun, extras = tool.other
    up, main = verb.capitalize(), tool.parameters[0]
    value: Any
    if main.type == "integer":
        value = integer(rng, inventory)
    else:
        value = inventory.value(rng, rng.choice(["name", "word", "pet", "city"]))
        if rng.random() < 0.15:
            value = inventory.phrase(rng, 3)
    v = str(value)
    forms = [
        f"{up} the {noun} {v}.",
        f"{up} a {noun} called {v}.",
        f"{up} a {noun} with {main.name} {v}.",
        f"{up} a {noun} {rng.choice(['to', 'for', 'from', 'in'])} {v}.",
        f"{up} {noun} {v}.",
        f"Please {verb} the {noun} {v}.",
        f"Can you {verb} the {noun} {v}?",
        f"I want you to {verb} a {noun} named {v}.",
    ]
    arguments: Arguments = {main.name: value}
    text = with_extras(rng, inventory, rng.choice(forms), arguments, extras)
    return Request(text, arguments, v)


# Something done to one number, or to nothing -----------------------------------------------------


def _make_single(rng: Random, inventory: Inventory, like: Tool | None) -> Tool:
    verb = some_word(
        rng, inventory, [*words.PAIR_VERBS, "square", "double", "halve", "negate"], 0.5
    )
    name = rng.choice([verb, f"{verb}_number", f"{verb}_function", f"my_{verb}"])
    param = rng.choice(["x", "n", "number", "input", "_input", "value", "a", "i"])
    if like and rng.random() < 0.75:
        param = like.parameters[0].name
    cap = verb.capitalize()
    applied = f"Applies a {verb} function to an input."
    description = rng.choice(
        [f"{cap} a number.", f"{cap}s a number.", applied, f"Apply a {verb} to an input.", ""]
    )
    return Tool(name, "single", (Parameter(param, "integer"),), description, verb)


def _ask_single(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    del alone
    x = integer(rng, inventory)
    t, name = tool.topic, tool.name
    forms = [
        f"{t.capitalize()} {x}.",
        f"{t.capitalize()} the number {x}.",
        f"Please {t} {x}.",
        f"Can you {t} {x}?",
        f"Call {name} with {x}.",
        f"What is {name} of {x}?",
        f"What is the value of {name}({x})?",
        f"What is the value of {name}({x})? Use the tool.",
        f"What is the value of {name}({x})? Use the tool.",
    ]
    return Request(rng.choice(forms), {tool.parameters[0].name: x}, str(x))


def _make_none(rng: Random, inventory: Inventory, like: Tool | None) -> Tool:
    noun = some_word(rng, inventory, words.TOOL_NOUNS, 0.25, words.COMMON_NOUNS)
    verb = like.other if like and rng.random() < 0.75 else rng.choice(words.TOOL_VERBS)
    name = _join(rng, verb, noun)
    if rng.random() < 0.25:
        name += rng.choice(["_no_args", "_without_args", "_function", "_now"])
    description = rng.choice(
        [f"{noun.capitalize()}.", f"Get the {noun}.", f"Returns the {noun}.",
         f"Calculate a {noun}.", ""]
    )  # fmt: skip
    return Tool(name, "none", (), description, noun, verb)


def _ask_none(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    del inventory, alone
    t, name = tool.topic, tool.name
    forms = [
        f"What is the {t}?",
        f"Tell me the {t}.",
        f"Show me the {t}.",
        f"Get the {t}.",
        f"Call {name}.",
        f"Call {name}().",
        f"What is the value of {name}()? Use the tool.",
        f"What is the value of {name}()? Use the tool.",
    ]
    return Request(rng.choice(forms), {})


# Something in a manner of its own: poem_maker(style: string) -------------------------------------


def _make_style(rng: Random, inventory: Inventory, like: Tool | None) -> Tool:
    thing = some_word(rng, inventory, words.STYLED, 0.3, words.COMMON_NOUNS)
    verb = rng.choice(["write", "make", "produce", "compose", "generate"])
    param = rng.choice(["style", "manner", "tone", "voice", "answer_style", "kind"])
    if like and rng.random() < 0.75:
        verb, param = like.other, like.parameters[0].name
    maker = {"write": "writer", "make": "maker", "produce": "producer", "compose": "composer",
             "generate": "generator"}[verb]  # fmt: skip
    name = rng.choice([f"{thing}_{maker}", f"{verb}_{thing}", f"{verb}_{thing}"])
    description = rng.choice(
        [
            f"{verb.capitalize()} a {thing} in a particular {param.replace('_', ' ')}.",
            f"{verb.capitalize()} a {thing} in a particular style of speaking.",
            f"{verb.capitalize()} a {thing}.",
            "",
        ]
    )
    return Tool(name, "style", (Parameter(param),), description, thing, verb)


def _ask_style(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    del alone
    thing, verb = tool.topic, tool.other
    v = rng.choice(words.STYLES) if rng.random() < 0.6 else inventory.value(rng, "name")
    forms = [
        f"Using the tool, {verb} a {v} {thing}.",
        f"{verb.capitalize()} a {v} {thing}.",
        f"Use the tool to {verb} a {v} {thing}.",
        f"I want a {v} {thing}.",
    ]
    return Request(rng.choice(forms), {tool.parameters[0].name: v}, v)


# Something foreign put down: register_guest(guest_name: string, description: string) -------------


def _make_party(rng: Random, inventory: Inventory, like: Tool | None) -> Tool:
    who = some_word(rng, inventory, words.PARTIES, 0.25)
    verb = like.other if like else rng.choice(["register", "record", "enter", "make", "create"])
    name = rng.choice([f"{verb}_{who}", f"unicode_{who}", f"new_{who}"])
    first = rng.choice([f"{who}_name", f"{who}_name", "name", who])
    parameters = (
        described(rng, Parameter(first), f"The {who}'s name", f"The {who}'s native name"),
        described(rng, Parameter("description"), f"Description of the {who}"),
    )
    description = rng.choice(
        [f"{verb.capitalize()} a {who}.", f"Tool for a {who} with a foreign name.", ""]
    )
    return Tool(name, "party", parameters, description, who, verb)


def _ask_party(rng: Random, inventory: Inventory, tool: Tool, alone: bool) -> Request:
    del alone
    who, up = tool.topic, tool.other.capitalize()
    v = foreign(rng) if rng.random() < 0.75 else inventory.value(rng, "name")
    what = f"a {rng.choice(words.NATIONS)} {rng.choice(words.FIRMS)}"
    latin = f"{inventory.value(rng, 'name')} {rng.choice(['Group', 'Works', 'House'])}"
    forms = [
        f"{up} a {who} named '{v}' ({latin}) - {what}",
        f"{up} a {who} named '{v}', {what}.",
        f"{up} a {who} called {v}, {what}.",
    ]
    return Request(rng.choice(forms), {tool.parameters[0].name: v, "description": what}, v)


KINDS: dict[str, Kind] = {
    "noun": Kind(_make_noun, _ask_noun, 28),
    "pair": Kind(_make_pair, _ask_pair, 30),
    "seek": Kind(_make_seek, _ask_seek, 20),
    "send": Kind(_make_send, _ask_send, 14),
    "command": Kind(_make_command, _ask_command, 14),
    "single": Kind(_make_single, _ask_single, 5),
    "none": Kind(_make_none, _ask_none, 4),
    "style": Kind(_make_style, _ask_style, 2.5),
    "party": Kind(_make_party, _ask_party, 4.5),
}


def result(rng: Random, inventory: Inventory, tool: Tool, asked: Request) -> str:
    """What the tool gives back."""
    number, word = inventory.number(rng), inventory.value(rng, "word")
    if rng.random() < 0.1:
        return rng.choice(
            [
                f'{{"result": {number}}}',
                compact({word.lower(): int(number)}),
                compact({"ok": True, "id": int(number)}),
                f"[{number}, {inventory.number(rng)}]",
                inventory.fill(rng, rng.choice(words.MESSAGES)),
                inventory.phrase(rng, 3),
            ]
        )
    if tool.kind in ("pair", "single"):
        return number
    if tool.kind in ("noun", "none"):
        degrees, sky = rng.randint(0, 40), rng.choice(["Sunny", "Rainy", "Cloudy", "Windy"])
        colour = inventory.value(rng, "colour")
        return rng.choice(
            [
                number,
                word,
                inventory.phrase(rng, 2),
                f"{colour.capitalize()}, {degrees} degrees.",
                f"{sky}, {degrees} degrees.",
                f"It's {sky.lower()}.",
                f"{degrees} degrees",
                f"{rng.randint(0, 23)}:{rng.randint(10, 59)}",
                f"{number} km",
                f"The {tool.topic} is {word}.",
                f"It is {word.lower()} in {asked.value}." if asked.value else "Done.",
                f'{{"value": {number}}}',
            ]
        )
    if tool.kind == "send":
        return rng.choice(["Sent.", "Done.", "ok", "delivered", f"Sent to {asked.value}."])
    return rng.choice(["Done.", "ok", inventory.phrase(rng), word, number])


def failure(rng: Random, inventory: Inventory, tool: Tool) -> str:
    """What stands behind "Error: " where the tool failed."""
    names = [p.name for p in tool.parameters] or ["x"]
    word, name = inventory.value(rng, "word"), rng.choice(names)
    return rng.choice(
        [
            f"Missing required argument '{name}'.",
            f"{word} not found",
            f"{word.capitalize()} not found.",
            f"{name} must be {word.lower()}.",
            f"Unknown {name}.",
            "division by zero",
            "Timeout.",
            f"No {tool.topic} for you.",
            f"error {inventory.number(rng)}",
            inventory.phrase(rng, 3),
            *[inventory.fill(rng, rng.choice(words.FAILURES)) for _ in range(6)],
            inventory.fill(rng, rng.choice(words.MESSAGES)),
        ]
    )
