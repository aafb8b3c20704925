"""JSON schemas as a grammar can hold them: what cannot be held is refused by name, with its place.

It knows schemas and neither grammars nor models. The easy mistake is to leave out what cannot be
held: the answer would parse and break the schema, so every keyword that means something is held
or refused. What a schema leaves open is closed where that contradicts nothing: an object that
lists its properties gets those and no others, unless it says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from langchain_rwkv_state.errors import SchemaError

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
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError(
            f"{what} is not JSON ({error}): pass plain dicts, lists, texts and numbers."
        ) from error
    found = list(parts(copied, what))
    for place, part in found:
        _check(part, f"{what} has {{}} at {place!r}")
    endless = _endless(copied, found)
    if endless is not None:
        raise SchemaError(
            f"{what} refers to itself without end at {endless!r}, so that nothing finite fits it: "
            "let the part be left out, be null, or stand in an array that may be empty."
        )
    if not any(_joins(part) for _, part in found):
        for _, part in found:
            _close(part)
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
    """Refuses what a grammar cannot hold, and drops what means nothing."""
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
            "one may come twice, so that no answer can be held to it: list the properties and set "
            "additionalProperties: false, or check the number yourself."
        )
    given, kind = part.get("format"), part.get("type", "string")
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


def _joins(part: dict[str, Any]) -> bool:
    """Says whether a value must fit several parts at once, which may name different properties."""
    beside = [name for name in ("$ref", "anyOf", "oneOf", "allOf") if name in part]
    return len(part.get("allOf") or ()) > 1 or len(beside) + ("properties" in part) > 1


def _close(part: dict[str, Any]) -> None:
    """Lets an object that lists its properties have no others, where it does not speak of them."""
    listed = part.get("properties")
    if not isinstance(listed, dict) or part.get("type", "object") != "object":
        return
    speaks = ("additionalProperties", "patternProperties", "minProperties")
    if not any(name in part for name in speaks) and set(part.get("required") or ()) <= {*listed}:
        part["additionalProperties"] = False
