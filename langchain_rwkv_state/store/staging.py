"""Staged states: what an answer that was just given stands on until it is kept.

A staged state lives until its time is up, in memory as long as there is room and else in a file
(`over` and `moved`); nothing here is durable, and no other process sees it. The easy mistakes: to
drop a staged state at the first commit of it, for two turns with the same text stage one state, and
each may need it; and to let a budget decide whether a state lives, where it only decides where.
"""

from __future__ import annotations

import math
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_rwkv_state._fork import ForkLock
from langchain_rwkv_state.state.header import Named
from langchain_rwkv_state.store.whose import model_named_by

if TYPE_CHECKING:
    from langchain_rwkv_state.state import RWKVState

STAGED_TTL_SECONDS = 15 * 60.0
STAGED_BUDGET_BYTES = 256 << 20
_EXPIRED_MAX = 4096  # references whose end is remembered, so that an error can say so


@dataclass(frozen=True)
class Staged:
    """A staged state.

    Attributes:
        ref: Its reference.
        parent: The state that it was read from.
        tokens: The ids read since the parent, for whoever keeps them.
        fingerprint: Of its model.
        block: Digest of the system block that its conversation began with.
        model: The model that it is of.
        n_tokens: Tokens that it stands for.
        nbytes: Bytes of its tensors.
        since: When it was staged, in seconds of the store.
        uses: How many times it was staged and not yet stored.
        memory: The state itself, on the CPU; ``None`` once it is in a file.
        path: That file.
        path_nbytes: Its size.
        own: Whether the file is this process's, to delete.
    """

    ref: str
    parent: str | None
    tokens: Sequence[int]
    fingerprint: str
    block: str | None
    model: Named
    n_tokens: int
    nbytes: int
    since: float
    uses: int
    memory: RWKVState | None
    path: Path | None = None
    path_nbytes: int = 0
    own: bool = True


class Staging:
    """The staged states of one store in one process. Times are the store's, given at each call.

    Args:
        drop: Deletes a file; called without the lock.
        ttl_seconds: How long a state is held.
    """

    def __init__(
        self,
        drop: Callable[[Path], None] = lambda _: None,
        *,
        ttl_seconds: float = STAGED_TTL_SECONDS,
    ) -> None:
        self._drop_file = drop
        self._ttl = ttl_seconds
        self._lock = ForkLock(self._forked)
        self._states: OrderedDict[str, Staged] = OrderedDict()
        self._moving: set[str] = set()
        self._memory_nbytes = 0
        self._last = -math.inf
        self._dead: list[Path] = []
        self._expired: OrderedDict[str, float] = OrderedDict()

    @property
    def holds_states(self) -> bool:
        """Whether any state is staged whose time is not up; asked without the lock, or a store."""
        return bool(self._states) and time.monotonic() - self._last < self._ttl

    def stage(
        self,
        ref: str,
        state: RWKVState,
        parent: str | None,
        tokens: Sequence[int],
        *,
        now: float,
    ) -> None:
        """Holds a state; the first one staged under a reference stays."""
        with self._lock:
            self._forget_old(now)
            self._expired.pop(ref, None)
            self._last = time.monotonic()
            held = self._states.pop(ref, None)
            if held is None or not (held.memory is not None or held.own):  # a file of the parent's
                uses = 0 if held is None else held.uses
                state = state.to("cpu")
                held = Staged(
                    ref=ref,
                    parent=parent,
                    tokens=array("I", tokens),
                    fingerprint=state.fingerprint,
                    block=state.block,
                    model=model_named_by(state),
                    n_tokens=state.n_tokens,
                    nbytes=state.nbytes,
                    since=now,
                    uses=uses,
                    memory=state,
                )
                self._memory_nbytes += held.nbytes
            self._states[ref] = replace(held, since=now, uses=held.uses + 1)
        self._delete_dead()

    def get(self, ref: str, *, now: float) -> Staged | None:
        """Returns a staged state."""
        with self._lock:
            self._forget_old(now)
            found = self._states.get(ref)
        self._delete_dead()
        return found

    def over(self, budget_bytes: int, coming_bytes: int) -> list[Staged]:
        """Returns states that must leave memory, oldest first; say `moved` of each.

        Args:
            budget_bytes: The most bytes of states in memory.
            coming_bytes: Of one that is about to be staged: it is held whatever its size.
        """
        with self._lock:
            staying = self._memory_nbytes - sum(self._states[ref].nbytes for ref in self._moving)
            chosen: list[Staged] = []
            for held in self._states.values():
                if staying + coming_bytes <= budget_bytes:
                    break
                if held.memory is not None and held.ref not in self._moving:
                    chosen.append(held)
                    staying -= held.nbytes
            self._moving.update(held.ref for held in chosen)
            return chosen

    def moved(self, ref: str, path: Path | None, nbytes: int = 0) -> None:
        """Notes that a state is in a file of so many bytes now; ``None`` leaves it in memory."""
        with self._lock:
            held = self._states.get(ref)
            moving = ref in self._moving
            self._moving.discard(ref)
            if path is not None and held is not None and moving and held.memory is not None:
                self._states[ref] = replace(held, memory=None, path=path, path_nbytes=nbytes)
                self._memory_nbytes -= held.nbytes
            elif path is not None:
                self._dead.append(path)  # it was stored meanwhile, or its time was up
        self._delete_dead()

    def stored(self, ref: str) -> None:
        """Notes that one of those who staged a state has stored it."""
        with self._lock:
            held = self._states.get(ref)
            if held is not None and held.uses > 1:
                self._states[ref] = replace(held, uses=held.uses - 1)
            elif held is not None:
                self._drop(ref)
        self._delete_dead()

    def expired_at(self, ref: str, *, now: float) -> float | None:
        """Returns when a staged state's time was up; ``None`` for one that never was staged."""
        with self._lock:
            self._forget_old(now)
            return self._expired.get(ref)

    def clear(self) -> None:
        """Drops everything."""
        with self._lock:
            for ref in list(self._states):
                self._drop(ref)
            self._expired.clear()
        self._delete_dead()

    def size(self, *, now: float) -> tuple[int, int, int]:
        """Returns how many states are staged, their bytes in memory, and those in files."""
        with self._lock:
            self._forget_old(now)
            nbytes = sum(held.nbytes for held in self._states.values())
            found = len(self._states), self._memory_nbytes, nbytes - self._memory_nbytes
        self._delete_dead()
        return found

    def _drop(self, ref: str) -> None:
        held = self._states.pop(ref)
        self._moving.discard(ref)
        if held.memory is not None:
            self._memory_nbytes -= held.nbytes
        if held.path is not None and held.own:
            self._dead.append(held.path)

    def _forget_old(self, now: float) -> None:
        oldest = now - self._ttl
        while self._states and next(iter(self._states.values())).since < oldest:
            ref, held = next(iter(self._states.items()))
            self._drop(ref)
            self._expired[ref] = held.since + self._ttl
        while len(self._expired) > _EXPIRED_MAX:
            self._expired.popitem(last=False)

    def _delete_dead(self) -> None:
        while self._dead:
            try:
                path = self._dead.pop()
            except IndexError:  # another thread took it
                return
            self._drop_file(path)

    def _forked(self) -> None:
        """In a forked child: the files are the parent's to delete."""
        self._dead = []
        self._moving = set()
        for ref, held in self._states.items():
            self._states[ref] = replace(held, own=False)
