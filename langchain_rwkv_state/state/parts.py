"""Chooses the tensors of a state that an operation is about: layers, kinds or names.

It changes nothing. RWKV-4's ``att_aa``, ``att_bb`` and ``att_pp`` are one quantity in three
numbers, and are chosen together, as ``"wkv"``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from langchain_rwkv_state.state.layout import StateLayout

Parts = Iterable[int | str] | None
"""Layers by number, kinds (``"wkv"``, ``"att_x_prev"``, ``"ffn_x_prev"``, ``"att_kv"``) or full
names (``"blocks.0.att_kv"``); ``None`` for everything."""

SHIFTS = ("att_x_prev", "ffn_x_prev")
ACCUMULATORS_4 = ("att_aa", "att_bb", "att_pp")


def kind(name: str) -> str:
    """Returns a tensor's name without its layer: ``att_kv``."""
    return name.rpartition(".")[2]


def layer(name: str) -> int:
    """Returns the number of the layer that a tensor belongs to."""
    return int(name.split(".")[1])


def chosen(layout: StateLayout, parts: Parts) -> frozenset[str]:
    """Returns the names of the tensors that `parts` stands for.

    Args:
        layout: The state's layout.
        parts: What is chosen; each item adds to the others.

    Raises:
        ValueError: An item is no layer, kind or name of this layout; or one of RWKV-4's three
            accumulators was chosen without the others.

    Example:
        >>> layout = StateLayout.of(7, n_layer=2, n_embd=64, head_size=64)
        >>> sorted(chosen(layout, ["wkv"]))
        ['blocks.0.att_kv', 'blocks.1.att_kv']
    """
    names = [spec.name for spec in layout.specs]
    if parts is None:
        return frozenset(names)
    if isinstance(parts, str):
        parts = [parts]
    found: set[str] = set()
    for item in parts:
        matching = [name for name in names if _matches(name, item)]
        if not matching:
            kinds = sorted({kind(name) for name in names} | {"wkv"})
            raise ValueError(
                f"{item!r} is no part of an RWKV-{layout.version} state: parts are layers (0 to "
                f"{layout.n_layer - 1}), kinds ({', '.join(kinds)}) or names ({names[0]!r})."
            )
        found.update(matching)
    if layout.version == 4:
        _require_whole(found)
    return frozenset(found)


def accumulators(tensors: Mapping[str, torch.Tensor], number: int) -> tuple[torch.Tensor, ...]:
    """Returns ``att_aa``, ``att_bb`` and ``att_pp`` of one layer of an RWKV-4."""
    return tuple(tensors[f"blocks.{number}.{each}"] for each in ACCUMULATORS_4)


def _matches(name: str, item: int | str) -> bool:
    if isinstance(item, int) and not isinstance(item, bool):
        return layer(name) == item
    return item in (name, kind(name)) or (item == "wkv" and kind(name) not in SHIFTS)


def _require_whole(found: set[str]) -> None:
    for name in found:
        block, _, last = name.rpartition(".")
        if last in ACCUMULATORS_4 and not all(
            f"{block}.{each}" in found for each in ACCUMULATORS_4
        ):
            raise ValueError(
                f"{name!r} means nothing without the other accumulators of its layer: choose "
                "'wkv', or all of att_aa, att_bb and att_pp."
            )
