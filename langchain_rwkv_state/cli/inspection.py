"""The commands that look at states: ``inspect``, ``calibrate`` and ``diff``.

They change nothing, and looking at a session is no use of it: its time to live goes on. Whether a
picture can be written is found out before anything is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from langchain_rwkv_state._files import require_new, write_whole
from langchain_rwkv_state._text import counted, model_shape, span
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.completion import complete_session
from langchain_rwkv_state.cli.options import (
    JsonOption,
    ModelOption,
    PlotOption,
    StoreOption,
    StrategyOption,
    TokenizerOption,
    check_plot,
)
from langchain_rwkv_state.cli.sessions import existing_store, unknown_session
from langchain_rwkv_state.cli.states import (
    PROBE,
    HealthyOption,
    Source,
    model_of,
    read_healthy,
    state_of,
)

if TYPE_CHECKING:
    from langchain_rwkv_state.state import Diff, HeadMap, Inspection, RWKVState
    from langchain_rwkv_state.store import StateStore

_METRICS = ("l2", "cosine", "rms_relative", "logits_kl")


def inspect(
    source: Source,
    plot: PlotOption = None,
    healthy: HealthyOption = None,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Look at a state: sizes, NaN, ranks of its matrices, and a verdict.

    --plot draws each head of each layer. The exit code is 1 where the state is broken, or lies
    outside of the ranges given by --healthy.
    """
    from langchain_rwkv_state import state as states

    check_plot(plot)
    ranges = read_healthy(healthy)
    state = state_of(source, store)
    found = states.inspect(state, healthy=ranges)
    maps = states.head_maps(state) if plot or as_json else ()
    if as_json:
        output.as_json(_as_json(state, found, maps))
    else:
        _print_inspection(state, found)
    if plot:
        _draw(
            maps,
            f"{source}: RWKV-{state.layout.version} after {counted(state.n_tokens, 'token')}",
            plot,
        )
    if not found.sound:
        raise typer.Exit(1)


def calibrate(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="A new .json file.")],
    session: Annotated[
        list[str] | None,
        typer.Argument(help="Names of sessions.", autocompletion=complete_session),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="All sessions of the store.")] = False,
    store: StoreOption = None,
) -> None:
    """Learn which sizes a model's states have, from sessions that went well.

    Takes the state that each session stands at; all must be of one model. The file is for
    --healthy of the other commands.
    """
    from langchain_rwkv_state import state as states

    if bool(session) == all_:
        raise typer.BadParameter("Name sessions, or take --all.")
    require_new(out)
    with existing_store(store) as opened:
        if opened is None:
            raise typer.Exit(1)
        healthy = states.calibrate(_healthy_states(opened, session or opened.sessions()))
    write_whole(out, f"{healthy.to_json()}\n".encode(), new=True)
    output.written(out)
    output.out().print(f"Learnt from {counted(healthy.n_states, 'state')}.")


