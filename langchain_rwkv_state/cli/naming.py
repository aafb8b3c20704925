"""The commands that give a session another name or another head: ``fork``, ``rewind``, ``rename``.

They need no model, and start without PyTorch. The store keeps behind a moved head what is kept
already, whatever the usual history: a command is not to take away what a program that keeps more
has kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from langchain_rwkv_state._text import counted
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.completion import complete_session
from langchain_rwkv_state.cli.options import StoreOption
from langchain_rwkv_state.cli.sessions import existing_store, unknown_session

if TYPE_CHECKING:
    from langchain_rwkv_state.store import StateStore

SessionArgument = Annotated[str, typer.Argument(help="Its name.", autocompletion=complete_session)]
NewNameArgument = Annotated[str, typer.Argument(help="A name that no session has.")]


def fork(session: SessionArgument, new: NewNameArgument, store: StoreOption = None) -> None:
    """Give a session's state a second name, which goes its own way from here.

    No state is copied: log and history are those of both.
    """
    with _store_of(session, store) as opened:
        opened.fork(session, new)
        _say(opened, "Forked", session, new)


def rewind(
    session: SessionArgument,
    turns: Annotated[int, typer.Argument(min=1, help="How many turns to take back.")] = 1,
    store: StoreOption = None,
) -> None:
    """Take a session back by a turn or more, as if they had not been said.

    It can go back as far as its states are kept: by one turn, unless the program that wrote them
    keeps a longer history. `rwkv-state show` says which are.
    """
    with _store_of(session, store) as opened:
        opened.rewind(session, turns)
        _say(opened, f"Took back {counted(turns, 'turn')} of", session, session)


def rename(session: SessionArgument, new: NewNameArgument, store: StoreOption = None) -> None:
    """Give a session another name, with all that it has.

    Whoever goes on under the old name begins a new session.
    """
    with _store_of(session, store) as opened:
        opened.rename(session, new)
        _say(opened, "Renamed", session, new)


@contextmanager
def _store_of(session: str, place: str | None) -> Iterator[StateStore]:
    """Opens the store of a session; keeps what is kept behind its head.

    Raises:
        typer.Exit: There is no such session.
    """
    from langchain_rwkv_state.store.tables import LOG_ENTRIES

    with existing_store(place, history=LOG_ENTRIES) as opened:
        if opened is None or opened.session(session, renew=False) is None:
            raise unknown_session(session)
        yield opened


def _say(store: StateStore, what: str, session: str, new: str) -> None:
    """Says what was done, and where the session stands."""
    info = store.session(new, renew=False)
    turns = 0 if info is None else info.n_turns
    line = Text(f"{what} ") + output.one_line(session)
    line += Text(" as ") + output.one_line(new) if new != session else ""
    output.out().print(line + Text(f": {counted(turns, 'turn')}."), soft_wrap=True)
