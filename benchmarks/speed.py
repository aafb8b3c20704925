"""Measures how fast the runtimes read, beside their peers and beside the matrix products alone.

A random RWKV-7 of 12x768: ids a second in decoding B states at once, and in reading prompts. Each
contender lives in a process of its own (`peers.served`); they take turns within every cell, and the
best of the rounds counts. It measures no engine and no LangChain (see `benchmarks.crowd`). What is
set against peers in fp32 keeps fp32 weights.

    python -m benchmarks.speed [--quick] [--check] [--peer-python PATH] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import track

from benchmarks import common
from benchmarks.common import Check, Report
from benchmarks.models import ROOT, write_apart
from benchmarks.peers.served import some_ids

REST_SECONDS = 0.05  # lets the threads of the contender before come to rest
COMPARED_IDS = 48


@dataclass(frozen=True)
class Cell:
    """One column of the table.

    Attributes:
        kind: ``decode`` or ``prefill``.
        n: States decoded at once, or ids of the prompt.
        times: Steps, or prompts, in one timing.
    """

    kind: str
    n: int
    times: int

    @property
    def name(self) -> str:
        """How the column is called."""
        return f"B={self.n}" if self.kind == "decode" else f"prefill {self.n:,}"


CELLS = (
    *(Cell("decode", n, times) for n, times in ((1, 16), (4, 8), (16, 4), (64, 2))),
    *(Cell("prefill", n, 1) for n in (256, 1024)),
)
QUICK = (Cell("decode", 1, 2), Cell("decode", 4, 1), Cell("prefill", 64, 1))


@dataclass(frozen=True)
class Target:
    """A ratio that is asked for.

    Attributes:
        ours: The contender of this project.
        peer: The one that it is set against.
        cell: Name of the column.
        least: What ours must be of the peer's speed.
    """

    ours: str
    peer: str
    cell: str
    least: float

    @property
    def name(self) -> str:
        """How the ratio is called in tables."""
        ours = "" if self.ours == FP32 else f"{self.ours}: "
        kind = "decode " if self.cell.startswith("B=") else ""
        return f"{ours}{kind}{self.cell} / {self.peer}"


FP32, FP16, INT8 = "native, weights in fp32", "native, weights in fp16", "cpu int8"
PLAIN, PACKAGE = "native, plain PyTorch", "`rwkv` package"
RWKVSERVE, LLAMA, LLAMA_Q8 = "rwkvserve", "llama.cpp f32", "llama.cpp q8_0"
PRODUCTS, PACKED = "products, plain", "products, oneDNN packed"
CUDA, CUDA_PACKAGE, CUDA_PRODUCTS = "native", PACKAGE, "products"
SKIPPED_IF_QUICK = (FP16, PLAIN, PRODUCTS)
_AS_ON_CPU = {CUDA: FP32, CUDA_PRODUCTS: PACKED}
"""What stands for which in the ratios; on a card they have no targets."""


def _each(ours: str, peer: str, least: dict[str, float]) -> list[Target]:
    return [Target(ours, peer, cell, value) for cell, value in least.items()]


TARGETS = (
    *_each(FP32, PACKAGE, {"B=1": 2, "B=4": 7, "B=16": 20, "B=64": 33}),
    *_each(FP32, LLAMA, {"B=1": 1, "B=4": 1.2, "B=16": 1.5, "B=64": 1.75}),
    *_each(FP32, PACKED, {"B=4": 0.75, "B=16": 0.75, "B=64": 0.75}),
    *_each(FP32, RWKVSERVE, {"B=16": 3.5, "B=64": 4}),
    *_each(FP32, PACKAGE, {"prefill 256": 4, "prefill 1,024": 4}),
    *_each(FP32, LLAMA, {"prefill 256": 1.9, "prefill 1,024": 1.9}),
    *_each(FP32, LLAMA_Q8, {"prefill 256": 1.3, "prefill 1,024": 1.3}),
    *_each(FP32, PACKED, {"prefill 256": 0.55, "prefill 1,024": 0.55}),
    *_each(INT8, LLAMA_Q8, {"B=1": 1, "prefill 256": 1.5}),
)


class Contender:
    """A program that answers tasks.

    Args:
        command: The program.

    Attributes:
        version: Of what is measured.
        missing: Why it cannot be measured; ``None`` where it can.
        one_by_one: Whether it decodes states one after the other.
    """

    def __init__(self, command: Sequence[str], *, one_by_one: bool = False) -> None:
        self.one_by_one = one_by_one
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `close`
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.version = ""
        self.missing: str | None = None

    def await_start(self) -> None:
        """Waits until it is loaded, or says that it is missing."""
        first = self._answer()
        self.version, self.missing = first.get("version", ""), first.get("missing")

    def seconds(self, cell: Cell, *, times: int | None = None) -> float:
        """Returns how long a cell's steps take; with `times` of 0 it only warms up."""
        task = {"kind": cell.kind, "n": cell.n, "times": cell.times if times is None else times}
        found: float = self._ask(task)["seconds"]
        return found

    def logits(self, ids: list[int]) -> list[float] | None:
        """Returns the logits behind a prompt, where it computes any."""
        found: list[float] | None = self._ask({"kind": "logits", "ids": ids})["logits"]
        return found

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._errors.close()

    def _ask(self, task: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(task), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"A contender ended with code {self._process.wait()}: {said}")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise RuntimeError(f"A contender failed at a task: {answer['failed']}")
        return answer


