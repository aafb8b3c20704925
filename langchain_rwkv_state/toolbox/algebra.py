"""Operations on states: weighted sums, forgetting, and RWKV-4's change of scale.

Values in, values out, for every RWKV version; nothing here runs a model. Whatever comes out was
read from no text, so it has a root of its own: its reference never stands for an exact state. The
easy mistake is to add RWKV-4's ``att_aa`` of two states: each stands for
``att_aa * exp(att_pp)``, and the two scales differ by orders of magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from langchain_rwkv_state.errors import StateMismatch
from langchain_rwkv_state.state.accumulators import LOG_ZERO
from langchain_rwkv_state.state.derivation import Derivation
from langchain_rwkv_state.state.parts import (
    ACCUMULATORS_4,
    SHIFTS,
    Parts,
    accumulators,
    chosen,
    kind,
)
from langchain_rwkv_state.state.state import RWKVState, require_states


def blend(a: RWKVState, b: RWKVState, alpha: float, *, parts: Parts = None) -> RWKVState:
    """Returns ``alpha * a + (1 - alpha) * b``.

    The matrices of RWKV-5, 6 and 7 and all token shifts are added as they are. RWKV-4's
    accumulators are added in true scale: with ``p = max(pp_a, pp_b)`` the new ones are
    ``aa = alpha * aa_a * exp(pp_a - p) + (1 - alpha) * aa_b * exp(pp_b - p)``, ``bb`` likewise,
    and ``pp = p`` (the recurrence's own way of adding, as in section B of "RWKV: Reinventing RNNs
    for the Transformer Era", arXiv 2305.13048).

    Args:
        a: A state.
        b: Another state of the same model.
        alpha: Weight of `a`, from 0 to 1.
        parts: Which tensors are blended; the others stay those of `a`.

    Returns:
        A new state of the same shapes. At the ends nothing is computed: 1 gives `a`, and 0 gives
        `b`, themselves.

    Raises:
        TypeError: One is no state, such as a session's name.
        ValueError: `alpha` is out of range, or `parts` names nothing.
        StateMismatch: The states belong to two models.

    Example:
        >>> from langchain_rwkv_state.state import StateLayout, blend, zero_state
        >>> zero = zero_state(StateLayout.of(7, n_layer=1, n_embd=64, head_size=64), "model")
        >>> blend(zero, zero, 1.0) == zero
        True
    """
    require_states("blend", a, b, verb="store.blend(...)")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the weight of the first state, from 0 to 1, got {alpha!r}.")
    return blend_many([a, b], [alpha, 1 - alpha], parts=parts)


def blend_many(
    states: Sequence[RWKVState], weights: Sequence[float], *, parts: Parts = None
) -> RWKVState:
    """Returns the weighted sum of states; see `blend`.

    Args:
        states: States of one model, at least one.
        weights: As many weights, none negative, that add up to 1.
        parts: Which tensors are blended; the others stay those of the first state.

    Returns:
        A new state. It counts the tokens of the longest text in it, and keeps the digest of the
        system block where all states have the same.

    Raises:
        TypeError: One is no state, such as a session's name.
        ValueError: The weights do not fit, or `parts` names nothing.
        StateMismatch: The states belong to several models.
    """
    if not states or len(states) != len(weights):
        raise ValueError(f"{len(states)} states were given with {len(weights)} weights.")
    if not all(weight >= 0 for weight in weights) or not math.isclose(sum(weights), 1):
        raise ValueError(f"Weights must not be negative and must add up to 1, got {list(weights)}.")
    require_states("blend_many", *states)
    first = states[0]
    for state in states[1:]:
        require_same_model(first, state)
    names = chosen(first.layout, parts)
    taken = [(state, weight) for state, weight in zip(states, weights, strict=True) if weight > 0]
    alone = taken[0][0] if len(taken) == 1 else None
    if alone is not None and (alone is first or len(names) == len(first)):
        return alone
    tensors = {name: first.shared(name) for name in first}
    if alone is not None:
        tensors |= {name: alone.shared(name) for name in names}
    else:
        tensors |= _sum(taken, names)
    operands = "+".join(
        f"{float(weight).hex()}*{_origin(state.derivation)}"
        for state, weight in zip(states, weights, strict=True)
    )
    derivation = first.derivation.rooted(f"blend:{operands}:{_named(first, names)}")
    derivation = replace(derivation, n_tokens=max(state.n_tokens for state in states))
    block = first.block if all(state.block == first.block for state in states) else None
    return RWKVState(first.layout, tensors, derivation, block=block)


def decay(state: RWKVState, factor: float, *, parts: Parts = None) -> RWKVState:
    """Returns a state whose past weighs less: what is read next counts for more.

    The matrices of RWKV-5, 6 and 7 are multiplied by `factor`. In RWKV-4 the factor goes into the
    log-scale, ``pp + log(factor)``, which weighs numerator and denominator alike. The token shifts
    stay: they are the last token, not the past.

    Args:
        state: The state.
        factor: From 0 (nothing stays but the last token) to 1 (nothing changes).
        parts: Layers, or names of WKV tensors; ``None`` for every layer.

    Returns:
        A new state of the same shapes; `state` itself where `factor` is 1.

    Raises:
        ValueError: `factor` is out of range, or `parts` names nothing or a token shift.

    Example:
        >>> from langchain_rwkv_state.state import StateLayout, decay, zero_state
        >>> zero = zero_state(StateLayout.of(7, n_layer=1, n_embd=64, head_size=64), "model")
        >>> decay(zero, 0.5).derivation == zero.derivation
        False
    """
    require_states("decay", state)
    if not 0 <= factor <= 1:
        raise ValueError(f"factor is what stays of the past, from 0 to 1, got {factor!r}.")
    names = _accumulators_among(state, parts)
    if factor == 1:
        return state
    tensors = {name: state.shared(name) for name in state}
    for name in names:
        tensor = tensors[name]
        if state.layout.version != 4:
            tensors[name] = tensor * factor
        elif factor == 0:
            tensors[name] = torch.full_like(tensor, LOG_ZERO if kind(name) == "att_pp" else 0.0)
        elif kind(name) == "att_pp":
            tensors[name] = tensor + math.log(factor)
    operation = f"decay:{float(factor).hex()}:{_named(state, names)}"
    return _changed(state, tensors, operation)


def require_same_model(a: RWKVState, b: RWKVState) -> None:
    """Checks that two states can be set side by side.

    Raises:
        StateMismatch: They belong to two models, or differ in their tensors.
    """
    if a.fingerprint != b.fingerprint:
        raise StateMismatch(
            f"One state belongs to the model {a.fingerprint!r}, the other to {b.fingerprint!r}: "
            "only states of one model can be joined or compared."
        )
    if a.layout != b.layout:
        raise StateMismatch(f"One state's tensors are those of {a.layout}, the other's {b.layout}.")


def _sum(
    taken: Sequence[tuple[RWKVState, float]], names: frozenset[str]
) -> dict[str, torch.Tensor]:
    """Returns the weighted sums of the chosen tensors."""
    layout, found = taken[0][0].layout, dict[str, torch.Tensor]()
    for name in names:
        if kind(name) not in ACCUMULATORS_4:
            total = sum(weight * state.shared(name).float() for state, weight in taken)
            found[name] = torch.as_tensor(total).to(layout[name].dtype)
    for number in range(layout.n_layer):
        if f"blocks.{number}.att_aa" in names:
            summed = _sum_in_true_scale([(accumulators(s, number), w) for s, w in taken])
            for each, tensor in zip(ACCUMULATORS_4, summed, strict=True):
                found[f"blocks.{number}.{each}"] = tensor
    return found


def _sum_in_true_scale(
    taken: Sequence[tuple[tuple[torch.Tensor, ...], float]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Adds RWKV-4's accumulators; each operand is ``(aa, bb, pp)``, ``[A]`` each."""
    peak = torch.stack([pp for (_, _, pp), _ in taken]).amax(0)
    numerator, denominator = torch.zeros_like(peak), torch.zeros_like(peak)
    for (aa, bb, pp), weight in taken:
        share = weight * torch.exp(pp - peak)
        numerator += share * aa
        denominator += share * bb
    return numerator, denominator, peak


def _accumulators_among(state: RWKVState, parts: Parts) -> frozenset[str]:
    """Returns the WKV tensors that `parts` stands for; a layer stands for its own."""
    if parts is None:
        return chosen(state.layout, ["wkv"])
    items = [parts] if isinstance(parts, str) else list(parts)
    names = chosen(state.layout, items)
    for item in items:
        if isinstance(item, str) and kind(item) in SHIFTS:
            raise ValueError(f"{item!r} is a token shift, the last token and not the past.")
    return frozenset(name for name in names if kind(name) not in SHIFTS)


def _changed(state: RWKVState, tensors: dict[str, torch.Tensor], operation: str) -> RWKVState:
    derivation = state.derivation.rooted(operation)
    return RWKVState(state.layout, tensors, derivation, block=state.block)


def _origin(derivation: Derivation) -> str:
    return f"{derivation.root}|{derivation.n_tokens}|{derivation.token_hash}"


def _named(state: RWKVState, names: Iterable[str]) -> str:
    found = sorted(names)
    return "*" if len(found) == len(state) else ",".join(found)
