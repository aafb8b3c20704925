"""Times a conversation turn by turn: on a state, on a transcript, and in the bare loop.

It times a random RWKV-7 as large as 0.1B (12 layers, width 768), whose answers mean nothing; for
what a model remembers see `benchmarks.recall`. What is compared is timed by turns in one run. Every
question has as many tokens as the next, and every answer too.

    python -m benchmarks.conversation [--quick] [--check] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from langchain_core.chat_history import BaseChatMessageHistory, InMemoryChatMessageHistory
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import Runnable
from langchain_core.runnables.history import RunnableWithMessageHistory
from rich.console import Console

from benchmarks import common
from benchmarks.common import Check, Report
from benchmarks.models import ROOT, write_apart
from langchain_rwkv_state import ChatRWKV, DiskStateStore, RWKVStateHistory
from langchain_rwkv_state.prompt.plan import ids_of

SYSTEM = "You are a patient assistant who answers in a few words."
THINGS = (
    *("apple", "bread", "chair", "clock", "cloud", "dance", "dream", "field", "glass", "grass"),
    *("heart", "horse", "house", "light", "lunch", "money", "month", "mouth", "music", "night"),
    *("ocean", "order", "paper", "party", "phone", "piece", "place", "plant", "point", "price"),
    *("radio", "river", "round", "scene", "shape", "skill", "sleep", "smile", "sound", "space"),
    *("speed", "stage", "steel", "stone", "store", "story", "sugar", "table", "taste", "train"),
)
"""Words of one token each in the World vocabulary."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        points: Turns that are compared; the first and the last give the ratio.
        answer_tokens: Length of each answer.
        rounds: Repetitions of a turn on a state.
        replays: Repetitions of a turn on a transcript.
        bare_turns: Turns of the comparison with the bare loop, after two that warm up.
        reread_tokens: Length of the text that is read again instead of resumed.
        resumes: Number of resumes.
        lengths: Tokens of the sessions whose bytes are counted.
    """

    points: tuple[int, ...] = (2, 10, 25, 50)
    answer_tokens: int = 32
    rounds: int = 9
    replays: int = 3
    bare_turns: int = 20
    reread_tokens: int = 1000
    resumes: int = 9
    lengths: tuple[int, ...] = (100, 1000, 4000)


QUICK = Sizes((2, 4), 4, 2, 1, 3, 100, 2, (50, 100))


def question(turn: int) -> str:
    """Returns the question of a turn; all are of one length in tokens."""
    return f"What do you think of the {THINGS[turn % len(THINGS)]}, is it good?"


@dataclass
class Bench:
    """The model under test and where its states are kept."""

    chat: ChatRWKV
    store: DiskStateStore
    model: Path
    strategy: str
    threads: int
    sizes: Sizes
    report: Report

    def prompt_ids(self, text: str, *, first: bool) -> list[int]:
        """Returns the ids that a turn makes the model read."""
        template = self.chat.loaded().template
        return list(ids_of(template.segments([HumanMessage(text)], start=first, answer=True)))


def tokens_read(answer: AIMessage) -> int:
    """Returns how many tokens the model read for an answer, beyond what its state had read."""
    usage = answer.usage_metadata
    if usage is None:
        raise ValueError("The answer does not say how many tokens were read.")
    return usage["input_tokens"] - usage.get("input_token_details", {}).get("cache_read", 0)


# -- turns, on a state and on a transcript ---------------------------------------------------------


class Transcripts:
    """A chain's usual memory: the messages of each session, in a dictionary."""

    def __init__(self) -> None:
        self.histories: dict[str, InMemoryChatMessageHistory] = {}

    def begin(self, session: str, messages: list[BaseMessage]) -> None:
        """Starts a session behind messages that were said."""
        self.histories[session] = InMemoryChatMessageHistory(messages=list(messages))

    def __call__(self, session_id: str) -> BaseChatMessageHistory:
        """Returns a session's history."""
        return self.histories[session_id]


Chain = Callable[[str, str], AIMessage]


