"""The sections of a report on a session: facts, log, sizes, health and heat maps.

Each takes the report and returns HTML. The easy mistake is to show a reference in full: who has it
can read the conversation, so a page shows its first digits.
"""

from __future__ import annotations

from collections.abc import Sequence

from langchain_rwkv_state._markup import escaped
from langchain_rwkv_state._text import ago, clock_time, counted, short, size, span, until
from langchain_rwkv_state.state import HeadMap, TensorHealth, memory
from langchain_rwkv_state.store import LogEntry
from langchain_rwkv_state.views.charts import Axis, Line, line_chart
from langchain_rwkv_state.views.heat_svg import heat_map
from langchain_rwkv_state.views.html_parts import legend, section, table_html
from langchain_rwkv_state.views.scale import Scale
from langchain_rwkv_state.views.session_report import SessionReport

_CLASSES = {"Sound": "good", "Finite": "good", "Empty": "warn", "Unusual": "warn"}
_KINDS = {
    "att_kv": "WKV matrices",
    "att_x_prev": "time-mix shift",
    "ffn_x_prev": "channel-mix shift",
    "att_aa": "numerators",
    "att_bb": "denominators",
    "att_pp": "log-scales",
}
_CONTEXTS = (8 * 1024, 128 * 1024)
_FIRST_CONTEXT, _LAST_CONTEXT = 64, 1 << 20
_MANY_HEADS = 24  # from here on a map takes the page's whole width


def facts_section(report: SessionReport) -> str:
    """Returns who and when: turns, tokens, bytes, times."""
    info, now = report.info, report.made_seconds
    expires = until(info.expires_seconds, now)
    facts = [
        ("Turns", str(info.n_turns), ""),
        ("Tokens", f"{info.n_tokens:,}", "which the state stands for"),
        ("State", size(report.layout.nbytes), f"{report.layout.nbytes:,} bytes"),
        ("Stored", size(info.nbytes), "all its states that are kept"),
        ("First turn", ago(info.created_seconds, now), clock_time(info.created_seconds)),
        ("Last turn", ago(info.updated_seconds, now), clock_time(info.updated_seconds)),
        ("Expires", expires, "" if expires == "never" else clock_time(info.expires_seconds)),
        ("Unread", counted(len(info.unread), "message"), "to be read next" if info.unread else ""),
    ]
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{escaped(value)}<small>{escaped(more)}</small></dd></div>"
        for name, value, more in facts
    )
    model = (
        f'<div class="wide"><dt>Model</dt><dd><code>{escaped(report.fingerprint)}</code></dd></div>'
    )
    return section("session", "Session", f'<dl class="facts">{shown}{model}</dl>')


def log_section(report: SessionReport) -> str:
    """Returns the log, newest first."""
    log = report.log
    turns = range(report.info.n_turns, report.info.n_turns - len(log), -1)
    rows = [
        _turn(turn, entry, log[number + 1 :], report)
        for number, (turn, entry) in enumerate(zip(turns, log, strict=True))
    ]
    told = ("Turn", "State", "Tokens", "Read", "When", "", "Kept")
    table = table_html(told, rows, left=(1,), classes=[None if e.kept else "gone" for e in log])
    more = ""
    if report.info.n_turns > len(log):
        more = f"The log keeps its last {len(log)} of {report.info.n_turns} turns."
        more = f'<p class="soft gap">{more}</p>'
    return section("log", "Log", table + more)


def _turn(
    turn: int, entry: LogEntry, older: Sequence[LogEntry], report: SessionReport
) -> list[str]:
    before = older[0].n_tokens if older else 0 if turn == 1 else None
    read = "" if before is None else f"{entry.n_tokens - before:+,}"
    return [
        str(turn),
        f"<code>{escaped(short(entry.ref))}</code>",
        f"{entry.n_tokens:,}",
        read,
        clock_time(entry.created_seconds),
        ago(entry.created_seconds, report.made_seconds),
        "yes" if entry.kept else "no",
    ]


def sizes_section(report: SessionReport) -> str:
    """Returns what the state weighs, beside a key-value cache."""
    layout = report.layout
    kinds: dict[str, list[int]] = {}
    for spec in layout.specs:
        kinds.setdefault(spec.name.rpartition(".")[2], []).append(spec.nbytes)
    parts = [
        [
            f"<code>{name}</code>",
            _KINDS[name],
            f"{len(each)}",
            size(sum(each)),
            f"{sum(each) / layout.nbytes:.1%}",
        ]
        for name, each in kinds.items()
    ]
    inside = table_html(("Tensor", "What", "Layers", "Bytes", "Share"), parts, left=(1,))
    contexts = dict.fromkeys((report.info.n_tokens, *_CONTEXTS))
    beside = []
    for context in contexts:
        found = memory(layout, context)
        whose = " (now)" if context == report.info.n_tokens else ""
        beside.append(
            [f"{context:,}{whose}", *map(size, (found.state, found.cache, found.grouped))]
        )
    named = ("Tokens", "State", "Cache", "Cache, shared")
    caches = table_html(named, beside)
    text = (
        "<p>The state is as large after the first token as after the last. A transformer of as "
        "many layers of the same width keeps keys and values of every token: in fp16, of all "
        "heads, or shared by 4 heads each (grouped-query attention).</p>"
    )
    body = (
        f'<div class="grid"><div><h3>What the state is made of</h3>{inside}'
        f"<h3 class='gap'>Beside a key-value cache</h3>{caches}</div>{_memory_chart(report)}</div>"
    )
    return section("sizes", "Sizes", text + body)


