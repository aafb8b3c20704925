"""Measures the prefix cache: what is not read again, what that saves, and what the cache costs.

Answers with the cache are compared with answers without it; times are taken on a random model as
large as RWKV-7 0.1B. Each side is called once before it is timed: models are read and compiled in a
process's first call.

    python -m benchmarks.prefix_cache [--quick] [--check] [--out DIR]
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from benchmarks import common
from benchmarks.models import write_12x768
from langchain_rwkv_state import ChatRWKV, MemoryStateStore, PrefixStateCache
from langchain_rwkv_state.prefix_cache import CachedState, Namespace
from langchain_rwkv_state.state import Derivation, RWKVState, StateLayout

_NAMESPACE = Namespace("model")
_WORDS = (
    *("river", "stone", "lamp", "cloud", "garden", "seven"),
    *("window", "paper", "morning", "salt", "bread", "horse"),
)
_QUESTION_TOKENS = 20


def main() -> int:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a checkpoint instead of a random 12x768")
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "DIR"), help="used by this script")
    arguments = parser.parse_args()
    if arguments.child:
        return child(*arguments.child)
    quick = arguments.quick
    report = common.Report("prefix_cache", {"quick": quick})
    with tempfile.TemporaryDirectory(prefix="rwkv-prefix-") as folder:
        large = str(arguments.model or "demo")
        if not quick and not arguments.model:
            large = str(write_12x768(Path(folder) / "12x768.pth"))
        same_answers(report, 20 if quick else 500)
        document(report, large, Path(folder), 3 if quick else 64, 100 if quick else 1000)
        processes(report, large, Path(folder))
        transcript(report, 3 if quick else 10)
        in_flight(report, 4 if quick else 16, 100 if quick else 500)
        zipf(report, 200 if quick else 2000)
        cost(report, [50, 100] if quick else [100, 1_000, 10_000])
        stress(report, 20 if quick else 300)
    if not quick:
        draw(report.results, arguments.out or common.IMAGES)
    return report.finish(arguments)


def open_chat(model: str, cache: PrefixStateCache | bool, **settings: Any) -> ChatRWKV:
    chat = ChatRWKV(
        model=model,
        store=MemoryStateStore(),
        prefix_cache=cache,
        **{"temperature": 0, "max_tokens": 4, **settings},
    )
    chat.loaded()
    return chat


def read_by(answer: AIMessage) -> int:
    """Returns how many tokens of its prompt were read for an answer."""
    usage = answer.usage_metadata
    assert usage is not None
    return usage["input_tokens"] - usage["input_token_details"].get("cache_read", 0)


def text_of(chat: ChatRWKV, tokens: int, seed: int = 0) -> str:
    """Returns a text of about so many tokens."""
    rng, words = random.Random(seed), ["Begin"]
    while len(words) < tokens:
        words.append(rng.choice(_WORDS))
    ids = chat.get_token_ids(" ".join(words))
    return chat.loaded().tokenizer.decode_bytes(tuple(ids[:tokens])).decode("utf-8", "ignore")


def same_answers(report: common.Report, requests: int) -> None:
    """Compares greedy answers and logits with the cache on and off."""
    cache = PrefixStateCache(ram_bytes=64 << 20)
    cached, plain = open_chat("demo", cache, max_tokens=16), open_chat("demo", False, max_tokens=16)
    rng, differing, widest = random.Random(0), 0, 0.0
    loaded = plain.loaded()
    for _ in range(requests):
        messages: list[BaseMessage] = [SystemMessage(f"Your name is {rng.choice(_WORDS)}.")]
        messages += [HumanMessage(f"I like {rng.choice(_WORDS)}.") for _ in range(rng.randrange(3))]
        messages.append(HumanMessage(f"What about {rng.choice(_WORDS[:4])}?"))
        differing += cached.invoke(messages).content != plain.invoke(messages).content
        segments = loaded.template.segments(messages, start=True, answer=True)
        ids = tuple(token for segment in segments for token in segment.ids)
        hit = cache.lookup(Namespace.of(loaded.zero), ids, count=False)
        assert hit is not None
        assert hit.cached.logits is not None
        logits, _ = loaded.runtime.forward(ids, loaded.zero)
        widest = max(widest, float((logits - hit.cached.logits).abs().max()))
    report.results["same_answers"] = {"requests": requests, "hits": cache.stats().hits}
    report.add(common.Check("answers that differ", differing, 0, "at most", n=requests))
    report.add(common.Check("widest gap of logits", widest, 1e-4, "at most", n=requests))
    for chat in (cached, plain):
        chat.unload()


def document(report: common.Report, model: str, folder: Path, questions: int, tokens: int) -> None:
    """Asks many questions on one document, with the cache, without it, and after a restart."""
    cache = PrefixStateCache(ram_bytes=256 << 20, disk=folder / "document")
    chats = {"on": open_chat(model, cache), "off": open_chat(model, False)}
    said = SystemMessage(text_of(chats["on"], tokens))
    asked = [HumanMessage(f"What of {number}?") for number in range(questions)]
    for chat in chats.values():
        chat.invoke("Hello.")
    times, read = {}, {}
    for name, chat in chats.items():
        start = time.perf_counter()
        read[name] = [read_by(chat.invoke([said, question])) for question in asked]
        times[name] = time.perf_counter() - start
        chat.unload()
    cache.close()
    again = PrefixStateCache(ram_bytes=256 << 20, disk=folder / "document")
    restarted = open_chat(model, again)
    after = read_by(restarted.invoke([said, HumanMessage("And now?")]))
    restarted.unload()
    again.close()
    report.results["document"] = {"seconds": times, "read": read, "after_restart": after}
    gain = times["off"] / times["on"]
    report.add(common.Check("document: times less", gain, 8, "at least", "x", questions))
    report.add(common.Check("document: read again", max(read["on"][1:]), 40, "at most", "tokens"))
    report.add(common.Check("after a restart", after, 40, "at most", "tokens"))


def child(model: str, directory: str) -> int:
    """Runs two chains with one system prompt, in a process of their own."""
    cache = PrefixStateCache(ram_bytes=64 << 20, disk=directory)
    read = []
    for question in ("One?", "Two?"):
        chat = open_chat(model, cache)
        system = SystemMessage(text_of(chat, 100))
        read.append(read_by((system_chain(chat, system)).invoke([HumanMessage(question)])))
        chat.unload()
    cache.close()
    print(json.dumps(read))
    return 0


def system_chain(chat: ChatRWKV, system: SystemMessage) -> Any:
    from langchain_core.runnables import RunnableLambda

    def with_system(messages: list[BaseMessage]) -> list[BaseMessage]:
        return [system, *messages]

    return RunnableLambda(with_system) | chat


def processes(report: common.Report, model: str, folder: Path) -> None:
    """Runs four chains with one system prompt, in two processes."""
    command = [sys.executable, "-m", "benchmarks.prefix_cache"]
    command += ["--child", model, str(folder / "processes")]
    read: list[int] = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        read += json.loads(done.stdout.splitlines()[-1])
    report.results["processes"] = {"read": read}
    times = sum(each >= 100 for each in read)
    report.add(common.Check("system prompt read by 4 chains", times, 1, "at most", "times"))


def transcript(report: common.Report, turns: int) -> None:
    """Replays a chat as a full transcript at each turn, and asks for one answer again."""
    cache = PrefixStateCache(ram_bytes=64 << 20)
    chat = open_chat("demo", cache, max_tokens=24)
    said: list[BaseMessage] = [SystemMessage("You listen well.")]
    read, new = [], []
    for turn in range(turns):
        question = HumanMessage(f"Tell me about the {_WORDS[turn % len(_WORDS)]}.")
        template = chat.loaded().template
        segments = template.segments([question], start=False, answer=True)
        new.append(sum(len(segment.ids) for segment in segments))
        said.append(question)
        answer = chat.invoke(said)
        read.append(read_by(answer))
        again = read_by(chat.invoke(said))
        said.append(AIMessage(answer.content))
    chat.unload()
    report.results["transcript"] = {"read": read, "new": new}
    excess = max(a - b for a, b in zip(read[1:], new[1:], strict=True))
    report.add(common.Check("transcript: read beside the new turn", excess, 0, "at most", "tokens"))
    report.add(common.Check("regenerate: read", again, 0, "at most", "tokens"))


def in_flight(report: common.Report, threads: int, tokens: int) -> None:
    """Lets threads come together with one cold system prompt."""
    cache = PrefixStateCache(ram_bytes=64 << 20)
    chat = open_chat("demo", cache)
    system = SystemMessage(text_of(chat, tokens))
    with ThreadPoolExecutor(threads) as pool:
        asked = ([system, HumanMessage(f"What of {number}?")] for number in range(threads))
        read = list(pool.map(lambda messages: read_by(chat.invoke(messages)), asked))
    chat.unload()
    report.results["in_flight"] = {"read": read}
    times = sum(each >= tokens for each in read)
    report.add(common.Check("cold prefix read", times, 1, "at most", "times", threads))


# -- without a model -----------------------------------------------------------------------------

_LAYOUT = StateLayout.of(7, n_layer=1, n_embd=16, head_size=16)


def small_state(seed: int = 0) -> CachedState:
    """Returns a small state; what reads it does not matter here."""
    tensors = {s.name: torch.full(s.shape, float(seed), dtype=s.dtype) for s in _LAYOUT.specs}
    return CachedState(RWKVState(_LAYOUT, tensors, Derivation("model")))


def zipf(report: common.Report, requests: int) -> None:
    """Replays 200 system prompts in room for 40 states: this policy, plain LRU, an oracle."""
    rng, kept = random.Random(0), small_state()
    lengths = [rng.randrange(50, 1_000) for _ in range(200)]
    prompts = [tuple(rng.choices(range(1, 60_000), k=length)) for length in lengths]
    weights = [1 / (rank + 1) for rank in range(200)]
    trace = rng.choices(range(200), weights, k=requests)
    cache = PrefixStateCache(ram_bytes=40 * kept.nbytes)
    hit = {"ours": 0, "lru": lru(trace, lengths, 40), "oracle": oracle(trace, lengths, 40)}
    for number, which in enumerate(trace):
        question = tuple(60_000 + (number * 7 + at) % 5_000 for at in range(_QUESTION_TOKENS))
        ids = (*prompts[which], *question)
        found = cache.lookup(_NAMESPACE, ids)
        hit["ours"] += 0 if found is None else min(found.n_tokens, lengths[which])
        cache.insert(_NAMESPACE, prompts[which], kept)
        cache.insert(_NAMESPACE, ids, kept)
    asked = sum(lengths[which] for which in trace)
    shares = {name: tokens / asked for name, tokens in hit.items()}
    report.results["zipf"] = {"tokens_hit": hit, "share": shares, "requests": requests}
    gain = hit["ours"] / max(hit["lru"], 1)
    report.add(common.Check("tokens hit, by those of LRU", gain, 1.0, "at least", "x", requests))
    common.print_table(
        "Zipf trace: share of the system prompts' tokens that were not read",
        ["policy", "share"],
        [[name, f"{share:.1%}"] for name, share in shares.items()],
    )


def lru(trace: Sequence[int], lengths: Sequence[int], room: int) -> int:
    """Returns the tokens that plain LRU saves, which keeps each question's state too."""
    held, saved = OrderedDict[object, None](), 0
    for number, which in enumerate(trace):
        saved += lengths[which] if which in held else 0
        for key in (which, ("question", number)):
            held[key] = None
            held.move_to_end(key)
            if len(held) > room:
                held.popitem(last=False)
    return saved


