"""Measures a crowd of conversations: throughput, waiting, memory, and the same answers as alone.

It sets the parts up, each in a fresh process, and judges what they found: `crowd_talks`,
`crowd_gap`, `crowd_storm` and `crowd_memory` measure. For the runtimes alone see
`benchmarks.speed`. Conversations that go at once and those that go one after another never share a
process: each way has its own threads, and would slow down the other's.

    python -m benchmarks.crowd [--quick] [--check] [--device cpu|cuda] [--only PART ...]
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from rich.console import Console

from benchmarks import common, crowd_gap, crowd_memory, crowd_storm, crowd_talks
from benchmarks.common import Check, Report
from benchmarks.crowd_talks import Talked
from benchmarks.models import write_apart
from langchain_rwkv_state.engine import Limits

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        talks: Conversations at once.
        alone: Conversations one after the other, in each round.
        turns: Of each.
        answer_tokens: Of each answer.
        rounds: Of every way, by turns.
        others: Requests that decode when a prompt arrives.
        prompt: Its length.
        budgets: Ids of prompts beside a decode step, besides the engine's own number.
        arrivals: Prompts for each budget.
        storm: Conversations that come and go.
        slots: For those.
        storm_turns: Of each.
        held: Conversations whose memory is looked at.
        held_tokens: Ids that each of them reads.
    """

    talks: int = 64
    alone: int = 4
    turns: int = 2
    answer_tokens: int = 32
    rounds: int = 3
    others: int = 15
    prompt: int = 2000
    budgets: tuple[int, ...] = (16, 32, 128, 256)
    arrivals: int = 3
    storm: int = 1000
    slots: int = 32
    storm_turns: int = 3
    held: int = 64
    held_tokens: int = 64


QUICK = Sizes(6, 1, 2, 4, 1, 3, 150, (), 1, 20, 4, 2, 4, 4)
AT_ONCE = ("engine_alone", "without_sessions", "sessions")
WAYS = {
    "one_after_another": "sessions, one after another",
    "sessions": "sessions on disk, at once",
    "without_sessions": "`ChatRWKV` without sessions, at once",
    "engine_alone": "the engine alone, at once",
}


@dataclass(frozen=True)
class Bench:
    """What every part needs."""

    sizes: Sizes
    model: Path
    small: Path
    directory: Path
    native: str
    package: str
    threads: int
    report: Report


