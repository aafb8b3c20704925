"""What the demo model is asked in the evaluation: unseen values, unseen tools, and what is right.

Conversations only; how a model plays them is in `evaluate`. Do not accept an answer
that merely holds the value: here it must be the whole expected answer, to the letter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any

from . import facts, tools, words
from .data import SEPARATOR
from .dialogue import Dialogue
from .inventory import Inventory
from .parameters import Arguments
from .signature import Parameter, compact, result_text, signature, tool_list

HELD_OUT = Inventory(held_out=True)
NEXT_TURN = f"{SEPARATOR}User: "
"""In a turn's text: what comes behind is a turn of its own, with no answer before it."""
DISTANCES = (0, 4, 8, 16, 32, 64)
USUAL_WORDS = {
    "name": words.NAMES,
    "city": words.CITIES,
    "pet": words.PETS,
    "colour": words.COLOURS,
    "food": words.FOODS,
}


@dataclass
class Case:
    """One conversation: what is said, and what makes the last answer right."""

    turns: list[str]  # what the user says
    right: Callable[[str], bool]
    system: str = ""
    answers: list[str] = field(default_factory=list)


def _fillers(rng: Random, count: int, taken: str) -> list[str]:
    """Other turns: small talk, matters off the topic, other facts told and asked for."""
    dialogue = Dialogue(rng, HELD_OUT, 0, plain=True)
    out: list[str] = []
    while len(out) < count:
        share = rng.random()
        if share < 0.75:
            out.append(dialogue.chat().text)
        elif share < 0.88 or not dialogue.known:
            fact = facts.any_fact(rng)
            if fact.key != taken and fact.key not in dialogue.known:
                value = HELD_OUT.value(rng, fact.kind)
                dialogue.known[fact.key] = (fact, value)
                out.append(facts.state(rng, fact, value))
        else:
            out.append(dialogue.ask().text)
    return out


def recall(rng: Random, distance: int, *, usual: bool = False) -> Case:
    """One of the six facts after so many other turns, of unseen words or of usual ones."""
    key = rng.choice(facts.MAIN_KEYS)
    fact = facts.main_fact(rng, key)
    if usual and key in USUAL_WORDS:
        value = rng.choice(USUAL_WORDS[key])
    else:
        value = HELD_OUT.value(rng, fact.kind)
    turns = [facts.state(rng, fact, value), *_fillers(rng, distance, key)]
    expected = fact.answer.replace("{v}", value)
    return Case([*turns, facts.ask(rng, fact)], lambda a: a == expected)


def one_of_four(rng: Random) -> Case:
    """Four facts told, one asked for."""
    chosen = [facts.main_fact(rng, k) for k in rng.sample(facts.MAIN_KEYS, 4)]
    values = [HELD_OUT.value(rng, f.kind) for f in chosen]
    turns = [facts.state(rng, f, v) for f, v in zip(chosen, values, strict=True)]
    i = rng.randrange(4)
    expected = chosen[i].answer.replace("{v}", values[i])
    return Case([*turns, facts.ask(rng, chosen[i])], lambda a: a == expected)


def correction(rng: Random) -> Case:
    """A fact told, two other turns, the fact corrected, two other turns, the question."""
    key = rng.choice(facts.MAIN_KEYS)
    fact = facts.main_fact(rng, key)
    old, new = HELD_OUT.value(rng, fact.kind), HELD_OUT.value(rng, fact.kind)
    if rng.random() < 0.5:
        lead = rng.choice(["Actually, ", "No, "])
        text = lead + facts.continued(fact.statements[0].replace("{v}", new))
    else:
        text = facts.correct(rng, fact, new)
    turns = [facts.state(rng, fact, old), *_fillers(rng, 2, key), text]
    expected = fact.answer.replace("{v}", new)
    turns += [*_fillers(rng, 2, key), facts.ask(rng, fact)]
    return Case(turns, lambda a: a == expected)


def unknown(rng: Random) -> Case:
    """Three facts told, a fourth asked for."""
    chosen = [facts.main_fact(rng, k) for k in rng.sample(facts.MAIN_KEYS, 4)]
    turns = [facts.state(rng, f, HELD_OUT.value(rng, f.kind)) for f in chosen[:3]]
    turns.append(facts.ask(rng, chosen[3]))
    return Case(turns, lambda a: a == chosen[3].unknown)


def nothing_told(rng: Random) -> Case:
    """A question for a fact as the first turn."""
    fact = facts.main_fact(rng, rng.choice(facts.MAIN_KEYS))
    return Case([facts.ask(rng, fact)], lambda a: a == fact.unknown)


