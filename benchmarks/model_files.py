"""Loads each form of a checkpoint beside the plain ``.pth``, and compares logits with llama.cpp's.

Each load is in a process of its own, and the forms take turns; time is the processor's, which other
programs on the machine disturb less than the clock's. Where llama.cpp is there, it runs the same
GGUF files; it rounds what it multiplies with f16 and q8_0 weights to f16 and 8 bits, which this
package does not, so that it is also given the very numbers that were read, in f32. The second
comparison tells llama.cpp's rounding from a fault in the reading.

    python -m benchmarks.model_files [--quick] [--check] [--out DIR] [--peer-python PATH]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import safetensors.torch
import torch

from benchmarks import common
from benchmarks.common import Check, Report
from benchmarks.models import ROOT
from benchmarks.peers.gguf_file import convert
from benchmarks.peers.served import some_ids
from benchmarks.speed import Contender
from langchain_rwkv_state.runtime import load_runtime, read_tensors
from tests.helpers.checkpoints import write_checkpoint
from tests.helpers.hugging_face import write_hugging_face

PLAIN = ".pth"
MOST = 1.5  # of the .pth's time and peak
LOGITS = {"f32": 1e-3, "f16": 1e-3, "q8": 1e-2}
_VOCAB = 8192  # of the models whose logits are compared
_IDS = 64


def write_forms(directory: Path, *, quick: bool) -> dict[str, Path]:
    """Writes one model in every form and returns the paths by name."""
    sizes: dict[str, Any] = (
        {"n_layer": 2, "n_embd": 128} if quick else {"n_layer": 12, "n_embd": 768}
    )
    path = write_checkpoint(
        directory / "m.pth", 7, vocab=65536, dtype=torch.float16, head_size=64, **sizes
    )
    tensors = torch.load(path, weights_only=True)
    found = {PLAIN: path}
    safetensors.torch.save_file(tensors, directory / "m.safetensors")
    found[".safetensors"] = directory / "m.safetensors"
    found["Hugging Face folder"] = write_hugging_face(directory / "hf", tensors)
    found["Hugging Face folder, 4 shards"] = write_hugging_face(
        directory / "hf4", tensors, shards=4
    )
    for kind, name in (("f16", "GGUF f16"), ("q8", "GGUF q8_0")):
        found[name] = directory / f"{kind}.gguf"
        convert(str(path), str(found[name]), kind)
    return found


def load_one(path: str) -> None:
    """Loads a model; prints the processor's seconds, and by how much memory grew at its peak."""
    process = psutil.Process()
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak so far is forgotten
    before, start = process.memory_info().rss, time.process_time()
    runtime = load_runtime(path)
    seconds = time.process_time() - start
    peak = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text("ascii").splitlines()
        if line.startswith("VmHWM")
    )
    json.dump({"seconds": seconds, "bytes": peak - before}, sys.stdout)
    runtime.close()


