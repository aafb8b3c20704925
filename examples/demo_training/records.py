"""Made-up schemas, sentences that hold what they ask for, and the objects: structured output.

Do not say the fields in the schema's order: then a model counts instead of reading.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from . import words
from .inventory import Inventory
from .parameters import enumerated, foreign
from .signature import Parameter, signature

Value = Any


@dataclass(frozen=True)
class Field:
    """One thing that may be known of somebody or something.

    Attributes:
        names: What a schema may call it.
        type: The type of its values.
        make: Makes a value.
        third: How it is said of somebody, behind the subject, with {v}.
        first: How it is said of oneself, with {v}; none where nobody would.
        description: What a schema may say of it.
    """

    names: list[str]
    type: str
    make: Callable[[Random, Inventory], Value]
    third: list[str]
    first: list[str]
    description: str


def _names(text: str) -> list[str]:
    return text.split()


def _of(kind: str) -> Callable[[Random, Inventory], Value]:
    return lambda rng, inventory: inventory.value(rng, kind)


def _between(low: int, high: int) -> Callable[[Random, Inventory], Value]:
    return lambda rng, _: rng.randint(low, high)


def _several(kind: str) -> Callable[[Random, Inventory], Value]:
    def make(rng: Random, inventory: Inventory) -> Value:
        return [inventory.value(rng, kind).lower() for _ in range(rng.randint(1, 3))]

    return make


def _one_of(*options: str) -> Callable[[Random, Inventory], Value]:
    return lambda rng, _: rng.choice(options)


def _text(names: str, kind: str, third: str, first: str = "", description: str = "") -> Field:
    return Field(
        _names(names), "string", _of(kind), words.phrases(third),
        words.phrases(first) if first else [], description,
    )  # fmt: skip


def _number(
    names: str, low: int, high: int, third: str, first: str = "", description: str = ""
) -> Field:
    return Field(
        _names(names), "integer", _between(low, high), words.phrases(third),
        words.phrases(first) if first else [], description,
    )  # fmt: skip


PEOPLE = [
    _number("age age age years age_years", 3, 99,
            "is {v} years old | is {v} | is {v} years old | is aged {v} | turned {v}",
            "I am {v} years old | I am {v} | I'm {v}", "age in years"),
    _text("city city city town home location residence", "city",
          "lives in {v} | lives in {v} | is from {v} | comes from {v} | has a house in {v}",
          "I live in {v} | I am from {v}", "where they live"),
    _text("job job profession occupation role work", "job",
          "works as a {v} | is a {v} | has the job of a {v}", "I work as a {v} | I am a {v}",
          "what they do"),
    _text("food favourite_food dish meal", "food",
          "likes {v} | loves {v} | likes to eat {v}", "I like {v} | I love {v}", "what they eat"),
    _text("pet pet_name animal", "pet", "has a pet called {v} | has a pet named {v}",
          "I have a pet called {v}", "name of the pet"),
    _text("colour favourite_colour color", "colour", "loves the colour {v} | wears {v}",
          "I love the colour {v}", "the colour"),
    _text("friend partner spouse", "name", "has a friend called {v} | is married to {v}",
          "I have a friend called {v}", "a friend"),
    _text("employer company firm", "word", "works for {v} | works at {v}", "I work for {v}",
          "where they work"),
    _number("children kids child_count", 1, 9, "has {v} children | has {v} kids",
            "I have {v} children", "number of children"),
    _number("number lucky_number", 1, 999, "has the number {v} | has the lucky number {v}",
            "my lucky number is {v}", "a number"),
    _number("height height_cm", 90, 220, "is {v} cm tall | is {v} centimetres tall",
            "I am {v} cm tall", "height in cm"),
    Field(["hobbies", "likes", "interests"], "string[]", _several("word"),
          ["is fond of {v}", "collects {v}"], ["I collect {v}"], "what they like"),
]  # fmt: skip
THINGS = [
    _number("price price cost price_eur", 1, 9999,
            "costs {v} | costs {v} euros | costs {v} dollars | is sold for {v}",
            description="price in euros"),
    _number("weight weight_kg mass", 1, 999, "weighs {v} | weighs {v} kg", description="in kg"),
    _number("quantity stock count in_stock", 1, 500, "is in stock {v} times | is there {v} times",
            description="how many"),
    _text("colour color finish", "colour", "is {v} | comes in {v} | is painted {v}"),
    _text("maker brand producer manufacturer", "name", "is made by {v} | is built by {v}"),
    _text("origin country made_in place", "city", "is made in {v} | comes from {v}"),
    _text("material stuff", "word", "is made of {v} | consists of {v}"),
    _text("category kind group", "word", "belongs to the {v} group | is a sort of {v}"),
]  # fmt: skip
EVENTS = [
    _text("place city venue location where", "city", "takes place in {v} | is in {v}"),
    Field(["day", "weekday", "when", "date"], "string",
          _one_of("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
          ["is on {v}", "takes place on {v}"], [], "day of the week"),
    _number("people guests attendees seats", 2, 500, "has {v} guests | is for {v} people"),
    _text("host organiser speaker", "name", "is hosted by {v} | is led by {v}"),
    _number("hours duration length", 1, 12, "lasts {v} hours | takes {v} hours"),
    _text("subject topic theme", "word", "is about {v} | deals with {v}"),
]  # fmt: skip
BOOKS = [
    _text("author writer written_by", "name", "was written by {v} | is by {v}"),
    _number("year published year_published", 1500, 2030, "came out in {v} | is from {v}"),
    _number("pages page_count", 10, 1500, "has {v} pages | is {v} pages long"),
    _text("subject topic about", "word", "is about {v} | tells of {v}"),
    _text("language tongue", "word", "is written in {v} | was published in {v}"),
    _text("publisher house", "word", "was published by {v} | is sold by {v}"),
]  # fmt: skip

SUBJECTS: dict[str, tuple[list[str], str, list[Field], list[str], list[str]]] = {
    "person": (
        _names("name name name full_name first_name who called"),
        "name",
        PEOPLE,
        _names(
            "Someone Human Visitor Guest Member Student Contact user_info Profile Patient"
            " human_being Employee"
        ),
        ["She", "He", "They"],
    ),
    "thing": (
        _names("name name product item title article"),
        "word",
        THINGS,
        _names("Item Article Goods thing_info StockItem Ware Gadget"),
        ["It"],
    ),
    "event": (
        _names("title name event what"),
        "word",
        EVENTS,
        _names("Event Party Gathering event_info CalendarEntry Concert"),
        ["It"],
    ),
    "book": (
        _names("title title name book work"),
        "pet",
        BOOKS,
        _names("Novel Volume book_info Publication Text Paper"),
        ["It"],
    ),
}
"""By sort: names of the subject's field, kind of its value, fields, schema names, pronouns."""


