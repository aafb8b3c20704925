"""Times the runtime alone on a card, and its peers by turns with it, each in its own process.

Each peer comes alone beside ours, so that two models at a time must fit, and both are timed by
turns in every cell: a ratio is of figures a second apart, at the same clocks. A
step of ours is a whole one, ids in and ids out with the sampling between; a peer's is its pass
alone, which flatters the peer.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.common import Check
from benchmarks.cuda.bench import Bench, no_memory
from benchmarks.cuda.estimate import ALBATROSS as PUBLISHED
from benchmarks.cuda.estimate import GOAL
from benchmarks.speed import Cell, Contender

PACKAGE, FLA, ALBATROSS = "`rwkv` package", "fla", "Albatross"
COMPARED = ("B=1", "B=64", "B=320", "prefill 1,024")
ROUNDS = 3


class Ended(Exception):
    """A contender failed at a cell, or ended amid it."""


@dataclass(frozen=True)
class Peer:
    """A contender beside ours.

    Attributes:
        name: As in the tables.
        command: What starts it.
        one_by_one: Whether it decodes states one after the other.
    """

    name: str
    command: tuple[str, ...]
    one_by_one: bool = False


def peers(bench: Bench, model: str, states: str) -> Iterator[Peer]:
    """Yields those that may be there and keep WKV states in a dtype as ours do.

    Args:
        bench: The part's surroundings.
        model: The file.
        states: ``fp32`` or ``fp16``.
    """
    start = (sys.executable, "-m")
    if bench.albatross:
        module = "benchmarks.peers.albatross_speed"
        yield Peer(ALBATROSS, (*start, module, model, bench.device, bench.albatross, states))
    else:
        bench.leave_out(ALBATROSS, "no checkout was named (--albatross PATH)")
    if states == "fp32":
        module = "benchmarks.peers.rwkv_cuda_speed"
        yield Peer(PACKAGE, (*start, module, model, bench.device), one_by_one=True)
        yield Peer(FLA, (*start, "benchmarks.peers.fla_speed", model, bench.device))


def cells(bench: Bench) -> list[Cell]:
    """Returns what is timed: decoding by rows, and prompts by length."""
    decode = [Cell("decode", rows, 2 if bench.dry else 16) for rows in bench.rows]
    prefill = [Cell("prefill", length, 1 if bench.dry else 2) for length in bench.prompts]
    return [*decode, *prefill]


def measure(bench: Bench, name: str) -> None:
    """Times one shape: ours in all cells, then each peer by turns with ours in some.

    All that with WKV states in fp32, and if there is time in fp16, which Albatross has by itself.
    """
    model = str(bench.model(name))
    bench.note("alone", {})
    bench.note("beside", {})
    for states in ("fp32",) if bench.quick else ("fp32", "fp16"):
        strategy = bench.strategy("fp16" if states == "fp32" else "fp16 state_fp16")
        command = (sys.executable, "-m", "benchmarks.cuda.ours", model, strategy)
        with _started(Peer("ours", command)) as ours:
            if ours.missing:
                raise RuntimeError(f"{strategy!r} does not load: {ours.missing}")
            what = f"{name}, states in {states}"
            _alone(bench, what, bench.results["alone"].setdefault(states, {}), ours)
            for peer in peers(bench, model, states):
                label = f"{what}, {peer.name}"
                with _started(peer) as other:
                    if other.missing:
                        bench.leave_out(label, other.missing)
                        continue
                    which = f"{peer.name} {other.version}, {states}"
                    found = bench.results["beside"].setdefault(which, {})
                    _beside(bench, label, found, {"ours": ours, "peer": other})
    published = {f"{card} B={rows}": v for (of, card, rows), v in PUBLISHED.items() if of == name}
    bench.note("published by Albatross", published)


def build_peers(bench: Bench) -> None:
    """Starts each peer once, however long it takes, so that its CUDA code is built."""
    model = str(bench.model("0.1B"))
    for states in ("fp32", "fp16"):
        for peer in peers(bench, model, states):
            print(f"starting {peer.name}, states in {states}", flush=True)
            with _started(peer) as one:
                print(one.missing or f"it runs: {peer.name} {one.version}", flush=True)


def _alone(bench: Bench, what: str, speeds: dict[str, float], ours: Contender) -> None:
    for cell in _in_time(bench, what, cells(bench)):
        try:
            speed = speeds[cell.name] = _best({"ours": ours}, cell)["ours"]
        except Ended as ended:
            if not no_memory(str(ended)):
                raise
            bench.leave_out(f"{what}, {cell.name}", str(ended))
            continue
        print(f"{what}, {cell.name}: {speed:,.0f} ids a second", flush=True)
        bench.note("alone", bench.results["alone"])


def _beside(
    bench: Bench, what: str, found: dict[str, dict[str, float]], both: dict[str, Contender]
) -> None:
    compared = [cell for cell in cells(bench) if cell.name in COMPARED or bench.dry]
    for cell in _in_time(bench, what, compared):
        try:
            pair = found[cell.name] = _best(both, cell)
        except Ended as ended:
            bench.leave_out(f"{what}, {cell.name}", str(ended))
            continue
        bench.note("beside", bench.results["beside"])
        ratio = pair["ours"] / pair["peer"]
        print(f"{what}, {cell.name}: {ratio:.2f} of the peer", flush=True)
        if what.endswith(ALBATROSS) and not bench.dry:
            bench.check(Check(f"{cell.name} / {what}", ratio, GOAL, "at least", "x", ROUNDS))


def parts(names: Sequence[str]) -> dict[str, partial[None]]:
    """Returns a part for each shape."""
    return {f"speed {name}": partial(measure, name=name) for name in names}


def _in_time(bench: Bench, what: str, every: Sequence[Cell]) -> Iterator[Cell]:
    named = {f"{what}, {cell.name}": cell for cell in every}
    return (named[name] for name in bench.within_time(named))


@contextlib.contextmanager
def _started(peer: Peer) -> Iterator[Contender]:
    """Starts a contender; one that does not come up is missing, with its last words."""
    with contextlib.closing(Contender(peer.command, one_by_one=peer.one_by_one)) as one:
        try:
            one.await_start()
        except RuntimeError as error:
            one.missing = _last_line(error)
        yield one


def _best(found: dict[str, Contender], cell: Cell) -> dict[str, float]:
    """Returns ids a second, the best of the rounds by turns.

    Raises:
        Ended: One of them failed, most often for want of memory.
    """
    best: dict[str, float] = {}
    # One state after the other is long as it is.
    times = {n: 1 if c.one_by_one and cell.n > 1 else cell.times for n, c in found.items()}
    try:
        for one in found.values():
            one.seconds(cell, times=0)
        for _ in range(ROUNDS):
            for name, one in found.items():
                seconds = one.seconds(cell, times=times[name])
                best[name] = max(best.get(name, 0), cell.n * times[name] / seconds)
    except (RuntimeError, BrokenPipeError) as error:
        raise Ended(_last_line(error)) from error
    return best


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["it ended"])[-1]
