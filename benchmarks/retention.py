"""What a conversation still knows after its state went through a codec, a blend or a decay.

The demo model is told a fact, then other things, and asked. A codec is that of the store that the
conversation lives in, so that its loss is taken at each turn. It measures a model of a million
parameters. The easy mistake is to leave the controls out: a zero state and another conversation's
must know nothing.

    python -m benchmarks.retention [--quick] [--check] [-n 40]
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from random import Random
from statistics import fmean, median

import torch
from langchain_core.messages import HumanMessage

from benchmarks import common, values
from benchmarks.cases import FACTS, Conversation, holds, other_turn
from langchain_rwkv_state import ChatRWKV, MemoryStateStore
from langchain_rwkv_state.messages import marker
from langchain_rwkv_state.state import (
    CODECS,
    LOSSY,
    CodecName,
    Derivation,
    RWKVState,
    StateLayout,
    blend,
    decay,
    decode,
    distance,
    encode,
    lossy,
)

MODEL = "demo"
LARGE = StateLayout.of(7, n_layer=12, n_embd=768, head_size=64)
SHARES = {"zstd": 0.87, "fp16": 0.51, "bf16": 0.51, "int8": 0.27, "int4": 0.15}
ALPHAS = (0.0, 0.3, 0.5, 0.7, 1.0)
FACTORS = (1.0, 0.7, 0.5, 0.3)
OTHER_TURNS = 4
Sums = Counter[str]


def chat_on(codec: CodecName = "exact") -> ChatRWKV:
    """Returns the model on a store of its own."""
    store = MemoryStateStore(codec=codec)
    return ChatRWKV(model=MODEL, temperature=0, max_tokens=48, store=store, prefix_cache=False)


def told(chat: ChatRWKV, rng: Random, kind: str, name: str, turns: int) -> tuple[Conversation, str]:
    """Tells a fact and some other things; returns the conversation and the fact's value."""
    value = values.value(rng, kind)
    talk = Conversation(chat, name)
    talk.say(FACTS[kind][0].format(v=value))
    for _ in range(turns):
        talk.say(other_turn(rng))
    return talk, value


def state_of(talk: Conversation) -> RWKVState:
    """Returns a conversation's state."""
    head = talk.session.head
    if head is None:
        raise RuntimeError("The conversation has no turn.")
    return talk.session.store.get(head)


def answer(talk: Conversation, state: RWKVState, question: str) -> str:
    """Asks a question from a state."""
    ref = talk.session.store.put(state)
    return str(talk.chat.invoke([marker(ref), HumanMessage(question)]).text)


def after_codecs(n: int) -> dict[str, int]:
    """Returns how many of n facts come back from a store of each codec, and from the controls."""
    right: Sums = Counter()
    for codec in CODECS:
        chat = chat_on(codec)
        for case in range(n):
            rng, kind = Random(f"codec {case}"), values.KINDS[case % len(values.KINDS)]
            talk, value = told(chat, rng, kind, f"talk {case}", OTHER_TURNS)
            right[codec] += holds(talk.ask(FACTS[kind][1]), value)
            if codec == "exact":
                stranger, _ = told(chat, Random(f"other {case}"), kind, f"other {case}", 1)
                right["zero state"] += holds(
                    Conversation(chat, f"zero {case}").ask(FACTS[kind][1]), value
                )
                right["another conversation"] += holds(stranger.ask(FACTS[kind][1]), value)
        chat.unload()
    return dict(right)


def after_blend(n: int) -> dict[str, Sums]:
    """Returns by alpha how many of n facts of the first and of the second conversation survive."""
    chat, right = chat_on(), dict[str, Sums]()
    for label, other_kind in (("two names", "name"), ("a name and a city", "city")):
        for alpha in ALPHAS:
            sums = right.setdefault(f"{label}, alpha {alpha}", Counter())
            for case in range(n):
                rng = Random(f"blend {case}")
                first, one = told(chat, rng, "name", f"{label} {alpha} a {case}", 1)
                second, two = told(chat, rng, other_kind, f"{label} {alpha} b {case}", 1)
                mixed = blend(state_of(first), state_of(second), alpha)
                sums["first"] += holds(answer(first, mixed, FACTS["name"][1]), one)
                sums["second"] += holds(answer(first, mixed, FACTS[other_kind][1]), two)
    chat.unload()
    return right


