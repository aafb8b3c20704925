"""Draws values to be remembered that the demo model's training never drew: names and the like.

Half are real words, those of `rwkv-state recall`; half are made of syllables that are not the
training's. What training may draw is decided by `examples.demo_training`: its lists, and made-up
words and numbers whose checksum it does not hold out. Whether a value
is free of it, `never_drawn` says.
"""

from __future__ import annotations

from random import Random

from examples.demo_training import words
from langchain_rwkv_state.demo.held_out import is_held_out
from langchain_rwkv_state.toolbox.recall.nouns import WORDS
from langchain_rwkv_state.toolbox.recall.values import number

_LONGEST_MADE_UP = 12  # of the training's made-up words
_DRAWN = {
    word.lower()
    for listed in (
        *(words.NAMES, words.CITIES, words.PETS, words.COLOURS, words.FOODS, words.JOBS),
        *(words.WORDS, words.ANIMALS, words.PEOPLE, words.FAVOURITES),
    )
    for word in listed
}
_HELD_OUT = {word.lower() for listed in words.HELD_OUT.values() for word in listed}


def _words(text: str) -> list[str]:
    return text.split()


_ONSETS = _words("""
b br c ch d dr dw f fl fr g gl gr h j k kl l m n p pl pr qu r s sh sk sl sn st sv
t th tr v w wr y z
""")
_NUCLEI = _words("""
a e i o u aa ee ei ia ie oi oo ou ua uo
""")
_CODAS = _words("""
b ck d ft g k l lb lk lm lp lsh m mp n nd ng nk nt p r rb rd rf rk rl rm rn rsh
rv s sk st t x
""")
_LOWER_KINDS = ("colour", "food")
_ACCENTED = _words("""
Zoë Chloë Jörg Björk Søren Åsa Łukasz Ångström Héloïse François Beyoncé Günther Müller Jürgen Inès
Renée Noël Gaël Siân Niamh Øystein Žofia Šárka Ramón Ibáñez Peña Núñez Tomé João Çelik Ömer
""")


def never_drawn(word: str) -> bool:
    """Says whether the demo model's training cannot have drawn a word or number."""
    lower = word.lower()
    if lower in _DRAWN:
        return False
    return lower in _HELD_OUT or len(word) > _LONGEST_MADE_UP or is_held_out(lower)


def value(rng: Random, kind: str) -> str:
    """Returns a value of a kind (see `KINDS`) that training never drew."""
    if kind == "number":
        return number(rng)
    if rng.random() < 0.5:
        return rng.choice(WORDS[kind])
    made = made_up(rng)
    return made if kind in _LOWER_KINDS else made.capitalize()


def other_value(rng: Random, kind: str, *taken: str) -> str:
    """Returns a value that is none of those taken."""
    while True:
        found = value(rng, kind)
        if found not in taken:
            return found


def made_up(rng: Random) -> str:
    """Returns a lower-case word of two or three syllables."""
    while True:
        syllables = [
            rng.choice(_ONSETS) + rng.choice(_NUCLEI) + (rng.choice(_CODAS) if closed else "")
            for closed in (rng.random() < 0.5 for _ in range(rng.choice([2, 2, 3])))
        ]
        found = "".join(syllables)
        if len(found) <= 10 and never_drawn(found):
            return found


def letters(rng: Random) -> str:
    """Returns four to eight lower-case letters in any order."""
    while True:
        found = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(4, 8)))
        if never_drawn(found):
            return found


def accented(rng: Random) -> str:
    """Returns a name with letters beyond ASCII, of which training has none."""
    return rng.choice(_ACCENTED)
