"""Measures what HTTP costs: the processor's time of a streamed answer, and the throughput.

The same questions are put by turns to the engine alone (requests made ready, one event loop that
takes the pieces) and to the server by HTTP; the client is another process, whose time does not
count. On the demo model the time of the processor is compared, at the sampling that a model has of
its own, each question with a seed, so that both say the same. On a model of 12x768 it is the
answers' tokens in a second, of long answers of one length. Nothing is taken from a prefix cache.

    python -m benchmarks.serve_cost [--quick] [--check] [--out DIR]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from langchain_core.messages import HumanMessage

from benchmarks import common
from benchmarks.models import ROOT, write_apart
from benchmarks.serve_client import QUESTIONS
from langchain_rwkv_state import ChatRWKV
from langchain_rwkv_state.engine import Done, Engine, Request
from langchain_rwkv_state.serve import ServeSettings, make_app
from tests.helpers.server import serving

CPU_GOAL = 1.6
THROUGHPUT_GOAL = 0.85


@dataclass(frozen=True)
class Round:
    """What a round of answers took.

    Attributes:
        answers: How many there were.
        tokens: Of the answers.
        seconds: By the clock.
        cpu_seconds: Of the processor, in the process with the model.
        first_p50: Seconds to the first piece, the median.
        first_p99: The slowest hundredth's.
    """

    answers: int
    tokens: int
    seconds: float
    cpu_seconds: float
    first_p50: float = 0.0
    first_p99: float = 0.0

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of the processor an answer."""
        return 1e3 * self.cpu_seconds / self.answers

    @property
    def tokens_a_second(self) -> float:
        """Throughput."""
        return self.tokens / self.seconds