def apart(run: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Returns what a function of a module gives in a fresh process."""
    with _process() as pool:
        return pool.submit(run, *args, **kwargs).result()


def _process(
    start: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=start, initargs=arguments)


# -- throughput ------------------------------------------------------------------------------------


def measure_talks(bench: Bench) -> None:
    """Holds conversations one after another, and at once in three ways, by turns."""
    sizes = bench.sizes
    native = _starting(bench, bench.native)
    package = _starting(bench, bench.package)
    found: dict[str, list[Talked]] = {way: [] for way in WAYS}
    with (
        _process(crowd_talks.start, native) as ours,
        _process(crowd_talks.start, package) as theirs,
    ):
        for pool in (ours, theirs):
            pool.submit(crowd_talks.talk, "one_after_another", 1).result()
        ours.submit(crowd_talks.talk, "sessions", sizes.talks).result()  # opens the slots
        for _ in range(sizes.rounds):
            for way in AT_ONCE:
                found[way].append(ours.submit(crowd_talks.talk, way, sizes.talks).result())
            alone = theirs.submit(crowd_talks.talk, "one_after_another", sizes.alone).result()
            found["one_after_another"].append(alone)
    each = {
        way: statistics.median(one.seconds / len(one.answers) for one in times)
        for way, times in found.items()
    }
    ratio = each["one_after_another"] / each["sessions"]
    layer = 100 * (1 - each["engine_alone"] / each["sessions"])
    same = _same_answers(found)
    bench.report.results["talks"] = {
        "conversations": {w: len(t[0].answers) for w, t in found.items()},
        "turns": sizes.turns,
        "answer_tokens": sizes.answer_tokens,
        "strategies": {"at once": bench.native, "one after another": bench.package},
        "seconds_a_conversation": each,
        "seconds": {way: [one.seconds for one in times] for way, times in found.items()},
        "ratio": ratio,
        "layer_percent": layer,
        "layer_percent_without_sessions": 100
        * (1 - each["engine_alone"] / each["without_sessions"]),
        "answers_as_the_engine_alone": same,
    }
    n = sizes.talks
    name = f"{n} conversations with sessions at once / one after another with the `rwkv` package"
    bench.report.add(Check(name, ratio, 15, "at least", "x", sizes.rounds))
    name = f"LangChain, sessions and store, share of the time of {n} conversations"
    bench.report.add(Check(name, layer, 10, "at most", "%", sizes.rounds))
    common.print_table(
        "Conversations (medians)",
        ["way", "held", "seconds each"],
        [[WAYS[w], str(len(found[w][0].answers)), f"{each[w]:.3f}"] for w in WAYS],
    )


def _starting(bench: Bench, strategy: str) -> tuple[Any, ...]:
    directory = bench.directory / strategy.replace(" ", "_")
    sizes = bench.sizes
    where = (str(bench.model), strategy, str(directory), bench.threads)
    return (*where, sizes.turns, sizes.answer_tokens)


def _same_answers(found: dict[str, list[Talked]]) -> dict[str, float]:
    """Returns the share of answers, in percent, that are those of the engine alone."""
    reference = found["engine_alone"][0].answers
    shares = {}
    for way, times in found.items():
        pairs = [
            (ours, theirs)
            for one in times
            for ours_all, theirs_all in zip(one.answers, reference, strict=False)
            for ours, theirs in zip(ours_all, theirs_all, strict=True)
        ]
        shares[way] = 100 * sum(ours == theirs for ours, theirs in pairs) / len(pairs)
    return shares


# -- waiting ---------------------------------------------------------------------------------------


def measure_gaps(bench: Bench) -> None:
    """Lets a long prompt arrive among decoding requests, for several budgets."""
    sizes = bench.sizes
    own = Limits.prefill_budget
    rows: list[dict[str, Any]] = []
    for budget in sorted({own, *sizes.budgets}):
        found = apart(
            crowd_gap.gaps,
            str(bench.model),
            bench.native,
            bench.threads,
            None if budget == own else budget,
            sizes.others,
            sizes.prompt,
            sizes.arrivals,
        )
        rows.append(
            {
                "budget": budget,
                "default": budget == own,
                "longest_steps": statistics.median(gap.longest_steps for gap in found),
                "median_steps": statistics.median(gap.median_steps for gap in found),
                "step_seconds": statistics.median(gap.step_seconds for gap in found),
                "first_token_seconds": statistics.median(g.first_token_seconds for g in found),
                "each": [asdict(gap) for gap in found],
            }
        )
    bench.report.results["gap"] = {"others": sizes.others, "prompt": sizes.prompt, "rows": rows}
    longest = next(row["longest_steps"] for row in rows if row["default"])
    name = f"longest gap beside a prompt of {sizes.prompt:,} ids"
    bench.report.add(Check(name, longest, 4, "at most", "decode steps", sizes.arrivals))
    common.print_table(
        f"{sizes.others} requests decode, a prompt of {sizes.prompt:,} ids arrives (medians)",
        ["budget", "longest gap, steps", "median gap, steps", "a step, ms", "first token, s"],
        [
            [
                f"{row['budget']}{' (default)' * row['default']}",
                f"{row['longest_steps']:.2f}",
                f"{row['median_steps']:.2f}",
                f"{1000 * row['step_seconds']:.1f}",
                f"{row['first_token_seconds']:.2f}",
            ]
            for row in rows
        ],
    )


# -- equality --------------------------------------------------------------------------------------


def measure_storm(bench: Bench) -> None:
    """Lets conversations come and go, and compares each with itself alone."""
    sizes = bench.sizes
    found = apart(
        crowd_storm.storm,
        str(bench.directory),
        bench.native,
        bench.threads,
        sizes.storm,
        sizes.slots,
        sizes.storm_turns,
    )
    quarter, end = found.rss_bytes
    grown = 100 * (end / quarter - 1)
    first, whole = found.first_token_seconds, found.whole_seconds
    bench.report.results["storm"] = {
        **{
            k: v
            for k, v in asdict(found).items()
            if not k.endswith("_seconds") or k == "alone_seconds"
        },
        "slots": sizes.slots,
        "turns": sizes.storm_turns,
        "first_token": {"p50": _percentile(first, 0.5), "p99": _percentile(first, 0.99)},
        "whole": {"p50": _percentile(whole, 0.5), "p99": _percentile(whole, 0.99)},
        "rss_growth_percent": grown,
    }
    report, n = bench.report, found.answers
    name = f"{found.conversations} over {sizes.slots} slots: answers other than alone"
    report.add(Check(name, len(found.wrong), 0, "at most", "", n))
    name = "their memory when all were over, over that at a quarter: growth"
    report.add(Check(name, grown, 2, "at most", "%", found.conversations))
    results = report.results["storm"]
    common.print_table(
        f"{found.conversations} conversations over {sizes.slots} slots",
        ["what", "measured"],
        [
            ["given up", str(found.cancelled)],
            ["answers compared", str(n)],
            ["the same", str(found.same)],
            [f"different where two logits are within {crowd_storm.NEAR}", str(found.near_ties)],
            ["first token, p50 and p99", _pair(results["first_token"])],
            ["whole answer, p50 and p99", _pair(results["whole"])],
            ["memory", f"{quarter / 2**20:.0f} MiB at a quarter, {end / 2**20:.0f} at the end"],
        ],
    )


def _percentile(numbers: Sequence[float], share: float) -> float:
    ordered = sorted(numbers)
    return ordered[min(len(ordered) - 1, math.floor(share * len(ordered)))]


def _pair(found: dict[str, float]) -> str:
    return f"{1000 * found['p50']:.0f} and {1000 * found['p99']:.0f} ms"


# -- memory ----------------------------------------------------------------------------------------


def measure_memory(bench: Bench) -> None:
    """Looks at what a model and its conversations take."""
    sizes = bench.sizes
    found = apart(
        crowd_memory.measure,
        str(bench.model),
        str(bench.small),
        bench.native,
        bench.threads,
        sizes.held,
        sizes.held_tokens,
    )
    weights, each = found.loaded / found.weights, found.conversation / found.state
    bench.report.results["memory"] = {
        **asdict(found),
        "loaded_over_weights": weights,
        "conversation_over_state": each,
    }
    report, n = bench.report, found.conversations
    report.add(Check("a loaded model over its weights", weights, 1.15, "at most", "x"))
    report.add(Check("a conversation in a slot over its state", each, 1.05, "at most", "x", n))
    name = f"{n} conversations grown while each reads {found.tokens} ids"
    report.add(Check(name, found.grown / 2**20, 4, "at most", "MiB", n))
    common.print_table(
        "Memory",
        ["what", "bytes"],
        [
            ["weights in the file", f"{found.weights:,}"],
            ["a loaded model, after a first pass", f"{found.loaded:,}"],
            ["a state", f"{found.state:,}"],
            ["one more conversation in a slot", f"{found.conversation:,.0f}"],
            [f"{n} conversations, grown by {found.tokens} ids each", f"{found.grown:,}"],
        ],
    )


# -- all -------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Bench], None]] = {
    "talks": measure_talks,
    "gap": measure_gaps,
    "storm": measure_storm,
    "memory": measure_memory,
}


def run(arguments: argparse.Namespace, directory: Path, report: Report) -> None:
    cuda = arguments.device == "cuda"
    model = write_apart(directory / "model.pth", quick=arguments.quick, speaking=True)
    bench = Bench(
        QUICK if arguments.quick else Sizes(),
        model,
        write_apart(directory / "small.pth", quick=True) if not arguments.quick else model,
        directory,
        "native cuda fp16" if cuda else "auto",
        "package cuda fp16" if cuda else "package cpu fp32",
        arguments.threads,
        report,
    )
    for name in arguments.only or PARTS:
        Console(stderr=True).print(f"[dim]{name} ...")
        PARTS[name](bench)


def main() -> int:
    parser = common.parser("Measures many conversations at once.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (2)")
    parser.add_argument("--only", nargs="*", choices=PARTS, help="some of the measurements")
    arguments = parser.parse_args()
    settings = {
        "model": f"random RWKV-7 {'2x128' if arguments.quick else '12x768'}",
        "threads": arguments.threads,
        "device": arguments.device,
    }
    report = Report("crowd" if arguments.device == "cpu" else "crowd_cuda", settings)
    with tempfile.TemporaryDirectory() as directory:
        run(arguments, Path(directory), report)
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
