"""The store of this checkout beside that of another one, by turns: wall and processor time.

Each checkout has workers of its own, which import its package and its `benchmarks.store`; this
process tells them in turn what to do, since a machine is never twice as busy. Medians of the turns
are compared.

    python -m benchmarks.store_beside OTHER_CHECKOUT [--sessions 20000] [--turns 9] [--only commits]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
_SIZES = {"135 kB": 256, "2.4 MB": 768}
_LAYERS = {256: 2, 768: 12}


def main() -> int:
    """Runs all parts and prints the figures, and what ours are of the other's."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("other", type=Path, help="the other checkout")
    made.add_argument("--sessions", type=int, default=20_000, help="sessions to list (20,000)")
    made.add_argument("--turns", type=int, default=9, help="how often each is timed (9)")
    made.add_argument("--commits", type=int, default=40, help="commits a turn (40)")
    made.add_argument("--only", choices=("commits", "many"), help="only this part")
    arguments = made.parse_args()
    roots = {"other": arguments.other.resolve(), "ours": HERE}
    load = os.getloadavg()[0]
    print(f"load {load:.1f}, {os.cpu_count()} processors; ms each, ours / other")
    if arguments.only != "many":
        for size, n_embd in _SIZES.items():
            for processes in (1, 8):
                _commits(roots, arguments, size, n_embd, processes)
    if arguments.only != "commits":
        _many(roots, arguments)
    return 0


def _commits(
    roots: dict[str, Path], arguments: Any, size: str, n_embd: int, processes: int
) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="rwkv-beside-") as folder,
        _workers(roots, processes) as workers,
    ):
        for name, crew in workers.items():
            _tell(crew[:1], "open", folder=f"{folder}/{name}", n_embd=n_embd)
            _tell(crew, "open", folder=f"{folder}/{name}", n_embd=n_embd)
        count = max(5, arguments.commits // processes)
        found = _by_turns(
            arguments.turns, workers, lambda crew, turn: _tell(crew, "commits", n=count, turn=turn)
        )
    for what in ("commit cpu", "cpu", "wall"):
        _show(f"{what} a commit, {size}, {processes} processes", found, what, per=count)


def _many(roots: dict[str, Path], arguments: Any) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="rwkv-beside-") as folder,
        _workers(roots, 1) as workers,
    ):
        for name, crew in workers.items():
            _tell(crew, "fill", folder=f"{folder}/{name}", n=arguments.sessions)
        for what in ("head", "session", "sessions", "sessions of a prefix", "prune of 100"):
            found = _by_turns(
                arguments.turns,
                workers,
                lambda crew, turn, what=what: _tell(crew, what, turn=turn, n=arguments.sessions),  # type: ignore[misc]
            )
            for each in ("cpu", "wall"):
                _show(f"{each} of {what}, {arguments.sessions} sessions", found, each)


