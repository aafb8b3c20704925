"""Measures what a conversation still knows: by distance, number of facts, codec, blend and decay.

It runs what ``rwkv-state recall`` runs, with more cases, on the built-in model: a million
parameters. One answer of 300 is a third of a point, so a lossless row of 30 cases promises little.

    python -m benchmarks.retention [--quick] [--check] [-n 300] [--model M]
"""

from __future__ import annotations

import sys

from rich.console import Console

from benchmarks import common
from langchain_rwkv_state._files import write_whole
from langchain_rwkv_state._progress import stepping
from langchain_rwkv_state.demo import RECALL_PATH
from langchain_rwkv_state.toolbox.recall import Recall, measure
from langchain_rwkv_state.toolbox.recall.cases import STRANGER, ZERO
from langchain_rwkv_state.views.terminal.recall_tables import (
    recall_tables,
)

CASES = 300
DISTANCES = (0, 4, 8, 16, 30, 45, 64, 100)
LOST_POINTS = {"zstd": 0, "fp16": 0, "bf16": 0, "int8": 2, "int4": 2}
"""Points of recall that a codec may cost."""


def checks(found: Recall) -> list[common.Check]:
    """Returns what the codecs cost, and what the controls know."""
    section = found.section("codecs")
    if section is None:
        return []
    points = {point.at: point for point in section.series[0].points}
    made = []
    for codec, most in LOST_POINTS.items():
        lost = 100 * (points["exact"].share - points[codec].share)
        n = points[codec].n
        made.append(common.Check(f"{codec}: recall lost", lost, most, "at most", "points", n))
    for control in (ZERO, STRANGER):
        knows = 100 * points[control].share
        n = points[control].n
        made.append(common.Check(f"{control} knows", knows, 0, "at most", "%", n))
    return made


def main() -> int:
    parser = common.parser("Measures what a model still knows.")
    parser.add_argument("-n", type=int, help="cases of each section (300; 2 if quick)")
    parser.add_argument("--model", default="demo", help="another model to ask (demo)")
    arguments = parser.parse_args()
    n = arguments.n or (2 if arguments.quick else CASES)
    distances = DISTANCES[:2] if arguments.quick else DISTANCES
    with stepping("recall") as told:
        found = measure(arguments.model, n=n, distances=distances, on_progress=told)
    report = common.Report("retention", {"model": arguments.model, "n": n})
    report.results = found.as_dict()
    if arguments.model == "demo" and n >= CASES and arguments.out is None:
        write_whole(RECALL_PATH, found.to_json().encode())  # for the pages on its sessions
    for check in checks(found):
        report.add(check)
    Console(file=sys.stdout).print(recall_tables(found))
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
