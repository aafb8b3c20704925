"""What the demo model is asked in the evaluation: unseen values, unseen tools, and what is right.

Conversations only; how a model plays them is in `evaluate`. The easy mistake is to accept an answer
that merely holds the value: here it must be the whole expected answer, to the letter.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from . import facts, tools, words
from .dialogue import Dialogue
from .inventory import Inventory

HELD_OUT = Inventory(held_out=True)
DISTANCES = (0, 4, 8, 16, 30)
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

    turns: list[tuple[str, str]]  # speaker and text
    right: Callable[[str], bool]
    system: str = ""
    answers: list[str] = field(default_factory=list)


def _fillers(rng: Random, count: int, taken: str) -> list[tuple[str, str]]:
    """Other turns: small talk, matters off the topic, other facts told and asked for."""
    dialogue = Dialogue(rng, HELD_OUT, 0, plain=True)
    out: list[tuple[str, str]] = []
    while len(out) < count:
        share = rng.random()
        if share < 0.75:
            out.append(("User", dialogue.chat().text))
        elif share < 0.88 or not dialogue.known:
            fact = facts.any_fact(rng)
            if fact.key != taken and fact.key not in dialogue.known:
                value = HELD_OUT.value(rng, fact.kind)
                dialogue.known[fact.key] = (fact, value)
                out.append(("User", facts.state(rng, fact, value)))
        else:
            out.append(("User", dialogue.ask().text))
    return out


def recall(rng: Random, distance: int, *, usual: bool = False) -> Case:
    """One of the six facts after so many other turns, of unseen words or of usual ones."""
    key = rng.choice(facts.MAIN_KEYS)
    fact = facts.main_fact(rng, key)
    if usual and key in USUAL_WORDS:
        value = rng.choice(USUAL_WORDS[key])
    else:
        value = HELD_OUT.value(rng, fact.kind)
    turns = [("User", facts.state(rng, fact, value)), *_fillers(rng, distance, key)]
    expected = fact.answer.replace("{v}", value)
    return Case([*turns, ("User", facts.ask(rng, fact))], lambda a: a == expected)


def one_of_four(rng: Random) -> Case:
    """Four facts told, one asked for."""
    chosen = [facts.main_fact(rng, k) for k in rng.sample(facts.MAIN_KEYS, 4)]
    values = [HELD_OUT.value(rng, f.kind) for f in chosen]
    turns = [("User", facts.state(rng, f, v)) for f, v in zip(chosen, values, strict=True)]
    i = rng.randrange(4)
    expected = chosen[i].answer.replace("{v}", values[i])
    return Case([*turns, ("User", facts.ask(rng, chosen[i]))], lambda a: a == expected)


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
    turns = [("User", facts.state(rng, fact, old)), *_fillers(rng, 2, key), ("User", text)]
    expected = fact.answer.replace("{v}", new)
    turns += [*_fillers(rng, 2, key), ("User", facts.ask(rng, fact))]
    return Case(turns, lambda a: a == expected)


def unknown(rng: Random) -> Case:
    """Three facts told, a fourth asked for."""
    chosen = [facts.main_fact(rng, k) for k in rng.sample(facts.MAIN_KEYS, 4)]
    turns = [("User", facts.state(rng, f, HELD_OUT.value(rng, f.kind))) for f in chosen[:3]]
    turns.append(("User", facts.ask(rng, chosen[3])))
    return Case(turns, lambda a: a == chosen[3].unknown)


def nothing_told(rng: Random) -> Case:
    """A question for a fact as the first turn."""
    fact = facts.main_fact(rng, rng.choice(facts.MAIN_KEYS))
    return Case([("User", facts.ask(rng, fact))], lambda a: a == fact.unknown)


def persona(rng: Random) -> Case:
    """The assistant's own name, given by the system prompt, two turns later."""
    value = HELD_OUT.value(rng, "name")
    system = rng.choice(words.PERSONA).replace("{v}", value)
    turns = [*_fillers(rng, 2, ""), ("User", rng.choice(words.PERSONA_QUESTIONS))]
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


Held = tuple[tools.Tool, Callable[[Random], tuple[str, dict[str, tools.Value]]]]


