"""Times a command to its first token, beside the import of PyTorch that it needs.

Every run is a process of its own, with the disk warm and all modules compiled, as an installed
package's are. What is compared alternates, so that a busy moment hits all of it. A checkout must
keep its bytecode (no ``PYTHONDONTWRITEBYTECODE``): otherwise a tenth of a second of compiling
stands in every run.

    python -m benchmarks.startup [--quick] [--check] [-n 15]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks import common
from benchmarks.common import Check, Report

TORCH = "import torch"
LANGCHAIN = "import torch, langchain_core.language_models, langsmith.run_trees"
STREAM = (
    "from langchain_rwkv_state import ChatRWKV, MemoryStateStore\n"
    "chat = ChatRWKV(model='demo', store=MemoryStateStore(), temperature=0)\n"
    "for chunk in chat.stream('hi'): print(chunk.text, end='', flush=True)"
)
RUNS: dict[str, tuple[list[str], bytes]] = {
    "python": (["-c", "pass"], b""),
    "package": (["-c", "import langchain_rwkv_state"], b""),
    "help": (["-m", "langchain_rwkv_state", "--help"], b""),
    "torch": (["-c", TORCH], b""),
    "langchain": (["-c", LANGCHAIN], b""),
    "stream": (["-c", STREAM], b""),
    "ask": (["-m", "langchain_rwkv_state", "hi"], b""),
}
"""What is run, by name: the interpreter's arguments, and what stands on standard input."""


def main() -> int:
    parser = common.parser(__doc__.partition("\n")[0])
    parser.add_argument("-n", type=int, help="rounds (15; 1 with --quick)")
    arguments = parser.parse_args()
    rounds = arguments.n or (1 if arguments.quick else 15)
    report = Report("startup", {"rounds": rounds})
    with tempfile.TemporaryDirectory(prefix="rwkv-startup-") as folder:
        environment = _environment(Path(folder))
        _seconds("ask", environment)  # compiles modules, and the model's pass, where need be
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in RUNS}
        for _ in range(rounds):
            for name, times in found.items():
                times.append(_seconds(name, environment))
    medians = {
        name: tuple(statistics.median(each) for each in zip(*times, strict=True))
        for name, times in found.items()
    }
    torch_seconds = [whole for _, whole, _ in found["torch"]]
    firsts = {name: [first for first, *_ in found[name]] for name in ("stream", "ask")}
    report.results = {
        "load_before": round(load, 2),
        "medians": {
            name: {"first_byte_seconds": first, "whole_seconds": whole, "cpu_seconds": cpu}
            for name, (first, whole, cpu) in medians.items()
        },
    }
    for name, label in (("ask", 'rwkv-state "hi"'), ("stream", "ChatRWKV.stream")):
        pairs = list(zip(firsts[name], torch_seconds, strict=True))
        ratio = statistics.median(first / torch for first, torch in pairs)
        beyond = statistics.median(first - torch for first, torch in pairs)
        report.add(
            Check(f"first token of {label} / import torch", ratio, 1.5, "at most", "x", rounds)
        )
        report.add(
            Check(f"first token of {label} - import torch", beyond, 0.3, "at most", "s", rounds)
        )
    imported = medians["package"][1] - medians["python"][1]
    report.add(
        Check("import langchain_rwkv_state, beyond python", imported, 0.15, "at most", "s", rounds)
    )
    common.print_table(
        f"startup: medians of {rounds}, one-minute load {load:.1f} before",
        ["process", "first byte", "whole", "of a core"],
        [
            [name, f"{first:.2f} s" if first else "", f"{whole:.2f} s", f"{cpu:.2f} s"]
            for name, (first, whole, cpu) in medians.items()
        ],
    )
    return report.finish(arguments)


def _environment(folder: Path) -> dict[str, str]:
    """Returns the environment of every run: bytecode is kept, the store is a new one."""
    kept = {key: text for key, text in os.environ.items() if not key.startswith("RWKV_STATE_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return kept | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), kept.get("PYTHONPATH")))),
        "RWKV_STATE_DIR": str(folder / "store"),
    }


def _seconds(name: str, environment: Mapping[str, str]) -> tuple[float, float, float]:
    """Returns seconds: to the first byte on standard output, 0 for none; to the end; of a core.

    The last is what other work on the machine changes least.

    Raises:
        RuntimeError: The process failed.
    """
    arguments, given = RUNS[name]
    before = os.times()
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(given)
        process.stdin.close()
        begun = process.stdout.read(1)
        first = time.perf_counter() - started if begun else 0.0
        process.stdout.read()
        process.wait()
        whole = time.perf_counter() - started
        if process.returncode:
            assert process.stderr is not None
            raise RuntimeError(f"{name} failed: {process.stderr.read().decode()}")
    after = os.times()
    used = after.children_user + after.children_system
    return first, whole, used - before.children_user - before.children_system


_ROOT = Path(__file__).parent.parent


if __name__ == "__main__":
    raise SystemExit(main())
