"""The command ``chat``: a conversation with a name, in a terminal or through a pipe.

In a terminal it prompts and streams; through a pipe each line of the input is one turn and only
the answers go to standard output. The easy mistake is to let Ctrl-C end the program: during an
answer it stops that answer, of which nothing is kept.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.text import Text

from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.interrupts import Interrupts
from langchain_rwkv_state.cli.options import (
    CreateOption,
    ModelOption,
    StoreOption,
    StrategyOption,
    TtlOption,
    open_store,
)
from langchain_rwkv_state.cli.streams import piped_text
from langchain_rwkv_state.errors import RWKVStateError
from langchain_rwkv_state.views.words import counted

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from rich.console import Console

    from langchain_rwkv_state.session import RWKVSession

_COMMANDS = (
    ("/log", "the last turns of this session"),
    ("/rewind [N]", "take back the last turn, or the last N"),
    ("/fork NAME", "give the conversation so far a second name; this one goes on"),
    ("/help", "this list"),
    ("/quit", "end (as Ctrl-D does)"),
)


def chat(
    model: ModelOption = "demo",
    session: Annotated[
        str, typer.Option("--session", "-s", help="Name of the conversation.")
    ] = "default",
    store: StoreOption = None,
    create: CreateOption = False,
    strategy: StrategyOption = "auto",
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System prompt, read at the first turn.")
    ] = None,
    ttl: TtlOption = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 takes the most likely token.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1)] = None,
    top_k: Annotated[int | None, typer.Option(min=0)] = None,
    presence_penalty: Annotated[float | None, typer.Option()] = None,
    frequency_penalty: Annotated[float | None, typer.Option()] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes answers repeatable.")] = None,
) -> None:
    """Talk to a model; the conversation goes on where it ended.

    Reads lines from standard input. If that is no terminal, each line is a turn, and only answers
    are printed.
    """
    given: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "max_tokens": max_tokens,
        "seed": seed,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    console = output.out()
    with closing(open_store(store, create=create)) as opened:
        with _waiting(console, f"Loading {model}", shown=is_terminal):
            from langchain_rwkv_state.chat_models import ChatRWKV

            llm = ChatRWKV(model=model, strategy=strategy, store=opened, **settings)
        llm.loaded()  # which draws a bar of its own where it takes long
        talk = _Talk(llm.with_session(session, ttl=ttl), system, console, is_terminal)
        try:
            talk.run()
        finally:
            llm.unload()


@dataclass
class _Talk:
    """One run of the command: reads lines, answers them, obeys what begins with a slash."""

    session: RWKVSession
    system: str | None
    console: Console
    is_terminal: bool
    _over: bool = field(default=False, init=False)
    _interrupts: Interrupts = field(default_factory=Interrupts, init=False)
    _piped: TextIO | None = field(default=None, init=False)

    def run(self) -> None:
        """Goes on to the end of the input."""
        if not self.is_terminal:
            self._turns()
            return
        with self._interrupts.listening():
            self._greet()
            self._turns()
            self._say_goodbye()

    def _turns(self) -> None:
        while not self._over:
            line = self._read()
            if line is None:
                break
            text = line.strip()
            if text:
                self._turn(text)

    def _turn(self, text: str) -> None:
        """Answers or obeys one line; in a terminal an error is told and the talk goes on.

        Raises:
            RWKVStateError, ValueError: It went wrong, and the input is no terminal.
        """
        try:
            if text.startswith("/"):
                self._obey(text)
            else:
                self._answer(text)
        except (RWKVStateError, ValueError) as problem:
            if not self.is_terminal:
                raise
            output.error(problem)

    def _read(self) -> str | None:
        """Returns the next line, ``None`` at the end."""
        if not self.is_terminal:
            self._piped = self._piped or piped_text()
            return self._piped.readline() or None
        while True:
            try:
                return self._interrupts.read(_prompt("you", self.console))
            except EOFError:
                self.console.print()
                return None
            except KeyboardInterrupt:
                self.console.print("\n[dim]Ctrl-D or /quit ends.[/]")

    def _answer(self, text: str) -> None:
        from langchain_core.messages import HumanMessage, SystemMessage

        messages: list[BaseMessage] = [SystemMessage(self.system)] if self.system else []
        before = self.session.head
        if self.is_terminal:
            self._write(Text("rwkv", style="bold green") + Text(" \u203a ", style="dim"))
        try:
            self._stream([*messages, HumanMessage(text)])
        except KeyboardInterrupt:
            self._stopped(before)
            return
        except BaseException:
            if self.is_terminal:
                self.console.print()
            raise
        self._write(Text("\n"))

    def _stream(self, messages: list[BaseMessage]) -> None:
        """Writes an answer as it comes.

        Only the wait for the next piece can be interrupted: rich, interrupted as it prints, may
        print nothing ever after.
        """
        stream = self.session.stream(messages)
        with closing(stream):  # type: ignore[type-var]
            while (chunk := self._interrupts.during(lambda: next(stream, None))) is not None:
                self._write(Text(output.plain(str(chunk.text))))

    def _stopped(self, before: str | None) -> None:
        self.console.print()
        if self.session.head == before:
            self.console.print("[yellow]Stopped. Nothing of this turn is kept.[/]")
        else:
            self.console.print(
                "[yellow]Stopped at its end: the turn is kept. /rewind undoes it.[/]"
            )
        if not self.is_terminal:
            raise typer.Exit(130)

    def _obey(self, text: str) -> None:
        """Does what a line that begins with a slash says.

        Raises:
            RWKVStateError, ValueError: It cannot be done, or says nothing known.
        """
        word, _, rest = text.partition(" ")
        actions: dict[str, Callable[[str], None]] = {
            "/log": self._log,
            "/rewind": self._rewind,
            "/fork": self._fork,
            "/help": self._help,
            "/quit": self._quit,
            "/exit": self._quit,
        }
        action = actions.get(word)
        if action is None:
            raise ValueError(f"There is no command {word!r}: /help lists them.")
        action(rest.strip())

    def _log(self, _: str) -> None:
        from langchain_rwkv_state.cli.sessions import log_table

        log = self.session.log()
        if log:
            self.console.print(log_table(log))
        else:
            self.console.print("No turn yet.")

    def _rewind(self, text: str) -> None:
        turns = int(text) if text.isascii() and text.isdecimal() else 0 if text else 1
        if turns < 1:
            raise ValueError(f"/rewind takes a number of turns from 1 on, not {text!r}.")
        self.session.store.rewind(self.session.session, turns)
        info = self.session.store.session(self.session.session, renew=False)
        count = f"the last {turns} turns" if turns > 1 else "the last turn"
        where = f"{info.n_tokens} tokens" if info and info.head else "its beginning"
        self.console.print(f"Took back {count}: the conversation stands at {where}.")

    def _fork(self, name: str) -> None:
        if not name:
            raise ValueError("/fork needs a name: /fork NAME.")
        self.session.store.fork(self.session.session, name)
        line = Text("The conversation so far is also ") + output.one_line(name)
        self.console.print(line + Text("."), soft_wrap=True)

    def _help(self, _: str) -> None:
        for usage, meaning in _COMMANDS:
            self.console.print(Text(f"  {usage:<13}{meaning}"))

    def _quit(self, _: str) -> None:
        self._over = True

    def _greet(self) -> None:
        info = self.session.store.session(self.session.session, renew=False)
        name = output.one_line(self.session.session)
        if info is None:
            self.console.print(Text("New session ") + name + Text(". /help lists commands."))
            return
        turns = counted(info.n_turns, "turn")
        text = f": {turns}, {info.n_tokens} tokens, last used "
        text += f"{output.ago(info.updated_seconds, time.time())}. /help lists commands."
        self.console.print(Text("Session ") + name + Text(text), soft_wrap=True)

    def _say_goodbye(self) -> None:
        info = self.session.store.session(self.session.session, renew=False)
        if info is None:
            return
        expires = output.until(info.expires_seconds, time.time())
        text = f": {info.n_tokens} tokens in {output.size(info.nbytes)}, expires {expires}."
        line = Text("Kept ") + output.one_line(self.session.session) + Text(text)
        self.console.print(line, style="dim", soft_wrap=True)

    def _write(self, text: Text) -> None:
        self.console.print(text, end="", soft_wrap=True)
        self.console.file.flush()


def _prompt(who: str, console: Console) -> str:
    """Returns the prompt for `input`; colour codes are marked as taking no room."""
    with suppress(ImportError):
        import readline  # noqa: F401
    if console.no_color or not console.color_system:
        return f"{who}  \u203a "
    return f"\x01\x1b[1;36m\x02{who}\x01\x1b[0;2m\x02  \u203a \x01\x1b[0m\x02"


@contextmanager
def _waiting(console: Console, text: str, *, shown: bool) -> Iterator[None]:
    if not shown:
        yield
        return
    with console.status(Text(output.plain(text))):
        yield
