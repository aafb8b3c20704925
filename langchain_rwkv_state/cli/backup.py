"""The commands ``backup`` and ``restore``: copy a store, and make a store of a copy.

They need no model; ``restore`` looks at every state, and needs PyTorch for that. Neither writes
over anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from langchain_rwkv_state._text import counted
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.options import StoreOption, store_directory
from langchain_rwkv_state.cli.sessions import existing_store

if TYPE_CHECKING:
    from langchain_rwkv_state.store import Backup


def backup(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory.")],
    store: StoreOption = None,
) -> None:
    """Copy a store into a new directory, while others go on talking.

    The copy is a store as it stood at one moment: any command takes it by --store.
    """
    from langchain_rwkv_state.store import DiskStateStore

    store_directory(store, what="A backup")
    with existing_store(store) as opened:
        if not isinstance(opened, DiskStateStore):  # there is none
            raise typer.Exit(1)
        _say("Backed up", opened.backup(directory))


def restore(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A backup.")],
    store: StoreOption = None,
) -> None:
    """Make a store of a backup, once every row and state of it was checked.

    It is made where --store says, where there must be none yet: nothing is written over. The backup
    stays as it is.
    """
    from langchain_rwkv_state.store import DiskStateStore

    _say("Restored", DiskStateStore.restore(directory, store_directory(store, what="To restore")))


def _say(what: str, made: Backup) -> None:
    line = (
        f"{what} {counted(made.sessions, 'session')} and {counted(made.states, 'state')}, "
        f"{output.size(made.nbytes)}, in {output.plain(str(made.path))}."
    )
    output.out().print(Text(line), soft_wrap=True)
