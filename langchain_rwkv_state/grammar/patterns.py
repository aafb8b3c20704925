r"""Rewrites regular expressions for grammars: each allows at most what Python's `re` would find.

It knows Python's syntax and that of Rust, which grammars read, and no schemas. Both read most
patterns alike, and some otherwise (``\W`` is wider in Rust, ``[[:alpha:]]`` is no class in Python),
so that an answer could fit its grammar and break its schema. So Python's own parser reads a
pattern, and what it found is written anew, in numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from re import _constants as names  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, TypeAlias

Item: TypeAlias = tuple[Any, Any]

_ANYTHING = r"[\x{0}-\x{10ffff}]*"
_PRINTABLE = frozenset(map(chr, range(0x20, 0x7F)))
_SPACES = frozenset("\t\n\r\f\v")
_CLASS = re.compile(r"\\.|\[\^?(\]?(?:\\.|[^\]\\])*)\]", re.DOTALL)
_AMBIGUOUS = re.compile(r"^\[|\[[:.=]|--|&&|~~|\|\|")
_SETS = {
    names.CATEGORY_DIGIT: r"[0-9]",
    names.CATEGORY_WORD: r"[A-Za-z0-9_]",
    names.CATEGORY_SPACE: r"[ \t\n\r\f\v]",
    names.CATEGORY_NOT_DIGIT: r"[^0-9]",
    names.CATEGORY_NOT_WORD: r"[^A-Za-z0-9_]",
    names.CATEGORY_NOT_SPACE: r"[^ \t\n\r\f\v]",
}
_BEGINNINGS = (names.AT_BEGINNING, names.AT_BEGINNING_STRING)
_ENDS = (names.AT_END, names.AT_END_STRING)
_DO = {
    names.ASSERT: "look-around: say what is allowed, without (?=, (?!, (?<= and (?<!",
    names.ASSERT_NOT: "look-around: say what is allowed, without (?=, (?!, (?<= and (?<!",
    names.GROUPREF: "backreferences: write out what may be repeated",
    names.GROUPREF_EXISTS: "conditions on a group: give the cases, separated by |",
    names.ATOMIC_GROUP: "an atomic group: take (?:",
    names.POSSESSIVE_REPEAT: "a possessive repeat: leave out the + behind it",
    names.AT: "an anchor within: ^ may stand where a text begins, $ where it ends",
}


def held_pattern(pattern: str) -> str:
    r"""Returns a pattern that fits whole texts, and only such as `pattern` is found in.

    Python's sets of characters hold thousands of scripts; here ``\d``, ``\w`` and ``\s`` are those
    of ASCII, and ``\D``, ``\W`` and ``\S`` what is printable in ASCII and none of these.

    Args:
        pattern: As for `re.search`, without flags.

    Raises:
        ValueError: It is none, or has what a grammar cannot be held to; the message says what.

    Example:
        >>> held_pattern(r"^\d+$")
        '^(?:(?:[\\x{30}-\\x{39}]){1,})$'
    """
    if any(_AMBIGUOUS.search(match[1] or "") for match in _CLASS.finditer(pattern)):
        raise ValueError(
            "it has a class in a class, or two of them joined by --, && or ~~, which is read in "
            "different ways: write one class, with a backslash before [ and -"
        )
    try:
        read = parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(
            f"Python cannot read it ({error}): write it in Python's syntax, without \\p, \\z, "
            "(?<name>…) and flags"
        ) from error
    if read.state.flags != re.UNICODE:
        raise ValueError("it has flags, such as (?i): write out what they stand for, as in [Aa]")
    return f"^(?:{_written(list(read), True, True)})$"


def _written(items: Sequence[Item], first: bool, last: bool) -> str:
    """Returns items one after the other.

    Args:
        items: As Python's parser gives them.
        first: Whether they stand where the pattern begins: without an anchor anything may precede.
        last: Whether they stand where it ends.
    """
    left, written = list(items), ""
    if first and left and _is_anchor(left[0], _BEGINNINGS):
        del left[0]
        first = False
    behind = ""
    if last and left and _is_anchor(left[-1], _ENDS):
        del left[-1]
        last = False
    if first and not (left and _holds_items(left[0])):
        written, first = _ANYTHING, False
    if last and not (left and _holds_items(left[-1])):
        behind, last = _ANYTHING, False
    for at, item in enumerate(left):
        written += _one(item, first and at == 0, last and at == len(left) - 1)
    return written + behind


def _is_anchor(item: Item, which: Sequence[object]) -> bool:
    return item[0] is names.AT and item[1] in which


def _holds_items(item: Item) -> bool:
    return item[0] in (names.BRANCH, names.SUBPATTERN)


def _one(item: Item, first: bool, last: bool) -> str:
    kind, value = item
    if kind is names.LITERAL:
        return _char(value)
    if kind is names.NOT_LITERAL:
        return f"[^{_char(value)}]"
    if kind is names.ANY:
        return r"[^\x{a}]"
    if kind is names.IN:
        return _class(value)
    if kind is names.BRANCH:
        return "(?:" + "|".join(_written(list(each), first, last) for each in value[1]) + ")"
    if kind is names.SUBPATTERN and not value[1] and not value[2]:
        return f"(?:{_written(list(value[3]), first, last)})"
    if kind in (names.MAX_REPEAT, names.MIN_REPEAT):
        least, most, inner = value
        bound = "" if most is names.MAXREPEAT else most
        return f"(?:{_written(list(inner), False, False)}){{{least},{bound}}}"
    raise ValueError(f"it has {_DO.get(kind, 'flags within: write out what they stand for')}")


def _class(items: Sequence[Item]) -> str:
    """Returns a class; one of ASCII alone where it is a complement of what depends on scripts."""
    refused = items[0][0] is names.NEGATE
    wide = [value for kind, value in items if kind is names.CATEGORY]
    ranges = [(value, value) for kind, value in items if kind is names.LITERAL]
    ranges += [value for kind, value in items if kind is names.RANGE]
    if refused and wide:
        chars = _PRINTABLE - {c for each in wide for c in _PRINTABLE if re.match(_SETS[each], c)}
        ranges = _runs(c for c in chars if not any(low <= ord(c) <= high for low, high in ranges))
    else:
        for each in wide:
            chars = _PRINTABLE | (_SPACES if each is names.CATEGORY_SPACE else frozenset())
            ranges += _runs(c for c in chars if re.match(_SETS[each], c))
    if not ranges:
        raise ValueError("it has a class of no character of ASCII: name the characters")
    inside = "".join(f"{_char(low)}-{_char(high)}" for low, high in ranges)
    return f"[{'^' * (refused and not wide)}{inside}]"


def _runs(chars: Iterable[str]) -> list[tuple[int, int]]:
    """Returns characters as ranges of neighbours."""
    runs: list[tuple[int, int]] = []
    for code in sorted(map(ord, chars)):
        if runs and runs[-1][1] == code - 1:
            runs[-1] = (runs[-1][0], code)
        else:
            runs.append((code, code))
    return runs


def _char(code: int) -> str:
    if 0xD800 <= code <= 0xDFFF:
        raise ValueError(f"it names \\u{code:04x}, half a character: name whole ones")
    return f"\\x{{{code:x}}}"