@contextlib.contextmanager
def contenders(
    arguments: argparse.Namespace, directory: Path
) -> Iterator[tuple[dict[str, Contender], dict[str, str]]]:
    """Starts all that can be had; yields them, and why the others cannot."""
    threads, peer_python = str(arguments.threads), arguments.peer_python
    model, wide = directory / "model.pth", directory / "fp32.pth"
    write_apart(model, quick=arguments.quick, fp32_too=wide)
    own = [sys.executable, "-m", "benchmarks.runtime_speed"]
    products = [sys.executable, "-m", "benchmarks.peers.products", str(model), threads]
    commands: dict[str, list[str]] = {}
    missing: dict[str, str] = {}
    if arguments.device == "cuda":
        commands[CUDA] = [*own, str(model), threads, "native cuda fp16"]
        commands[CUDA_PACKAGE] = [*own, str(model), threads, "package cuda fp16"]
        commands[CUDA_PRODUCTS] = [*products, "cuda"]
    else:
        commands[FP32] = [*own, str(wide), threads, "native cpu fp32"]
        commands[FP16] = [*own, str(model), threads, "native cpu fp32"]
        commands[INT8] = [*own, str(model), threads, "cpu int8"]
        commands[PLAIN] = [*own, str(model), threads, "plain"]
        commands[PACKAGE] = [*own, str(model), threads, "package cpu fp32"]
        serve = [peer_python, "-m", "benchmarks.peers.rwkvserve_speed", str(model), threads]
        commands[RWKVSERVE] = serve
        for name, kind in ((LLAMA, "f32"), (LLAMA_Q8, "q8")):
            file = directory / f"{kind}.gguf"
            convert = [peer_python, "-m", "benchmarks.peers.gguf_file", str(model), str(file), kind]
            done = subprocess.run(convert, cwd=ROOT, check=False, capture_output=True, text=True)
            if done.returncode:
                missing[name] = done.stderr.strip().splitlines()[-1]
                continue
            llama = [peer_python, "-m", "benchmarks.peers.llama_cpp_speed", str(file), threads]
            commands[name] = llama
        commands[PRODUCTS], commands[PACKED] = [*products, "plain"], [*products, "packed"]
    with contextlib.ExitStack() as stack:
        started = {
            name: stack.enter_context(
                contextlib.closing(Contender(command, one_by_one=name == PACKAGE))
            )
            for name, command in commands.items()
            if not arguments.quick or name not in SKIPPED_IF_QUICK
        }
        for name, one in started.items():
            one.await_start()
            if one.missing:
                missing[name] = one.missing
        yield {name: one for name, one in started.items() if not one.missing}, missing


