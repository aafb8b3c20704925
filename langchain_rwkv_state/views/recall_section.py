"""The section of a report that says what the model recalls: curves, bars and their counts.

It draws a `Recall` that a command measured before. The easy mistake is to read it as a figure of
the session: it is one of the model, and only of the model whose fingerprint it carries.
"""

from __future__ import annotations

from itertools import pairwise
from math import isfinite

from langchain_rwkv_state._markup import escaped
from langchain_rwkv_state.toolbox.recall import Recall, Section
from langchain_rwkv_state.views.charts import Axis, Bars, Line, bar_chart, line_chart
from langchain_rwkv_state.views.html_parts import legend, section, table_html
from langchain_rwkv_state.views.scale import Scale

_SHARES = tuple((part / 4, f"{part * 25} %") for part in range(5))
_MOST_MARKS = 9
_UNEVEN = 4.0  # gaps that differ by more than this are drawn as even steps


def recall_section(recall: Recall | None, fingerprint: str) -> str:
    """Returns the section.

    Args:
        recall: What was measured; without it the section says how it is.
        fingerprint: The session's model.
    """
    if recall is None:
        return section(
            "recall",
            "Recall",
            "<p>How much the model still knows of what it was told was not measured for this "
            "page. <code>rwkv-state recall --model M --json recall.json</code> measures it, and "
            "<code>rwkv-state report SESSION out.html --recall recall.json</code> draws it here."
            "</p>",
        )
    text = (
        f"<p>What the model <code>{escaped(recall.model)}</code> recalled, letter by letter, of "
        "facts that it was told. These are figures of the model, not of this conversation.</p>"
    )
    if recall.fingerprint != fingerprint:
        text += (
            '<p class="note" data-other-model="yes">They are figures of another model than this '
            f"session's: <code>{escaped(recall.fingerprint)}</code>.</p>"
        )
    figures = "".join(map(_figure, recall))
    return section("recall", "Recall", f'{text}<div class="grid gap">{figures}</div>')


def _figure(part: Section) -> str:
    labels = list(dict.fromkeys(point.at for each in part.series for point in each.points))
    names = [each.name for each in part.series]
    if len(labels) > 1 and all(isinstance(at, int | float) and isfinite(at) for at in labels):
        chart = _curves(part)
    else:
        chart = _bars(part)
    rows = [
        [escaped(at), *(_count(part, series, at) for series in range(len(names)))] for at in labels
    ]
    table = table_html([escaped(part.axis), *map(escaped, names)], rows)
    shown = legend(names) if len(names) > 1 else ""
    return (
        f'<figure class="recall" data-section="{escaped(part.name)}">'
        f"<figcaption>{escaped(part.title)}</figcaption>{shown}{chart}{table}</figure>"
    )


def _count(part: Section, series: int, at: float | str) -> str:
    found = [point for point in part.series[series].points if point.at == at]
    return f"{found[0].right}/{found[0].n}" if found else ""


def _curves(part: Section) -> str:
    places = sorted({float(p.at) for each in part.series for p in each.points})
    gaps = [after - before for before, after in pairwise(places)]
    even = max(gaps) <= _UNEVEN * min(gaps)
    where = {at: at if even else float(number) for number, at in enumerate(places)}
    lines = [
        Line(
            each.name,
            tuple(
                (where[float(p.at)], p.share, f"{p.right} of {p.n} at {p.at:g}")
                for p in each.points
                if isinstance(p.at, int | float)
            ),
        )
        for each in part.series
    ]
    step = 1 + (len(places) - 1) // _MOST_MARKS
    marks = tuple((where[at], f"{at:g}") for at in places[::step])
    x = Axis(part.axis, Scale(where[places[0]], where[places[-1]]), marks)
    name = f"{part.title}: share of right answers by {part.axis}"
    return line_chart(lines, x, Axis("right answers", Scale(0, 1), _SHARES), name=name)


def _bars(part: Section) -> str:
    labels = list(dict.fromkeys(str(p.at) for each in part.series for p in each.points))
    groups = []
    for label in labels:
        points = [p for each in part.series for p in each.points if str(p.at) == label]
        groups.append(Bars(label, tuple((p.share, f"{p.right}/{p.n}") for p in points)))
    return bar_chart(groups, name=f"{part.title}: share of right answers by {part.axis}")
