"""Measures what a crowd loses, and costs, whose staged states are more than memory holds.

The model is random and answers two tokens, so that its states (33.7 MB, as those of a 7B) and not
its answers are what takes time. The easy mistake is to count turns that raised nothing: a history
that lost its state goes on as text, so heads and references are counted instead.

    python -m benchmarks.staging [--quick] [--check] [--out DIR]
"""

from __future__ import annotations

import asyncio
import functools
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables.history import RunnableWithMessageHistory

from benchmarks import common
from langchain_rwkv_state import ChatRWKV, DiskStateStore, RWKVStateHistory
from langchain_rwkv_state.errors import RWKVStateError
from langchain_rwkv_state.prompt.markers import STATE_KEY
from langchain_rwkv_state.store.staging import STAGED_BUDGET_BYTES
from tests.helpers.checkpoints import write_checkpoint, write_tokenizer

_LAYERS, _WIDTH = 32, 512
_TURNS = 3


@dataclass
class Watched:
    """What a process took while something ran.

    Attributes:
        rss: The most bytes of memory.
        staged: The most bytes of staged states in memory.
        spilled: The most bytes of them in files.
    """

    rss: int = 0
    staged: int = 0
    spilled: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def watch(self, store: DiskStateStore) -> None:
        """Looks again and again, until `end`."""
        process = psutil.Process()
        while not self._over.wait(0.02):
            stats = store.stats()
            self.rss = max(self.rss, process.memory_info().rss)
            self.staged = max(self.staged, stats.staged_nbytes)
            self.spilled = max(self.spilled, stats.spilled_nbytes)

    def end(self) -> None:
        """Stops looking."""
        self._over.set()


@dataclass
class Lost:
    """What went wrong, by way of talking.

    Attributes:
        turns: Turns that raised, or that no head stands for.
        references: References of answers that name no state any more.
        of: How many there were of each.
    """

    turns: int = 0
    references: int = 0
    of: int = 0


async def sessions(chat: ChatRWKV, store: DiskStateStore, number: int) -> Lost:
    """Talks through `with_session`, everybody at once."""
    talks = [chat.with_session(f"session {n}") for n in range(number)]
    lost = Lost()
    for turn in range(_TURNS):
        answers = await asyncio.gather(
            *(talk.ainvoke(f"I am {n}, turn {turn}.") for n, talk in enumerate(talks)),
            return_exceptions=True,
        )
        lost.of += number
        for answer in answers:
            if isinstance(answer, BaseException):
                lost.turns += 1
            else:
                lost.references += not _is_alive(store, answer.response_metadata[STATE_KEY])
    infos = [store.session(talk.session) for talk in talks]
    lost.turns += sum(info is None or info.n_turns != _TURNS for info in infos)
    return lost


async def histories(chat: ChatRWKV, store: DiskStateStore, number: int) -> Lost:
    """Talks through `RunnableWithMessageHistory` and a parser, everybody at once."""
    prompt = ChatPromptTemplate.from_messages([MessagesPlaceholder("history"), ("human", "{q}")])
    chain: Any = RunnableWithMessageHistory(
        prompt | chat | StrOutputParser(),
        lambda session_id: RWKVStateHistory(session_id, store),
        input_messages_key="q",
        history_messages_key="history",
    )
    lost = Lost()
    for turn in range(_TURNS):
        configs = [{"configurable": {"session_id": f"history {n}"}} for n in range(number)]
        await asyncio.gather(
            *(chain.ainvoke({"q": f"I am {n}, turn {turn}."}, c) for n, c in enumerate(configs))
        )
        lost.of += number
        for n in range(number):
            info = store.session(f"history {n}")
            lost.turns += info is None or info.n_turns != turn + 1 or bool(info.unread)
    return lost


def batches(chat: ChatRWKV, store: DiskStateStore, number: int) -> Lost:
    """Asks without sessions; what counts is that each answer's reference works afterwards."""
    lost = Lost()
    for turn in range(_TURNS):
        answers = chat.batch([f"My number is {n}, turn {turn}." for n in range(number)])
        lost.of += number
        lost.references += sum(
            not _is_alive(store, answer.response_metadata[STATE_KEY]) for answer in answers
        )
    return lost


