"""Kills Redis and its clients in the middle of what they do, and checks what must be true after.

Each writer has sessions of its own and shares others with all; each says what it is about to do and
what was acknowledged in a file of its own. Whatever was acknowledged must be in the sessions' logs,
once and in its order; what was under way may be there or not. A program of its own forks the
writers: it has PyTorch loaded and no connection open.

    python -m tests.helpers.redis_campaign --servers 100 --clients 250 [--appendfsync everysec]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from langchain_rwkv_state.errors import SessionConflict, StoreError
from langchain_rwkv_state.state import RWKVState, StateLayout
from langchain_rwkv_state.store import StateStore
from langchain_rwkv_state.store.tables import LOG_ENTRIES
from tests.helpers.redis_notes import SHARED, Outcome, SharedNotes, WriterNotes
from tests.helpers.redis_server import RedisServer
from tests.helpers.states import random_state

ROOT = Path(__file__).parents[2]
_PATIENCE_SECONDS = 120.0
_OWN = 3
T = TypeVar("T")


@dataclass
class Plan:
    """What a campaign does.

    Attributes:
        servers: How often Redis is killed.
        clients: How many writers are killed.
        writers: How many run at a time.
        appendfsync: Redis' setting.
        n_embd: Width of the states; more bytes take longer to write.
        files: Whether every second state is a file beside Redis.
        seed: Decides when each is killed.
    """

    servers: int
    clients: int
    writers: int = 4
    appendfsync: str = "always"
    n_embd: int = 128
    files: bool = False
    seed: int = 0


def campaign(plan: Plan) -> Outcome:
    """Runs writers over a private Redis, kills it and them, and judges what is there then."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rwkv-redis-") as name:
        folder = Path(name)
        for inner in ("notes", "files", "redis"):
            (folder / inner).mkdir()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.helpers.redis_campaign", "--in", name]
        options = [word for key, value in asdict(plan).items() for word in (f"--{key}", str(value))]
        subprocess.run([*command, *options], env=environment, cwd=ROOT, check=True)
        outcome = Outcome()
        server = _server(folder, plan)
        server.start()
        try:
            _judge(folder, plan, outcome)
        finally:
            server.kill()
    outcome.seconds = time.monotonic() - start
    return outcome


def _server(folder: Path, plan: Plan) -> RedisServer:
    return RedisServer(folder / "redis", appendfsync=plan.appendfsync)


def _store(folder: Path, plan: Plan) -> StateStore:
    from langchain_rwkv_state.store import RedisStateStore

    return RedisStateStore(
        RedisServer(folder / "redis").url,
        persistence="always" if plan.appendfsync == "always" else "everysec",
        timeout_seconds=30,
        blobs=folder / "files" if plan.files else None,
        large_bytes=_layout(plan.n_embd).nbytes,
    )


def _layout(n_embd: int) -> StateLayout:
    return StateLayout.of(7, n_layer=2, n_embd=n_embd, head_size=64)


# -- who kills -----------------------------------------------------------------------------------


def slaughter(folder: Path, plan: Plan) -> None:
    """Forks writers, and kills them and the server in a random order."""
    dice = random.Random(plan.seed)
    victims = ["server"] * plan.servers + ["client"] * plan.clients
    dice.shuffle(victims)
    server = _server(folder, plan)
    server.start()
    running: dict[int, int] = {}
    started = 0
    try:
        for victim in victims:
            while len(running) < plan.writers:
                running[started] = _forked(folder, plan, started)
                started += 1
            ready = _ready(folder, running)
            time.sleep(dice.uniform(0.0, 0.08))
            if victim == "server":
                server.kill()
                server.start()
                _heard(folder, running)
            else:
                number = dice.choice(ready)
                os.kill(running[number], signal.SIGKILL)
                os.waitpid(running.pop(number), 0)
    finally:
        for process in running.values():
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        server.kill()