def measure_loading(report: Report, forms: dict[str, Path], rounds: int, *, quick: bool) -> None:
    """Loads every form by turns, and compares each with the ``.pth`` of the same round."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in forms}
    first = 0 if quick else 1  # it brings the file into memory, and does not count
    for _ in range(first + rounds):
        for name, path in forms.items():
            command = [sys.executable, "-m", "benchmarks.model_files", "--load", str(path)]
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            found[name].append(json.loads(done.stdout))
    rows = {}
    for name, loads in found.items():
        counted, plain = loads[first:], found[PLAIN][first:]
        rows[name] = {
            "seconds": statistics.median(each["seconds"] for each in counted),
            "bytes": statistics.median(each["bytes"] for each in counted),
            **{
                f"{what}_ratio": statistics.median(
                    mine[what] / theirs[what] for mine, theirs in zip(counted, plain, strict=True)
                )
                for what in ("seconds", "bytes")
            },
        }
        if name != PLAIN and "q8" not in name:
            for what, said in (("seconds", "time"), ("bytes", "peak memory")):
                ratio = rows[name][f"{what}_ratio"]
                report.add(Check(f"{name}: {said} / .pth", ratio, MOST, "at most", "", rounds))
    report.results["loading"] = rows


def measure_logits(report: Report, directory: Path, python: str, *, quick: bool) -> None:
    """Compares the logits behind one prompt with llama.cpp's, where it is to be had."""
    sizes: dict[str, Any] = (
        {"n_layer": 2, "n_embd": 128} if quick else {"n_layer": 12, "n_embd": 768}
    )
    ids, rows = some_ids(_IDS, _VOCAB), {}
    for version in (7, 6):
        plain = write_checkpoint(
            directory / f"v{version}.pth", version, vocab=_VOCAB, dtype=torch.float16, **sizes
        )
        for kind, most in LOGITS.items():
            path, again = directory / f"v{version}.gguf", directory / "again.gguf"
            convert(str(plain), str(path), kind, rescale=6 if version == 6 else 0)
            runtime = load_runtime(path, "cpu fp32" if version == 6 else "auto")
            with closing(runtime):
                ours = runtime.forward(ids, runtime.zero_state())[0]
            theirs = _llama_cpp(python, path, ids)
            if theirs is None:
                report.results["llama.cpp"] = "not measured: llama-cpp-python is not installed"
                return
            torch.save(read_tensors(path), directory / "read.pth")
            convert(str(directory / "read.pth"), str(again), "f32")
            exact = _llama_cpp(python, again, ids)
            assert exact is not None
            name = f"RWKV-{version} {kind if kind != 'q8' else 'q8_0'}"
            row = {
                "same_file": float((ours - theirs).abs().max()),
                "same_numbers": float((ours - exact).abs().max()),
                "llama_cpp_itself": float((theirs - exact).abs().max()),
                "deviation": float(ours.std()),
            }
            rows[name] = row
            report.add(Check(f"{name}: logits, same file", row["same_file"], most, "at most"))
            same = row["same_numbers"]
            report.add(Check(f"{name}: logits, same numbers in f32", same, 1e-3, "at most"))
    report.results["llama.cpp"] = rows


def _llama_cpp(python: str, path: Path, ids: list[int]) -> torch.Tensor | None:
    command = [python, "-m", "benchmarks.peers.llama_cpp_speed", str(path), "2"]
    with closing(Contender(command)) as peer:
        peer.await_start()
        found = None if peer.missing else peer.logits(ids)
    return None if found is None else torch.tensor(found)


def show(report: Report) -> None:
    """Prints what was found."""
    common.print_table(
        "Loading",
        ["form", "seconds", "times the .pth", "peak, MB", "times the .pth"],
        [
            [
                name,
                f"{row['seconds']:.2f}",
                f"{row['seconds_ratio']:.2f}",
                f"{row['bytes'] / 1e6:.0f}",
                f"{row['bytes_ratio']:.2f}",
            ]
            for name, row in report.results["loading"].items()
        ],
    )
    found = report.results["llama.cpp"]
    if isinstance(found, str):
        print(found)
        return
    common.print_table(
        "Largest difference of a logit",
        ["file", "llama.cpp, same file", "llama.cpp, same numbers in f32", "llama.cpp's own"],
        [
            [
                name,
                *(f"{row[key]:.0e}" for key in ("same_file", "same_numbers", "llama_cpp_itself")),
            ]
            for name, row in found.items()
        ],
    )


def main() -> int:
    parser = common.parser("Loads every form of a checkpoint, and compares with llama.cpp.")
    parser.add_argument("--rounds", type=int, help="loads of each form (9; 1 if quick)")
    parser.add_argument("--peer-python", default=sys.executable, help="one with llama-cpp-python")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load_one(arguments.load)
        return 0
    rounds = arguments.rounds or (1 if arguments.quick else 9)
    settings = {"model": "random RWKV-7 12x768, fp16", "rounds": rounds, "ids": _IDS}
    report = Report("model_files", settings)
    with tempfile.TemporaryDirectory() as directory:
        forms = write_forms(Path(directory), quick=arguments.quick)
        measure_loading(report, forms, rounds, quick=arguments.quick)
    with tempfile.TemporaryDirectory() as directory:
        measure_logits(report, Path(directory), arguments.peer_python, quick=arguments.quick)
    show(report)
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
