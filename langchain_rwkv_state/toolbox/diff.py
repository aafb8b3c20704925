"""Holds what a comparison of two states found: a number, `Distance`, and a table of it, `Diff`.

For a terminal, a notebook and a data frame alike. A layer's figure is measured over its tensors
together, and is no sum of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Self

from langchain_rwkv_state import _markup as markup
from langchain_rwkv_state._text import counted

Metric = Literal["l2", "cosine", "rms_relative", "logits_kl"]
_FIGURE = ".4g"


class Distance(float):
    """How far apart two states are: a number, with what it is made of.

    It compares, adds and formats as the `float` that it is. So two distances of one size are equal
    (and hash alike) whatever lies between: compare `layers` where that is meant. Sums and products
    are plain floats.

    Attributes:
        metric: What was measured.
        layers: Over each layer by itself, ``[L]``.
        tensors: Over each tensor by itself, by name; empty for ``logits_kl``. RWKV-4's three
            accumulators count as ``wkv``.

    Example:
        >>> found = Distance("l2", 2.5, (1.5, 2.0), {})
        >>> found < 3, f"{found:.2f}", sum([found, found]), found.layers
        (True, '2.50', 5.0, (1.5, 2.0))
    """

    __slots__ = ("layers", "metric", "tensors")
    metric: Metric
    layers: tuple[float, ...]
    tensors: Mapping[str, float]

    def __new__(
        cls, metric: Metric, total: float, layers: Sequence[float], tensors: Mapping[str, float]
    ) -> Self:
        """Makes the number; see the class for what goes along with it."""
        found = super().__new__(cls, total)
        for name, value in (
            ("metric", metric),
            ("layers", tuple(layers)),
            ("tensors", MappingProxyType(dict(tensors))),
        ):
            object.__setattr__(found, name, value)
        return found

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"A Distance is a value: its {name} cannot be set.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"A Distance is a value: its {name} cannot be deleted.")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.metric, self.total, self.layers, dict(self.tensors))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    @property
    def total(self) -> float:
        """The number itself, over the whole states."""
        return float(self)

    def __eq__(self, other: object) -> bool:  # as float's; without it mypy refuses `found == 0`
        return float(self) == other

    __hash__ = float.__hash__
    __str__ = float.__repr__

    def __repr__(self) -> str:
        return f"Distance({self.metric!r}, {self}, {counted(len(self.layers), 'layer')})"

    def _repr_html_(self) -> str:
        return Diff.of(self)._repr_html_()


@dataclass(frozen=True, repr=False)
class Diff:
    """Two states side by side.

    Attributes:
        distance: What was measured, over the whole states.
        kinds: The tensors of a layer, such as ``att_kv``; none for ``logits_kl``.
        rows: For each layer its distance, and that of each of its tensors, ``[L][1 + kinds]``.
    """

    distance: Distance
    kinds: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, found: Distance) -> Diff:
        """Sets what a distance is made of side by side."""
        kinds = tuple(dict.fromkeys(name.rpartition(".")[2] for name in found.tensors))
        rows = tuple(
            (whole, *(found.tensors[f"blocks.{number}.{kind}"] for kind in kinds))
            for number, whole in enumerate(found.layers)
        )
        return cls(found, kinds, rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """What stands in a row: ``whole``, then the kinds."""
        return ("whole", *self.kinds)

    def as_dicts(self) -> list[dict[str, float]]:
        """Returns a dict for each layer, as ``pandas.DataFrame`` takes them."""
        return [
            {"layer": number, **dict(zip(self.columns, row, strict=True))}
            for number, row in enumerate(self.rows)
        ]

    def cells(self) -> list[tuple[str, ...]]:
        """Returns the table as texts: a row for each layer, and one for the whole states."""
        rows = [
            (str(number), *(format(figure, _FIGURE) for figure in row))
            for number, row in enumerate(self.rows)
        ]
        return [*rows, ("all", format(self.distance, _FIGURE), *("" for _ in self.kinds))]

    def __repr__(self) -> str:
        return f"Diff({self.distance!r})"

    def __str__(self) -> str:
        rows = [("layer", *self.columns), *self.cells()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def _repr_html_(self) -> str:
        title = f"{self.distance.metric}: {self.distance:{_FIGURE}}"
        whole, *layers = reversed(self.cells())  # the whole comes first, should rows be left out
        rows = [whole, *reversed(layers)]
        return markup.table(title, ("layer", *self.columns), rows, len(rows))
