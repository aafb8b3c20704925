"""Holds the conversations of `benchmarks.recall` with the demo model, and judges its answers.

Each case is a small conversation on values that training never drew; it is free-running, so the
model lives with what it answered before. Nothing is averaged here. A question is asked from a fork
of the conversation's state, so that one conversation gives every distance and no question helps the
next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from langchain_core.messages import (
    ToolMessage,
)

from benchmarks import values
from examples.demo_training import words
from langchain_rwkv_state.prompt.answer_message import read_answer
from langchain_rwkv_state.prompt.tools import ToolFormat
from langchain_rwkv_state.toolbox.recall.talk import Talk, Talks
from langchain_rwkv_state.toolbox.recall.values import FACTS, KINDS, holds, number
from langchain_rwkv_state.toolbox.recall.values import other_turn as anything_else

DISTANCES = (0, 4, 8, 16, 30)
FAR = (45, 64)
_FORMAT = ToolFormat()
"""Distances that have no target: they show where memory ends."""
OTHER_WORDS = {
    "name": [("I'm {v}", "who am I?"), ("call me {v}", "do you remember my name?")],
    "city": [
        ("i live in {v}", "where do i live"),
        ("My home is in {v}", "Which city do I live in?"),
    ],
    "pet": [("I have a pet called {v}.", "what is my pet's name?")],
    "number": [("my lucky number is {v}", "Tell me my lucky number.")],
    "colour": [("My favorite color is {v}.", "what's my favorite color?")],
    "food": [("my favorite food is {v}", "Do you know my favourite food?")],
}
_PROSE = [
    *("", "You are a helpful assistant.", "Answer in short sentences.", "Be kind and brief."),
    "You help people who visit our web page. The conversation may be long, so keep in mind what "
    "they tell you, and give it back when they ask for it.",
]


@dataclass(frozen=True)
class Outcome:
    """One question's result.

    Attributes:
        row: The row of the table that it counts in.
        right: Whether the answer is right.
        note: The question's answer, and what was expected, for looking at misses.
    """

    row: str
    right: bool
    note: str = ""


def other_turn(rng: Random, fact: str | None = None) -> str:
    """Returns something else to say; see `toolbox.recall.values.other_turn`."""
    return anything_else(rng, fact, values.value)


def _miss(asked: str, answer: str, wanted: str) -> str:
    return f"{asked} -> {answer!r}, wanted {wanted!r}"


def fact_at_distances(
    talks: Talks, rng: Random, kind: str, distances: Sequence[int]
) -> Iterator[Outcome]:
    """Asks for a fact after so many other turns; beside it, on the transcript and a zero state."""
    tell, question = FACTS[kind]
    value = values.value(rng, kind)
    talk = talks.begin("recall")
    talk.say(tell.format(v=value))
    for turn in range(max(distances) + 1):
        if turn in distances:
            answer, control = talk.ask(question), talk.replay(question)
            note = _miss(question, answer, value)
            yield Outcome(f"fact after {turn}", holds(answer, value), note)
            yield Outcome(f"replay after {turn}", holds(control, value), note)
            yield Outcome(f"same answer after {turn}", answer == control, f"{answer!r} {control!r}")
        talk.say(other_turn(rng, kind))
    fresh = talks.begin("fresh").ask(question)
    yield Outcome("zero state does not know", not holds(fresh, value), _miss(question, fresh, ""))
    yield Outcome("zero state says so", _says_unknown(fresh), _miss(question, fresh, "don't know"))


def far_fact(talks: Talks, rng: Random, kind: str) -> Iterator[Outcome]:
    """Asks for a fact after more turns than have a target."""
    tell, question = FACTS[kind]
    value = values.value(rng, kind)
    talk = talks.begin("far")
    talk.say(tell.format(v=value))
    for turn in range(max(FAR) + 1):
        if turn in FAR:
            answer = talk.ask(question)
            yield Outcome(
                f"fact after {turn}", holds(answer, value), _miss(question, answer, value)
            )
        talk.say(other_turn(rng, kind))


def one_of_four(talks: Talks, rng: Random, kind: str) -> Iterator[Outcome]:
    """Tells four facts at once, and asks for one of them."""
    kinds = [kind, *rng.sample([k for k in KINDS if k != kind], 3)]
    told: dict[str, str] = {}
    for each in kinds:
        told[each] = values.other_value(rng, each, *told.values())
    talk = talks.begin("four")
    for each in rng.sample(kinds, 4):
        talk.say(FACTS[each][0].format(v=told[each]))
        if rng.random() < 0.3:
            talk.say(other_turn(rng))
    question = FACTS[kind][1]
    answer = talk.ask(question)
    others = [value for each, value in told.items() if each != kind]
    right = holds(answer, told[kind]) and not any(holds(answer, value) for value in others)
    yield Outcome("one of four", right, _miss(question, answer, told[kind]))


def correction(talks: Talks, rng: Random, kind: str) -> Iterator[Outcome]:
    """Tells a fact, then tells it otherwise."""
    tell, question = FACTS[kind]
    old = values.value(rng, kind)
    new = values.other_value(rng, kind, old)
    talk = talks.begin("correction")
    talk.say(tell.format(v=old))
    _others(talk, rng, 2)
    again = tell.format(v=new)
    plain = again if again.startswith("I ") else again[0].lower() + again[1:]
    talk.say(rng.choice(["Actually, ", "No, ", "Sorry, ", "Wait, "]) + plain)
    _others(talk, rng, 2)
    answer = talk.ask(question)
    right = holds(answer, new) and not holds(answer, old)
    yield Outcome("correction", right, _miss(question, answer, f"{new}, not {old}"))


def given_name(talks: Talks, rng: Random, _: str) -> Iterator[Outcome]:
    """Asks for the assistant's own name, given by the system prompt."""
    name = values.value(rng, "name")
    form = rng.choice(
        [
            "Your name is {v}.",
            "You are {v}, a helpful assistant.",
            "You are an assistant called {v}.",
        ]
    )
    system = " ".join(part for part in (form.format(v=name), rng.choice(_PROSE)) if part)
    talk = talks.begin("name", system)
    _others(talk, rng, 3)
    question = "What is your name?"
    answer = talk.ask(question)
    yield Outcome("name from system prompt", holds(answer, name), _miss(question, answer, name))


