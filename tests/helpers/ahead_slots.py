"""Slots that choose ids themselves, a step ahead of the host, over a fake runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch

from langchain_rwkv_state.engine import choices
from langchain_rwkv_state.runtime.base import Runtime
from langchain_rwkv_state.runtime.sampling import Draw, Floats, Found, SamplerState, bits_of
from langchain_rwkv_state.runtime.slots import Read, StateSlots, check_reads
from langchain_rwkv_state.state import RWKVState


class AheadSlots(StateSlots):
    """`ChoosingSlots` as a card has them; what they give is there at once, and told when asked for.

    Args:
        runtime: The model.
        served: How many slots may read in one step; there are twice as many.
    """

    can_mark = True

    def __init__(self, runtime: Runtime, served: int) -> None:
        super().__init__(runtime, 2 * served)
        self.served = served
        self._choosing: dict[int, SamplerState] = {}
        self._last: dict[int, int] = {}
        self._increments: Callable[[], Sequence[float]] = list
        self._ahead: dict[int, RWKVState] = {}

    def count_by(self, tokenizer: str, increments: Callable[[], Sequence[float]]) -> None:
        self._increments = cache(increments)  # one an id: asked for where something is counted

    def load_sampler(self, slot: int, state: SamplerState) -> None:
        self._choosing[slot] = state

    def launch(self, reads: Sequence[Read]) -> _Launched:
        check_reads(read.slot for read in reads)
        assert len(reads) <= self.served
        ids = [[self._last.get(r.slot, 0)] if r.ids is None else [*r.ids] for r in reads]
        before = [self.get(read.slot) for read in reads]
        for read, given, state in zip(reads, ids, before, strict=True):
            assert read.slot not in self._ahead, "what was read ahead is neither taken nor dropped"
            for at, spare in read.marks:
                assert 0 < at < len(given)
                _, states = self._runtime.forward_batch([given[:at]], [state])
                self.put(spare, states[0])
        logits, states = self._runtime.forward_batch(ids, before)
        for read, state in zip(reads, states, strict=True):
            if read.ids is None:
                self._ahead[read.slot] = state
            else:
                self._states[read.slot] = state
        return _Launched(reads, logits, self._chosen(reads, logits))

    def _chosen(self, reads: Sequence[Read], logits: torch.Tensor) -> list[Found]:
        draws = [self._draw(read) if read.choose else None for read in reads]
        rows = logits.numpy()
        found = []
        for read, row, draw in zip(reads, rows, draws, strict=True):
            finite = bool(np.isfinite(row).all())
            chosen = choices.choose(row, draw) if draw is not None and finite else None
            found.append(Found(int(row.argmax()), finite, chosen))
            if chosen is not None:
                self._count(read.slot, chosen)
        return found

    def _draw(self, read: Read) -> Draw:
        state = self._choosing[read.slot]
        penalties = np.float32(state.presence) + np.float32(state.frequency) * state.counts
        top_k = min(state.top_k, self._runtime.vocab_size)
        bits = bits_of(state.key, state.n)
        settings = (state.temperature, state.top_p, top_k, bits, state.ids)
        return Draw(*settings, penalties.astype(np.float32), read.allowed)

    def _count(self, slot: int, token: int) -> None:
        state = self._choosing[slot]
        self._last[slot] = token
        ids, counts = state.ids, state.counts
        if state.presence or state.frequency:
            counts = counts * np.float32(state.decay)
            if token not in ids:
                ids, counts = np.append(ids, token), np.append(counts, np.float32(0))
            known = self._increments()
            counts[ids == token] += np.float32(known[token] if token < len(known) else 1)
        self._choosing[slot] = state._replace(n=state.n + 1, ids=ids, counts=counts)

    def begin_get(self, slot: int) -> Callable[[], RWKVState]:
        state = self.get(slot)
        return lambda: state

    def confirm(self, slot: int, token: int) -> None:
        state = self._ahead.pop(slot)
        self._states[slot] = state

    def abandon(self, slot: int) -> None:
        self._ahead.pop(slot, None)

    def clear(self, slot: int) -> None:
        super().clear(slot)
        self._ahead.pop(slot, None)


class _Launched:
    def __init__(self, reads: Sequence[Read], logits: torch.Tensor, found: list[Found]) -> None:
        self._reads, self._logits, self._found = reads, logits, found

    def found(self) -> list[Found]:
        return self._found

    def logits(self, number: int) -> Floats:
        assert self._reads[number].logits, "nobody asked for these logits"
        row: Floats = self._logits[number].numpy().copy()
        return row
