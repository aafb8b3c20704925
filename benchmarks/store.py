"""Measures what the store costs, in time and bytes, and what survives kills and changes.

States are random numbers of a 12x768 RWKV-7 (2.4 MB in fp32): no model is loaded. The control,
diskcache's own pickling `set`, gets the same flushing as our commits and is timed by turns with
them.

    python -m benchmarks.store [--quick] [--check] [--out DIR] [--kills 250] [--sessions 100000]
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import diskcache
import torch

from benchmarks import common
from langchain_rwkv_state.state import Derivation, RWKVState, StateLayout, encode, reference
from langchain_rwkv_state.store import DiskStateStore, LogEntry
from langchain_rwkv_state.store.rows import Holder, SessionRow, StateRow
from langchain_rwkv_state.store.tables import Changes

LAYOUT = StateLayout.of(7, n_layer=12, n_embd=768, head_size=64)
SMALL = StateLayout.of(7, n_layer=1, n_embd=64, head_size=64)
_BATCH = 500


def main() -> int:
    """Runs all parts."""
    made = common.parser("Measures the store.")
    made.add_argument("--kills", type=int, help="writers to kill (250; 8 with --quick)")
    made.add_argument("--sessions", type=int, help="sessions to list (100,000; 500 with --quick)")
    made.add_argument("--commits", type=int, help="commits a process (60; 3 with --quick)")
    arguments = made.parse_args()
    quick = arguments.quick
    settings = {
        "kills": arguments.kills or (8 if quick else 250),
        "sessions": arguments.sessions or (500 if quick else 100_000),
        "commits": arguments.commits or (3 if quick else 60),
        "mutations": 20 if quick else 1000,
        "processes": [1, 2 if quick else 8],
        "state_bytes": LAYOUT.nbytes,
    }
    torch.set_num_threads(1)
    report = common.Report("store", settings)
    for part in (commits, many_sessions, stored_bytes, kills, mutations):
        with _folder() as folder:
            part(report, folder)
    return report.finish(arguments)


@contextmanager
def _folder() -> Iterator[Path]:
    """Gives a directory on the disk that temporary files are on, and removes it."""
    with tempfile.TemporaryDirectory(prefix="rwkv-state-bench-") as name:
        yield Path(name)


# -- commits -------------------------------------------------------------------------------------


def commits(report: common.Report, folder: Path) -> None:
    """Commits a second, with one process and with many, beside diskcache's pickling `set`."""
    count = report.settings["commits"]
    found: dict[str, dict[str, float]] = {}
    context = multiprocessing.get_context("spawn")
    for processes in report.settings["processes"]:
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            list(pool.map(_warm_up, range(processes)))  # imports are not timed
            runs: dict[str, Callable[[int], object]] = {
                "store": partial(
                    _commit_all, pool, processes, folder / f"store-{processes}", count
                ),
                "pickle": partial(
                    _pickle_all, pool, processes, folder / f"pickle-{processes}", count
                ),
            }
            # By turns, and the best of three counts: a busy moment slows one of them.
            times = common.interleaved_seconds(runs, 3)
        rates = {name: processes * count / min(each) for name, each in times.items()}
        found[str(processes)] = rates
    report.results["commits_per_second"] = found
    common.print_table(
        f"commits a second, states of {LAYOUT.nbytes / 1e6:.1f} MB, flushed",
        ["processes", "store", "diskcache pickling, flushed"],
        [[key, f"{each['store']:.0f}", f"{each['pickle']:.0f}"] for key, each in found.items()],
    )


def _warm_up(_: int) -> int:
    torch.set_num_threads(1)
    time.sleep(0.5)  # so that each process takes one of these
    return os.getpid()


def _commit_all(
    pool: ProcessPoolExecutor, processes: int, path: Path, count: int, round_: int
) -> None:
    DiskStateStore(path).close()
    list(pool.map(partial(_commit_some, str(path), count, round_), range(processes)))


def _commit_some(path: str, count: int, round_: int, worker: int) -> None:
    """Commits turns to a session of its own."""
    tensors = _tensors(LAYOUT, worker)
    session = f"s{round_}-{worker}"
    with DiskStateStore(path) as store:
        head: str | None = None
        for number in range(count):
            derivation = Derivation("model").read([round_, worker, number])
            ref = store.stage(RWKVState(LAYOUT, tensors, derivation), parent=head)
            store.commit(session, ref, head)
            head = ref


