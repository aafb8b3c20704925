"""Kills writers in the middle of what they do, and checks what must be true afterwards.

Each writer commits turns, and now and then rewinds, deletes, keeps, releases and prunes; after each
verb has returned it says so in a file of its own, and a parent kills one writer after another
(SIGKILL) and starts the next. What was said must hold. Writers share no sessions: otherwise nobody
could say which turn was the last.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from langchain_rwkv_state.state import RWKVState, StateLayout
from langchain_rwkv_state.store import DiskStateStore
from tests.helpers.states import random_state

ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    """What a campaign found.

    Attributes:
        kills: How many writers were killed.
        acknowledged: Turns whose commit had returned.
        lost: Sentences about acknowledged turns that are not there.
        unreadable: Sentences about heads and kept states that cannot be read.
        orphans: Files that no row named, before they were swept.
        left: Problems that remained after the sweep.
    """

    kills: int = 0
    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    orphans: int = 0
    left: list[str] = field(default_factory=list)


def campaign(
    path: Path, *, kills: int, writers: int = 8, n_embd: int = 64, seed: int = 0
) -> Outcome:
    """Runs writers and kills them, one after another.

    Args:
        path: An empty directory.
        kills: How many writers to kill.
        writers: How many run at a time.
        n_embd: Width of the states; more bytes take longer to write.
        seed: Decides when each is killed.
    """
    (path / "notes").mkdir(parents=True)
    DiskStateStore(path / "store").close()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.helpers.kill_campaign", str(path)]
    numbers = [str(number) for number in (kills, writers, n_embd, seed)]
    subprocess.run([*command, *numbers], env=environment, cwd=ROOT, check=True)
    outcome = Outcome(kills=kills)
    _judge(path, outcome)
    return outcome


def slaughter(path: Path, kills: int, writers: int, n_embd: int, seed: int) -> None:
    """Forks writers and kills them; the parent has PyTorch loaded and never opens the store."""
    layout = StateLayout.of(7, n_layer=2, n_embd=n_embd, head_size=64)
    dice = random.Random(seed)
    running: dict[int, int] = {}
    started = 0
    try:
        for _ in range(kills):
            while len(running) < writers:
                running[started] = _forked(path, started, layout)
                started += 1
            ready = _ready(path, running)
            time.sleep(dice.uniform(0.0, 0.08))
            victim = running.pop(dice.choice(ready))
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
    finally:
        for victim in running.values():
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)


def _forked(path: Path, number: int, layout: StateLayout) -> int:
    child = os.fork()
    if child:
        return child
    try:
        write(path, number, layout)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def _ready(path: Path, running: dict[int, int]) -> list[int]:
    """Waits until half of the writers have done something; returns those."""
    deadline = time.monotonic() + 240
    while True:
        notes = {number: path / "notes" / str(number) for number in running}
        ready = [number for number, note in notes.items() if note.exists() and note.stat().st_size]
        if len(ready) >= len(running) / 2:
            return ready
        if time.monotonic() > deadline:
            raise TimeoutError(f"Only {len(ready)} of {len(running)} writers came up.")
        time.sleep(0.01)


def write(path: Path, number: int, layout: StateLayout) -> None:
    """Writes until it is killed: a session of its own, kept states, deletes and prunes."""
    dice = random.Random(number)
    note = (path / "notes" / str(number)).open("a")

    def say(**what: object) -> None:
        note.write(json.dumps(what) + "\n")
        note.flush()

    with DiskStateStore(path / "store") as store:
        step = 0
        while True:
            step += 1
            name = f"s{number}-{dice.randrange(3)}"
            owner = f"thread-{number}"
            match dice.randrange(12):
                case 0:
                    say(doing="delete", session=name)
                    store.delete_session(name)
                    say(done="delete", session=name)
                case 1:
                    store.put(_state(layout, [number, step, 1]), ttl=0.05)
                    store.prune()
                case 2:
                    ref = store.stage(_state(layout, [number, step, 2]))
                    store.keep(ref, owner)
                    say(done="keep", ref=ref)
                case 3:
                    say(doing="release")
                    store.release(owner)
                case _:
                    head = store.head(name)
                    ref = store.stage(_state(layout, [number, step]), parent=head)
                    say(doing="commit", session=name, ref=ref)
                    store.commit(name, ref, head)
                    say(done="commit", session=name, ref=ref)


def _state(layout: StateLayout, tokens: list[int]) -> RWKVState:
    return random_state(tokens, layout=layout)


def _judge(path: Path, outcome: Outcome) -> None:
    """Compares what the writers said with what is there."""
    with DiskStateStore(path / "store") as store:
        expected: dict[str, set[str | None]] = {}
        kept: dict[int, set[str]] = {}
        for note in sorted((path / "notes").iterdir(), key=lambda each: int(each.name)):
            _read_note(note, expected, kept, outcome)
        for session, heads in expected.items():
            head = store.head(session)
            if head not in heads:
                outcome.lost.append(f"{session}: {head} is none of {sorted(map(str, heads))}")
            if head is not None:
                _read(store, head, f"head of {session}", outcome)
        for refs in kept.values():
            for ref in refs:
                _read(store, ref, "kept", outcome)
        for file in (path / "store").glob("??/*.safetensors"):
            os.utime(file, (time.time() - 120, time.time() - 120))
        outcome.orphans = sum("belongs to no state" in each for each in store.check().problems)
        store.check(fix=True)
        outcome.left = list(store.check().problems)


def _read_note(
    note: Path, expected: dict[str, set[str | None]], kept: dict[int, set[str]], outcome: Outcome
) -> None:
    """Works out what may be true after a writer's last words: two things, if it was amid one."""
    number = int(note.name)
    kept[number] = set()
    for line in note.read_text().splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue  # killed in the middle of a word
        match said:
            case {"doing": "commit", "session": session, "ref": ref}:
                expected.setdefault(session, {None}).add(ref)
            case {"done": "commit", "session": session, "ref": ref}:
                outcome.acknowledged += 1
                expected[session] = {ref}
            case {"doing": "delete", "session": session}:
                expected.setdefault(session, {None}).add(None)
            case {"done": "delete", "session": session}:
                expected[session] = {None}
            case {"done": "keep", "ref": ref}:
                kept[number].add(ref)
            case {"doing": "release"}:
                kept[number] = set()


def _read(store: DiskStateStore, ref: str, what: str, outcome: Outcome) -> None:
    try:
        store.get(ref)
    except Exception as error:
        outcome.unreadable.append(f"{what}: {error}")


def main() -> None:
    """Runs and kills writers; arguments: path, kills, writers, width of the states, seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    for name in ("kills", "writers", "n_embd", "seed"):
        parser.add_argument(name, type=int)
    slaughter(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