def manner(talks: Talks, rng: Random, kind: str) -> Iterator[Outcome]:
    """Expects a manner of speech that the system prompt asked for, for three turns."""
    prefix, suffix, asks = rng.choice(words.MANNERS)
    yield _speaks(talks, rng, kind, rng.choice(asks), prefix, suffix, "manner from system prompt")


def given_word(talks: Talks, rng: Random, kind: str) -> Iterator[Outcome]:
    """Expects every answer to begin or end with a word never seen."""
    word = values.value(rng, "name")
    prefix, suffix, verb = rng.choice([(f"{word}! ", "", "Begin"), ("", f" {word}!", "End")])
    asks = f"{verb} every answer with {word}."
    yield _speaks(talks, rng, kind, asks, prefix, suffix, "given word in every answer")


def _speaks(
    talks: Talks, rng: Random, kind: str, asks: str, prefix: str, suffix: str, row: str
) -> Outcome:
    tell, question = FACTS[kind]
    value = values.value(rng, kind)
    talk = talks.begin("manner", asks)
    answers = [talk.say(text) for text in (other_turn(rng), tell.format(v=value), question)]
    right = all(a.startswith(prefix) and a.endswith(suffix) for a in answers)
    right = right and holds(answers[-1].removeprefix(prefix), value)
    return Outcome(row, right, f"{asks} -> {answers!r}, wanted {value!r}")


def unknown(talks: Talks, rng: Random, kind: str) -> Iterator[Outcome]:
    """Asks for what was not told, with other facts told or none."""
    talk = talks.begin("unknown")
    told = []
    for other in rng.sample([k for k in KINDS if k != kind], rng.randint(0, 3)):
        told.append(values.value(rng, other))
        talk.say(FACTS[other][0].format(v=told[-1]))
    _others(talk, rng, 2)
    question = FACTS[kind][1]
    answer = talk.ask(question)
    right = _says_unknown(answer) and not any(holds(answer, value) for value in told)
    yield Outcome("says it does not know", right, _miss(question, answer, "don't know"))


def other_words(talks: Talks, rng: Random, kind: str) -> Iterator[Outcome]:
    """Tells a fact in other words than the usual ones, in small letters, without a full stop."""
    tell, question = rng.choice(OTHER_WORDS[kind])
    value = values.value(rng, kind)
    talk = talks.begin("wording")
    talk.say(tell.format(v=value))
    _others(talk, rng, 4)
    answer = talk.ask(question)
    yield Outcome("other wordings", holds(answer, value), _miss(question, answer, value))


def letters(talks: Talks, rng: Random, _: str) -> Iterator[Outcome]:
    """Tells a name of random letters, and one with letters that training never had."""
    rows = (
        ("random letters", values.letters(rng).capitalize()),
        ("beyond ASCII", values.accented(rng)),
    )
    for row, value in rows:
        talk = talks.begin(row)
        talk.say(FACTS["name"][0].format(v=value))
        answer = talk.ask(FACTS["name"][1])
        yield Outcome(row, holds(answer, value), _miss("name", answer, value))


def tool_call(talks: Talks, rng: Random, _: str) -> Iterator[Outcome]:
    """Asks what needs the one tool that is listed, and the use of what comes back."""
    wanted = rng.choice(list(TOOLS))
    yield from _calls(talks, rng, wanted, [], ("tool call", f"tool call: {wanted}"))


def tool_choice(talks: Talks, rng: Random, _: str) -> Iterator[Outcome]:
    """Asks what needs one of two or three listed tools."""
    wanted, *others = rng.sample(list(TOOLS), rng.randint(2, 3))
    yield from _calls(talks, rng, wanted, others, (f"right one of {1 + len(others)} tools called",))


