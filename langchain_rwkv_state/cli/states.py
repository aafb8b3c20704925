"""Finds the state that a command names, and keeps the one that it makes.

A state is named by a session, whose head is meant, or by a file that this package wrote: what is a
file is a file, and all else is a session.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from langchain_rwkv_state._files import require_new
from langchain_rwkv_state._text import counted
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.completion import complete_source
from langchain_rwkv_state.cli.options import open_store
from langchain_rwkv_state.cli.sessions import existing_store, unknown_session
from langchain_rwkv_state.cli.streams import read_text

if TYPE_CHECKING:
    from langchain_rwkv_state.loaded import Loaded
    from langchain_rwkv_state.state import Healthy, RWKVState

Source = Annotated[
    str,
    typer.Argument(help="A session, or a file of a state.", autocompletion=complete_source),
]
Into = Annotated[
    str,
    typer.Option("--into", metavar="NAME", help="A new session, or a new .safetensors file."),
]
HealthyOption = Annotated[
    Path | None,
    typer.Option("--healthy", metavar="FILE", help="Healthy ranges, as `calibrate` wrote them."),
]
FILE = ".safetensors"
PROBE = "\n\nUser: What do you know about me?\n\nAssistant:"
"""What is read from a state where a model is asked what it makes of it."""


def state_of(source: str, store: str | None) -> RWKVState:
    """Returns the state that a session or a file stands for; this counts as no use of it."""
    from langchain_rwkv_state.state import RWKVState
    from langchain_rwkv_state.store.events import snapshot_of

    if os.path.isfile(source):  # noqa: PTH113  # a name may be longer than a path can be
        return RWKVState.load(source)
    with existing_store(store) as opened:
        found = snapshot_of(opened, source) if opened else None
        if found is None:
            raise unknown_session(source)
        return found.state


@contextmanager
def loaded_model(model: str, strategy: str, tokenizer: str | None) -> Iterator[Loaded]:
    """Loads a model, and lets it go at the end."""
    from langchain_rwkv_state.chat_models import ChatRWKV
    from langchain_rwkv_state.store import MemoryStateStore

    llm = ChatRWKV(
        model=model,
        strategy=strategy,
        tokenizer=tokenizer,
        store=MemoryStateStore(),
        prefix_cache=False,
    )
    try:
        yield llm.loaded()
    finally:
        llm.unload()


@contextmanager
def model_of(
    state: RWKVState, model: str, strategy: str, tokenizer: str | None
) -> Iterator[Loaded]:
    """Loads the model of a state, and lets it go at the end.

    Raises:
        ValueError: It is another model's state.
    """
    with loaded_model(model, strategy, tokenizer) as loaded:
        if loaded.runtime.fingerprint != state.fingerprint:
            raise ValueError(
                f"The state belongs to another model than {model!r} ({state.fingerprint}, not "
                f"{loaded.runtime.fingerprint}): ask the one that read it, by --model."
            )
        yield loaded


def read_healthy(file: Path | None) -> Healthy | None:
    """Reads healthy ranges; ``None`` where none are asked for."""
    from langchain_rwkv_state.state import Healthy

    return None if file is None else Healthy.from_json(read_text(file))


def keep(state: RWKVState, into: str, store: str | None, *, create: bool = False) -> None:
    """Puts a state into a new session or a new file, and says so."""
    if not into.endswith(FILE):
        keep_session(state, into, store, create=create)
        return
    target = Path(into)
    require_new(target)
    state.save(target)
    output.written(target)


def keep_session(
    state: RWKVState, session: str, store: str | None, *, create: bool = False
) -> None:
    """Begins a session with a state, and says so."""
    with closing(open_store(store, create=create)) as opened:
        opened.begin(session, state)
    line = Text("The session ") + output.one_line(session)
    line += Text(f" begins with {counted(state.n_tokens, 'token')} in {output.size(state.nbytes)}.")
    output.out().print(line, soft_wrap=True)