def oracle(trace: Sequence[int], lengths: Sequence[int], room: int) -> int:
    """Returns the tokens that Belady's rule saves, which knows the future."""
    following: list[float] = [float("inf")] * len(trace)
    seen: dict[int, int] = {}
    for at in range(len(trace) - 1, -1, -1):
        following[at] = seen.get(trace[at], float("inf"))
        seen[trace[at]] = at
    held: dict[int, float] = {}
    saved = 0
    for at, which in enumerate(trace):
        saved += lengths[which] if which in held else 0
        held[which] = following[at]
        if len(held) > room:
            del held[max(held, key=lambda key: held[key])]
    return saved


def cost(report: common.Report, sizes: Sequence[int]) -> None:
    """Times a lookup and an insertion, by the number of entries."""
    rows, kept = [], small_state()
    for size in sizes:
        rng = random.Random(size)
        cache = PrefixStateCache(ram_bytes=(size + 200) * kept.nbytes)
        prompts = [tuple(rng.choices(range(60_000), k=1_000)) for _ in range(size + 100)]
        for ids in prompts[:size]:
            cache.insert(_NAMESPACE, ids, kept)
        found = {
            "lookup": [
                timed(partial(cache.lookup, _NAMESPACE, (*ids, 1))) for ids in prompts[:100]
            ],
            "insert": [
                timed(partial(cache.insert, _NAMESPACE, ids, kept)) for ids in prompts[size:]
            ],
        }
        rows.append({"entries": size, **{k: statistics.median(v) for k, v in found.items()}})
    report.results["cost_microseconds"] = rows
    for name in ("lookup", "insert"):
        report.add(
            common.Check(f"{name}, {sizes[-1]} entries", rows[-1][name], 200, "at most", "us", 100)
        )
    common.print_table(
        "cost of a 1,000-token prompt in microseconds",
        ["entries", "lookup", "insert"],
        [[str(r["entries"]), f"{r['lookup']:.0f}", f"{r['insert']:.0f}"] for r in rows],
    )


