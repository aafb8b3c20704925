r"""Turns a JSON schema into one that a grammar can hold, or says what of it none can, and where.

It knows schemas and neither grammars nor models. Every keyword that means something is held or
refused: of one that is left out, an answer would parse and break the schema. Where a schema leaves
open what a grammar cannot tell apart it is narrowed: an object that lists properties gets those and
no others, also where it allows others, since these could come under the same names, spelt otherwise
(``"\u0061"`` for ``"a"``), and take their place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from langchain_rwkv_state.errors import SchemaError
from langchain_rwkv_state.grammar.formats import FORMAT_PATTERNS
from langchain_rwkv_state.grammar.patterns import held_pattern

_NAMED = ("properties", "patternProperties")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalItems", "additionalProperties")
_SHARED = ("$defs", "definitions")

_FORMATS = frozenset(
    "date-time time date duration email hostname ipv4 ipv6 uuid uri unknown".split()  # noqa: SIM905
)

_DO = {
    "uniqueItems": "leave it out and drop doubled items yourself (a pydantic `set` has it: take a "
    "`list`)",
    "not": "say what is allowed, by enum, pattern or anyOf",
    "if": "give the cases under anyOf, each with its own const",
    "x-guidance": "it belongs to the grammar: leave it out",
}
_CASES = ("then", "else", "dependentRequired", "dependentSchemas", "dependencies")
_DO |= dict.fromkeys(_CASES, _DO["if"])
_COUNTS = ("contains", "minContains", "maxContains")
_DO |= dict.fromkeys(_COUNTS, "bound the array by items, minItems and maxItems, and check the rest")
_OPEN = ("unevaluatedItems", "unevaluatedProperties")
_DO |= dict.fromkeys(_OPEN, "take items or additionalProperties: false")
_DO["propertyNames"] = "take patternProperties with additionalProperties: false"
_MOVING = ("$dynamicRef", "$recursiveRef", "$dynamicAnchor", "$recursiveAnchor")
_DO |= dict.fromkeys(_MOVING, "take $ref to $defs of the same schema")


def _is_schema(value: object) -> bool:
    return isinstance(value, dict | bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list_of(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _is_map(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_schema, value.values()))


_KINDS: tuple[tuple[tuple[str, ...], str, Callable[[object], bool]], ...] = (
    ((*_NAMED, *_SHARED), "an object of schemas", _is_map),
    (_LISTED, "a list of schemas", _is_list_of(_is_schema)),
    (("additionalItems", "additionalProperties"), "a schema", _is_schema),
    (("items",), "a schema", lambda v: _is_schema(v) or _is_list_of(_is_schema)(v)),
    (("required",), "a list of texts", _is_list_of(_is_text)),
    (("enum",), "a list", lambda value: isinstance(value, list)),
    (("type",), "a text or a list of texts", lambda v: _is_text(v) or _is_list_of(_is_text)(v)),
    (("$ref", "pattern", "format"), "a text", _is_text),
    (
        tuple(f"{most}{of}" for most in ("min", "max") for of in ("Items", "Length", "Properties")),
        "a whole number, not negative,",
        _is_count,
    ),
    (("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), "a number", _is_number),
    (("multipleOf",), "a number, not 0,", lambda v: _is_number(v) and v != 0),
)


def held_schema(schema: Mapping[str, Any], what: str = "The schema") -> dict[str, Any]:
    """Returns a schema that a grammar can hold, and that allows nothing that `schema` does not.

    Args:
        schema: A JSON schema (draft 2020-12, or 7), of JSON's own types.
        what: What it is called in messages.

    Raises:
        SchemaError: It has keywords that a grammar cannot hold, refers to itself without end, or
            is no JSON.

    Example:
        >>> held_schema({"type": "object", "properties": {"a": {"type": "integer"}}})
        {'type': 'object', 'properties': {'a': {'type': 'integer'}}, 'additionalProperties': False}
    """
    if not isinstance(schema, Mapping):
        raise SchemaError(f"{what} must be a JSON schema, an object, got {schema!r:.100}.")
    try:
        copied: dict[str, Any] = json.loads(json.dumps(schema, allow_nan=False))
        json.dumps(copied, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError(
            f"{what} is not JSON ({error}): pass plain dicts, lists, texts and numbers."
        ) from error
    found = list(parts(copied, what))
    for place, part in found:
        _check(part, _where(what, place))
    try:
        endless = _endless(copied, found)
    except RecursionError:
        raise SchemaError(f"{what} is nested too deeply: make it flatter.") from None
    if endless is not None:
        raise SchemaError(
            f"{what} refers to itself without end at {endless!r}, so that nothing finite fits it: "
            "let the part be left out, be null, or stand in an array that may be empty."
        )
    _close(copied, found, what)
    return copied


def parts(root: dict[str, Any], what: str = "The schema") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields a schema and all parts of it that can matter, each with its place, once."""
    left, seen = [("#", root)], {"#"}
    while left:
        place, part = left.pop()
        yield place, part
        inside = list(_inside(place, part))
        if isinstance(part.get("$ref"), str):
            inside.append((part["$ref"], _target(root, part["$ref"], place, what)))
        for inner, value in reversed(inside):
            if isinstance(value, dict) and inner not in seen:
                seen.add(inner)
                left.append((inner, value))