def chain_over(chat: ChatRWKV, history: Callable[[str], BaseChatMessageHistory]) -> Chain:
    """Returns the one chain that is measured, over either kind of history."""
    prompt = ChatPromptTemplate(
        [("system", SYSTEM), MessagesPlaceholder("history"), ("human", "{question}")]
    )
    pipe: Runnable[Any, Any] = prompt | chat
    chain = RunnableWithMessageHistory(
        pipe, history, input_messages_key="question", history_messages_key="history"
    )

    def ask(session: str, text: str) -> AIMessage:
        answer = chain.invoke({"question": text}, {"configurable": {"session_id": session}})
        assert isinstance(answer, AIMessage)
        return answer

    return ask


WAYS = ("session", "chain", "replay")


class Turns:
    """One conversation on a state, and turns of it done again from where they began.

    Attributes:
        each_seconds: Time of each turn as the conversation went on.
        seconds: Times of the turns done again, by way and turn.
        read: Tokens that the model read in them.
        answers: What it answered.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench, self.store, self.points = bench, bench.store, bench.sizes.points
        self.transcripts = Transcripts()
        self.on_state = chain_over(bench.chat, lambda name: RWKVStateHistory(name, bench.store))
        self.on_transcript = chain_over(bench.chat, self.transcripts)
        self.each_seconds: list[float] = []
        self.seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.read: dict[tuple[str, int], int] = {}
        self.answers: dict[tuple[str, int], str] = {}
        self._said: dict[int, list[BaseMessage]] = {}

    def talk(self) -> None:
        """Holds the conversation; before each turn of interest its state gets a second name."""
        messages: list[BaseMessage] = []
        for turn in range(1, max(self.points) + 1):
            if turn in self.points:
                self.store.fork("talk", f"before {turn}")
                self._said[turn] = list(messages)
            start = time.perf_counter()
            answer = self.on_state("talk", question(turn))
            self.each_seconds.append(time.perf_counter() - start)
            messages += [HumanMessage(question(turn)), AIMessage(answer.text)]

    def again(self, way: str, turn: int, name: str) -> None:
        """Does one turn again, in a session of its own, and times it."""
        text = question(turn)
        if way == "replay":
            self.transcripts.begin(name, self._said[turn])
        else:
            self.store.fork(f"before {turn}", name)
        session = self.bench.chat.with_session(name)
        start = time.perf_counter()
        if way == "session":
            answer = session.invoke(text)
        else:
            answer = (self.on_state if way == "chain" else self.on_transcript)(name, text)
        self.seconds[way, turn].append(time.perf_counter() - start)
        self.read[way, turn], self.answers[way, turn] = tokens_read(answer), str(answer.text)
        self.store.delete_session(name)

    def row(self, turn: int) -> dict[str, Any]:
        """Returns what was found for a turn."""
        found: dict[str, Any] = {"turn": turn}
        for way in WAYS:
            found[f"{way}_seconds"] = statistics.median(self.seconds[way, turn])
            found[f"{way}_tokens_read"] = self.read[way, turn]
        found["same_answer"] = self.answers["chain", turn] == self.answers["replay", turn]
        return found


def measure_turns(bench: Bench) -> None:
    """Times turns early and late in one conversation, in three ways."""
    sizes, turns = bench.sizes, Turns(bench)
    turns.talk()
    for round_, turn, way in itertools.product(range(sizes.rounds), sizes.points, WAYS):
        if way != "replay" or round_ < sizes.replays:
            turns.again(way, turn, f"{turn} {way} {round_}")
    rows = [turns.row(turn) for turn in sizes.points]
    first, last = rows[0], rows[-1]
    ratio = {way: last[f"{way}_seconds"] / first[f"{way}_seconds"] for way in WAYS}
    bench.report.results["turns"] = {
        "rows": rows,
        "ratio": ratio,
        "each_turn_seconds": turns.each_seconds,
        "answer_tokens": sizes.answer_tokens,
    }
    name = f"turn {last['turn']} against turn {first['turn']}"
    for way in WAYS[:2]:
        more = last[f"{way}_tokens_read"] - first[f"{way}_tokens_read"]
        bench.report.add(Check(f"{name}, {way}: more tokens read", more, 0, "at most", "tokens"))
        bench.report.add(
            Check(f"{name}, {way}: time", ratio[way], 1.1, "at most", "x", sizes.rounds)
        )
    common.print_table(
        "A turn, on a state and on a transcript",
        ["turn", "session", "chain on state", "chain on transcript", "tokens read", "replayed"],
        [
            [
                str(row["turn"]),
                *(f"{row[f'{way}_seconds']:.2f} s" for way in WAYS),
                str(row["session_tokens_read"]),
                str(row["replay_tokens_read"]),
            ]
            for row in rows
        ],
    )


# -- against the bare loop ------------------------------------------------------------------------


class Bare:
    """The `rwkv` package alone, in a process of its own."""

    def __init__(self, bench: Bench) -> None:
        command = [sys.executable, str(ROOT / "benchmarks" / "bare_loop.py"), str(bench.model)]
        self.process = subprocess.Popen(
            [*command, bench.strategy.removeprefix("package "), str(bench.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._line()

    def turn(self, ids: list[int], n: int) -> tuple[float, list[int]]:
        """Runs a turn; returns its seconds and the ids of the answer."""
        assert self.process.stdin is not None
        print(json.dumps({"ids": ids, "n": n}), file=self.process.stdin, flush=True)
        found = json.loads(self._line())
        return found["seconds"], found["answer"]

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"The bare loop ended with code {self.process.wait()}.")
        return line


@dataclass
class Stopwatch:
    """Adds up how long methods of objects take, by wrapping them for a while."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextlib.contextmanager
    def around(self, methods: dict[str, tuple[Any, str]]) -> Iterator[None]:
        """Times calls of methods, given by name as (object, method)."""
        for name, (owner, method) in methods.items():
            object.__setattr__(owner, method, self._timed(name, getattr(owner, method)))
        try:
            yield
        finally:
            for owner, method in methods.values():
                object.__delattr__(owner, method)

    def _timed(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return run(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return wrapped


def measure_overhead(bench: Bench) -> None:
    """Times a session beside the bare loop, turn by turn, and says where the difference goes."""
    n, warm = bench.sizes.answer_tokens, 2
    chat, loaded = bench.chat, bench.chat.loaded()
    session = chat.with_session("beside the bare loop")
    watch = Stopwatch()
    # The package's own object is two levels below the port: only this breakdown looks there.
    package = loaded.runtime._model._model  # type: ignore[attr-defined]
    methods = {
        "rwkv package": (package, "forward"),
        "runtime adapter": (loaded.runtime, "forward_batch"),
        "store: session": (bench.store, "session"),
        "store: get": (bench.store, "get"),
        "store: stage": (bench.store, "stage"),
        "store: commit": (bench.store, "commit"),
    }
    times: dict[str, list[float]] = {"session": [], "bare": []}
    same = 0
    with contextlib.closing(Bare(bench)) as bare:
        for turn in range(bench.sizes.bare_turns + warm):
            text = question(turn)
            ids = bench.prompt_ids(text, first=turn == 0)
            found: dict[str, float] = {}
            answers: dict[str, list[int]] = {}
            for who in times if turn % 2 else reversed(times):
                time.sleep(0.02)  # lets the threads of the one before come to rest
                if who == "bare":
                    found[who], answers[who] = bare.turn(ids, n)
                    continue
                around = watch.around(methods if turn >= warm else {})
                start = time.perf_counter()
                with around:
                    answer = session.invoke(text)
                found[who] = time.perf_counter() - start
                answers[who] = loaded.tokenizer.encode(f" {answer.text}")
            same += answers["session"] == answers["bare"]
            if turn >= warm:
                for who, seconds in found.items():
                    times[who].append(seconds)
    medians = {who: statistics.median(found) for who, found in times.items()}
    pairs = zip(times["session"], times["bare"], strict=True)
    ratio = statistics.median(session / bare for session, bare in pairs)
    turns = bench.sizes.bare_turns
    parts = {name: 1000 * watch.seconds[name] / turns for name in methods}
    total = 1000 * statistics.mean(times["session"])
    inside = parts["runtime adapter"] + sum(v for k, v in parts.items() if k.startswith("store"))
    breakdown = {
        "rwkv package": parts["rwkv package"],
        "runtime adapter around it": parts["runtime adapter"] - parts["rwkv package"],
        **{name: value for name, value in parts.items() if name.startswith("store")},
        "engine, template and LangChain": total - inside,
        "whole turn": total,
    }
    bench.report.results["overhead"] = {
        "session_seconds": medians["session"],
        "bare_seconds": medians["bare"],
        "ratio": ratio,
        "turns_with_the_same_answer": same,
        "turns": turns + warm,
        "tokens_read": len(bench.prompt_ids(question(1), first=False)),
        "tokens_sampled": n,
        "rereads": loaded.engine.stats().rereads,
        "breakdown_ms": breakdown,
    }
    over = 100 * (ratio - 1)
    bench.report.add(Check("session over the bare loop, a turn", over, 10, "at most", "%", turns))
    common.print_table(
        "A turn beside the bare loop (medians)",
        ["who", "seconds", "session's ratio to it"],
        [
            ["session, committed to disk", f"{medians['session']:.3f}", ""],
            ["bare loop", f"{medians['bare']:.3f}", f"{ratio:.3f}"],
        ],
    )
    common.print_table(
        "Where a session's turn goes (means)",
        ["part", "ms", "%"],
        [[name, f"{ms:.2f}", f"{100 * ms / total:.2f}"] for name, ms in breakdown.items()],
    )


# -- resume, and bytes ----------------------------------------------------------------------------


def measure_resume(bench: Bench) -> None:
    """Times opening a store and loading a state in a fresh process against reading again."""
    sizes, loaded = bench.sizes, bench.chat.loaded()
    ids = some_ids(bench, sizes.reread_tokens)
    bench.chat.prefill(loaded.tokenizer.decode(ids), session="resumed")
    bench.store.close()
    found: dict[str, list[dict[str, float]]] = {"cached": [], "evicted": []}
    reread = []
    for round_ in range(sizes.resumes):
        for state, results in found.items():
            if state == "evicted":
                _evict(Path(bench.store.path))
            results.append(_resume_once(Path(bench.store.path), "resumed"))
        if round_ < 3:
            zero = loaded.runtime.zero_state()
            reread.append(common.seconds(lambda z=zero: loaded.runtime.forward(ids, z)))  # type: ignore[misc]
    again = statistics.median(reread)
    medians = {
        state: {
            part: statistics.median(each[part] for each in results)
            for part in ("open", "head", "get", "total", "get_again")
        }
        for state, results in found.items()
    }
    ratio = again / medians["cached"]["total"]
    bench.report.results["resume"] = {
        "reread_tokens": sizes.reread_tokens,
        "reread_seconds": again,
        "resume_seconds": medians,
        "state_bytes": loaded.zero.nbytes,
        "ratio": ratio,
        "ratio_evicted": again / medians["evicted"]["total"],
    }
    bench.report.add(
        Check(
            f"reading {sizes.reread_tokens} tokens again, over resuming from disk",
            *(ratio, 200, "at least", "x", sizes.resumes),
        )
    )
    common.print_table(
        "Resuming in a fresh process (medians, ms)",
        ["", "open store", "head", "get state", "whole"],
        [
            [state, *(f"{1000 * times[part]:.2f}" for part in ("open", "head", "get", "total"))]
            for state, times in medians.items()
        ]
        + [[f"reading {sizes.reread_tokens} tokens again", "", "", "", f"{1000 * again:.0f}"]],
    )


def some_ids(bench: Bench, n: int) -> list[int]:
    """Returns `n` ids of some text, canonical."""
    tokenizer = bench.chat.loaded().tokenizer
    return tokenizer.encode("".join(f" {THINGS[i % len(THINGS)]}" for i in range(n)))[:n]


def _resume_once(directory: Path, session: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.resume", str(directory), session]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _evict(directory: Path) -> None:
    """Asks the system to drop the store's files from its page cache, where it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in directory.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def measure_bytes(bench: Bench, directory: Path) -> None:
    """Counts the bytes stored for sessions of several lengths."""
    nominal = bench.chat.loaded().zero.nbytes
    rows = []
    for history, lengths in ((1, bench.sizes.lengths), (3, bench.sizes.lengths[:1])):
        for length in lengths:
            place = directory / f"bytes {history} {length}"
            rows.append(_session_bytes(bench, place, history, length, nominal))
    worst = max(row["stored_over_nominal"] for row in rows)
    bench.report.results["bytes"] = {"state_bytes": nominal, "rows": rows}
    bench.report.add(
        Check("stored bytes over (1 + history) states", worst, 1.05, "at most", "x", len(rows))
    )
    common.print_table(
        f"Bytes of a session (a state is {nominal:,})",
        ["tokens", "history", "stored", "of (1 + history) states", "whole directory"],
        [
            [
                str(row["tokens"]),
                str(row["history"]),
                f"{row['stored']:,}",
                f"{row['stored_over_nominal']:.4f}",
                f"{row['directory']:,}",
            ]
            for row in rows
        ],
    )


def _session_bytes(
    bench: Bench, place: Path, history: int, length: int, nominal: int
) -> dict[str, Any]:
    tokenizer = bench.chat.loaded().tokenizer
    with contextlib.closing(DiskStateStore(place, history=history)) as store:
        empty = _directory_bytes(place)
        chat = ChatRWKV(
            model=str(bench.model), strategy=bench.strategy, store=store, prefix_cache=False
        )
        try:
            ids = some_ids(bench, length)
            parts = history + 2  # one more than is kept
            step = -(-len(ids) // parts)
            for start in range(0, len(ids), step):
                chat.prefill(tokenizer.decode(ids[start : start + step]), session="s")
            info = store.session("s")
        finally:
            chat.unload()
        if info is None:
            raise RuntimeError("The session was not stored.")
        whole = _directory_bytes(place)
    return {
        "tokens": info.n_tokens,
        "history": history,
        "stored": info.nbytes,
        "stored_over_nominal": info.nbytes / ((1 + history) * nominal),
        "directory": whole,
        "directory_growth": whole - empty,
    }


def _directory_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


# -- all -------------------------------------------------------------------------------------------

PARTS = ("turns", "overhead", "resume", "bytes")


def run(arguments: argparse.Namespace, directory: Path, report: Report) -> None:
    sizes = QUICK if arguments.quick else Sizes()
    # The package, which the bare loop runs: what stands around it is timed, not the runtime.
    strategy = {"cpu": "package cpu fp32", "cuda": "package cuda fp16"}[arguments.device]
    model = arguments.model or write_apart(
        directory / "model.pth", quick=arguments.quick, speaking=True
    )
    store = DiskStateStore(directory / "store")
    chat = ChatRWKV(
        model=str(model),
        strategy=strategy,
        store=store,
        temperature=0,
        max_tokens=sizes.answer_tokens,
        prefix_cache=False,
    )
    bench = Bench(chat, store, Path(model), strategy, arguments.threads, sizes, report)
    chat.invoke("Hello.")  # loads, and warms up
    measures: dict[str, Callable[[], None]] = {
        "turns": lambda: measure_turns(bench),
        "overhead": lambda: measure_overhead(bench),
        "bytes": lambda: measure_bytes(bench, directory),
        "resume": lambda: measure_resume(bench),  # the last: it closes the store
    }
    for name, measure in measures.items():
        if name in (arguments.only or PARTS):
            Console(stderr=True).print(f"[dim]{name} ...")
            measure()
    chat.unload()
    store.close()


def main() -> int:
    parser = common.parser("Times turns of a conversation on a random RWKV-7 of 12x768.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (2)")
    parser.add_argument("--model", help="one that `python -m benchmarks.models --speaking` wrote")
    parser.add_argument("--only", nargs="*", choices=PARTS, help="some of the measurements")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in ("RunnableWithMessageHistory", "InMemoryChatMessageHistory"):
        warnings.filterwarnings("ignore", message=f".*{name}.*")  # deprecated; what chains use
    name = "conversation" if arguments.device == "cpu" else "conversation_cuda"
    shape = "2x128" if arguments.quick else "12x768"
    settings = {"model": f"random RWKV-7 {shape}", "threads": arguments.threads}
    report = Report(name, settings | {"device": arguments.device})
    with tempfile.TemporaryDirectory() as directory:
        run(arguments, Path(directory), report)
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