def _calls(
    talks: Talks, rng: Random, wanted: str, others: Sequence[str], rows: Sequence[str]
) -> Iterator[Outcome]:
    tool, question, arguments = TOOLS[wanted](rng)
    listed = [tool, *(TOOLS[other](rng)[0] for other in others)]
    rng.shuffle(listed)
    prose = rng.choice(["", "You are a helpful assistant.", "Use the tools when they help."])
    talk = talks.begin("tools", _system(prose, listed))
    answer = talk.say(question)
    call = (tool["name"], arguments)
    right = read_answer(answer, _FORMAT).calls == (call,)
    for row in rows:
        yield Outcome(row, right, _miss(question, answer, _FORMAT.calls([call])))
    if right:
        result = rng.choice([number(rng), values.made_up(rng), "Sunny, 21 degrees."])
        used = talk.say(ToolMessage(result, tool_call_id="1"))
        yield Outcome("tool result used", result in used, _miss("result", used, result))


def no_tool(talks: Talks, rng: Random, kind: str) -> Iterator[Outcome]:
    """Tells and asks for a fact while tools are listed: no call is wanted."""
    listed = [TOOLS[name](rng)[0] for name in rng.sample(list(TOOLS), 2)]
    talk = talks.begin("no tools", _system("", listed))
    tell, question = FACTS[kind]
    value = values.value(rng, kind)
    talk.say(tell.format(v=value))
    answer = talk.ask(question)
    right = holds(answer, value) and not read_answer(answer, _FORMAT).calls
    yield Outcome("no call where none is needed", right, _miss(question, answer, value))


def _others(talk: Talk, rng: Random, most: int) -> None:
    for _ in range(rng.randint(0, most)):
        talk.say(other_turn(rng))


def _says_unknown(answer: str) -> bool:
    return "don't know" in answer or "do not know" in answer


def _system(prose: str, tools: Sequence[dict[str, Any]]) -> str:
    return "\n".join(part for part in (prose, _FORMAT.listing(tools)) if part)


# -- tools that training never saw ---------------------------------------------------------------

Case = tuple[dict[str, Any], str, dict[str, Any]]
"""A tool's schema, a question that needs it, and the arguments that its call must have."""


def _schema(name: str, description: str, **parameters: str) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"name": name, "description": description, "parameters": schema}


def _weather(rng: Random) -> Case:
    city = values.value(rng, "city")
    form = rng.choice(["What is the weather in {v}?", "How is the weather in {v}?"])
    tool = _schema("get_weather", "Get the weather in a city.", city="string")
    return tool, form.format(v=city), {"city": city}


def _time(rng: Random) -> Case:
    city = values.value(rng, "city")
    form = rng.choice(["What time is it in {v}?", "What is the time in {v}?"])
    tool = _schema("get_time", "Get the time in a city.", city="string")
    return tool, form.format(v=city), {"city": city}


def _add(rng: Random) -> Case:
    a, b = (int(number(rng)) for _ in "ab")
    form = rng.choice(["What is {a} plus {b}?", "Add {a} and {b}."])
    tool = _schema("add", "Add two numbers.", a="integer", b="integer")
    return tool, form.format(a=a, b=b), {"a": a, "b": b}


def _multiply(rng: Random) -> Case:
    a, b = (int(number(rng)) for _ in "ab")
    form = rng.choice(["What is {a} times {b}?", "Multiply {a} by {b}."])
    tool = _schema("multiply", "Multiply two numbers.", a="integer", b="integer")
    return tool, form.format(a=a, b=b), {"a": a, "b": b}


def _search(rng: Random) -> Case:
    text = " ".join(values.value(rng, rng.choice(["food", "colour"])) for _ in range(2))
    tool = _schema("search", "Search the web.", query="string")
    return tool, f"Search for {text}.", {"query": text}


def _mail(rng: Random) -> Case:
    name, text = values.value(rng, "name"), values.value(rng, "food")
    tool = _schema("send_mail", "Send a mail.", to="string", text="string")
    return tool, f"Send a mail to {name} saying {text}.", {"to": name, "text": text}


def _look_up(rng: Random) -> Case:
    noun, name = values.made_up(rng), values.value(rng, "name")
    tool = _schema(f"get_{noun}", f"Get the {noun} of a person.", person="string")
    return tool, f"What is the {noun} of {name}?", {"person": name}


def _combine(rng: Random) -> Case:
    verb = values.made_up(rng)
    x, y = (int(number(rng)) for _ in "xy")
    tool = _schema(verb, f"{verb.capitalize()} two numbers.", x="integer", y="integer")
    return tool, f"{verb.capitalize()} {x} and {y}.", {"x": x, "y": y}


TOOLS: dict[str, Callable[[Random], Case]] = {
    "weather": _weather,
    "time": _time,
    "add": _add,
    "multiply": _multiply,
    "search": _search,
    "mail": _mail,
    "look up (made-up name)": _look_up,
    "combine (made-up name)": _combine,
}
