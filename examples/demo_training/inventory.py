"""Where a dialogue's values come from: word lists, made-up words, random letters and numbers.

It knows nothing of dialogues. Do not draw from the lists only: a small model then
learns the list instead of copying, so most values are made up, and one in six is plain letters.
Which made-up values belong to the evaluation is decided by their checksum, so that the two halves
cannot meet, whatever the seeds.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from random import Random

from langchain_rwkv_state.demo.held_out import is_held_out

from . import words

VOWELS, CONSONANTS = "aeiouy", "bcdfghjklmnpqrstvwxz"
ONSETS = words.listed(
    """
    b bl br c ch cl cr d dr f fl fr g gh gl gr h j k kl kn kr l m n p ph pl pr q qu r rh s sc sch
    sh sk sl sm sn sp spr st str sw t th tr ts tw v vl w wh x y z zh
    """
)
NUCLEI = words.listed(
    """
    a a a e e e i i i o o o u u y ae ai au ea ee ei eo ia ie io oa oe oi oo ou ua ui uo
    """
)
CODAS = words.listed(
    """
    b ck d f ff g k l ld lf lk ll lm lt m mb mp n nd ng nk nn nt p q r rd rg rk rl rm rn rs rt s
    sh sk ss st t th tt v w x y z zz ch
    """
)
OTHER_ONSETS = words.listed("b c d f g h j k l m n p r s t v w z dw gn qu squ thr vr y x")
OTHER_NUCLEI = words.listed("a e i o u y aa ii uu ay ey ow")
OTHER_CODAS = words.listed("c d dge g l lb lp lv m n nch nx nz p r rch rf rp rv s sp t tch x z")


_LISTS = {
    "name": words.NAMES,
    "city": words.CITIES,
    "pet": words.PETS,
    "colour": words.COLOURS,
    "food": words.FOODS,
    "job": words.JOBS,
    "word": words.WORDS,
}
_LISTED = {w.lower() for ws in _LISTS.values() for w in ws}
_LISTED_HELD_OUT = {w.lower() for k in _LISTS for w in words.HELD_OUT[k]}
_LOWER_KINDS = {"colour", "food", "job", "word"}


@dataclass(frozen=True)
class Inventory:
    """A source of values: `Inventory(held_out=False)` for training, `True` for evaluation."""

    held_out: bool = False

    def value(self, rng: Random, kind: str) -> str:
        """A value of a kind: name, city, pet, colour, food, job, word or number."""
        if kind == "number":
            return self.number(rng)
        share = rng.random()
        listed = words.HELD_OUT[kind] if self.held_out else _LISTS[kind]
        if share < (0.3 if kind in ("name", "city", "pet") else 0.5):
            return rng.choice(listed)
        made = self.made_up(rng) if share < 0.78 else self.letters(rng)
        if kind in _LOWER_KINDS and rng.random() < 0.6:
            return made
        return made[0].upper() + made[1:]

    def number(self, rng: Random) -> str:
        """A whole number, mostly of one to four digits, now and then longer."""
        while True:
            digits = rng.choices([1, 2, 3, 4, 5, 6, 7], [10, 35, 20, 20, 7, 5, 3])[0]
            value = str(rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits))
            if is_held_out(value) == self.held_out:
                return value

    def made_up(self, rng: Random) -> str:
        """A lower-case word made of syllables."""
        while True:
            if self.held_out:
                out = _syllables(rng, OTHER_ONSETS, OTHER_NUCLEI, OTHER_CODAS)
            elif rng.random() < 0.7:
                out = _syllables(rng, ONSETS, NUCLEI, CODAS)
            else:
                out = _loose(rng)
            if self._fits(out):
                return out

    def letters(self, rng: Random) -> str:
        """Three to eight lower-case letters in any order."""
        while True:
            out = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 8)))
            if self._fits(out):
                return out

    def _fits(self, word: str) -> bool:
        others = _LISTED if self.held_out else _LISTED_HELD_OUT
        if not 2 <= len(word) <= 12 or word in others:
            return False
        return is_held_out(word) == self.held_out

    def phrase(self, rng: Random, most: int = 3) -> str:
        """One to `most` lower-case words."""
        kinds = rng.choices(["word", "word", "food", "colour"], k=rng.randint(1, most))
        return " ".join(self.value(rng, k).lower() for k in kinds)

    def fill(self, rng: Random, template: str) -> str:
        """Replaces each {C} {N} {W} {w} {f} {c} {n} of a template by a value of its own."""
        out = template
        for mark, kind in _MARKS.items():
            while mark in out:
                value = self.value(rng, kind)
                if mark == "{W}":
                    value = value.capitalize()
                out = out.replace(mark, value, 1)
        return out


def _syllables(rng: Random, onsets: list[str], nuclei: list[str], codas: list[str]) -> str:
    out = ""
    for i in range(rng.choices([1, 2, 3], [15, 60, 25])[0]):
        if i > 0 or rng.random() < 0.85:
            out += rng.choice(onsets)
        out += rng.choice(nuclei)
        if rng.random() < 0.4:
            out += rng.choice(codas)
    return out


def _loose(rng: Random) -> str:
    """Any consonants and any vowels by turns, doubled and repeated ones among them."""
    out, vowel = "", rng.random() < 0.25
    for _ in range(rng.randint(2, 6)):
        some = VOWELS if vowel else CONSONANTS
        out += "".join(rng.choices(some, k=rng.choice([1, 1, 2])))
        if rng.random() < 0.15:
            out += out[-1] if rng.random() < 0.5 else out[-2:]
        vowel = not vowel
    return out


_MARKS = {
    "{C}": "city",
    "{N}": "name",
    "{W}": "word",
    "{w}": "word",
    "{f}": "food",
    "{c}": "colour",
    "{n}": "number",
}
