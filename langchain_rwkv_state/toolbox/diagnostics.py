"""What a state looks like: sizes, NaN, ranks, and a verdict in words.

It reads numbers and changes none; it cannot say what a state knows. The easy mistake is to judge
sizes by a fixed range such as 0.1 to 10: models differ by orders of magnitude, and so do layers of
one model, so what is healthy is learnt from a model's own states (`calibrate`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from langchain_rwkv_state import _markup as markup
from langchain_rwkv_state._text import span
from langchain_rwkv_state.errors import StateCorrupt, StateMismatch
from langchain_rwkv_state.state.accumulators import LOG_ZERO
from langchain_rwkv_state.state.parts import kind
from langchain_rwkv_state.state.state import RWKVState, require_states

_EMPTY_BELOW = LOG_ZERO / 10
_MARGIN = 2.0  # twice as large or half as small as any state that was seen is unusual
_HEALTHY_FORMAT = "langchain-rwkv-state-health/1"


@dataclass(frozen=True)
class TensorHealth:
    """One tensor's figures, over its finite numbers.

    Attributes:
        name: The tensor.
        mean_abs: Mean of ``|x|``.
        max_abs: Largest ``|x|``.
        rms: Root of the mean square.
        range_used: Share of the dtype's range in use, on a scale of powers of two: from the
            smallest ``|x|`` that is not zero to `max_abs`, over from the dtype's smallest normal
            number to its largest.
        n_nan: How many numbers are NaN.
        n_inf: How many are infinite.
        ranks: Effective rank of each head's matrix, ``[H]``, from 0 to N; empty for vectors.
    """

    name: str
    mean_abs: float
    max_abs: float
    rms: float
    range_used: float
    n_nan: int
    n_inf: int
    ranks: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
class Healthy:
    """The sizes that a model's states have, tensor by tensor.

    Attributes:
        fingerprint: The model.
        rms: Least and largest root mean square by tensor, with a margin.
        n_states: How many states it was learnt from.
    """

    fingerprint: str
    rms: dict[str, tuple[float, float]] = field(repr=False)
    n_states: int

    def to_json(self) -> str:
        """Returns a JSON text, for keeping."""
        return json.dumps(
            {
                "format": _HEALTHY_FORMAT,
                "fingerprint": self.fingerprint,
                "n_states": self.n_states,
                "rms": self.rms,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Healthy:
        """Reads what `to_json` wrote.

        Raises:
            StateCorrupt: The text is something else.
        """
        try:
            raw = json.loads(text.removeprefix("\ufeff"))  # a byte order mark is no text
            if raw["format"] != _HEALTHY_FORMAT:
                raise ValueError(f"the format is {raw['format']!r}")
            rms = {str(name): (float(low), float(high)) for name, (low, high) in raw["rms"].items()}
            return cls(str(raw["fingerprint"]), rms, int(raw["n_states"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StateCorrupt(f"The text holds no healthy ranges: {error}.") from error


@dataclass(frozen=True, repr=False)
class Inspection:
    """What `inspect` found.

    Attributes:
        tensors: Each tensor's figures, in the layout's order.
        problems: One sentence each; empty where nothing is wrong.
        verdict: The whole in one sentence or two.
    """

    tensors: tuple[TensorHealth, ...]
    problems: tuple[str, ...]
    verdict: str

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __repr__(self) -> str:
        return f"Inspection({self.verdict!r}, {len(self.tensors)} tensors)"

    def _repr_html_(self) -> str:
        columns = ("tensor", "mean |x|", "max |x|", "rms", "of range", "NaN", "inf", "ranks")
        rows = (
            (
                each.name,
                *(f"{x:.3g}" for x in (each.mean_abs, each.max_abs, each.rms, each.range_used)),
                each.n_nan,
                each.n_inf,
                span(each.ranks),
            )
            for each in self.tensors
        )
        return markup.table(self.verdict, columns, rows, len(self.tensors))


def inspect(state: RWKVState, *, healthy: Healthy | None = None) -> Inspection:
    """Looks at every tensor of a state.

    The effective rank of a head's matrix is ``exp(H(s / sum(s)))``, the exponential of the entropy
    of its singular values (Roy and Vetterli, "The effective rank", EUSIPCO 2007): 1 where all that
    was read went to one direction, N where all directions are in even use.

    Args:
        state: The state, of any version.
        healthy: What `calibrate` learnt of the same model; without it no size is judged.

    Returns:
        Figures, problems and a verdict. Channels of RWKV-4 that have read nothing (``att_pp`` at
        -1e30) are left out of the figures of ``att_pp``.

    Raises:
        TypeError: It is no state, such as a session's name.
        StateMismatch: `healthy` belongs to another model.

    Example:
        >>> from langchain_rwkv_state.state import StateLayout, inspect, zero_state
        >>> zero = zero_state(StateLayout.of(7, n_layer=1, n_embd=64, head_size=64), "model")
        >>> inspect(zero).verdict
        'Empty: the state of a model that has read nothing.'
    """
    require_states("inspect", state, verb="store.inspect(...)")
    if healthy is not None and healthy.fingerprint != state.fingerprint:
        raise StateMismatch(
            f"The healthy ranges are those of {healthy.fingerprint!r}, the state belongs to "
            f"{state.fingerprint!r}: calibrate with states of its own model."
        )
    tensors = tuple(_look(name, state.shared(name)) for name in state)
    broken = [
        f"{each.name} holds {each.n_nan} NaN and {each.n_inf} infinite numbers."
        for each in tensors
        if each.n_nan or each.n_inf
    ]
    unusual = [] if healthy is None or broken else _unusual(tensors, healthy)
    return Inspection(tensors, (*broken, *unusual), _verdict(tensors, broken, unusual, healthy))


def calibrate(states: Iterable[RWKVState], *, margin: float = _MARGIN) -> Healthy:
    """Learns the sizes that are healthy for a model from states that are.

    Args:
        states: At least two states of one model, that read texts of the kind that is to come; they
            are looked at one after the other, so they need not all be in memory.
        margin: By which factor a size may lie outside of what was seen.

    Raises:
        ValueError: There are fewer than two states, one is not finite, or `margin` is below 1.
        StateMismatch: They belong to several models.
    """
    if not margin >= 1:
        raise ValueError(f"A margin of 1 or more is needed, got {margin!r}.")
    fingerprint: str | None = None
    seen: dict[str, list[float]] = {}
    n_states = 0
    for state in states:
        n_states += 1
        require_states("calibrate", state)
        fingerprint = fingerprint or state.fingerprint
        if state.fingerprint != fingerprint:
            raise StateMismatch(
                f"States of {fingerprint!r} and of {state.fingerprint!r} say nothing about one "
                "another: calibrate each model by itself."
            )
        for each in inspect(state).tensors:
            if each.n_nan or each.n_inf:
                raise ValueError(f"{each.name!r} is not finite: no model can learn health from it.")
            seen.setdefault(each.name, []).append(each.rms)
    if fingerprint is None or n_states < 2:
        raise ValueError(f"At least two states are needed to learn from, got {n_states}.")
    rms = {name: (min(found) / margin, max(found) * margin) for name, found in seen.items()}
    return Healthy(fingerprint, rms, n_states)


def effective_ranks(matrices: torch.Tensor) -> tuple[float, ...]:
    """Returns the effective rank of each of H matrices, ``[H, N, N]``; 0 for a zero one."""
    values = torch.linalg.svdvals(matrices.cpu().double())
    total = values.sum(-1, keepdim=True)
    shares = values / torch.where(total > 0, total, torch.ones_like(total))
    entropy = -torch.special.xlogy(shares, shares).sum(-1)
    ranks = torch.where(total.squeeze(-1) > 0, entropy.exp(), torch.zeros_like(entropy))
    return tuple(ranks.tolist())


def _look(name: str, tensor: torch.Tensor) -> TensorHealth:
    numbers = tensor.cpu().double()
    finite = numbers.isfinite()
    kept = numbers[finite]
    if kind(name) == "att_pp":
        kept = kept[kept > _EMPTY_BELOW]
    sizes = kept.abs() if kept.numel() else torch.zeros(1, dtype=torch.float64)
    largest = float(sizes.max())
    return TensorHealth(
        name=name,
        mean_abs=float(sizes.mean()),
        max_abs=largest,
        rms=math.sqrt(float((sizes**2).mean())),
        range_used=_range_used(sizes, tensor.dtype),
        n_nan=int(numbers.isnan().sum()),
        n_inf=int(numbers.isinf().sum()),
        ranks=effective_ranks(tensor) if tensor.ndim == 3 and bool(finite.all()) else (),
    )


def _range_used(sizes: torch.Tensor, dtype: torch.dtype) -> float:
    """Returns the share of a dtype's powers of two that lie between the numbers of a tensor."""
    filled = sizes[sizes > 0]
    if not filled.numel():
        return 0.0
    limits = torch.finfo(dtype)
    used = math.log2(float(filled.max())) - math.log2(float(filled.min()))
    return min(1.0, used / (math.log2(limits.max) - math.log2(limits.tiny)))


