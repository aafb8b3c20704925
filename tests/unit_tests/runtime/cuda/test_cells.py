"""Cells: which are taken, by how many, and what they hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_rwkv_state.runtime.cuda.cells import Cells, cell_bytes
from langchain_rwkv_state.state import StateLayout

LAYOUT = StateLayout.of(7, n_layer=3, n_embd=64, head_size=32, shift_dtype="fp16")
CPU = torch.device("cpu")


def test_cells_are_zero_and_one_is_spare() -> None:
    cells = Cells(LAYOUT, 2, CPU, torch.float16)
    assert (cells.count, cells.spare, cells.free) == (2, 2, 2)
    assert cells.att_x.shape == cells.ffn_x.shape == (3, 3, 64)
    assert cells.wkv.shape == (3, 3, 2, 32, 32)
    assert (cells.att_x.dtype, cells.wkv.dtype) == (torch.float16, torch.float16)
    assert not cells.wkv.any()
    arrays = (cells.att_x, cells.ffn_x, cells.wkv)
    assert sum(array.nbytes for array in arrays) == 3 * cell_bytes(LAYOUT, torch.float16)


def test_cells_that_are_not_taken_are_refused() -> None:
    cells = Cells(LAYOUT, 2, CPU)
    first = cells.take()
    for cell in (1 - first, cells.spare, -1, 9):
        for verb in (cells.share, cells.give_back):
            with pytest.raises(ValueError, match=f"Cell {cell} is not taken"):
                verb(cell)
    cells.take()
    with pytest.raises(RuntimeError, match="All 2 cells"):
        cells.take()
    with pytest.raises(ValueError, match="at least one cell, got 0"):
        Cells(LAYOUT, 0, CPU)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "share", "give"]), st.integers(0, 3))))
def test_a_cell_is_free_when_its_last_holder_gives_it_back(
    steps: list[tuple[str, int]],
) -> None:
    cells = Cells(StateLayout.of(7, n_layer=1, n_embd=32, head_size=32), 4, CPU)
    held = dict.fromkeys(range(4), 0)
    for step, cell in steps:
        if step == "take" and cells.free:
            taken = cells.take()
            assert held[taken] == 0
            held[taken] = 1
        elif step == "share" and held[cell]:
            assert cells.share(cell) == cell
            held[cell] += 1
        elif step == "give" and held[cell]:
            held[cell] -= 1
            assert cells.give_back(cell) == (held[cell] == 0)
        assert cells.free == sum(count == 0 for count in held.values())


def test_cells_that_are_taken_back_are_free() -> None:
    cells = Cells(LAYOUT, 2, CPU)
    cells.share(cells.take())
    cells.take()
    cells.clear()
    assert cells.free == 2
    assert {cells.take(), cells.take()} == {0, 1}
