"""Kills servers while clients talk, and counts what was lost: nothing that was acknowledged may be.

Some server processes share one store: workers of one command over a directory (``--store disk``),
or commands of their own over one Redis, as on several machines (``--store redis``). Clients talk by
``previous_response_id`` and by ``conversation``; every so many seconds one process is killed with
SIGKILL and comes back. A client whose turn failed asks again, of another server. In the end all
talks are held once more in this one process, and every answer has to be the same. It takes minutes,
and is not part of `run_all`.

    python -m benchmarks.serve_kills [--store redis] [--seconds 300]
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks import common
from benchmarks.crowd_talks import question
from langchain_rwkv_state import ChatRWKV, MemoryStateStore
from tests.helpers.redis_server import redis_server

STORES = ("disk", "redis")
_TOKENS = 12
_PAUSE_SECONDS = 0.05


@dataclass
class Talk:
    """One client's talk.

    Attributes:
        number: Which one.
        acknowledged: By turn, the answer's text and id; ``None`` where it was done, and the answer
            never arrived.
        problems: What must not be.
    """

    number: int
    acknowledged: list[tuple[str, str] | None] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The conversation's."""
        return f"talk-{self.number}"


class Servers:
    """Server processes over one store.

    Args:
        store: A directory or a URL.
        number: How many processes.
        together: Whether they are the workers of one command.
    """

    def __init__(self, store: str, number: int, *, together: bool) -> None:
        self._store, self._number, self._together = store, number, together
        self._running: list[subprocess.Popen[bytes]] = []
        ports = [free_port() for _ in range(1 if together else number)]
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        self._ports = ports
        self.killed = 0

    def start(self) -> None:
        """Starts all, and waits until they answer."""
        self._running = [self._started(port) for port in self._ports]
        for url in self.urls:
            wait_until_ready(url)

    def _started(self, port: int) -> subprocess.Popen[bytes]:
        workers = self._number if self._together else 1
        command = [sys.executable, "-m", "langchain_rwkv_state", "serve", "--model", "demo"]
        command += ["--port", str(port), "--store", self._store, "--workers", str(workers)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def kill_one(self) -> None:
        """Kills a process that serves, with SIGKILL; it comes back."""
        self.killed += 1
        if self._together:
            workers = psutil.Process(self._running[0].pid).children()
            random.choice(workers).kill()
            return
        at = random.randrange(len(self._running))
        self._running[at].kill()
        self._running[at].wait()
        self._running[at] = self._started(self._ports[at])

    def stop(self) -> None:
        """Stops all."""
        for each in self._running:
            each.send_signal(signal.SIGTERM)
        for each in self._running:
            each.wait(60)


def free_port() -> int:
    """Returns a port of the loopback address that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def wait_until_ready(url: str, seconds: float = 90.0) -> None:
    """Waits until a server answers."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        time.sleep(0.1)
    raise TimeoutError(f"{url} is not ready after {seconds} s")


class Client:
    """Holds talks with servers of which any may die.

    Args:
        urls: Theirs.
        until: When no turn begins any more, on the monotonic clock.
    """

    def __init__(self, urls: list[str], until: float) -> None:
        self._urls = itertools.cycle(urls)
        self._until = until
        self._http = httpx.AsyncClient(timeout=60)
        self.failed = Counter[str]()

    async def talk(self, talk: Talk) -> None:
        """Holds one talk, until the time is up or something is wrong."""
        by_id = talk.number % 2 == 0
        turn = self._by_id if by_id else self._in_conversation
        while time.monotonic() < self._until and not talk.problems:
            await turn(talk)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _by_id(self, talk: Talk) -> None:
        before = talk.acknowledged[-1] if talk.acknowledged else None
        more = {} if before is None else {"previous_response_id": before[1]}
        answer = await self._asked(talk, more)
        if answer is None:
            return  # nobody holds it against us: the same turn is asked again
        if answer.status_code == 404:
            talk.problems.append(f"turn {len(talk.acknowledged)} is lost: {answer.text}")
        else:
            self._note(talk, answer)

    async def _in_conversation(self, talk: Talk) -> None:
        answer = await self._asked(talk, {"conversation": talk.name})
        if answer is not None:
            self._note(talk, answer)
            return
        known = len(talk.acknowledged)
        turns = await self._turns(talk.name)
        if turns == known + 1:
            talk.acknowledged.append(None)
        elif turns != known:
            talk.problems.append(f"{known} turns are acknowledged, and {turns} are there")

    async def _asked(self, talk: Talk, more: dict[str, Any]) -> httpx.Response | None:
        """Returns what came of a turn; ``None`` where a server died over it."""
        asks = {
            "model": "demo",
            "input": question(talk.number, len(talk.acknowledged)),
            "temperature": 0,
            "max_output_tokens": _TOKENS,
            **more,
        }
        try:
            answer = await self._http.post(f"{next(self._urls)}/v1/responses", json=asks)
        except httpx.HTTPError as error:
            self.failed[type(error).__name__] += 1
            return None
        if answer.status_code in (409, 429, 500, 503):
            self.failed[str(answer.status_code)] += 1
            return None
        return answer

    def _note(self, talk: Talk, answer: httpx.Response) -> None:
        if answer.status_code != 200:
            talk.problems.append(f"{answer.status_code}: {answer.text}")
            return
        found = answer.json()
        text = "".join(
            part["text"]
            for item in found["output"]
            if item["type"] == "message"
            for part in item["content"]
        )
        talk.acknowledged.append((text, found["id"]))

    async def _turns(self, name: str) -> int:
        """Returns how many turns a conversation has, from a server that is there."""
        while True:
            try:
                found = await self._http.get(f"{next(self._urls)}/v1/conversations/{name}")
            except httpx.HTTPError:
                await asyncio.sleep(0.2)
                continue
            if found.status_code == 404:
                return 0
            if found.status_code == 200:
                return int(found.json()["turns"])
            await asyncio.sleep(0.2)

    async def check_end(self, talk: Talk) -> None:
        """Checks that a talk stands where its last acknowledged turn says."""
        if talk.problems or not talk.acknowledged:
            return
        if talk.number % 2:
            turns = await self._turns(talk.name)
            if turns != len(talk.acknowledged):
                talk.problems.append(f"{turns} turns of {len(talk.acknowledged)} are there")
            return
        last = talk.acknowledged[-1]
        answer = None
        while answer is None and last is not None:
            answer = await self._asked(talk, {"previous_response_id": last[1]})
        if answer is not None and answer.status_code != 200:
            talk.problems.append(f"the last turn is lost: {answer.text}")


def compare(talks: list[Talk]) -> int:
    """Holds all talks once more in this process; returns how many answers were compared."""
    compared = 0
    with MemoryStateStore() as store:
        chat = ChatRWKV(model="demo", store=store, temperature=0, max_tokens=_TOKENS)
        for talk in talks:
            session = chat.with_session(talk.name)
            for turn, known in enumerate(talk.acknowledged):
                text = str(session.invoke(question(talk.number, turn)).text)
                if known is None:
                    continue
                compared += 1
                if text != known[0]:
                    talk.problems.append(f"turn {turn} is {known[0]!r}, alone {text!r}")
                    break
    return compared


async def hold(servers: Servers, number: int, seconds: float, every: float) -> dict[str, Any]:
    """Holds talks while servers are killed; returns what came of it."""
    talks = [Talk(each) for each in range(number)]
    until = time.monotonic() + seconds
    client = Client(servers.urls, until)
    under_way = asyncio.gather(*map(client.talk, talks))
    # A client whose turn failed looks for it after the time is up: then servers have to come back.
    while time.monotonic() + every < until:
        await asyncio.wait([under_way], timeout=every)
        await asyncio.to_thread(servers.kill_one)
    await under_way
    for url in servers.urls:
        await asyncio.to_thread(wait_until_ready, url)
    await asyncio.gather(*map(client.check_end, talks))
    compared = await asyncio.to_thread(compare, talks)
    for talk in talks:
        for problem in talk.problems:
            print(f"{talk.name}: {problem}")
    known = [each for talk in talks for each in talk.acknowledged]
    return {
        "acknowledged": sum(each is not None for each in known),
        "done and unanswered": sum(each is None for each in known),
        "failed requests": dict(client.failed),
        "killed": servers.killed,
        "compared": compared,
        "problems": sum(len(talk.problems) for talk in talks),
    }


@contextlib.contextmanager
def placed(kind: str) -> Iterator[str]:
    """Gives a store's directory or URL."""
    with tempfile.TemporaryDirectory() as folder:
        if kind == "disk":
            yield str(Path(folder) / "store")
            return
        with redis_server() as redis:
            yield redis.url


def main() -> int:
    parser = common.parser(__doc__ or "")
    parser.add_argument("--store", choices=STORES, action="append", help="by default both")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--talks", type=int, default=8)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--every", type=float, help="seconds between two kills")
    arguments = parser.parse_args()
    seconds = arguments.seconds or (6.0 if arguments.quick else 300.0)
    every = arguments.every or (3.0 if arguments.quick else 20.0)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings = {"processes": arguments.processes, "talks": arguments.talks, "seconds": seconds}
    report = common.Report("serve_kills", {**settings, "seconds between kills": every})
    for kind in arguments.store or STORES:
        with placed(kind) as store:
            servers = Servers(store, arguments.processes, together=kind == "disk")
            servers.start()
            try:
                found = asyncio.run(hold(servers, arguments.talks, seconds, every))
            finally:
                servers.stop()
        report.results[kind] = found
        for name, value in found.items():
            print(f"{kind}, {name}: {value}")
        wrong = f"lost, done twice or changed ({kind})"
        report.add(common.Check(wrong, found["problems"], 0, "at most", n=found["acknowledged"]))
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
