"""Who reads how much in one step: every decoding request what it said, the others share a budget.

What a request said is one id, or a few more that a constraint forced.

Pure policy: it runs nothing and knows no slots. The easy mistake is to let a prompt be read in one
go: all that decode wait as long as it takes, so what is read beside them is bounded (`budget`),
and what one reader may take is bounded by how many others want to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

_LEAST_SHARE = 16  # ids; a model reads fewer at a time hardly faster, so others wait a turn instead


class Reader(Protocol):
    """One who reads.

    Attributes:
        turn: The step in which it read last, or came.
    """

    turn: int

    @property
    def decodes(self) -> bool:
        """Whether it reads what was sampled last, and what was forced behind it."""
        ...

    @property
    def wanted(self) -> int:
        """Number of ids that it would read in one go, at least one."""
        ...


R = TypeVar("R", bound=Reader)


def plan(readers: Sequence[R], step: int, *, budget: int, idle_budget: int) -> list[tuple[R, int]]:
    """Returns who reads how many ids in this step, and marks their turns.

    Args:
        readers: All that are being served.
        step: This step's number.
        budget: Ids of prompts at most, where somebody decodes.
        idle_budget: The same where nobody does.

    Returns:
        Pairs of a reader and a number of ids above 0; at least one where there are readers. Those
        whose last turn is longest ago come first, so that nobody is passed over for ever.
    """
    decoding = [reader for reader in readers if reader.decodes]
    others = sorted((r for r in readers if not r.decodes), key=lambda reader: reader.turn)
    shares = share_out([reader.wanted for reader in others], budget if decoding else idle_budget)
    reads = [(reader, min(reader.wanted, budget)) for reader in decoding]
    reads += [(reader, share) for reader, share in zip(others, shares, strict=True) if share]
    for reader, _ in reads:
        reader.turn = step
    return reads


def share_out(wants: Sequence[int], budget: int) -> list[int]:
    """Divides a budget: equal shares first, of at least 16; then what is left, in order.

    Example:
        >>> share_out([2000, 10], 64)
        [54, 10]
        >>> share_out([2000, 500, 500, 500, 500], 64)
        [16, 16, 16, 16, 0]
    """
    if not wants:
        return []
    share = max(budget // len(wants), _LEAST_SHARE)
    given = [0] * len(wants)
    for limit in (share, budget):
        for place, want in enumerate(wants):
            more = min(want, limit, given[place] + budget) - given[place]
            given[place] += more
            budget -= more
    return given
