"""What the engine is asked for and what it answers: plain values, no behaviour.

A request owns everything that a conversation's turn needs (its state, sampling, stop set), so
that a batching engine can interleave requests freely. The easy mistake is to read `Done.state`
as "what was sampled": it stands for exactly the text that the caller saw.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from langchain_rwkv_state.state import RWKVState
from langchain_rwkv_state.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: Smallest set of tokens whose probabilities reach this sum; 1 takes all.
        top_k: Number of most likely tokens to choose from; 0 takes all.
        presence_penalty: Subtracted from the logit of every token that was sampled before.
        frequency_penalty: Subtracted once for each earlier time, decayed.
        penalty_decay: Factor on the earlier counts at each step, 0 to 1.
        seed: Makes the choice repeatable; ``None`` for a fresh one.

    Raises:
        ValueError: A number is out of its range.
    """

    temperature: float = 1.0
    top_p: float = 0.7
    top_k: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_decay: float = 0.996
    seed: int | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _check("temperature", self.temperature, 0, math.inf, "0 is greedy")
        _check("top_p", self.top_p, 0, 1, "1 takes all tokens", open_below=True)
        _check("top_k", self.top_k, 0, math.inf, "0 takes all tokens", whole=True)
        _check("presence_penalty", self.presence_penalty, -math.inf, math.inf)
        _check("frequency_penalty", self.frequency_penalty, -math.inf, math.inf)
        _check("penalty_decay", self.penalty_decay, 0, 1, "1 never forgets")
        if self.seed is not None and not _is_number(self.seed, whole=True):
            raise ValueError(f"seed must be a whole number or None, got {self.seed!r}.")


@dataclass(frozen=True)
class Request:
    """One reading, and the answer to it if `max_tokens` is positive.

    Attributes:
        base: The state to start from.
        prompt: Token ids to read; may be empty only if `max_tokens` is 0.
        max_tokens: At most so many tokens are sampled; 0 reads without answering.
        sampling: How tokens are chosen.
        stop: Texts that end the answer; none of them appears in it.
        stop_ids: Token ids that end the answer (end of text).
        strip: Whether white space around the answer is left out (chat) or kept (completion).
        canonical: The ids that the text of an answer stands for; the state after the answer is
            what a model gives that read the prompt and then these ids.
        checkpoints: Positions in `prompt` (numbers of ids read) at which to keep the state too.
        marks: Positions in `prompt` at which `on_mark` is told of the state, at once; the end of
            the prompt may be one.
        on_mark: Called on the worker with a position, the state there and, at the end of a prompt
            that is to be answered, the logits of the next token. It must be quick, and must not
            raise.
        logits: Those of the next token after `base` (``[V]``, fp32, on the CPU), for a prompt that
            was read before: with them `prompt` may be empty, and nothing is read.
        on_progress: Called on the worker with (ids read, ids to read) after each chunk of the
            prompt. While it runs every other request waits, so it must be quick.
        deadline: Seconds from the submission after which the request ends with
            `DeadlineExceeded`, waiting or served; ``None`` for none.
        tokenizer: Turns what is sampled into text; ``None`` for the engine's own.

    Raises:
        ValueError: A number is out of its range, a stop text is empty, or there is nothing to
            read before an answer, and no logits.
    """

    base: RWKVState
    prompt: Sequence[int]
    max_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    strip: bool = True
    canonical: Callable[[str], Sequence[int]] | None = None
    checkpoints: tuple[int, ...] = ()
    marks: tuple[int, ...] = ()
    on_mark: Callable[[int, RWKVState, torch.Tensor | None], None] | None = None
    logits: torch.Tensor | None = None
    on_progress: Callable[[int, int], None] | None = None
    deadline: float | None = None
    tokenizer: Tokenizer | None = None

    def __post_init__(self) -> None:
        """Checks the ranges, and keeps the prompt from being changed from outside."""
        object.__setattr__(self, "prompt", tuple(self.prompt))
        _check(
            "max_tokens",
            self.max_tokens,
            0,
            math.inf,
            "0 reads without answering",
            whole=True,
        )
        if self.deadline is not None:
            _check("deadline", self.deadline, 0, math.inf, "seconds; None for no end")
        _check_stop(self.stop)
        if self.max_tokens and not self.prompt and self.logits is None:
            raise ValueError(
                "There is nothing to read before the answer: a prompt needs at least one id."
            )
        places = (*self.checkpoints, *self.marks)
        outside = [at for at in places if not 0 <= at <= len(self.prompt)]
        if outside:
            raise ValueError(
                f"Checkpoints are positions in a prompt of {len(self.prompt)} ids, "
                f"got {outside[0]}."
            )


@dataclass(frozen=True)
class Delta:
    """A piece of the answer's text; the pieces joined are `Done.text`."""

    text: str


@dataclass(frozen=True)
class Done:
    """The end of a request.

    Attributes:
        text: The whole answer.
        finish_reason: ``stop`` (a stop text or token) or ``length`` (`max_tokens`).
        state: The state that stands for base, prompt and exactly `text`.
        prompt_tokens: Number of ids read.
        answer_tokens: Number of ids sampled.
        answer_ids: The ids that `text` stands for in `state` (the canonical ones).
        checkpoints: The states asked for, in order.
        reread: Whether the answer was read again in its canonical ids.
    """

    text: str
    finish_reason: FinishReason
    state: RWKVState
    prompt_tokens: int
    answer_tokens: int
    answer_ids: tuple[int, ...]
    checkpoints: tuple[RWKVState, ...] = ()
    reread: bool = False


Event = Delta | Done


def check_ids(ids: Sequence[int], vocab_size: int, what: str) -> None:
    """Checks that a model knows all ids, before it is to read them among those of others.

    Raises:
        ValueError: It does not know one.
    """
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        wrong = next(token for token in ids if not 0 <= token < vocab_size)
        raise ValueError(f"Token ids lie in [0, {vocab_size}), {what} holds {wrong}.")


def _check_stop(stop: object) -> None:
    if not isinstance(stop, tuple) or not all(isinstance(text, str) and text for text in stop):
        raise ValueError(f"stop must be a tuple of texts, none of them empty, got {stop!r}.")


def _check(
    name: str,
    value: Any,
    low: float,
    high: float,
    hint: str = "",
    *,
    whole: bool = False,
    open_below: bool = False,
) -> None:
    number = float(value) if _is_number(value, whole=whole) else math.nan
    if math.isfinite(number) and low <= number <= high and not (open_below and number == low):
        return
    bounds = (
        f"in {'(' if open_below else '['}{low}, {high}]"
        if math.isfinite(high)
        else f"{low} or more"
        if math.isfinite(low)
        else "a finite number"
    )
    kind = "a whole number, " if whole else ""
    note = f" ({hint})" if hint else ""
    raise ValueError(f"{name} must be {kind}{bounds}{note}, got {value!r}.")


def _is_number(value: object, *, whole: bool) -> bool:
    kind = numbers.Integral if whole else numbers.Real
    return isinstance(value, kind) and not isinstance(value, bool)
