"""Defines what the engine is asked for and what it answers: plain values, no behaviour.

A request owns everything that a conversation's turn needs (its state, sampling, stop set), so that
a batching engine can interleave requests freely. `Done.state` stands for exactly the text that the
caller saw, which may be less than what was sampled.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from langchain_rwkv_state.grammar.constraint import Constraint
from langchain_rwkv_state.prefix_cache import Caching
from langchain_rwkv_state.state import RWKVState
from langchain_rwkv_state.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]


MOST_TOP_LOGPROBS = 20
"""So many of the likeliest tokens at a place can be asked for, as OpenAI has it."""

_REAL = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "penalty_decay")


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; any number of its range works, however small or large.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: Smallest set of tokens whose probabilities reach this sum; 1 takes all.
        top_k: Number of most likely tokens to choose from; 0 takes all.
        presence_penalty: Subtracted from the logit of every token that was sampled before.
        frequency_penalty: Subtracted once for each earlier time, decayed.
        penalty_decay: Factor on the earlier counts at each step, 0 to 1.
        seed: Any whole number, which makes the choice repeatable; ``None`` for a fresh one.

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
        # Numbers of NumPy's and others become Python's: what follows knows no other.
        for name in _REAL:
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "top_k", int(self.top_k))
        if self.seed is not None:
            object.__setattr__(self, "seed", int(self.seed))


@dataclass(frozen=True)
class Thought:
    """How the thought is delimited that an answer begins with, where the prompt asks for one.

    Attributes:
        opening: What the model writes first to complete the tag before the thought, such as
            ``">"`` behind a prompt that ends ``<think``; left out where it is there.
        closing: What stands behind the thought, such as ``"</think>"``; empty where there is no
            thought, as behind a prompt that ends ``<think></think``, and only the opening is left
            out.
        keep: Whether the thought stays in the state behind the answer.
        asked: Whether the prompt asks for it. Where it does not, there is a thought only if the
            model's first words are the opening, white space before it left out; else all is answer.

    Raises:
        ValueError: It has neither opening nor closing, or there is no thought to be kept.
    """

    opening: str
    closing: str
    keep: bool = False
    asked: bool = True

    def __post_init__(self) -> None:
        """Checks that there is something to delimit."""
        if not self.closing and (self.keep or not self.opening):
            raise ValueError(
                "Without a closing tag there is no thought, only an opening that is left out: "
                f"keep={self.keep} needs closing, got opening={self.opening!r} and closing=''."
            )


@dataclass(frozen=True)
class Request:
    r"""Asks for ids to be read, and for an answer to them if `max_tokens` is positive.

    Attributes:
        base: The state to start from.
        prompt: Token ids to read; may be empty only if `max_tokens` is 0.
        max_tokens: At most so many tokens are sampled; 0 reads without answering.
        sampling: How tokens are chosen.
        stop: Texts that end the answer; none of them appears in it.
        stop_ids: Token ids that end the answer (end of text).
        strip: Whether white space around the answer is left out (chat) or kept (completion).
        roles: Who may take the turn: an answer and a thought end at a blank line with one of these
            words and a colon behind it; other blank lines are text.
        settled: The ids that the state after the answer covers instead of `prompt`, without what
            is only there to bring the answer about (an opened thought, how hard to think);
            ``None`` for the same. What they begin with alike is read once.
        thought: How the thought is delimited that the answer begins with; ``None`` for none.
        constraint: What the answer is held to, behind its thought; ``None`` for nothing.
        continued: What the answer begins with already, at the end of the prompt: it is continued
            in the middle, so white space before what follows is kept.
        canonical: The ids that the text of an answer (with `continued` before it) stands for; the
            state after the answer is what a model gives that read `settled` and then these ids.
        canonical_thought: The same for a thought and an answer, where `thought` is to be kept.
        checkpoints: Positions in `prompt` (numbers of ids read) whose states `Done.checkpoints` is
            to hold, no further than `settled` agrees with it.
        caching: What the prefix cache may do; ``None`` for nothing.
        on_progress: Called on the worker with (ids read, ids to read) after each chunk of the
            prompt. While it runs every other request waits, so it must be quick.
        deadline: Seconds from the submission after which the request ends with
            `DeadlineExceeded`, waiting or served; ``None`` for none.
        tokenizer: Turns what is sampled into text; ``None`` for the engine's own.
        logprobs: Whether each token of the answer comes with its log-probability, and with how many
            of the likeliest tokens at its place, 0 to `MOST_TOP_LOGPROBS`; ``None`` for neither.

    Raises:
        ValueError: A number is out of its range, a stop text is empty, there is nothing to
            read before an answer, or two of the settings contradict each other.

    Example:
        >>> Request(state, prompt, max_tokens=64, roles=("User", "Assistant"))  # doctest: +SKIP
    """

    base: RWKVState
    prompt: Sequence[int]
    max_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    strip: bool = True
    roles: tuple[str, ...] = ()
    settled: Sequence[int] | None = None
    thought: Thought | None = None
    constraint: Constraint | None = None
    continued: str = ""
    canonical: Callable[[str], Sequence[int]] | None = None
    canonical_thought: Callable[[str, str], Sequence[int]] | None = None
    checkpoints: tuple[int, ...] = ()
    caching: Caching | None = None
    on_progress: Callable[[int, int], None] | None = None
    deadline: float | None = None
    tokenizer: Tokenizer | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        """Checks the ranges, and keeps the ids from being changed from outside."""
        object.__setattr__(self, "prompt", tuple(self.prompt))
        if self.settled is not None:
            object.__setattr__(self, "settled", tuple(self.settled))
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
        if self.logprobs is not None:
            hint = "likeliest tokens beside each; None for no log-probabilities"
            _check("logprobs", self.logprobs, 0, MOST_TOP_LOGPROBS, hint, whole=True)
        _check_texts("stop", self.stop)
        _check_texts("roles", self.roles)
        if self.max_tokens and not self.prompt:
            raise ValueError(
                "There is nothing to read before the answer: a prompt needs at least one id."
            )
        self._check_thought()
        outside = [at for at in self.checkpoints if not 0 <= at <= len(self.prompt)]
        if outside:
            raise ValueError(
                f"Checkpoints are positions in a prompt of {len(self.prompt)} ids, "
                f"got {outside[0]}."
            )
        beyond = [at for at in self.checkpoints if at > self.common]
        if beyond:
            raise ValueError(
                f"The prompt and the settled ids part behind {self.common} ids, and what is read "
                f"further on is not kept: checkpoints end there, got {beyond[0]}."
            )

    @cached_property
    def common(self) -> int:
        """Number of ids with which `prompt` and `settled` begin alike."""
        return len(self.prompt) if self.settled is None else common(self.prompt, self.settled)

    def _check_thought(self) -> None:
        if self.settled is not None and not self.max_tokens:
            raise ValueError(
                "Settled ids are what the state behind an answer covers, and max_tokens=0 asks for "
                "none: make them the prompt."
            )
        if self.thought is not None and self.continued:
            raise ValueError(
                f"An answer that is continued (from {self.continued[:40]!r}) has no thought before "
                "it: leave thought or continued out."
            )
        held = self.constraint is not None and self.constraint.holds_at_once
        if (held and self.continued) or (self.constraint is not None and not self.max_tokens):
            raise ValueError(
                "A constraint that holds a whole answer leaves nothing to continue, and none holds "
                "what is not asked for: leave it out, or the answer's beginning "
                f"({self.continued[:40]!r}), or ask for more than {self.max_tokens} tokens."
            )
        if self.continued and self.settled is None:
            raise ValueError(
                f"The prompt ends with the answer that is continued ({self.continued[:40]!r}), and "
                "the state behind covers that as part of the whole answer: pass the ids before it "
                "as settled."
            )
        if (self.canonical_thought is not None) != bool(self.thought and self.thought.keep):
            raise ValueError(
                "A thought that is kept (Thought(..., keep=True)) needs canonical_thought, the ids "
                f"it stands for, and no other does, got thought={self.thought!r} and "
                f"canonical_thought={self.canonical_thought!r}."
            )


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns with how many ids two sequences begin alike.

    Example:
        >>> common([1, 2, 3], [1, 2, 4, 5])
        2
    """
    for place, (this, that) in enumerate(zip(one, other, strict=False)):
        if this != that:
            return place
    return min(len(one), len(other))


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was: the logarithm of its probability, and those of the likeliest.

    The distribution is the model's own, log-softmax of the raw logits in fp32: before penalties,
    temperature, top-p and top-k, and before a constraint's mask.

    Attributes:
        id: The token.
        token: Its text, with U+FFFD for bytes that are no whole character.
        bytes: Its bytes, which joined with its neighbours' are the text; empty for a special token.
        logprob: Its log-probability. 0.0 where it was forced: the model was not asked.
        top: The likeliest tokens at its place, the likeliest first, of equals the least id; it may
            be among them. Empty where it was forced. These have no `top` and no place themselves.
        at: The place in `Done.text` of the first character that it is a part of; 0 for the first
            token, though white space before the text may have come with it.
        forced: Whether a constraint left nothing else, so that the model was not asked.
    """

    id: int
    token: str
    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    at: int = 0
    forced: bool = False


@dataclass(frozen=True)
class Delta:
    """A piece of what is said: the pieces joined are `Done.text` and `Done.thought`.

    Attributes:
        text: Of the answer.
        thought: Of the thought, which comes before any text.
        logprobs: Of the tokens whose first character comes with `text`, where they were asked for:
            each token comes once, and all of it, though the rest of its text may come later.
    """

    text: str
    thought: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Done:
    """The end of a request.

    Attributes:
        text: The whole answer.
        finish_reason: ``stop`` (a stop text or token) or ``length`` (`max_tokens`).
        state: The state that stands for base, prompt (or `Request.settled`) and exactly `text`.
        prompt_tokens: Number of ids of the prompt.
        answer_tokens: Number of ids of the answer, its thought's and the forced ones too.
        answer_ids: The ids that `text` stands for in `state` (the canonical ones), with what it was
            continued from and with the thought where that is kept.
        checkpoints: The states asked for, in order.
        reused: How many ids of the prompt the prefix cache saved.
        reread: Whether the answer was read again because the model said it in other ids than the
            canonical ones. What a thought or `Request.settled` makes be read again does not count.
        thought: The thought, ``None`` where none was to come.
        forced_tokens: How many of `answer_tokens` the constraint forced: the model was not asked.
        thought_tokens: How many of `answer_tokens` belong to the thought, the tag behind it too.
        logprobs: Of the tokens that have a part in `text`, ``None`` where they were not asked for.
            A token is whole, so that the first one's bytes and the last one's may reach beyond the
            text: white space that is left out around it, the end of a tag before it, the beginning
            of a stop text behind it. A thought's tokens and the one that ends a text are not there.
    """

    text: str
    finish_reason: FinishReason
    state: RWKVState
    prompt_tokens: int
    answer_tokens: int
    answer_ids: tuple[int, ...]
    checkpoints: tuple[RWKVState, ...] = ()
    reused: int = 0
    reread: bool = False
    thought: str | None = None
    thought_tokens: int = 0
    forced_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None


Event = Delta | Done


def check_ids(ids: Sequence[int], vocab_size: int, what: str) -> None:
    """Checks that a model knows all ids, before it is to read them among those of others.

    Raises:
        ValueError: It does not know one.
    """
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        wrong = next(token for token in ids if not 0 <= token < vocab_size)
        raise ValueError(f"Token ids lie in [0, {vocab_size}), {what} holds {wrong}.")


def _check_texts(name: str, texts: object) -> None:
    if not isinstance(texts, tuple) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{name} must be a tuple of texts, none of them empty, got {texts!r}.")


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
    try:
        number = float(value) if _is_number(value, whole=whole) else math.nan
    except OverflowError:  # a whole number that is larger than any of the others
        number = math.inf if value > 0 else -math.inf
        if whole and number == high:
            return
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
    raise ValueError(f"{name} must be {kind}{bounds}{note}, got {_shown(value)}.")


def _shown(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "one of thousands of digits"


def _is_number(value: object, *, whole: bool) -> bool:
    kind = numbers.Integral if whole else numbers.Real
    return isinstance(value, kind) and not isinstance(value, bool)