def _where(what: str, place: str) -> str:
    """Returns what a message begins with, to be formatted with what is there."""
    return f"{what} has \0 at {place!r}".replace("{", "{{").replace("}", "}}").replace("\0", "{}")


def size_of(schema: Mapping[str, Any]) -> int:
    """Returns how many parts and values of ``enum`` a schema has."""
    return sum(1 + len(part.get("enum") or ()) for _, part in parts(dict(schema)))


def _inside(place: str, part: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in _NAMED:
        if isinstance(part.get(name), dict):
            yield from ((f"{place}/{name}/{_escaped(key)}", v) for key, v in part[name].items())
    for name in (*_LISTED, "items"):
        if isinstance(part.get(name), list):
            yield from ((f"{place}/{name}/{at}", value) for at, value in enumerate(part[name]))
    for name in _SINGLE:
        if isinstance(part.get(name), dict):
            yield f"{place}/{name}", part[name]


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _target(root: dict[str, Any], ref: str, place: str, what: str) -> Any:
    found: Any = root
    path = unquote(ref.removeprefix("#"))
    if not ref.startswith("#") or (path and not path.startswith("/")):
        found = None
    for step in path.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list):
            found = found[int(key)] if key.isdigit() and int(key) < len(found) else None
        else:
            found = found.get(key) if isinstance(found, dict) else None
    if found is None:
        raise SchemaError(
            f"{what} refers to {ref!r} at {place!r}, and nothing is there: a $ref leads to a place "
            "in the same schema, such as '#/$defs/Name'."
        )
    return found


def _check(part: dict[str, Any], where: str) -> None:
    """Refuses what a grammar cannot hold, narrows what it would widen, drops what is empty."""
    _check_kinds(part, where)
    _renew(part, where)
    if part.get("uniqueItems") is False:
        del part["uniqueItems"]
    for keyword, instead in _DO.items():
        if keyword in part:
            raise SchemaError(
                f"{where.format(repr(keyword))}, which decoding cannot be held to: {instead}."
            )
    if part.get("minProperties", 0) > len(part.get("required") or ()) and not (
        part.get("additionalProperties") is False and "patternProperties" not in part
    ):
        raise SchemaError(
            f"{where.format(repr('minProperties'))} of an object with names of its own choice, and "
            "one may come twice, so that decoding cannot be held to it: list the properties, set "
            "additionalProperties: false, or check the number yourself."
        )
    _check_texts_and_numbers(part, where)


def _check_kinds(part: dict[str, Any], where: str) -> None:
    for keywords, said, fits in _KINDS:
        for keyword in keywords:
            if keyword in part and not fits(part[keyword]):
                raise SchemaError(
                    f"{where.format(repr(keyword))} as {part[keyword]!r:.100}, where {said} should "
                    "be: see JSON Schema, draft 2020-12."
                )


