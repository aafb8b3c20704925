"""Slots that choose ids themselves, a step ahead of the host, over a fake runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from langchain_rwkv_state.runtime.base import Runtime
from langchain_rwkv_state.runtime.cuda.sampling import SamplerArrays, sample
from langchain_rwkv_state.runtime.native.sampling import Floats, Found
from langchain_rwkv_state.runtime.sampling import SamplerState
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
        self._arrays = SamplerArrays(2 * served, runtime.vocab_size, "cpu")
        self._ahead: dict[int, RWKVState] = {}

    def count_by(self, tokenizer: str, increments: Callable[[], Sequence[float]]) -> None:
        known = torch.tensor(increments()[: len(self._arrays.counted)])
        self._arrays.counted[: len(known)] = known

    def load_sampler(self, slot: int, state: SamplerState) -> None:
        self._arrays.load(slot, state)

    def launch(self, reads: Sequence[Read]) -> _Launched:
        check_reads(read.slot for read in reads)
        assert len(reads) <= self.served
        ids = [[int(self._arrays.last[r.slot])] if r.ids is None else [*r.ids] for r in reads]
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
        masks = [read.allowed for read in reads if read.allowed is not None]
        rows = iter(range(len(masks)))
        whole = torch.zeros(max(len(masks), 1), -(-logits.shape[1] // 32), dtype=torch.int32)
        for row, mask in enumerate(masks):
            whole[row] = torch.from_numpy(mask.copy())

        def numbers(values: Sequence[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32)

        out = numbers([0] * 3 * len(reads)).view(3, -1)
        at = numbers([-1 if read.allowed is None else next(rows) for read in reads])
        slots, choose = ([int(r[n]) for r in reads] for n in (0, 2))
        sample(logits, numbers(slots), numbers(choose), at, whole, self._arrays, out)
        return [
            Found(best, bool(finite), None if chosen < 0 else chosen)
            for chosen, best, finite in out.t().tolist()
        ]

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
