"""Runs every benchmark, each in a fresh process, then draws the pictures and fills the page.

It measures nothing itself. Each benchmark is to have the machine alone.

    python -m benchmarks.run_all [--quick] [--check] [--out DIR] [--peer-python PATH]
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks import common, tables

# `endurance`, `serve_kills` and `serve_crowd` are not here: they take ten minutes to an hour.
BENCHMARKS = (
    *("recall", "conversation", "store", "speed", "crowd", "int8"),
    *("sampling", "corrections", "codecs", "retention", "prefix_cache", "staging", "model_files"),
    *("constraints", "startup", "sharing", "moving", "agent_calls", "agent_thread"),
    *("host_cost", "stores", "serve_cost", "serve_talk", "serve_workers"),
)


def main() -> int:
    parser = common.parser("Runs all benchmarks.")
    parser.add_argument("--peer-python", help="an interpreter for the peers")
    arguments = parser.parse_args()
    options = ["--quick"] * arguments.quick + ["--check"] * arguments.check
    if arguments.out:
        options += ["--out", str(arguments.out)]
    failed = []
    for name in BENCHMARKS:
        print(f"--- {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *options]
        if name in ("speed", "model_files") and arguments.peer_python:
            command += ["--peer-python", arguments.peer_python]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if not arguments.quick:
        from benchmarks import plots

        plots.draw(arguments.out or common.RESULTS, arguments.out or common.IMAGES)
        if not arguments.out:
            tables.fill_all()
    if failed:
        print(f"Failed, or missed a target: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
