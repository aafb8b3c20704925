"""The pieces that the sections of a page are made of: a table, a legend, a section.

Text in, HTML out. The easy mistake is a table that makes the page wider than a phone: each scrolls
in a box of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from langchain_rwkv_state._markup import escaped
from langchain_rwkv_state.views.charts import SERIES


def table_html(
    named: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Sequence[int] = (),
    tall: bool = False,
    classes: Sequence[str | None] | None = None,
) -> str:
    """Returns a table that scrolls by itself where it is too wide.

    Args:
        named: Names of the columns; the first is that of the rows.
        rows: Cells as HTML.
        left: Columns that are texts.
        tall: Whether it may scroll down too.
        classes: A class for each row.
    """
    kinds = [' class="left"' if number in left else "" for number in range(len(named))]
    head = "".join(f'<th scope="col"{k}>{n}</th>' for n, k in zip(named, kinds, strict=True))
    body = []
    for number, row in enumerate(rows):
        kind = classes[number] if classes else None
        cells = "".join(f"<td{k}>{cell}</td>" for cell, k in zip(row, kinds, strict=True))
        body.append(f'<tr class="{kind}">{cells}</tr>' if kind else f"<tr>{cells}</tr>")
    kind = "scroll tall" if tall else "scroll"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="{kind}" tabindex="0">{table}</div>'


def legend(names: Sequence[str]) -> str:
    """Returns which look is which, for the series of a chart in their order."""
    items = "".join(
        f'<li><svg width="26" height="10" viewBox="0 0 26 10" aria-hidden="true">'
        f'<line class="line s{number % SERIES}" x1="0" y1="5" x2="26" y2="5"/></svg>'
        f"{escaped(name)}</li>"
        for number, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def section(name: str, title: str, body: str) -> str:
    """Returns a section with its heading."""
    heading = f'<h2 id="{name}-title">{title}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{heading}{body}</section>'
