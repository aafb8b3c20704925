"""What the commands on states share: where a state comes from, tables, and files that are new.

A state is named by a session, whose head is meant, or by a file that this package wrote. The easy
mistake is to let a name mean two things: what is a file is a file, and all else is a session.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.sessions import existing_store, unknown_session

if TYPE_CHECKING:
    from langchain_rwkv_state.state import Healthy, RWKVState

Source = Annotated[str, typer.Argument(help="A session, or a file of a state.")]
HealthyOption = Annotated[
    Path | None,
    typer.Option("--healthy", metavar="FILE", help="Healthy ranges, as `calibrate` wrote them."),
]


def state_of(source: str, store: Path | None) -> RWKVState:
    """Returns the state that a session or a file stands for; this counts as no use of it."""
    from langchain_rwkv_state.state import RWKVState

    if Path(source).is_file():
        return RWKVState.load(source)
    with existing_store(store) as opened:
        info = opened.session(source, renew=False) if opened else None
        if opened is None or info is None:
            raise unknown_session(source)
        if info.head is None:
            raise ValueError(f"The session {source!r} has no state yet, only unread messages.")
        return opened.get(info.head, renew=False)


def read_healthy(file: Path | None) -> Healthy | None:
    """Reads healthy ranges; ``None`` where none are asked for."""
    from langchain_rwkv_state.state import Healthy

    return None if file is None else Healthy.from_json(file.read_text("utf-8"))


def require_new(file: Path) -> None:
    """Checks that there is no such file yet, and that there is a place for it.

    Raises:
        ValueError: It is there already, or its directory is not.
    """
    if file.exists() or file.is_symlink():
        raise ValueError(f"{file} is there already: name another file, or remove it first.")
    if not file.parent.is_dir():
        raise ValueError(f"There is no directory {file.parent} to write {file.name} to.")


def write_new(file: Path, text: str) -> None:
    """Writes a new file, whole or not at all, and says so.

    Raises:
        ValueError: It is there already.
    """
    require_new(file)
    data = text.encode("utf-8", "replace")
    half = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with half.open("xb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        try:
            file.hardlink_to(half)  # unlike a renaming, this never replaces a file
        except FileExistsError:
            require_new(file)
            raise
        except OSError:  # a file system without hard links
            require_new(file)
            half.rename(file)
    finally:
        half.unlink(missing_ok=True)
    say_written(file)


def say_written(file: Path, *, as_note: bool = False) -> None:
    """Says that a file was written, and its size; as a note where the output is for programs."""
    said = f"Wrote {output.plain(str(file))}, {output.size(file.stat().st_size)}."
    if as_note:
        output.note(said)
    else:
        output.out().print(Text(said), soft_wrap=True)


def table(first: str, *others: str) -> Table:
    """Returns an empty table: names to the left, figures to the right."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    made.add_column(first, no_wrap=True)
    for name in others:
        made.add_column(name, justify="right", no_wrap=True)
    return made