def persona(rng: Random) -> Case:
    """The assistant's own name, given by the system prompt, two turns later."""
    value = HELD_OUT.value(rng, "name")
    system = rng.choice(words.PERSONA).replace("{v}", value)
    turns = [*_fillers(rng, 2, ""), rng.choice(words.PERSONA_QUESTIONS)]
    return Case(turns, lambda a: a == f"My name is {value}.", system)


def manner(rng: Random) -> Case:
    """A manner of speech, asked for by the system prompt, on a recalled fact."""
    if rng.random() < 0.75:
        prefix, suffix, asks = rng.choice(words.MANNERS)
        system = rng.choice(asks)
    else:
        word = HELD_OUT.value(rng, "name")
        start = rng.random() < 0.5
        prefix, suffix = (f"{word}! ", "") if start else ("", f" {word}!")
        system = f"{'Begin' if start else 'End'} every answer with {word}."
    if rng.random() < 0.5:
        system = "You are a helpful assistant. " + system
    base = recall(rng, 2)
    return Case(
        base.turns,
        lambda a: a.startswith(prefix) and a.endswith(suffix)
        and base.right(a[len(prefix) : len(a) - len(suffix)]),
        system,
    )  # fmt: skip


Asked = tuple[str, Arguments]


@dataclass(frozen=True)
class Held:
    """A tool of the evaluation's, and how it is asked for."""

    tool: tools.Tool
    ask: Callable[[Random], Asked]


def _number(rng: Random) -> int:
    return int(HELD_OUT.number(rng))


def _place(rng: Random) -> str:
    return HELD_OUT.value(rng, "city")


def _add(rng: Random) -> Asked:
    a, b = _number(rng), _number(rng)
    return rng.choice([f"What is {a} plus {b}?", f"Add {a} and {b}."]), {"a": a, "b": b}


def _multiply(rng: Random) -> Asked:
    a, b = _number(rng), _number(rng)
    return rng.choice([f"What is {a} times {b}?", f"Multiply {a} and {b}."]), {"a": a, "b": b}


def _weather(rng: Random) -> Asked:
    city = _place(rng)
    asks = [f"What is the weather in {city}?", f"How is the weather in {city}?"]
    return rng.choice(asks), {"city": city}


def _clock(rng: Random) -> Asked:
    city = _place(rng)
    return f"What is the time in {city}?", {"city": city}


def _search(rng: Random) -> Asked:
    query = HELD_OUT.phrase(rng, 2)
    return f"Search for {query}.", {"query": query}


def _mail(rng: Random) -> Asked:
    name, text = HELD_OUT.value(rng, "name"), HELD_OUT.phrase(rng, 2)
    return f"Send a mail to {name} saying {text}.", {"to": name, "text": text}


def _held(
    name: str, kind: str, description: str, ask: Callable[[Random], Asked], **of: str
) -> Held:
    parameters = tuple(Parameter(k, v) for k, v in of.items())
    return Held(tools.Tool(name, kind, parameters, description, name), ask)


TOOLS = {
    held.tool.name: held
    for held in [
        _held("add", "pair", "Add two numbers.", _add, a="integer", b="integer"),
        _held("multiply", "pair", "Multiply two numbers.", _multiply, a="integer", b="integer"),
        _held("get_weather", "noun", "Weather of a city.", _weather, city="string"),
        _held("get_time", "noun", "Time in a city.", _clock, city="string"),
        _held("search", "seek", "Search the web.", _search, query="string"),
        _held("send_mail", "send", "Send a mail.", _mail, to="string", text="string"),
    ]
}
TWINS = [("add", "multiply"), ("get_weather", "get_time")]
"""Tools of one kind, with the same parameters: only the name tells them apart."""


def _list(rng: Random, names: list[str]) -> str:
    return tool_list([TOOLS[n].tool.line() for n in rng.sample(names, len(names))])


def _tool_system(rng: Random, name: str, others: int) -> str:
    return _list(rng, [name, *rng.sample([n for n in TOOLS if n != name], others)])


def _is_json(answer: str, value: Any, *, fenced: bool) -> bool:
    if fenced:
        if not (answer.startswith("```json\n") and answer.endswith("\n```")):
            return False
        answer = answer[len("```json\n") : -len("\n```")]
    try:
        return bool(json.loads(answer) == value)
    except json.JSONDecodeError:
        return False


def _calls(text: str, system: str, calls: list[tuple[str, Arguments]]) -> Case:
    made: list[dict[str, Any]] = [{"name": n, "arguments": a} for n, a in calls]
    wanted: Any = made[0] if len(made) == 1 else made
    return Case([text], lambda a: _is_json(a, wanted, fenced=True), system)


