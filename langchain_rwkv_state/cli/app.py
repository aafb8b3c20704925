"""Registers the commands, and turns errors into sentences in one place.

Each command lives in a module of its own and catches none of this package's errors: `_Commands`
prints them all in one form, with exit code 1 and no traceback.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from langchain_rwkv_state import _stopping as stopping
from langchain_rwkv_state._version import __version__
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.ask import ask
from langchain_rwkv_state.cli.backup import backup, restore
from langchain_rwkv_state.cli.cache import cache, warm
from langchain_rwkv_state.cli.chat import chat
from langchain_rwkv_state.cli.clamp import clamp_decay
from langchain_rwkv_state.cli.codecs import codecs
from langchain_rwkv_state.cli.default_command import asked
from langchain_rwkv_state.cli.doctor import doctor
from langchain_rwkv_state.cli.help import LiteralCommand, LiteralGroup
from langchain_rwkv_state.cli.inspection import calibrate, diff, inspect
from langchain_rwkv_state.cli.models import half_life, memory
from langchain_rwkv_state.cli.naming import fork, rename, rewind
from langchain_rwkv_state.cli.prefill import prefill, zero
from langchain_rwkv_state.cli.recall import recall
from langchain_rwkv_state.cli.redact import redact, transcript
from langchain_rwkv_state.cli.report import report
from langchain_rwkv_state.cli.serve import serve
from langchain_rwkv_state.cli.sessions import prune, rm, sessions, show
from langchain_rwkv_state.cli.size import size
from langchain_rwkv_state.cli.streams import is_piped, prepare_streams
from langchain_rwkv_state.cli.toolbox import blend, decay, export, import_, renormalise
from langchain_rwkv_state.cli.watch import watch
from langchain_rwkv_state.errors import RWKVStateError

_NAME = "rwkv-state"


class _Commands(LiteralGroup):
    """A group of commands: what is none of them is asked, errors and Ctrl-C end with a sentence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args or (is_piped() and not ctx.resilient_parsing):
            args = asked(self, ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with stopping.InOrder(), _warnings_as_notes():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            stopping.say()
            raise typer.Exit(stopping.EXIT_CODE) from stop
        except (RWKVStateError, OSError, ValueError) as problem:
            if isinstance(problem, BrokenPipeError):
                raise
            output.error(_sentence(problem))
            raise typer.Exit(1) from problem


def _sentence(problem: Exception) -> str:
    """Returns what an error says; of one of pydantic, which has lines and a link, a sentence."""
    wrong = getattr(problem, "errors", None)
    if not callable(wrong):
        return str(problem)
    return " ".join(
        f"{'.'.join(map(str, each['loc']))} is {each['input']!r}: {each['msg']}."
        for each in wrong()
    )


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
    name=_NAME,
    help="""Talk to an RWKV model whose conversations are states, and look after those states.

    Words that are no command are a question: rwkv-state "What is your name?"
    """,
    no_args_is_help=True,
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


_COMMANDS: dict[str, dict[Callable[..., None], str]] = {
    "Talk": {
        ask: 'ask "What is my name?" --session bob',
        chat: "chat --session bob",
        serve: "serve --model rwkv-7.pth --port 8000",
    },
    "Sessions": {
        sessions: "sessions",
        show: "show bob",
        watch: "watch bob",
        report: "report bob bob.html",
        export: "export bob bob.zip",
        import_: "import bob.zip",
        fork: "fork bob carol",
        rewind: "rewind bob",
        rename: "rename bob carol",
        transcript: "transcript bob",
        redact: "redact bob --turn 3",
        rm: "rm bob",
        prune: "prune",
        backup: "backup monday",
        restore: "restore monday --store anew",
    },
    "States": {
        inspect: "inspect bob",
        diff: "diff alice bob",
        calibrate: "calibrate --all --out healthy.json",
        blend: "blend alice bob --into both",
        decay: "decay bob 0.9 --into fading",
        renormalise: "renormalise old --into fresh",
        codecs: "codecs bob",
        zero: "zero --into start",
        prefill: "prefill manual --file manual.txt",
    },
    "Models": {
        doctor: "doctor --model rwkv-7.pth",
        size: "size --model rwkv-7.pth --sessions 10000",
        memory: "memory --model rwkv-7.pth",
        recall: "recall --plot recall.png",
        half_life: "half-life --plot half_life.png",
        clamp_decay: "clamp-decay --model rwkv-4.pth --out clamped.pth",
    },
    "Cache": {
        warm: "warm --file prompts.yaml",
    },
}
"""The commands by what they look after, each with an example of its use."""

for _panel, _examples in _COMMANDS.items():
    for _command, _example in _examples.items():
        app.command(
            _command.__name__.rstrip("_").replace("_", "-"),
            cls=LiteralCommand,
            epilog=f"Example: rwkv-state {_example}",
            rich_help_panel=_panel,
        )(_command)
app.add_typer(
    cache, name="cache", epilog="Example: rwkv-state cache --tree", rich_help_panel="Cache"
)


def main() -> None:
    """Runs the command line; `__main__` hears Ctrl-C from before its import on."""
    prepare_streams()
    # What a command imports is there to stay, and most commands end before they make garbage worth
    # a look: Python's usual pace, 700 objects, has it look through PyTorch several times.
    gc.set_threshold(50_000, 20, 100)
    try:
        app(prog_name=_NAME)
    finally:
        gc.freeze()  # nor does the interpreter's end go through all of it