PICKLE = {"sqlite_synchronous": 2, "eviction_policy": "none", "cull_limit": 0}
"""Settings with which diskcache flushes as the store does, and drops nothing."""


class FlushedDisk(diskcache.Disk):  # type: ignore[misc] # diskcache has no types
    """diskcache's own pickling disk, with files and new folders flushed as the store does."""

    def _write(self, full_path: str, iterator: Any, mode: str, encoding: Any = None) -> Any:
        """Writes a file, and flushes it and the folders that were made for it."""
        path = Path(full_path)
        missing = [each for each in path.parents if not each.exists()]
        written = super()._write(full_path, iterator, mode, encoding)
        for each in (path, *(folder.parent for folder in missing)):
            handle = os.open(each, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        return written


def _pickle_all(
    pool: ProcessPoolExecutor, processes: int, path: Path, count: int, round_: int
) -> None:
    diskcache.Cache(str(path), disk=FlushedDisk, **PICKLE).close()
    list(pool.map(partial(_pickle_some, str(path), count, round_), range(processes)))


def _pickle_some(path: str, count: int, round_: int, worker: int) -> None:
    """Sets the same tensors under two alternating keys: as many files stay as with the store."""
    tensors = _tensors(LAYOUT, worker)
    with diskcache.Cache(path, disk=FlushedDisk, **PICKLE) as cache:
        for number in range(count):
            cache.set((round_, worker, number % 2), tensors)


def _tensors(layout: StateLayout, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {spec.name: torch.randn(spec.shape, generator=generator) for spec in layout.specs}


# -- many sessions -------------------------------------------------------------------------------


def many_sessions(report: common.Report, folder: Path) -> None:
    """Times `head`, `sessions` and `prune` in a store of many sessions."""
    count, expired = report.settings["sessions"], 100
    clock = _Clock()
    with DiskStateStore(folder / "store", clock=clock) as store:
        fill = common.seconds(lambda: _fill(store, count, clock))
        names = [f"user {number:06d}" for number in range(0, count, max(1, count // 200))]
        heads = [common.seconds(partial(store.head, name)) for name in names]
        listing = common.median_seconds(lambda: store.sessions(), 3)
        prefixed = common.median_seconds(lambda: store.sessions("user 0001"), 3)
        prunes, controls = [], []
        for round_ in range(5):
            _commit_expiring(store, round_, expired)
            assert len(store.sessions()) == count + expired
            clock.seconds += 11
            controls.append(_unlink_seconds(folder / "control", expired))
            prunes.append(common.seconds(lambda: store.prune()))
            assert len(store.sessions()) == count
        prune, control = statistics.median(prunes), statistics.median(controls)
    found: dict[str, Any] = {
        "fill_seconds": fill,
        "head_ms": statistics.median(heads) * 1e3,
        "sessions_seconds": listing,
        "sessions_with_prefix_ms": prefixed * 1e3,
        "prune_of_100_ms": prune * 1e3,
        "prunes_ms": [each * 1e3 for each in prunes],
        "of_which_unlinking_100_files_ms": control * 1e3,
    }
    report.results["many_sessions"] = found
    report.add(common.Check("head", found["head_ms"], 1.0, "at most", "ms", len(heads)))
    report.add(common.Check("sessions", listing, 1.0, "at most", "s", 3))
    report.add(common.Check("prune of 100", found["prune_of_100_ms"], 50.0, "at most", "ms", 5))


def _commit_expiring(store: DiskStateStore, round_: int, count: int) -> None:
    for number in range(count):
        derivation = Derivation("expiring").read([round_, number])
        ref = store.stage(RWKVState(SMALL, _tensors(SMALL, number), derivation))
        store.commit(f"expiring {number}", ref, None, ttl=10)


def _unlink_seconds(folder: Path, count: int) -> float:
    """Times what no store can be faster than: deleting as many files of that size."""
    made = [folder / f"{number % 256:02x}" / str(number) for number in range(count)]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(bytes(SMALL.nbytes))
            file.flush()
            os.fsync(file.fileno())
    start = time.perf_counter()
    for path in made:
        path.unlink()
    return time.perf_counter() - start


class _Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.seconds = time.time()

    def __call__(self) -> float:
        return self.seconds


def _fill(store: DiskStateStore, count: int, clock: _Clock) -> None:
    """Writes sessions into the tables, hundreds a transaction; their states have no files."""
    day = 86400.0

    def work(first: int, changes: Changes) -> None:
        for number in range(first, min(first + _BATCH, count)):
            ref = reference(Derivation("model").read([number]), bytes(32))
            name, now = f"user {number:06d}", clock.seconds
            changes.add_state(StateRow(ref, f"{ref[-64:]}-{'0' * 16}", LAYOUT.nbytes, 1, None, now))
            changes.hold(ref, Holder.SESSION, name)
            changes.add_turn(name, LogEntry(ref, None, 1, now, seq=1))
            ttl = 30 * day + number % 1000
            session = SessionRow(name, ref, 1, 1, now, now, now + ttl, ttl, True, (ref,))
            changes.save_session(session, None)

    for first in range(0, count, _BATCH):
        store._write(partial(work, first))


# -- bytes ---------------------------------------------------------------------------------------


def stored_bytes(report: common.Report, folder: Path) -> None:
    """Compares what a session takes with the nominal size of its states."""
    turns = 5 if report.settings["commits"] < 10 else 120
    history = 1
    with DiskStateStore(folder / "store", history=history) as store:
        _commit_turns(store, turns)
        files = sum(each.stat().st_size for each in (folder / "store").glob("??/*"))
        total = store.stats().nbytes
    ratio = total / ((1 + history) * LAYOUT.nbytes)
    one = len(encode(RWKVState(LAYOUT, _tensors(LAYOUT, 0), Derivation("model"))))
    report.results["stored_bytes"] = {
        "turns": turns,
        "nominal": LAYOUT.nbytes,
        "file": one,
        "files": files,
        "files_and_rows": total,
        "ratio": ratio,
        "row_bytes_of_an_empty_store": _empty_bytes(folder),
    }
    report.add(
        common.Check("stored bytes of a session / nominal", ratio, 1.05, "at most", "", turns)
    )


def _empty_bytes(folder: Path) -> int:
    with DiskStateStore(folder / "empty") as store:
        return store.stats().nbytes


def _commit_turns(store: DiskStateStore, turns: int) -> None:
    tensors = _tensors(LAYOUT, 0)
    head: str | None = None
    for number in range(turns):
        state = RWKVState(LAYOUT, tensors, Derivation("model").read(range(number + 1)))
        ref = store.stage(state, parent=head)
        store.commit("s", ref, head)
        head = ref


# -- kills and changes ---------------------------------------------------------------------------


def kills(report: common.Report, folder: Path) -> None:
    """Kills writers and says what was lost."""
    from tests.helpers.kill_campaign import campaign

    count = report.settings["kills"]
    outcome = campaign(folder / "campaign", kills=count, writers=8, n_embd=256)
    report.results["kills"] = {
        "kills": outcome.kills,
        "acknowledged_turns": outcome.acknowledged,
        "lost": outcome.lost,
        "unreadable": outcome.unreadable,
        "orphans_swept": outcome.orphans,
        "problems_left": outcome.left,
    }
    for name, found in (
        ("acknowledged turns lost", outcome.lost),
        ("heads or kept states unreadable", outcome.unreadable),
        ("problems after the sweep", outcome.left),
    ):
        report.add(common.Check(name, len(found), 0, "at most", "", count))


def mutations(report: common.Report, folder: Path) -> None:
    """Changes rows and files and counts what went unnoticed; a session that came back new fails."""
    from tests.helpers import mutations as campaign

    count = report.settings["mutations"]
    changed_rows = campaign.mutate_rows(folder / "rows", count)
    changed_files = campaign.mutate_files(folder / "files", count)
    report.results["mutations"] = {"rows": changed_rows, "files": changed_files}
    for name, found in (("rows", changed_rows), ("files", changed_files)):
        unnoticed = count - found["noticed"] + found["run"] + found["new_sessions"]
        report.add(
            common.Check(f"changed {name} that went unnoticed", unnoticed, 0, "at most", "", count)
        )


if __name__ == "__main__":
    sys.exit(main())