def _check_texts_and_numbers(part: dict[str, Any], where: str) -> None:
    if "pattern" in part:
        part["pattern"] = _pattern(part["pattern"], where)
    step = part.get("multipleOf", 1)
    if step != int(step):
        raise SchemaError(
            f"{where.format(repr('multipleOf'))} of {step!r}, which computers' numbers are rarely "
            "multiples of (0.3 is none of 0.1): take an integer, count in smaller units, or leave "
            "it out and round."
        )
    given, kind = part.get("format"), part.get("type", "string")
    if given in FORMAT_PATTERNS and not {"enum", "const"} & {*part}:
        del part["format"]
        if "pattern" in part:
            part["allOf"] = [*(part.get("allOf") or ()), {"pattern": FORMAT_PATTERNS[given]}]
        else:
            part["pattern"] = FORMAT_PATTERNS[given]
        return
    if given is None or given in _FORMATS:
        return
    if kind != "string" and not (isinstance(kind, list) and "string" in kind):
        del part["format"]  # which speaks of texts alone
        return
    bytes_ = ": JSON has no bytes (pydantic's `bytes` among them)" if given == "binary" else ""
    raise SchemaError(
        f"{where.format(f'the format {given!r}')}, which decoding cannot be held to{bytes_}: take "
        f"one of {', '.join(sorted(_FORMATS - {'unknown'}))}, or a pattern, or leave it out."
    )


def _renew(part: dict[str, Any], where: str) -> None:
    """Writes draft 7's way of giving an array's first items in that of draft 2020-12."""
    if isinstance(part.get("items"), list):
        if "prefixItems" in part:
            raise SchemaError(
                f"{where.format(repr('items'))} as a list beside 'prefixItems': take one of them."
            )
        part["prefixItems"] = part.pop("items")
        if "additionalItems" in part:
            part["items"] = part.pop("additionalItems")
    part.pop("additionalItems", None)


def _endless(root: dict[str, Any], found: list[tuple[str, dict[str, Any]]]) -> str | None:
    """Returns a place that nothing finite fits, because it refers to itself."""
    refs = {part["$ref"] for _, part in found if isinstance(part.get("$ref"), str)}
    targets = {ref: _target(root, ref, "#", "It") for ref in refs}
    finite: set[str] = set()
    while True:
        more = {ref for ref in refs - finite if _is_finite(targets[ref], finite)}
        if not more:
            break
        finite |= more
    if not _is_finite(root, finite):
        return min(refs - finite, default="#")
    return None


def _is_finite(part: Any, finite: set[str]) -> bool:
    """Says whether something finite fits a part, where it does what `finite` refers to."""
    if not isinstance(part, dict):
        return True
    if isinstance(part.get("$ref"), str) and part["$ref"] not in finite:
        return False
    required = part.get("required") or ()
    known = part.get("properties") or {}
    needed = [value for key, value in known.items() if key in required]
    first = part.get("prefixItems") or ()
    least = part.get("minItems", 0)
    needed += first[:least]
    if least > len(first):
        needed.append(part.get("items"))
    needed += part.get("allOf") or ()
    if part.get("type", "object") == "object" or part.get("type") == "array":
        return all(_is_finite(each, finite) for each in needed) and _some(part, finite)
    return _some(part, finite)


def _some(part: dict[str, Any], finite: set[str]) -> bool:
    choices = [part[name] for name in ("anyOf", "oneOf") if part.get(name)]
    return all(any(_is_finite(each, finite) for each in choice) for choice in choices)


