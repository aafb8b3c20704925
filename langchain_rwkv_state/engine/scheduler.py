"""Decides who runs and who waits, and how much each reads in a step. It never calls the model.

A request waits until there is a slot, and goes on from the deepest cached state on its prompt's
path. Where a running sequence is about to read what it begins with, it waits for that state, and
those behind it go first. Of those that run, each that decodes reads what it said, and the others
share a budget: all that decode wait as long as a step takes, so what is read beside them is
bounded, and what one may take is bounded by how many others want to read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from langchain_rwkv_state.engine.sequence import TokenSequence
from langchain_rwkv_state.engine.slots import SlotPool
from langchain_rwkv_state.prefix_cache import Hit
from langchain_rwkv_state.prefix_cache.prefix import APART, Prefix

LEAST_SHARE = 16
"""Ids; a model reads fewer at a time hardly faster, so others wait a step instead."""

_MOST_SNAPSHOTS = 16  # of one sequence, with those that others asked for


class Scheduler:
    """The sequences of one engine: those that run, and those that wait, first come, first served.

    What other threads look at changes under the lock. The prefix cache, which may ask a disk, is
    asked without it.

    Args:
        lock: Guards `waiting` and `running`.
        slots: What sequences run in.
    """

    def __init__(self, lock: AbstractContextManager[object], slots: SlotPool) -> None:
        self._lock = lock
        self._slots = slots
        self.waiting: deque[TokenSequence] = deque()
        self.running: list[TokenSequence] = []

    def retire(self, now: float) -> list[TokenSequence]:
        """Takes out all that ended, and returns them, under the lock."""
        for sequence in (*self.running, *self.waiting):
            if sequence.deadline <= now:
                sequence.expire()
        ended = [sequence for sequence in self.running if sequence.over]
        self.running = [sequence for sequence in self.running if not sequence.over]
        return ended + self.forget_ended()

    def forget_ended(self) -> list[TokenSequence]:
        """Takes out those that ended while they waited, and returns them, under the lock."""
        ended = [sequence for sequence in self.waiting if sequence.over]
        if ended:
            self.waiting = deque(one for one in self.waiting if not one.over)
        return ended

    def requeue(self) -> int:
        """Puts those that run before those that wait, under the lock; returns how many.

        Each gives its slot up, and goes on where it was when it runs again.
        """
        live = [sequence for sequence in self.running if not sequence.over]
        for sequence in live:
            sequence.preempt()
        self.waiting.extendleft(reversed(live))
        self.running = [sequence for sequence in self.running if sequence.over]
        return len(live)

    def admit(self, most: int, step: int) -> Iterator[tuple[TokenSequence, Hit | None]]:
        """Lets run those that need not wait, as long as there is room.

        Args:
            most: At most so many run at once.
            step: This step's number.

        Yields:
            Each with the cached state that it goes on from; it has begun when the next is asked
            for, since that one may wait for what it reads.
        """
        with self._lock:
            waiting = list(self.waiting)
        if not waiting:
            return
        self._slots.make_room(len(self.running) + len(waiting))
        room = max(min(self._slots.count, most), 1)
        for sequence in waiting:
            if len(self.running) >= room:
                break
            if sequence.over or self._waits(sequence):
                continue
            hit = None if sequence.prefix is None else sequence.prefix.find()
            sequence.last_step, sequence.pending_prefix = step, None
            with self._lock:
                if sequence not in self.waiting:  # it was cancelled meanwhile
                    continue
                self.waiting.remove(sequence)
                self.running.append(sequence)
            yield sequence, hit
        for sequence in reversed(waiting):  # in time for what those that run have not read yet
            if sequence.asked:
                break
            self._ask(sequence)

    def schedule(
        self, step: int, *, budget: int, idle_budget: int, busy: Iterable[TokenSequence] = ()
    ) -> list[tuple[TokenSequence, int]]:
        """Returns which sequences read how many ids in this step, see `share_step`.

        Args:
            step: As for `share_step`, and so are the budgets.
            budget: Likewise.
            idle_budget: Likewise.
            busy: Who cannot read, since what they read last is not known yet.
        """
        out = set(busy)
        live = [one for one in self.running if not one.over and one not in out]
        return share_step(live, step, budget=budget, idle_budget=idle_budget)

    def _waits(self, sequence: TokenSequence) -> bool:
        """Says whether a running sequence is about to read what this one begins with."""
        if sequence.prefix is None:
            return False
        if sequence.pending_prefix is not None:
            producer, at = sequence.pending_prefix
            if producer.keeps_later(at):
                return True
            if at not in producer.snapshots and sequence.prefix.depth() < at:
                return False  # it was read, and the cache had no room for it
        was, sequence.pending_prefix = sequence.pending_prefix, self._ask(sequence)
        if sequence.pending_prefix is not None and was is None:
            sequence.prefix.note_shared()
        return sequence.pending_prefix is not None

    def _ask(self, sequence: TokenSequence) -> tuple[TokenSequence, int] | None:
        """Asks a running sequence for the state where the two prompts part.

        Returns:
            The one whose state saves most ids, and its position; ``None`` where the cache saves as
            much already.
        """
        sequence.asked = True
        if sequence.prefix is None or not self.running:
            return None
        known, best = sequence.prefix.depth(), None
        for other in self.running:
            at = _position(sequence.prefix, other, known)
            if at and (best is None or at > best[1]):
                best = other, at
        if best is not None:
            best[0].snapshots.add(best[1])
        return best


def _position(prefix: Prefix, other: TokenSequence, known: int) -> int:
    """Returns where another sequence's state would serve a prompt best, 0 for nowhere."""
    if other.prefix is None or not other.prefills:
        return 0
    at = prefix.meets(other.prefix)
    if at - known < prefix.least:
        return 0
    coming = max((each for each in other.snapshots if each <= at), default=0)
    if at - coming >= APART and len(other.snapshots) < _MOST_SNAPSHOTS and other.can_keep(at):
        return at
    return coming if coming - known >= prefix.least and other.can_keep(coming) else 0


