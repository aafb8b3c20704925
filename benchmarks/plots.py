"""Draws what the benchmarks measured, from their JSON files.

It measures nothing and needs matplotlib (the dependency group ``bench``). Runs with `--quick` leave
no JSON among the results, so they are never drawn.

    python -m benchmarks.plots
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks import speed
from benchmarks.agent_calls import STATE, TRANSCRIPT
from benchmarks.agent_thread import CACHED, WAYS
from benchmarks.cases import DISTANCES, FAR
from benchmarks.common import IMAGES, RESULTS
from benchmarks.endurance import SETTLED_MINUTES
from benchmarks.recall import TARGETS
from langchain_rwkv_state.toolbox.recall.result import Recall
from langchain_rwkv_state.views.plots.recall_plot import draw_recall

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the choice of a backend without a screen

_SIZE_INCHES, _DPI = (6.4, 3.6), 110
_STATE, _TRANSCRIPT, _QUIET = "#1f6f8b", "#d1495b", "#8d99ae"
_TICKS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_CONTENDERS: dict[str, dict[str, Any]] = {
    speed.PACKED: {"color": _QUIET, "linestyle": ":"},
    speed.INT8: {"color": "#3aa17e", "marker": "o"},
    speed.FP16: {"color": "#66b2cc", "marker": "o"},
    speed.FP32: {"color": _STATE, "marker": "o"},
    speed.LLAMA_Q8: {"color": "#edae49", "marker": "s", "linestyle": "--"},
    speed.LLAMA: {"color": _TRANSCRIPT, "marker": "s", "linestyle": "--"},
    speed.RWKVSERVE: {"color": "#9a6fb0", "marker": "s", "linestyle": "--"},
    speed.PACKAGE: {"color": "#444444", "marker": "s", "linestyle": "--"},
}


def recall(results: dict[str, Any], path: Path) -> None:
    """Draws how much is remembered by distance, on the state and on a transcript replay."""
    figure, axes = plt.subplots(figsize=_SIZE_INCHES)
    shown = [d for d in (*DISTANCES, *FAR) if f"fact after {d}" in results]
    targets = [TARGETS[f"fact after {d}"] for d in DISTANCES]
    axes.step(DISTANCES, targets, where="post", color=_QUIET, linestyle=":", label="target")
    replay = [(d, results[f"replay after {d}"]["percent"]) for d in DISTANCES]
    axes.plot(*zip(*replay, strict=True), "s--", color=_TRANSCRIPT, label="transcript read again")
    state = [(d, results[f"fact after {d}"]["percent"]) for d in shown]
    axes.plot(*zip(*state, strict=True), "o-", color=_STATE, markersize=4, label="state")
    axes.set(xlabel="other turns since the fact", ylabel="recalled exactly, %", ylim=(0, 103))
    axes.set_title("The built-in model's memory, values that training never drew", fontsize=10)
    _finish(figure, axes, path)


def turns(results: dict[str, Any], path: Path) -> None:
    """Draws the time of a turn by its number, on a state and on a transcript."""
    rows = results["turns"]["rows"]
    figure, axes = plt.subplots(figsize=_SIZE_INCHES)
    at = [row["turn"] for row in rows]
    every = results["turns"]["each_turn_seconds"]
    axes.plot(range(1, len(every) + 1), every, ".", color=_QUIET, markersize=3, label="each turn")
    axes.plot(
        at,
        [row["replay_seconds"] for row in rows],
        "s--",
        color=_TRANSCRIPT,
        label="chain on a transcript",
    )
    axes.plot(
        at,
        [row["chain_seconds"] for row in rows],
        "o-",
        color=_STATE,
        label="the same chain on a state",
    )
    axes.set(xlabel="turn", ylabel="seconds a turn", ylim=(0, None))
    axes.set_title("A turn's time, random RWKV-7 12x768, 2 CPU threads", fontsize=10)
    _finish(figure, axes, path)


def speeds(results: dict[str, Any], path: Path) -> None:
    """Draws ids a second by the number of states decoded at once."""
    decoded = [cell for cell in results["cells"] if cell.startswith("B=")]
    at = [int(cell.removeprefix("B=")) for cell in decoded]
    figure, axes = plt.subplots(figsize=_SIZE_INCHES)
    for name, style in _CONTENDERS.items():
        if name in results["speeds"]:
            found = [results["speeds"][name][cell] for cell in decoded]
            axes.plot(at, found, label=name.replace("`", ""), markersize=4, **style)
    axes.set(xscale="log", yscale="log", xticks=at, xticklabels=map(str, at))
    low, high = axes.get_ylim()
    shown = [tick for tick in _TICKS if low <= tick <= high]
    axes.set(yticks=shown, yticklabels=map(str, shown))
    axes.minorticks_off()
    axes.set(xlabel="conversations decoded at once", ylabel="tokens a second")
    axes.set_title("Decoding, random RWKV-7 12x768, 2 CPU threads", fontsize=10)
    _finish(figure, axes, path, beside=True)


def waiting(results: dict[str, Any], path: Path) -> None:
    """Draws the longest gap of others, and how long the prompt itself waits, by budget."""
    found = results["gap"]
    at = [row["budget"] for row in found["rows"]]
    figure, axes = plt.subplots(figsize=_SIZE_INCHES)
    longest = [row["longest_steps"] for row in found["rows"]]
    axes.plot(at, longest, "o-", color=_STATE, label="longest gap of the others, decode steps")
    waits = [row["first_token_seconds"] for row in found["rows"]]
    axes.plot(at, waits, "s--", color=_TRANSCRIPT, label="the prompt's first token, seconds")
    axes.axhline(4, color=_QUIET, linestyle=":", label="most steps allowed")
    axes.set(xscale="log", xticks=at, xticklabels=map(str, at), ylim=(0, None))
    axes.minorticks_off()
    axes.set(xlabel="prefill_budget, tokens of prompts beside a decode step")
    title = f"A prompt of {found['prompt']:,} tokens beside {found['others']} answers"
    axes.set_title(title, fontsize=10)
    _finish(figure, axes, path)


def endurance(results: dict[str, Any], path: Path) -> None:
    """Draws what a process took while it was under load, each beside its value at minute 5."""
    rows = results["rows"][:-1]
    minutes = sorted({int(row["minute"]) for row in rows})
    settled = min(int(SETTLED_MINUTES), minutes[-1])
    figure, axes = plt.subplots(figsize=_SIZE_INCHES)
    styles = {"rss_mb": _STATE, "descriptors": _TRANSCRIPT, "threads": _QUIET}
    names = {"rss_mb": "memory, MB", "descriptors": "descriptors", "threads": "threads"}
    for name, colour in styles.items():
        found = {
            at: statistics.median(row[name] for row in rows if int(row["minute"]) == at)
            for at in minutes
        }
        label = f"{names[name]} ({found[settled]:.0f} in minute {settled})"
        axes.plot(
            minutes, [found[at] / found[settled] for at in minutes], color=colour, label=label
        )
    axes.axvline(SETTLED_MINUTES, color=_QUIET, linestyle=":")
    axes.set(xlabel="minutes under load", ylabel="beside minute 5", ylim=(0, 2))
    axes.set_title("Threads, event loops, cancellations, failures, copies", fontsize=10)
    _finish(figure, axes, path)


_THREADS: dict[str, dict[str, Any]] = {
    STATE: {"color": _STATE, "label": "a state's reference"},
    TRANSCRIPT: {"color": _TRANSCRIPT, "linestyle": "--", "label": "transcript"},
    CACHED: {"color": "black", "linestyle": ":", "label": "transcript, with a prefix cache"},
}


def thread_cost(
    key: str, title: str, label: str, ways: Sequence[str]
) -> Callable[[dict[str, Any], Path], None]:
    """Returns a function that draws a cost of an agent's thread by its turns."""

    def plot(results: dict[str, Any], path: Path) -> None:
        figure, axes = plt.subplots(figsize=_SIZE_INCHES)
        for way in ways:
            found = [row[key] for row in results[way]["rows"]]
            axes.plot(range(1, len(found) + 1), found, **_THREADS[way])
        axes.set(xlabel="turn", ylabel=label, yscale="log")
        axes.set_title(title, fontsize=10)
        _finish(figure, axes, path)

    return plot