class Bench:
    """A model at work, a server over it, and a client in another process.

    Args:
        settings: What is served.
        options: Of each request.
    """

    def __init__(self, settings: ServeSettings, options: dict[str, Any]) -> None:
        self._settings = settings
        self._options = options
        self._chat = ChatRWKV(
            model=settings.model, strategy=settings.strategy, **(settings.options or {})
        )
        self._engine = self._chat.loaded().engine

    def questions(self, count: int) -> list[tuple[str, dict[str, Any]]]:
        """Returns questions, each with the options of its call."""
        return [
            (f"{n}. " + QUESTIONS[n % len(QUESTIONS)].format(n=n), {"seed": n, **self._options})
            for n in range(count)
        ]

    # -- the engine alone -------------------------------------------------------------------

    def alone(self, count: int, at_once: int) -> Round:
        """Has the engine answer so many questions."""
        before = self._engine.stats().decoded_tokens
        waiting = [
            self._chat.plan_call([HumanMessage(text)], None, options)[1].request
            for text, options in self.questions(count)
        ]
        firsts: list[float] = []
        cpu, start = time.process_time(), time.perf_counter()
        asyncio.run(_take_all(self._engine, waiting, at_once, firsts))
        return self._round(count, before, cpu, time.perf_counter() - start, firsts)

    def _round(
        self, count: int, before: int, cpu: float, seconds: float, firsts: list[float]
    ) -> Round:
        spent = time.process_time() - cpu
        firsts.sort()
        tokens = self._engine.stats().decoded_tokens - before
        return Round(
            count,
            tokens,
            seconds,
            spent,
            firsts[len(firsts) // 2],
            firsts[min(len(firsts) - 1, int(0.99 * len(firsts)))],
        )

    # -- by HTTP ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def served(self) -> Iterator[subprocess.Popen[str]]:
        """Serves on loopback; yields a client."""
        with serving(make_app(self._settings)) as url:
            place = urlsplit(url)
            client = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.serve_client", "127.0.0.1", str(place.port)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                yield client
            finally:
                client.communicate()

    def by_http(self, client: subprocess.Popen[str], count: int, at_once: int) -> Round:
        """Has a client ask so many questions."""
        assert client.stdin is not None
        assert client.stdout is not None
        bodies = [
            {
                "model": self._settings.model_name,
                "messages": [{"role": "user", "content": text}],
                "stream": True,
                **options,
            }
            for text, options in self.questions(count)
        ]
        before, cpu = self._engine.stats().decoded_tokens, time.process_time()
        client.stdin.write(json.dumps({"bodies": bodies, "at_once": at_once}) + "\n")
        client.stdin.flush()
        told = json.loads(client.stdout.readline())
        spent = time.process_time() - cpu
        tokens = self._engine.stats().decoded_tokens - before
        firsts = (told["first_p50"], told["first_p99"])
        return Round(told["answers"], tokens, told["seconds"], spent, *firsts)

    def by_turns(self, rounds: int, count: int, at_once: int) -> tuple[list[Round], list[Round]]:
        """Returns rounds of the engine alone, and by HTTP."""
        alone, http = [], []
        with self.served() as client:
            self.alone(at_once, at_once)
            self.by_http(client, at_once, at_once)
            for _ in range(rounds):
                alone.append(self.alone(count, at_once))
                http.append(self.by_http(client, count, at_once))
        self._chat.unload()
        return alone, http


async def _take_all(
    engine: Engine, waiting: list[Request], at_once: int, firsts: list[float]
) -> None:
    async def work() -> None:
        while waiting:
            start, first = time.perf_counter(), 0.0
            async for event in engine.submit(waiting.pop()):
                first = first or time.perf_counter() - start
                assert not isinstance(event, Done) or event.finish_reason
            firsts.append(first)

    await asyncio.gather(*(work() for _ in range(at_once)))


def main() -> int:
    arguments = common.parser("What HTTP costs.").parse_args()
    torch.set_num_threads(1)
    quick = arguments.quick
    rounds, count, at_once = (1, 6, 3) if quick else (5, 200, 16)
    tokens = 4 if quick else 32
    settings = {"rounds": rounds, "answers": count, "at_once": at_once, "long": tokens}
    report = common.Report("serve_cost", settings)
    with tempfile.TemporaryDirectory() as name:
        known: dict[str, Any] = {
            "store": str(Path(name) / "states"),
            "options": {"prefix_cache": False},
        }
        demo = Bench(ServeSettings(model="demo", **known), {})
        alone, http = demo.by_turns(rounds, count, at_once)
        ratio = statistics.median(b.cpu_ms / a.cpu_ms for a, b in zip(alone, http, strict=True))
        _tell(report, "demo", alone, http)
        what = "CPU an answer of the demo model, by HTTP to the engine alone"
        report.add(common.Check(what, ratio, CPU_GOAL, "at most", "times", rounds * count))

        path = write_apart(Path(name) / "large.pth", quick=quick, speaking=True)
        large = Bench(ServeSettings(model=str(path), **known), {"max_tokens": tokens})
        each = at_once
        alone, http = large.by_turns(min(rounds, 3), each, at_once)
        share = statistics.median(b.tokens_a_second for b in http) / statistics.median(
            a.tokens_a_second for a in alone
        )
        _tell(report, path.stem, alone, http)
        what = "tokens a second of the 12x768 model, by HTTP to the engine alone"
        report.add(
            common.Check(what, share, THROUGHPUT_GOAL, "at least", "times", len(http) * each)
        )
    return report.finish(arguments)


def _tell(report: common.Report, name: str, alone: list[Round], http: list[Round]) -> None:
    rows = []
    for way, found in (("the engine alone", alone), ("by HTTP", http)):
        cpu = statistics.median(each.cpu_ms for each in found)
        rate = statistics.median(each.tokens_a_second for each in found)
        p50 = 1e3 * statistics.median(each.first_p50 for each in found)
        p99 = 1e3 * statistics.median(each.first_p99 for each in found)
        length = sum(each.tokens for each in found) / sum(each.answers for each in found)
        report.results[f"{name}, {way}"] = {
            "cpu_ms_an_answer": cpu,
            "tokens_a_second": rate,
            "first_piece_ms": {"p50": p50, "p99": p99},
            "tokens_an_answer": length,
        }
        rows.append([way, *(f"{x:.1f}" for x in (cpu, rate, p50, p99, length))])
    head = ["", "CPU, ms an answer", "tokens/s", "first p50, ms", "p99, ms", "tokens an answer"]
    common.print_table(f"What an answer of {name} costs", head, rows)


if __name__ == "__main__":
    raise SystemExit(main())