def timed(run: Any) -> float:
    """Returns microseconds."""
    return common.seconds(run) * 1e6


def stress(report: common.Report, rounds: int) -> None:
    """Lets eight threads insert and look up, and compares the bytes held with the budgets."""
    kept = small_state()
    budgets = {"ram": 10 * kept.nbytes, "disk": 100_000}
    most = dict.fromkeys(budgets, 0.0)
    with tempfile.TemporaryDirectory(prefix="rwkv-prefix-") as folder:
        cache = PrefixStateCache(budgets["ram"], disk=folder, disk_bytes=budgets["disk"])
        lock = threading.Lock()

        def work(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(rounds):
                ids = tuple(rng.choices(range(3), k=40))
                cache.insert(_NAMESPACE, ids, kept)
                cache.lookup(_NAMESPACE, (*ids, 1))
                held = cache.stats().nbytes
                with lock:
                    for tier, budget in budgets.items():
                        most[tier] = max(most[tier], held[tier] / budget)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        cache.close()
    report.results["stress"] = most
    for tier, share in most.items():
        report.add(common.Check(f"bytes held, {tier}", share, 1.0, "at most", "of the budget"))


def draw(results: dict[str, Any], images: Path) -> None:
    """Draws what is read for each question, and the shares of the Zipf trace."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, read in results["document"]["read"].items():
        left.plot(range(1, len(read) + 1), read, label=f"cache {name}")
    left.set(xlabel="question", ylabel="tokens read", title="Questions on one document")
    left.set_ylim(bottom=0)
    left.legend()
    shares = results["zipf"]["share"]
    right.bar(list(shares), [100 * share for share in shares.values()])
    right.set(ylabel="% of tokens not read", title="Zipf over 200 prompts, room for 40 states")
    images.mkdir(parents=True, exist_ok=True)
    figure.savefig(images / "prefix_cache.svg", metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
