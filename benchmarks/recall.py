"""Measures what the built-in model remembers, through `ChatRWKV`, of values never trained.

It measures the demo model's memory and the package's states together: the control reads the whole
transcript again and must answer the same. It measures no speed. The percentages are those of a
model of 1.5 million parameters, not RWKV's.

    python -m benchmarks.recall [--quick] [--check] [-n 300] [--workers 2]
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from random import Random
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from benchmarks import cases, common
from benchmarks.cases import DISTANCES, FAR, Outcome
from langchain_rwkv_state import ChatRWKV, MemoryStateStore
from langchain_rwkv_state.toolbox.recall.talk import Talks
from langchain_rwkv_state.toolbox.recall.values import KINDS

TARGETS = {
    **{f"fact after {d}": t for d, t in zip(DISTANCES, (99, 99, 98, 95, 90), strict=True)},
    "one of four": 98,
    "correction": 98,
    "name from system prompt": 98,
    "manner from system prompt": 98,
    "says it does not know": 98,
    "tool call": 95,
    "zero state does not know": 100,
    **{f"same answer after {d}": 100 for d in DISTANCES},
}
"""Percent that must be reached."""
MISSES_KEPT = 5
MAX_TOKENS = 64

Task = Callable[[Talks, Random, str], Iterator[Outcome]]
_TASKS: dict[str, Task] = {
    "facts": partial(cases.fact_at_distances, distances=DISTANCES),
    "four": cases.one_of_four,
    "correction": cases.correction,
    "given name": cases.given_name,
    "manner": cases.manner,
    "given word": cases.given_word,
    "unknown": cases.unknown,
    "other words": cases.other_words,
    "letters": cases.letters,
    "tool call": cases.tool_call,
    "tool choice": cases.tool_choice,
    "no tool": cases.no_tool,
    "far": cases.far_fact,
}
Step = TypeVar("Step")
_FEWER = {"far": 3, "given word": 3, "other words": 3, "letters": 3, "no tool": 3}
"""Tasks without a target have fewer cases: one in so many."""


def jobs(tasks: Iterable[str], n: int) -> list[tuple[str, int]]:
    """Returns the cases of some tasks: `n` of each that has a target, fewer of the others."""
    return [(task, i) for task in tasks for i in range(-(-n // _FEWER.get(task, 1)))]


def outcomes(
    model: str, cases: list[tuple[str, int]], *, strategy: str = "auto", at_once: int = 64
) -> Iterator[Outcome]:
    """Runs cases, many at once on one model, which answers them together.

    Args:
        model: The model.
        cases: Of `jobs`.
        strategy: How the model runs.
        at_once: Number of cases under way.
    """
    chat = ChatRWKV(
        model=model,
        strategy=strategy,
        temperature=0,
        max_tokens=MAX_TOKENS,
        store=MemoryStateStore(),
        slots=at_once,
        prefix_cache=False,
    )
    try:
        chat.loaded()
        with ThreadPoolExecutor(at_once) as pool:
            found = pool.map(partial(_run_case, chat), cases)
            yield from itertools.chain.from_iterable(_track(found, len(cases)))
    finally:
        chat.unload()


def _run_case(chat: ChatRWKV, job: tuple[str, int]) -> list[Outcome]:
    task, number = job
    with closing(Talks(chat, f"{task} {number}")) as talks:
        kind = KINDS[number % len(KINDS)]
        return list(_TASKS[task](talks, Random(f"{task} {number}"), kind))


def report(found: Iterable[Outcome], settings: dict[str, object]) -> common.Report:
    """Counts the outcomes by row."""
    asked, right, misses = Counter[str](), Counter[str](), defaultdict[str, list[str]](list)
    for outcome in found:
        asked[outcome.row] += 1
        right[outcome.row] += outcome.right
        if not outcome.right and len(misses[outcome.row]) < MISSES_KEPT:
            misses[outcome.row].append(outcome.note)
    made = common.Report("recall", settings)
    for row in sorted(asked, key=_order):
        percent = 100 * right[row] / asked[row]
        made.results[row] = {
            "percent": round(percent, 1),
            "right": right[row],
            "n": asked[row],
            "misses": misses[row],
        }
        if row in TARGETS:
            made.add(common.Check(row, percent, TARGETS[row], "at least", "%", asked[row]))
    return made


def _track(steps: Iterable[Step], total: int) -> Iterable[Step]:
    return track(steps, "recall", total=total, console=Console(stderr=True))


def _order(row: str) -> tuple[int, int, str]:
    last = row.split(" ")[-1]
    distance = int(last) if last.isdigit() else -1
    place = list(TARGETS).index(row) if row in TARGETS else len(TARGETS)
    return (0 if row.startswith("fact") else place + 1, distance, row)


def main() -> int:
    parser = common.parser("Measures what the built-in model remembers.")
    parser.add_argument("-n", type=int, default=None, help="cases of each kind (300; 4 if quick)")
    parser.add_argument("--at-once", type=int, default=64, help="cases under way (64)")
    parser.add_argument("--model", default="demo", help="another model to ask (demo)")
    parser.add_argument("--strategy", default="auto", help="how the model runs (auto)")
    parser.add_argument("--only", nargs="*", choices=list(_TASKS), help="some of the tasks")
    arguments: argparse.Namespace = parser.parse_args()
    n = arguments.n or (4 if arguments.quick else 300)
    tasks = arguments.only or [t for t in _TASKS if t != "far" or not arguments.quick]
    settings = {
        "model": arguments.model,
        "strategy": arguments.strategy,
        "n": n,
        "temperature": 0,
        "far": list(FAR),
    }
    found = outcomes(
        arguments.model,
        jobs(tasks, n),
        strategy=arguments.strategy,
        at_once=arguments.at_once,
    )
    made = report(found, settings)
    common.print_table(
        "What is remembered",
        ["what", "right", "n", "target"],
        [
            [
                row,
                f"{found['percent']:.1f} %",
                str(found["n"]),
                f"{TARGETS[row]} %" if row in TARGETS else "",
            ]
            for row, found in made.results.items()
        ],
    )
    return made.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
