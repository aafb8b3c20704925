"""`diff`: how far apart two states are, as a table of layers and their tensors.

The figures are those of `distance`; this only sets them side by side, for a terminal, a notebook
and a data frame alike. The easy mistake is to add a row up: a layer's figure is measured over its
tensors together, and is no sum of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from langchain_rwkv_state import _markup as markup
from langchain_rwkv_state.state.state import RWKVState, require_states
from langchain_rwkv_state.toolbox.distance import Distance, Metric, Reader, distance

_FIGURE = ".4g"


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


def diff(
    a: RWKVState,
    b: RWKVState,
    metric: Metric = "rms_relative",
    *,
    runtime: Reader | None = None,
    probe: Sequence[int] | None = None,
) -> Diff:
    """Measures how far apart two states of one model are, layer by layer and tensor by tensor.

    Args:
        a: A state.
        b: Another of the same model.
        metric: As for `distance`; here, as for ``rwkv-state diff``, the one without a scale.
        runtime: As for `distance`.
        probe: As for `distance`.

    Returns:
        A table: ``print(diff(a, b))`` shows it, and so does a notebook.

    Raises:
        TypeError, ValueError, StateMismatch: As `distance`.

    Example:
        >>> from langchain_rwkv_state.state import StateLayout, diff, zero_state
        >>> zero = zero_state(StateLayout.of(7, n_layer=2, n_embd=64, head_size=64), "model")
        >>> print(diff(zero, zero))
        layer  whole  att_x_prev  att_kv  ffn_x_prev
            0      0           0       0           0
            1      0           0       0           0
          all      0
    """
    require_states("diff", a, b, verb="store.diff(...)")
    return Diff.of(distance(a, b, metric, runtime=runtime, probe=probe))
