"""How far apart two states are, layer by layer and in total, by a metric of the caller's choice.

Three metrics look at the numbers, one asks a model. The easy mistake is to compare RWKV-4's
``att_aa`` as they stand: two states that mean the same can be far apart in them. So its
accumulators are compared as what they mean, ``aa / bb`` and ``log(1 + bb * exp(pp))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol, Self, get_args

import torch

from langchain_rwkv_state.state.parts import ACCUMULATORS_4, accumulators, kind, layer
from langchain_rwkv_state.state.state import RWKVState, require_states
from langchain_rwkv_state.toolbox.algebra import require_same_model

Metric = Literal["l2", "cosine", "rms_relative", "logits_kl"]


class Reader(Protocol):
    """As much of a runtime as `distance` needs."""

    def forward_batch(
        self, tokens: Sequence[Sequence[int]], states: Sequence[RWKVState]
    ) -> tuple[torch.Tensor, list[RWKVState]]:
        """See `Runtime.forward_batch`."""
        ...


class Distance(float):
    """How far apart two states are: a number, with what it is made of.

    It compares, adds and formats as the `float` that it is. So two distances of one size are equal
    (and hash alike) whatever lies between: compare `layers` where that is meant. Sums and products
    are plain floats.

    Attributes:
        metric: What was measured.
        layers: Over each layer by itself, ``[L]``.
        tensors: Over each tensor by itself, by name; empty for ``logits_kl``. RWKV-4's three
            accumulators count as ``wkv``.

    Example:
        >>> found = Distance("l2", 2.5, (1.5, 2.0), {})
        >>> found < 3, f"{found:.2f}", sum([found, found]), found.layers
        (True, '2.50', 5.0, (1.5, 2.0))
    """

    __slots__ = ("layers", "metric", "tensors")
    metric: Metric
    layers: tuple[float, ...]
    tensors: Mapping[str, float]

    def __new__(
        cls, metric: Metric, total: float, layers: Sequence[float], tensors: Mapping[str, float]
    ) -> Self:
        """Makes the number; see the class for what goes along with it."""
        found = super().__new__(cls, total)
        for name, value in (
            ("metric", metric),
            ("layers", tuple(layers)),
            ("tensors", MappingProxyType(dict(tensors))),
        ):
            object.__setattr__(found, name, value)
        return found

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"A Distance is a value: its {name} cannot be set.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"A Distance is a value: its {name} cannot be deleted.")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.metric, self.total, self.layers, dict(self.tensors))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    @property
    def total(self) -> float:
        """The number itself, over the whole states."""
        return float(self)

    def __eq__(self, other: object) -> bool:  # as float's; without it mypy refuses `found == 0`
        return float(self) == other

    __hash__ = float.__hash__
    __str__ = float.__repr__

    def __repr__(self) -> str:
        return f"Distance({self.metric!r}, {self}, {len(self.layers)} layers)"

    def _repr_html_(self) -> str:
        from langchain_rwkv_state.toolbox.diff import Diff

        return Diff.of(self)._repr_html_()


def distance(
    a: RWKVState,
    b: RWKVState,
    metric: Metric = "l2",
    *,
    runtime: Reader | None = None,
    probe: Sequence[int] | None = None,
) -> Distance:
    """Measures how far apart two states of one model are.

    ======================  ===================================================  ================
    metric                  formula                                              a metric?
    ======================  ===================================================  ================
    ``l2``                  ``||a - b||``                                        yes
    ``cosine``              ``1 - a.b / (||a|| ||b||)``                          no: parallel is 0
    ``rms_relative``        ``||a - b|| / sqrt((||a||^2 + ||b||^2) / 2)``        no triangle
    ``logits_kl``           ``KL(p_a || p_b)`` in nats, behind a probe           not symmetric
    ======================  ===================================================  ================

    Args:
        a: A state.
        b: Another of the same model.
        metric: What to measure.
        runtime: The model, for ``logits_kl`` alone.
        probe: Token ids to read from both states, for ``logits_kl`` alone: a state by itself
            predicts nothing, only what follows a token that is read from it.

    Returns:
        The distance, a `float` with its layers. For ``logits_kl`` a layer's figure is what taking
        that layer alone from `b` does to the prediction of `a`; these do not add up to the total.

    Raises:
        TypeError: One is no state, such as a session's name; or `runtime` or `probe` is none.
        ValueError: The metric is unknown, ``logits_kl`` lacks its model or probe, or another
            metric was given one.
        StateMismatch: The states belong to two models.

    Example:
        >>> from langchain_rwkv_state.state import StateLayout, distance, zero_state
        >>> zero = zero_state(StateLayout.of(7, n_layer=2, n_embd=64, head_size=64), "model")
        >>> distance(zero, zero) < 1, len(distance(zero, zero).layers)
        (True, 2)
    """
    require_states("distance", a, b, verb="store.distance(...)")
    require_same_model(a, b)
    if metric == "logits_kl":
        return _logits_kl(a, b, runtime, probe)
    measure = _MEASURES.get(metric)
    if measure is None:
        raise ValueError(f"metric is one of {', '.join(get_args(Metric))}, got {metric!r}.")
    if runtime is not None or probe is not None:
        raise ValueError(
            f"runtime and probe are for metric='logits_kl', and {metric!r} asks no model: leave "
            "them out, or pass that metric."
        )
    sums = {
        name: _Sums.of(one, other)
        for (name, one), (_, other) in zip(_comparable(a), _comparable(b), strict=True)
    }
    by_layer = [_Sums() for _ in range(a.layout.n_layer)]
    total = _Sums()
    for name, each in sums.items():
        by_layer[layer(name)] = by_layer[layer(name)].plus(each)
        total = total.plus(each)
    tensors = {name: measure(each) for name, each in sums.items()}
    return Distance(metric, measure(total), tuple(map(measure, by_layer)), tensors)


@dataclass(frozen=True)
class _Sums:
    """What the metrics are made of; sums over tensors are sums of these."""

    gap: float = 0.0  # ||a - b||^2
    dot: float = 0.0
    one: float = 0.0  # ||a||^2
    other: float = 0.0  # ||b||^2

    @classmethod
    def of(cls, a: torch.Tensor, b: torch.Tensor) -> _Sums:
        return cls(*(float((x * y).sum()) for x, y in ((a - b, a - b), (a, b), (a, a), (b, b))))

    def plus(self, more: _Sums) -> _Sums:
        return _Sums(
            self.gap + more.gap,
            self.dot + more.dot,
            self.one + more.one,
            self.other + more.other,
        )


def _l2(sums: _Sums) -> float:
    return math.sqrt(sums.gap)


def _cosine(sums: _Sums) -> float:
    if sums.gap == 0:
        return 0.0
    if not sums.one or not sums.other:
        return 1.0
    apart = 1 - sums.dot / math.sqrt(sums.one) / math.sqrt(sums.other)
    return apart if math.isnan(apart) else min(2.0, max(0.0, apart))


def _rms_relative(sums: _Sums) -> float:
    return math.sqrt(sums.gap / ((sums.one + sums.other) / 2)) if sums.gap else 0.0


_MEASURES: dict[str, Callable[[_Sums], float]] = {
    "l2": _l2,
    "cosine": _cosine,
    "rms_relative": _rms_relative,
}


def _comparable(state: RWKVState) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields each tensor flat and in fp64; RWKV-4's accumulators as what they mean."""
    for name in state:
        if kind(name) not in ACCUMULATORS_4:
            yield name, state.shared(name).cpu().double().flatten()
        elif kind(name) == "att_aa":
            number = layer(name)
            yield f"blocks.{number}.wkv", torch.cat(accumulated(state, number))