def tool_call(rng: Random, name: str, others: int) -> Case:
    """A question that needs an unseen tool, with some other unseen tools listed."""
    text, arguments = TOOLS[name].ask(rng)
    return _calls(text, _tool_system(rng, name, others), [(name, arguments)])


def one_of_three(rng: Random) -> Case:
    """A question that needs one of three unseen tools."""
    return tool_call(rng, rng.choice(list(TOOLS)), 2)


def one_of_twins(rng: Random) -> Case:
    """The same where another of the three is of its kind and has the same parameters."""
    name, other = rng.sample(rng.choice(TWINS), 2)
    third = rng.choice([n for n in TOOLS if n not in (name, other)])
    text, arguments = TOOLS[name].ask(rng)
    return _calls(text, _list(rng, [name, other, third]), [(name, arguments)])


def made_up_tools(rng: Random) -> Case:
    """One of three tools of any kind, most of them with made-up names and made-up words."""
    listed = tools.make_tools(rng, HELD_OUT, 3)
    tool = rng.choice(listed)
    alone = sum(t.kind == tool.kind for t in listed) == 1
    asked = tools.request(rng, HELD_OUT, tool, alone)
    system = tool_list([t.line() for t in listed])
    return _calls(asked.text, system, [(tool.name, asked.arguments)])


def two_calls(rng: Random) -> Case:
    """A question that needs two calls, in one case of four of one tool."""
    names = rng.sample(list(TOOLS), 2)
    chosen = [names[0], names[0]] if rng.random() < 0.25 else names
    asked = [TOOLS[n].ask(rng) for n in chosen]
    first, second = (text for text, _ in asked)
    text = f"{first[:-1]} and {second[0].lower()}{second[1:]}"
    calls = [(n, arguments) for n, (_, arguments) in zip(chosen, asked, strict=True)]
    return _calls(text, _list(rng, names), calls)


def _optional(rng: Random, said: bool) -> Case:
    unit = rng.choice(["celsius", "fahrenheit"])
    parameters = (Parameter("city"), Parameter("unit", '"celsius" | "fahrenheit"', optional=True))
    line = signature("get_weather", parameters, "Weather of a city.")
    rest = [TOOLS[n].tool.line() for n in rng.sample(["add", "search", "send_mail"], 2)]
    text, arguments = _weather(rng)
    if said:
        text, arguments = f"{text[:-1]} in {unit}?", {**arguments, "unit": unit}
    lines = [line, *rest]
    rng.shuffle(lines)
    return _calls(text, tool_list(lines), [("get_weather", arguments)])


def _some_result(rng: Random) -> str:
    return rng.choice(
        [
            HELD_OUT.number(rng),
            HELD_OUT.value(rng, "word"),
            f"Sunny, {rng.randint(10, 40)} degrees.",
            compact({"temperature": rng.randint(0, 99)}),
        ]
    )


def tool_result(rng: Random) -> Case:
    """The answer after an unseen tool gave its result."""
    name = rng.choice(list(TOOLS))
    text, _ = TOOLS[name].ask(rng)
    back = _some_result(rng)
    return Case(
        [text, result_text(back)], lambda a: back in a, _tool_system(rng, name, rng.randrange(3))
    )


def two_results(rng: Random) -> Case:
    """The answer after two calls gave their results, one turn after another."""
    base = two_calls(rng)
    first, second = _some_result(rng), _some_result(rng)
    said = result_text(first) + NEXT_TURN + result_text(second)
    return Case([base.turns[0], said], lambda a: first in a and second in a, base.system)


def tool_error(rng: Random) -> Case:
    """The answer after an unseen tool failed."""
    name = rng.choice(list(TOOLS))
    text, _ = TOOLS[name].ask(rng)
    why = rng.choice(
        [
            f"{HELD_OUT.value(rng, 'name')} not found",
            f"No {HELD_OUT.value(rng, 'word')} today.",
            f"code {HELD_OUT.number(rng)}",
        ]
    )
    return Case(
        [text, result_text(f"Error: {why}")],
        lambda a: why in a,
        _tool_system(rng, name, rng.randrange(3)),
    )


def fact_beside_tools(rng: Random) -> Case:
    """A fact told and asked for while tools are listed: no call."""
    base = recall(rng, 0)
    return Case(base.turns, base.right, _tool_system(rng, rng.choice(list(TOOLS)), 2))


def no_call(rng: Random) -> Case:
    """Small talk, a question off the topic, or one for a fact that was not told: no call."""
    share = rng.random()
    system = _tool_system(rng, rng.choice(list(TOOLS)), 2)
    if share < 0.3:
        return replace(nothing_told(rng), system=system)
    if share < 0.65:
        answer = rng.choice(list(words.SMALL_TALK))
        return Case([rng.choice(words.SMALL_TALK[answer])], lambda a: a == answer, system)
    while True:
        text = HELD_OUT.fill(rng, rng.choice(words.OFF_TOPIC))
        if not _NEAR_A_TOOL.search(text):
            return Case([text], lambda a: a == words.OUT, system)


