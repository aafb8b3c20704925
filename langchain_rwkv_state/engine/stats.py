"""Counts what an engine did and does: totals, rates of late, and times to the first token.

It measures and decides nothing. Rates are per second of work, not of the clock: an engine that
rests most of the time would look slow.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_WINDOW_SECONDS = 10.0
_ENTRY_SECONDS = 0.1  # steps are summed up to this length, so that a window has few entries
_FIRST_TOKENS = 512


@dataclass(frozen=True)
class EngineStats:
    """What an engine did, and what it has to do.

    Attributes:
        queued: Requests that wait.
        active: Requests that are being served.
        prompt_tokens: Ids of prompts read.
        decoded_tokens: Ids of answers, the forced ones too.
        forced_tokens: How many of them a constraint forced: the model was not asked.
        rereads: Answers read again in their canonical ids.
        steps: Passes over the model.
        slots: States that there is room for in the runtime now.
        max_slots: How many that may become.
        prefill_rate: Ids of prompts read a second, over the last 10 seconds of work.
        decode_rate: Ids of answers a second, likewise.
        first_token_p50: Seconds from submission to the first sampled id, the median of the last
            512 requests; ``None`` before the first.
        first_token_p99: The same for the slowest hundredth.
    """

    queued: int
    active: int
    prompt_tokens: int
    decoded_tokens: int
    rereads: int
    forced_tokens: int = 0
    steps: int = 0
    slots: int = 0
    max_slots: int = 0
    prefill_rate: float = 0.0
    decode_rate: float = 0.0
    first_token_p50: float | None = None
    first_token_p99: float | None = None

    def __str__(self) -> str:
        """Returns one line for a log."""
        first = "-"
        if self.first_token_p50 is not None and self.first_token_p99 is not None:
            first = f"{self.first_token_p50:.2f}/{self.first_token_p99:.2f}"
        return (
            f"queued {self.queued}, active {self.active}, slots {self.slots}/{self.max_slots}, "
            f"prefill {self.prefill_rate:.0f} tokens/s, decode {self.decode_rate:.0f} tokens/s, "
            f"first token p50/p99 {first} s, steps {self.steps}, "
            f"tokens read {self.prompt_tokens}, sampled {self.decoded_tokens}"
        )


@dataclass
class _Entry:
    seconds: float = 0.0
    prompt: int = 0
    decoded: int = 0


class Meter:
    """Counts an engine's steps, ids and times.

    Attributes:
        steps: Passes over the model.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._entries: deque[_Entry] = deque()
        self._first: deque[float] = deque(maxlen=_FIRST_TOKENS)

    def step(self, seconds: float, prompt: int, decoded: int) -> None:
        """Counts a step: how long it took, ids of prompts read, and ids sampled."""
        self.steps += 1
        entries = self._entries
        if not entries or entries[-1].seconds >= _ENTRY_SECONDS:
            entries.append(_Entry())
        last = entries[-1]
        last.seconds += seconds
        last.prompt += prompt
        last.decoded += decoded
        while sum(entry.seconds for entry in entries) - entries[0].seconds > _WINDOW_SECONDS:
            entries.popleft()

    def first_token(self, seconds: float) -> None:
        """Counts a request's first token, so long after its submission."""
        self._first.append(seconds)

    def rates(self) -> tuple[float, float]:
        """Returns ids of prompts read, and ids sampled, a second."""
        seconds = sum(entry.seconds for entry in self._entries)
        if not seconds:
            return 0.0, 0.0
        prompt = sum(entry.prompt for entry in self._entries)
        return prompt / seconds, sum(entry.decoded for entry in self._entries) / seconds

    def first_token_after(self, share: float) -> float | None:
        """Returns the seconds within which this share of requests had its first token."""
        ordered = sorted(self._first)
        if not ordered:
            return None
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
