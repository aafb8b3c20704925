"""Values of all types and the further parameters that any tool may have, and how they are said.

A parameter that no question ever leaves out will not do: then a model fills what is
optional with something of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from . import words
from .inventory import Inventory
from .signature import Parameter, compact

Arguments = dict[str, Any]


def some_word(
    rng: Random, inventory: Inventory, listed: list[str], made: float, *more: list[str]
) -> str:
    """A word of a list, or in a share of cases a made-up one."""
    if rng.random() < made:
        return inventory.made_up(rng)
    return rng.choice(listed) if rng.random() < 0.6 else rng.choice(rng.choice(more or [listed]))


def integer(rng: Random, inventory: Inventory) -> int:
    """A whole number, seldom below zero."""
    value = int(inventory.number(rng))
    return -value if rng.random() < 0.04 else value


def decimal(rng: Random, inventory: Inventory) -> int | float:
    """A number, in three of ten cases with a point."""
    whole = integer(rng, inventory)
    return whole if rng.random() < 0.7 else whole + rng.randint(1, 99) / 100


def described(rng: Random, parameter: Parameter, *ways: str) -> Parameter:
    """The parameter, seldom with a description."""
    if rng.random() > 0.15:
        return parameter
    return Parameter(parameter.name, parameter.type, parameter.optional, rng.choice(ways))


def _chinese(rng: Random) -> str:
    if rng.random() < 0.7:
        return rng.choice(words.FOREIGN)
    return chr(rng.randrange(0x4E00, 0x9FA6))


def foreign(rng: Random) -> str:
    """A word in letters that are not plain Latin."""
    share = rng.random()
    if share < 0.4:
        out = [_chinese(rng) for _ in range(rng.randint(2, 6))]
    elif share < 0.6:
        start = rng.choice([0x3042, 0x30A2])
        out = [chr(rng.randrange(start, start + 80)) for _ in range(rng.randint(2, 7))]
        out += [_chinese(rng) for _ in range(rng.randint(0, 4))]
    elif share < 0.7:
        out = [chr(rng.randrange(0xAC00, 0xD7A4)) for _ in range(rng.randint(2, 5))]
    elif share < 0.85:
        out = [chr(rng.randrange(0x430, 0x450)) for _ in range(rng.randint(3, 8))]
        out[0] = out[0].upper()
    else:
        letters = "aeioubcdlmnrstäöüéèêñçåøßłžšíóú"
        out = [rng.choice(letters) for _ in range(rng.randint(3, 8))]
    return "".join(out)


# Further parameters of any tool ------------------------------------------------------------------

Saying = Callable[[Random, Inventory], tuple[str, Any]]
"""Makes a value, and the phrase by which a question says it."""


@dataclass(frozen=True)
class Extra:
    """A further parameter, and how a question says its value."""

    parameter: Parameter
    say: Saying


def _enum(rng: Random, inventory: Inventory, optional: bool) -> Extra:
    name, options, forms = rng.choice(words.ENUMS)
    if rng.random() < 0.4:
        name = some_word(rng, inventory, words.TOOL_PARAMS, 0.5)
        options = [inventory.value(rng, "word").lower() for _ in range(rng.randint(2, 4))]
        forms = ["with {p} {v}", "with the {p} {v}", "and {p} {v}", "({p}: {v})"]
    parameter = Parameter(name, " | ".join(f'"{o}"' for o in options), optional)

    def say(rng: Random, _: Inventory) -> tuple[str, Any]:
        v = rng.choice(options)
        return rng.choice(forms).replace("{p}", name).replace("{v}", v), v

    return Extra(described(rng, parameter, f"the {name}", f"{name.capitalize()} to use"), say)


def _flag(rng: Random, _: Inventory, optional: bool) -> Extra:
    name = rng.choice(words.FLAGS)

    def say(rng: Random, _: Inventory) -> tuple[str, Any]:
        yes = rng.random() < 0.5
        forms = [f"with {name} {'on' if yes else 'off'}", f"{name}: {'yes' if yes else 'no'}"]
        return rng.choice([*forms, name if yes else f"not {name}"]), yes

    return Extra(Parameter(name, "boolean", optional), say)


def _list(rng: Random, _: Inventory, optional: bool) -> Extra:
    name = rng.choice(words.LISTS)

    def say(rng: Random, inventory: Inventory) -> tuple[str, Any]:
        values = [inventory.value(rng, "word").lower() for _ in range(rng.randint(1, 3))]
        return f"with {name} {enumerated(values)}", values

    return Extra(Parameter(name, "string[]", optional), say)


def _text(rng: Random, inventory: Inventory, optional: bool) -> Extra:
    name = some_word(rng, inventory, words.TOOL_PARAMS, 0.3)

    def say(rng: Random, inventory: Inventory) -> tuple[str, Any]:
        v = inventory.value(rng, rng.choice(["name", "word", "city"]))
        return rng.choice([f"with {name} {v}", f"and {name} {v}", f"({name}: {v})"]), v

    kind = "string | null" if optional and rng.random() < 0.3 else "string"
    return Extra(described(rng, Parameter(name, kind, optional), f"the {name}"), say)


def _count(rng: Random, _: Inventory, optional: bool) -> Extra:
    name, forms = rng.choice(words.COUNTS)
    kind = rng.choice(["integer", "integer", "number"])

    def say(rng: Random, inventory: Inventory) -> tuple[str, Any]:
        if kind == "number":
            v: Any = decimal(rng, inventory)
            return f"with {name} {compact(v)}", v
        v = rng.randint(1, 99)
        return rng.choice(forms).replace("{v}", str(v)), v

    return Extra(described(rng, Parameter(name, kind, optional), f"number of {name}"), say)


_SORTS = [_enum] * 4 + [_count] * 3 + [_flag, _list, _text]


def make_extra(rng: Random, inventory: Inventory, optional: float = 0.6) -> Extra:
    """A parameter of some type; a question says it in a phrase at its end."""
    leave = rng.random() < optional
    return rng.choice(_SORTS)(rng, inventory, leave)


def enumerated(values: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(values) == 1:
        return values[0]
    return ", ".join(values[:-1]) + " and " + values[-1]


def with_extras(
    rng: Random, inventory: Inventory, text: str, arguments: Arguments, extras: tuple[Extra, ...]
) -> str:
    """The question with the further values said at its end; puts them into `arguments`."""
    for extra in extras:
        if extra.parameter.optional and rng.random() < 0.5:
            continue
        said, value = extra.say(rng, inventory)
        end = text[-1] if text[-1] in ".?" else ""
        text = f"{text[: len(text) - len(end)]} {said}{end}"
        arguments[extra.parameter.name] = value
    return text


def some_extras(
    rng: Random, inventory: Inventory, taken: set[str], weights: list[int]
) -> tuple[Extra, ...]:
    """Further parameters with names not yet `taken`, the optional ones last; `weights` by count."""
    out: list[Extra] = []
    for _ in range(rng.choices(range(len(weights)), weights)[0]):
        extra = make_extra(rng, inventory)
        if extra.parameter.name not in taken:
            taken.add(extra.parameter.name)
            out.append(extra)
    return tuple(sorted(out, key=lambda e: e.parameter.optional))
