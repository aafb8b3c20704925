"""Measures what each codec costs: bytes, time, and how far the next token's distribution moves.

Sizes, speeds and divergences on two models: the built-in one, and a random RWKV-7 of 12 x 768 that
read random ids; and states of the second size written and read through a store, beside diskcache's
own pickling with the same flushing. What a codec costs in facts is `benchmarks.retention`'s to say.
A state is read rather than drawn at random: its exponents repeat, and that is all that zstd finds.

    python -m benchmarks.codecs [--quick] [--check]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from statistics import fmean, median

import diskcache
import torch
from langchain_core.messages import HumanMessage

from benchmarks import common
from benchmarks.models import write_2x128, write_12x768
from benchmarks.store import PICKLE, FlushedDisk
from langchain_rwkv_state import ChatRWKV, MemoryStateStore
from langchain_rwkv_state.runtime import Runtime, load_runtime
from langchain_rwkv_state.state import (
    CODECS,
    LOSSY,
    CodecName,
    Derivation,
    RWKVState,
    decode,
    distance,
    encode,
    lossy,
)
from langchain_rwkv_state.store import DiskStateStore
from langchain_rwkv_state.toolbox.recall.values import FACTS, KINDS, other_turn, value

SHARES = {"zstd": 0.87, "fp16": 0.51, "bf16": 0.51, "int8": 0.27, "int4": 0.15}
"""The most bytes, as a share of fp32's."""
KEYS = ("share", "encode_gb_s", "decode_gb_s", "kl")
LARGE, DEMO = "12x768", "demo"
_READ_TOKENS = 400
_TALKS = 4


@contextmanager
def models(*, quick: bool) -> Iterator[dict[str, tuple[Runtime, list[RWKVState]]]]:
    """Yields both models, each with states that it read."""
    with tempfile.TemporaryDirectory() as folder:
        write = write_2x128 if quick else write_12x768
        large = load_runtime(write(Path(folder) / "large.pth"))
        chat = ChatRWKV(temperature=0, store=MemoryStateStore(), prefix_cache=False)
        try:
            yield {
                DEMO: (chat.loaded().runtime, [_talked(chat, n) for n in range(_TALKS)]),
                LARGE: (large, [_read(large, n) for n in range(1 if quick else _TALKS)]),
            }
        finally:
            chat.unload()
            large.close()


def _talked(chat: ChatRWKV, number: int) -> RWKVState:
    """Returns the state of a conversation with facts and other things."""
    rng, talk = Random(number), chat.with_session(f"talk {number}")
    for kind in KINDS:
        talk.invoke([HumanMessage(FACTS[kind][0].format(v=value(rng, kind)))])
        talk.invoke([HumanMessage(other_turn(rng))])
    state: RWKVState = chat.store.get(str(talk.head))
    return state


def _read(runtime: Runtime, number: int) -> RWKVState:
    rng = Random(number)
    ids = [rng.randrange(1, runtime.vocab_size) for _ in range(_READ_TOKENS)]
    return runtime.forward(ids, runtime.zero_state())[1]


def costs(
    runtime: Runtime, states: list[RWKVState], times: int, probes: int
) -> dict[str, dict[str, float]]:
    """Returns each codec's share of fp32's bytes, its speed, and the divergence it causes.

    The speeds are those of `lossy` and `encode`, and of `decode`, on one thread, with checks, in GB
    of the state's tensors a second; the codecs take turns, so that a busy moment hits all.
    """
    data = {codec: _encode(states[0], codec, 0) for codec in CODECS}
    encoders: dict[str, Callable[[int], object]] = {
        codec: partial(_encode, states[0], codec) for codec in CODECS
    }
    decoders: dict[str, Callable[[int], object]] = {
        codec: partial(_decode, data[codec]) for codec in CODECS
    }
    encoding = common.interleaved_seconds(encoders, times)
    decoding = common.interleaved_seconds(decoders, times)
    nbytes = runtime.layout.nbytes
    found: dict[str, dict[str, float]] = {}
    for codec in CODECS:
        found[codec] = {
            "share": fmean(len(_encode(s, codec, 0)) for s in states) / nbytes,
            "encode_gb_s": nbytes / median(encoding[codec]) / 1e9,
            "decode_gb_s": nbytes / median(decoding[codec]) / 1e9,
            "kl": _divergence(runtime, states, codec, probes) if codec in LOSSY else 0.0,
        }
        for state in states:
            assert codec in LOSSY or decode(encode(state, codec=codec)).state == state
    return found


