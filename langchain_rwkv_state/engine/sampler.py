"""Chooses the next tokens of many requests: each request's counts and random numbers.

How a token is chosen from a row is said in `choices`; this is who chooses. All rows of a step are
looked over at once, and those whose choice needs nothing else are chosen from on the same occasion,
by compiled code where there is a compiler (`runtime/native/sampling.py`). Both ways give the same
token, and what is computed of a row never depends on the others: a seeded answer is the same in any
crowd. A choice takes one random number, however often its row is looked at.

Where a card has chosen from a row already, by the state that `Sampler.handed_over` gives, the
sampler takes note of that token and reads no logits: it chooses itself only where somebody wants
another one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import numpy as np
import torch

from langchain_rwkv_state.engine import choices
from langchain_rwkv_state.engine.request import Sampling
from langchain_rwkv_state.errors import EngineError
from langchain_rwkv_state.runtime.native.sampling import compiled
from langchain_rwkv_state.runtime.sampling import (
    Draw,
    Floats,
    SamplerState,
    Words,
    bits_of,
    increment,
)

# Logits lie within some hundreds: a penalty of this says never again (or nothing else), as a larger
# one does, and sums of such stay finite in fp32.
_MOST_PENALTY = 1e6
# Temperatures beyond fp32 are as good as its last ones.
_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class LogitsRow:
    """One row of logits, and what a pass over all rows found of it.

    Args:
        scores: The logits, ``[V]``, or what fetches them, which is called at most once: logits on a
            card stay there unless somebody wants them.
        best: As the attribute.
        finite: As the attribute.

    Attributes:
        best: The id of the highest, the first of equals; of no meaning if not all are finite.
        finite: Whether all are finite numbers.
    """

    __slots__ = ("_scores", "best", "finite")

    def __init__(self, scores: Floats | Callable[[], Floats], best: int, finite: bool) -> None:
        self._scores = scores
        self.best = best
        self.finite = finite

    @property
    def scores(self) -> Floats:
        """The logits, ``[V]``, fp32, on the host."""
        if callable(self._scores):
            self._scores = self._scores()
        return self._scores


def scan_rows(
    logits: torch.Tensor,
    samplers: Mapping[int, Sampler] | None = None,
    allowed: Mapping[int, Words | None] | None = None,
) -> list[LogitsRow]:
    """Looks over the logits of many requests at once.

    Args:
        logits: ``[B, V]``, fp32, on the CPU; left as they are.
        samplers: By row, who is to choose next, by these logits, if that is known by now: all of
            them choose at once, and `Sampler.choose` hands over what came of it. It saves time and
            changes nothing.
        allowed: By row, what those may choose from, as `Sampler.choose` will be told: the same
            array, unchanged; ``None``, or no entry, for all ids.
    """
    scores = logits.detach().numpy()
    choose, samplers, allowed = compiled(), samplers or {}, allowed or {}
    if choose is None:
        return _scan_rows(scores)
    draws: list[Draw | None] = [None] * len(scores)
    for row, sampler in samplers.items():
        draws[row] = sampler.draw(scores.shape[1], allowed.get(row))
    found = choose(scores, draws)
    rows = [LogitsRow(one, each.best, each.finite) for one, each in zip(scores, found, strict=True)]
    for row, sampler in samplers.items():
        sampler.chose(rows[row], allowed.get(row), found[row].chosen)
    return rows


def _scan_rows(scores: Floats) -> list[LogitsRow]:
    best = scores.argmax(axis=1)  # the first NaN where there is one
    ends = scores[np.arange(len(scores)), best], scores.min(axis=1)
    finite = np.isfinite(ends[0]) & np.isfinite(ends[1])
    return [LogitsRow(*row) for row in zip(scores, best.tolist(), finite.tolist(), strict=True)]


class Sampler:
    """The choices of one request: its own counts and its own random numbers.

    Args:
        sampling: The settings. One seed gives one sequence of choices for one sequence of logits,
            whatever else runs in the process.

    Attributes:
        n_chosen: Number of choices made.

    Example:
        >>> sampler = Sampler(Sampling(temperature=0))
        >>> sampler.pick(torch.tensor([0.1, 2.0, 0.3]))
        1
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self.n_chosen = 0
        # Repeatable choices, not secrets; None takes fresh entropy.
        self._key = random.Random(_seed(sampling.seed)).getrandbits(64)  # noqa: S311
        self._chosen: tuple[LogitsRow, Words | None, int] | None = None
        temperature = sampling.temperature
        self._temperature = temperature and min(max(temperature, _LEAST), _MOST)
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
        return self.choose(scan_rows(logits[None])[0])

    def choose(self, row: LogitsRow, allowed: Words | None = None) -> int:
        """Returns the next token for a row that was scanned.

        It may be asked again for the same row, with another mask or without one: each is a choice
        of its own. The row's scores are read only if they are needed: not for a token that was
        chosen ahead (`chose`), nor for the highest of all.

        Args:
            row: The row.
            allowed: A bit for each id that may be chosen, bit ``i % 32`` of word ``i // 32``:
                int32, ``[ceil(V / 32)]``, as llguidance makes them. The others are as if they were
                not there, for top-p and top-k too; ``None`` allows all.

        Raises:
            EngineError: A logit is infinite or not a number, allowed or not, or no id is allowed.
            ValueError: The mask has another shape or dtype.
        """
        if not row.finite:
            raise EngineError(
                "The model's logits are infinite or not numbers, as after an overflow: load it "
                "with a wider dtype (strategy='cpu fp32' or 'cuda bf16'), and check its file."
            )
        chosen, self._chosen = self._chosen, None
        if chosen is not None and chosen[0] is row and chosen[1] is allowed:
            token: int | None = chosen[2]
        elif self._temperature == 0 and not self._places and allowed is None:
            token = row.best
        else:
            draw, choose = self.draw(len(row.scores), allowed), compiled()
            if choose is None:
                token = choices.choose(row.scores, draw)
            else:
                token = choose(row.scores[None], [draw])[0].chosen
        self.n_chosen += 1
        if token is None:
            raise EngineError(
                f"None of the {len(row.scores)} ids is allowed here, so nothing can be chosen: "
                "end the answer, or allow the id that ends it."
            )
        return token

    def draw(self, vocab_size: int, allowed: Words | None) -> Draw:
        """Returns how the next token is chosen: the same until one is, or `saw` one.

        Args:
            vocab_size: Number of logits.
            allowed: What may be chosen from.

        Raises:
            ValueError: The mask has another shape or dtype than `choose` says.
        """
        if allowed is not None:
            _check(allowed, vocab_size)
        known, sampling = len(self._places), self._sampling
        return Draw(
            self._temperature,
            sampling.top_p,
            min(sampling.top_k, vocab_size),
            bits_of(self._key, self.n_chosen),
            self._ids[:known],
            self._presence + self._frequency * self._counts[:known],
            allowed,
        )

    def chose(self, row: LogitsRow, allowed: Words | None, token: int | None) -> None:
        """Takes note of what was chosen by `draw`, or by a card, before `choose` asks for it.

        Args:
            row: What it was chosen from.
            allowed: Among what: the array that `choose` will be given, or ``None``.
            token: The token, ``None`` where none was chosen.
        """
        self._chosen = None if token is None else (row, allowed, token)

    def handed_over(self) -> SamplerState:
        """Returns what decides the next choices, for a card that is to make them.

        The card's are this sampler's, id for id, as long as it counts what it chooses, and `chose`,
        `choose` and `saw` follow here. It is to be handed over anew where they do not go together:
        where another token is chosen than the card's, or `n_chosen` is not the card's number.
        """
        known, sampling = len(self._places), self._sampling
        return SamplerState(
            self._temperature,
            sampling.top_p,
            sampling.top_k,
            self._presence,
            self._frequency,
            sampling.penalty_decay,
            self._key,
            self.n_chosen,
            self._ids[:known].copy(),
            self._counts[:known].copy(),
        )

    def saw(self, token: int, piece: bytes) -> None:
        """Counts a chosen token for the penalties.

        Args:
            token: The token.
            piece: Its bytes, which say whether it counts.
        """
        self._chosen = None
        if not self._penalises:
            return
        known = len(self._places)
        counts = self._counts[:known]
        counts *= self._sampling.penalty_decay
        place = self._places.setdefault(token, known)
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        if place == known:
            self._ids[place] = token
        self._counts[place] += increment(piece)


def _penalty(given: float) -> float:
    return min(max(given, -_MOST_PENALTY), _MOST_PENALTY)


def _seed(given: int | None) -> int | bytes | None:
    """Returns what to seed with; Python drops a sign, and 1 and -1 are two seeds."""
    if given is None or given >= 0:
        return given
    return given.to_bytes(given.bit_length() // 8 + 1, "big", signed=True)


def _check(allowed: Words, vocab_size: int) -> None:
    words = -(-vocab_size // 32)
    if allowed.dtype != np.int32 or allowed.shape != (words,):
        raise ValueError(
            f"allowed must be {words} words of int32, a bit for each of {vocab_size} ids, got "
            f"{allowed.dtype} of shape {allowed.shape}."
        )
