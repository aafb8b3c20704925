"""Asks the prefix cache for one request: where it may begin, and what states it leaves behind.

Nothing here raises because of the cache: one that fails costs time, and never an answer. A copy of
a state costs megabytes, so the positions where one is kept are few. The scheduler asks this, and
the sequence tells it.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from langchain_rwkv_state.prefix_cache.cache import PrefixStateCache
from langchain_rwkv_state.prefix_cache.entries import CachedState, Hit, Namespace
from langchain_rwkv_state.prefix_cache.radix_tree import common_ids, pack
from langchain_rwkv_state.state import RWKVState

logger = logging.getLogger("langchain_rwkv_state.prefix_cache")

T = TypeVar("T")

APART = 16
"""Ids; a state nearer than this to another saves less than its bytes are worth."""

_LONG = 64  # ids: a segment of that length is a document or examples, which come again
_MOST_LONG = 4
_BEFORE_END = (32, 64, 128, 256)  # ids: a question behind a document is as long as one of these
_LEAST_PRIVATE = 64  # ids saved behind a marker: for documents, not for each turn


@dataclass(frozen=True)
class Caching:
    """What a request lets the prefix cache do.

    Attributes:
        cache: Where states are looked for and kept.
        salt: Keeps tenants apart.
        private: Whether the prompt goes on from a conversation's own state: what is kept then
            stays in memory, and only where it saves a document.
        shared: Number of ids that other conversations may begin with too; ``None`` for all.
        ends: Numbers of ids after which segments end.
        system_end: The one after which the system messages end, ``None`` for none.
    """

    cache: PrefixStateCache
    salt: str | None = None
    private: bool = False
    shared: int | None = None
    ends: tuple[int, ...] = ()
    system_end: int | None = None


class Prefix:
    """Asks the cache for one prompt, and gives it the states that this prompt leaves behind.

    Args:
        caching: What the request lets the cache do.
        base: The state that reading begins from.
        prompt: The ids to read.
        settled: The ids that the state behind the answer stands for instead, before the answer's.
        reach: States up to so many ids are kept; what comes after is not settled.
        limit: No cached state behind so many ids is of use.
        answers: Whether an answer follows.

    Attributes:
        least: A state that saves fewer ids is not worth keeping or waiting for.
    """

    def __init__(
        self,
        caching: Caching,
        base: RWKVState,
        prompt: Sequence[int],
        settled: Sequence[int],
        *,
        reach: int,
        limit: int,
        answers: bool,
    ) -> None:
        self._caching = caching
        self._cache = caching.cache
        self._ids = tuple(prompt)
        self._key = pack(self._ids)
        self._settled = settled
        self._namespace = Namespace.of(base, caching.salt)
        self._reach = reach if caching.shared is None else min(reach, caching.shared)
        self._limit = min(self._reach, limit)
        self._answers = answers
        self._nbytes = base.nbytes
        self._keeps = False
        self._start = 0
        self.least = _LEAST_PRIVATE if caching.private else APART

    @property
    def is_useful(self) -> bool:
        """Whether there is anything that a cache could save."""
        return self._reach >= (_LEAST_PRIVATE if self._caching.private else 1)

    def find(self) -> Hit | None:
        """Returns the deepest cached state that the request can go on from, and logs it."""
        look = partial(self._cache.lookup, limit=self._limit, answer=self._answers)
        hit = _or(None, look, self._namespace, self._ids)
        if hit is None:
            logger.debug("%d tokens to read, none of them known", len(self._ids))
        else:
            logger.info("%d of %d tokens reused (%s)", hit.n_tokens, len(self._ids), hit.tier)
        return hit

    def depth(self) -> int:
        """Returns how many ids the deepest cached state saves; loads and counts nothing."""
        look = partial(self._cache.depth, limit=self._limit, answer=self._answers)
        return _or(0, look, self._namespace, self._ids)

    def positions(self, start: int) -> set[int]:
        """Returns where to keep states, for a request that reads from `start` on."""
        self._start = start
        self._keeps = _or(False, self._cache.fits, self._nbytes)
        branch = _or(None, self._cache.note, self._namespace, self._ids[: self._reach])
        ends = [end for end in self._caching.ends if end <= self._reach]
        first = [] if self._caching.system_end is None else [self._caching.system_end]
        if branch is not None and branch - start >= APART:
            first.append(branch)
        found = snapshot_positions(ends, start=start, stop=self._reach, first=first)
        return {at for at in found if self.wants(at)}

    def wants(self, at: int) -> bool:
        """Says whether the state at a position is to be kept: not where it is kept already."""
        least = _LEAST_PRIVATE if self._caching.private else 1
        if not self._keeps or at > self._reach or at - self._start < least:
            return False
        holds = partial(self._cache.holds, with_logits=self._answers and at == len(self._ids))
        return not _or(True, holds, self._namespace, self._ids, at)

    def meets(self, other: Prefix) -> int:
        """Returns up to where another prompt's states would serve this one, 0 for nowhere."""
        if other._cache is not self._cache or other._namespace != self._namespace:
            return 0
        at = min(common_ids(self._key, other._key), self._limit, other._reach)
        # Behind a whole prompt the answer needs logits, which only another such prompt's end has.
        ends = self._answers and at == len(self._ids)
        return at - 1 if ends and not (other._answers and at == len(other._ids)) else at

    def note_shared(self) -> None:
        """Notes that the request waits for another one instead of reading the same."""
        _or(None, self._cache.note_shared)

    def keep(self, at: int, state: RWKVState, logits: torch.Tensor | None = None) -> None:
        """Keeps the state at a position."""
        self._insert(self._ids[:at], CachedState(state, logits))

    def keep_answer(self, answer: Sequence[int], state: RWKVState) -> None:
        """Keeps the state behind the answer, which is where a transcript goes on."""
        if self._answers and not self._caching.private and self._caching.shared is None:
            self._insert((*self._settled, *answer), CachedState(state))

    def _insert(self, ids: Sequence[int], cached: CachedState) -> None:
        insert = partial(self._cache.insert, private=self._caching.private)
        _or(False, insert, self._namespace, ids, cached)