def after_decay(n: int) -> dict[str, int]:
    """Returns by factor how many of n facts survive."""
    chat, right = chat_on(), Counter[str]()
    for case in range(n):
        rng, kind = Random(f"decay {case}"), values.KINDS[case % len(values.KINDS)]
        talk, value = told(chat, rng, kind, f"talk {case}", 1)
        for factor in FACTORS:
            faded = decay(state_of(talk), factor)
            right[str(factor)] += holds(answer(talk, faded, FACTS[kind][1]), value)
    chat.unload()
    return dict(right)


def large_state() -> RWKVState:
    """Returns a random state of the size of an RWKV-7 0.1B."""
    dice = torch.Generator().manual_seed(0)
    tensors = {spec.name: torch.randn(spec.shape, generator=dice) for spec in LARGE.specs}
    return RWKVState(LARGE, tensors, Derivation("random"))


def costs(times: int) -> dict[str, dict[str, float]]:
    """Returns each codec's share of fp32's bytes, its speed, and the KL on the demo model."""
    chat = chat_on()
    talk, _ = told(chat, Random(1), "name", "costs", OTHER_TURNS)
    runtime = chat.loaded().runtime
    small, large, found = state_of(talk), large_state(), dict[str, dict[str, float]]()
    for codec in CODECS:
        kept = lossy(large, codec)
        data = encode(kept, codec=codec)
        row = {
            "share_12x768": len(data) / LARGE.nbytes,
            "share_demo": len(encode(lossy(small, codec), codec=codec)) / small.layout.nbytes,
            "encode_gb_s": _speed(lambda c=codec, k=kept: encode(k, codec=c), times),  # type: ignore[misc]
            "decode_gb_s": _speed(lambda d=data: decode(d), times),  # type: ignore[misc]
        }
        if codec in LOSSY:
            again = RWKVState(small.layout, dict(lossy(small, codec)), small.derivation)
            row["kl"] = fmean(
                distance(small, again, "logits_kl", runtime=runtime, probe=[token]).total
                for token in range(1, 33)
            )
        found[codec] = row
    chat.unload()
    return found


def _speed(run: Callable[[], object], times: int) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return LARGE.nbytes / median(seconds) / 1e9


def main() -> int:
    parser = common.parser("Measures what survives codecs, blends and decays.")
    parser.add_argument("-n", type=int, help="cases of each kind (40; 2 if quick)")
    arguments = parser.parse_args()
    n = arguments.n or (2 if arguments.quick else 40)
    torch.set_num_threads(1)
    settings = {"model": MODEL, "n": n, "other_turns": OTHER_TURNS}
    report = common.Report("retention", settings)
    found = costs(2 if arguments.quick else 15)
    recalled = after_codecs(n)
    blended, decayed = after_blend(n), after_decay(n)
    report.results = {
        "codecs": found,
        "recall": recalled,
        "blend": {name: dict(sums) for name, sums in blended.items()},
        "decay": decayed,
    }
    for codec, share in SHARES.items():
        for size in ("12x768", "demo"):
            name, measured = f"{codec}: share of the bytes, {size}", found[codec][f"share_{size}"]
            report.add(common.Check(name, measured, share, "at most"))
    for codec in (each for each in CODECS if each != "exact"):
        lost = 100 * (recalled["exact"] - recalled[codec]) / n
        bound = 2 if codec in ("int8", "int4") else 0
        report.add(common.Check(f"{codec}: recall lost", lost, bound, "at most", "points", n))
    common.print_table(
        "Recall after a codec",
        ["store", "right"],
        [[k, f"{v} of {n}"] for k, v in recalled.items()],
    )
    common.print_table(
        "Recall after a blend",
        ["blend", "first", "second"],
        [[name, *(f"{s[k]} of {n}" for k in ("first", "second"))] for name, s in blended.items()],
    )
    common.print_table(
        "Recall after a decay",
        ["factor", "right"],
        [[k, f"{v} of {n}"] for k, v in decayed.items()],
    )
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
