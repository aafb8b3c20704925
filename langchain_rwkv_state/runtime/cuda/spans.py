"""Says how the rows of a pass belong together, and from which cell to which their states go.

A *cell* is room for one state on the card. A pass never changes a state where it lies: it reads it
from one cell and writes the one behind into another. So a snapshot costs a cell and no copying, and
a token that should not have been read is undone by leaving the new cell alone.

T rows (tokens) of G segments, each one conversation's ids in a row; P parts of segments, each of
which ends where a state is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from langchain_rwkv_state.runtime.cuda.staging import sent


class Segment(NamedTuple):
    """Ids that one conversation reads in a pass.

    Attributes:
        length: Number of ids, at least one.
        source: The cell that its state is in.
        target: The cell that the state behind the last id goes to; not the source.
        marks: Positions inside (after so many ids, 1 to ``length - 1``, ascending), each with the
            cell that the state there goes to.
    """

    length: int
    source: int
    target: int
    marks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Spans:
    """Where T rows stand: index tensors on the device, int32 but for `last`.

    Attributes:
        before: The cell that holds what comes before a row, ``[T]``; -1 where the row above does.
        after: The cell that the state behind a row goes to, ``[T]``; -1 for none.
        start: Where each segment begins, and T last, ``[G + 1]``.
        part: Where each segment's parts begin, and P last, ``[G + 1]``.
        end: The row behind each part, ``[P]``.
        last: Each segment's last row, ``[G]``, int64.
        longest: Most rows of a segment.
    """

    before: Tensor
    after: Tensor
    start: Tensor
    part: Tensor
    end: Tensor
    last: Tensor
    longest: int

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> Spans:
        """Returns the spans of segments of any lengths."""
        total = sum(segment.length for segment in segments)
        before, after = [-1] * total, [-1] * total
        start = [0, *accumulate(segment.length for segment in segments)]
        part, end = [0], []
        for begin, segment in zip(start, segments, strict=False):
            before[begin] = segment.source
            for at, cell in (*segment.marks, (segment.length, segment.target)):
                after[begin + at - 1] = cell
                end.append(begin + at)
            part.append(len(end))
        numbers = [*before, *after, *start, *part, *end]
        # One copy to the device for all of them.
        whole = sent(torch.tensor(numbers, dtype=torch.int32), device)
        sizes = [total, total, len(start), len(part), len(end)]
        before_at, after_at, start_at, part_at, end_at = torch.split(whole, sizes)
        longest = max(segment.length for segment in segments)
        last = start_at[1:].long() - 1
        return cls(before_at, after_at, start_at, part_at, end_at, last, longest)

    @classmethod
    def of_each(cls, before: Tensor, after: Tensor) -> Spans:
        """Returns the spans of one token in each of T cells, whose numbers may change later.

        Args:
            before: ``[T]``, int32; kept, not copied.
            after: Likewise.
        """
        count = torch.arange(len(before) + 1, dtype=torch.int32, device=before.device)
        last = torch.arange(len(before), device=before.device)
        return cls(before, after, count, count, count[1:], last, 1)