def snapshot_positions(
    ends: Sequence[int],
    *,
    start: int,
    stop: int,
    first: Collection[int] = (),
    every: int = 512,
    most: int = 8,
) -> tuple[int, ...]:
    """Returns positions on a prompt at which to keep the state.

    A long segment may be a document with a question behind it, and nobody knows where the question
    begins until another one is asked. So behind the last position in `first`, the last long
    segment keeps states at growing distances from its end: whatever the next question's length,
    at most about as much of the document is read again as the first question was long.

    Args:
        ends: Where segments end, in order.
        start: Where reading begins.
        stop: Where it ends; the state there is at hand anyway, so it costs nothing to keep.
        first: Positions that are kept in any case: the end of a system prompt, a branch point.
        every: So many ids apart, states are kept on a long way without any end.
        most: At most so many positions beside `stop`; of short segments, ends near the end of the
            prompt come before those far from it, since that is where prompts are edited.

    Returns:
        Positions above `start`, in order, `stop` the last of them.

    Example:
        >>> snapshot_positions([40, 44, 90], start=0, stop=94, first=[40])
        (40, 94)
        >>> snapshot_positions([1000], start=0, stop=1004)
        (512, 744, 872, 936, 968, 1000, 1004)
    """
    if stop <= start:
        return ()
    segments = list(itertools.pairwise([0, *ends]))
    if not ends or ends[-1] < stop:
        segments.append((ends[-1] if ends else 0, stop))
    long = [(begin, end) for begin, end in segments if end - begin >= _LONG and start < end]
    wanted = {*first, *(end for _, end in long[-_MOST_LONG:])}
    chosen = sorted(at for at in wanted if start < at < stop)[:most]

    def add(positions: Sequence[int]) -> None:
        for at in positions:
            near = any(abs(at - other) < APART for other in (start, stop, *chosen))
            if len(chosen) < most and start < at < stop and not near:
                chosen.append(at)

    begin, end = long[-1] if long else (0, 0)
    if end > max(first, default=0):
        add([end - distance for distance in _BEFORE_END if end - distance > begin])
    add(list(reversed(ends)))
    step = max(every, (stop - start) // most)
    for before, after in itertools.pairwise(sorted({start, *chosen, stop})):
        add(range(before + step, after, step))
    return (*sorted(chosen), stop)


def _or(default: T, ask: Callable[..., T], *arguments: object) -> T:
    """Returns what the cache says, and a default with a warning where it fails."""
    try:
        return ask(*arguments)
    except Exception:
        logger.warning("The prefix cache failed; the answer goes on without it", exc_info=True)
        return default
