"""Copies of states into cells and out of them, on a card that a stand-in plays.

The stand-in does everything at once and fails where a card might not have been done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from langchain_rwkv_state.runtime.cuda.cells import Cells
from langchain_rwkv_state.runtime.cuda.transfers import AT_ONCE, Transfers
from langchain_rwkv_state.state import StateLayout
from tests.helpers.cuda_stand_in import RaceError, StandIn

LAYOUT = StateLayout.of(7, n_layer=3, n_embd=64, head_size=32, shift_dtype="fp16")
CPU = torch.device("cpu")


def open_cells(card: StandIn, count: int = 6, dtype: torch.dtype = torch.float32) -> Cells:
    cells = Cells(LAYOUT, count, CPU, dtype)
    card.holds(cells.att_x, cells.ffn_x, cells.wkv)
    return cells


def some_state(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(spec.shape, generator=generator).to(spec.dtype) for spec in LAYOUT.specs]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def advance(cells: Cells, source: int, target: int) -> None:
    """Does a pass's work: reads one cell, and writes another."""
    for array in (cells.att_x, cells.ffn_x, cells.wkv):
        array[:, target] = array[:, source] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_states_come_out_as_they_went_in(card: StandIn, dtype: torch.dtype) -> None:
    cells = open_cells(card, dtype=dtype)
    transfers = Transfers(cells)
    states = [some_state(seed) for seed in range(6)]
    for cell, state in enumerate(states):
        transfers.put(cell, state)
    pending = [transfers.begin_get(cell) for cell in range(6)]
    for finished, state in zip(pending, states, strict=True):
        taken = finished()
        assert [tensor.dtype for tensor in taken] == [spec.dtype for spec in LAYOUT.specs]
        assert equal(taken, [tensor.to(dtype).to(tensor.dtype) for tensor in state])
        # Of their own, and no more memory than they need.
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in taken)


def test_what_is_put_may_change_at_once_and_be_laid_out_in_any_way(card: StandIn) -> None:
    transfers = Transfers(open_cells(card))
    state, other = some_state(0), some_state(1)
    given = [tensor.mT.contiguous().mT if tensor.dim() == 3 else tensor for tensor in state]
    before = [tensor.clone() for tensor in given]
    transfers.put(0, given)
    for tensor, new in zip(given, other, strict=True):
        tensor.copy_(new)
    assert equal(transfers.begin_get(0)(), before)


def test_a_copy_out_is_of_when_it_was_asked_for(card: StandIn) -> None:
    cells = open_cells(card)
    transfers = Transfers(cells)
    state = some_state(0)
    transfers.put(0, state)
    transfers.settle([0])
    advance(cells, 0, 1)
    finished = transfers.begin_get(1)
    transfers.settle([1])
    advance(cells, 0, 1)
    assert equal(finished(), [tensor * 2 for tensor in state])


def test_a_cell_is_put_into_once_earlier_work_has_read_it(card: StandIn) -> None:
    cells = open_cells(card)
    transfers = Transfers(cells)
    advance(cells, 0, 1)
    for cell in (0, 1):
        transfers.put(cell, some_state(cell))
        transfers.put(cell, some_state(2 + cell))
        assert equal(transfers.begin_get(cell)(), some_state(2 + cell))


def test_work_on_a_cell_must_settle_its_copies(card: StandIn) -> None:
    cells = open_cells(card)
    transfers = Transfers(cells)
    transfers.put(0, some_state(0))
    with pytest.raises(RaceError, match="may still be writing"):
        advance(cells, 0, 1)
    transfers.settle([0, 1])
    advance(cells, 0, 1)
    transfers.begin_get(1)
    transfers.settle([2], read=[1])
    advance(cells, 1, 2)  # reading beside the copy is right
    with pytest.raises(RaceError, match="may still be reading"):
        advance(cells, 0, 1)
    transfers.settle([1])
    advance(cells, 0, 1)


def test_who_reads_a_cell_waits_for_what_comes_into_it_alone(card: StandIn) -> None:
    cells = open_cells(card)
    transfers = Transfers(cells)
    transfers.put(0, some_state(0))
    transfers.settle([1], read=[0])
    advance(cells, 0, 1)
    stream: Any = transfers._aside
    work, aside = card.current_stream().name, stream.name
    transfers.begin_get(0)
    before = card.clock(work)[aside]
    transfers.settle([2], read=[0])
    advance(cells, 0, 2)
    assert card.clock(work)[aside] == before
    transfers.settle([0])
    assert card.clock(work)[aside] > before


def test_a_copy_out_waits_for_the_work_that_wrote_its_cell_and_none_since(card: StandIn) -> None:
    cells = open_cells(card)
    transfers = Transfers(cells)
    advance(cells, 0, 1)
    transfers.wrote([1])
    stream: Any = transfers._aside
    work = card.current_stream().name
    written = card.clock(work)[work]
    advance(cells, 1, 2)
    transfers.begin_get(1)
    assert card.clock(stream.name)[work] == written
    transfers.begin_get(2)
    assert card.clock(stream.name)[work] > written


def test_work_on_other_cells_does_not_wait(card: StandIn) -> None:
    cells = open_cells(card)
    transfers = Transfers(cells)
    for cell in range(2):
        transfers.put(cell, some_state(cell))
    transfers.settle([0])
    advance(cells, 0, 2)
    advance(cells, 2, 3)
    with pytest.raises(RaceError):
        advance(cells, 1, 4)


def test_rows_of_an_index_are_watched_as_cells(card: StandIn) -> None:
    """As a step reads cells, whose numbers are tensors."""
    cells = open_cells(card)
    transfers = Transfers(cells)
    transfers.put(0, some_state(0))
    wkv = cells.wkv[1]
    wkv[torch.tensor([2, 3])] = wkv[torch.tensor([4, 1])]
    with pytest.raises(RaceError):
        wkv[torch.tensor([2, 3])] = wkv[torch.tensor([4, 0])]


def test_pinned_memory_is_used_again_once_it_is_done_with(card: StandIn) -> None:
    """More copies than buffers, taken in any order, late, and by other threads."""
    cells = open_cells(card)
    transfers = Transfers(cells)
    states = [some_state(seed) for seed in range(6)]
    for cell, state in enumerate(states):
        transfers.put(cell, state)
    made = len(card._known)
    pending = [(cell, transfers.begin_get(cell)) for cell in [*range(6)] * 3]
    wrong: list[int] = []

    def take(mine: list[tuple[int, Callable[[], list[Tensor]]]]) -> None:
        wrong.extend(cell for cell, finished in mine if not equal(finished(), states[cell]))

    other = threading.Thread(target=take, args=(pending[::2],))
    other.start()
    for cell in range(6):
        transfers.begin_get(cell)  # and never taken
    take(pending[::-2])
    other.join()
    assert wrong == []
    pinned = [known for known in card._known.values() if known.card is None]
    assert sum(not known.alive.expired() for known in pinned) == AT_ONCE
    assert made >= AT_ONCE


def test_a_buffer_that_is_not_waited_for_is_found_out(
    card: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tests here rest on: the stand-in sees pinned memory overwritten too early."""
    transfers = Transfers(open_cells(card))
    monkeypatch.setattr("langchain_rwkv_state.runtime.cuda.staging.Buffer.finish", lambda own: None)
    for cell in range(AT_ONCE):
        transfers.put(cell, some_state(cell))
    with pytest.raises(RaceError, match=r"writes pinned memory that .* may still be reading"):
        transfers.put(AT_ONCE, some_state(0))