@dataclass(frozen=True)
class Schema:
    """A schema and how it is filled.

    Attributes:
        name: Its title.
        fields: The parameters, in order, each with the field it asks for; None is the subject.
        description: One line, may be empty.
        sort: A key of `SUBJECTS`, or "free" or "joke".
    """

    name: str
    fields: tuple[tuple[Parameter, Field | None], ...]
    description: str
    sort: str

    def line(self) -> str:
        """The schema as a line of the system prompt."""
        return signature(self.name, tuple(p for p, _ in self.fields), self.description)


@dataclass(frozen=True)
class Filled:
    """A sentence and the object that it fills."""

    text: str
    value: dict[str, Value]


def make_schema(rng: Random, inventory: Inventory) -> Schema:
    """A schema that is not the evaluation's."""
    share = rng.random()
    if share < 0.07:
        return _joke_schema(rng, inventory)
    if share < 0.3:
        return _free_schema(rng, inventory)
    sort = rng.choices(list(SUBJECTS), [5, 2, 2, 2])[0]
    subject, _, others, titles, _ = SUBJECTS[sort]
    chosen = rng.sample(others, rng.choices([1, 2, 3, 4], [25, 45, 20, 10])[0])
    fields: list[tuple[Parameter, Field | None]] = [(Parameter(rng.choice(subject)), None)]
    for f in chosen:
        name = rng.choice(f.names)
        if all(p.name != name for p, _ in fields):
            fields.append((_parameter(rng, name, f), f))
    if rng.random() < 0.25:
        rng.shuffle(fields)
    style = rng.random()
    if style < 0.08:
        fields = [(_renamed(p, camel=True), f) for p, f in fields]
    elif style < 0.12:
        fields = [(_renamed(p, camel=False), f) for p, f in fields]
    name = rng.choice([*titles, *titles, inventory.made_up(rng).capitalize()])
    plain = name.replace("_", " ").lower()
    description = rng.choice(
        [f"A {plain}.", f"A {plain}.", f"Information about a {plain}.",
         f"{plain.capitalize()} to keep.",
         ""]
    )  # fmt: skip
    return Schema(name, tuple(fields), description, sort)


def _parameter(rng: Random, name: str, field: Field) -> Parameter:
    optional = rng.random() < 0.15
    kind = field.type
    if optional and rng.random() < 0.5:
        kind += " | null"
    said = field.description if rng.random() < 0.2 else ""
    return Parameter(name, kind, optional, said)


