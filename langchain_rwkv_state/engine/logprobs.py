"""Keeps how likely the tokens of one answer were, until the text that they have a part in is out.

Tokens and text do not end together: a character may take several tokens, white space and what may
be a stop text is held back, and tags are left out. So each token is kept with the characters of all
that was said that it has a part in, and handed on, once and whole, with the first of them that is
the answer's. Easy to get wrong: nothing here may be done for a request that does not ask, since a
row of logits may lie on a card, and reading one takes as long as choosing from it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from langchain_rwkv_state.engine.answer import Answer
from langchain_rwkv_state.engine.request import Delta, TokenLogprob
from langchain_rwkv_state.engine.sampler import LogitsRow
from langchain_rwkv_state.runtime.sampling import Floats
from langchain_rwkv_state.tokenizer import Tokenizer


class _Waiting(NamedTuple):
    """A token that was not handed on yet, and the characters that it has a part in.

    Attributes:
        start: The first, counted from the first that was said.
        end: Behind the last.
        entry: The token.
    """

    start: int
    end: int
    entry: TokenLogprob


class LogprobLedger:
    """The log-probabilities of one answer.

    Args:
        n_top: How many of the likeliest tokens come with each.
        tokenizer: Turns ids into bytes.
        answer: Says which characters are the answer's.
    """

    def __init__(self, n_top: int, tokenizer: Tokenizer, answer: Answer) -> None:
        self._n_top = n_top
        self._tokenizer = tokenizer
        self._answer = answer
        self._n_said = 0  # characters, with thought, tags and what was left out
        self._n_out = 0  # of the answer's characters
        self._waiting: deque[_Waiting] = deque()
        self._handed_on: list[TokenLogprob] = []

    @property
    def handed_on(self) -> tuple[TokenLogprob, ...]:
        """All tokens that have a part in the answer's text so far."""
        return tuple(self._handed_on)

    def note(
        self, token: int, piece: bytes, text: str, row: LogitsRow | None, *, partial: bool
    ) -> None:
        """Takes note of a token, once the answer has taken its text.

        Args:
            token: The token.
            piece: Its bytes.
            text: The characters that it completed.
            row: What it was chosen from; ``None`` where it was forced.
            partial: Whether it ends within a character.
        """
        start = self._n_said
        self._n_said += len(text)
        if self._answer.thinks and self._answer.thought is not None:
            return
        # One without text stands with the character that comes next.
        end = max(self._n_said + partial, start + 1)
        if row is None:
            entry = _entry(token, piece, 0.0, forced=True)
        else:
            (logprob, *others), top = _log_softmax(row.scores, token, self._n_top)
            pieces = [self._tokenizer.decode_bytes((each,)) for each in top]
            likeliest = tuple(map(_entry, top, pieces, others))
            entry = _entry(token, piece, logprob, likeliest)
        self._waiting.append(_Waiting(start, end, entry))

    def hand_on(self, delta: Delta) -> Delta:
        """Returns a piece with the tokens that begin in it; the answer has let it out."""
        if not delta.text:
            return delta
        begins = self._answer.begins
        self._n_out += len(delta.text)
        taken = []
        while self._waiting and self._waiting[0].start < begins + self._n_out:
            each = self._waiting.popleft()
            if each.end > begins:
                taken.append(replace(each.entry, at=max(each.start - begins, 0)))
        self._handed_on += taken
        return replace(delta, logprobs=tuple(taken))


def _entry(
    token: int,
    piece: bytes,
    logprob: float,
    top: tuple[TokenLogprob, ...] = (),
    *,
    forced: bool = False,
) -> TokenLogprob:
    text = piece.decode(errors="replace")
    return TokenLogprob(token, text, piece, logprob, top, forced=forced)


def _log_softmax(scores: Floats, token: int, n_top: int) -> tuple[list[float], list[int]]:
    """Returns log-probabilities, of a token and then of the likeliest, and the ids of these.

    Args:
        scores: Logits, ``[V]``, fp32, finite.
        token: The token.
        n_top: How many of the likeliest.
    """
    best = scores.max()
    with np.errstate(over="ignore", under="ignore"):  # what is as far away as that weighs nothing
        total = math.log(float(np.exp(scores - best).sum(dtype=np.float64)))
    top = _likeliest(scores, n_top)
    return [float(scores[each]) - float(best) - total for each in (token, *top)], top


def _likeliest(scores: Floats, count: int) -> list[int]:
    """Returns the ids of the highest scores, the highest first, of equals the least id."""
    count = min(count, len(scores))
    if not count:
        return []
    # A fourth of the time that NumPy's takes; of equals at the border it gives any.
    border = torch.topk(torch.from_numpy(scores), count).values[-1].item()
    ids = np.flatnonzero(scores >= border)
    return [int(each) for each in ids[np.argsort(-scores[ids], kind="stable")][:count]]
