"""What a prefix cache keeps and what it lets go: two small pure rules.

`GreedyDual` says which entry is worth least: tokens saved per byte, aged by recency. `marks` says
where on a prompt to copy a state out. The easy mistake is to keep a state at every end of a
segment: a copy costs megabytes, and of two that lie close together one saves nothing.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Hashable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_STALE = 4  # entries of the heap for each item, at most, before it is made anew


class GreedyDual(Generic[K]):
    """Ranks items by worth, aged by recency (Young's GreedyDual with Cao and Irani's sizes).

    An item's rank is its worth plus an age that rises to the rank of whatever was taken last: so
    an item that nobody uses is overtaken in time, however much it was worth. Each step takes
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

    def touch(self, item: K, worth: float) -> None:
        """Ranks an item anew: it was put in, or used."""
        rank = (self._age + worth, next(self._order))
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


def worth(tokens_saved: int, uses: int, nbytes: int) -> float:
    """Returns what an entry is worth: tokens that it saved and may save, per megabyte."""
    return tokens_saved * uses * 1e6 / max(nbytes, 1)


def marks(
    ends: Sequence[int],
    *,
    start: int,
    stop: int,
    first: Collection[int] = (),
    every: int = 512,
    apart: int = 16,
    most: int = 8,
) -> tuple[int, ...]:
    """Returns positions on a prompt at which to keep the state.

    Args:
        ends: Where segments end, in order.
        start: Where reading begins.
        stop: Where it ends; the state there is at hand anyway, so it costs nothing to keep.
        first: Positions that are kept in any case: the end of a system prompt, a branch point.
        every: So many ids apart, states are kept on a long way without any end.
        apart: No two positions lie closer than this, but for those in `first`.
        most: At most so many positions beside `stop`; ends near the end of the prompt come before
            those far from it, since that is where prompts are edited.

    Example:
        >>> marks([40, 44, 90], start=0, stop=94, first=[40])
        (40, 94)
        >>> marks([1000], start=0, stop=1004, first=[1000])
        (512, 1000, 1004)
    """
    chosen = sorted(at for at in set(first) if start < at < stop)[:most]

    def free(at: int) -> bool:
        return all(abs(at - other) >= apart for other in (start, stop, *chosen))

    for at in reversed(ends):
        if len(chosen) < most and start < at < stop and free(at):
            chosen.append(at)
    room = (stop - start) // max(most, 1)
    step = max(every, room)
    for before, after in itertools.pairwise(sorted({start, *chosen, stop})):
        for at in range(before + step, after, step):
            if len(chosen) < most and free(at):
                chosen.append(at)
    return tuple(sorted({*chosen, stop} if stop > start else chosen))