def _by_turns(
    turns: int,
    workers: dict[str, list[subprocess.Popen[str]]],
    run: Callable[[list[subprocess.Popen[str]], int], list[dict[str, float]]],
) -> dict[str, list[dict[str, float]]]:
    """Returns what each turn took, its processes added up; the first turn only warms up."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for turn in range(turns + 1):
        for name, crew in workers.items():
            start = time.perf_counter()
            told = run(crew, turn)
            wall = time.perf_counter() - start
            mean = {key: statistics.mean(each[key] for each in told) for key in told[0]}
            if len(crew) > 1:
                mean["wall"] = wall
            if turn:
                found[name].append(mean)
    return found


def _show(
    words: str, found: dict[str, list[dict[str, float]]], what: str, *, per: float = 1
) -> None:
    ours, other = (
        statistics.median(each[what] for each in found[name]) * 1e3 / per
        for name in ("ours", "other")
    )
    print(f"{words:44} {ours:9.4f} {other:9.4f}   {ours / other:.2f}", flush=True)


# -- workers -------------------------------------------------------------------------------------


@contextmanager
def _workers(
    roots: dict[str, Path], processes: int
) -> Iterator[dict[str, list[subprocess.Popen[str]]]]:
    made: dict[str, list[subprocess.Popen[str]]] = {}
    try:
        for name, root in roots.items():
            made[name] = [
                subprocess.Popen(
                    [sys.executable, "-P", __file__, "--worker", str(number)],
                    cwd=root,
                    env={**os.environ, "PYTHONPATH": str(root)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for number in range(processes)
            ]
        yield made
    finally:
        for crew in made.values():
            for each in crew:
                assert each.stdin is not None
                each.stdin.close()
                each.wait()


def _tell(crew: list[subprocess.Popen[str]], what: str, **values: Any) -> list[dict[str, float]]:
    """Has all of a crew do something at the same time; returns what each took."""
    for each in crew:
        assert each.stdin is not None
        each.stdin.write(json.dumps({"what": what, **values}) + "\n")
        each.stdin.flush()
    lines = []
    for each in crew:
        assert each.stdout is not None
        lines.append(each.stdout.readline())
    return [json.loads(line) for line in lines]


class _Worker:
    """Does what it is told with the checkout that it imports.

    Args:
        number: Which one of its crew it is.
    """

    def __init__(self, number: int) -> None:
        import torch

        from benchmarks import store
        from langchain_rwkv_state.store import DiskStateStore

        torch.set_num_threads(1)
        self._number = number
        self._bench = store
        self._open = DiskStateStore
        self._head: str | None = None
        self._made = 0

    def open(self, folder: str, n_embd: int) -> dict[str, float]:
        """Opens a store, which the first of a crew makes."""
        from langchain_rwkv_state.state import StateLayout

        self._layout = StateLayout.of(7, n_layer=_LAYERS[n_embd], n_embd=n_embd, head_size=64)
        self._tensors = self._bench._tensors(self._layout, self._number)
        self._store = self._open(folder)
        return {}

    def fill(self, folder: str, n: int) -> dict[str, float]:
        """Makes a store of many sessions."""
        self._clock = self._bench._Clock()
        self._store = self._open(folder, clock=self._clock)
        self._bench._fill(self._store, n, self._clock)
        return {}

    def commits(self, n: int, turn: int) -> dict[str, float]:
        """Commits turns to a session of its own."""
        from langchain_rwkv_state.state import Derivation, RWKVState

        store, session, inside = self._store, f"session {self._number}", 0.0
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(n):
            self._made += 1
            derivation = Derivation("model").read([turn, self._number, self._made])
            state = RWKVState(self._layout, self._tensors, derivation)
            ref = store.stage(state, parent=self._head)
            before = time.process_time()
            store.commit(session, ref, self._head)
            inside += time.process_time() - before
            self._head = ref
        cpu, wall = time.process_time() - cpu, time.perf_counter() - start
        return {"wall": wall, "cpu": cpu, "commit cpu": inside}

    def head(self, n: int, turn: int) -> dict[str, float]:  # noqa: ARG002
        """Asks 2,000 times for a head."""
        names = [f"user {number % n:06d}" for number in range(0, 2000 * 7, 7)]
        return _timed(lambda: [self._store.head(name) for name in names], 2000)

    def session(self, n: int, turn: int) -> dict[str, float]:  # noqa: ARG002
        """Asks 2,000 times for a session."""
        names = [f"user {number % n:06d}" for number in range(0, 2000 * 7, 7)]
        return _timed(lambda: [self._store.session(name) for name in names], 2000)

    def sessions(self, n: int, turn: int) -> dict[str, float]:  # noqa: ARG002
        """Lists all sessions."""
        return _timed(lambda: len(self._store.sessions()), 1)

    def sessions_of_a_prefix(self, n: int, turn: int) -> dict[str, float]:  # noqa: ARG002
        """Lists a hundred sessions, or so many as begin like that, ten times."""
        return _timed(lambda: [self._store.sessions("user 0001") for _ in range(10)], 10)

    def prune_of_100(self, n: int, turn: int) -> dict[str, float]:  # noqa: ARG002
        """Lets a hundred sessions run out, and times the prune."""
        self._bench._commit_expiring(self._store, turn, 100)
        self._clock.seconds += 11
        return _timed(self._store.prune, 1)


def _timed(run: Callable[[], object], times: int) -> dict[str, float]:
    start, cpu = time.perf_counter(), time.process_time()
    run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - start
    return {"wall": wall / times, "cpu": cpu / times}


def _work(number: int) -> None:
    worker = _Worker(number)
    for line in sys.stdin:
        values = json.loads(line)
        print(
            json.dumps(getattr(worker, values.pop("what").replace(" ", "_"))(**values)), flush=True
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        _work(int(sys.argv[2]))
    else:
        sys.exit(main())
