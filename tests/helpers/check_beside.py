"""Runs `check()` in a loop beside processes that write to a store that is sound.

Each writer commits, rewinds, forks, deletes, keeps, releases and prunes in a store that all share.
Whatever `check` reports is a false alarm. One needs a file that goes between two looks, so it takes
many rounds.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from langchain_rwkv_state.errors import SessionConflict, StateNotFound
from langchain_rwkv_state.store import DiskStateStore
from tests.helpers.states import random_state


@dataclass
class Outcome:
    """What was seen.

    Attributes:
        checks: How many checks were made.
        alarms: What they said, a text each.
    """

    checks: int = 0
    alarms: list[str] = field(default_factory=list)


def watch(path: Path, checks: int, writers: int = 4) -> Outcome:
    """Checks a store again and again beside writing processes."""
    DiskStateStore(path).close()
    children = [_forked(path, number) for number in range(writers)]
    outcome = Outcome()
    try:
        with DiskStateStore(path) as store:
            deadline = time.monotonic() + 60
            while len(store.sessions()) < writers and time.monotonic() < deadline:
                time.sleep(0.01)
            while outcome.checks < checks:
                outcome.alarms += store.check().problems
                outcome.checks += 1
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return outcome


def _forked(path: Path, number: int) -> int:
    child = os.fork()
    if not child:
        try:
            _write(path, number)
        finally:
            os._exit(1)
    return child


def _write(path: Path, number: int) -> None:
    dice = random.Random(number)
    with DiskStateStore(path) as store:
        step = 0
        while True:
            step += 1
            name = f"s{dice.randrange(6)}"
            ref = store.stage(random_state([number, step]), parent=store.head(name))
            try:
                match dice.randrange(8):
                    case 0:
                        store.delete_session(name)
                    case 1:
                        store.rewind(name)
                    case 2:
                        store.fork(name, f"fork {number} {step % 3}")
                    case 3:
                        store.delete_session(f"fork {number} {step % 3}")
                        store.put(random_state([number, step, 1]), ttl=0.01)
                        store.prune()
                    case 4:
                        store.keep(ref, f"thread {number}")
                        store.release(f"thread {number}")
                    case _:
                        store.commit(name, ref, store.head(name))
            except (SessionConflict, StateNotFound):
                continue


def main() -> None:
    """Watches a store; the argument is the number of checks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checks", type=int)
    parser.add_argument("--writers", type=int, default=4)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        outcome = watch(folder / "store", asked.checks, asked.writers)
    finally:
        shutil.rmtree(folder)
    sys.stdout.write(f"{outcome.checks} checks, {len(outcome.alarms)} false alarms\n")
    for line in outcome.alarms[:5]:
        sys.stdout.write(f"  {line:.300}\n")
    sys.exit(bool(outcome.alarms))


if __name__ == "__main__":
    main()
