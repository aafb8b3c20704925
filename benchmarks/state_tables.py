"""Makes the tables of what was measured on states: recipes, codecs, and recall.

Each function takes a report and returns a Markdown table for `benchmarks.tables` to put in its
place. What a codec costs and what it lets be recalled are measured by two benchmarks, so these are
two reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_rwkv_state.toolbox.recall.result import Point, Recall

Report = dict[str, Any]
_WAYS = {
    "store exact": "`DiskStateStore`, `exact`",
    "store zstd": "`DiskStateStore`, `zstd`",
    "pickle": "diskcache, pickled",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def codecs(size: str) -> Callable[[Report], str]:
    """Returns a function that writes each codec's size, speed and divergence on one model."""

    def write(report: Report) -> str:
        rows = [
            [
                f"`{name}`",
                f"{row['share']:.3f}",
                f"{row['encode_gb_s']:.2f}",
                f"{row['decode_gb_s']:.2f}",
                f"{row['kl']:.1e}" if row["kl"] else "0",
            ]
            for name, row in report["results"][size].items()
        ]
        return table(["codec", "of fp32", "encode GB/s", "decode GB/s", "KL, nats"], rows)

    return write


def through_a_store(report: Report) -> str:
    """Returns the times of writes and reads of one state."""
    found = report["results"]["store"]["seconds"]
    rows = [
        [name, *(f"{1e3 * found[f'{way}, {verb}']:.1f} ms" for verb in ("write", "read"))]
        for way, name in _WAYS.items()
    ]
    return table(["way", "write", "read"], rows)


def corrections(report: Report) -> str:
    """Returns what the common recipes do to the next answer."""
    head = ["recipe", "largest gap of a logit", "mean over cases", "mean KL, nats"]
    keys = ("logits_max", "logits_mean", "kl_mean")
    rows = [
        [
            name,
            *(f"{row[key]:.2g}" for key in keys),
            f"{row['recalled']} of {row['n']}",
            f"{row['recalled_right']} of {row['n']}",
        ]
        for name, row in report["results"]["recipes"].items()
    ]
    return table([*head, "facts recalled", "with the right form"], rows)


def clamps(report: Report) -> str:
    """Returns what clamping ``time_decay`` does to a model."""
    found, n = report["results"]["clamps"], report["settings"]["cases"]
    rows = [
        [
            name,
            f"{row['channels']} of {row['of']}",
            f"{row['shortest']:.2g} to {row['longest']:,.4g}",
            f"{row['loss']:.4f}",
            *(f"{right} of {n}" for right in row["recalled"].values()),
        ]
        for name, row in found.items()
    ]
    first = next(iter(found.values()))
    after = [f"recalled after {distance} words" for distance in first["recalled"]]
    head = ["model", "channels changed", "half-lives, tokens", "loss on a text, nats a word"]
    return table([*head, *after], rows)


def recalled(name: str) -> Callable[[Report], str]:
    """Returns a function that writes one section of a recall run."""

    def write(report: Report) -> str:
        section = Recall.from_dict(report["results"]).section(name)
        assert section is not None
        head = [section.axis, *(series.name for series in section.series)]
        lines = zip(*(series.points for series in section.series), strict=True)
        rows = [[_place(points[0]), *map(_right, points)] for points in lines]
        return table(head, rows)

    return write


def _place(point: Point) -> str:
    return str(point.at)


def _right(point: Point) -> str:
    return f"{100 * point.share:.1f} % ({point.right} of {point.n})"
