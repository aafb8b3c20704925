"""The application: its commands, and one place where errors become sentences.

Each command lives in a module of its own. The easy mistake is to catch this package's errors in a
command: `_Commands` prints them all in one form, with exit code 1 and no traceback.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from langchain_rwkv_state._version import __version__
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.backup import backup, restore
from langchain_rwkv_state.cli.cache import cache, warm
from langchain_rwkv_state.cli.chat import chat
from langchain_rwkv_state.cli.clamp import clamp_decay
from langchain_rwkv_state.cli.codecs import codecs
from langchain_rwkv_state.cli.doctor import doctor
from langchain_rwkv_state.cli.help import LiteralCommand, LiteralGroup
from langchain_rwkv_state.cli.looking import calibrate, diff, inspect
from langchain_rwkv_state.cli.models import half_life, memory
from langchain_rwkv_state.cli.naming import fork, rename, rewind
from langchain_rwkv_state.cli.recall import recall
from langchain_rwkv_state.cli.report import report
from langchain_rwkv_state.cli.sessions import prune, rm, sessions, show
from langchain_rwkv_state.cli.streams import prepare_streams
from langchain_rwkv_state.cli.toolbox import blend, decay, export, import_, renormalise
from langchain_rwkv_state.cli.warming import prefill, zero
from langchain_rwkv_state.cli.watch import watch
from langchain_rwkv_state.errors import RWKVStateError


class _Commands(LiteralGroup):
    """A group of commands whose expected errors end with a sentence and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with _warnings_as_notes():
                return super().invoke(ctx)
        except (RWKVStateError, OSError, ValueError) as problem:
            if isinstance(problem, BrokenPipeError):
                raise
            output.error(problem)
            raise typer.Exit(1) from problem


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Shows warnings of this package as sentences, without the line of code they came from."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        output.note(message)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield


app = typer.Typer(
    cls=_Commands,
    name="rwkv-state",
    help="Talk to an RWKV model whose conversations are states, and look after those states.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        output.out().print(f"langchain-rwkv-state {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


for _command in (
    *(chat, sessions, show, rm, prune, warm, doctor),
    *(fork, rewind, rename, backup, restore),
    *(inspect, calibrate, diff, watch, report, recall),
    *(blend, decay, renormalise, codecs, export),
    *(zero, prefill, half_life, clamp_decay, memory),
):
    app.command(cls=LiteralCommand)(_command)
app.command("import", cls=LiteralCommand)(import_)
app.add_typer(cache, name="cache")


def main() -> None:
    """Runs the command line."""
    prepare_streams()
    # What a command imports is there to stay, and most commands end before they make garbage worth
    # a look: Python's usual pace, 700 objects, has it look through PyTorch several times.
    gc.set_threshold(50_000, 20, 100)
    try:
        app()
    finally:
        gc.freeze()  # nor does the interpreter's end go through all of it
