"""The pieces of a diagram as SVG text: letters, lines and boxes, safe for a page.

Values in, text out; what is drawn of them stands in `heat_svg` and `charts`. Colours of lines and
letters come from the page's style sheet (classes), so that they follow light and dark. The easy
mistake is an ``id`` or a ``url()``: two diagrams of a page would share it, and a page that is to
hold no address would hold one.
"""

from __future__ import annotations

from collections.abc import Iterable

from langchain_rwkv_state._markup import escaped


def drawing(parts: Iterable[str], *, width: float, height: float, name: str, kind: str) -> str:
    """Returns a whole SVG element.

    Args:
        parts: What is drawn, back to front.
        width: Its width in units of its own; the page says how large a unit is.
        height: Its height.
        name: What a screen reader says of it.
        kind: A class, by which the page sizes it.
    """
    body = "\n".join(parts)
    return (
        f'<svg class="{kind}" role="img" aria-label="{escaped(name)}" width="{width:g}" '
        f'height="{height:g}" viewBox="0 0 {width:g} {height:g}">\n{body}\n</svg>'
    )


def letters(x: float, y: float, text: object, *, kind: str = "mark", anchor: str = "middle") -> str:
    """Returns a line of text."""
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escaped(text)}</text>"
    )


def upright(x: float, y: float, text: object) -> str:
    """Returns the name of a vertical axis, written upwards."""
    turned = f'transform="rotate(-90 {x:.1f} {y:.1f})"'
    return (
        f'<text class="axis" x="{x:.1f}" y="{y:.1f}" text-anchor="middle" {turned}>'
        f"{escaped(text)}</text>"
    )


def stroke(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Returns a straight line."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def box(
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    kind: str,
    fill: str | None = None,
    tip: object = None,
) -> str:
    """Returns a rectangle, with a tooltip where there is one."""
    painted = "" if fill is None else f' fill="{fill}"'
    shape = (
        f'<rect class="{kind}" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" '
        f'height="{height:.2f}"{painted}'
    )
    return f"{shape}/>" if tip is None else f"{shape}><title>{escaped(tip)}</title></rect>"
