"""Keeps the states of many conversations as three tensors on the card, one cell a state.

It says which cells are taken, and how often; what a state stands for is not its business. A cell
that is given back may be read by work under way: what is given to the card later waits for that,
since it does one thing after another.

L layers, C cells, D width, H heads, N head size.
"""

from __future__ import annotations

import torch

from langchain_rwkv_state.state import StateLayout


class Cells:
    """Room for states of RWKV-7, all zero. One thread uses it at a time.

    Args:
        layout: Of one state.
        count: Number of cells, C, the spare one apart.
        device: Where they live.
        state_dtype: Of the WKV states: fp32 or fp16.

    Attributes:
        layout: Of one state.
        count: Number of cells, C.
        spare: Number of the spare cell, which belongs to nobody: padding is read into it.
        att_x: The time-mix's last inputs, ``[L, C + 1, D]``, in the compute dtype.
        ffn_x: The channel-mix's last inputs, likewise.
        wkv: The WKV states, ``[L, C + 1, H, N, N]`` (values by keys).

    Example:
        >>> layout = StateLayout.of(7, n_layer=1, n_embd=64, head_size=64)
        >>> cells = Cells(layout, 2, torch.device("cpu"))
        >>> cells.take(), cells.take(), cells.free
        (0, 1, 0)
        >>> cells.share(1), cells.give_back(1), cells.give_back(1)
        (1, False, True)
    """

    def __init__(
        self,
        layout: StateLayout,
        count: int,
        device: torch.device,
        state_dtype: torch.dtype = torch.float32,
    ) -> None:
        if count < 1:
            raise ValueError(f"There must be at least one cell, got {count}.")
        layers, heads, size = layout.n_layer, layout.n_head, layout.head_size
        shift = layout.specs[0].dtype
        self.layout, self.count, self.spare = layout, count, count
        self.att_x = torch.zeros(layers, count + 1, layout.n_embd, dtype=shift, device=device)
        self.ffn_x = torch.zeros_like(self.att_x)
        shape = (layers, count + 1, heads, size, size)
        self.wkv = torch.zeros(shape, dtype=state_dtype, device=device)
        self.clear()

    def clear(self) -> None:
        """Takes all cells back, whoever held them."""
        self._free = list(reversed(range(self.count)))
        self._holders = [0] * self.count

    @property
    def free(self) -> int:
        """How many cells can be taken."""
        return len(self._free)

    def take(self) -> int:
        """Returns a free cell, whatever is in it.

        Raises:
            RuntimeError: There is none.
        """
        if not self._free:
            raise RuntimeError(f"All {self.count} cells on the card are taken: give one back.")
        cell = self._free.pop()
        self._holders[cell] = 1
        return cell

    def share(self, cell: int) -> int:
        """Counts one more holder of a taken cell, and returns the cell."""
        self._require(cell)
        self._holders[cell] += 1
        return cell

    def give_back(self, cell: int) -> bool:
        """Counts one holder less, and says whether that was the last: the cell is free then."""
        self._require(cell)
        self._holders[cell] -= 1
        if self._holders[cell]:
            return False
        self._free.append(cell)
        return True

    def _require(self, cell: int) -> None:
        if not (0 <= cell < self.count and self._holders[cell]):
            raise ValueError(f"Cell {cell} is not taken: nobody can share it or give it back.")


def cell_bytes(layout: StateLayout, state_dtype: torch.dtype = torch.float32) -> int:
    """Returns the bytes of a cell for states of a layout.

    Example:
        >>> layout = StateLayout.of(7, n_layer=1, n_embd=64, head_size=64, shift_dtype="fp16")
        >>> cell_bytes(layout), cell_bytes(layout, torch.float16)
        (16640, 8448)
    """
    shifts = 2 * layout.n_embd * layout.specs[0].dtype.itemsize
    matrices = layout.n_head * layout.head_size**2 * state_dtype.itemsize
    return layout.n_layer * (shifts + matrices)
