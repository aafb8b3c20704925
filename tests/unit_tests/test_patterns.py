"""Patterns: what a grammar draws from a rewritten one is what Python finds the given one in."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from langchain_rwkv_state.grammar.patterns import held_pattern
from tests.unit_tests.test_constraint import Bytes

TABLES = LLTokenizer(TokenizerWrapper(Bytes()))


def compiled(pattern: str) -> LLMatcher:
    schema = {"type": "string", "pattern": pattern}
    matcher = LLMatcher(TABLES, f"start: %json {json.dumps(schema)}", log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def fits(pattern: str, text: str) -> bool:
    ids = list(json.dumps(text, ensure_ascii=False).encode())
    matcher = compiled(held_pattern(pattern))
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def drawn(pattern: str, seed: int, seen: str = "", most: int = 60) -> str | None:
    """Draws a text at random; the first bytes allow anything, the later ones prefer the end."""
    chosen, matcher, text = random.Random(seed), compiled(pattern), b""
    while not matcher.is_stopped() and len(text) < most:
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")[:257]).tolist()
        if 256 in allowed and (len(allowed) == 1 or chosen.random() < 0.5):
            break
        quote = ord('"')
        allowed = [each for each in allowed if each != 256]
        likely = [each for each in allowed if chr(each) in seen]
        byte = chosen.choice(likely if likely and chosen.random() < 0.6 else allowed)
        if quote in allowed and text and chosen.random() < 0.3:
            byte = quote
        matcher.consume_token(byte)
        text += bytes([byte])
    return json.loads(text) if matcher.is_accepting() else None


SAMPLES = [
    r"^\d{3}-\w+$",
    r"\W",
    r"^\D+\S$",
    r"[^\d]",
    r"^[^\W_]+$",
    r"^[\w.+-]+@[a-z]+\.(com|org)$",
    r"^a|b$",
    r"(^a$)|(b)",
    r"^(a|ab|)c?$",
    r"^.{2,4}$",
    r"^[^a-y]$",
    r"^(?P<x>\s)(?:é|😀)*?$",
    r"\Ax\Z",
    r"",
    r"^$",
    r"^\$\^\.\[\]",
]


@pytest.mark.parametrize("pattern", SAMPLES)
def test_what_is_drawn_is_found(pattern):
    held = held_pattern(pattern)
    found = [text for seed in range(12) if (text := drawn(held, seed, pattern)) is not None]
    assert found
    for text in found:
        assert re.search(pattern, text), text


atoms = st.sampled_from(
    [*"ab.é^$\n", r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", "[^a]", r"[^\w-]", r"[\D\s]", r"\x41"]
)
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda each: f"(?:{'|'.join(each)})"),
        st.tuples(inner, st.sampled_from(["?", "*", "+", "{2}", "{1,2}", "*?"])).map(
            lambda each: f"({each[0]}){each[1]}"
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(pattern=patterns, seed=st.integers(0, 999))
def test_whatever_is_drawn_is_found(pattern, seed):
    try:
        held = held_pattern(pattern)
    except ValueError:
        return
    schema = {"type": "string", "pattern": held}
    if LLMatcher.validate_grammar(f"start: %json {json.dumps(schema)}"):
        return  # nothing fits it
    text = drawn(held, seed, pattern)
    assert text is None or re.search(pattern, text) is not None, (pattern, held, text)


def test_the_usual_texts_still_fit():
    assert fits(r"^\d{4}-\w+$", "2024-ab_1")
    assert fits("b", "abc\né")
    assert fits("^a|b$", "ax")
    assert fits("^a|b$", "xb")
    assert not fits("^a|b$", "xc")
    assert not fits(r"^\d$", "٣")
    assert not fits(r"^\W$", "é")
    assert not fits(r"^\s$", "\x1c")
    assert fits(r"^\W$", "-")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"\p{L}", r"Python's syntax"),
        (r"a\z", "Python's syntax"),
        (r"(?<x>a)", "Python's syntax"),
        (r"(?U)a", "Python's syntax"),
        (r"(", "Python cannot read it"),
        (r"(?i)a", "flags"),
        (r"(?i:a)", "flags"),
        (r"[[:alpha:]]", "a class in a class"),
        (r"[a-z&&[^b]]", "a class in a class"),
        (r"[a--b]", "joined by --"),
        (r"[a~~b]", "joined by --"),
        (r"(a)\1", "backreferences"),
        (r"(?=a)b", "look-around"),
        (r"(?<!a)b", "look-around"),
        (r"(?>a)b", "atomic"),
        (r"a++", "possessive"),
        (r"\bword\b", "an anchor within"),
        (r"a^b", "an anchor within"),
        ("\ud800", "half a character"),
        (r"[^\w\W]", "no character of ASCII"),
    ],
)
def test_what_is_read_otherwise_is_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        held_pattern(pattern)
