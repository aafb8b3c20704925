"""Holds a tenant to its limits: requests at once, and tokens a minute.

Tokens are those that were really read, and those of answers; how many an answer will take is not
known before, so a request is let in while anything is left, and what it takes beyond that is waited
for. Limits are of all workers together (`ledger`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from langchain_rwkv_state.serve.errors import ApiError
from langchain_rwkv_state.serve.ledger import Ledger, OwnLedger
from langchain_rwkv_state.serve.settings import Limits

Headers = list[tuple[bytes, bytes]]


class Usage:
    """Hears what a tenant's answers cost; `metrics` and limits derive from it."""

    def spent(self, *, read: int, cached: int, answered: int) -> None:
        """Takes note of an answer.

        Args:
            read: Tokens of the prompt, the cached ones too.
            cached: Those that had not to be read.
            answered: Tokens of the answer.
        """

    def failed(self, error: BaseException) -> None:
        """Takes note of what ended an answer in the middle of its stream."""


class Account(Usage):
    """What a tenant may ask, and what it uses.

    Args:
        name: The tenant's.
        limits: What it may ask.
        ledger: Counts, also for other processes.
        on_spent: Told of each answer: tokens of the prompt, cached ones among them, of the answer.
        on_failed: Told of what ended an answer in the middle of its stream.
        clock: Seconds that only grow.

    Attributes:
        limits: What it may ask; `change` sets it.
    """

    def __init__(
        self,
        name: str,
        limits: Limits,
        ledger: Ledger | None = None,
        on_spent: Callable[[int, int, int], None] = lambda *_: None,
        on_failed: Callable[[BaseException], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self.limits = limits
        self._uses = (ledger or OwnLedger()).of(name)
        self._on_spent = on_spent
        self._on_failed = on_failed
        self._clock = clock
        self._at = clock()
        self._seen = self._uses.tokens()
        self._left = float(limits.tokens_per_minute or 0)

    def change(self, limits: Limits) -> None:
        """Sets other limits; those of tokens that changed begin with a whole minute's."""
        if limits.tokens_per_minute != self.limits.tokens_per_minute:
            self._left = float(limits.tokens_per_minute or 0)
            self._at, self._seen = self._clock(), self._uses.tokens()
        self.limits = limits

    def enter(self) -> None:
        """Counts a request that is to run; `leave` is due when it ended.

        Raises:
            ApiError: As many as may run do, or the tokens of this minute are used up.
        """
        most, per_minute = self.limits.requests, self.limits.tokens_per_minute
        # Counted first: two processes that look at once may both refuse, but not both let in.
        self._uses.add(requests=1)
        if most is not None and self._uses.requests() > most:
            self._uses.add(requests=-1)
            raise self._refused(
                f"{self._name} has {most} requests running, and no more may run at once: wait for "
                "one of them.",
                seconds=1,
            )
        if per_minute is not None and self._tokens_left(per_minute) <= 0:
            self._uses.add(requests=-1)
            seconds = math.ceil((1 - self._left) * 60 / per_minute)
            raise self._refused(
                f"{self._name} has used up its {per_minute} tokens a minute: try again in "
                f"{seconds} s.",
                seconds=seconds,
                kind="tokens",
            )

    def leave(self) -> None:
        """Counts a request that ended."""
        self._uses.add(requests=-1)

    def spent(self, *, read: int, cached: int, answered: int) -> None:
        """See `Usage.spent`."""
        self._uses.add(tokens=read - cached + answered)
        self._on_spent(read, cached, answered)

    def failed(self, error: BaseException) -> None:
        """See `Usage.failed`."""
        self._on_failed(error)

    def headers(self) -> Headers:
        """Returns what a tenant is told of its limits, under OpenAI's names."""
        found: dict[str, str] = {}
        most, per_minute = self.limits.requests, self.limits.tokens_per_minute
        if most is not None:
            found["limit-requests"] = str(most)
            found["remaining-requests"] = str(max(most - self._uses.requests(), 0))
        if per_minute is not None:
            left = self._tokens_left(per_minute)
            found["limit-tokens"] = str(per_minute)
            found["remaining-tokens"] = str(max(math.floor(left), 0))
            found["reset-tokens"] = f"{(per_minute - left) * 60 / per_minute:.3f}s"
        return [(f"x-ratelimit-{name}".encode(), each.encode()) for name, each in found.items()]

    def _tokens_left(self, per_minute: int) -> float:
        """Returns the tokens that may be used now; below 0 where too many were."""
        now, seen = self._clock(), self._uses.tokens()
        refilled = min(self._left + (now - self._at) * per_minute / 60, float(per_minute))
        self._left = refilled - (seen - self._seen)
        self._at, self._seen = now, seen
        return self._left

    def _refused(self, message: str, *, seconds: int, kind: str = "requests") -> ApiError:
        headers = {name.decode(): value.decode() for name, value in self.headers()}
        return ApiError(
            429,
            message,
            code="rate_limit_exceeded",
            kind=kind,
            headers={**headers, "retry-after": str(seconds)},
        )
