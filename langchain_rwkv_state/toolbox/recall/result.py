"""What a recall run found: how many answers held the fact, by section, series and point.

Counts and their names as plain values, to JSON and back; nothing is run or drawn here. The easy
mistake is to compare two shares without their counts: of 30 cases, 3 points are one answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from langchain_rwkv_state import _markup as markup
from langchain_rwkv_state.errors import StateCorrupt

FORMAT = "langchain-rwkv-state-recall/1"


@dataclass(frozen=True)
class Point:
    """One place of a curve.

    Attributes:
        at: Where it stands: a number (other turns, facts, alpha, factor) or a label (a codec).
        right: Answers that held the fact, letter by letter.
        n: Answers.
    """

    at: float | str
    right: int
    n: int

    @property
    def share(self) -> float:
        """Share of right answers, 0 to 1; 0 where nothing was asked."""
        return self.right / self.n if self.n else 0.0


@dataclass(frozen=True)
class Series:
    """One curve, such as that of the state or that of the transcript read again."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Section:
    """Curves that share an axis.

    Attributes:
        name: Short name, such as ``distance``; unique in a result.
        title: A line for people.
        axis: What `Point.at` means.
        series: The curves, each with the same points.
    """

    name: str
    title: str
    axis: str
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Recall:
    """What one model recalled.

    Attributes:
        model: The name that it was loaded by.
        fingerprint: The model itself, as states name it.
        sections: What was measured.
        settings: How it was run.
    """

    model: str
    fingerprint: str
    sections: tuple[Section, ...] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict, repr=False)

    def _repr_html_(self) -> str:
        return "".join(map(_section_html, self.sections)) or markup.sentence(repr(self))

    def __iter__(self) -> Iterator[Section]:
        """Iterates over the sections."""
        return iter(self.sections)

    def section(self, name: str) -> Section | None:
        """Returns a section by its short name; ``None`` where it was not measured."""
        return next((each for each in self.sections if each.name == name), None)

    def to_json(self) -> str:
        """Returns a JSON text, for keeping and for other programs."""
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Returns what `to_json` writes, as plain values."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, text: str) -> Recall:
        """Reads what `to_json` wrote.

        Raises:
            StateCorrupt: The text is something else.
        """
        try:
            raw = json.loads(text.removeprefix("\ufeff"))  # a byte order mark is no text
        except (ValueError, RecursionError) as error:
            raise StateCorrupt(f"The text holds no recall figures: {error}.") from error
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: Any) -> Recall:
        """Reads what `as_dict` gave.

        Raises:
            StateCorrupt: The value is something else.
        """
        try:
            if raw["format"] != FORMAT:
                raise ValueError(f"the format is {raw['format']!r}")
            return cls(
                str(raw["model"]),
                str(raw["fingerprint"]),
                tuple(map(_section, raw["sections"])),
                dict(raw["settings"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise StateCorrupt(f"The value holds no recall figures: {error}.") from error


def _section_html(section: Section) -> str:
    """Returns a section as a table: a row for each point, a column for each series."""
    columns = (section.axis, *(series.name for series in section.series))
    rows = [
        (points[0].at, *(f"{each.right} of {each.n} ({each.share:.0%})" for each in points))
        for points in zip(*(series.points for series in section.series), strict=True)
    ]
    return markup.table(section.title, columns, rows, len(rows))


def _section(raw: dict[str, Any]) -> Section:
    series = tuple(Series(str(each["name"]), _points(each["points"])) for each in raw["series"])
    return Section(str(raw["name"]), str(raw["title"]), str(raw["axis"]), series)


def _points(raw: list[dict[str, Any]]) -> tuple[Point, ...]:
    found = []
    for each in raw:
        at, right, n = each["at"], each["right"], each["n"]
        placed = isinstance(at, str) or (type(at) in (int, float) and math.isfinite(at))
        if not placed or type(right) is not int or type(n) is not int or not 0 <= right <= n:
            raise ValueError(f"{right!r} of {n!r} are right at {at!r}")
        found.append(Point(at, right, n))
    return tuple(found)
