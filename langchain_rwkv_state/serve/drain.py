"""Counts the requests that run, and lets a server end once the last of them has.

From `begin` on nothing new is let in; what runs goes on. All of it is on one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Drain:
    """What runs, and whether the server is about to end.

    Attributes:
        begun: Whether nothing new is let in.
        running: How many requests run.
    """

    def __init__(self) -> None:
        self.begun = False
        self.running = 0
        self._waiting: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """Counts a request that runs; `leave` is due when it ended."""
        self.running += 1
        self._idle.clear()

    def leave(self) -> None:
        """Counts a request that ended."""
        self.running -= 1
        if not self.running:
            self._idle.set()

    def begin(self) -> None:
        """Lets nothing new in."""
        self.begun = True

    @contextmanager
    def waits(self, limit: asyncio.Timeout) -> Iterator[None]:
        """Says that a request waits for its client, under a limit that `cut` lets run out."""
        self._waiting.add(limit)
        try:
            yield
        finally:
            self._waiting.discard(limit)

    def cut(self) -> None:
        """Ends the waiting for clients."""
        for limit in self._waiting:
            if not limit.expired():
                limit.reschedule(0.0)

    async def idle_within(self, seconds: float) -> bool:
        """Waits until nothing runs; says whether that was so within a time."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
