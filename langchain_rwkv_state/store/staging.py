"""Staged states and filed answers: what a process holds in memory until something commits it.

Nothing here is durable, and nothing else can see it. It forgets by age and by bytes, oldest out
first. The easy mistake is to drop a staged state at the first commit of it: two turns with the
same text stage one state, and each may need it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from langchain_rwkv_state.state import RWKVState
from langchain_rwkv_state.store.forks import ForkLock
from langchain_rwkv_state.store.records import Filing

STAGED_TTL_SECONDS = 15 * 60.0
STAGED_BUDGET_BYTES = 256 << 20
_TURNS_MAX = 10_000  # a filing takes 300 bytes


@dataclass(frozen=True)
class Staged:
    """A state in memory.

    Attributes:
        state: The state, on the CPU.
        parent: The state that it was read from.
        tokens: The ids read since the parent; empty where the store keeps none.
        since: When it was staged, in steady seconds.
        uses: How many times it was staged and not yet stored.
    """

    state: RWKVState
    parent: str | None
    tokens: tuple[int, ...]
    since: float
    uses: int


class Staging:
    """States and filings in memory.

    Args:
        steady: Gives seconds that only grow; called outside of the lock.
        budget_bytes: The most bytes of states to hold; the newest stays whatever its size.
        ttl_seconds: How long a state or a filing is held.
    """

    def __init__(
        self,
        steady: Callable[[], float],
        *,
        budget_bytes: int = STAGED_BUDGET_BYTES,
        ttl_seconds: float = STAGED_TTL_SECONDS,
    ) -> None:
        self._steady = steady
        self._budget = budget_bytes
        self._ttl = ttl_seconds
        self._lock = ForkLock()
        self._states: OrderedDict[str, Staged] = OrderedDict()
        self._nbytes = 0
        self._turns: OrderedDict[str, tuple[float, tuple[Filing, ...]]] = OrderedDict()

    def stage(self, ref: str, state: RWKVState, parent: str | None, tokens: Sequence[int]) -> None:
        """Holds a state; the first one staged under a reference stays."""
        now = self._steady()
        with self._lock:
            self._forget_old(now)
            held = self._states.pop(ref, None)
            if held is None:
                held = Staged(state.to("cpu"), parent, tuple(tokens), 0.0, 0)
                self._nbytes += held.state.nbytes
            self._states[ref] = replace(held, since=now, uses=held.uses + 1)
            while self._nbytes > self._budget and len(self._states) > 1:
                self._drop(next(iter(self._states)))

    def get(self, ref: str) -> Staged | None:
        """Returns a staged state."""
        now = self._steady()
        with self._lock:
            self._forget_old(now)
            return self._states.get(ref)

    def stored(self, ref: str) -> None:
        """Notes that one of those who staged a state has stored it."""
        with self._lock:
            held = self._states.get(ref)
            if held is None:
                return
            if held.uses > 1:
                self._states[ref] = replace(held, uses=held.uses - 1)
            else:
                self._drop(ref)

    def file(self, turn_id: str, filing: Filing) -> None:
        """Notes an answer under a turn id."""
        now = self._steady()
        with self._lock:
            self._forget_old(now)
            _, filings = self._turns.pop(turn_id, (0.0, ()))
            self._turns[turn_id] = (now, (*filings, filing))
            while len(self._turns) > _TURNS_MAX:
                self._turns.popitem(last=False)

    def filings(self, turn_id: str) -> list[Filing]:
        """Returns what was filed under a turn id, oldest first."""
        now = self._steady()
        with self._lock:
            self._forget_old(now)
            return list(self._turns.get(turn_id, (0.0, ()))[1])

    def forget_turn(self, turn_id: str) -> None:
        """Drops a turn id's filings."""
        with self._lock:
            self._turns.pop(turn_id, None)

    def clear(self) -> None:
        """Drops everything."""
        with self._lock:
            self._states.clear()
            self._turns.clear()
            self._nbytes = 0

    def size(self) -> tuple[int, int]:
        """Returns how many states are staged, and their bytes."""
        now = self._steady()
        with self._lock:
            self._forget_old(now)
            return len(self._states), self._nbytes

    def _drop(self, ref: str) -> None:
        self._nbytes -= self._states.pop(ref).state.nbytes

    def _forget_old(self, now: float) -> None:
        oldest = now - self._ttl
        while self._states and next(iter(self._states.values())).since < oldest:
            self._drop(next(iter(self._states)))
        while self._turns and next(iter(self._turns.values()))[0] < oldest:
            self._turns.popitem(last=False)
