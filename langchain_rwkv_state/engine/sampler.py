"""Chooses the next token from logits: penalties, top-p, top-k, temperature, in this order.

It follows `PIPELINE.sample_logits` and `PIPELINE.generate` of the `rwkv` package: top-p and top-k
are decided *before* the temperature is applied (elsewhere often after), and tokens that are equal
at top-p's border are all kept. It differs in two ways: a `top_p` that rounding never reaches keeps
every token rather than one, and equal tokens at top-k's border go by their ids. The easy mistake
is to sort all of 65,536 logits at each step: the border nearly always lies among the best few.

What is done for many requests at once (`look_over`) is exact for each row, and everything that
adds numbers up is done for one row alone: a sum over a batch may round otherwise than a sum over
a row, and a seeded answer would depend on who else is there.
"""

from __future__ import annotations

import random
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from langchain_rwkv_state.engine.request import Sampling
from langchain_rwkv_state.errors import EngineError

Floats: TypeAlias = npt.NDArray[np.floating]
Ids: TypeAlias = npt.NDArray[np.int64]

# Top-p's border nearly always lies within 4 nats of the best token, among a few hundred.
_NEAR_NATS = 4.0
_NEAR_TOKENS = 2048
# Else tokens are told apart in bins, by how far they lie below the best, and one bin is sorted.
_BINS_PER_NAT = 32
_BINS = 2048
_UNCOUNTED = b" \t0123456789"
# Logits lie within some hundreds: a penalty of this says never again (or nothing else), as a larger
# one does, and sums of such stay finite in fp32.
_MOST_PENALTY = 1e6


class Look(NamedTuple):
    """One row of logits, and what a pass over all rows found of it.

    Attributes:
        scores: The logits, ``[V]``.
        best: The id of the highest, the first of equals.
        finite: Whether all are finite numbers.
    """

    scores: Floats
    best: int
    finite: bool


def look_over(logits: torch.Tensor) -> list[Look]:
    """Looks over the logits of many requests at once.

    Args:
        logits: ``[B, V]``, fp32, on the CPU; left as they are.
    """
    scores = logits.detach().numpy()
    best = scores.argmax(axis=1)  # the first NaN where there is one
    ends = scores[np.arange(len(scores)), best], scores.min(axis=1)
    finite = np.isfinite(ends[0]) & np.isfinite(ends[1])
    return [Look(*row) for row in zip(scores, best.tolist(), finite.tolist(), strict=True)]


