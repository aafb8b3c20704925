"""Measures what `cpu int8` loses: in the next token's distribution, and in what is remembered.

Two runtimes read the same ids, in fp32 and with weights in 8 bits, and the Kullback-Leibler
divergence of their next-token distributions is taken at every place; then the recall benchmark's
cases are run with both. It measures no speed (see `benchmarks.speed`). The divergence is also taken
from a trained model on text that it knows, which counts more than noise.

    python -m benchmarks.int8 [--quick] [--check] [-n 150]
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import torch

from benchmarks import cases, common, recall, values
from benchmarks.common import Check, Report
from benchmarks.models import write_apart
from benchmarks.peers.served import some_ids
from langchain_rwkv_state import ChatRWKV, MemoryStateStore
from langchain_rwkv_state.prompt.plan import ids_of
from langchain_rwkv_state.runtime import Runtime, load_runtime, open_slots
from langchain_rwkv_state.toolbox.recall.talk import Talk
from langchain_rwkv_state.toolbox.recall.values import FACTS, KINDS

EXACT, ROUNDED = "native cpu fp32", "cpu int8"
_AT_ONCE = 32
_TASKS = (
    *("facts", "four", "correction", "given name", "manner", "unknown", "tool call"),
    *("other words", "letters", "tool choice"),
)


def conversations(n: int) -> list[list[int]]:
    """Returns the ids of conversations that the built-in model had, in fp32.

    A fact, some other turns and the question for it; what the model answered is part of it.
    """
    chat = ChatRWKV(
        model="demo", strategy=EXACT, temperature=0, store=MemoryStateStore(), prefix_cache=False
    )
    template, found = chat.loaded().template, []
    for number in range(n):
        rng, kind = Random(f"int8 {number}"), KINDS[number % len(KINDS)]
        talk = Talk(chat, f"{number}")
        tell, ask = FACTS[kind]
        others = [cases.other_turn(rng, kind) for _ in range(6)]
        for text in (tell.format(v=values.value(rng, kind)), *others, ask):
            talk.say(text)
        found.append(list(ids_of(template.segments(talk.transcript, start=True))))
    chat.unload()
    return found


def divergences(model: str, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Returns the divergence at every place of every text, in nats: KL(fp32 || int8)."""
    exact, rounded = load_runtime(model, EXACT), load_runtime(model, ROUNDED)
    found = []
    for start in range(0, len(texts), _AT_ONCE):
        part = texts[start : start + _AT_ONCE]
        for p, q in zip(_distributions(exact, part), _distributions(rounded, part), strict=True):
            found.append((p.exp() * (p - q)).sum(1))
    exact.close()
    rounded.close()
    return torch.cat(found)


def _distributions(runtime: Runtime, texts: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
    """Yields log-probabilities behind each next id of all texts that have one, in fp64."""
    slots, zero = open_slots(runtime, len(texts)), runtime.zero_state()
    for slot in range(len(texts)):
        slots.put(slot, zero)
    for place in range(max(map(len, texts))):
        reads = [(slot, [ids[place]]) for slot, ids in enumerate(texts) if place < len(ids)]
        yield slots.read(reads).double().log_softmax(1)


def measure_divergence(report: Report, name: str, model: str, texts: list[list[int]]) -> None:
    """Notes mean and largest divergence on a model."""
    found = divergences(model, texts)
    mean, largest = float(found.mean()), float(found.max())
    report.results.setdefault("kl", {})[name] = {
        "mean": mean,
        "p99": float(found.quantile(0.99)),
        "max": largest,
        "places": len(found),
        "texts": len(texts),
    }
    check = Check(f"next-token KL, {name}, mean", mean, 2e-3, "at most", "nats", len(found))
    report.add(check)


def measure_recall(report: Report, n: int, tasks: Sequence[str]) -> None:
    """Runs the same recall cases with both, and notes how far they are apart."""
    exact_said, rounded_said = (
        list(recall.outcomes("demo", recall.jobs(tasks, n), strategy=strategy))
        for strategy in (EXACT, ROUNDED)
    )
    exact_rows, rounded_rows = (
        recall.report(said, {}).results for said in (exact_said, rounded_said)
    )
    rows = {}
    for name, exact in exact_rows.items():
        rounded = rounded_rows.get(name)
        if rounded is None or name.startswith(("same answer", "replay", "tool result")):
            continue  # controls of the states, and a row that only right calls have
        rows[name] = {
            "fp32": exact["percent"],
            "int8": rounded["percent"],
            "n": exact["n"],
            "counts": name in recall.TARGETS,
            "fp32_right": exact["right"],
            "int8_right": rounded["right"],
        }
    counted = [row for row in rows.values() if row["counts"]]
    asked = sum(row["n"] for row in counted)
    percent = {
        way: 100 * sum(row[f"{way}_right"] for row in counted) / asked for way in ("fp32", "int8")
    }
    report.results["recall"] = {
        "rows": rows,
        "all": percent,
        "n": asked,
        "outcomes_in_other_words": len({*exact_said} ^ {*rounded_said}) // 2,
    }
    lost = percent["fp32"] - percent["int8"]
    report.add(Check("recall lost, all rows with a target", lost, 1, "at most", "points", asked))


def show(report: Report) -> None:
    """Prints what was found."""
    common.print_table(
        "Next-token KL of cpu int8 against fp32, nats",
        ["model", "mean", "99 %", "largest", "places"],
        [
            [name, f"{kl['mean']:.1e}", f"{kl['p99']:.1e}", f"{kl['max']:.1e}", str(kl["places"])]
            for name, kl in report.results["kl"].items()
        ],
    )
    rows = report.results["recall"]["rows"]
    common.print_table(
        "What is remembered",
        ["what", "fp32", "int8", "n"],
        [
            [name, f"{row['fp32']:.1f} %", f"{row['int8']:.1f} %", str(row["n"])]
            for name, row in rows.items()
        ],
    )


def main() -> int:
    parser = common.parser("Measures what weights in 8 bits lose.")
    parser.add_argument("-n", type=int, help="recall cases of each kind (150; 3 if quick)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    quick = arguments.quick
    n = arguments.n or (3 if quick else 150)
    settings = {
        "models": ["demo", f"random RWKV-7 {'2x128' if quick else '12x768'}"],
        "threads": arguments.threads,
        "n": n,
    }
    report = Report("int8", settings)
    texts = conversations(4 if quick else 96)
    measure_divergence(report, "demo, its own conversations", "demo", texts)
    with tempfile.TemporaryDirectory() as directory:
        model = write_apart(Path(directory) / "model.pth", quick=quick)
        noise = [some_ids(16 if quick else 48, 65536, seed) for seed in range(_AT_ONCE)]
        name = f"{settings['models'][1]}, random ids"
        measure_divergence(report, name, str(model), noise)
    measure_recall(report, n, ("four", "unknown") if quick else _TASKS)
    show(report)
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
