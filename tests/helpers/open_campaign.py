"""Kills processes while they make or open a store, and checks that others can open it after.

A child is forked for each kill, so that one costs milliseconds and no import. Kills fall at random
moments of the whole of an opening, which is timed first, and at each step at which the directory
changes, by a hook on what a process does to it. Stores that are opened for the second time are
killed as well, since they are written to.
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
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from langchain_rwkv_state.store import DiskStateStore
from tests.helpers.states import random_state

_STEPS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "sqlite3.connect", "fcntl.flock"})


@dataclass
class Outcome:
    """What a campaign found.

    Attributes:
        kills: How many openings were killed before their end.
        finished: How many ended before they could be killed.
        states: What lay in the directories afterwards, and how often.
        unopenable: Sentences on stores that could not be opened and used afterwards.
    """

    kills: int = 0
    finished: int = 0
    states: Counter[str] = field(default_factory=Counter)
    unopenable: list[str] = field(default_factory=list)


def campaign(path: Path, kills: int, seed: int = 0) -> Outcome:
    """Kills openings of new stores and of old ones until `kills` were killed."""
    path.mkdir(parents=True, exist_ok=True)
    dice, outcome = random.Random(seed), Outcome()
    old = path / "old"
    with DiskStateStore(old) as store:
        store.commit("bob", store.stage(random_state([1])), None)
    whole = _seconds(path / "timed")
    number = 0
    while outcome.kills < kills:
        number += 1
        root = path / str(number)
        is_old = number % 4 == 0
        if is_old:
            shutil.copytree(old, root)
        if number % 3:
            killed = _killed(root, after=dice.uniform(0.0, 1.2 * whole))
        else:
            killed = _killed(root, at_step=dice.randrange(1, 40))
        outcome.kills += killed
        outcome.finished += not killed
        _judge(root, outcome, is_old)
        shutil.rmtree(root, ignore_errors=True)
    return outcome


def _seconds(root: Path) -> float:
    """Returns how long one opening takes."""
    start = time.perf_counter()
    DiskStateStore(root).close()
    return time.perf_counter() - start


def _killed(root: Path, *, after: float | None = None, at_step: int | None = None) -> bool:
    """Forks a process that opens a store and leaves it open; says whether it was killed."""
    child = os.fork()
    if not child:
        try:
            if at_step is not None:
                _die_at(at_step)
            DiskStateStore(root)
        finally:
            os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _die_at(step: int) -> None:
    """Makes this process kill itself just before the step `step` of those that touch a disk."""
    left = step

    def hook(event: str, _: object) -> None:
        nonlocal left
        if event in _STEPS:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _judge(root: Path, outcome: Outcome, is_old: bool) -> None:
    names = sorted(each.name for each in root.iterdir()) if root.exists() else []
    outcome.states[" ".join(name for name in names if len(name) > 2) or "nothing"] += 1
    try:
        with DiskStateStore(root) as store:
            assert not is_old or store.head("bob") is not None, "bob is gone"
            store.commit("al", store.stage(random_state([2])), None)
            assert store.check().sound, store.check().problems
    except Exception as error:
        outcome.unopenable.append(f"{names}: {type(error).__name__}: {error}")


def main() -> None:
    """Runs a campaign; the argument is the number of kills."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        outcome = campaign(Path(folder), asked.kills, asked.seed)
        sys.stdout.write(
            f"{outcome.kills} kills while opening ({outcome.finished} ended before), "
            f"{len(outcome.unopenable)} unopenable, {time.monotonic() - start:.0f} s\n"
        )
        for line in outcome.unopenable[:5]:
            sys.stdout.write(f"  {line}\n")
        for state, count in outcome.states.most_common():
            sys.stdout.write(f"  {count:5} {state}\n")
    sys.exit(bool(outcome.unopenable))


if __name__ == "__main__":
    main()
