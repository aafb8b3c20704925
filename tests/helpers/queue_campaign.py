"""Lets processes and threads talk in one session at once, and says what came of it.

``python -m tests.helpers.queue_campaign --processes 2 --turns 200`` prints how many turns are in
the session, how many began before one that had come earlier, and how long they waited. The model is
one without weights, so that the waiting is the store's and not a model's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from langchain_core.messages import HumanMessage

from langchain_rwkv_state import DiskStateStore
from langchain_rwkv_state.conversation.session import RWKVSession
from tests.helpers.fake_chat import FakeChat

ROOT = Path(__file__).parents[2]
SESSION = "bob"


@dataclass(frozen=True)
class Result:
    """What became of all turns.

    Attributes:
        turns: How many were taken.
        committed: How many the session counts.
        overtaken: How many began although one that came earlier was still waiting.
        waits: Seconds from each turn's coming to its beginning.
        seconds: From the first turn's coming to the last one's end.
    """

    turns: int
    committed: int
    overtaken: int
    waits: list[float]
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.committed} of {self.turns} turns in the session, {self.overtaken} out of "
            f"order, in {self.seconds:.1f} s; waits: median {1e3 * median(self.waits):.1f} ms, "
            f"longest {1e3 * max(self.waits):.0f} ms"
        )


class _Anything(dict[Any, str]):
    """What states stand for that other processes made."""

    def __missing__(self, key: Any) -> str:
        return ""


def talk(directory: str, turns: int, threads: int, think_seconds: float) -> list[list[float]]:
    """Takes one process's turns, and returns when each came, began and ended."""
    times: list[list[float]] = []
    with DiskStateStore(directory) as store:

        def one(number: int) -> None:
            began: list[float] = []

            def think() -> None:
                began.append(time.monotonic())
                time.sleep(think_seconds)

            chat = FakeChat(store=store, before_answer=think, answer=lambda text: "yes")
            chat.texts = _Anything({None: ""})
            session = RWKVSession(chat, store, SESSION)
            for turn in range(turns):
                came = time.monotonic()
                session.invoke([HumanMessage(f"{number}, {turn}")])
                times.append([came, began[-1], time.monotonic()])

        pool = [threading.Thread(target=one, args=(number,)) for number in range(threads)]
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join()
    return times


def campaign(
    directory: Path, *, processes: int, turns: int, threads: int = 1, think_seconds: float = 0.0
) -> Result:
    """Lets processes talk in one session at once.

    Args:
        directory: A new store.
        processes: How many processes.
        turns: Turns of each thread.
        threads: Threads of each process.
        think_seconds: How long each answer takes.
    """
    DiskStateStore(directory).close()
    command = [sys.executable, "-m", "tests.helpers.queue_campaign", "--directory", str(directory)]
    command += ["--turns", str(turns), "--threads", str(threads), "--think", str(think_seconds)]
    workers = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    times: list[list[float]] = []
    for worker in workers:
        out, _ = worker.communicate(timeout=600)
        assert worker.returncode == 0
        times += json.loads(out)
    with DiskStateStore(directory) as store:
        info = store.session(SESSION)
        assert info is not None
        assert store.queue(SESSION) == []
        assert store.check().problems == ()
    times.sort()
    overtaken = sum(
        any(earlier_began > began for _, earlier_began, _ in times[:at])
        for at, (_, began, _) in enumerate(times)
    )
    return Result(
        turns=len(times),
        committed=info.n_turns,
        overtaken=overtaken,
        waits=[began - came for came, began, _ in times],
        seconds=max(end for _, _, end in times) - times[0][0],
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--think", type=float, default=0.0)
    given = parser.parse_args()
    if given.directory is not None:
        json.dump(talk(given.directory, given.turns, given.threads, given.think), sys.stdout)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = campaign(
            Path(folder) / "states",
            processes=given.processes,
            turns=given.turns,
            threads=given.threads,
            think_seconds=given.think,
        )
    sys.stdout.write(f"{result}\n")


if __name__ == "__main__":
    main()
