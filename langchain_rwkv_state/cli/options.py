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
    from langchain_rwkv_state.store import StateStore
    from langchain_rwkv_state.store.urls import StoreUrl


def read_store(text: str) -> str:
    """Reads a store's name: a URL is checked, and a directory taken as it is.

    Raises:
        typer.BadParameter: It is a URL that no store has.
    """
    if ":" in text:
        from langchain_rwkv_state.store.urls import StoreUrl, is_url

        try:
            if is_url(text):
                StoreUrl.read(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    return text


StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        parser=read_store,
        metavar="DIR|URL",
        envvar="RWKV_STATE_DIR",
        show_default="the user's data directory",
        help="Directory of the store, or its URL: redis://HOST.",
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


def open_store(
    place: str | None, *, create: bool = False, history: int | None = None
) -> StateStore:
    """Opens a store, made where it is missing; among other files only once that was allowed.

    Args:
        place: Its directory or URL; ``None`` for the user's own.
        create: Whether it may be made among other files; else a terminal is asked.
        history: How many states before a head are kept, where a head is moved; ``None`` for as
            its URL says, or one.

    Raises:
        StoreError: It is foreign, damaged or not to be opened, or its extra is missing.
    """
    from langchain_rwkv_state.errors import StoreError
    from langchain_rwkv_state.store import open_store

    settings: dict[str, Any] = {} if history is None else {"history": history}
    if is_directory(place):
        path = store_directory(place)
        if not create and _holds_others(path):
            create = _may_create(path)
        if create:
            settings["create"] = True
    try:
        return open_store(place, **settings)
    except ImportError as error:
        raise StoreError(str(error)) from error


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


def _url(place: str | None) -> StoreUrl | None:
    if place is None or ":" not in place:
        return None
    from langchain_rwkv_state.store.urls import StoreUrl, is_url

    return StoreUrl.read(place) if is_url(place) else None


def is_directory(place: str | None) -> bool:
    """Says whether a store lies in a directory of this machine."""
    url = _url(place)
    return url is None or url.scheme == "file"


def store_directory(place: str | None, *, what: str = "This") -> Path:
    """Returns the directory of a store, whether or not it is there.

    Args:
        place: The store's directory or URL; ``None`` for the user's own.
        what: What needs a directory, as a sentence begins.

    Raises:
        typer.BadParameter: The store is no directory.
    """
    from langchain_rwkv_state.store import default_directory

    url = _url(place)
    if url is not None and url.scheme != "file":
        raise typer.BadParameter(
            f"{what} is for a store in a directory, and {url.shown} is none. A Redis server "
            "copies itself: `redis-cli --rdb FILE`, and docs/redis.md for the way back. `export` "
            "and `import` carry a session from any store to any other.",
            param_hint="'--store'",
        )
    if url is not None:
        return Path(url.place).expanduser()
    return default_directory() if place is None else Path(place).expanduser()


def store_name(place: str | None) -> str:
    """Returns what a store is called, for all to see: a path, or a URL without its password."""
    url = _url(place)
    return str(store_directory(place)) if url is None or url.scheme == "file" else url.shown


def is_store(place: str | None) -> bool:
    """Says whether there is a store; opening one in a directory would make it.

    One that is no directory is taken to be there: opening it makes nothing.
    """
    from langchain_rwkv_state.store.files import RESERVE
    from langchain_rwkv_state.store.schema import DATABASE

    if not is_directory(place):
        return True
    directory = store_directory(place)
    # A store that lost its database is one, for whoever opens it to say so.
    return any((directory / name).exists() for name in (DATABASE, RESERVE))