_NEAR_A_TOOL = re.compile(r"\d|time|weather|rain|[Ss]earch|[Ff]ind|[Ww]rite|letter|about|Call")


def _schema_case(rng: Random) -> tuple[str, str, dict[str, Any]]:
    """A schema of three fields, a sentence, the object."""
    name, number = HELD_OUT.value(rng, "name"), rng.randint(2, 99)
    city, word = _place(rng), HELD_OUT.value(rng, "word")
    sort = rng.randrange(4)
    if sort == 0:
        line = "Person(name: string, age: integer, city: string) - A person."
        asks = [
            f"{name} is {number} years old and lives in {city}.",
            f"{name} lives in {city} and is {number}.",
            f"{name}, who lives in {city}, is {number} years old.",
        ]
        return line, rng.choice(asks), {"name": name, "age": number, "city": city}
    if sort == 1:
        year = rng.randint(1600, 2020)
        line = "Book(title: string, author: string, year: integer) - A book."
        title = word.capitalize()
        asks = [
            f"{title} was written by {name} and came out in {year}.",
            f"{title} came out in {year} and is by {name}.",
        ]
        return line, rng.choice(asks), {"title": title, "author": name, "year": year}
    if sort == 2:
        line = "Product(name: string, price: integer, colour: string) - A product."
        colour, title = HELD_OUT.value(rng, "colour"), word.capitalize()
        asks = [
            f"{title} is {colour} and costs {number}.",
            f"{title} costs {number} and is {colour}.",
        ]
        return line, rng.choice(asks), {"name": title, "price": number, "colour": colour}
    line = "Meeting(topic: string, place: string, people: integer) - A meeting."
    asks = [
        f"The meeting is about {word}, takes place in {city} and is for {number} people.",
        f"The meeting takes place in {city}, has {number} guests and is about {word}.",
    ]
    return line, rng.choice(asks), {"topic": word, "place": city, "people": number}


def schema_as_tool(rng: Random) -> Case:
    """Three fields of a sentence, by a call."""
    line, text, value = _schema_case(rng)
    return _calls(text, tool_list([line]), [(line.split("(")[0], value)])


def schema_as_answer(rng: Random) -> Case:
    """Three fields of a sentence, as the whole answer."""
    line, text, value = _schema_case(rng)
    system = f"Return only JSON: {line}"
    return Case([text], lambda a: _is_json(a, value, fenced=False), system)


def keys_asked_for(rng: Random) -> Case:
    """Three fields of a sentence, with the keys that the user names."""
    _, text, value = _schema_case(rng)
    a, b, c = rng.sample(list(value), 3)
    end = rng.choice(
        [
            f"Return the result as a JSON with the `{a}`, `{b}` and `{c}` keys.",
            f"Return JSON with the keys {a}, {b} and {c}.",
        ]
    )
    return Case([f"{text} {end}"], lambda x: _is_json(x, value, fenced=False))


def suite() -> dict[str, Callable[[Random], Case]]:
    """Everything that is measured, by name."""
    out: dict[str, Callable[[Random], Case]] = {}
    for d in DISTANCES:
        out[f"one fact after {d} other turns"] = partial(recall, distance=d)
    out["usual words (seen in training) after 8 other turns"] = partial(
        recall, distance=8, usual=True
    )
    out["the right one of four facts"] = one_of_four
    out["a fact corrected"] = correction
    out["not told, among others told"] = unknown
    out["not told, nothing told"] = nothing_told
    out["own name from the system prompt"] = persona
    out["manner of speech on a recalled fact"] = manner
    for n in TOOLS:
        out[f"unseen tool {n}, alone"] = partial(tool_call, name=n, others=0)
    out["unseen tool among three"] = one_of_three
    out["unseen tool among three, two of a kind"] = one_of_twins
    out["made-up tool among three of any kind"] = made_up_tools
    out["two calls in one answer"] = two_calls
    out["an enum argument said"] = partial(_optional, said=True)
    out["an optional argument left out"] = partial(_optional, said=False)
    out["result of an unseen tool used"] = tool_result
    out["two results used"] = two_results
    out["error of an unseen tool told"] = tool_error
    out["no call: fact recalled while tools are listed"] = fact_beside_tools
    out["no call: talk and unknown questions while tools are listed"] = no_call
    out["schema of three fields, as a tool"] = schema_as_tool
    out["schema of three fields, as the answer"] = schema_as_answer
    out["three keys asked for by the user"] = keys_asked_for
    return out
