"""Prints what ``doctor`` finds, line by line as it comes, or as one document at the end.

A check that raises is itself a finding, and hides no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from langchain_rwkv_state.cli import output

_NAME_CHARS = 20


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: What was looked at.
        value: What was found.
        advice: What to do; empty where all is well.
        figure: The value as a number, where it is one.
        unit: Of the figure.
    """

    name: str
    value: str
    advice: str = ""
    figure: float | None = None
    unit: str | None = None


Check = Callable[[], Iterator[Finding]]


def findings(title: str, check: Check) -> Iterator[Finding]:
    """Runs one check; what it raises is a finding too."""
    try:
        yield from check()
    except Exception as problem:  # noqa: BLE001 - whatever is broken here is what is looked for
        advice = "The message says why; the documentation's page on errors says what to do."
        yield Finding(title, f"{type(problem).__name__}: {problem}", advice)


def show(finding: Finding) -> None:
    """Prints one finding at once, under those before it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, width=_NAME_CHARS)
    table.add_column(overflow="fold")
    mark = Text("\u2717", "bold red") if finding.advice else Text("\u2713", "green")
    table.add_row(mark, finding.name, Text(output.plain(finding.value)))
    if finding.advice:
        table.add_row("", "", Text(f"\u2192 {output.plain(finding.advice)}", "yellow"))
    output.out().print(table)


def document(section: str, finding: Finding) -> dict[str, Any]:
    """Returns a finding for programs."""
    return {
        "section": section,
        "name": finding.name,
        "value": finding.value,
        "figure": finding.figure,
        "unit": finding.unit,
        "advice": finding.advice or None,
    }
