"""From a reading to a request that reads only what no request read before.

It asks the prefix cache for the deepest state on a reading's path, lets the engine read the rest,
and hands the cache what is worth keeping on the way. It plans no turn and stores nothing durably.
The easy mistake is to share what belongs to one conversation: behind a marker nothing is written
to disk, and of a new conversation's first turn only the block before the marker is kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from langchain_rwkv_state.engine import Done, Engine, Request, Ticket
from langchain_rwkv_state.prefix_cache import Hit, Kept, PrefixStateCache, Root, marks
from langchain_rwkv_state.prefix_cache.inflight import Promise
from langchain_rwkv_state.prefix_cache.tree import pack
from langchain_rwkv_state.prompt.plan import Reading
from langchain_rwkv_state.state import RWKVState

logger = logging.getLogger("langchain_rwkv_state.prefix_cache")

_APART = 16  # ids; a state nearer than this to another saves less than its bytes are worth
_LONG = 64  # ids: a segment of that length is a document or examples, which come again
_MOST_LONG = 4
_LEAST_PRIVATE = 64  # ids saved behind a marker: for documents, not for each turn
_WAIT_SECONDS = 0.001  # left of a deadline that passed while another request was waited for


@dataclass
class Flight:
    """A request on its way.

    Attributes:
        ticket: Its events.
        reading: What it is the answer to.
        reused: Ids of the reading that the cache saved.
    """

    ticket: Ticket
    reading: Reading
    reused: int = 0
    _keep: Callable[[Done], None] | None = None

    def landed(self, done: Done) -> None:
        """Takes note of the end: the state behind an answer is kept for whoever sends it again."""
        if self._keep is not None:
            self._keep(done)


def launch(
    engine: Engine,
    request: Request,
    reading: Reading,
    *,
    cache: PrefixStateCache | None = None,
    salt: str | None = None,
) -> Flight:
    """Sends a request to the engine, from the deepest state that the cache has on its way.

    Where another request is reading the same at this moment, it is waited for.

    Args:
        engine: Answers.
        request: For the whole reading, from its base on.
        reading: What is to be read.
        cache: Where states are looked for and kept; ``None`` for none.
        salt: Keeps tenants apart.
    """
    plan = None if cache is None or engine.is_here else _Plan.of(cache, request, reading, salt)
    if plan is None:
        return Flight(engine.submit(request), reading)
    promise, hit, request = plan.take()
    reused = 0 if hit is None else hit.n_tokens
    try:
        ticket = engine.submit(plan.request(request, hit, promise))
    except BaseException:
        promise.end()
        raise
    promise.begun(lambda: ticket.over)
    plan.tell(hit)
    return Flight(ticket, reading, reused, plan.keep_answer)


class _Plan:
    """One request's dealings with the cache. Nothing here raises because of the cache."""

    def __init__(
        self, cache: PrefixStateCache, request: Request, reading: Reading, salt: str | None
    ) -> None:
        self._cache = cache
        self._request = request
        self._ids = tuple(request.prompt)
        self._settled = reading.ids if request.settled is None else tuple(request.settled)
        self._whole = reading.reach == len(reading.ids)
        # What comes after is only there to bring the answer about, and no other prompt has it.
        self._reach = min(reading.reach, request.common)
        self._private = reading.base_ref is not None
        self._root = Root.of(reading.base, salt)
        self._ends = reading.ends
        self._first = () if reading.block_end is None else (reading.block_end,)
        unread = reading.unread_at
        self._limit = min(self._reach, len(self._ids) if unread is None else unread)
        self._answers = request.max_tokens > 0
        self._base_nbytes = reading.base.nbytes

    @classmethod
    def of(
        cls, cache: PrefixStateCache, request: Request, reading: Reading, salt: str | None
    ) -> _Plan | None:
        """Returns a plan, ``None`` where there is nothing that a cache could save."""
        least = _LEAST_PRIVATE if reading.base_ref is not None else 1
        if min(reading.reach, request.common) < least or not reading.ids:
            return None
        return cls(cache, request, reading, salt)

    def take(self) -> tuple[Promise, Hit | None, Request]:
        """Looks up, waits for whoever reads the same, and promises the rest."""
        key, request = pack(self._ids), self._request
        asked_at, waited, branch = time.monotonic(), False, None
        promise: Promise | tuple[Promise, int]
        while True:
            hit = self._look(count=False)
            at = 0 if hit is None else hit.n_tokens
            if branch is None:
                branch = self._cache.note(self._root, self._ids[: self._reach])
            promise = self._cache.in_flight.promise(
                self._root, key, self._marks(at, branch), beyond=at + _APART, limit=self._limit
            )
            if isinstance(promise, Promise):
                # Whoever read the same may have kept it since the first look.
                hit = self._look(count=True)
                for place in promise.marks:
                    if hit is not None and place <= hit.n_tokens:
                        promise.kept(place)
                return promise, hit, self._with_deadline(request, asked_at, waited)
            if not waited:
                self._cache.note_shared()
            waited = True
            left = request.deadline
            if left is not None:
                left -= time.monotonic() - asked_at
                if left <= 0:
                    unshared = Promise(self._root, key, ())
                    return unshared, hit, self._with_deadline(request, asked_at, waited)
            promise[0].wait(promise[1], left)

    def request(self, request: Request, hit: Hit | None, promise: Promise) -> Request:
        """Returns the request for what is left to read."""
        at = 0 if hit is None else hit.n_tokens
        places = sorted(promise.marks)
        progress = request.on_progress
        total = len(self._ids)

        def on_mark(offset: int, state: RWKVState, logits: torch.Tensor | None) -> None:
            try:
                self._keep(self._ids[: at + offset], Kept(state, logits))
            finally:
                promise.kept(at + offset)

        def on_progress(read: int, _: int) -> None:
            if progress is not None:
                progress(at + read, total)

        return replace(
            request,
            base=request.base if hit is None else hit.kept.state,
            prompt=self._ids[at:],
            settled=None if request.settled is None else self._settled[at:],
            checkpoints=tuple(place - at for place in request.checkpoints),
            marks=tuple(place - at for place in places),
            on_mark=on_mark,
            logits=hit.kept.logits if hit is not None and at == total else None,
            on_progress=None if progress is None else on_progress,
        )

    def keep_answer(self, done: Done) -> None:
        """Keeps the state behind an answer, under the ids of the transcript that it will be."""
        if self._answers and not self._private and self._whole:
            self._keep((*self._settled, *done.answer_ids), Kept(done.state))

    def tell(self, hit: Hit | None) -> None:
        """Writes a line to the log."""
        if hit is None:
            logger.debug("%d tokens to read, none of them known", len(self._ids))
        else:
            logger.info("%d of %d tokens reused (%s)", hit.n_tokens, len(self._ids), hit.tier)

    def _look(self, *, count: bool) -> Hit | None:
        try:
            return self._cache.lookup(
                self._root, self._ids, limit=self._limit, answer=self._answers, count=count
            )
        except Exception:
            logger.warning("The prefix cache failed; all is read", exc_info=True)
            return None

    def _keep(self, ids: tuple[int, ...], kept: Kept) -> None:
        try:
            self._cache.insert(self._root, ids, kept, private=self._private)
        except Exception:
            logger.warning("The prefix cache failed; a state is not kept", exc_info=True)

    def _marks(self, at: int, branch: int | None) -> tuple[int, ...]:
        """Returns where to keep states: nowhere where one is kept, or could not be."""
        if not self._cache.fits(self._base_nbytes):
            return ()
        ends = [end for end in self._ends if end <= self._reach]
        long = [end for start, end in pairwise([0, *ends]) if end - start >= _LONG]
        first = [end for end in (*self._first, *long[-_MOST_LONG:]) if end <= self._reach]
        if branch is not None and branch - at >= _APART:
            first.append(branch)
        found = marks(
            ends,
            start=at,
            stop=self._reach,
            first=first,
            apart=_APART,
        )
        end = len(self._ids)
        least = _LEAST_PRIVATE if self._private else 0
        return tuple(
            place
            for place in found
            if place - at >= least
            and not self._cache.holds(
                self._root, self._ids, place, with_logits=self._answers and place == end
            )
        )

    @staticmethod
    def _with_deadline(request: Request, asked_at: float, waited: bool) -> Request:
        """Takes the time spent waiting off a request's deadline."""
        if request.deadline is None or not waited:
            return request
        left = request.deadline - (time.monotonic() - asked_at)
        return replace(request, deadline=max(left, _WAIT_SECONDS))
