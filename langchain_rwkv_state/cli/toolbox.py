"""The commands that make states: ``blend``, ``decay``, ``export``, ``import``.

Nothing that is there is ever changed: results go to a new session or a new file. The easy mistake
is to run a long command whose result has no place to go: a new file is asked for before.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.options import ModelOption, StoreOption, StrategyOption, open_store
from langchain_rwkv_state.cli.states import Source, require_new, say_written, state_of

if TYPE_CHECKING:
    from langchain_rwkv_state.state import RWKVState

Into = Annotated[
    str,
    typer.Option("--into", metavar="NAME", help="A new session, or a new .safetensors file."),
]
_FILE = ".safetensors"


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

    made = states.blend(state_of(first, store), state_of(second, store), alpha)
    _keep(made, into, store)


def decay(
    source: Source,
    factor: Annotated[float, typer.Argument(min=0, max=1, help="What stays of the past.")],
    into: Into,
    store: StoreOption = None,
) -> None:
    """Let a state's past weigh less, in a new one."""
    from langchain_rwkv_state import state as states

    _keep(states.decay(state_of(source, store), factor), into, store)


def export(
    source: Source,
    file: Annotated[Path, typer.Argument(help="A new file: .safetensors, .pt or .pth.")],
    codec: Annotated[str, typer.Option(help="How a .safetensors file keeps numbers.")] = "exact",
    store: StoreOption = None,
) -> None:
    """Write a state to a file.

    A .safetensors file is in this package's checked format. A .pt or .pth file holds the plain list
    of tensors that the rwkv package takes, and nothing that says which model it is of.
    """
    from langchain_rwkv_state.state import export_tensors, require_codec

    require_codec(codec)
    state = state_of(source, store)
    require_new(file)
    if file.suffix == _FILE:
        state.save(file, codec=codec)  # type: ignore[arg-type]
    elif codec != "exact":
        raise typer.BadParameter("A .pt or .pth file has no codec.")
    else:
        export_tensors(state, file)
    say_written(file)


def import_(
    file: Annotated[Path, typer.Argument(help="A file of a state, of this package or another.")],
    session: Annotated[str, typer.Argument(help="Name of the new session.")],
    model: ModelOption = "demo",
    strategy: StrategyOption = "auto",
    store: StoreOption = None,
) -> None:
    """Start a session with a state from a file.

    For a file of another tool (.pt, .pth, plain .safetensors, or a tuned time_state) the model says
    which tensors to expect; that the file belongs to it is for you to know.
    """
    state = _ours(file) or _foreign(file, model, strategy)
    _keep_session(state, session, store)


def _keep(state: RWKVState, into: str, store: Path | None) -> None:
    if not into.endswith(_FILE):
        _keep_session(state, into, store)
        return
    target = Path(into)
    require_new(target)
    state.save(target)
    say_written(target)


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