def _held_out_tools() -> dict[str, Held]:
    def number(rng: Random) -> int:
        return int(HELD_OUT.number(rng))

    def place(rng: Random) -> str:
        return HELD_OUT.value(rng, "city")

    def add(rng: Random) -> tuple[str, dict[str, tools.Value]]:
        a, b = number(rng), number(rng)
        return rng.choice([f"What is {a} plus {b}?", f"Add {a} and {b}."]), {"a": a, "b": b}

    def multiply(rng: Random) -> tuple[str, dict[str, tools.Value]]:
        a, b = number(rng), number(rng)
        return rng.choice([f"What is {a} times {b}?", f"Multiply {a} and {b}."]), {"a": a, "b": b}

    def weather(rng: Random) -> tuple[str, dict[str, tools.Value]]:
        city = place(rng)
        asks = [f"What is the weather in {city}?", f"How is the weather in {city}?"]
        return rng.choice(asks), {"city": city}

    def clock(rng: Random) -> tuple[str, dict[str, tools.Value]]:
        city = place(rng)
        return f"What is the time in {city}?", {"city": city}

    def search(rng: Random) -> tuple[str, dict[str, tools.Value]]:
        query = HELD_OUT.phrase(rng, 2)
        return f"Search for {query}.", {"query": query}

    def mail(rng: Random) -> tuple[str, dict[str, tools.Value]]:
        name, text = HELD_OUT.value(rng, "name"), HELD_OUT.phrase(rng, 2)
        return f"Send a mail to {name} saying {text}.", {"to": name, "text": text}

    def tool(name: str, kind: str, parameters: str, description: str) -> tools.Tool:
        pairs = [p.split(": ") for p in parameters.split(", ")]
        return tools.Tool(name, kind, tuple((p[0], p[1]) for p in pairs), description, name)

    return {
        "add": (tool("add", "pair", "a: integer, b: integer", "Add two numbers."), add),
        "multiply": (
            tool("multiply", "pair", "a: integer, b: integer", "Multiply two numbers."),
            multiply,
        ),
        "get_weather": (tool("get_weather", "noun", "city: string", "Weather of a city."), weather),
        "get_time": (tool("get_time", "noun", "city: string", "Time in a city."), clock),
        "search": (tool("search", "seek", "query: string", "Search the web."), search),
        "send_mail": (tool("send_mail", "send", "to: string, text: string", "Send a mail."), mail),
    }


TOOLS = _held_out_tools()


def _tool_system(rng: Random, name: str, others: int) -> str:
    rest = [n for n in TOOLS if n != name]
    chosen = [name, *rng.sample(rest, others)]
    rng.shuffle(chosen)
    return "\n".join(["Tools:", *(TOOLS[n][0].line() for n in chosen)])


def tool_call(rng: Random, name: str, others: int) -> Case:
    """A question that needs an unseen tool, with some other unseen tools listed."""
    text, arguments = TOOLS[name][1](rng)
    call = {"name": name, "arguments": arguments}

    def right(answer: str) -> bool:
        try:
            return bool(json.loads(answer) == call)
        except json.JSONDecodeError:
            return False

    return Case([("User", text)], right, _tool_system(rng, name, others))


def one_of_three(rng: Random) -> Case:
    """A question that needs one of three unseen tools."""
    return tool_call(rng, rng.choice(list(TOOLS)), 2)


def tool_result(rng: Random) -> Case:
    """The answer after an unseen tool gave its result."""
    name = rng.choice(list(TOOLS))
    text, _ = TOOLS[name][1](rng)
    back = rng.choice(
        [
            HELD_OUT.number(rng),
            HELD_OUT.value(rng, "word"),
            f"Sunny, {rng.randint(10, 40)} degrees.",
        ]
    )
    return Case(
        [("User", text), ("Tool", back)],
        lambda a: back in a,
        _tool_system(rng, name, rng.randrange(3)),
    )


def no_call(rng: Random) -> Case:
    """A fact told and asked for while tools are listed: no call."""
    base = recall(rng, 0)
    return Case(
        base.turns, base.right, _tool_system(rng, rng.choice(list(TOOLS)), rng.randrange(3))
    )


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
    out["result of an unseen tool used"] = tool_result
    out["fact recalled while tools are listed"] = no_call
    return out
