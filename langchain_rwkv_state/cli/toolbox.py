"""The commands on states: ``inspect``, ``diff``, ``blend``, ``decay``, ``export``, ``import``.

A state is named by a session, whose head is meant, or by a file that this package wrote. Nothing
that is there is ever changed: results go to a new session or a new file. The easy mistake is to let
a name mean two things: what is a file is a file, and everything else is a session.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.options import (
    ModelOption,
    StoreOption,
    StrategyOption,
    open_store,
    read_ttl,
)
from langchain_rwkv_state.cli.sessions import existing_store, unknown_session

if TYPE_CHECKING:
    from langchain_rwkv_state.state import RWKVState, TensorHealth

Source = Annotated[str, typer.Argument(help="A session, or a file of a state.")]
Into = Annotated[
    str,
    typer.Option("--into", metavar="NAME", help="A new session, or a new .safetensors file."),
]
_FILE = ".safetensors"
_BUNDLE = ".zip"
_METRICS = ("l2", "cosine", "rms_relative")


def inspect(source: Source, store: StoreOption = None) -> None:
    """Look at a state: sizes, NaN, ranks of its matrices, and a verdict.

    The exit code is 1 where it is broken.
    """
    from langchain_rwkv_state import state as states

    state = _state(source, store)
    found = states.inspect(state)
    console = output.out()
    console.print(Text(output.plain(repr(state))), soft_wrap=True)
    console.print()
    table = _table("TENSOR", "MEAN |X|", "MAX |X|", "RMS", "OF RANGE", "NAN", "INF", "RANKS")
    for each in found.tensors:
        figures = (each.mean_abs, each.max_abs, each.rms, each.range_used)
        table.add_row(
            each.name,
            *(f"{figure:.3g}" for figure in figures),
            str(each.n_nan),
            str(each.n_inf),
            _ranks(each),
        )
    console.print(table)
    console.print()
    console.print(found.verdict, soft_wrap=True)
    if not found.sound:
        raise typer.Exit(1)


def diff(
    first: Source,
    second: Source,
    metric: Annotated[str, typer.Option(help=f"One of {', '.join(_METRICS)}.")] = "rms_relative",
    store: StoreOption = None,
) -> None:
    """Show how far apart two states are, layer by layer."""
    from langchain_rwkv_state.state import distance

    if metric not in _METRICS:
        raise typer.BadParameter(f"{metric!r} is none of {', '.join(_METRICS)}.")
    a, b = _state(first, store), _state(second, store)
    found = distance(a, b, metric)  # type: ignore[arg-type]
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in found.tensors))
    table = _table("LAYER", "WHOLE", *kinds)
    for number, whole in enumerate(found.layers):
        parts = [found.tensors[f"blocks.{number}.{kind}"] for kind in kinds]
        table.add_row(str(number), *(f"{figure:.4g}" for figure in (whole, *parts)))
    table.add_row("all", f"{found.total:.4g}", *("" for _ in kinds), style="bold")
    output.out().print(table)


def blend(
    first: Source,
    second: Source,
    into: Into,
    alpha: Annotated[
        float, typer.Option(min=0, max=1, help="Weight of the first; the second has the rest.")
    ] = 0.5,
    store: StoreOption = None,
) -> None:
    """Add two states, with weights, to a new one."""
    from langchain_rwkv_state import state as states

    made = states.blend(_state(first, store), _state(second, store), alpha)
    _keep(made, into, store)


def decay(
    source: Source,
    factor: Annotated[float, typer.Argument(min=0, max=1, help="What stays of the past.")],
    into: Into,
    store: StoreOption = None,
) -> None:
    """Let a state's past weigh less, in a new one."""
    from langchain_rwkv_state import state as states

    _keep(states.decay(_state(source, store), factor), into, store)


