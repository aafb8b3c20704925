"""Gives benchmarks what they share: the machine's description, timing, targets, tables and JSON.

Nothing is measured here. The easy mistake is to compare figures of two runs: a busy machine
halves them, so what is compared is timed by turns (A, B, A, B) in one run, and medians count.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parent.parent / "docs" / "images"
PACKAGES = (
    "langchain-rwkv-state",
    "langchain-core",
    "torch",
    "rwkv",
    "diskcache",
    "safetensors",
    "tokenizers",
    "pyrwkv-tokenizer",
)


@dataclass(frozen=True)
class Check:
    """A figure that has a target.

    Attributes:
        name: What was measured.
        measured: The figure.
        target: What it must reach.
        bound: Whether the target is the least or the most that is allowed.
        unit: Of both.
        n: Number of cases or repetitions behind the figure.
    """

    name: str
    measured: float
    target: float
    bound: Literal["at least", "at most"]
    unit: str = ""
    n: int = 1

    @property
    def passed(self) -> bool:
        """Whether the figure is on the right side of its target."""
        if self.bound == "at least":
            return self.measured >= self.target
        return self.measured <= self.target


@dataclass
class Report:
    """What one benchmark found.

    Attributes:
        benchmark: Its name, also the JSON file's.
        settings: How it was run.
        results: The figures.
        checks: Those that have a target.
    """

    benchmark: str
    settings: dict[str, Any]
    results: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    def add(self, check: Check) -> None:
        """Notes a figure with its target."""
        self.checks.append(check)

    def write(self, directory: Path) -> Path:
        """Writes the report as JSON and returns the file's path."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.benchmark}.json"
        content = {
            "benchmark": self.benchmark,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": machine(),
            "settings": self.settings,
            "results": self.results,
            "checks": [{**asdict(check), "passed": check.passed} for check in self.checks],
        }
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
        return path

    def finish(self, arguments: argparse.Namespace) -> int:
        """Prints the targets, writes the JSON where it is wanted, and returns the exit code."""
        print_table(
            f"{self.benchmark}: targets",
            ["what", "measured", "target", "n", ""],
            [
                [
                    check.name,
                    f"{check.measured:.4g} {check.unit}",
                    f"{check.bound} {check.target:.4g} {check.unit}",
                    str(check.n),
                    "ok" if check.passed else "MISSED",
                ]
                for check in self.checks
            ],
        )
        directory = arguments.out or (None if arguments.quick else RESULTS)
        if directory is not None:
            self.write(Path(directory))
        missed = [check for check in self.checks if not check.passed]
        return 1 if arguments.check and missed else 0


def parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help="small sizes: shows that it runs")
    made.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    made.add_argument(
        "--out", type=Path, help="directory of the JSON (benchmarks/results; none with --quick)"
    )
    return made


def machine() -> dict[str, Any]:
    """Describes the machine and the versions, without names or paths of it."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "torch_threads": torch.get_num_threads(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text("utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        avx = " with AVX-512" if any(" avx512f" in line for line in lines) else ""
        if names:
            return names[0] + avx
    return platform.processor() or "unknown"


def seconds(run: Callable[[], object]) -> float:
    """Returns how long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median_seconds(run: Callable[[], object], times: int) -> float:
    """Returns the median time of several calls."""
    return statistics.median(seconds(run) for _ in range(times))


def interleaved_seconds(
    runs: dict[str, Callable[[int], object]], times: int
) -> dict[str, list[float]]:
    """Times several things by turns, A B C A B C, so that a busy moment hits all of them.

    Args:
        runs: What to time, by name; each is called with the number of the round.
        times: Number of rounds.

    Returns:
        The times of each, in seconds.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(times):
        for name, run in runs.items():
            start = time.perf_counter()
            run(round_)
            found[name].append(time.perf_counter() - start)
    return found


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table to the terminal."""
    table = Table(title=title, title_justify="left")
    for place, name in enumerate(head):
        table.add_column(name, justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(file=sys.stdout).print(table)