def measure(
    found: dict[str, Contender], cells: Sequence[Cell], rounds: int
) -> dict[str, dict[str, float]]:
    """Returns ids a second, by contender and cell: the best of the rounds, taken by turns."""
    speeds: dict[str, dict[str, float]] = {name: {} for name in found}
    for cell in track(cells, "speed", console=Console(stderr=True)):
        times = {name: _times(cell, one) for name, one in found.items()}
        best = dict.fromkeys(found, float("inf"))
        for one in found.values():
            one.seconds(cell, times=0)
        for _ in range(rounds):
            for name, one in found.items():
                time.sleep(REST_SECONDS)
                best[name] = min(best[name], one.seconds(cell, times=times[name]) / times[name])
        for name, seconds in best.items():
            speeds[name][cell.name] = cell.n / seconds
    return speeds


def _times(cell: Cell, contender: Contender) -> int:
    """Returns how many steps one timing has: those that go one by one are long as they are."""
    return max(1, cell.times // cell.n) if contender.one_by_one else cell.times


def differences(found: dict[str, Contender], vocab: int) -> dict[str, float]:
    """Returns each contender's largest difference of a logit from the package's, behind a prompt.

    It shows that all run the same model.
    """
    ids = some_ids(COMPARED_IDS, vocab, seed=1)
    reference = found[PACKAGE].logits(ids)
    assert reference is not None
    differ = {}
    for name, one in found.items():
        logits = one.logits(ids)
        if logits is not None:
            pairs = zip(logits, reference, strict=True)
            differ[name] = max(abs(a - b) for a, b in pairs)
    return differ


def ratios(speeds: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Returns the ratios that have a target on a CPU; ``None`` for what was not measured."""
    speeds = {_AS_ON_CPU.get(name, name): found for name, found in speeds.items()}
    rows = []
    for target in TARGETS:
        of_peer = speeds.get(target.peer, {}).get(target.cell)
        of_ours = speeds.get(target.ours, {}).get(target.cell)
        of_fp16 = speeds.get(FP16, {}).get(target.cell) if target.ours == FP32 else None
        rows.append(
            {
                "name": target.name,
                "target": target.least,
                "ratio": of_ours / of_peer if of_ours and of_peer else None,
                "ratio_fp16": of_fp16 / of_peer if of_fp16 and of_peer else None,
            }
        )
    return rows


def show(report: Report) -> None:
    """Prints the speeds."""
    results = report.results
    head = ["ids a second", *results["cells"], "largest difference"]
    rows = [
        [name, *(f"{speeds[cell]:,.0f}" for cell in results["cells"]), _difference(results, name)]
        for name, speeds in results["speeds"].items()
    ]
    blank = [""] * len(results["cells"])
    rows += [[name, reason, *blank] for name, reason in results["missing"].items()]
    common.print_table("Speed", head, rows)


def _difference(results: dict[str, Any], name: str) -> str:
    differ = results["largest_logit_difference"].get(name)
    return "" if differ is None else f"{differ:.1e}"


def main() -> int:
    parser = common.parser("Times the runtimes beside their peers on a random RWKV-7 of 12x768.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="threads of each contender (2)")
    parser.add_argument("--rounds", type=int, help="timings of a cell, by turns (4; 2 if quick)")
    parser.add_argument(
        "--peer-python",
        default=sys.executable,
        help="an interpreter that has llama-cpp-python, gguf and rwkvserve (this one)",
    )
    arguments = parser.parse_args()
    rounds = arguments.rounds or (2 if arguments.quick else 4)
    cells = QUICK if arguments.quick else CELLS
    settings = {
        "model": f"random RWKV-7 {'2x128' if arguments.quick else '12x768'}",
        "threads": arguments.threads,
        "device": arguments.device,
        "rounds": rounds,
    }
    report = Report("speed" if arguments.device == "cpu" else "speed_cuda", settings)
    with (
        tempfile.TemporaryDirectory() as directory,
        contenders(arguments, Path(directory)) as (found, missing),
    ):
        report.results["versions"] = {name: one.version for name, one in found.items()}
        report.results["missing"] = missing
        report.results["cells"] = [cell.name for cell in cells]
        report.results["largest_logit_difference"] = differences(found, 65536)
        report.results["speeds"] = measure(found, cells, rounds)
    report.results["ratios"] = ratios(report.results["speeds"])
    for row in report.results["ratios"]:
        if row["ratio"] is not None and arguments.device == "cpu":
            report.add(Check(row["name"], row["ratio"], row["target"], "at least", "x", rounds))
    show(report)
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
