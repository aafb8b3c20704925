"""Compares one process that serves with several: memory, throughput, first pieces.

Memory is what the processes have between them, each page counted once (PSS, of Linux). The same
crowd of clients, in another process, asks each way by turns; the machine's cores are shared by all.

    python -m benchmarks.serve_workers [--quick] [--check] [--out DIR]
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks import common
from benchmarks.models import ROOT, write_apart
from benchmarks.serve_client import QUESTIONS
from tests.helpers.server import served_by_command

_MEMORY_GOAL = 1.5


class Served:
    """A server and a client of it.

    Args:
        process: The server: of several workers the one that looks after them.
        client: Asks.
        model: What the server calls its model.
    """

    def __init__(
        self, process: subprocess.Popen[str], client: subprocess.Popen[str], model: str
    ) -> None:
        self._root = psutil.Process(process.pid)
        self._client = client
        self._model = model

    def ask(self, numbers: range, at_once: int, options: dict[str, Any]) -> dict[str, Any]:
        """Returns what it took to ask so many questions."""
        bodies = [
            {
                "model": self._model,
                "messages": [{"role": "user", "content": f"{n}. {_question(n)}"}],
                "stream": True,
                **options,
            }
            for n in numbers
        ]
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        self._client.stdin.write(json.dumps({"bodies": bodies, "at_once": at_once}) + "\n")
        self._client.stdin.flush()
        found: dict[str, Any] = json.loads(self._client.stdout.readline())
        return found

    def memory_mb(self) -> tuple[float, float]:
        """Returns what all processes have between them, and what they would have apart."""
        found = [
            each.memory_full_info() for each in (self._root, *self._root.children(recursive=True))
        ]
        return sum(each.pss for each in found) / 1e6, sum(each.rss for each in found) / 1e6


def _question(n: int) -> str:
    return QUESTIONS[n % len(QUESTIONS)].format(n=n)


@contextlib.contextmanager
def served(model: str, workers: int, store: Path) -> Iterator[Served]:
    """Serves a model as a user starts it."""
    words = ["--model", model, "--name", "model", "--store", str(store), "--strategy", "cpu fp32"]
    words += ["--workers", str(workers), "--log-level", "warning"]
    with served_by_command(*words) as (url, process):
        place = urlsplit(url)
        client = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serve_client", str(place.hostname), str(place.port)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield Served(process, client, "model")
        finally:
            client.communicate()


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        ways: Numbers of processes; the last one's memory is compared with the first one's.
        rounds: Repetitions on the demo model.
        count: Answers a round.
        at_once: Streams at a time.
        tokens: Of an answer of the large model.
    """

    ways: tuple[int, ...] = (1, 2, 3)
    rounds: int = 3
    count: int = 300
    at_once: int = 100
    tokens: int = 24


QUICK = Sizes((1, 2), 1, 6, 3, 4)


def measure(
    report: common.Report, name: str, model: str, rounds: int, count: int, sizes: Sizes
) -> None:
    """Serves a model in each way, by turns, and notes what was found."""
    at_once = sizes.at_once
    options = {} if name == "demo" else {"max_tokens": sizes.tokens}
    told: dict[int, list[dict[str, Any]]] = {ways: [] for ways in sizes.ways}
    memory: dict[int, tuple[float, float]] = {}
    for number in range(rounds):
        for ways in sizes.ways:
            with tempfile.TemporaryDirectory() as folder, served(model, ways, Path(folder)) as one:
                one.ask(range(at_once), at_once, options)  # slots are opened, threads are there
                found = one.ask(range(1000, 1000 + count), at_once, options)
                told[ways].append(found)
                if not number:
                    memory[ways] = one.memory_mb()
    rows = []
    for ways, each in told.items():
        rate = statistics.median(one["events"] / one["seconds"] for one in each)
        answers = statistics.median(one["answers"] / one["seconds"] for one in each)
        p50, p99 = (
            statistics.median(one[key] for one in each) for key in ("first_p50", "first_p99")
        )
        report.results[f"{name}, {ways}"] = {
            "events_a_second": rate,
            "answers_a_second": answers,
            "first_piece_seconds": {"p50": p50, "p99": p99},
            "pss_mb": memory[ways][0],
            "rss_mb": memory[ways][1],
        }
        figures = (answers, rate, p50, p99, *memory[ways])
        rows.append([str(ways), *(f"{figure:.1f}" for figure in figures)])
    head = ["processes", "answers/s", "events/s", "first p50, s", "p99, s", "PSS, MB", "RSS, MB"]
    common.print_table(f"{at_once} streams of {name}", head, rows)
    if name != "demo":
        most = sizes.ways[-1]
        ratio = memory[most][0] / memory[1][0]
        what = f"memory of {most} workers to that of one process, {name}"
        report.add(common.Check(what, ratio, _MEMORY_GOAL, "at most", "times"))


def main(words: Sequence[str] | None = None) -> int:
    arguments = common.parser("One process that serves, or several.").parse_args(words)
    quick = arguments.quick
    sizes = QUICK if quick else Sizes()
    report = common.Report(
        "serve_workers",
        {"rounds": sizes.rounds, "answers": sizes.count, "streams": sizes.at_once},
    )
    if not quick:  # each process takes seconds to start, and the tests serve this one, too
        measure(report, "demo", "demo", sizes.rounds, sizes.count, sizes)
    with tempfile.TemporaryDirectory() as folder:
        path = write_apart(Path(folder) / "large.pth", quick=quick, speaking=True)
        measure(report, path.stem, str(path), 1, sizes.count if quick else sizes.at_once, sizes)
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