def _renamed(parameter: Parameter, *, camel: bool) -> Parameter:
    first, *rest = parameter.name.split("_")
    name = "".join([first if camel else first.capitalize(), *(w.capitalize() for w in rest)])
    return Parameter(name, parameter.type, parameter.optional, parameter.description)


def fill(rng: Random, inventory: Inventory, schema: Schema) -> Filled:
    """A sentence that says what the schema asks for, and the object."""
    if schema.sort == "joke":
        return _fill_joke(rng, inventory, schema)
    if schema.sort == "free":
        return _fill_free(rng, inventory, schema)
    _, _, others, _, pronouns = SUBJECTS[schema.sort]
    subject = _subject(rng, inventory, schema.sort)
    value: dict[str, Value] = {}
    said: list[tuple[Field, Value]] = []
    for p, f in schema.fields:
        if f is None:
            value[p.name] = subject
        elif not p.optional or rng.random() < 0.6:
            value[p.name] = f.make(rng, inventory)
            said.append((f, value[p.name]))
    mine = [f for _, f in schema.fields]
    if rng.random() < 0.2:
        extra = rng.choice([f for f in others if f not in mine])
        said.append((extra, extra.make(rng, inventory)))
    rng.shuffle(said)
    own = schema.sort == "person" and all(f.first for f, _ in said) and rng.random() < 0.25
    text = _own_words(rng, subject, said) if own else _third(rng, subject, said, pronouns)
    lead = rng.random()
    if lead < 0.15:
        text = rng.choice(_LEADS).replace("{s}", schema.sort) + text
    elif lead < 0.2:
        text = f"{text} Extract the {schema.sort}."
    return Filled(text, value)


def _subject(rng: Random, inventory: Inventory, sort: str) -> str:
    subject = inventory.value(rng, SUBJECTS[sort][1])
    if sort != "person":
        subject = subject.capitalize()
    if sort == "book" and rng.random() < 0.4:
        subject = f"The {inventory.value(rng, 'word').capitalize()}"
    if sort == "person" and rng.random() < 0.2:
        subject = f"{subject} {inventory.value(rng, 'name')}"
    return foreign(rng) if rng.random() < 0.04 else subject


_LEADS = ["Extract the {s}: ", "Get the data: ", "Note this: ", "Here is a {s}: ", "Please parse: "]
_LEADS += ["Fill it in: ", "Extract: ", "Describe the {s}. "]


def _said(rng: Random, ways: list[str], value: Value) -> str:
    shown = enumerated(value) if isinstance(value, list) else str(value)
    return rng.choice(ways).replace("{v}", shown)


def _third(rng: Random, subject: str, said: list[tuple[Field, Value]], pronouns: list[str]) -> str:
    clauses = [_said(rng, f.third, v) for f, v in said]
    if not clauses:
        return rng.choice([f"This is {subject}.", f"I saw {subject}.", f"{subject} is here."])
    share = rng.random()
    if share < 0.25 and len(clauses) > 1:
        pronoun = rng.choice(pronouns)
        split = rng.randint(1, len(clauses) - 1)
        first, second = _joined(rng, clauses[:split]), _joined(rng, clauses[split:])
        if pronoun != "They":
            return f"{subject} {first}. {pronoun} {second}."
    if share < 0.4:
        return (
            f"{rng.choice(['I know', 'This is', 'I met'])} {subject}, who {_joined(rng, clauses)}."
        )
    return f"{subject} {_joined(rng, clauses)}."


def _joined(rng: Random, clauses: list[str]) -> str:
    if len(clauses) == 1:
        return clauses[0]
    last = rng.choice([" and ", " and ", ", and ", ", "])
    return ", ".join(clauses[:-1]) + last + clauses[-1]


def _own_words(rng: Random, subject: str, said: list[tuple[Field, Value]]) -> str:
    lead = rng.choice([f"My name is {subject}", f"I am {subject}", f"I'm {subject}"])
    clauses = [lead, *(_said(rng, f.first, v) for f, v in said)]
    if rng.random() < 0.3:
        return ". ".join(c[0].upper() + c[1:] for c in clauses) + "."
    return _joined(rng, clauses) + "."


# Fields of any name: "The shelf is quick, its zone 12." -------------------------------------------


