"""How well the built-in model remembers, through `ChatRWKV`, turn by turn, on values never trained.

It measures the demo model's memory and the package's states together: the control reads the whole
transcript again and must answer the same. It measures no speed. The easy mistake is to read the
percentages as RWKV's: they are those of a model of a million parameters.

    python -m benchmarks.recall [--quick] [--check] [-n 300] [--workers 2]
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from random import Random
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import track

from benchmarks import cases, common, values
from benchmarks.cases import DISTANCES, FAR, Outcome
from langchain_rwkv_state import ChatRWKV, MemoryStateStore

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

Task = Callable[[ChatRWKV, Random, str], Iterator[Outcome]]
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
_ANCHOR: list[ChatRWKV] = []


def _start_worker(model: str) -> None:
    """Loads the model once in this process; the chats of all cases share it."""
    torch.set_num_threads(1)
    anchor = ChatRWKV(model=model, temperature=0, store=MemoryStateStore())
    anchor.loaded()
    _ANCHOR.append(anchor)


def _run_case(model: str, job: tuple[str, int]) -> list[Outcome]:
    """Runs one case on a store of its own, so that its states go with it."""
    task, number = job
    rng = Random(f"{task} {number}")
    chat = ChatRWKV(model=model, temperature=0, max_tokens=MAX_TOKENS, store=MemoryStateStore())
    try:
        return list(_TASKS[task](chat, rng, values.KINDS[number % len(values.KINDS)]))
    finally:
        chat.unload()


def outcomes(model: str, jobs: list[tuple[str, int]], workers: int) -> Iterator[Outcome]:
    """Runs the cases, on several processes where asked for."""
    run = partial(_run_case, model)
    if workers == 1:
        threads = torch.get_num_threads()
        _start_worker(model)
        yield from itertools.chain.from_iterable(map(run, _track(jobs, len(jobs))))
        _ANCHOR.pop().unload()
        torch.set_num_threads(threads)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_worker, (model,)
    ) as pool:
        found: Iterable[list[Outcome]] = pool.map(run, jobs, chunksize=1)
        yield from itertools.chain.from_iterable(_track(found, len(jobs)))


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
    parser.add_argument("-n", type=int, default=None, help="cases of each kind (300; 10 if quick)")
    parser.add_argument("--workers", type=int, default=None, help="processes (2; 1 if quick)")
    parser.add_argument("--model", default="demo", help="another model to ask (demo)")
    parser.add_argument("--only", nargs="*", choices=list(_TASKS), help="some of the tasks")
    arguments: argparse.Namespace = parser.parse_args()
    n = arguments.n or (10 if arguments.quick else 300)
    workers = arguments.workers or (1 if arguments.quick else 2)
    tasks = arguments.only or [t for t in _TASKS if t != "far" or not arguments.quick]
    jobs = [(task, i) for task in tasks for i in range(-(-n // _FEWER.get(task, 1)))]
    settings = {"model": arguments.model, "n": n, "temperature": 0, "far": list(FAR)}
    made = report(outcomes(arguments.model, jobs, workers), settings)
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
