"""Chooses the next token of a row of logits, in NumPy: penalties, top-p, top-k, then temperature.

It follows `PIPELINE.sample_logits` of the `rwkv` package: top-p and top-k are decided *before* the
temperature is applied (elsewhere often after), and tokens that are equal at top-p's border are all
kept. It differs in two ways: a `top_p` that rounding never reaches keeps every token rather than
one, and equal tokens at top-k's border go by their ids. It is what runs where there is no compiler,
and the oracle of `runtime/native/sampling.cpp`.

Both choose the same token, always: what is summed are weights in whole 2^-36 of the best token's,
so that no sum depends on an order, and such a weight is made of additions and products of fp32
alone, each rounded as IEEE 754 says. A token 25 nats below the best weighs nothing.

Nothing is sorted for top-p's border, since it need not be known: a token is drawn from all, and
lies within if the tokens that are likelier weigh less than `top_p` of all. If it does not, the next
is drawn from those likelier ones, which hold all that lies within. So each token within is drawn in
proportion to its weight, and after some ``1 + log(1 / top_p)`` draws.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from langchain_rwkv_state.runtime.sampling import DRAW, Draw, Floats, Ids, Words, mixed

Weights: TypeAlias = npt.NDArray[np.int64]
Marks: TypeAlias = npt.NDArray[np.bool_]

_MOST_NATS = 32.0  # what is further below the best weighs nothing
_LOG2_E = 1.44269504088896341
_LN_2 = (0.693359375, -2.12194440e-4)  # in two parts: products with the first are exact
# Of Cephes' expf; relative error 2e-7.
_FIRST, *_REST = (
    *(1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3),
    *(4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
)
_SHIFT = np.float64(1.5 * 2**16)  # whose last bit is 2^-36
_PART = 8192  # numbers at a time: new memory for all of a row would cost more than the arithmetic
_WORD = 2**64


def choose(scores: Floats, draw: Draw) -> int | None:
    """Returns the next token, ``None`` where none is allowed.

    Args:
        scores: Logits, ``[V]``, fp32, finite; left as they are.
        draw: How to choose.

    Example:
        >>> none = np.zeros(0, np.int64), np.zeros(0, np.float32)
        >>> choose(np.array([0.1, 2.0, 0.3], np.float32), Draw(1.0, 0.5, 0, 7, *none))
        1
    """
    if len(draw.ids):
        scores = scores.copy()
        scores[draw.ids] -= draw.penalties
    if draw.allowed is None:
        return _draw(scores, draw)
    ids = _allowed(draw.allowed, len(scores))
    return int(ids[_draw(scores[ids], draw)]) if len(ids) else None


def _allowed(words: Words, count: int) -> Ids:
    bits = np.unpackbits(words.astype("<i4", copy=False).view(np.uint8), bitorder="little")
    return np.flatnonzero(bits[:count])


def _draw(scores: Floats, draw: Draw) -> int:
    if draw.temperature == 0:
        return int(scores.argmax())
    left, bits = Candidates.of(scores, draw), draw.bits
    ids: Ids | None = None
    while True:
        bits = (bits + DRAW) % _WORD
        place = left.at(mixed(bits))
        better = left.better(place)
        if better is None:
            return place if ids is None else int(ids[place])
        ids = np.flatnonzero(better) if ids is None else ids[better]
        left = left.only(better)


class Candidates(NamedTuple):
    """Tokens that may be drawn, and what decides which lie within top-p and top-k.

    Attributes:
        scores: Their logits.
        masses: What each weighs before the temperature is applied, in whole 2^-36.
        weights: What it weighs after it.
        goal: Tokens lie within top-p if those that are likelier weigh less; ``None`` for all.
        top_k: Tokens lie within top-k if fewer come before; 0 for all.
    """

    scores: Floats
    masses: Weights
    weights: Weights
    goal: int | None
    top_k: int

    @classmethod
    def of(cls, scores: Floats, draw: Draw) -> Candidates:
        """Returns all tokens of a row."""
        with np.errstate(over="ignore"):  # logits may be as far apart as fp32 goes
            below = scores.max() - scores
            masses = weights = _weights(below)
            if draw.temperature != 1:
                weights = _weights(below / np.float32(draw.temperature))
        goal = None
        if draw.top_p < 1:
            total = int(masses.sum())
            goal = max(1, min(total, math.ceil(draw.top_p * float(total))))
        return cls(scores, masses, weights, goal, draw.top_k)

    def at(self, bits: int) -> int:
        """Returns the place of the token that 64 random bits fall on."""
        sums = np.cumsum(self.weights)
        return int(np.searchsorted(sums, bits * int(sums[-1]) // _WORD, side="right"))

    def better(self, place: int) -> Marks | None:
        """Marks what is left to draw from if a token lies outside; ``None`` if it lies within."""
        likelier: Marks = self.scores > self.scores[place]
        if self.goal is not None and int(self.masses[likelier].sum()) >= self.goal:
            return likelier
        if not self.top_k:
            return None
        equal = np.flatnonzero(self.scores[:place] == self.scores[place])
        if np.count_nonzero(likelier) + len(equal) < self.top_k:
            return None
        likelier[equal] = True
        return likelier

    def only(self, marked: Marks) -> Candidates:
        """Returns the marked ones."""
        return self._replace(
            scores=self.scores[marked], masses=self.masses[marked], weights=self.weights[marked]
        )


def _weights(below: Floats) -> Weights:
    """Returns ``exp(-below)`` in whole 2^-36, to the bit what `sampling.cpp` makes of it."""
    weights = np.empty(len(below), dtype=np.int64)
    for start in range(0, len(below), _PART):
        part = slice(start, start + _PART)
        weights[part] = (_exponential(below[part]) + _SHIFT).view(np.int64)
    weights -= _SHIFT.view(np.int64)
    return weights


def _exponential(below: Floats) -> Floats:
    x = np.minimum(below, np.float32(_MOST_NATS))
    n = np.rint(x * np.float32(_LOG2_E))
    first, second = map(np.float32, _LN_2)
    f = (n * first - x) + n * second
    p = np.full_like(f, _FIRST)
    for coefficient in _REST:
        p *= f
        p += np.float32(coefficient)
    power = ((p * f) * f + f) + np.float32(1)
    return (power.view(np.int32) - (n.astype(np.int32) << 23)).view(np.float32)
