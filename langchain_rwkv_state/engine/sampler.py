"""Chooses the next token from logits: penalties, top-p, top-k, temperature, in this order.

It follows `PIPELINE.sample_logits` and `PIPELINE.generate` of the `rwkv` package: top-p and top-k
are decided *before* the temperature is applied (elsewhere often after), and tokens that are equal
at top-p's border are all kept. It differs in two ways: a `top_p` that rounding never reaches keeps
every token rather than one, and equal tokens at top-k's border go by their ids. The easy mistake
is to sort all of 65,536 logits at each step: the border nearly always lies among the best few.
"""

from __future__ import annotations

import random
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from langchain_rwkv_state.engine.request import Sampling
from langchain_rwkv_state.errors import EngineError

Floats: TypeAlias = npt.NDArray[np.floating]
Ids: TypeAlias = npt.NDArray[np.int64]

_FIRST_LOOK = 512  # likeliest tokens looked at before looking at all
_UNCOUNTED = b" \t0123456789"


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
        self._random = random.Random(sampling.seed)  # noqa: S311
        self._penalises = bool(sampling.presence_penalty or sampling.frequency_penalty)
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
        scores = logits.detach().numpy()
        if not (np.isfinite(scores.max()) and np.isfinite(scores.min())):
            raise EngineError(
                "The model's logits are infinite or not numbers, as after an overflow: load it "
                "with a wider dtype (strategy='cpu fp32' or 'cuda bf16'), and check its file."
            )
        if self._places:
            scores = self._penalised(scores)
        if self._sampling.temperature == 0:
            return int(scores.argmax())
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
        known, sampling = len(self._places), self._sampling
        lowered = scores.copy()
        counts = self._counts[:known]
        lowered[self._ids[:known]] -= (
            sampling.presence_penalty + sampling.frequency_penalty * counts
        )
        return lowered


def choices(scores: Floats, sampling: Sampling) -> tuple[Ids | None, Floats]:
    """Returns the tokens to choose from and their weights.

    Args:
        scores: Logits, ``[V]``, finite.
        sampling: Top-p, top-k and a temperature above 0.

    Returns:
        The ids, in a fixed order (``None`` for all), and for each a weight (fp64) in proportion
        to its probability.
    """
    ids = None if sampling.top_p >= 1 else _nucleus(scores, sampling.top_p)
    if 0 < sampling.top_k < (len(scores) if ids is None else len(ids)):
        ids = _best(scores, ids, sampling.top_k)
    left = (scores if ids is None else scores[ids]).astype(np.float64)
    return ids, np.exp((left - left.max()) / sampling.temperature)


def _nucleus(scores: Floats, top_p: float) -> Ids | None:
    """Returns the likeliest tokens that together reach `top_p`, by id; ``None`` for all."""
    highest = scores.max()
    goal = top_p * np.exp(scores - highest).sum(dtype=np.float64)
    for look in (_FIRST_LOOK, len(scores)):
        best = scores if look >= len(scores) else np.partition(scores, -look)[-look:]
        best = np.sort(best)[::-1]
        sums = np.cumsum(np.exp(best - highest), dtype=np.float64)
        place = int(np.searchsorted(sums, goal))
        if place < len(sums):
            return np.flatnonzero(scores >= best[place])
    return None


def _best(scores: Floats, ids: Ids | None, top_k: int) -> Ids:
    """Returns the `top_k` likeliest of some tokens; of equal ones the lower ids, as argmax does."""
    left = scores if ids is None else scores[ids]
    border = np.partition(left, -top_k)[-top_k]
    places = np.flatnonzero(left >= border)
    order = np.argsort(-left[places], kind="stable")[:top_k]
    kept = places[order]
    return kept if ids is None else ids[kept]
