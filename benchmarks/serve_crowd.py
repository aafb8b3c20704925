"""Serves a crowd for a while: 100 clients that stream at once, of whom a tenth leaves.

The clients are another process; the server is one as a user starts it, with the demo model at the
sampling that it has of its own. What is looked at: what went wrong, by status; the server's memory
at its start, once it is warm, and at the end; how long first pieces took; the processor's time.

    python -m benchmarks.serve_crowd [--minutes 10] [--clients 100] [--quick] [--check] [--out DIR]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks import common
from benchmarks.models import ROOT
from tests.helpers.server import served_by_command

_MEMORY_GOAL_MB = 50.0
_CACHE = "64MB"  # full once the server is warm: what grows then is no cache
_ALLOWED = ("200", "429", "503", "left")


def _apart(url: str, clients: int, seconds: float) -> dict[str, Any]:
    place = urlsplit(url)
    words = [str(place.hostname), str(place.port), str(clients), str(seconds)]
    command = [sys.executable, "-m", "benchmarks.serve_leavers", *words]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(told)
    return found


def measure(report: common.Report, clients: int, seconds: float, warm_seconds: float) -> None:
    """Serves a crowd, and notes what was found."""
    with tempfile.TemporaryDirectory() as store:
        words = ["--store", store, "--log-level", "error", "--prefix-cache", _CACHE]
        with served_by_command(*words) as (url, process):
            server = psutil.Process(process.pid)
            memory = [server.memory_info().rss / 1e6]
            _apart(url, clients, warm_seconds)
            memory.append(server.memory_info().rss / 1e6)
            before = sum(server.cpu_times()[:2])
            found = _apart(url, clients, seconds)
            cpu = sum(server.cpu_times()[:2]) - before
            memory.append(server.memory_info().rss / 1e6)
    ended: dict[str, int] = found["ended"]
    answers = sum(ended.values())
    wrong = sum(count for how, count in ended.items() if how not in _ALLOWED)
    p50, p99, cpu_ms = found["first_p50"], found["first_p99"], 1e3 * cpu / max(answers, 1)
    report.results |= {
        "ended": ended,
        "rss_mb": dict(zip(("start", "warm", "end"), memory, strict=True)),
        "first_piece_seconds": {"p50": p50, "p99": p99},
        "cpu_ms_an_answer": cpu_ms,
        "answers_a_second": answers / seconds,
    }
    rows = [[how, str(count)] for how, count in sorted(ended.items())]
    common.print_table(f"How {answers} answers ended, in {seconds:.0f} s", ["", "answers"], rows)
    head = ["first p50, s", "p99, s", "CPU, ms an answer", "answers/s", "RSS, MB: start", "warm"]
    figures = (p50, p99, cpu_ms, answers / seconds, *memory)
    row = [f"{figure:.1f}" for figure in figures]
    common.print_table(f"{clients} clients at once", [*head, "end"], [row])
    what = "answers that ended with an error other than 429 and 503"
    report.add(common.Check(what, wrong, 0, "at most", "answers", answers))
    grown = memory[2] - memory[1]
    report.add(
        common.Check("memory it grew by, once warm", grown, _MEMORY_GOAL_MB, "at most", "MB")
    )


def main() -> int:
    parser = common.parser("A crowd of clients that stream.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (10)")
    parser.add_argument("--clients", type=int, default=100, help="how many at once (100)")
    arguments = parser.parse_args()
    clients, seconds, warm = arguments.clients, 60 * arguments.minutes, 60.0
    if arguments.quick:
        clients, seconds, warm = 6, 1.0, 0.5
    elif arguments.minutes < 5:
        warm = 20.0
    report = common.Report("serve_crowd", {"clients": clients, "seconds": seconds})
    measure(report, clients, seconds, warm)
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
