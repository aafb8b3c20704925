"""Keeps values within a budget of bytes: the one that saves fewest tokens a byte goes first.

`GreedyDual` ranks and `Tier` holds, on a device or in RAM; neither knows tokens or states. What has
to go goes before the new value comes, so that the budget is never exceeded.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_STALE = 4  # entries of the heap for each item, at most, before it is made anew


class GreedyDual(Generic[K]):
    """Ranks items by score, aged by recency (Young's GreedyDual with Cao and Irani's sizes).

    An item's rank is its score plus an age that rises to the rank of whatever was taken last: so
    an item that nobody uses is overtaken in time, however high its score. Each step takes
    logarithmic time.

    Example:
        >>> ranks = GreedyDual[str]()
        >>> ranks.touch("a long prompt", 300.0)
        >>> ranks.touch("a short one", 4.0)
        >>> ranks.take()
        'a short one'
    """

    def __init__(self) -> None:
        self._age = 0.0
        self._order = itertools.count()
        self._ranks: dict[K, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, K]] = []

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, item: K) -> bool:
        return item in self._ranks

    def touch(self, item: K, score: float) -> None:
        """Ranks an item anew: it was put in, or used."""
        rank = (self._age + score, next(self._order))
        self._ranks[item] = rank
        if len(self._heap) > _STALE * len(self._ranks) + 16:
            self._heap = [(*rank, item) for item, rank in self._ranks.items()]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (*rank, item))

    def remove(self, item: K) -> None:
        """Forgets an item, if it is there."""
        self._ranks.pop(item, None)

    def take(self) -> K | None:
        """Takes the item of the lowest rank out; of equals, the one touched longest ago."""
        while self._heap:
            rank, order, item = heapq.heappop(self._heap)
            if self._ranks.get(item) == (rank, order):
                del self._ranks[item]
                self._age = rank
                return item
        return None


def score(tokens_saved: int, uses: int, nbytes: int) -> float:
    """Returns the score of a cached state: tokens that it saved and may save, per megabyte."""
    return tokens_saved * uses * 1e6 / max(nbytes, 1)


class Tier(Generic[K, V]):
    """Values by key, at most so many bytes of them. Not safe for threads by itself.

    Args:
        budget: The most bytes.

    Example:
        >>> tier = Tier[str, int](budget=100)
        >>> tier.put("a", 1, 60, score=1.0)
        []
        >>> tier.put("b", 2, 60, score=2.0)
        [('a', 1)]
    """

    def __init__(self, budget: int) -> None:
        if budget < 0:
            raise ValueError(f"A budget of bytes is 0 or more, got {budget}.")
        self.budget = budget
        self._held: dict[K, tuple[V, int]] = {}
        self._ranks = GreedyDual[K]()
        self._nbytes = self._pinned_nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: K) -> bool:
        return key in self._held

    def get(self, key: K) -> V | None:
        """Returns a value, ``None`` where there is none."""
        found = self._held.get(key)
        return None if found is None else found[0]

    def fits(self, nbytes: int) -> bool:
        """Says whether there is room for so many bytes, once all is let go that may be."""
        return nbytes <= self.budget - self._pinned_nbytes

    def put(
        self, key: K, value: V, nbytes: int, *, score: float, pinned: bool = False
    ) -> list[tuple[K, V]] | None:
        """Puts a value in, in place of one under the same key.

        Returns:
            What had to go for it, or ``None`` where it does not fit; then nothing has changed.
        """
        old = self._held.get(key)
        old_pinned = old[1] if old is not None and key not in self._ranks else 0
        if nbytes > self.budget - self._pinned_nbytes + old_pinned:
            return None
        self.remove(key)
        evicted = []
        while self._nbytes + nbytes > self.budget:
            victim = self._ranks.take()
            assert victim is not None  # noqa: S101 # all that is not pinned is ranked
            gone, size = self._held.pop(victim)
            self._nbytes -= size
            evicted.append((victim, gone))
        self._held[key] = (value, nbytes)
        self._nbytes += nbytes
        if pinned:
            self._pinned_nbytes += nbytes
        else:
            self._ranks.touch(key, score)
        return evicted

    def touch(self, key: K, score: float) -> None:
        """Notes that a value was used; pinned ones need no note."""
        if key in self._ranks:
            self._ranks.touch(key, score)

    def pin(self, key: K) -> None:
        """Keeps a value from being evicted."""
        if key in self._ranks:
            self._ranks.remove(key)
            self._pinned_nbytes += self._held[key][1]

    def unpin(self, key: K, score: float) -> None:
        """Lets a value be evicted again."""
        if key in self._held and key not in self._ranks:
            self._pinned_nbytes -= self._held[key][1]
            self._ranks.touch(key, score)

    def remove(self, key: K) -> V | None:
        """Takes a value out and returns it, ``None`` where there is none."""
        found = self._held.pop(key, None)
        if found is None:
            return None
        if key not in self._ranks:
            self._pinned_nbytes -= found[1]
        self._ranks.remove(key)
        self._nbytes -= found[1]
        return found[0]
