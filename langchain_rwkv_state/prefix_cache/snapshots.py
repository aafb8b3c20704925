"""Says where on a prompt to keep the state, so that other prompts go on from there.

Pure: positions in, positions out. A copy costs megabytes, so they are few, and of two that lie
close together one saves nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

APART = 16
"""Ids; a state nearer than this to another saves less than its bytes are worth."""

_LONG = 64  # ids: a segment of that length is a document or examples, which come again
_MOST_LONG = 4
_BEFORE_END = (32, 64, 128, 256)  # ids: a question behind a document is as long as one of these


def snapshot_positions(
    ends: Sequence[int],
    *,
    start: int,
    stop: int,
    first: Collection[int] = (),
    every: int = 512,
    most: int = 8,
) -> tuple[int, ...]:
    """Returns positions on a prompt at which to keep the state.

    A long segment may be a document with a question behind it, and nobody knows where the question
    begins until another one is asked. So behind the last position in `first`, the last long
    segment keeps states at growing distances from its end: whatever the next question's length,
    at most about as much of the document is read again as the first question was long.

    Args:
        ends: Where segments end, in order.
        start: Where reading begins.
        stop: Where it ends; the state there is at hand anyway, so it costs nothing to keep.
        first: Positions that are kept in any case: the end of a system prompt, a branch point.
        every: So many ids apart, states are kept on a long way without any end.
        most: At most so many positions beside `stop`; of short segments, ends near the end of the
            prompt come before those far from it, since that is where prompts are edited.

    Returns:
        Positions above `start`, in order, `stop` the last of them.

    Example:
        >>> snapshot_positions([40, 44, 90], start=0, stop=94, first=[40])
        (40, 94)
        >>> snapshot_positions([1000], start=0, stop=1004)
        (488, 744, 872, 936, 968, 1000, 1004)
    """
    if stop <= start:
        return ()
    segments = list(itertools.pairwise([0, *ends]))
    if not ends or ends[-1] < stop:
        segments.append((ends[-1] if ends else 0, stop))
    long = [(begin, end) for begin, end in segments if end - begin >= _LONG and start < end]
    wanted = {*first, *(end for _, end in long[-_MOST_LONG:])}
    chosen = sorted(at for at in wanted if start < at < stop)[:most]

    def add(positions: Sequence[int]) -> None:
        for at in positions:
            near = any(abs(at - other) < APART for other in (start, stop, *chosen))
            if len(chosen) < most and start < at < stop and not near:
                chosen.append(at)

    begin, end = long[-1] if long else (0, 0)
    if end > max(first, default=0):
        add([end - distance for distance in _BEFORE_END if end - distance > begin])
    add(list(reversed(ends)))
    step = max(every, (stop - start) // most)
    for before, after in itertools.pairwise(sorted({start, *chosen, stop})):
        add(range(before + step, after, step))
    return (*sorted(chosen), stop)
