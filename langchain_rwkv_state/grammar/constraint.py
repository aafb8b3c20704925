r"""What an answer may be, as values: grammars for JSON of a schema and for calls of tools.

It writes grammars in llguidance's language and reads none; the engine does. The easy mistake is to
hold free text to a grammar: text is left alone, and the grammar begins where a call does
(`triggers`). Answers are read as ``" " + text`` (see `template`), so a grammar that begins with
the answer begins with that blank.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_rwkv_state.errors import SchemaError
from langchain_rwkv_state.grammar.json_schema import held_schema, size_of

_OPENING, _CLOSING = " ```json\n", "\n```"
_MOST = 10_000  # parts and values of enums: compiling these takes up to a second
_CALL_BEGINS = ('{"name":"', '[{"name":"')


@dataclass(frozen=True)
class Constraint:
    """What the text of an answer is held to; equal ones are compiled once.

    Attributes:
        grammar: In llguidance's language (Lark); empty where there are only `forbid`.
        triggers: Texts that the grammar begins with: it holds from where the answer has one of
            them, and what comes before is free. Without any it holds for the whole answer.
        forbid: Texts that free text must not contain: the id that would complete one is not
            chosen.

    Raises:
        ValueError: It holds nothing, or there are triggers and no grammar.

    Example:
        >>> Constraint('start: "yes" | "no"').triggers
        ()
    """

    grammar: str
    triggers: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks that it is one."""
        if not self.grammar and (self.triggers or not self.forbid):
            raise ValueError(f"A constraint needs a grammar, or texts to forbid, got {self!r}.")
        _check_texts("triggers", self.triggers)
        _check_texts("forbid", self.forbid)

    @property
    def holds_at_once(self) -> bool:
        """Whether the grammar holds from the answer's first id on."""
        return bool(self.grammar) and not self.triggers


def _check_texts(name: str, texts: object) -> None:
    if not isinstance(texts, tuple) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{name} must be a tuple of texts, none of them empty, got {texts!r}.")


def json_schema_constraint(schema: Mapping[str, Any], lead: str = " ") -> Constraint:
    """Returns what holds an answer to compact JSON of a schema.

    Args:
        schema: The JSON schema.
        lead: What stands before the JSON.

    Raises:
        SchemaError: The schema has what decoding cannot be held to; the message names it.
    """
    return Constraint(f"start: {_text(lead)} answer\nanswer: {_json(schema, 'The schema')}\n")


def json_object_constraint(lead: str = " ") -> Constraint:
    """Returns what holds an answer to some compact JSON object."""
    return json_schema_constraint({"type": "object"}, lead)


