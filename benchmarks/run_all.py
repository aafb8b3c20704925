"""Runs every benchmark, each in a fresh process, then draws the pictures and fills the page.

It measures nothing itself. The easy mistake is to run two benchmarks at once: each is to have the
machine alone.

    python -m benchmarks.run_all [--quick] [--check] [--out DIR]
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks import common, tables

BENCHMARKS = ("recall", "conversation", "store", "prefix_cache")


def main() -> int:
    arguments = common.parser("Runs all benchmarks.").parse_args()
    options = ["--quick"] * arguments.quick + ["--check"] * arguments.check
    if arguments.out:
        options += ["--out", str(arguments.out)]
    failed = []
    for name in BENCHMARKS:
        print(f"--- {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *options]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if not arguments.quick:
        from benchmarks import plots

        plots.draw(arguments.out or common.RESULTS, arguments.out or common.IMAGES)
        if not arguments.out:
            tables.PAGE.write_text(tables.fill(tables.PAGE.read_text("utf-8")), "utf-8")
    if failed:
        print(f"Failed, or missed a target: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
