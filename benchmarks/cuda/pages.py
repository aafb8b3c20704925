"""Writes what `make gpu` found as tables of docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

from benchmarks.cuda.chat import WAYS
from benchmarks.state_tables import table


def machine(report: dict[str, Any]) -> str:
    """Returns the card, the versions, what ran, and what was left out."""
    results = report["results"]
    ran = results.get("what runs", {})
    named = {**ran.get("machine", {}), "runs": ran.get("about", "not known")}
    rows = [["date", report["date"]]]
    rows += [
        [name, ", ".join(value) if isinstance(value, list) else str(value)]
        for name, value in named.items()
    ]
    rows += [["left out", each] for each in results["cut"]]
    rows += [["failed", each] for each in results["failed"]]
    return table(["what", ""], rows)


def correct(report: dict[str, Any]) -> str:
    """Returns how far each dtype is from the CPU's fp32, and the ways from each other."""
    found = _of(report, "correct")
    names = list(
        dict.fromkeys(n for dtypes in found.values() for each in dtypes.values() for n in each)
    )
    rows = [
        [f"{shape}, {dtype}", *(f"{each[name]:.0e}" if name in each else "" for name in names)]
        for shape, dtypes in found.items()
        for dtype, each in dtypes.items()
    ]
    return table(["model", *names], rows)


def alone(report: dict[str, Any]) -> str:
    """Returns ids a second of the runtime alone."""
    found = {
        f"{shape}, states in {states}": cells
        for shape, each in _of(report, "speed").items()
        for states, cells in each.get("alone", {}).items()
    }
    cells = list(dict.fromkeys(cell for each in found.values() for cell in each))
    rows = [[shape, *(_number(each.get(cell)) for cell in cells)] for shape, each in found.items()]
    return table(["ids a second", *cells], rows)


def beside(report: dict[str, Any]) -> str:
    """Returns each peer's ids a second, and the runtime's ratio to it, timed by turns."""
    found = {
        (shape, peer): cells
        for shape, each in _of(report, "speed").items()
        for peer, cells in each.get("beside", {}).items()
    }
    cells = list(dict.fromkeys(cell for each in found.values() for cell in each))

    def figure(pair: dict[str, float] | None) -> str:
        return f"{pair['peer']:,.0f} ({pair['ours'] / pair['peer']:.2f})" if pair else ""

    rows = [
        [shape, peer, *(figure(each.get(cell)) for cell in cells)]
        for (shape, peer), each in found.items()
    ]
    return table(["model", "peer, its states", *cells], rows)


def chat(report: dict[str, Any]) -> str:
    """Returns tokens a second through the engine and chat, beside the runtime alone."""
    rows = [
        [shape, batch.removeprefix("B="), *(_number(speeds.get(way)) for way in WAYS)]
        for shape, each in _of(report, "chat").items()
        for batch, speeds in each.get("tokens a second", {}).items()
    ]
    return table(["model", "at once", *WAYS], rows)


def _of(report: dict[str, Any], kind: str) -> dict[str, Any]:
    """Returns what the parts of a kind found, by shape."""
    results: dict[str, Any] = report["results"]
    begins = f"{kind} "
    return {n.removeprefix(begins): each for n, each in results.items() if n.startswith(begins)}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
