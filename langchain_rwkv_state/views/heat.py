"""Heat maps of a state as a picture: layers down, heads across, one panel for each figure.

It draws what `state.maps` found and measures nothing. The easy mistake is a scale from 0 for sizes:
heads differ by orders of magnitude, and all but the largest would be one colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_rwkv_state.toolbox.maps import HeadMap
from langchain_rwkv_state.views.figure import figure
from langchain_rwkv_state.views.scale import Scale, ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = "viridis"
_BROKEN = "#d1495b"
_NUMBERED_CELLS = 48  # so few that each can carry its figure
_WIDTHS, _HEIGHTS = (2.2, 9.0), (1.5, 9.0)  # inches of a panel's cells: least and most


def draw_maps(maps: Sequence[HeadMap], title: str) -> Figure:
    """Returns a picture with one panel for each map.

    Panels stand beside one another while heads are few, and below one another where they are many.

    Args:
        maps: At least one; all of one shape.
        title: A line above all.

    Raises:
        ValueError: matplotlib is not installed.
    """
    layers, heads = maps[0].shape
    beside = heads <= 24
    side = min(_HEIGHTS[1] / layers, _WIDTHS[1] / heads, 0.46)
    width = max(_WIDTHS[0], min(_WIDTHS[1], heads * side * 1.3))
    height = max(_HEIGHTS[0], layers * side)
    columns = len(maps) if beside else 1
    rows = 1 if beside else len(maps)
    drawn = figure(columns * (width + 1.7), rows * (height + 0.85) + 0.35)
    drawn.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    drawn.suptitle(title, fontsize=11, x=0.02, ha="left")
    panels = drawn.subplots(rows, columns, squeeze=False).ravel()
    for axes, each in zip(panels, maps, strict=True):
        _panel(drawn, axes, each)
    return drawn


def _panel(drawn: Any, axes: Any, what: HeadMap) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize

    layers, heads = what.shape
    scale = Scale.of(what)
    colours = colormaps[_COLOURS].with_extremes(bad=_BROKEN)
    image = axes.imshow(
        _drawable(what, scale.low if scale.log else -math.inf),
        cmap=colours,
        norm=(LogNorm if scale.log else Normalize)(scale.low, scale.high),
        aspect="auto",
        interpolation="none",
    )
    broken = layers * heads - len(what.finite)
    note = f"  ({broken} not finite, red)" if broken else ""
    axes.set_title(what.title + note, fontsize=10, loc="left")
    axes.set_xlabel(what.columns, fontsize=9)
    axes.set_ylabel("layer", fontsize=9)
    axes.set_xticks(ticks(heads))
    axes.set_yticks(ticks(layers))
    axes.tick_params(labelsize=8, length=2)
    for side in axes.spines.values():
        side.set_visible(False)
    if layers <= 40 and heads <= 40:  # thin lines between cells, where there is room for them
        axes.set_xticks([x - 0.5 for x in range(1, heads)], minor=True)
        axes.set_yticks([y - 0.5 for y in range(1, layers)], minor=True)
        axes.grid(which="minor", color="white", linewidth=0.8)
        axes.tick_params(which="minor", length=0)
    bar = drawn.colorbar(image, ax=axes, fraction=0.06, pad=0.03)
    bar.ax.minorticks_off()
    if what.log:
        bar.set_ticks(marks := scale.marks(), labels=map("{:.3g}".format, marks))
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    if layers * heads <= _NUMBERED_CELLS:
        _number(axes, what, image)


def _drawable(what: HeadMap, low: float) -> list[list[float]]:
    """Returns the figures, none below the scale's end: logarithms would not draw them."""
    return [[x if math.isnan(x) else max(x, low) for x in row] for row in what.values]


def _number(axes: Any, what: HeadMap, image: Any) -> None:
    for y, row in enumerate(what.values):
        for x, value in enumerate(row):
            red, green, blue, _ = image.cmap(image.norm(value)) if value == value else (0, 0, 0, 1)
            bright = 0.3 * red + 0.59 * green + 0.11 * blue > 0.5
            text = f"{value:.2g}" if math.isfinite(value) else "not finite"
            size = 8 if math.isfinite(value) else 6
            colour = "#111111" if bright else "white"
            axes.text(x, y, text, ha="center", va="center", fontsize=size, color=colour)