def accumulated(state: RWKVState, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what the accumulators of one layer of an RWKV-4 mean, in fp64.

    Returns:
        The weighted mean of the values read, ``aa / bb``, and the weight behind it as a logarithm,
        ``log(1 + bb * exp(pp))``; ``[D]`` each, 0 for channels that have read nothing.
    """
    aa, bb, pp = (each.cpu().double() for each in accumulators(state, number))
    filled = bb > 0
    safe = torch.where(filled, bb, torch.ones_like(bb))
    mass = torch.nn.functional.softplus(pp + safe.log())
    return aa / safe, torch.where(filled, mass, torch.zeros_like(mass))


def _logits_kl(
    a: RWKVState, b: RWKVState, runtime: Reader | None, probe: Sequence[int] | None
) -> Distance:
    if runtime is None or not probe:
        raise ValueError("logits_kl asks a model: give runtime=, and probe=[token ids] to read.")
    if not hasattr(probe[0], "__index__"):  # a text, most likely
        raise TypeError(f"probe is a list of token ids, such as chat.get_token_ids({probe!r:.60}).")
    if not hasattr(runtime, "forward_batch"):
        raise TypeError(
            f"runtime is {type(runtime).__name__}, which reads no tokens: pass "
            "chat.loaded().runtime."
        )
    mixed = [
        RWKVState(
            a.layout,
            {name: (b if layer(name) == number else a).shared(name) for name in a},
            a.derivation.rooted(f"layer {number} of another"),
        )
        for number in range(a.layout.n_layer)
    ]
    states = [a, b, *mixed]
    logits, _ = runtime.forward_batch([list(probe)] * len(states), states)
    log_p = torch.log_softmax(logits.double(), -1)
    divergence = (log_p[0].exp() * (log_p[0] - log_p)).sum(-1).clamp(min=0).tolist()
    return Distance("logits_kl", divergence[1], tuple(divergence[2:]), {})
