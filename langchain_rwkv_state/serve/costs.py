"""Tells a tenant's usage what an answer cost, once: at its end, or where it was left.

Who leaves early has had the prompt read, and the tokens until then: limits count these, too.
"""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import Self

from langchain_rwkv_state.engine import Done, Event, Request
from langchain_rwkv_state.serve.tenants import Usage


class Cost:
    """What an answer costs, to be used as a context.

    Args:
        usage: Is told.
        known: How many tokens the state stands for that is gone on from.
        prompt: How many are to be read.

    Attributes:
        known: As it was given.
    """

    def __init__(self, usage: Usage, known: int, prompt: int) -> None:
        self._usage = usage
        self.known = known
        self._prompt = prompt
        self._pieces = 0
        self._at: int | None = None  # where in the prompt the engine was first seen
        self._read_on = 0
        self._told = False

    @property
    def read(self) -> int:
        """What the answer stands on, in tokens."""
        return self.known + self._prompt

    def watching(self, request: Request) -> Request:
        """Returns a request that tells how far its prompt was read, for whoever leaves before."""
        return replace(request, on_progress=self._progress)

    def _progress(self, at: int, _: int) -> None:
        # On the engine's thread. What it had read when it was first seen may have been cached.
        if self._at is None:
            self._at = at
        self._read_on = at - self._at

    def cached(self, done: Done) -> int:
        """Returns how many tokens of these had not to be read."""
        return self.known + done.reused

    def failed(self, error: BaseException) -> None:
        """Tells the usage what ended the answer in the middle of its stream."""
        self._usage.failed(error)

    def count(self, events: list[Event]) -> None:
        """Counts what came; where the end is among it, the usage is told."""
        self._pieces += len(events)
        end = events[-1]
        if isinstance(end, Done):
            self._tell(self.cached(end), end.answer_tokens)

    def _tell(self, cached: int, answered: int) -> None:
        self._told = True
        self._usage.spent(read=self.read, cached=cached, answered=answered)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tells the usage of an answer that was left, as far as it had come."""
        if self._told:
            return
        if self._pieces:  # then all of the prompt was read
            self._tell(self.known, self._pieces)
        elif self._read_on:
            self._tell(self.read - self._read_on, 0)