def calls_constraint(
    tools: Sequence[Mapping[str, Any]],
    *,
    choice: str,
    parallel: bool,
    opening: str = _OPENING,
    closing: str = _CLOSING,
    also: Mapping[str, Any] | None = None,
) -> Constraint:
    r"""Returns what holds an answer to calls of tools: ``{"name":…,"arguments":{…}}``.

    Args:
        tools: Each with a ``name`` and ``parameters``, a JSON schema (none for no arguments).
        choice: ``"any"``: the answer is a call. ``"auto"``: it is what the model likes, and a call
            where it begins one. Else a tool's name: it is a call of that tool.
        parallel: Whether there may be several calls, as a JSON array.
        opening: What stands before the calls; white space before it may be missing, and other
            text may stand there, where the choice is the model's.
        closing: What stands behind them; the answer ends there.
        also: A JSON schema: instead of calls the answer may be JSON of it, and nothing else.

    Raises:
        ValueError: There are no tools, two have one name, or none has the one that is chosen.
        SchemaError: A schema has what decoding cannot be held to; the message names tool and
            keyword.

    Example:
        >>> now = {"name": "now", "parameters": None}
        >>> print(calls_constraint([now], choice="any", parallel=False).grammar)
        start: " ```json\n" calls "\n```"
        calls: call
        call: call_0
        call_0: "{\"name\":\"now\",\"arguments\":{}}"
        <BLANKLINE>
    """
    names = [str(tool["name"]) for tool in tools]
    for name in names:
        if not name.isascii() and any("\ud800" <= char <= "\udfff" for char in name):
            raise SchemaError(f"The tool {name!r} is named by half a character: name it in text.")
    if not names or len({*names}) < len(names):
        raise ValueError(f"Tools need names, each another one, got {names!r}.")
    if choice not in ("any", "auto", *names):
        raise ValueError(
            f"choice is 'any', 'auto' or the name of a tool ({', '.join(names)}), got {choice!r}."
        )
    chosen = [tool for tool in tools if choice in ("any", "auto", tool["name"])]
    free = choice == "auto" and also is None
    before = opening.lstrip() if free else opening
    rules = [_calls(before, closing), "calls: call" + ' | "[" call ("," call)* "]"' * parallel]
    if also is not None:
        rules[0] += ' | " " answer'
        rules.append(f"answer: {_json(also, 'The response format')}")
    rules.append("call: " + " | ".join(f"call_{at}" for at in range(len(chosen))))
    sizes: dict[str, int] = {}
    for at, tool in enumerate(chosen):
        name, parameters = str(tool["name"]), tool.get("parameters")
        rules += _call(at, name, parameters)
        sizes[name] = size_of(parameters or {})
    largest = max(sizes, key=sizes.__getitem__)
    _require_small(f"What all tools take (the largest is that of {largest!r})", sizes.values())
    return Constraint("\n".join([*rules, ""]), _begins(opening) if free else ())


def no_calls_constraint(opening: str = _OPENING) -> Constraint:
    """Returns what keeps an answer from calling a tool, and else leaves it free.

    Args:
        opening: What stands before calls.
    """
    return Constraint("", forbid=_begins(opening))


def _begins(opening: str) -> tuple[str, ...]:
    """Returns the texts that a call begins with, at an answer's beginning or later."""
    return tuple(opening.lstrip() + begins for begins in _CALL_BEGINS)


def _calls(before: str, behind: str) -> str:
    parts = [_text(before)] * bool(before) + ["calls"] + [_text(behind)] * bool(behind)
    return "start: " + " ".join(parts)


def _call(at: int, name: str, parameters: Mapping[str, Any] | None) -> list[str]:
    """Returns the rules of one tool's calls."""
    head = f'{{"name":{json.dumps(name, ensure_ascii=False)},"arguments":'
    what = f"The schema of the tool {name!r}"
    if parameters is not None and not isinstance(parameters, Mapping):
        raise SchemaError(f"{what} must be that of an object, got {parameters!r:.100}.")
    if not parameters:
        return [f"call_{at}: {_text(head + '{}}')}"]
    if parameters.get("type", "object") != "object":
        raise SchemaError(f"{what} must be that of an object, got type {parameters['type']!r}.")
    if not ({"properties", "$ref", "anyOf", "oneOf", "allOf"} & {*parameters}):
        parameters = {**parameters, "properties": {}}
    rule = _json({"type": "object", **parameters}, what)
    return [f'call_{at}: {_text(head)} arguments_{at} "}}"', f"arguments_{at}: {rule}"]


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json(schema: Mapping[str, Any], what: str) -> str:
    held = held_schema(schema, what)
    _require_small(what, [size_of(held)])
    held = {**held, "x-guidance": {"whitespace_flexible": False}}
    return f"%json {json.dumps(held, ensure_ascii=False)}"


def _require_small(what: str, sizes: Iterable[int]) -> None:
    """Refuses what would hold up a process while it is compiled."""
    total = sum(sizes)
    if total > _MOST:
        raise SchemaError(
            f"{what} is more than can be compiled in time: {total} parts and values of "
            f"'enum', of at most {_MOST}. Bind fewer tools, or take a text for a "
            "long 'enum' and check it yourself."
        )
