"""Measures what common recipes for RWKV-4 states do to a memory, beside their right form.

Each recipe is written out as it is found in tutorials and applied to the states of a small RWKV-4
that was trained to remember (`rwkv4_training`): what it does to the next logits, and how many facts
come back. It is no measure of larger models. Each row names what its result is held against, and
there are controls.

    python -m benchmarks.corrections [--quick] [--check]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import Any

import torch

from benchmarks import common
from benchmarks.rwkv4_training import MODEL
from benchmarks.rwkv4_words import KINDS, WORDS, Case, case, filler, ids
from langchain_rwkv_state.runtime import (
    HalfLife,
    Runtime,
    clamp_decay,
    half_life,
    load_runtime,
    text_loss,
)
from langchain_rwkv_state.runtime.checkpoint import Checkpoint, read_tensors
from langchain_rwkv_state.state import RWKVState, blend, decay, lossy, renormalise
from langchain_rwkv_state.toolbox.clamp import HIGH, LOW, DecayClamp
from langchain_rwkv_state.toolbox.half_life import static_half_life

Tensors = dict[str, torch.Tensor]
EXACT = 1e-5
"""The most that logits may differ where nothing should."""


def replaced(state: RWKVState, change: Mapping[str, torch.Tensor]) -> RWKVState:
    """Returns a state with other tensors."""
    return RWKVState(state.layout, {**{n: state[n] for n in state}, **change}, state.derivation)


def of_kind(state: RWKVState, *kinds: str) -> Tensors:
    """Returns the tensors of some kinds."""
    return {name: state[name] for name in state if name.rpartition(".")[2] in kinds}


def naive_blend(a: RWKVState, b: RWKVState, alpha: float) -> RWKVState:
    """Adds all tensors as they stand."""
    return replaced(a, {name: alpha * a[name] + (1 - alpha) * b[name] for name in a})


def summed(a: RWKVState, b: RWKVState, alpha: float) -> RWKVState:
    """Adds numerators and denominators as they are, ``aa * exp(pp)`` and ``bb * exp(pp)``, in fp64.

    Written otherwise than `blend`, which never leaves the scale of the larger one: the result is
    put to ``bb = 1``.
    """
    change: Tensors = {
        name: (alpha * a[name].double() + (1 - alpha) * b[name].double()).float()
        for name in a
        if name.endswith("x_prev")
    }
    for layer in range(a.layout.n_layer):
        names = [f"blocks.{layer}.att_{each}" for each in ("aa", "bb", "pp")]
        (aa_a, bb_a, pp_a), (aa_b, bb_b, pp_b) = ([s[n].double() for n in names] for s in (a, b))
        above = alpha * aa_a * pp_a.exp() + (1 - alpha) * aa_b * pp_b.exp()
        below = alpha * bb_a * pp_a.exp() + (1 - alpha) * bb_b * pp_b.exp()
        true = (above / below, torch.ones_like(below), below.log())
        change |= {name: tensor.float() for name, tensor in zip(names, true, strict=True)}
    return replaced(a, change)


def naive_normalise(state: RWKVState) -> RWKVState:
    """Divides numerator and denominator by the largest numerator, and leaves it at that."""
    change: Tensors = {}
    for layer in range(state.layout.n_layer):
        names = [f"blocks.{layer}.att_{each}" for each in ("aa", "bb")]
        scale = state[names[0]].abs().max()
        change |= {name: state[name] / scale for name in names}
    return replaced(state, change)


def four_tensors(state: RWKVState) -> RWKVState:
    """Restores a state that was saved without ``att_pp``, which then starts at 0."""
    return replaced(state, {n: torch.zeros_like(t) for n, t in of_kind(state, "att_pp").items()})


def naive_decay(state: RWKVState, factor: float) -> RWKVState:
    """Multiplies numerator and denominator."""
    accumulators = of_kind(state, "att_aa", "att_bb")
    return replaced(state, {name: tensor * factor for name, tensor in accumulators.items()})


def naive_half(state: RWKVState) -> RWKVState:
    """Halves every tensor, the log-scale as well."""
    return replaced(state, {name: state[name].half().to(state[name].dtype) for name in state})


Pair = tuple[RWKVState, RWKVState]
Recipe = Callable[[RWKVState, RWKVState], Pair]
RECIPES: dict[str, Recipe] = {
    "blend 0.5: tensors added as they stand": lambda a, b: (
        naive_blend(a, b, 0.5),
        summed(a, b, 0.5),
    ),
    "`blend` 0.5": lambda a, b: (blend(a, b, 0.5), summed(a, b, 0.5)),
    "normalise: `aa`, `bb` divided, `pp` left": lambda a, _: (naive_normalise(a), a),
    "`renormalise`": lambda a, _: (renormalise(a), a),
    "save four tensors, without `pp`": lambda a, _: (four_tensors(a), a),
    "decay 0.3: `aa`, `bb` multiplied": lambda a, _: (naive_decay(a, 0.3), decay(a, 0.3)),
    "fp16: all tensors halved": lambda a, _: (naive_half(a), a),
    "codec `fp16`": lambda a, _: (replaced(a, dict(lossy(a, "fp16"))), a),
}
"""By name: what the recipe gives, and what it should have given."""


CONTROLS: dict[str, Recipe] = {
    "control: nothing done": lambda a, _: (a, a),
    "control: the other conversation's state": lambda a, b: (b, a),
}
FACTS, BETWEEN = 3, 40
DISTANCES = (30, 100, 200)
LOSS_WORDS = 2_000
CLAMPS: dict[str, tuple[float, float] | None] = {
    "as trained": None,
    f"`clamp_decay({LOW:g}, {HIGH:g})`": (LOW, HIGH),
    # time_decay = log(-w): what the same numbers mean for w = -exp(time_decay).
    "the same numbers on `w`": (math.log(-HIGH), math.log(-LOW)),
}
"""By name: the bounds of ``time_decay``."""


@dataclass(frozen=True)
class Told:
    """A conversation that was read.

    Attributes:
        case: What was said, and what is asked.
        state: After the last word before the question.
    """

    case: Case
    state: RWKVState


def told(runtime: Runtime, rng: Random, kinds: Iterable[str], between: int) -> Told:
    """Reads facts of some kinds and then other things."""
    made = case(rng, list(kinds), between)
    return Told(made, runtime.forward(ids(made.told), runtime.zero_state())[1])


def knows(logits: torch.Tensor, asked: Case) -> bool:
    """Says whether the most likely next word is the fact."""
    return WORDS[int(logits.argmax())] == asked.answer


@dataclass
class Sums:
    """What a recipe did, question by question."""

    gaps: list[float]
    divergences: list[float]
    found: list[bool]
    right: list[bool]

    def add(self, runtime: Runtime, pair: Pair, asked: Case) -> None:
        """Asks both states."""
        question = ids(asked.asked)
        logits, _ = runtime.forward_batch([question, question], list(pair))
        log_p = torch.log_softmax(logits.double(), -1)
        divergence = float((log_p[1].exp() * (log_p[1] - log_p[0])).sum())
        self.gaps.append(float((logits[0] - logits[1]).abs().max()))
        self.divergences.append(max(0.0, divergence))
        self.found.append(knows(logits[0], asked))
        self.right.append(knows(logits[1], asked))

    def row(self) -> dict[str, float]:
        """Returns the figures."""
        return {
            "logits_max": max(self.gaps),
            "logits_mean": fmean(self.gaps),
            "kl_mean": fmean(self.divergences),
            "recalled": sum(self.found),
            "recalled_right": sum(self.right),
            "n": len(self.found),
        }


def recipes(runtime: Runtime, cases: int) -> dict[str, dict[str, float]]:
    """Measures each recipe on pairs of conversations about different things."""
    rng, pairs = Random(0), []
    for _ in range(cases):
        kinds = rng.sample(KINDS, 2 * FACTS)
        halves = (kinds[:FACTS], kinds[FACTS:])
        pairs.append([told(runtime, rng, half, BETWEEN) for half in halves])
    rows = {}
    for name, recipe in {**RECIPES, **CONTROLS}.items():
        sums = Sums([], [], [], [])
        for a, b in pairs:
            states = recipe(a.state, b.state)
            for each in (a, b) if "blend" in name else (a,):
                sums.add(runtime, states, each.case)
        rows[name] = sums.row()
    return rows


def clamps(cases: int, words: int) -> dict[str, dict[str, Any]]:
    """Measures the model with its decays as trained and clamped in two ways."""
    tensors = read_tensors(MODEL)
    checkpoint = Checkpoint.of(tensors, MODEL)
    text = ids(["<start>", *filler(Random("text"), words)])
    rows = {}
    for name, bounds in CLAMPS.items():
        changed: Mapping[str, torch.Tensor] = {}
        if bounds is not None:
            changed = DecayClamp(*bounds).of(tensors, checkpoint)
        spans = static_half_life({**tensors, **changed}, checkpoint)
        runtime = clamp_decay(MODEL, *bounds) if bounds else load_runtime(MODEL)
        rows[name] = {
            "channels": sum(int((changed[n] != tensors[n]).sum()) for n in changed),
            "of": checkpoint.n_layer * checkpoint.n_att,
            "shortest": extreme(spans, torch.amin),
            "longest": extreme(spans, torch.amax),
            "loss": text_loss(runtime, text),
            "recalled": {
                str(distance): recalled(runtime, cases, distance) for distance in DISTANCES
            },
        }
        runtime.close()
    return rows


def extreme(spans: HalfLife, take: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Returns the least or the largest half-life of a model."""
    return float(take(torch.cat(spans.layers)))


