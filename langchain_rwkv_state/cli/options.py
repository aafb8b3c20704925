"""Defines the options that several commands share, and reads their texts.

Texts are read by the parser and not in a command, so that a wrong one shows the usage.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from langchain_rwkv_state.cli.completion import complete_model

if TYPE_CHECKING:
    from langchain_rwkv_state.store import DiskStateStore

StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="DIR",
        envvar="RWKV_STATE_DIR",
        show_default="the user's data directory",
        help="Directory of the store.",
    ),
]
CreateOption = Annotated[
    bool,
    typer.Option("--create", help="Make a store also where DIR holds other things."),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="demo, a model's file or folder, or org/repo/file.pth on a hub.",
        autocompletion=complete_model,
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        metavar="NAME",
        show_default="the one beside the model, or what its size tells",
        help="world, a tokenizer.json, or a vocabulary in the format of World's.",
    ),
]
PlotOption = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="A new picture: .png, .svg or .pdf."),
]
StrategyOption = Annotated[
    str, typer.Option("--strategy", help="auto, 'cuda fp16', 'cpu int8', 'package cpu fp32', ...")
]

SystemOption = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="System prompt, read first.")
]
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", min=0, help="0 takes the most likely token.")
]
TopPOption = Annotated[float | None, typer.Option("--top-p", min=0.01, max=1)]
TopKOption = Annotated[int | None, typer.Option("--top-k", min=0)]
PresenceOption = Annotated[float | None, typer.Option("--presence-penalty")]
FrequencyOption = Annotated[float | None, typer.Option("--frequency-penalty")]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="Most tokens of an answer.")
]
ReasoningOption = Annotated[
    Literal["low", "medium", "high", "off"] | None,
    typer.Option(
        "--reasoning",
        show_default="the model's own way",
        help="How long a model that can think does so first; what it thinks is not shown.",
    ),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Makes answers repeatable.")]


def given(**settings: Any) -> dict[str, Any]:
    """Returns the settings that were given: those that are not ``None``."""
    found = {name: value for name, value in settings.items() if value is not None}
    if found.get("reasoning") == "off":
        found["reasoning"] = False
    return found


JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document instead; docs/json.md has its form.")
]


def read_ttl(text: str) -> float:
    """Reads a time to live, as `read_duration` does.

    Raises:
        typer.BadParameter: The text is none.
    """
    from langchain_rwkv_state.store.clock import read_duration

    try:
        return read_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


TtlOption = Annotated[
    float | None,
    typer.Option(
        "--ttl",
        parser=read_ttl,
        metavar="TIME",
        show_default="the store's",
        help="Time to live from each turn on: seconds, 30m, 1h30m, 7d, 2w or never.",
    ),
]


def check_plot(plot: Path | None) -> None:
    """Checks that a picture can be drawn, before anything is measured for it.

    Raises:
        ValueError, OSError: As `require_picture`.
    """
    if plot is not None:
        from langchain_rwkv_state.views.plots.figure import require_picture

        require_picture(plot)


def open_store(directory: Path | None, *, create: bool = False, history: int = 1) -> DiskStateStore:
    """Opens a store, made where it is missing; among other files only once that was allowed.

    Args:
        directory: Its directory; ``None`` for the user's own.
        create: Whether it may be made among other files; else a terminal is asked.
        history: How many states before a head are kept, where a head is moved.

    Raises:
        StoreError: It is foreign, damaged or not to be opened.
    """
    from langchain_rwkv_state.store import DiskStateStore

    path = store_directory(directory)
    if not create and _holds_others(path):
        create = _may_create(path)
    return DiskStateStore(directory, create=create or None, history=history)


def _holds_others(path: Path) -> bool:
    """Says whether a directory holds other things, and no store."""
    from langchain_rwkv_state.errors import StoreError
    from langchain_rwkv_state.store.place import require_place

    if not path.is_dir():
        return False
    try:
        require_place(path, create=None)
    except StoreError:
        return True
    return False


def _may_create(path: Path) -> bool:
    """Asks, where there is somebody to ask.

    Raises:
        StoreError: Nobody is there, or the answer is no.
    """
    from langchain_rwkv_state.errors import StoreError

    question = f"{path} holds other things. Make a store among them?"
    try:
        if _is_terminal() and typer.confirm(question):
            return True
    except typer.Abort as stop:  # made of Ctrl-C
        raise KeyboardInterrupt from stop
    raise StoreError(
        f"{path} holds other things and no store. Name a directory of the store's own, or pass "
        "--create to make one among them."
    )


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def store_directory(directory: Path | None) -> Path:
    """Returns the directory of a store, whether or not it is there."""
    from langchain_rwkv_state.store import default_directory

    return default_directory() if directory is None else directory.expanduser()


def is_store(directory: Path) -> bool:
    """Says whether there is a store in a directory; opening it would make one."""
    from langchain_rwkv_state.store.files import RESERVE
    from langchain_rwkv_state.store.schema import DATABASE

    # A store that lost its database is one, for whoever opens it to say so.
    return any((directory / name).exists() for name in (DATABASE, RESERVE))