def _free_schema(rng: Random, inventory: Inventory) -> Schema:
    fields: list[tuple[Parameter, Field | None]] = []
    for _ in range(rng.choice([1, 2, 3, 3, 4])):
        nouns = words.TOOL_NOUNS + words.TOOL_PARAMS + ["name", "age", "city", "year"] * 3
        nouns = rng.choice([nouns, words.COMMON_NOUNS])
        name = inventory.made_up(rng) if rng.random() < 0.4 else rng.choice(nouns).replace(" ", "_")
        kind = rng.choice(["string", "string", "integer", "integer", "boolean", "number", "enum"])
        options = [inventory.value(rng, "word").lower() for _ in range(rng.randint(2, 4))]
        make: dict[str, Callable[[Random, Inventory], Value]] = {
            "string": _of(rng.choice(["name", "word", "city", "pet"])),
            "integer": lambda r, i: int(i.number(r)),
            "number": lambda r, _: r.randint(1, 9999) / 100,
            "boolean": lambda r, _: r.random() < 0.5,
            "enum": _one_of(*options),
        }
        shown = " | ".join(f'"{o}"' for o in options) if kind == "enum" else kind
        if all(p.name != name for p, _ in fields):
            field = Field([name], shown, make[kind], [], [], f"the {name}")
            fields.append((_parameter(rng, name, field), field))
    name = inventory.made_up(rng).capitalize()
    if rng.random() < 0.3:
        name = f"{rng.choice(words.COMMAND_NOUNS)}_{rng.choice(['info', 'record', 'data'])}"
    return Schema(name, tuple(fields), rng.choice(["", f"A {name.lower()}."]), "free")


def _fill_free(rng: Random, inventory: Inventory, schema: Schema) -> Filled:
    value: dict[str, Value] = {}
    for p, f in schema.fields:
        if f is not None and (not p.optional or rng.random() < 0.6):
            value[p.name] = f.make(rng, inventory)
    shown = {
        k.replace("_", " "): ("yes" if v else "no") if isinstance(v, bool) else str(v)
        for k, v in value.items()
    }
    pairs = list(shown.items())
    rng.shuffle(pairs)
    form = rng.choice(["The {k} is {v}", "{k}: {v}", "{k} is {v}", "{k} = {v}", "the {k} is {v}"])
    parts = [form.replace("{k}", k).replace("{v}", v) for k, v in pairs]
    if not parts:
        return Filled("There is nothing to say.", value)
    joint = rng.choice([", ", "; ", " and "] if form[0] != "T" else [". "])
    text = joint.join(parts) + "."
    return Filled(text[0].upper() + text[1:], value)


# Jokes: two texts that are not in the question ---------------------------------------------------


def _joke_schema(rng: Random, inventory: Inventory) -> Schema:
    name = rng.choice(["Joke", "Joke", inventory.made_up(rng).capitalize()])
    described = rng.random() < 0.5
    setup, punchline = "question to set up a joke", "answer to resolve the joke"
    optional = rng.random() < 0.3
    kind = "string | null" if optional and rng.random() < 0.6 else "string"
    fields: list[tuple[Parameter, Field | None]] = [
        (Parameter("setup", "string", False, setup if described else ""), None),
        (Parameter("punchline", kind, optional, punchline if described else ""), None),
    ]
    description = rng.choice(["Joke to tell user.", "Joke to tell user.", "A joke.", ""])
    return Schema(name, tuple(fields), description, "joke")


def _fill_joke(rng: Random, inventory: Inventory, schema: Schema) -> Filled:
    thing = inventory.value(rng, "word").lower() + rng.choice(["s", ""])
    if rng.random() < 0.15:
        thing = "cats"
    joke = {
        "setup": f"Why did the {thing} sit on the computer?",
        "punchline": "To watch the mouse.",
    }
    if schema.fields[1][0].optional and rng.random() < 0.4:
        text = f"Give me the setup to a joke about {thing}, no punchline."
        return Filled(text, {"setup": joke["setup"]})
    forms = ["Tell me a joke about {t}.", "Tell me a joke about {t}.", "A joke about {t}, please."]
    forms += ["Give me a joke about {t}, include the punchline.", "Make a joke about {t}."]
    return Filled(rng.choice(forms).replace("{t}", thing), joke)


def with_keys(rng: Random, filled: Filled) -> str:
    """The sentence with a request for JSON with these keys: there is no schema in the prompt."""
    keys = list(filled.value)
    ticked = [f"`{k}`" for k in keys]
    some, quoted = enumerated(ticked), enumerated([rng.choice([f"'{k}'", k]) for k in keys])
    s = "s" if len(keys) > 1 else ""
    end = rng.choice(
        [
            f"Return the result as a JSON with the {some} key{s}. Return nothing other than JSON.",
            f"Return the result as JSON with the {some} key{s}.",
            f"Return JSON with the key{s} {enumerated(keys)}.",
            f"Answer as JSON with the key{s} {quoted}.",
            f"Return a JSON object with {enumerated(keys)}.",
            f"Give me JSON with the {some} key{s}, nothing else.",
        ]
    )
    if not filled.text.endswith((".", "?")):
        return f"{filled.text}. {end}"
    return f"{filled.text} {end}"
