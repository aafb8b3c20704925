"""Serves a crowd for a while: 100 clients that stream at once, of whom a tenth leaves.

The clients are another process; the server is one as a user starts it, with the demo model at the
sampling that it has of its own. What is looked at: what went wrong, by status; the server's memory
at its start, once it is warm, and at the end; how long first pieces took; the processor's time.

    python -m benchmarks.serve_crowd [--minutes 10] [--clients 100] [--quick] [--check] [--out DIR]
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks import common
from benchmarks.models import ROOT
from benchmarks.serve_client import END
from benchmarks.serve_cost import QUESTIONS
from tests.helpers.server import served_by_command

_MEMORY_GOAL_MB = 50.0
_CACHE = "64MB"  # full once the server is warm: what grows then is no cache
_ALLOWED = ("200", "429", "503", "left")
_LEAVES = 0.1
_APART = "--client"


class Client:
    """One who asks again and again, and at times leaves in the middle of an answer.

    Args:
        place: Host and port of the server.
        number: Which one it is.
        until: When it asks no more, on the steady clock.
        found: How many answers ended how.
        firsts: Seconds to the first piece of each answer.
    """

    def __init__(
        self,
        place: tuple[str, int],
        number: int,
        until: float,
        found: Counter[str],
        firsts: list[float],
    ) -> None:
        self._place = place
        self._chance = random.Random(number)
        self._number = number
        self._until = until
        self._found = found
        self._firsts = firsts

    async def run(self) -> None:
        """Asks until its time is over."""
        asked = 0
        while time.perf_counter() < self._until:
            asked += 1
            try:
                self._found[await self._ask(asked)] += 1
            except OSError as error:
                self._found[type(error).__name__] += 1

    async def _ask(self, asked: int) -> str:
        text = QUESTIONS[asked % len(QUESTIONS)].format(n=asked)
        body = json.dumps(
            {
                "model": "demo",
                "messages": [{"role": "user", "content": f"{self._number}, {asked}. {text}"}],
                "stream": True,
            }
        ).encode()
        leaves_after = self._chance.randint(1, 8) if self._chance.random() < _LEAVES else None
        start = time.perf_counter()
        reader, writer = await asyncio.open_connection(*self._place)
        try:
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            said, first = b"", 0.0
            while not said.endswith(END):
                piece = await reader.read(1 << 16)
                first = first or time.perf_counter() - start
                said += piece
                if not piece:
                    break
                if leaves_after is not None and said.count(b"data: {") >= leaves_after:
                    return "left"
        finally:
            writer.close()
        status = said[9:12].decode("ascii", "replace")
        if status == "200":
            if b"data: [DONE]" not in said:
                return "200, but broken off"
            self._firsts.append(first)
        return status


async def crowd(host: str, port: int, clients: int, seconds: float) -> dict[str, Any]:
    """Returns what a crowd found."""
    found: Counter[str] = Counter()
    firsts: list[float] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(
        *(Client((host, port), n, until, found, firsts).run() for n in range(clients))
    )
    firsts.sort()
    return {
        "ended": dict(found),
        "first_p50": firsts[len(firsts) // 2] if firsts else 0.0,
        "first_p99": firsts[min(len(firsts) - 1, int(0.99 * len(firsts)))] if firsts else 0.0,
    }


def _apart(url: str, clients: int, seconds: float) -> dict[str, Any]:
    place = urlsplit(url)
    words = [_APART, str(place.hostname), str(place.port), str(clients), str(seconds)]
    command = [sys.executable, "-m", "benchmarks.serve_crowd", *words]
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
    if sys.argv[1:2] == [_APART]:
        host, *numbers = sys.argv[2:]
        found = crowd(host, int(numbers[0]), int(numbers[1]), float(numbers[2]))
        print(json.dumps(asyncio.run(found)))
        return 0
    parser = common.parser("A crowd of clients that stream.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (10)")
    parser.add_argument("--clients", type=int, default=100, help="how many at once (100)")
    arguments = parser.parse_args()
    clients, seconds, warm = arguments.clients, 60 * arguments.minutes, 60.0
    if arguments.quick:
        clients, seconds, warm = 6, 2.0, 1.0
    elif arguments.minutes < 5:
        warm = 20.0
    report = common.Report("serve_crowd", {"clients": clients, "seconds": seconds})
    measure(report, clients, seconds, warm)
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