def _close(root: dict[str, Any], found: list[tuple[str, dict[str, Any]]], what: str) -> None:
    """Lets objects that list properties have no others, as far as that contradicts nothing.

    Where a value must fit several parts at once, they stay open, and what joins them is closed: it
    gets the names of all.
    """
    joined: set[int] = set()
    for _, part in found:
        if _joins(part):
            joined.update(id(each) for each in _merged(root, part)[1:])
    known: list[tuple[dict[str, Any], list[str] | None]] = []
    for place, part in found:
        where = _where(what, place)
        is_joined = id(part) in joined
        if part.get("patternProperties"):
            if is_joined or _joins(part):
                raise SchemaError(
                    f"{where.format(repr('patternProperties'))} beside other parts that a value "
                    "must fit, so that decoding cannot be held to it: list the properties."
                )
            _hold_patterns(part, where)
        if is_joined:
            continue
        inner = any(id(each) in joined for each in _members(root, part))
        known.append((part, _names(_merged(root, part) if inner else [part])))
    for part, names in known:
        if names is not None:
            own = part.get("properties") or {}
            rest = part.get("additionalProperties", {})
            part["properties"] = {**own, **{name: rest for name in names if name not in own}}
            part["additionalProperties"] = False


def _joins(part: dict[str, Any]) -> bool:
    """Says whether a value must fit several parts at once, which may name different properties."""
    beside = [name for name in ("$ref", "anyOf", "oneOf", "allOf") if name in part]
    own = any(name in part for name in ("properties", "patternProperties", "additionalProperties"))
    return len(part.get("allOf") or ()) > 1 or len(beside) + own > 1


def _members(root: dict[str, Any], part: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the parts that a value must fit, or may have to, besides a part's own keywords."""
    found = [each for name in ("anyOf", "oneOf", "allOf") for each in part.get(name) or ()]
    if isinstance(part.get("$ref"), str):
        found.append(_target(root, part["$ref"], "#", "It"))
    return [each for each in found if isinstance(each, dict)]


def _merged(root: dict[str, Any], part: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a part, and all that a value of it must fit, or may have to."""
    found, seen = [part], {id(part)}
    for each in found:
        inner = [one for one in _members(root, each) if id(one) not in seen]
        seen.update(map(id, inner))
        found += inner
    return found


def _names(members: list[dict[str, Any]]) -> list[str] | None:
    """Returns the names of an object that must fit some parts; ``None`` where it may have any."""
    if not any("properties" in each for each in members):
        return None
    listed = [name for each in members for name in each.get("properties") or ()]
    if not listed and any("additionalProperties" in each for each in members):
        return None  # a map
    required = [name for each in members for name in each.get("required") or ()]
    return list(dict.fromkeys([*listed, *required]))


def _hold_patterns(part: dict[str, Any], where: str) -> None:
    """Holds the names of a map to its patterns, and lets those of an object without patterns."""
    patterns, listed = part.pop("patternProperties"), part.get("properties")
    held = {_pattern(pattern, where): each for pattern, each in patterns.items()}
    names = [*dict.fromkeys([*(listed or ()), *(part.get("required") or ())])]
    fitting = {n: [v for p, v in patterns.items() if re.search(p, n)] for n in names}
    if listed or not all(fitting.values()):
        own = listed or {}
        rest = part.get("additionalProperties", {})
        part["properties"] = {
            name: {"allOf": [*[own[name]] * (name in own), *fitting[name]]}
            if fitting[name]
            else own.get(name, rest)
            for name in names
        }
    else:
        if len({json.dumps(each, sort_keys=True) for each in held.values()}) > 1:
            raise SchemaError(
                f"{where.format(repr('patternProperties'))} of several schemas, and one name may "
                "come twice, spelt otherwise, so that decoding cannot be held to it: list the "
                "properties, or take one pattern, or one schema for all."
            )
        if len(held) > 1:  # llguidance takes several only where no name fits two
            held = {"|".join(f"(?:{each})" for each in held): next(iter(held.values()))}
        part["patternProperties"] = held
    part["additionalProperties"] = False


def _pattern(pattern: str, where: str) -> str:
    try:
        return held_pattern(pattern)
    except ValueError as error:
        raise SchemaError(
            f"{where.format(f'the pattern {pattern!r}')}, which decoding cannot be held to: "
            f"{error}."
        ) from error
