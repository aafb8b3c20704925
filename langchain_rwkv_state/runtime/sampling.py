"""Defines what a sampler is made of, for whoever chooses: the host, or the card behind the logits.

The random bits of a choice are made of a key, which the seed gives, and of the choice's number,
and of nothing else. So they need no generator that somebody must keep: who knows both numbers draws
the same bits, wherever it runs and whoever else draws beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

CHOICE = 0xD1342543DE82EF95
"""What a choice's number is multiplied with: odd, and not `DRAW`, else choices would overlap."""

DRAW = 0x9E3779B97F4A7C15
"""What is added for each draw of one choice."""

_WORD = 2**64
_UNCOUNTED = b" \t0123456789"


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
    ids: npt.NDArray[np.int64]
    counts: npt.NDArray[np.float32]


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


def increments(pieces: Sequence[bytes]) -> npt.NDArray[np.float32]:
    """Returns the `increment` of each piece, ``[len(pieces)]``."""
    return np.array([increment(piece) for piece in pieces], dtype=np.float32)
