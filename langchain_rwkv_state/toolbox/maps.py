"""One figure for each layer and head of a state: what heat maps are drawn from.

Values in, values out; nothing is drawn and nothing judged here. The easy mistake is to draw RWKV-4
like the others: it has no heads and no matrices, so blocks of 64 channels stand in for heads, and
its accumulators appear as what they mean (see `distance`), not as the numbers that are stored.

Glossary: L layers, H heads, N head size, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from langchain_rwkv_state.state.state import RWKVState, require_states
from langchain_rwkv_state.toolbox.algebra import require_same_model
from langchain_rwkv_state.toolbox.diagnostics import effective_ranks
from langchain_rwkv_state.toolbox.distance import accumulated

BLOCK_CHANNELS = 64  # as wide as the heads of all published models of later versions


@dataclass(frozen=True)
class HeadMap:
    """A figure for each layer and head.

    Attributes:
        name: ``norm``, ``rank``, ``mean``, ``mass`` or ``difference``.
        title: What the figure is, in words.
        columns: What a column is: ``head``, or ``block of 64 channels`` for RWKV-4.
        values: ``[L, H]``, layer by layer; NaN where the state's own numbers are not finite.
        log: Whether the figures are sizes, which differ by orders of magnitude.
    """

    name: str
    title: str
    columns: str
    values: tuple[tuple[float, ...], ...] = field(repr=False)
    log: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Number of layers and of heads."""
        return len(self.values), len(self.values[0])

    @property
    def finite(self) -> tuple[float, ...]:
        """All figures that are finite numbers, in one row."""
        return tuple(each for row in self.values for each in row if math.isfinite(each))


def head_maps(state: RWKVState) -> tuple[HeadMap, ...]:
    """Returns what there is to see of each head of a state.

    ===========  ========  ===============================================================
    version      map       a cell
    ===========  ========  ===============================================================
    5, 6, 7      ``norm``  root mean square of the head's matrix, ``||S|| / N``
    5, 6, 7      ``rank``  its effective rank, 0 to N (see `inspect`)
    4            ``mean``  root mean square of ``aa / bb`` over a block of 64 channels
    4            ``mass``  mean of ``log(1 + bb * exp(pp))`` over the block, in nats
    ===========  ========  ===============================================================

    Args:
        state: The state, of any version.

    Returns:
        Two maps of ``[L, H]``.

    Example:
        >>> from langchain_rwkv_state.state import StateLayout, head_maps, zero_state
        >>> zero = zero_state(StateLayout.of(7, n_layer=2, n_embd=128, head_size=64), "model")
        >>> [(each.name, each.shape) for each in head_maps(zero)]
        [('norm', (2, 2)), ('rank', (2, 2))]
    """
    require_states("head_maps", state)
    columns, layers = _columns(state), range(state.layout.n_layer)
    if state.layout.version == 4:
        masses = tuple(_by_block(accumulated(state, n)[1], _mean) for n in layers)
        return size_map(state), HeadMap("mass", "Weight behind it, in nats", columns, masses)
    ranks = tuple(_ranks(state.shared(f"blocks.{n}.att_kv")) for n in layers)
    return size_map(state), HeadMap("rank", "Effective rank", columns, ranks)


def size_map(state: RWKVState) -> HeadMap:
    """Returns the first of `head_maps`, ``norm`` or ``mean``, by itself: it is the cheap one."""
    columns, layers = _columns(state), range(state.layout.n_layer)
    if state.layout.version == 4:
        means = tuple(_by_block(accumulated(state, n)[0], _rms) for n in layers)
        return HeadMap("mean", "Mean value read, aa / bb (rms)", columns, means, log=True)
    norms = tuple(tuple(map(_rms, _heads(state, n))) for n in layers)
    return HeadMap("norm", "Norm (root mean square)", columns, norms, log=True)


def difference_map(a: RWKVState, b: RWKVState) -> HeadMap:
    """Returns how far apart two states are, head by head.

    A cell is ``||a - b|| / sqrt((||a||^2 + ||b||^2) / 2)`` over the head's matrix, as the metric
    ``rms_relative`` of `distance` has it: 0 for the same numbers, 2 for opposite ones. For RWKV-4
    both ``aa / bb`` and ``log(1 + bb * exp(pp))`` of a block of 64 channels count.

    Raises:
        StateMismatch: The states belong to two models.
    """
    require_states("difference_map", a, b, verb="store.diff(...)")
    require_same_model(a, b)
    values = tuple(
        tuple(
            _difference(one, other) for one, other in zip(_heads(a, n), _heads(b, n), strict=True)
        )
        for n in range(a.layout.n_layer)
    )
    return HeadMap("difference", "Relative difference", _columns(a), values)


def _columns(state: RWKVState) -> str:
    return f"block of {BLOCK_CHANNELS} channels" if state.layout.version == 4 else "head"


def _heads(state: RWKVState, number: int) -> list[torch.Tensor]:
    """Returns the numbers of each head of a layer, in fp64."""
    if state.layout.version == 4:
        mean, mass = map(_blocks, accumulated(state, number))
        return [torch.cat(pair) for pair in zip(mean, mass, strict=True)]
    return list(state.shared(f"blocks.{number}.att_kv").cpu().double())


def _by_block(
    channels: torch.Tensor, measure: Callable[[torch.Tensor], float]
) -> tuple[float, ...]:
    return tuple(map(measure, _blocks(channels)))


def _blocks(channels: torch.Tensor) -> list[torch.Tensor]:
    """Returns channels in blocks; the last one may be narrower."""
    return [channels[at : at + BLOCK_CHANNELS] for at in range(0, len(channels), BLOCK_CHANNELS)]


def _mean(numbers: torch.Tensor) -> float:
    return float(numbers.mean())


def _rms(numbers: torch.Tensor) -> float:
    """Returns the root mean square; NaN where a number is not finite."""
    found = float((numbers**2).mean().sqrt())
    return found if math.isfinite(found) else math.nan


def _ranks(matrices: torch.Tensor) -> tuple[float, ...]:
    """Returns the effective rank of each matrix; NaN for one that is not finite."""
    whole = matrices.isfinite().all(-1).all(-1)
    found = iter(effective_ranks(matrices[whole]))
    return tuple(next(found) if each else math.nan for each in whole.tolist())


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    gap = float(((one - other) ** 2).sum())
    if not math.isfinite(gap):
        return math.nan
    return math.sqrt(gap / (float((one**2).sum() + (other**2).sum()) / 2)) if gap else 0.0