def _forked(folder: Path, plan: Plan, number: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        Writer(folder, plan, number).run()
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def _sizes(folder: Path, running: dict[int, int]) -> dict[int, int]:
    notes = {number: folder / "notes" / str(number) for number in running}
    return {number: note.stat().st_size if note.exists() else 0 for number, note in notes.items()}


def _ready(folder: Path, running: dict[int, int]) -> list[int]:
    """Waits until half of the writers have done something; returns those."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        ready = [number for number, size in _sizes(folder, running).items() if size]
        if len(ready) >= len(running) / 2:
            return ready
        if time.monotonic() > deadline:
            raise TimeoutError(f"Only {len(ready)} of {len(running)} writers came up.")
        time.sleep(0.005)


def _heard(folder: Path, running: dict[int, int]) -> None:
    """Waits until half of the writers have said something more: they are connected again."""
    before = _sizes(folder, running)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        now = _sizes(folder, running)
        if sum(now[number] > before[number] for number in running) >= len(running) / 2:
            return
        if time.monotonic() > deadline:
            raise TimeoutError("The writers did not come back after a kill of the server.")
        time.sleep(0.005)


# -- who writes ----------------------------------------------------------------------------------


class Writer:
    """Commits, deletes, keeps and releases until it is killed; it waits for a server that is gone.

    Args:
        folder: The campaign's.
        plan: The campaign's.
        number: Its own.
    """

    def __init__(self, folder: Path, plan: Plan, number: int) -> None:
        self._number = number
        self._layouts = [_layout(plan.n_embd // each) for each in (1, 2 if plan.files else 1)]
        self._dice = random.Random(plan.seed * 100_000 + number)
        self._note = (folder / "notes" / str(number)).open("a")
        self._logs: dict[str, list[str]] = {}
        self._shared = 0
        self._step = 0
        self._store = self._patient(lambda: _store(folder, plan))

    def _say(self, **what: object) -> None:
        self._note.write(json.dumps(what) + "\n")
        self._note.flush()

    def _patient(self, verb: Callable[[], T]) -> T:
        """Calls a verb that may be called twice until the server answers."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return verb()
            except StoreError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _state(self, kind: int) -> RWKVState:
        layout = self._layouts[self._step % 2]
        return random_state([self._number, self._step, kind], layout=layout)

    def run(self) -> None:
        """Goes on for ever."""
        owner = f"thread-{self._number}"
        while True:
            self._step += 1
            name = f"s{self._number}-{self._dice.randrange(_OWN)}"
            full = len(self._logs.get(name, ())) >= LOG_ENTRIES - 1
            match 0 if full else self._dice.randrange(16):
                case 0:
                    self._say(doing="delete", session=name)
                    self._patient(lambda name=name: self._store.delete_session(name))  # type: ignore[misc]
                    self._logs[name] = []
                    self._say(done="delete", session=name)
                case 1:
                    self._patient(lambda: self._store.put(self._state(1), ttl=0.05))
                    self._patient(self._store.prune)
                case 2:
                    ref = self._store.stage(self._state(2))
                    self._patient(lambda ref=ref: self._store.keep(ref, owner))  # type: ignore[misc]
                    self._say(done="keep", ref=ref)
                case 3:
                    self._say(doing="release")
                    self._patient(lambda: self._store.release(owner))
                case 4 | 5 | 6 | 7:
                    self._commit_shared()
                case _:
                    self._commit(name)

    def _commit(self, name: str) -> None:
        """Commits a turn to a session that nobody else writes."""
        head = self._patient(lambda: self._store.head(name))
        mine = self._logs.setdefault(name, [])
        if head != (mine[-1] if mine else None):
            self._look(name)
            return
        ref = self._store.stage(self._state(0), parent=head)
        self._say(doing="commit", session=name, ref=ref)
        try:
            self._store.commit(name, ref, head)
        except SessionConflict as error:
            self._say(conflict=f"{name}: {error}")
            self._look(name)
        except StoreError:
            self._look(name)
        else:
            mine.append(ref)
            self._say(done="commit", session=name, ref=ref)

    def _look(self, name: str) -> None:
        """Says what a session's log is, after an error or where its head is another one."""
        found = self._patient(lambda: self._store.log(name))
        self._logs[name] = [entry.ref for entry in reversed(found)]
        self._say(seen=name, refs=self._logs[name])

    def _commit_shared(self) -> None:
        """Commits a turn to the session that all writers write, unless another is faster."""
        name = f"{SHARED}{self._shared}"
        info = self._patient(lambda: self._store.session(name))
        if info is not None and info.n_turns >= LOG_ENTRIES // 2:
            self._shared += 1
            return
        head = None if info is None else info.head
        ref = self._store.stage(self._state(0), parent=head)
        self._say(doing="commit", session=name, ref=ref)
        try:
            self._store.commit(name, ref, head)
        except SessionConflict:
            self._say(refused=ref, session=name)
        except StoreError:
            return  # done or not: the log says it
        else:
            self._say(done="commit", session=name, ref=ref)


def _judge(folder: Path, plan: Plan, outcome: Outcome) -> None:
    """Compares what the writers said with what is there."""
    with _store(folder, plan) as store:
        shared = SharedNotes()
        for note in sorted((folder / "notes").iterdir(), key=lambda each: int(each.name)):
            own = WriterNotes(outcome)
            for line in _lines(note):
                if not shared.took(line):
                    own.take(line)
            own.judge(store)
        shared.judge(store, outcome)
        for file in (folder / "files").glob("*/??/*.safetensors"):
            os.utime(file, (time.time() - 7200, time.time() - 7200))
        outcome.orphans = sum("belongs to no" in each for each in store.check().problems)
        store.check(fix=True)
        outcome.left = list(store.check().problems)


def _lines(note: Path) -> Iterator[dict[str, Any]]:
    for line in note.read_text().splitlines():
        with suppress(ValueError):  # killed in the middle of a word
            yield json.loads(line)


def main() -> None:
    """Runs a campaign and prints what it found; with ``--in``, only the killing of one."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in Plan.__annotations__.items():
        default = getattr(Plan, name, None)
        if kind == "bool":
            parser.add_argument(f"--{name}", type=lambda text: text == "True", default=default)
        else:
            made = {"int": int, "str": str}[kind]
            parser.add_argument(f"--{name}", type=made, default=default, required=default is None)
    parser.add_argument("--in", dest="folder", type=Path)
    given = vars(parser.parse_args())
    folder = given.pop("folder")
    if folder is not None:
        slaughter(folder, Plan(**given))
    else:
        sys.stdout.write(json.dumps(asdict(campaign(Plan(**given))), indent=1) + "\n")


if __name__ == "__main__":
    main()
