"""Heat maps of a state for a page: layers down, heads across, a tooltip on every cell.

The twin of `heat`, for where there is no matplotlib. The easy mistake is to leave a cell out whose
figure is not finite: that is the one to be seen.
"""

from __future__ import annotations

import math

from langchain_rwkv_state.toolbox.maps import HeadMap
from langchain_rwkv_state.views.scale import Scale, colour, ticks
from langchain_rwkv_state.views.svg import box, drawing, letters, upright

_BROKEN = "#d1495b"
_NUMBERED_CELLS = 48  # so few that each can carry its figure
_LEFT, _TOP, _RIGHT = 40.0, 4.0, 22.0
_WIDTH, _HEIGHT = 310.0, 230.0  # of all cells, where they are few
_LEAST_CELL, _TALLEST_CELL = 12.0, 30.0
_STEPS, _STEP_HEIGHT, _SCALE_HEIGHT = 48, 9.0, 62.0


def heat_map(what: HeadMap) -> str:
    """Returns a map as SVG, with its scale below."""
    layers, heads = what.shape
    wide = max(_WIDTH / heads, _LEAST_CELL)
    tall = max(min(_HEIGHT / layers, wide, _TALLEST_CELL), _LEAST_CELL)
    width, height = heads * wide, layers * tall
    scale = Scale.of(what)
    numbered = layers * heads <= _NUMBERED_CELLS
    parts = []
    for layer, row in enumerate(what.values):
        for head, value in enumerate(row):
            x, y = _LEFT + head * wide, _TOP + layer * tall
            parts += _cell(what, (layer, head), value, scale, (x, y, wide, tall), numbered)
    parts += [
        letters(_LEFT - 5, _TOP + (n + 0.5) * tall + 3.5, n, anchor="end") for n in ticks(layers)
    ]
    parts += [letters(_LEFT + (n + 0.5) * wide, _TOP + height + 13, n) for n in ticks(heads)]
    parts.append(letters(_LEFT + width / 2, _TOP + height + 27, what.columns, kind="axis"))
    parts.append(upright(11, _TOP + height / 2, "layer"))
    parts += _scale(scale, _LEFT, _TOP + height + 38, min(width, _WIDTH))
    low, high = (f"{end(what.finite):.3g}" if what.finite else "none" for end in (min, max))
    return drawing(
        parts,
        width=_LEFT + width + _RIGHT,
        height=_TOP + height + _SCALE_HEIGHT,
        name=f"{what.title}, {layers} layers by {heads}, from {low} to {high}",
        kind="heat",
    )


def _cell(
    what: HeadMap,
    at: tuple[int, int],
    value: float,
    scale: Scale,
    place: tuple[float, float, float, float],
    numbered: bool,
) -> list[str]:
    x, y, wide, tall = place
    finite = math.isfinite(value)
    said = f"{value:.3g}" if finite else "not finite"
    fill, bright = colour(scale.place(value)) if finite else (_BROKEN, False)
    tip = f"layer {at[0]}, {what.columns} {at[1]}: {said}"
    drawn = [box(x, y, wide - 0.6, tall - 0.6, kind="cell", fill=fill, tip=tip)]
    if numbered:
        text = f"{value:.2g}" if finite else "\u00d7"
        kind = "on-bright" if bright else "on-dark"
        drawn.append(letters(x + wide / 2, y + tall / 2 + 3.5, text, kind=kind))
    return drawn


def _scale(scale: Scale, x: float, y: float, width: float) -> list[str]:
    step = width / _STEPS
    parts = [
        box(
            x + n * step,
            y,
            step + 0.3,
            _STEP_HEIGHT,
            kind="step",
            fill=colour((n + 0.5) / _STEPS)[0],
        )
        for n in range(_STEPS)
    ]
    marks = [(x + scale.place(mark) * width, f"{mark:.3g}") for mark in scale.marks()]
    return parts + [letters(at, y + _STEP_HEIGHT + 11, text) for at, text in marks]
