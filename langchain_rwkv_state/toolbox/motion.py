"""How a state moves from one turn to the next, layer by layer: what a live view shows.

Values in, values out; it follows nothing and draws nothing. The easy mistake is to read a large
move as much being learnt: the token shifts are the last token, and move at every turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from langchain_rwkv_state.state.parts import SHIFTS, kind, layer
from langchain_rwkv_state.state.state import RWKVState, require_states
from langchain_rwkv_state.toolbox.diagnostics import Inspection
from langchain_rwkv_state.toolbox.distance import distance
from langchain_rwkv_state.toolbox.maps import size_map


@dataclass(frozen=True)
class LayerMotion:
    """One layer at one turn.

    Attributes:
        rms: Root mean square of its WKV state; for RWKV-4 of ``aa / bb``.
        moved: How far its tensors are from those of the state before, as ``rms_relative``, 0 to 2;
            ``None`` where there is none to compare with.
        rank: Mean effective rank of its heads; ``None`` for RWKV-4.
    """

    rms: float
    moved: float | None
    rank: float | None


@dataclass(frozen=True)
class Motion:
    """A state at one turn, and how it got there.

    Attributes:
        layers: Each layer's figures, ``[L]``.
        moved: How far the whole state is from the one before, as ``rms_relative``; ``None`` where
            there is none to compare with.
        verdict: That of `inspect`.
    """

    layers: tuple[LayerMotion, ...] = field(repr=False)
    moved: float | None
    verdict: str

    @property
    def rms(self) -> float:
        """Root mean square over all layers."""
        return math.sqrt(sum(each.rms**2 for each in self.layers) / len(self.layers))

    @property
    def rank(self) -> float | None:
        """Mean effective rank over all layers; ``None`` for RWKV-4."""
        ranks = [each.rank for each in self.layers if each.rank is not None]
        return sum(ranks) / len(ranks) if ranks else None


def motion(state: RWKVState, before: RWKVState | None, found: Inspection) -> Motion:
    """Measures a state beside the one before it.

    Args:
        state: The state.
        before: The one to compare with; one of another model, or ``None``, is no comparison.
        found: What `inspect` said of `state`.

    Example:
        >>> from langchain_rwkv_state.state import StateLayout, inspect, zero_state
        >>> zero = zero_state(StateLayout.of(7, n_layer=2, n_embd=64, head_size=64), "model")
        >>> motion(zero, zero, inspect(zero)).moved
        0.0
    """
    require_states("motion", state, *([] if before is None else [before]))
    sizes = [math.sqrt(sum(x * x for x in row) / len(row)) for row in size_map(state).values]
    ranks: dict[int, float] = {
        layer(each.name): sum(each.ranks) / len(each.ranks)
        for each in found.tensors
        if each.ranks and kind(each.name) not in SHIFTS
    }
    moves: tuple[float | None, ...] = (None,) * len(sizes)
    total = None
    if before is not None and before.fingerprint == state.fingerprint:
        apart = distance(state, before, "rms_relative")
        moves, total = apart.layers, apart.total
    layers = tuple(
        LayerMotion(size, move, ranks.get(number))
        for number, (size, move) in enumerate(zip(sizes, moves, strict=True))
    )
    return Motion(layers, total, found.verdict)