def _unusual(tensors: Sequence[TensorHealth], healthy: Healthy) -> list[str]:
    found = []
    for each in tensors:
        if each.name not in healthy.rms:
            raise StateMismatch(f"The healthy ranges lack {each.name!r}: calibrate again.")
        low, high = healthy.rms[each.name]
        if not low <= each.rms <= high:
            found.append(
                f"{each.name} has a root mean square of {each.rms:.3g}, where {low:.3g} to "
                f"{high:.3g} is usual for this model."
            )
    return found


def _verdict(
    tensors: Sequence[TensorHealth],
    broken: Sequence[str],
    unusual: Sequence[str],
    healthy: Healthy | None,
) -> str:
    if broken:
        more = f", and {len(broken) - 1} more tensors" if len(broken) > 1 else ""
        return f"Broken: {broken[0].removesuffix('.')}{more}. Go back to an earlier state."
    if not any(each.max_abs for each in tensors):
        return "Empty: the state of a model that has read nothing."
    if unusual:
        return f"Unusual: {len(unusual)} of {len(tensors)} tensors. {unusual[0]}"
    if healthy is None:
        return "Finite: no NaN, nothing infinite. Without `calibrate` no size can be judged."
    return f"Sound: all sizes are those of {healthy.n_states} states of this model."
