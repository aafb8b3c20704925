"""Says which cached state goes first: the one that saves fewest tokens a byte, aged by recency."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

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
