"""The commands that ask a model and not a state: ``half-life`` and ``memory``.

They read a checkpoint's tensors and load nothing into a runtime. A half-life of RWKV-6 or 7 is that
of the text that was read, and not the model's own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from langchain_rwkv_state._files import require_new, write_whole
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.checkpoint import (
    Opened,
    TextOption,
    WordsOption,
    short,
)
from langchain_rwkv_state.cli.checkpoint import said as text_given
from langchain_rwkv_state.cli.options import (
    JsonOption,
    ModelOption,
    PlotOption,
    TokenizerOption,
    check_plot,
)

if TYPE_CHECKING:
    import torch

    from langchain_rwkv_state.runtime import HalfLife

_CONTEXTS = (1 << 10, 1 << 13, 1 << 17, 1 << 20)
_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


def half_life(
    model: ModelOption = "demo",
    text: TextOption = None,
    words: WordsOption = None,
    tokenizer: TokenizerOption = None,
    plot: PlotOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to a new file.")
    ] = None,
) -> None:
    """Show after how many tokens half of what was written is left, layer by layer.

    RWKV-4 and 5 need no text: the weights say it. In RWKV-6 and 7 it depends on what is read.
    """
    check_plot(plot)
    if json_file is not None:
        require_new(json_file)
    opened = Opened.of(model)
    said = text_given(text, words)
    ids = None if said is None or opened.is_static else opened.ids(said, tokenizer)
    found = _found(model, ids)
    console = output.out()
    console.print(Text(f"{opened.about}, {found.source}. Half-lives in tokens:"), soft_wrap=True)
    console.print()
    table = output.table("LAYER", "SHORTEST", "25 %", "MEDIAN", "75 %", "LONGEST")
    for number, figures in enumerate(_quarters(found)):
        table.add_row(str(number), *map(short, figures))
    console.print(table)
    if plot is not None:
        from langchain_rwkv_state.views.plots.half_life_plot import half_life_picture

        output.written(half_life_picture(found, plot, name=Path(model).stem))
    if json_file is not None:
        write_whole(
            json_file, json.dumps(_as_json(found, model), allow_nan=False).encode(), new=True
        )
        output.written(json_file)


def memory(
    model: ModelOption = "demo",
    context: Annotated[
        list[int] | None,
        typer.Option("--context", "-c", min=0, help="Tokens; may be given several times."),
    ] = None,
    bytes_a_number: Annotated[
        int, typer.Option("--bytes", min=1, help="Of a number in the cache.")
    ] = 2,
    heads_a_group: Annotated[
        int, typer.Option("--group", min=1, help="Heads that share keys and values.")
    ] = 4,
    as_json: JsonOption = False,
) -> None:
    """Show what a state costs beside the key-value cache of a transformer of the same size.

    Only the shapes in the checkpoint are looked at.
    """
    from langchain_rwkv_state import state as states

    opened = Opened.of(model)
    layout = opened.checkpoint.layout
    lengths = [
        states.memory(layout, tokens, bytes_a_number=bytes_a_number, heads_a_group=heads_a_group)
        for tokens in context or _CONTEXTS
    ]
    if as_json:
        output.as_json(
            {
                "model": model,
                "version": layout.version,
                "layers": layout.n_layer,
                "width": layout.n_embd,
                "state_bytes": layout.nbytes,
                "bytes_a_number": bytes_a_number,
                "heads_a_group": heads_a_group,
                "contexts": [
                    {
                        "tokens": each.context,
                        "cache_bytes": each.cache,
                        "grouped_cache_bytes": each.grouped,
                    }
                    for each in lengths
                ],
            }
        )
        return
    console = output.out()
    console.print(
        Text(f"{opened.about}: a state is {layout.nbytes:,} bytes, whatever it has read."),
        soft_wrap=True,
    )
    console.print()
    table = output.table(
        "TOKENS", "CACHE, FULL ATTENTION", "TIMES THE STATE", f"GROUPS OF {heads_a_group}", "TIMES"
    )
    for found in lengths:
        cells = []
        for cache in (found.cache, found.grouped):
            cells += [output.size(cache), short(cache / found.state)]
        table.add_row(f"{found.context:,}", *cells)
    console.print(table)


def _found(model: str, ids: Sequence[int] | None) -> HalfLife:
    """Measures, and says in the words of the command line what is missing."""
    from langchain_rwkv_state import runtime

    try:
        return runtime.half_life(model, ids)
    except ValueError as error:
        if ids is None:
            raise ValueError(f"{error} Here: --text FILE or --words TEXT.") from error
        raise


def _quarters(found: HalfLife) -> list[list[float]]:
    """Returns shortest, quarters and longest of each layer."""
    import torch

    shares = torch.tensor(_QUARTERS, dtype=torch.float64)
    return [layer.quantile(shares, interpolation="nearest").tolist() for layer in found.layers]


def _as_json(found: HalfLife, model: str) -> dict[str, Any]:
    """Returns all figures; ``null`` stands for a channel that forgets nothing."""

    def plain(numbers: torch.Tensor) -> list[float | None]:
        return [each if math.isfinite(each) else None for each in numbers.tolist()]

    return {
        "model": model,
        "version": found.version,
        "measured": found.measured,
        "n_tokens": found.n_tokens,
        "text": found.text,
        "layers": [
            {"tokens": plain(layer), "medians": plain(medians)}
            for layer, medians in zip(found.layers, found.medians, strict=True)
        ],
    }
