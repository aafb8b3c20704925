"""The command ``clamp-decay``: shows what clamped decays change in an RWKV-4 or 5.

It changes no file; a clamped model goes to a new one where that is asked for. The loss alone does
not judge it: a text's words follow from their neighbours, and a model can lose its memory without
it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from langchain_rwkv_state._files import require_new
from langchain_rwkv_state._text import counted
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.checkpoint import (
    Opened,
    TextOption,
    WordsOption,
    short,
)
from langchain_rwkv_state.cli.checkpoint import said as text_given
from langchain_rwkv_state.cli.options import ModelOption, StrategyOption, TokenizerOption

if TYPE_CHECKING:
    import torch

    from langchain_rwkv_state.runtime import DecayClamp

_CHANNELS_SHOWN_CHARS = 60


def clamp_decay(
    model: ModelOption,
    low: Annotated[float, typer.Option(help="The least time_decay: bounds the longest.")] = -8.0,
    high: Annotated[float, typer.Option(help="The most: bounds the shortest.")] = -0.1,
    text: TextOption = None,
    words: WordsOption = None,
    tokenizer: TokenizerOption = None,
    strategy: StrategyOption = "auto",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the clamped model: new .safetensors."),
    ] = None,
) -> None:
    """Clamp the decays of an RWKV-4 or 5, and show what that does.

    time_decay is the logarithm of a rate: -8 is a half-life of 2,066 tokens and -0.1 one of 0.77.
    Nothing is changed but a model in memory, and a new file where one is asked for.
    """
    from langchain_rwkv_state import runtime

    said, clamp = text_given(text, words), runtime.DecayClamp(low, high)
    if out is not None:
        if out.suffix != ".safetensors":
            raise typer.BadParameter(f"{str(out)!r} does not end with .safetensors.")
        require_new(out)
    opened = Opened.of(model)
    changed = clamp.of(opened.tensors, opened.checkpoint)
    ids = opened.ids(said, tokenizer) if said is not None else None
    console = output.out()
    bounds = [short(math.log(2) / math.exp(each)) for each in (high, low)]
    console.print(
        Text(
            f"{opened.about}: time_decay from {low:g} to {high:g}, which are half-lives of "
            f"{bounds[0]} to {bounds[1]} tokens."
        ),
        soft_wrap=True,
    )
    console.print()
    console.print(_changes(opened, changed))
    console.print()
    if ids is None:
        output.note("Give --text FILE or --words TEXT to see what it does to a text's loss.")
    else:
        console.print(_losses(model, ids, clamp, strategy, bool(changed)), soft_wrap=True)
    if out is not None:
        output.written(runtime.write_clamped(model, out, low, high))


def _changes(opened: Opened, changed: Mapping[str, torch.Tensor]) -> Table:
    """Returns which channels change in each layer, and the half-lives before and after."""
    from langchain_rwkv_state.toolbox.half_life import static_half_life

    before = static_half_life(opened.tensors, opened.checkpoint)
    after = static_half_life({**opened.tensors, **changed}, opened.checkpoint)
    unit = "HEADS" if opened.checkpoint.version in ("5", "5.1") else "CHANNELS"
    table = output.table("LAYER", "CHANGED", "HALF-LIVES BEFORE", "AFTER")
    table.add_column(unit, no_wrap=True)
    for number in range(opened.checkpoint.n_layer):
        name = f"blocks.{number}.att.time_decay"
        plain = opened.tensors[name].flatten()
        moved = (changed.get(name, plain).flatten() != plain).nonzero().flatten().tolist()
        spans = (
            f"{short(float(each.min()))} to {short(float(each.max()))}"
            for each in (before.layers[number], after.layers[number])
        )
        table.add_row(str(number), f"{len(moved)} of {plain.numel()}", *spans, _ranges(moved))
    return table


def _losses(model: str, ids: list[int], clamp: DecayClamp, strategy: str, changes: bool) -> Text:
    """Returns a text's loss before and after, in words."""
    from langchain_rwkv_state.runtime import clamp_decay, load_runtime, text_loss

    plain = load_runtime(model, strategy)
    try:
        before = text_loss(plain, ids)
    finally:
        plain.close()
    line = f"Loss on {counted(len(ids), 'token')}: {before:.4f} nats a token before"
    if not changes:
        return Text(f"{line}; nothing changes.")
    clamped = clamp_decay(model, clamp.low, clamp.high, strategy=strategy)
    try:
        after = text_loss(clamped, ids)
    finally:
        clamped.close()
    return Text(f"{line}, {after:.4f} after ({after - before:+.4f}).")


def _ranges(numbers: Sequence[int]) -> str:
    """Returns numbers in short.

    Example:
        >>> _ranges([0, 1, 2, 7, 9, 10])
        '0-2, 7, 9-10'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    if len(text) <= _CHANNELS_SHOWN_CHARS:
        return text
    return text[:_CHANNELS_SHOWN_CHARS].rpartition(",")[0] + ", ..."
