"""The commands that make states of states, and carry them to files and back.

Nothing that is there is ever changed: results go to a new session or a new file. No store is opened
for a file that is not there: opening makes the store.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from langchain_rwkv_state._files import require_new
from langchain_rwkv_state._text import counted
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.completion import complete_source
from langchain_rwkv_state.cli.options import (
    CreateOption,
    ModelOption,
    StoreOption,
    StrategyOption,
    TokenizerOption,
    open_store,
    read_ttl,
)
from langchain_rwkv_state.cli.sessions import existing_store, unknown_session
from langchain_rwkv_state.cli.states import (
    FILE,
    Into,
    Source,
    keep,
    keep_session,
    loaded_model,
    state_of,
)

if TYPE_CHECKING:
    from langchain_rwkv_state.state import RWKVState

_BUNDLE = ".zip"
PartOption = Annotated[
    list[str] | None,
    typer.Option(
        help="A layer's number, a kind such as wkv, or a tensor's name; again for more.",
        show_default="all",
    ),
]


def blend(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Two or more sessions, or files of states.", autocompletion=complete_source
        ),
    ],
    into: Into,
    alpha: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Of two: weight of the first; the second has the rest.",
            show_default="0.5",
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="A weight for each, with commas; they add up to 1.")
    ] = None,
    part: PartOption = None,
    store: StoreOption = None,
    create: CreateOption = False,
) -> None:
    """Add states, with weights, to a new one."""
    from langchain_rwkv_state.state import blend_many

    given = _weights(len(sources), alpha, weights)
    states = [state_of(source, store) for source in sources]
    keep(blend_many(states, given, parts=_parts(part)), into, store, create=create)


def decay(
    source: Source,
    factor: Annotated[float, typer.Argument(min=0, max=1, help="What stays of the past.")],
    into: Into,
    part: PartOption = None,
    store: StoreOption = None,
    create: CreateOption = False,
) -> None:
    """Let a state's past weigh less, in a new one."""
    from langchain_rwkv_state import state as states

    keep(
        states.decay(state_of(source, store), factor, parts=_parts(part)),
        into,
        store,
        create=create,
    )


def renormalise(
    source: Source, into: Into, store: StoreOption = None, create: CreateOption = False
) -> None:
    """Write RWKV-4's accumulators in a scale of one, in a new state; answers stay the same.

    States of RWKV-5, 6 and 7 need none, and come back as they are.
    """
    from langchain_rwkv_state.state import check_scale, renormalise

    state = state_of(source, store)
    found = check_scale(state)
    if not found.changes:
        output.note(found.reason)
    keep(renormalise(state), into, store, create=create)


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
    state = state_of(source, store)
    require_new(file)
    if file.suffix == FILE:
        state.save(file, codec=codec)  # type: ignore[arg-type]
    elif codec != "exact":
        raise typer.BadParameter("A .pt or .pth file has no codec.")
    else:
        export_tensors(state, file)
    output.written(file)


def import_(
    file: Annotated[Path, typer.Argument(help="A .zip of a session, or a file of a state.")],
    session: Annotated[
        str | None,
        typer.Argument(help="Name of the new session.", show_default="a .zip has one"),
    ] = None,
    model: ModelOption = "demo",
    strategy: StrategyOption = "auto",
    tokenizer: TokenizerOption = None,
    log_scale: Annotated[
        float | None,
        typer.Option(
            "--log-scale",
            help="For RWKV-4 files without att_pp: 0, where the tool that wrote them has none.",
        ),
    ] = None,
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
    create: CreateOption = False,
) -> None:
    """Start a session with a state from a file, or take in a whole session from a .zip.

    For a file of another tool (.pt, .pth, plain .safetensors, or a tuned time_state) the model says
    which tensors to expect; that the file belongs to it is for you to know.
    """
    from langchain_rwkv_state.state import import_tensors

    if file.suffix == _BUNDLE:
        _import_session(file, session, ttl, store, create=create)
        return
    if session is None:
        raise typer.BadParameter(f"Name the session that is to begin with the state of {file}.")
    if ttl is not None:
        raise typer.BadParameter("--ttl is for a session in a .zip file.")
    if not file.is_file():  # before a model is loaded for it
        raise FileNotFoundError(f"There is no file {file}.")
    state = _ours(file)
    if state is None:
        with loaded_model(model, strategy, tokenizer) as loaded:
            state = import_tensors(file, loaded.runtime.zero_state(), log_scale=log_scale)
    keep_session(state, session, store, create=create)


def _weights(count: int, alpha: float | None, weights: str | None) -> list[float]:
    if count < 2:
        raise typer.BadParameter("Name two states or more to blend.")
    if weights is not None and alpha is not None:
        raise typer.BadParameter("Give --alpha or --weights, not both.")
    if weights is None:
        if count > 2:
            raise typer.BadParameter(f"Give --weights for {count} states, such as 0.5,0.3,0.2.")
        share = 0.5 if alpha is None else alpha
        return [share, 1 - share]
    try:
        found = [float(part) for part in weights.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{weights!r} are no numbers with commas.") from None
    return found


def _parts(given: list[str] | None) -> list[int | str] | None:
    if not given:
        return None
    return [int(part) if part.isdecimal() else part for part in given]


def _export_session(session: str, file: Path, store: str | None, *, tokens: bool) -> None:
    with existing_store(store) as opened:
        if opened is None or opened.session(session, renew=False) is None:
            raise unknown_session(session)
        opened.export_session(session, file, tokens=tokens)
    output.written(file)


def _import_session(
    file: Path, session: str | None, ttl: float | None, store: str | None, *, create: bool
) -> None:
    if not file.is_file():  # before a store comes to be
        raise FileNotFoundError(f"There is no file {file}.")
    opened = open_store(store, create=create)
    try:
        found = opened.import_session(file, session, ttl=ttl)
    finally:
        opened.close()
    line = Text("The session ") + output.one_line(found.session)
    turns, tokens = counted(found.n_turns, "turn"), counted(found.n_tokens, "token")
    line += Text(f" has {turns}, {tokens} in {output.size(found.nbytes)}.")
    output.out().print(line, soft_wrap=True)


def _ours(file: Path) -> RWKVState | None:
    """Returns the state of a file in this package's format; ``None`` for another's file."""
    from langchain_rwkv_state.errors import StateCorrupt
    from langchain_rwkv_state.state import RWKVState
    from langchain_rwkv_state.state.codec import FORMAT

    if file.suffix != FILE:
        return None
    try:
        return RWKVState.load(file)
    except StateCorrupt:
        with file.open("rb") as opened:
            if FORMAT.encode() in opened.read(1 << 16):
                raise  # ours, and damaged
        return None