def diff(
    first: Source,
    second: Source,
    metric: Annotated[str, typer.Option(help=f"One of {', '.join(_METRICS)}.")] = "rms_relative",
    plot: PlotOption = None,
    model: ModelOption = "demo",
    probe: Annotated[
        str, typer.Option(help="For logits_kl: what it reads from both states.")
    ] = PROBE,
    strategy: StrategyOption = "auto",
    tokenizer: TokenizerOption = None,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Show how far apart two states are, layer by layer.

    --plot draws the relative difference of each head, whatever the metric of the table. The metric
    logits_kl asks the --model that read the states.
    """
    from langchain_rwkv_state import state as states

    if metric not in _METRICS:
        raise typer.BadParameter(f"{metric!r} is none of {', '.join(_METRICS)}.")
    if metric == "logits_kl" and not probe:
        raise typer.BadParameter("logits_kl reads a text from both states: give one by --probe.")
    check_plot(plot)
    a, b = state_of(first, store), state_of(second, store)
    _require_one_model(first, a, second, b)
    if metric == "logits_kl":
        with model_of(a, model, strategy, tokenizer) as loaded:
            ids = loaded.tokenizer.encode(probe)
            found = states.diff(a, b, "logits_kl", runtime=loaded.runtime, probe=ids)
    else:
        found = states.diff(a, b, metric)  # type: ignore[arg-type]
    if as_json:
        total = found.distance
        output.as_json(
            {
                "first": first,
                "second": second,
                "metric": metric,
                "total": output.number(total.total),
                "layers": list(map(output.number, total.layers)),
                "tensors": {name: output.number(each) for name, each in total.tensors.items()},
            }
        )
    else:
        _print_diff(found)
    if plot:
        _draw([states.difference_map(a, b)], f"{first} and {second}: RWKV-{a.layout.version}", plot)


def _print_inspection(state: RWKVState, found: Inspection) -> None:
    console = output.out()
    console.print(Text(output.plain(repr(state))), soft_wrap=True)
    console.print()
    rows = output.table("TENSOR", "MEAN |X|", "MAX |X|", "RMS", "OF RANGE", "NAN", "INF", "RANKS")
    for each in found.tensors:
        figures = (each.mean_abs, each.max_abs, each.rms, each.range_used)
        rows.add_row(
            each.name,
            *(f"{figure:.3g}" for figure in figures),
            str(each.n_nan),
            str(each.n_inf),
            span(each.ranks),
        )
    console.print(rows)
    console.print()
    console.print(found.verdict, soft_wrap=True)
    for problem in found.problems[1:]:
        console.print(Text(problem), soft_wrap=True)


def _as_json(
    state: RWKVState, found: Inspection, maps: tuple[HeadMap, ...] | tuple[()]
) -> dict[str, Any]:
    layout = state.layout
    return {
        "version": layout.version,
        "layers": layout.n_layer,
        "width": layout.n_embd,
        "tokens": state.n_tokens,
        "bytes": state.nbytes,
        "fingerprint": state.fingerprint,
        "verdict": found.verdict,
        "problems": list(found.problems),
        "tensors": [{**vars(each), "ranks": list(each.ranks)} for each in found.tensors],
        "maps": [
            {
                "name": each.name,
                "title": each.title,
                "columns": each.columns,
                "values": [list(map(output.number, row)) for row in each.values],
            }
            for each in maps
        ],
    }


def _healthy_states(store: StateStore, sessions: list[str]) -> Iterator[RWKVState]:
    """Yields the state of each session that has one.

    Raises:
        typer.Exit: A session is not there.
        ValueError: A state is broken.
    """
    from langchain_rwkv_state import state as states
    from langchain_rwkv_state.store.events import snapshot_of

    for name in dict.fromkeys(sessions):
        info = store.session(name, renew=False)
        if info is not None and info.head is None:
            continue
        found = snapshot_of(store, name)
        if found is None:
            raise unknown_session(name)
        state = found.state
        if any(each.n_nan or each.n_inf for each in states.inspect(state).tensors):
            raise ValueError(
                f"The state of {name!r} is broken, and no model can learn health from it: leave "
                "that session out."
            )
        yield state


def _require_one_model(first: str, a: RWKVState, second: str, b: RWKVState) -> None:
    if a.fingerprint != b.fingerprint or a.layout != b.layout:
        raise ValueError(
            f"{first!r} and {second!r} belong to different models ({_model(a)} and {_model(b)}): "
            "their numbers mean different things, so no distance between them means anything."
        )


def _model(state: RWKVState) -> str:
    layout = state.layout
    size = model_shape(layout.version, layout.n_layer, layout.n_embd)
    return f"{size}, fingerprint {state.fingerprint}"


def _print_diff(found: Diff) -> None:
    *layers, whole = found.cells()
    rows = output.table("LAYER", "WHOLE", *found.kinds)
    for cells in layers:
        rows.add_row(*cells)
    rows.add_row(*whole, style="bold")
    output.out().print(rows)


def _draw(maps: Any, title: str, plot: Path) -> None:
    from langchain_rwkv_state.views.plots.figure import save
    from langchain_rwkv_state.views.plots.heat_plot import draw_maps

    save(draw_maps(maps, output.in_one_line(title)), plot)
    output.written(plot, as_note=True)