def export(
    source: Source,
    file: Annotated[Path, typer.Argument(help="A new file: .safetensors, .pt, .pth or .zip.")],
    codec: Annotated[str, typer.Option(help="How a .safetensors file keeps numbers.")] = "exact",
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Let token ids go along in a .zip: a transcript.")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Write a state, or a whole session, to a file.

    A .safetensors file is in this package's checked format. A .pt or .pth file holds the plain list
    of tensors that the rwkv package takes, and nothing that says which model it is of. A .zip file
    is a bundle: a session with its log and its states, for another store.
    """
    from langchain_rwkv_state.state import export_tensors, require_codec

    require_codec(codec)
    if file.suffix == _BUNDLE:
        if codec != "exact":
            raise typer.BadParameter("A .zip file keeps states as the store does: leave --codec.")
        _export_session(source, file, store, tokens=tokens)
        return
    if tokens:
        raise typer.BadParameter("--tokens is for a session in a .zip file.")
    state = _state(source, store)
    _require_new(file)
    if file.suffix == _FILE:
        state.save(file, codec=codec)  # type: ignore[arg-type]
    elif codec != "exact":
        raise typer.BadParameter("A .pt or .pth file has no codec.")
    else:
        export_tensors(state, file)
    _say_written(file)


def import_(
    file: Annotated[Path, typer.Argument(help="A .zip of a session, or a file of a state.")],
    session: Annotated[
        str | None,
        typer.Argument(help="Name of the new session.", show_default="a .zip has one"),
    ] = None,
    model: ModelOption = "demo",
    strategy: StrategyOption = "auto",
    ttl: Annotated[
        float | None,
        typer.Option(
            "--ttl",
            parser=read_ttl,
            metavar="TIME",
            help="Time to live: 30m, 12h, 7d or never.",
            show_default="the .zip's",
        ),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Start a session with a state from a file, or take in a whole session from a .zip.

    For a file of another tool (.pt, .pth, plain .safetensors, or a tuned time_state) the model says
    which tensors to expect; that the file belongs to it is for you to know.
    """
    if file.suffix == _BUNDLE:
        _import_session(file, session, ttl, store)
        return
    if session is None:
        raise typer.BadParameter(f"Name the session that is to begin with the state of {file}.")
    if ttl is not None:
        raise typer.BadParameter("--ttl is for a session in a .zip file.")
    state = _ours(file) or _foreign(file, model, strategy)
    _keep_session(state, session, store)


def _export_session(session: str, file: Path, store: Path | None, *, tokens: bool) -> None:
    with existing_store(store) as opened:
        if opened is None or opened.session(session, renew=False) is None:
            raise unknown_session(session)
        opened.export_session(session, file, tokens=tokens)
    _say_written(file)


def _import_session(file: Path, session: str | None, ttl: float | None, store: Path | None) -> None:
    if not file.is_file():  # before a store comes to be
        raise FileNotFoundError(f"There is no file {file}.")
    opened = open_store(store)
    try:
        found = opened.import_session(file, session, ttl=ttl)
    finally:
        opened.close()
    line = Text("The session ") + output.one_line(found.session)
    turns = "1 turn" if found.n_turns == 1 else f"{found.n_turns} turns"
    line += Text(f" has {turns}, {found.n_tokens} tokens in {output.size(found.nbytes)}.")
    output.out().print(line, soft_wrap=True)


def _state(source: str, store: Path | None) -> RWKVState:
    """Returns the state that a session or a file stands for."""
    from langchain_rwkv_state.state import RWKVState

    if Path(source).is_file():
        return RWKVState.load(source)
    with existing_store(store) as opened:
        head = opened.head(source) if opened else None
        if opened is None or head is None:
            raise unknown_session(source)
        return opened.get(head)


def _keep(state: RWKVState, into: str, store: Path | None) -> None:
    if not into.endswith(_FILE):
        _keep_session(state, into, store)
        return
    target = Path(into)
    _require_new(target)
    state.save(target)
    _say_written(target)


def _keep_session(state: RWKVState, session: str, store: Path | None) -> None:
    opened = open_store(store)
    try:
        opened.commit(session, opened.stage(state), None)
    finally:
        opened.close()
    line = Text("The session ") + output.one_line(session)
    line += Text(f" begins with {state.n_tokens} tokens in {output.size(state.nbytes)}.")
    output.out().print(line, soft_wrap=True)


def _ours(file: Path) -> RWKVState | None:
    """Returns the state of a file in this package's format; ``None`` for another's file."""
    from langchain_rwkv_state.errors import StateCorrupt
    from langchain_rwkv_state.state import RWKVState
    from langchain_rwkv_state.state.codec import FORMAT

    if file.suffix != _FILE:
        return None
    try:
        return RWKVState.load(file)
    except StateCorrupt:
        with file.open("rb") as opened:
            if FORMAT.encode() in opened.read(1 << 16):
                raise  # ours, and damaged
        return None


def _foreign(file: Path, model: str, strategy: str) -> RWKVState:
    from langchain_rwkv_state.chat_models import ChatRWKV
    from langchain_rwkv_state.state import import_tensors
    from langchain_rwkv_state.store import MemoryStateStore

    llm = ChatRWKV(model=model, strategy=strategy, store=MemoryStateStore())
    try:
        return import_tensors(file, llm.loaded().runtime.zero_state())
    finally:
        llm.unload()


def _require_new(file: Path) -> None:
    if file.exists():
        raise ValueError(f"{file} is there already: name another file, or remove it first.")


def _say_written(file: Path) -> None:
    size = output.size(file.stat().st_size)
    output.out().print(Text(f"Wrote {output.plain(str(file))}, {size}."), soft_wrap=True)


def _ranks(health: TensorHealth) -> str:
    if not health.ranks:
        return ""
    return f"{min(health.ranks):.1f} to {max(health.ranks):.1f}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
