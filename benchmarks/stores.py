"""Measures commits to a disk beside commits to Redis: how many a second, and how long one takes.

States are random numbers of two sizes; no model is loaded. Redis is a private server on a socket of
this machine, whose data and the shared directory lie on the same disk as the store on disk: what a
network adds is not in these figures. Stores take turns, since a machine is never twice as busy.

    python -m benchmarks.stores [--quick] [--check] [--out DIR] [--rounds 3]
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks import common
from benchmarks.store import _tensors, _warm_up
from langchain_rwkv_state.state import Derivation, RWKVState, StateLayout
from langchain_rwkv_state.store import DiskStateStore, RedisStateStore, StateStore
from tests.helpers.redis_server import RedisServer, redis_server

SIZES = {
    "2.4 MB": StateLayout.of(7, n_layer=12, n_embd=768, head_size=64),
    "35 MB": StateLayout.of(7, n_layer=32, n_embd=4096, head_size=64),
}
SMALL = StateLayout.of(7, n_layer=1, n_embd=64, head_size=64)


@dataclass(frozen=True)
class Place:
    """Where a store is.

    Attributes:
        path: A directory, or the URL of a Redis.
        persistence: What its Redis must promise; empty for a store on disk.
        files: A directory beside Redis for large states, if any.
    """

    path: str
    persistence: Literal["", "always", "everysec"] = ""
    files: str | None = None

    def opened(self) -> StateStore:
        """Opens it."""
        if not self.persistence:
            return DiskStateStore(self.path)
        return RedisStateStore(self.path, persistence=self.persistence, blobs=self.files)


def main() -> int:
    """Runs all stores."""
    made = common.parser("Measures commits to a disk and to Redis.")
    made.add_argument("--rounds", type=int, help="turns of each store (3; 1 with --quick)")
    arguments = made.parse_args()
    quick = arguments.quick
    settings: dict[str, Any] = {
        "rounds": arguments.rounds or (1 if quick else 3),
        "commits": {"2.4 MB": 2 if quick else 40, "35 MB": 1 if quick else 5},
        "processes": [1] if quick else [1, 4],
        "state_bytes": {
            name: (SMALL if quick else layout).nbytes for name, layout in SIZES.items()
        },
    }
    torch.set_num_threads(1)
    report = common.Report("stores", settings)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rwkv-state-bench-")))
        always = stack.enter_context(redis_server())
        everysec = stack.enter_context(redis_server(appendfsync="everysec"))
        _measure(report, _places(folder, always, everysec), quick=quick)
        with always.client() as client:
            settings["redis"] = client.info("server")["redis_version"]
    return report.finish(arguments)


def _places(folder: Path, always: RedisServer, everysec: RedisServer) -> dict[str, Place]:
    (folder / "files").mkdir()
    return {
        "disk": Place(str(folder / "disk")),
        "Redis, `always`": Place(always.url, "always"),
        "Redis, `everysec`": Place(everysec.url, "everysec"),
        "Redis, `always`, with a directory": Place(
            always.url.replace("db=0", "db=1"), "always", str(folder / "files")
        ),
    }


def _measure(report: common.Report, places: dict[str, Place], *, quick: bool) -> None:
    """Lets the stores take turns, for each size and number of processes."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {
        size: {name: {} for name in places} for size in SIZES
    }
    settings = report.settings
    for processes in settings["processes"]:
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            list(pool.map(_warm_up, range(processes)))  # imports are not timed
            for size, layout in SIZES.items():
                count = settings["commits"][size]
                used = SMALL if quick else layout
                for name, each in _by_turns(pool, places, used, count, processes, settings).items():
                    found[size][name][str(processes)] = each
    report.results.update(found)
    for size, by_place in found.items():
        _print(size, by_place)


def _by_turns(
    pool: ProcessPoolExecutor,
    places: dict[str, Place],
    layout: StateLayout,
    count: int,
    processes: int,
    settings: dict[str, Any],
) -> dict[str, dict[str, float]]:
    """Returns what each store took with some processes."""
    found: dict[str, list[_Worked]] = {name: [] for name in places}
    rates: dict[str, list[float]] = {name: [] for name in places}
    for round_ in range(settings["rounds"]):
        for name, place in places.items():
            work = partial(_commit_some, place, layout, count, round_)
            worked = list(pool.map(work, range(processes)))
            whole = max(each.end for each in worked) - min(each.start for each in worked)
            rates[name].append(processes * count / whole)
            found[name] += worked
    commits = {name: [took for each in found[name] for took in each.commits] for name in places}
    reads = {name: [took for each in found[name] for took in each.reads] for name in places}
    return {
        name: {
            "commits_per_second": statistics.median(rates[name]),
            "p50_ms": _at(commits[name], 0.5),
            "p99_ms": _at(commits[name], 0.99),
            "read_p50_ms": _at(reads[name], 0.5),
            "n": len(commits[name]),
        }
        for name in places
    }


@dataclass(frozen=True)
class _Worked:
    """What one process did: when its commits began and ended, and what each of them took."""

    start: float
    end: float
    commits: list[float]
    reads: list[float]


def _at(seconds: Sequence[float], share: float) -> float:
    """Returns the time, in ms, that a share of them does not exceed."""
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))] * 1e3


def _commit_some(
    place: Place, layout: StateLayout, count: int, round_: int, worker: int
) -> _Worked:
    """Commits turns to a session of its own, then reads its head anew."""
    tensors = _tensors(layout, worker)
    session = f"s{round_}-{worker}"
    took = []
    with place.opened() as store:
        store.head(session)  # opened, as a service has it
        head: str | None = None
        start = time.monotonic()  # one clock for all processes
        for number in range(count):
            state = RWKVState(layout, tensors, Derivation("model").read([round_, worker, number]))

            def turn(state: RWKVState = state, head: str | None = head) -> None:
                store.commit(session, store.stage(state, parent=head), head)

            took.append(common.seconds(turn))
            head = store.head(session)
        end = time.monotonic()
    with place.opened() as store:
        read = [common.seconds(partial(store.get, str(head))) for _ in range(3)]
        store.delete_session(session)
    return _Worked(start, end, took, read)


def _print(size: str, found: dict[str, dict[str, dict[str, float]]]) -> None:
    common.print_table(
        f"commits of {size}",
        ["store", "processes", "a second", "p50", "p99", "read, p50"],
        [
            [
                name,
                processes,
                f"{each['commits_per_second']:.1f}",
                *(f"{each[key]:.1f} ms" for key in ("p50_ms", "p99_ms", "read_p50_ms")),
            ]
            for name, by in found.items()
            for processes, each in by.items()
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
