"""Draws a model's half-lives: layer by layer, on a logarithmic axis of tokens.

It draws what `half_life` found and measures nothing. Half-lives reach from half a token to
thousands: on a linear axis the short ones would be one line.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from langchain_rwkv_state.runtime import HalfLife
from langchain_rwkv_state.views.plots.figure import (
    QUIET,
    STATE,
    TRANSCRIPT,
    figure,
    require_picture,
    save,
    without_frame,
)

_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
_FOREVER = 1e6
"""Tokens at which the axis ends: what lasts longer, or for ever, is drawn there."""
_NAMED_LAYERS = 16


def half_life_picture(found: HalfLife, path: Path, *, name: str) -> Path:
    """Draws the distribution of half-lives in each layer.

    A thin line spans the tenth to the ninetieth of the channels in a hundred, a thick one the
    middle half, ends and median are dots, and a ring stands for the median of each head.

    Args:
        found: What was found.
        path: A new .png, .svg or .pdf.
        name: Of the model, for the title.

    Returns:
        The path.

    Raises:
        FileExistsError: There is something at `path` already.
        ValueError: The path has another ending, or matplotlib is not installed.
    """
    require_picture(path)
    layers = len(found.layers)
    drawn = figure(7.5, min(1.9 + 0.34 * layers, 12.0))
    axes = drawn.subplots()
    width = min(7.0, 180 / layers)
    for number, (layer, medians) in enumerate(zip(found.layers, found.medians, strict=True)):
        least, low, first, middle, third, high, most = _quantiles(layer)
        axes.plot([low, high], [number] * 2, color=STATE, lw=width / 4, zorder=2)
        axes.plot([first, third], [number] * 2, color=STATE, lw=width, alpha=0.55, zorder=3)
        axes.plot([least, most], [number] * 2, ".", color=QUIET, ms=max(2.0, width), zorder=2)
        axes.plot(middle, number, "o", color=TRANSCRIPT, ms=max(2.5, width * 0.8), zorder=5)
        at = medians.clamp(max=_FOREVER).tolist()
        axes.plot(at, [number] * len(at), "o", mfc="none", mec=STATE, ms=width, mew=0.8, zorder=4)
    _label(axes, found, name, layers)
    save(drawn, path)
    return path


def _quantiles(layer: torch.Tensor) -> list[float]:
    """Returns the spans that so many channels in a hundred stay below; none past the axis' end."""
    shares = torch.tensor(_SHARES, dtype=layer.dtype)
    return layer.clamp(max=_FOREVER).quantile(shares).tolist()


def _label(axes: Any, found: HalfLife, name: str, layers: int) -> None:
    axes.set_xscale("log")
    axes.set_ylim(layers - 0.5, -0.5)  # the first layer on top
    step = math.ceil(layers / _NAMED_LAYERS)
    axes.set_yticks(range(0, layers, step))
    axes.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:,.10g}")
    beyond = any(bool((layer >= _FOREVER).any()) for layer in found.layers)
    end = f"; {_FOREVER:,.0f} stands for that and more" if beyond else ""
    axes.set(xlabel=f"half-life, tokens (log{end})", ylabel="layer")
    axes.grid(axis="x", color=QUIET, alpha=0.3, lw=0.6)
    axes.set_axisbelow(True)
    axes.set_title(f"{name}, RWKV-{found.version}: {found.source}", fontsize=10)
    group = "64 channels" if found.version == "4" else "a head"
    for style, label in (
        ({"marker": ".", "color": QUIET, "ls": ""}, "shortest and longest"),
        ({"color": STATE, "lw": 1.5}, "10 to 90 % of the channels"),
        ({"color": STATE, "lw": 6, "alpha": 0.55}, "25 to 75 %"),
        ({"marker": "o", "color": TRANSCRIPT, "ls": ""}, "median"),
        ({"marker": "o", "mfc": "none", "mec": STATE, "ls": ""}, f"median of {group}"),
    ):
        axes.plot([], [], label=label, **style)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    without_frame(axes)
