"""Times the runtime alone on a card, and its peers by turns with it, each in its own process.

Ours is loaded once. Each peer comes alone beside it, so that two models at a time must fit, and
both are timed by turns in every cell: a ratio is of figures a second apart, at the same clocks. A
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
from benchmarks.cuda.bench import Bench
from benchmarks.cuda.estimate import ALBATROSS, GOAL
from benchmarks.speed import Cell, Contender

PACKAGE, FLA = "`rwkv` package", "fla"
ALBATROSS_16, ALBATROSS_32 = "Albatross", "Albatross, states in fp32"
COMPARED = ("B=1", "B=64", "B=320", "prefill 1,024")
ROUNDS = 3


class Ended(Exception):
    """A contender ended amid its work."""


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


def peers(bench: Bench, model: str) -> Iterator[Peer]:
    """Yields those that may be there; Albatross only where a checkout was named."""
    start = (sys.executable, "-m")
    if bench.albatross:
        module = "benchmarks.peers.albatross_speed"
        # With states in fp16, as its figures are published; in fp32, ours are compared with equals.
        for name, states in ((ALBATROSS_16, "fp16"), (ALBATROSS_32, "fp32"))[: 2 - bench.quick]:
            yield Peer(name, (*start, module, model, bench.device, bench.albatross, states))
    else:
        bench.leave_out(ALBATROSS_16, "no checkout was named (--albatross PATH)")
    module = "benchmarks.peers.rwkv_cuda_speed"
    yield Peer(PACKAGE, (*start, module, model, bench.device), one_by_one=True)
    yield Peer(FLA, (*start, "benchmarks.peers.fla_speed", model, bench.device))


def cells(bench: Bench) -> list[Cell]:
    """Returns what is timed: decoding by rows, and prompts by length."""
    decode = [Cell("decode", rows, 2 if bench.dry else 64) for rows in bench.rows]
    prefill = [Cell("prefill", length, 1 if bench.dry else 4) for length in bench.prompts]
    return [*decode, *prefill]


def measure(bench: Bench, name: str) -> None:
    """Times one shape: ours in all cells, then each peer by turns with ours in some."""
    model = str(bench.model(name))
    every = cells(bench)
    compared = [cell for cell in every if cell.name in COMPARED or bench.dry]
    own = (sys.executable, "-m", "benchmarks.cuda.ours", model, bench.strategy())
    with _started(Peer("ours", own)) as ours:
        if ours.missing:
            raise RuntimeError(f"Ours does not load: {ours.missing}")
        alone: dict[str, float] = {}
        for cell in _in_time(bench, name, every):
            speed = alone[cell.name] = _best({"ours": ours}, cell)["ours"]
            print(f"{name}, {cell.name}: {speed:,.0f} ids a second", flush=True)
            bench.note("alone", alone)
        beside: dict[str, dict[str, dict[str, float]]] = {}
        for peer in peers(bench, model):
            with _started(peer) as other:
                if other.missing:
                    bench.leave_out(f"{name}, {peer.name}", other.missing)
                    continue
                beside[peer.name] = {}
                for cell in _in_time(bench, f"{name}, {peer.name}", compared):
                    try:
                        found = _best({"ours": ours, "peer": other}, cell)
                    except Ended as ended:
                        bench.leave_out(f"{name}, {peer.name}, {cell.name}", str(ended))
                        break
                    beside[peer.name][cell.name] = found
                    bench.note("beside", beside)
                    ratio = found["ours"] / found["peer"]
                    print(f"{name}, {cell.name}: {ratio:.2f} of {peer.name}", flush=True)
                    if peer.name == ALBATROSS_16 and not bench.dry:
                        what = f"{name}, {cell.name} / Albatross"
                        bench.check(Check(what, ratio, GOAL, "at least", "x", ROUNDS))
    published = {f"{card} B={rows}": v for (of, card, rows), v in ALBATROSS.items() if of == name}
    bench.note("published", published)


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
        Ended: One of them ended, most often for want of memory.
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