def _is_alive(store: DiskStateStore, ref: str) -> bool:
    try:
        return store.get(ref).n_tokens > 0
    except RWKVStateError:
        return False


def _one_batch(chat: ChatRWKV, folder: Path, number: int, staged_bytes: int, round_: int) -> object:
    """Answers a batch over a store of its own, whose staged states go with it."""
    path = folder / f"spilling {staged_bytes} {round_}"
    with DiskStateStore(path, staged_bytes=staged_bytes) as store:
        model = chat.model_copy(update={"store": store})
        return model.batch([f"Again {round_} {n}." for n in range(number)])


def main() -> int:
    """Runs the benchmark."""
    parser = common.parser("More conversations at once than memory holds staged states for.")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*RunnableWithMessageHistory.*")
    number, layers = (8, 2) if arguments.quick else (64, _LAYERS)
    folder = Path(tempfile.mkdtemp(prefix="rwkv-staging-"))
    try:
        return _measure(arguments, folder, number, layers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(arguments: Any, folder: Path, number: int, layers: int) -> int:
    write_tokenizer(folder / "tokenizer.json")
    size: dict[str, Any] = {"n_layer": layers, "n_embd": _WIDTH, "head_size": _WIDTH}
    model = write_checkpoint(folder / "m.pth", 7, dtype=torch.bfloat16, **size)
    report = common.Report("staging", {"conversations": number, "turns": _TURNS})
    store = DiskStateStore(folder / "store")
    chat = ChatRWKV(model=str(model), temperature=0, max_tokens=2, store=store)
    report.results["state bytes"] = chat.loaded().zero.nbytes
    before = psutil.Process().memory_info().rss
    watched = Watched()
    watcher = threading.Thread(target=watched.watch, args=(store,), daemon=True)
    watcher.start()
    for name, talk in {"sessions": sessions, "histories": histories}.items():
        began = time.perf_counter()
        lost = asyncio.run(talk(chat, store, number))
        _note(report, name, lost, time.perf_counter() - began)
    began = time.perf_counter()
    lost = batches(chat, store, number)
    _note(report, "batch", lost, time.perf_counter() - began)
    watched.end()
    watcher.join()
    report.results["memory"] = {
        "rss before": before,
        "rss most": watched.rss,
        "staged most": watched.staged,
        "spilled most": watched.spilled,
        "budget": STAGED_BUDGET_BYTES,
    }
    room = common.Check(
        "staged states in memory", watched.staged / 2**20, STAGED_BUDGET_BYTES / 2**20, "at most"
    )
    report.add(room)
    store.close()
    report.results["spilling"] = _spilling(chat, folder, number)
    print(report.results["memory"], report.results["spilling"])
    chat.unload()
    return report.finish(arguments)


def _note(report: common.Report, name: str, lost: Lost, seconds: float) -> None:
    report.results[name] = {**vars(lost), "seconds": seconds}
    for what, found in {"turns": lost.turns, "references": lost.references}.items():
        report.add(common.Check(f"{name}: {what} lost", found, 0, "at most", n=lost.of))


def _spilling(chat: ChatRWKV, folder: Path, number: int) -> dict[str, Any]:
    """Times the same questions with memory for all states and with the usual share of it."""
    runs: dict[str, Callable[[int], object]] = {
        name: functools.partial(_one_batch, chat, folder, number, staged_bytes)
        for name, staged_bytes in {"all in memory": 1 << 40, "usual": STAGED_BUDGET_BYTES}.items()
    }
    found = common.interleaved_seconds(runs, 3)
    middle = {name: sorted(times)[1] for name, times in found.items()}
    return {
        "seconds": found,
        "times as long": middle["usual"] / middle["all in memory"],
        "milliseconds a state": 1000 * (middle["usual"] - middle["all in memory"]) / number,
    }


if __name__ == "__main__":
    raise SystemExit(main())
