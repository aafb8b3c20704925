"""Checks and measures the runtime on a CUDA card within 20 minutes (3 with ``--quick``).

Says what card, driver and versions there are and what runs, ends at any fallback, checks answers
against the CPU, times the runtime alone, the engine, chat and the peers, and runs the tests that
need a card. Each part has a process and a time of its own; what is cut is said. ``--dry-run`` does
each kind of part once with a tiny model on the CPU, to see that it works: its figures mean nothing.
``--build-peers`` starts each peer once and ends: their CUDA code takes minutes to build.

    python -m benchmarks.cuda [--quick] [--albatross PATH] [--out DIR] [--only PART ...]
                              [--dry-run | --build-peers]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import platformdirs
import psutil
import torch

from benchmarks import common
from benchmarks.common import Check, Report
from benchmarks.cuda import speed
from benchmarks.cuda.bench import Bench
from benchmarks.cuda.parts import FALLBACK, FIRST_OF_A_KIND, FULL_SECONDS, PARTS, QUICK_SECONDS
from benchmarks.models import ROOT

NO_CARD = (
    "make gpu needs a CUDA card, and PyTorch {version} finds none. On a machine with one, install "
    "a PyTorch with CUDA and the extra [cuda]; `python -m benchmarks.cuda --dry-run` shows on a "
    "CPU that the script works."
)
LEAST_SHARE = 0.25
"""Of a part's time: with less, it is not begun."""
BROKEN = ("what runs", "choosing", "correct", "two cards", "pytest")
"""Parts that must pass, by how their names begin."""
BUILT = Path(platformdirs.user_cache_dir("langchain-rwkv-state")) / "peers" / torch.__version__
"""Where PyTorch builds the peers' CUDA code, unless ``TORCH_EXTENSIONS_DIR`` says otherwise."""


class Run:
    """One run of the parts.

    Args:
        arguments: Of the command.
        directory: Of the models and the parts' results.
    """

    def __init__(self, arguments: argparse.Namespace, directory: Path) -> None:
        self._arguments, self._directory = arguments, directory
        self._until = time.monotonic() + (QUICK_SECONDS if arguments.quick else FULL_SECONDS)
        self.found: dict[str, dict[str, Any]] = {}
        self.cut: list[str] = []
        self.failed: list[str] = []

    def all_of_them(self) -> bool:
        """Runs the parts in their order, up to a fallback; returns whether there was none."""
        arguments = self._arguments
        for name, part in PARTS.items():
            seconds = part.quick if arguments.quick else part.seconds
            if not seconds or (arguments.only and name not in arguments.only):
                continue
            if arguments.dry_run and not arguments.only and name not in FIRST_OF_A_KIND:
                continue  # it has the same tiny model
            left = min(self._until - time.monotonic(), seconds)
            if left < LEAST_SHARE * seconds:
                self._cut(name, "no time was left")
            elif not self._one(name, left):
                return False
        return True

    def _cut(self, name: str, why: str) -> None:
        self.cut.append(f"{name}: {why}")
        if name.startswith(BROKEN):
            self.failed.append(f"{name}: it must pass, and it did not come to its end")

    def _one(self, name: str, seconds: float) -> bool:
        """Runs a part in a process of its own; returns whether to go on."""
        arguments = self._arguments
        print(f"--- {name} ({seconds:.0f} s at most)", flush=True)
        settings = {
            "directory": str(self._directory),
            "device": "cpu" if arguments.dry_run else "cuda",
            "quick": arguments.quick,
            "albatross": arguments.albatross and str(arguments.albatross.expanduser().resolve()),
            "seconds": seconds,
        }
        command = [sys.executable, "-m", "benchmarks.cuda.parts", name, json.dumps(settings)]
        process = psutil.Popen(command, cwd=ROOT)
        try:
            code = process.wait(seconds)
            if code:
                self.failed.append(f"{name}: it ended with code {code}")
        except psutil.TimeoutExpired:
            self._cut(name, f"its {seconds:.0f} s were over")
            code = 0
        finally:
            if process.poll() is None:
                for one in (*process.children(recursive=True), process):  # peers, and their builds
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
                process.wait()
        file = Bench(name, self._directory).file
        if file.exists():
            self.found[name] = json.loads(file.read_text("utf-8"))
        return code != FALLBACK

    def report(self) -> Report:
        """Returns what the parts found, as one report."""
        arguments = self._arguments
        settings = {"quick": arguments.quick, "dry_run": arguments.dry_run}
        report = Report("cuda", settings)
        for name, found in self.found.items():
            report.results[name] = found["results"]
            for check in found["checks"]:
                report.add(Check(**check))
            self.cut += found["cut"]
        self.cut = list(dict.fromkeys(self.cut))
        report.results |= {"cut": self.cut, "failed": self.failed}
        wrong = [
            f"{name}: {check['name']} is {check['measured']:.1e}, at most {check['target']:.1e}"
            for name, found in self.found.items()
            for check in found["checks"]
            if name.startswith(BROKEN) and not Check(**check).passed
        ]
        self.failed += wrong
        return report


def free_builds(directory: Path) -> None:
    """Removes the locks of builds that were ended: whoever builds there next would wait forever."""
    for lock in directory.glob("*/lock"):
        lock.unlink(missing_ok=True)


def main() -> int:
    parser = common.parser("Checks and measures the runtime on a CUDA card, beside its peers.")
    parser.add_argument("--albatross", type=Path, help="a checkout of BlinkDL/Albatross")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU: that it works")
    parser.add_argument("--only", nargs="*", choices=PARTS, metavar="PART", help="some parts")
    parser.add_argument("--build-peers", action="store_true", help="start each peer, and end")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        print(NO_CARD.format(version=torch.__version__), file=sys.stderr)
        return 1
    if "TORCH_EXTENSIONS_DIR" not in os.environ:
        os.environ["TORCH_EXTENSIONS_DIR"] = str(BUILT)
        free_builds(BUILT)
    with tempfile.TemporaryDirectory(prefix="rwkv-gpu-") as directory:
        if arguments.build_peers:
            device = "cpu" if arguments.dry_run else "cuda"
            path = arguments.albatross and str(arguments.albatross.expanduser().resolve())
            speed.build_peers(Bench("peers", Path(directory), device, albatross=path))
            return 0
        run = Run(arguments, Path(directory))
        went_on = run.all_of_them()
        report = run.report()
    arguments.quick |= arguments.dry_run or bool(arguments.only)  # no results that others read
    missed = report.finish(arguments)
    for what, found in (("cut", run.cut), ("failed", run.failed)):
        for each in found:
            print(f"{what}: {each}")
    if went_on and not arguments.quick and not arguments.out:
        from benchmarks import tables

        tables.fill_all()
    return 1 if run.failed or missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
