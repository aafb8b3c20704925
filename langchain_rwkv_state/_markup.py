"""Tables for a notebook: plain HTML that takes on the look of the page around it.

Values in, text out, and all text escaped; it brings no colour and no style, so that light and dark
are the notebook's affair. The easy mistake is to pass HTML as a cell: it is shown as it is written.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable, Mapping, Sequence

from langchain_rwkv_state._text import in_one_line

MOST_ROWS = 50


def escaped(text: object) -> str:
    """Returns a text for use between tags and in attributes: no markup, no controls.

    Example:
        >>> escaped('<b title="x">')
        '&lt;b title=&quot;x&quot;&gt;'
    """
    return html.escape(in_one_line(str(text)))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], count: int) -> str:
    """Returns a table of at most `MOST_ROWS` rows, with the number of those left out.

    Args:
        title: Stands above it.
        columns: Names of the columns.
        rows: Cells of any kind, shown as their text; no more are taken than are shown.
        count: How many rows there are.

    Example:
        >>> "<td>&lt;b&gt;</td>" in table("Names", ["NAME"], [["<b>"]], 1)
        True
    """
    shown = [_row("td", row) for row in itertools.islice(rows, MOST_ROWS)]
    left = count - len(shown)
    if left > 0:
        shown.append(f'<tr><td colspan="{len(columns)}">and {left} more</td></tr>')
    head = f"<thead>{_row('th', columns)}</thead>"
    caption = f"<caption>{escaped(title)}</caption>"
    return f"<table>{caption}{head}<tbody>{''.join(shown)}</tbody></table>"


def facts(title: str, known: Mapping[str, object]) -> str:
    """Returns a table of two columns: what is known, by name.

    Example:
        >>> "<td>3</td>" in facts("bob", {"turns": 3})
        True
    """
    rows = "".join(
        f'<tr><th scope="row">{escaped(name)}</th><td>{escaped(value)}</td></tr>'
        for name, value in known.items()
    )
    return f"<table><caption>{escaped(title)}</caption><tbody>{rows}</tbody></table>"


def sentence(text: str) -> str:
    """Returns a paragraph."""
    return f"<p>{escaped(text)}</p>"


def _row(tag: str, cells: Iterable[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escaped(cell)}</{tag}>" for cell in cells) + "</tr>"