def _memory_chart(report: SessionReport) -> str:
    contexts = [_FIRST_CONTEXT << n for n in range(15) if _FIRST_CONTEXT << n <= _LAST_CONTEXT]
    found = [memory(report.layout, context) for context in contexts]
    names = ("state", "cache", "cache, shared by 4 heads")
    lines = [
        Line(
            name,
            tuple(
                (each.context, nbytes, f"{size(nbytes)} at {each.context:,} tokens")
                for each in found
                for nbytes in [(each.state, each.cache, each.grouped)[number]]
            ),
        )
        for number, name in enumerate(names)
    ]
    all_bytes = [y for line in lines for _, y, _ in line.points]
    powers = [10**n for n in range(1, 16) if min(all_bytes) <= 10**n <= max(all_bytes)]
    y = Axis(
        "bytes",
        Scale(min(all_bytes) / 1.5, max(all_bytes) * 1.5, log=True),
        tuple((mark, size(mark).replace(".0", "")) for mark in powers[:: 1 + len(powers) // 8]),
    )
    marks = tuple(
        (n, f"{n // 1024}k" if n < 1 << 20 else "1M") for n in (1024, 8192, 1 << 17, 1 << 20)
    )
    x = Axis("tokens read", Scale(contexts[0], contexts[-1], log=True), marks)
    chart = line_chart(
        lines, x, y, name="Bytes of the state and of key-value caches by tokens read"
    )
    return f"<figure><figcaption>Bytes by tokens read</figcaption>{legend(names)}{chart}</figure>"


def health_section(report: SessionReport) -> str:
    """Returns the verdict, the problems, and figures of every tensor."""
    found = report.inspection
    word, _, rest = found.verdict.partition(":")
    badge = f'<span class="badge {_CLASSES.get(word, "bad")}">{escaped(word)}</span>'
    said = rest.strip()
    if not said.startswith("blocks."):  # the name of a tensor stays as it is
        said = said[:1].upper() + said[1:]
    text = f"<p>{badge}{escaped(said)}</p>"
    if len(found.problems) > 1:  # a single one is in the verdict
        problems = "".join(f"<li>{escaped(each)}</li>" for each in found.problems)
        text += f'<ul class="problems">{problems}</ul>'
    if report.healthy is None:
        text += (
            '<p class="soft"><code>rwkv-state calibrate --out health.json '
            "--all</code> learns what is usual for this model; <code>--healthy health.json</code> "
            "judges by it.</p>"
        )
    named = ["Tensor", "Mean |x|", "Max |x|", "RMS", "NaN", "Infinite", "Ranks"]
    if report.healthy is not None:
        named.insert(4, "Usual RMS")
    rows = [_tensor(each, report) for each in found.tensors]
    table = table_html(named, rows, tall=True)
    return section("health", "Health", text + f'<div class="gap">{table}</div>')


def _tensor(each: TensorHealth, report: SessionReport) -> list[str]:
    figures = [f"{x:.3g}" for x in (each.mean_abs, each.max_abs, each.rms)]
    if report.healthy is not None:
        usual = report.healthy.rms.get(each.name)  # a broken state is shown with any ranges
        figures.append("" if usual is None else f"{usual[0]:.3g} to {usual[1]:.3g}")
    return [
        f"<code>{each.name}</code>",
        *figures,
        str(each.n_nan),
        str(each.n_inf),
        span(each.ranks),
    ]


def maps_section(report: SessionReport) -> str:
    """Returns the heat maps."""
    maps = [_figure(each) for each in report.maps]
    if report.difference is not None:
        maps.append(_figure(report.difference, "Moved by the last turn (relative difference)"))
        after = ""
    else:
        after = (
            '<p class="soft gap">The state before is not kept, so there is no map of what the last '
            "turn moved.</p>"
        )
    wide = " wide-maps" if report.maps[0].shape[1] > _MANY_HEADS else ""
    return section("maps", "Heat maps", f'<div class="grid{wide}">{"".join(maps)}</div>{after}')


def _figure(what: HeadMap, title: str | None = None) -> str:
    caption = escaped(title or what.title)
    return (
        f'<figure class="map" data-map="{what.name}"><figcaption>{caption}</figcaption>'
        f'<div class="scroll">{heat_map(what)}</div></figure>'
    )