class Reader(Protocol):
    """What `share_step` asks of a sequence.

    Attributes:
        last_step: The step in which it read last, or came.
    """

    last_step: int

    @property
    def decodes(self) -> bool:
        """Whether it reads what was sampled last, and what was forced behind it."""
        ...

    @property
    def wanted(self) -> int:
        """Number of ids that it would read in one go, at least one."""
        ...


R = TypeVar("R", bound=Reader)


def share_step(
    readers: Sequence[R], step: int, *, budget: int, idle_budget: int
) -> list[tuple[R, int]]:
    """Returns who reads how many ids in this step, and notes that they do.

    Args:
        readers: All that run.
        step: This step's number.
        budget: Ids of prompts at most, where somebody decodes.
        idle_budget: The same where nobody does.

    Returns:
        Pairs of a reader and a number of ids above 0; at least one where there are readers. Those
        that read longest ago come first, so that nobody is passed over for ever.
    """
    decoding = [reader for reader in readers if reader.decodes]
    others = sorted((r for r in readers if not r.decodes), key=lambda reader: reader.last_step)
    shares = share_out([reader.wanted for reader in others], budget if decoding else idle_budget)
    reads = [(reader, min(reader.wanted, budget)) for reader in decoding]
    reads += [(reader, share) for reader, share in zip(others, shares, strict=True) if share]
    for reader, _ in reads:
        reader.last_step = step
    return reads


def share_out(wants: Sequence[int], budget: int) -> list[int]:
    """Divides a budget: equal shares first, of at least 16; then what is left, in order.

    Example:
        >>> share_out([2000, 10], 64)
        [54, 10]
        >>> share_out([2000, 500, 500, 500, 500], 64)
        [16, 16, 16, 16, 0]
    """
    if not wants:
        return []
    share = max(budget // len(wants), LEAST_SHARE)
    given = [0] * len(wants)
    for limit in (share, budget):
        for place, want in enumerate(wants):
            more = min(want, limit, given[place] + budget) - given[place]
            given[place] += more
            budget -= more
    return given
