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
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks import common
from benchmarks.models import ROOT, write_apart
from benchmarks.serve_cost import QUESTIONS
from tests.helpers.server import served_by_command

_MEMORY_GOAL = 1.5
_WAYS = (1, 2, 3)


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


def measure(
    report: common.Report, name: str, model: str, rounds: int, count: int, at_once: int, tokens: int
) -> None:
    """Serves a model in each way, by turns, and notes what was found."""
    options = {"max_tokens": tokens} if tokens else {}
    told: dict[int, list[dict[str, Any]]] = {ways: [] for ways in _WAYS}
    memory: dict[int, tuple[float, float]] = {}
    for number in range(rounds):
        for ways in _WAYS:
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
        ratio = memory[_WAYS[-1]][0] / memory[1][0]
        what = f"memory of {_WAYS[-1]} workers to that of one process, {name}"
        report.add(common.Check(what, ratio, _MEMORY_GOAL, "at most", "times"))


def main(words: Sequence[str] | None = None) -> int:
    arguments = common.parser("One process that serves, or several.").parse_args(words)
    quick = arguments.quick
    rounds, count, at_once = (1, 6, 3) if quick else (3, 300, 100)
    report = common.Report(
        "serve_workers", {"rounds": rounds, "answers": count, "streams": at_once}
    )
    measure(report, "demo", "demo", rounds, count, at_once, 0)
    with tempfile.TemporaryDirectory() as folder:
        path = write_apart(Path(folder) / "large.pth", quick=quick, speaking=True)
        few = count if quick else at_once
        measure(report, path.stem, str(path), 1, few, at_once, 4 if quick else 24)
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