class Sampler:
    """The choices of one request: its own counts and its own random numbers.

    Args:
        sampling: The settings. One seed gives one sequence of choices for one sequence of logits,
            whatever else runs in the process.

    Example:
        >>> sampler = Sampler(Sampling(temperature=0))
        >>> sampler.pick(torch.tensor([0.1, 2.0, 0.3]))
        1
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        # Repeatable choices, not secrets; None takes fresh entropy.
        self._random = random.Random(_seed(sampling.seed))  # noqa: S311
        self._presence = _penalty(sampling.presence_penalty)
        self._frequency = _penalty(sampling.frequency_penalty)
        self._penalises = bool(self._presence or self._frequency)
        self._places: dict[int, int] = {}
        self._ids = np.zeros(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.float32)

    def pick(self, logits: torch.Tensor) -> int:
        """Returns the next token.

        Args:
            logits: ``[V]``, fp32, on the CPU; left as it is.

        Raises:
            EngineError: A logit is infinite or not a number.
        """
        return self.choose(look_over(logits[None])[0])

    def choose(self, look: Look, allowed: npt.NDArray[np.int32] | None = None) -> int:
        """Returns the next token, as `pick` does, for a row that was looked over.

        Args:
            look: The row.
            allowed: Bit ``i % 32`` of word ``i // 32`` says whether id i may be chosen; the others
                count as not there at all. ``None`` for all.

        Raises:
            EngineError: A logit is infinite or not a number, or no id is allowed.
        """
        if not look.finite:
            raise EngineError(
                "The model's logits are infinite or not numbers, as after an overflow: load it "
                "with a wider dtype (strategy='cpu fp32' or 'cuda bf16'), and check its file."
            )
        scores, greedy = look.scores, self._sampling.temperature == 0
        if self._places:
            scores = self._penalised(scores)
        elif greedy and allowed is None:
            return look.best
        if allowed is not None:
            return self._among(scores, allowed)
        if greedy:
            return int(scores.argmax())
        return self._draw(scores)

    def _among(self, scores: Floats, allowed: npt.NDArray[np.int32]) -> int:
        known = np.unpackbits(allowed.view(np.uint8), bitorder="little", count=len(scores))
        ids = np.flatnonzero(known)
        if not len(ids):
            raise EngineError("No id is allowed here, so there is none to choose.")
        left = scores[ids]
        greedy = self._sampling.temperature == 0
        return int(ids[left.argmax() if greedy else self._draw(left)])

    def _draw(self, scores: Floats) -> int:
        ids, weights = choices(scores, self._sampling)
        sums = np.cumsum(weights)
        place = int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))
        place = min(place, len(sums) - 1)
        return place if ids is None else int(ids[place])

    def saw(self, token: int, piece: bytes) -> None:
        """Counts a chosen token for the penalties.

        Args:
            token: The token.
            piece: Its bytes; digits and blanks count nothing, as in the `rwkv` package, since
                numbers repeat them of necessity (the presence penalty still holds).
        """
        if not self._penalises:
            return
        known = len(self._places)
        self._counts[:known] *= self._sampling.penalty_decay
        place = self._places.setdefault(token, known)
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 0.0 if piece in _UNCOUNTED else 1.0

    def _penalised(self, scores: Floats) -> Floats:
        known = len(self._places)
        lowered = scores.copy()
        counts = self._counts[:known]
        lowered[self._ids[:known]] -= self._presence + self._frequency * counts
        return lowered


def _penalty(given: float) -> float:
    return min(max(given, -_MOST_PENALTY), _MOST_PENALTY)


def _seed(given: int | None) -> int | bytes | None:
    """Returns what to seed with; Python drops a sign, and 1 and -1 are two seeds."""
    if given is None or given >= 0:
        return given
    return given.to_bytes(given.bit_length() // 8 + 1, "big", signed=True)


def choices(scores: Floats, sampling: Sampling) -> tuple[Ids | None, Floats]:
    """Returns the tokens to choose from and their weights.

    Args:
        scores: Logits, ``[V]``, finite.
        sampling: Top-p, top-k and a temperature above 0.

    Returns:
        The ids, in a fixed order (``None`` for all), and for each a weight (fp64) in proportion
        to its probability.
    """
    # Next to no temperature leaves the best alone; logits may be as far apart as fp32 goes.
    with np.errstate(over="ignore", under="ignore"):
        ids = None if sampling.top_p >= 1 else _nucleus(scores, sampling.top_p)
        if 0 < sampling.top_k < (len(scores) if ids is None else len(ids)):
            ids = _best(scores, ids, sampling.top_k)
        left = (scores if ids is None else scores[ids]).astype(np.float64)
        return ids, np.exp((left - left.max()) / sampling.temperature)


def _nucleus(scores: Floats, top_p: float) -> Ids:
    """Returns the likeliest tokens that together reach `top_p`, by id."""
    below = scores.max() - scores
    masses = np.exp(-below)
    goal = top_p * float(masses.sum(dtype=np.float64))
    members, above = _around_border(below, masses, goal)
    members = members[np.argsort(below[members])]
    sums = above + np.cumsum(masses[members], dtype=np.float64)
    place = min(int(np.searchsorted(sums, goal)), len(members) - 1)
    return np.flatnonzero(below <= below[members[place]])


def _around_border(below: Floats, masses: Floats, goal: float) -> tuple[Ids, float]:
    """Returns tokens among which the masses' sum reaches `goal`, and the sum of those before."""
    members = np.flatnonzero(below <= _NEAR_NATS)
    if len(members) <= _NEAR_TOKENS and masses[members].sum(dtype=np.float64) >= goal:
        return members, 0.0
    bins = np.minimum(below * below.dtype.type(_BINS_PER_NAT), _BINS - 1).astype(np.intp)
    sums = np.cumsum(np.bincount(bins, masses))
    place = min(int(np.searchsorted(sums, goal)), len(sums) - 1)
    return np.flatnonzero(bins == place), float(sums[place - 1]) if place else 0.0


def _best(scores: Floats, ids: Ids | None, top_k: int) -> Ids:
    """Returns the `top_k` likeliest of some tokens; of equal ones the lower ids, as argmax does."""
    left = scores if ids is None else scores[ids]
    border = np.partition(left, -top_k)[-top_k]
    places = np.flatnonzero(left >= border)
    order = np.argsort(-left[places], kind="stable")[:top_k]
    kept = places[order]
    return kept if ids is None else ids[kept]