def _encode(state: RWKVState, codec: CodecName, _: int) -> bytes:
    return encode(lossy(state, codec), codec=codec)


def _decode(data: bytes, _: int) -> RWKVState:
    return decode(data).state


def _divergence(runtime: Runtime, states: list[RWKVState], codec: CodecName, probes: int) -> float:
    """Returns the mean next-token KL, in nats, behind probes of one token each."""
    rng = Random(codec)
    return fmean(
        distance(
            state,
            RWKVState(state.layout, dict(lossy(state, codec)), state.derivation),
            "logits_kl",
            runtime=runtime,
            probe=[rng.randrange(1, runtime.vocab_size)],
        ).total
        for state in states
        for _ in range(probes)
    )


def through_a_store(state: RWKVState, folder: Path, times: int) -> dict[str, float]:
    """Times states written and read, by each codec that loses nothing, and by pickling.

    Written is flushed to the disk, through the store as `put` does it, through diskcache as its
    default `Disk` pickles the tensors, with the same flushing. Read is checked, where the store's
    way is to check. All take turns.

    Returns:
        Median seconds by way, ``store exact, write`` and so on.
    """
    tensors = {name: state[name] for name in state}
    stores = {codec: DiskStateStore(folder / codec, codec=codec) for codec in ("exact", "zstd")}
    numbers = count()
    with diskcache.Cache(str(folder / "pickle"), disk=FlushedDisk, **PICKLE) as cache:
        refs: dict[str, list[str]] = {codec: [] for codec in stores}
        keys: list[int] = []

        def put(codec: str, _: int) -> None:
            named = RWKVState(state.layout, tensors, Derivation("m").read([next(numbers)]))
            refs[codec].append(stores[codec].put(named))

        def pickle(_: int) -> None:
            keys.append(next(numbers))
            cache.set(keys[-1], tensors)

        writes: dict[str, Callable[[int], object]] = {
            f"store {codec}, write": partial(put, codec) for codec in stores
        }
        reads: dict[str, Callable[[int], object]] = {
            f"store {codec}, read": lambda n, c=codec: stores[c].get(refs[c][n])  # type: ignore[misc]
            for codec in stores
        }
        writes["pickle, write"] = pickle
        reads["pickle, read"] = lambda n: cache[keys[n]]
        timed = common.interleaved_seconds(writes, times) | common.interleaved_seconds(reads, times)
    for store in stores.values():
        store.close()
    return {name: median(seconds) for name, seconds in timed.items()}


def main() -> int:
    arguments = common.parser("Measures the codecs.").parse_args()
    times, probes = (2, 2) if arguments.quick else (25, 32)
    torch.set_num_threads(1)
    report = common.Report("codecs", {"times": times, "probes": probes, "talks": _TALKS})
    with models(quick=arguments.quick) as both, tempfile.TemporaryDirectory() as folder:
        for name, (runtime, states) in both.items():
            report.results[name] = costs(runtime, states, times, probes)
        large = both[LARGE][1][0]
        stored = through_a_store(large, Path(folder), 3 if arguments.quick else 60)
        report.results["store"] = {"state_bytes": large.nbytes, "seconds": stored}
    for codec, share in SHARES.items():
        for size in (LARGE, DEMO):
            measured = report.results[size][codec]["share"]
            report.add(
                common.Check(f"{codec}: share of the bytes, {size}", measured, share, "at most")
            )
    for way in ("write", "read"):
        ratio = stored[f"store exact, {way}"] / stored[f"pickle, {way}"]
        report.add(common.Check(f"exact, {way}: time over pickling's", ratio, 1, "at most", "x"))
    _print(report)
    return report.finish(arguments)


def _print(report: common.Report) -> None:
    for name in (DEMO, LARGE):
        common.print_table(
            f"Codecs, {name}",
            ["codec", "of fp32", "encode GB/s", "decode GB/s", "KL, nats"],
            [
                [
                    codec,
                    *(f"{row[key]:.3g}" for key in KEYS),
                ]
                for codec, row in report.results[name].items()
            ],
        )
    common.print_table(
        "Through a store",
        ["way", "ms"],
        [[way, f"{1e3 * each:.2f}"] for way, each in report.results["store"]["seconds"].items()],
    )


if __name__ == "__main__":
    raise SystemExit(main())
