"""A tier: values of known sizes under a budget of bytes that is never exceeded.

It holds values in memory, on a device or in RAM, and lets those of the lowest score go when room is
needed; it knows no tokens and no states. The easy mistake is to put first and evict afterwards:
for a moment there would be more than the budget.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from langchain_rwkv_state.prefix_cache.eviction import GreedyDual

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


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
