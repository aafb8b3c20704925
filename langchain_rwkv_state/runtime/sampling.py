"""Defines what a choice is made of, for whoever chooses: the host, or the card behind the logits.

The random bits of a choice are made of a key, which the seed gives, and of the choice's number,
and of nothing else. So they need no generator that somebody must keep: who knows both numbers draws
the same bits, wherever it runs and whoever else draws beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Ids: TypeAlias = npt.NDArray[np.int64]
Words: TypeAlias = npt.NDArray[np.int32]

CHOICE = 0xD1342543DE82EF95
"""What a choice's number is multiplied with: odd, and not `DRAW`, else choices would overlap."""

DRAW = 0x9E3779B97F4A7C15
"""What is added for each draw of one choice."""


_WORD = 2**64
_UNCOUNTED = b" \t0123456789"


class Draw(NamedTuple):
    """How to choose from one row of logits, ``[V]``.

    Attributes:
        temperature: 0 takes the highest; else within fp32's normal numbers.
        top_p: Smallest set of tokens whose probabilities reach this sum; 1 takes all.
        top_k: Number of most likely tokens to choose from, V at most; 0 takes all.
        bits: 64 random bits.
        ids: Penalised tokens, each once.
        penalties: What is subtracted from their logits, fp32.
        allowed: A bit for each id that may be chosen, bit ``i % 32`` of word ``i // 32``,
            ``[ceil(V / 32)]``; ``None`` for all.
    """

    temperature: float
    top_p: float
    top_k: int
    bits: int
    ids: Ids
    penalties: Floats
    allowed: Words | None = None


class Found(NamedTuple):
    """What was found in one row.

    Attributes:
        best: The id of the highest logit, the first of equals; of no meaning if not all are finite.
        finite: Whether all are finite numbers.
        chosen: The token; ``None`` where nothing was to be chosen, or could be.
    """

    best: int
    finite: bool
    chosen: int | None


class SamplerState(NamedTuple):
    """All that decides a request's next choices, but for the logits.

    Attributes:
        temperature: 0 takes the highest; else within fp32's normal numbers.
        top_p: Smallest set of tokens whose probabilities reach this sum; 1 takes all.
        top_k: Number of most likely tokens to choose from, of any size; 0 takes all.
        presence: Subtracted from the logit of each token that was seen.
        frequency: Subtracted as many times as it counts.
        decay: Factor on all counts when a token is seen.
        key: 64 bits, of the seed.
        n: Number of choices made.
        ids: The tokens that were seen, each once.
        counts: How often each of them counts, fp32.
    """

    temperature: float
    top_p: float
    top_k: int
    presence: float
    frequency: float
    decay: float
    key: int
    n: int
    ids: Ids
    counts: Floats


def bits_of(key: int, number: int) -> int:
    """Returns the 64 random bits of a key's choice number 0, 1, and so on.

    Example:
        >>> bits_of(7, 0) == bits_of(7, 0), bits_of(7, 0) == bits_of(7, 1)
        (True, False)
    """
    return mixed((key + number * CHOICE) % _WORD)


def mixed(bits: int) -> int:
    """Returns splitmix64's number behind a state."""
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % _WORD
    return bits ^ (bits >> 31)


def increment(piece: bytes) -> float:
    """Returns what a token's piece adds to its count.

    Digits and blanks add nothing, as in the `rwkv` package, since numbers repeat them of necessity
    (the presence penalty still holds).
    """
    return 0.0 if piece in _UNCOUNTED else 1.0


def increments(pieces: Sequence[bytes]) -> Floats:
    """Returns the `increment` of each piece, ``[len(pieces)]``."""
    return np.array([increment(piece) for piece in pieces], dtype=np.float32)