def recalled(runtime: Runtime, cases: int, distance: int) -> int:
    """Returns how many of some cases are answered after so many words."""
    rng, right = Random(f"recall {distance}"), 0
    for _ in range(cases):
        each = told(runtime, rng, rng.sample(KINDS, FACTS), distance)
        right += knows(runtime.forward(ids(each.case.asked), each.state)[0], each.case)
    return right


def main() -> int:
    arguments = common.parser("Measures the common RWKV-4 recipes.").parse_args()
    torch.set_num_threads(1)
    cases = 5 if arguments.quick else 100
    tensors = read_tensors(MODEL)
    checkpoint = Checkpoint.of(tensors, MODEL)
    settings = {
        "model": f"RWKV-4 of {checkpoint.n_layer} x {checkpoint.n_embd}, trained on a toy language",
        "cases": cases,
        "facts": FACTS,
        "between": BETWEEN,
        "longest_half_life": extreme(half_life(MODEL), torch.amax),
    }
    report = common.Report("corrections", settings)
    with_model = load_runtime(MODEL)
    found = recipes(with_model, cases)
    with_model.close()
    clamped = clamps(cases, 100 if arguments.quick else LOSS_WORDS)
    report.results = {"recipes": found, "clamps": clamped}
    exact = found["`renormalise`"]["logits_max"]
    report.add(common.Check("logits after renormalise", exact, EXACT, "at most", n=cases))
    known = 100 * found["control: nothing done"]["recalled"] / cases
    report.add(common.Check("the model remembers", known, 95, "at least", "%", cases))
    common.print_table(
        "Recipes for RWKV-4",
        ["recipe", "largest logit gap", "mean of them", "mean KL", "recalled", "right form"],
        [
            [
                name,
                *(f"{row[key]:.3g}" for key in ("logits_max", "logits_mean", "kl_mean")),
                f"{row['recalled']} of {row['n']}",
                f"{row['recalled_right']} of {row['n']}",
            ]
            for name, row in found.items()
        ],
    )
    common.print_table(
        "time_decay, clamped",
        ["model", "channels changed", "half-lives", "loss", *map(str, DISTANCES)],
        [
            [
                name,
                f"{row['channels']} of {row['of']}",
                f"{row['shortest']:.2g} to {row['longest']:.4g}",
                f"{row['loss']:.4f}",
                *map(str, row["recalled"].values()),
            ]
            for name, row in clamped.items()
        ],
    )
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
