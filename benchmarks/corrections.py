"""What the common recipes for RWKV-4 states do to the next answer, beside their right form.

Each recipe is written out as it is found in tutorials, applied to states of a random model, and
measured in logits and in next-token KL against what it should have given. Random weights show that
an answer changes, not how a trained model's text would read. The easy mistake is to compare a
recipe with nothing: each row names what its result is held against.

    python -m benchmarks.corrections [--quick] [--check]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from statistics import fmean

import torch

from benchmarks import common
from langchain_rwkv_state.runtime import Runtime, load_runtime
from langchain_rwkv_state.state import RWKVState, blend, decay, lossy, renormalise
from tests.helpers.checkpoints import DEFAULT_VOCAB, write_checkpoint

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
        blend(a, b, 0.5),
    ),
    "normalise: `aa`, `bb` divided, `pp` left": lambda a, _: (naive_normalise(a), a),
    "`renormalise`": lambda a, _: (renormalise(a), a),
    "save four tensors, without `pp`": lambda a, _: (four_tensors(a), a),
    "decay 0.3: `aa`, `bb` multiplied": lambda a, _: (naive_decay(a, 0.3), decay(a, 0.3)),
    "fp16: all tensors halved": lambda a, _: (naive_half(a), a),
    "codec `fp16`": lambda a, _: (replaced(a, dict(lossy(a, "fp16"))), a),
}
"""By name: what the recipe gives, and what it should have given."""


def gap(runtime: Runtime, found: RWKVState, right: RWKVState, probe: int) -> tuple[float, float]:
    """Returns the largest difference of a logit, and the KL from the right prediction."""
    logits, _ = runtime.forward_batch([[probe], [probe]], [found, right])
    log_p = torch.log_softmax(logits.double(), -1)
    divergence = float((log_p[1].exp() * (log_p[1] - log_p[0])).sum())
    return float((logits[0] - logits[1]).abs().max()), max(0.0, divergence)


def main() -> int:
    arguments = common.parser("Measures the common RWKV-4 recipes.").parse_args()
    cases = 3 if arguments.quick else 50
    sizes = {"n_layer": 6, "n_embd": 256, "head_size": 64}
    report = common.Report("corrections", {"model": "random RWKV-4", "cases": cases, **sizes})
    dice = Random(0)
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder) / "m.pth", 4, n_layer=6, n_embd=256, head_size=64)
        runtime = load_runtime(path, "cpu fp32")
        states = []
        for _ in range(2 * cases):
            tokens = [dice.randrange(DEFAULT_VOCAB) for _ in range(dice.randint(8, 60))]
            states.append(runtime.forward(tokens, runtime.zero_state())[1])
        pairs = list(zip(states[::2], states[1::2], strict=True))
        for name, recipe in RECIPES.items():
            gaps = [gap(runtime, *recipe(a, b), dice.randrange(DEFAULT_VOCAB)) for a, b in pairs]
            report.results[name] = {
                "logits_max": max(each[0] for each in gaps),
                "logits_mean": fmean(each[0] for each in gaps),
                "kl_mean": fmean(each[1] for each in gaps),
            }
        runtime.close()
    exact = report.results["`renormalise`"]["logits_max"]
    report.add(common.Check("logits after renormalise", exact, EXACT, "at most", n=cases))
    common.print_table(
        "Recipes for RWKV-4",
        ["recipe", "largest logit gap", "mean of them", "mean KL"],
        [
            [name, *(f"{row[key]:.3g}" for key in ("logits_max", "logits_mean", "kl_mean"))]
            for name, row in report.results.items()
        ],
    )
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
