"""Loads a process for an hour as a service does: what it takes must be flat from minute 5 on.

Threads and event loops talk through sessions, histories and plain calls; streams are left half-way,
tasks cancelled, deadlines missed; models are copied at run time, stores opened and dropped,
sessions forked, rewound, deleted and expired. Memory, threads and descriptors are written down as
it goes. What leaks slowly shows as a slope.

    python -m benchmarks.endurance [--minutes 60] [--quick] [--check] [--out DIR]
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import shutil
import statistics
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import ConfigurableField
from langchain_core.runnables.history import RunnableWithMessageHistory

from benchmarks import common
from langchain_rwkv_state import ChatRWKV, DiskStateStore, PrefixStateCache, RWKVStateHistory
from langchain_rwkv_state.errors import DeadlineExceeded, RWKVStateError
from langchain_rwkv_state.prompt.markers import STATE_KEY, marker

SETTLED_MINUTES = 5.0
_EVERY_SECONDS = 5.0
_SESSIONS = 40  # a name comes again: sessions go on, are deleted and begin anew
_STAGED_BYTES = 8 << 20  # so that staged states go to files within seconds


class Load:
    """Does what a service's threads do, and counts what was done and what went wrong.

    Args:
        chat: The model.
        store: Where it keeps its conversations.
        folder: The store's directory.
    """

    def __init__(self, chat: ChatRWKV, store: DiskStateStore, folder: Path) -> None:
        self.chat = chat
        self.store = store
        self.folder = folder
        self.done: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._configurable: Any = chat.configurable_fields(temperature=ConfigurableField(id="t"))
        prompt = ChatPromptTemplate.from_messages(
            [MessagesPlaceholder("history"), ("human", "{q}")]
        )
        self._chain: Any = RunnableWithMessageHistory(
            prompt | self._configurable | StrOutputParser(),
            lambda session_id: RWKVStateHistory(session_id, store),
            input_messages_key="q",
            history_messages_key="history",
        )

    def work(self, seed: int) -> None:
        """Does one thing after another until it is over; one thread of many."""
        draw = random.Random(seed)  # repeatable
        verbs: list[Callable[[random.Random], None]] = [
            *(self.session, self.stream_left, self.history, self.copies, self.carried),
            *(self.late, self.upkeep, self.other_store, self.crowd),
        ]
        while not self.over.is_set():
            verb = draw.choice(verbs)
            try:
                verb(draw)
            except RWKVStateError as error:
                self._note(self.wrong, f"{verb.__name__}: {type(error).__name__}")
            else:
                self._note(self.done, verb.__name__)

    def session(self, draw: random.Random) -> None:
        """Takes a turn of a session."""
        self.chat.with_session(self._name(draw)).invoke(f"My name is Bob {draw.random()}.")

    def stream_left(self, draw: random.Random) -> None:
        """Leaves a stream after a few pieces."""
        stream = self.chat.with_session(self._name(draw)).stream("Tell me a joke.")
        for _ in range(draw.randrange(4)):
            next(stream, None)
        stream.close()  # type: ignore[attr-defined]

    def history(self, draw: random.Random) -> None:
        """Takes a turn of a chain with a history, by a model that is configured at run time."""
        config = {"configurable": {"session_id": "h" + self._name(draw), "t": draw.random()}}
        self._chain.invoke({"q": f"I live in Lisbon {draw.random()}."}, config)

    def copies(self, draw: random.Random) -> None:
        """Makes chat objects for a call and drops them."""
        for kind in (self.chat.model_copy(), self.chat.bind(stop=["x"]), self.chat):
            kind.invoke("Hello.", max_tokens=1 + draw.randrange(5))
        ChatRWKV(model="demo", store=str(self.folder), max_tokens=3).invoke("Good morning.")

    def carried(self, draw: random.Random) -> None:
        """Carries a state by hand to the next call."""
        answer = self.chat.invoke(f"I have a cat {draw.random()}.")
        self.chat.invoke([marker(answer.response_metadata[STATE_KEY]), ("human", "Ok.")])

    def late(self, draw: random.Random) -> None:
        """Lets a deadline pass."""
        with contextlib.suppress(DeadlineExceeded):
            self.chat.invoke("word " * 200, timeout=0.001 + draw.random() / 100)

    def upkeep(self, draw: random.Random) -> None:
        """Forks, rewinds, deletes, lets expire, prunes and lists sessions."""
        name = self._name(draw)
        with contextlib.suppress(RWKVStateError):
            self.store.fork(name, f"fork {draw.randrange(20)}")
        with contextlib.suppress(RWKVStateError):
            self.store.rewind(name)
        self.store.delete_session(f"fork {draw.randrange(20)}")
        if draw.random() < 0.3:
            self.store.delete_session(name)
        self.chat.with_session(f"short {draw.randrange(10)}", ttl=1.0).invoke("Hi")
        self.store.prune()
        self.store.sessions()

    def other_store(self, draw: random.Random) -> None:
        """Opens a store, uses it, and closes or drops it."""
        folder = self.folder.with_name(f"other{draw.randrange(4)}")
        other = DiskStateStore(folder)
        chat = self.chat.model_copy(update={"store": other})
        chat.with_session("one").invoke("Hi")
        if draw.random() < 0.5:
            other.close()

    def crowd(self, draw: random.Random) -> None:
        """Runs many turns at once on an event loop of its own, and cancels some."""

        async def talk() -> None:
            names = {self._name(draw) for _ in range(6)}
            tasks: list[asyncio.Task[Any]] = [
                asyncio.ensure_future(self.chat.with_session(name).ainvoke("How are you?"))
                for name in names
            ]
            tasks.append(asyncio.ensure_future(self.chat.aprefill("word " * 300, session="long")))
            await asyncio.sleep(draw.random() / 5)
            for task in tasks:
                if draw.random() < 0.3:
                    task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, RWKVStateError):
                    self._note(self.wrong, f"crowd: {type(result).__name__}")
            self.store.delete_session("long")

        asyncio.run(talk())

    def _name(self, draw: random.Random) -> str:
        return f"session {draw.randrange(_SESSIONS)}"

    def _note(self, counter: Counter[str], name: str) -> None:
        with self._lock:
            counter[name] += 1


def look(process: psutil.Process, began: float, store: DiskStateStore) -> dict[str, float]:
    """Returns what the process takes now."""
    stats = store.stats()
    return {
        "minute": (time.monotonic() - began) / 60,
        "rss_mb": process.memory_info().rss / 2**20,
        "threads": threading.active_count(),
        "descriptors": process.num_fds(),
        "staged_mb": stats.staged_nbytes / 2**20,
        "staged": stats.staged,
    }


def slope(rows: list[dict[str, float]], name: str) -> float:
    """Returns by how much a figure grows in an hour, by Theil and Sen: the median of all slopes."""
    chosen = rows[:: max(1, len(rows) // 200)]
    slopes = [
        (later[name] - earlier[name]) / (later["minute"] - earlier["minute"]) * 60
        for place, earlier in enumerate(chosen)
        for later in chosen[place + 1 :]
        if later["minute"] > earlier["minute"]
    ]
    return statistics.median(slopes) if slopes else 0.0


def main() -> int:
    """Runs the benchmark."""
    parser = common.parser("An hour of load.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=6)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    minutes = 0.1 if arguments.quick else arguments.minutes
    folder = Path(tempfile.mkdtemp(prefix="rwkv-endurance-"))
    try:
        return _measure(arguments, folder, minutes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(arguments: Any, folder: Path, minutes: float) -> int:
    report = common.Report("endurance", {"minutes": minutes, "threads": arguments.threads})
    store = DiskStateStore(folder / "store", staged_bytes=_STAGED_BYTES)
    cache = PrefixStateCache(ram_bytes=32 << 20)
    chat = ChatRWKV(
        model="demo", temperature=0, max_tokens=20, store=store, prefix_cache=cache, max_queue=64
    )
    chat.invoke("Hi")
    load = Load(chat, store, folder / "store")
    threads = [
        threading.Thread(target=load.work, args=(seed,), daemon=True)
        for seed in range(arguments.threads)
    ]
    process, began = psutil.Process(), time.monotonic()
    rows = [look(process, began, store)]
    for thread in threads:
        thread.start()
    while time.monotonic() - began < 60 * minutes:
        time.sleep(min(_EVERY_SECONDS, 6 * minutes))
        rows.append(look(process, began, store))
    load.over.set()
    for thread in threads:
        thread.join(120)
    gc.collect()
    rows.append(look(process, began, store))
    settled = [row for row in rows[:-1] if row["minute"] >= min(SETTLED_MINUTES, minutes / 2)]
    report.results = {
        "rows": rows,
        "done": dict(load.done),
        "wrong": dict(load.wrong),
        "sound": store.check().sound,
        "growth an hour": {
            name: slope(settled, name) for name in ("rss_mb", "threads", "descriptors")
        },
    }
    print(report.results["done"], report.results["wrong"], report.results["growth an hour"])
    span = settled[-1]["minute"] - settled[0]["minute"] or 1.0
    per_hour = 60 / span if span < 60 else 1.0
    for name, most, unit in (
        ("rss_mb", 10.0, "MB"),
        ("threads", 1.0, ""),
        ("descriptors", 2.0, ""),
    ):
        grown = slope(settled, name) / max(per_hour, 1.0)
        report.add(common.Check(f"{name} grown since settled", grown, most, "at most", unit))
    store.close()
    chat.unload()
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