def _finish(figure: Any, axes: Any, path: Path, *, beside: bool = False) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if beside else {}
    axes.legend(frameon=False, fontsize=8, **place)
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    plt.close(figure)


def retention(*sections: str) -> Callable[[dict[str, Any], Path], None]:
    """Returns a function that draws some sections of a recall run."""

    def plot(results: dict[str, Any], path: Path) -> None:
        path.unlink(missing_ok=True)
        draw_recall(Recall.from_dict(results), path, only=sections)

    return plot


DRAWN: dict[str, dict[str, Callable[[dict[str, Any], Path], None]]] = {
    "recall": {"recall.png": recall},
    "conversation": {"turns.png": turns},
    "speed": {"speed.png": speeds},
    "crowd": {"waiting.png": waiting},
    "endurance": {"endurance.png": endurance},
    "agent_thread": {
        "agent_bytes.png": thread_cost(
            "largest_checkpoint", "A turn's largest checkpoint", "bytes", (STATE, TRANSCRIPT)
        ),
        "agent_tokens.png": thread_cost(
            "tokens_read", "What the model reads in a turn of an agent", "tokens", WAYS
        ),
    },
    "retention": {
        "recall_distance.png": retention("distance", "facts"),
        "recall_codecs.png": retention("codecs"),
        "recall_blends.png": retention("blends"),
        "recall_decays.png": retention("decays"),
    },
}
"""By benchmark, its pictures and what draws each."""


def draw(
    results: Path = RESULTS, images: Path = IMAGES, *, only: Sequence[str] = tuple(DRAWN)
) -> list[Path]:
    """Draws every picture whose JSON exists, and returns the pictures' paths."""
    drawn = []
    for name in only:
        source = results / f"{name}.json"
        if not source.exists():
            continue
        found = json.loads(source.read_text("utf-8"))["results"]
        for image, plot in DRAWN[name].items():
            images.mkdir(parents=True, exist_ok=True)
            plot(found, images / image)
            drawn.append(images / image)
    return drawn


if __name__ == "__main__":
    for picture in draw():
        print(picture.name)
