"""The command ``recall``: measures what a model still knows of what it was told, and draws it.

It keeps no session and changes no store. Whether a file can be written is checked before an hour of
measuring.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from langchain_rwkv_state._files import require_new, write_whole
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.options import (
    ModelOption,
    PlotOption,
    StrategyOption,
    TokenizerOption,
    check_plot,
)

_SECTIONS = ("distance", "facts", "codecs", "blends", "decays")


def recall(
    model: ModelOption = "demo",
    strategy: StrategyOption = "auto",
    tokenizer: TokenizerOption = None,
    n: Annotated[int, typer.Option("-n", "--cases", min=1, help="Cases of each section.")] = 40,
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"Sections to measure, of {', '.join(_SECTIONS)}; all if none."),
    ] = None,
    distances: Annotated[
        str, typer.Option(help="Other turns between telling and asking, with commas.")
    ] = "0,4,8,16,30",
    codec_distance: Annotated[
        int, typer.Option(min=0, help="The same for the section codecs.")
    ] = 4,
    json: Annotated[Path | None, typer.Option(help="A new file for the figures.")] = None,
    plot: PlotOption = None,
) -> None:
    """Tell a model facts, say other things, and ask.

    Counts exact answers by distance and by number of facts, from the state and from the transcript
    read again; after each codec, beside a zero state and another conversation; after blends and
    after decays.
    """
    wanted = only or list(_SECTIONS)
    for name in wanted:
        if name not in _SECTIONS:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(_SECTIONS)}.")
    at = _numbers(distances)
    if json is not None:
        require_new(json)
    check_plot(plot)

    from langchain_rwkv_state._progress import stepping
    from langchain_rwkv_state.toolbox.recall import measure
    from langchain_rwkv_state.views.terminal.recall_tables import recall_tables

    with stepping("recall") as told:
        found = measure(
            model,
            n=n,
            strategy=strategy,
            only=wanted,  # type: ignore[arg-type]
            distances=at,
            codec_distance=codec_distance,
            tokenizer=tokenizer,
            on_progress=told,
        )
    output.out().print(recall_tables(found))
    if json is not None:
        write_whole(json, found.to_json().encode(), new=True)
    if plot is not None:
        from langchain_rwkv_state.views.plots.recall_plot import draw_recall

        draw_recall(found, plot)
    for file in (json, plot):
        if file is not None:
            output.written(file)


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [-1]
    if min(found) < 0:
        raise typer.BadParameter(f"{text!r} are no numbers of turns, such as 0,4,8.")
    return found
