"""Measures 64 chat objects over one file that are called at once, beside one object's batch.

A random RWKV-7 of 12x768 answers 64 questions, by turns: as one `ChatRWKV`'s `batch`, and as one
call each of 64 objects at the same time. Both are to be one batch of one engine. Times are compared
within a round, and the median of these ratios counts; what the processor spent, which others on the
machine hardly change, stands beside it.

    python -m benchmarks.sharing [--quick] [--check] [--threads N] [--rounds N]
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.common import Check, Report
from benchmarks.crowd_talks import question
from benchmarks.models import write_apart
from langchain_rwkv_state import ChatRWKV, MemoryStateStore

OBJECTS = 64
TARGET = 1.1


def measure(model: Path, tokens: int, rounds: int) -> list[dict[str, float]]:
    """Returns for each round the seconds of both ways, and the engine's steps in them."""
    questions: list[Any] = [question(number, 0) for number in range(OBJECTS)]
    store = MemoryStateStore()

    def chat() -> ChatRWKV:
        return ChatRWKV(
            model=str(model), store=store, prefix_cache=False, temperature=0, max_tokens=tokens
        )

    one = chat()
    one.batch(questions)  # opens the slots
    engine = one.loaded().engine

    def by_objects() -> None:
        chats = [chat() for _ in questions]
        with ThreadPoolExecutor(OBJECTS) as pool:
            list(pool.map(lambda each, asked: each.invoke(asked), chats, questions))

    ways: dict[str, Callable[[], Any]] = {
        "batch": lambda: one.batch(questions),
        "objects": by_objects,
    }
    found = []
    for number in range(rounds):
        row: dict[str, float] = {}
        for name in list(ways)[:: 1 if number % 2 else -1]:
            steps, begun, spent = engine.stats().steps, time.perf_counter(), time.process_time()
            ways[name]()
            row[name] = time.perf_counter() - begun
            row[f"{name} processor"] = time.process_time() - spent
            row[f"{name} steps"] = engine.stats().steps - steps
        found.append(row)
        engines = [each for each in threading.enumerate() if each.name == "rwkv-engine"]
        assert len(engines) == 1, engines
    one.unload()
    return found


def main() -> int:
    parser = common.parser("Times 64 chat objects over one file beside one object's batch of 64.")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (2)")
    parser.add_argument("--rounds", type=int, help="timings of each way, by turns (9; 1 if quick)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rounds, tokens = arguments.rounds or (1 if arguments.quick else 9), 2 if arguments.quick else 32
    settings = {
        "model": f"random RWKV-7 {'2x128' if arguments.quick else '12x768'}",
        "threads": arguments.threads,
        "rounds": rounds,
        "tokens": tokens,
    }
    report = Report("sharing", settings)
    with tempfile.TemporaryDirectory() as directory:
        model = write_apart(Path(directory) / "model.pth", quick=arguments.quick, speaking=True)
        rows = report.results["rows"] = measure(model, tokens, rounds)
    ratio = statistics.median(row["objects"] / row["batch"] for row in rows)
    report.add(Check("64 objects / one batch of 64", ratio, TARGET, "at most", "x", rounds))
    spent = statistics.median(row["objects processor"] / row["batch processor"] for row in rows)
    report.results["processor ratio"] = spent
    common.print_table(
        "64 chat objects over one file, called at once (medians)",
        ["way", "seconds", "of the processor", "steps"],
        [
            [
                name,
                f"{statistics.median(row[name] for row in rows):.2f}",
                f"{statistics.median(row[f'{name} processor'] for row in rows):.2f}",
                f"{statistics.median(row[f'{name} steps'] for row in rows):.0f}",
            ]
            for name in ("batch", "objects")
        ],
    )
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
