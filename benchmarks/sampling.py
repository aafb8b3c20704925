"""Measures what sampling costs: tokens a second with the templates' settings, beside greedy ones.

A random RWKV-7 of 12x768 with World's vocabulary answers 1, 16 and 64 requests at once, greedily
and with the settings of each template, by turns: through the engine, and through `ChatRWKV`. What
shares the machine changes faster than one run follows another, so each turn is set beside the
greedy one of its own round, and the median of these ratios counts.

    python -m benchmarks.sampling [--quick] [--check] [--threads N] [--rounds N]
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from benchmarks import common
from benchmarks.common import Check, Report
from benchmarks.crowd_talks import question
from benchmarks.models import write_apart
from benchmarks.peers.served import some_ids
from langchain_rwkv_state import ChatRWKV
from langchain_rwkv_state.engine import Engine, Request, Sampling
from langchain_rwkv_state.prompt.template import TEMPLATES
from langchain_rwkv_state.runtime import load_runtime
from langchain_rwkv_state.runtime.native import sampling as native
from langchain_rwkv_state.tokenizer import WorldTokenizer

GREEDY = "greedy"
SETTINGS: dict[str, dict[str, Any]] = {
    GREEDY: {"temperature": 0},
    **{template.name: dict(template.sampling) for template in TEMPLATES.values()},
}
TARGET = 0.95


@dataclass(frozen=True)
class Cell:
    """So many requests at once, and so many tokens for each."""

    n: int
    tokens: int


CELLS = (Cell(1, 64), Cell(16, 32), Cell(64, 16))
QUICK = (Cell(1, 4), Cell(3, 2))
Run = Callable[[str, Cell], None]


def by_engine(model: Path) -> tuple[Run, Callable[[], None]]:
    """Returns what runs requests straight through an engine, and what closes it."""
    runtime, tokenizer = load_runtime(model, "auto"), WorldTokenizer()
    engine, seeds = Engine(runtime, tokenizer), itertools.count()
    zero = runtime.zero_state()

    def run(name: str, cell: Cell) -> None:
        handles = []
        for number in range(cell.n):
            ids = some_ids(1, tokenizer.vocab_size, seed=number)  # read in one step
            sampling = Sampling(seed=next(seeds), **SETTINGS[name])
            request = Request(base=zero, prompt=ids, max_tokens=cell.tokens, sampling=sampling)
            handles.append(engine.submit(request))
        for handle in handles:
            assert handle.result().answer_tokens == cell.tokens

    def close() -> None:
        engine.close()
        runtime.close()

    return run, close


def by_chat_model(model: Path) -> tuple[Run, Callable[[], None]]:
    """Returns what runs messages through `ChatRWKV`, and what unloads it."""
    chats = {
        name: ChatRWKV(model=str(model), prefix_cache=False, **settings)
        for name, settings in SETTINGS.items()
    }

    def run(name: str, cell: Cell) -> None:
        chat = chats[name].model_copy(update={"max_tokens": cell.tokens})
        questions: list[Any] = [question(number, 0) for number in range(cell.n)]
        for answer in chat.batch(questions, {"max_concurrency": cell.n}):
            assert answer.response_metadata["finish_reason"] == "length"

    def close() -> None:
        for chat in chats.values():
            chat.unload()

    return run, close


WAYS = {"engine": by_engine, "ChatRWKV": by_chat_model}


def measure(model: Path, cells: tuple[Cell, ...], rounds: int) -> list[dict[str, Any]]:
    """Returns a row for each way, number of requests and settings."""
    rows = []
    for way, make in WAYS.items():
        run, close = make(model)
        for cell in track(cells, way, console=Console(stderr=True)):
            for name in SETTINGS:
                run(name, Cell(cell.n, 2))  # opens the slots
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in SETTINGS}
            for _ in range(rounds):
                for name, found in times.items():
                    found.append(_seconds(run, name, cell))
            for name, found in times.items():
                pairs = list(zip(times[GREEDY], found, strict=True))
                rows.append(
                    {
                        "way": way,
                        "n": cell.n,
                        "settings": name,
                        "tokens_a_second": cell.n
                        * cell.tokens
                        / statistics.median(wall for wall, _ in found),
                        "ratio": statistics.median(g[0] / s[0] for g, s in pairs),
                        "processor_ratio": statistics.median(g[1] / s[1] for g, s in pairs),
                        "seconds": found,
                    }
                )
        close()
    return rows


def _seconds(run: Run, name: str, cell: Cell) -> tuple[float, float]:
    """Returns the time that a turn takes, and that of the processors, which others do not change.

    With several threads it holds what they wait for each other, so that it says most with one.
    """
    start = time.perf_counter(), time.process_time()
    run(name, cell)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def main() -> int:
    parser = common.parser("Times sampling beside greedy decoding on a random RWKV-7 of 12x768.")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (2)")
    parser.add_argument("--rounds", type=int, help="timings of a cell, by turns (9; 1 if quick)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rounds = arguments.rounds or (1 if arguments.quick else 9)
    settings = {
        "model": f"random RWKV-7 {'2x128' if arguments.quick else '12x768'}",
        "threads": arguments.threads,
        "rounds": rounds,
        "compiled": native.compiled() is not None,
        "settings": SETTINGS,
    }
    report = Report("sampling", settings)
    with tempfile.TemporaryDirectory() as directory:
        model = write_apart(Path(directory) / "model.pth", quick=arguments.quick, speaking=True)
        report.results["rows"] = measure(model, QUICK if arguments.quick else CELLS, rounds)
    for row in report.results["rows"]:
        if row["settings"] != GREEDY:
            name = f"{row['way']}, B={row['n']}: {row['settings']}'s sampling / greedy"
            report.add(Check(name, row["ratio"], TARGET, "at least", "x", rounds))
    common.print_table(
        "Sampling beside greedy decoding (medians)",
        ["way", "at once", "settings", "tokens a second", "ratio", "of processor time"],
        [
            [
                *(row["way"], str(row["n"]), row["settings"]),
                *(f"{row['tokens_a_second']:,.1f}", f"{row['ratio']:.3f}"),
                f"{row['processor_ratio']:.3f}",
            ]
            for row in report.results["rows"]
        ],
    )
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
