"""The command ``chat``: holds a conversation with a name, in a terminal or through a pipe.

In a terminal it prompts and streams, and a turn may have several lines; through a pipe each line of
the input is one turn and only the answers go to standard output. During an answer Ctrl-C stops that
answer, of which nothing is kept, and not the program; what was said may be, for the next turn.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.text import Text

from langchain_rwkv_state._text import counted
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.completion import complete_session
from langchain_rwkv_state.cli.interrupts import Interrupts
from langchain_rwkv_state.cli.options import (
    CreateOption,
    FrequencyOption,
    MaxTokensOption,
    ModelOption,
    PresenceOption,
    ReasoningOption,
    SeedOption,
    StoreOption,
    StrategyOption,
    SystemOption,
    TemperatureOption,
    TokenizerOption,
    TopKOption,
    TopPOption,
    TtlOption,
    given,
    open_store,
)
from langchain_rwkv_state.cli.streams import piped_text
from langchain_rwkv_state.cli.turn_input import Typed, marked_pastes, typed_turn
from langchain_rwkv_state.errors import RWKVStateError

if TYPE_CHECKING:
    from langchain_core.messages import AIMessageChunk, BaseMessage
    from rich.console import Console

    from langchain_rwkv_state.conversation.session import RWKVSession

_COMMANDS = (
    ("/log", "the last turns of this session"),
    ("/rewind [N]", "take back the last turn, or the last N"),
    ("/fork NAME", "give the conversation so far a second name; this one goes on"),
    ("/ask TEXT", "ask aside: answered from here, and nothing of it is kept"),
    ("/system TEXT", "set the system prompt from the next turn on; alone, show it"),
    ("/stats", "what the model did, and how fast"),
    ('"""', "begin a turn of several lines; the same ends it (a paste is one turn as it is)"),
    ("/help", "this list"),
    ("/quit", "end (as Ctrl-D does)"),
)
_NO_SYSTEM = "No system prompt was set here, by --system or by /system TEXT."


def chat(
    model: ModelOption = "demo",
    session: Annotated[
        str,
        typer.Option(
            "--session", "-s", help="Name of the conversation.", autocompletion=complete_session
        ),
    ] = "default",
    store: StoreOption = None,
    create: CreateOption = False,
    strategy: StrategyOption = "auto",
    tokenizer: TokenizerOption = None,
    reasoning: ReasoningOption = None,
    system: SystemOption = None,
    ttl: TtlOption = None,
    keep_question: Annotated[
        bool,
        typer.Option(
            "--keep-question", help="Where Ctrl-C stops an answer, keep what was said for the next."
        ),
    ] = False,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    presence_penalty: PresenceOption = None,
    frequency_penalty: FrequencyOption = None,
    max_tokens: MaxTokensOption = None,
    seed: SeedOption = None,
) -> None:
    """Talk to a model; the conversation goes on where it ended.

    In a terminal /help lists commands, and three quotes begin a turn of several lines and end it.
    Through a pipe each line is a turn, and only answers are printed.
    """
    settings = given(
        tokenizer=tokenizer,
        reasoning=reasoning,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        max_tokens=max_tokens,
        seed=seed,
    )
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    console = output.out()
    with closing(open_store(store, create=create)) as opened:
        with _waiting(console, f"Loading {model}", shown=is_terminal):
            from langchain_rwkv_state.chat_models import ChatRWKV

            llm = ChatRWKV(model=model, strategy=strategy, store=opened, **settings)
        llm.loaded()  # which draws a bar of its own where it takes long
        bound = llm.with_session(
            session, ttl=ttl, on_abort="keep_question" if keep_question else "forget"
        )
        talk = _Talk(bound, system, console, is_terminal, keeps_question=keep_question)
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
    keeps_question: bool = False
    _over: bool = field(default=False, init=False)
    _system_told: bool = field(default=False, init=False)
    _interrupts: Interrupts = field(default_factory=Interrupts, init=False)
    _piped: TextIO | None = field(default=None, init=False)

    def run(self) -> None:
        """Goes on to the end of the input."""
        if not self.is_terminal:
            self._turns()
            return
        with marked_pastes(), self._interrupts.listening():
            self._greet()
            self._turns()
            self._say_goodbye()

    def _turns(self) -> None:
        while not self._over:
            typed = self._read()
            if typed is None:
                break
            if typed.text:
                self._turn(typed)

    def _turn(self, typed: Typed) -> None:
        """Answers or obeys one turn; in a terminal an error is told and the talk goes on.

        Raises:
            RWKVStateError, ValueError: It went wrong, and the input is no terminal.
        """
        try:
            if typed.is_line and typed.text.startswith("/"):
                self._obey(typed.text)
            else:
                self._answer(typed.text)
        except (RWKVStateError, ValueError) as problem:
            if not self.is_terminal:
                raise
            output.error(problem)

    def _read(self) -> Typed | None:
        """Returns the next turn, ``None`` at the end."""
        if not self.is_terminal:
            self._piped = self._piped or piped_text()
            line = self._piped.readline()
            return Typed(line.strip(), is_line=True) if line else None
        begun = False

        def read(more: bool) -> str:
            nonlocal begun
            begun = more
            return self._interrupts.read(_prompt("..." if more else "you", self.console))

        while True:
            try:
                return typed_turn(read)
            except EOFError:
                self.console.print()
                if begun:
                    output.note("The turn was not ended: nothing of it is read.")
                return None
            except KeyboardInterrupt:
                self.console.print("\n[dim]Ctrl-D or /quit ends.[/]")

    def _answer(self, text: str, *, aside: bool = False) -> None:
        """Answers a turn, or what is asked aside of the conversation."""
        from langchain_core.messages import HumanMessage, SystemMessage

        system: list[BaseMessage] = [SystemMessage(self.system)] if self.system else []
        messages = [*system, HumanMessage(text)]
        before = self.session.head
        if self.is_terminal:
            self._write(Text("rwkv", style="bold green") + Text(" \u203a ", style="dim"))
        session = self.session
        try:
            with self._told():
                self._stream(session.stream_aside(messages) if aside else session.stream(messages))
            if not aside:  # which left the conversation as it was
                self._system_told = False
        except KeyboardInterrupt:
            if not self.is_terminal:
                self._write(Text("\n"))  # a line is an answer, also one that was cut off
                raise
            self._stopped(before, question=self.keeps_question and not aside)
            return
        except BaseException:
            if self.is_terminal:
                self.console.print()
            raise
        self._write(Text("\n"))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Leaves out the warning of a changed system prompt where `/system` told of it."""
        with warnings.catch_warnings():
            if self._system_told:
                warnings.filterwarnings("ignore", "The messages before the state marker")
            yield

    def _stream(self, stream: Iterator[AIMessageChunk]) -> None:
        """Writes an answer as it comes.

        Only the wait for the next piece can be interrupted: rich, interrupted as it prints, may
        print nothing ever after.
        """
        with closing(stream):  # type: ignore[type-var]
            while (chunk := self._interrupts.during(lambda: next(stream, None))) is not None:
                self._write(Text(output.plain(str(chunk.text))))

    def _stopped(self, before: str | None, *, question: bool) -> None:
        self.console.print()
        if self.session.head == before and question:
            self.console.print(
                "[yellow]Stopped. What you said is kept, and read with the next turn.[/]"
            )
        elif self.session.head == before:
            self.console.print("[yellow]Stopped. Nothing of this turn is kept.[/]")
        else:
            self.console.print(
                "[yellow]Stopped at its end: the turn is kept. /rewind undoes it.[/]"
            )

    def _obey(self, text: str) -> None:
        """Does what a line that begins with a slash says.

        Raises:
            RWKVStateError, ValueError: It cannot be done, or says nothing known.
        """
        word, *more = text.split(maxsplit=1)
        rest = more[0] if more else ""
        actions: dict[str, Callable[[str], None]] = {
            "/rewind": self._rewind,
            "/fork": self._fork,
            "/ask": self._ask,
            "/system": self._system,
        }
        alone: dict[str, Callable[[], None]] = {
            "/log": self._log,
            "/stats": self._stats,
            "/help": self._help,
            "/quit": self._quit,
            "/exit": self._quit,
        }
        if word in actions:
            actions[word](rest)
        elif word not in alone:
            raise ValueError(f"There is no command {word!r}: /help lists them.")
        elif rest:
            raise ValueError(f"{word} stands alone: what is {rest!r}?")
        else:
            alone[word]()

    def _log(self) -> None:
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
        where = counted(info.n_tokens, "token") if info and info.head else "its beginning"
        self.console.print(f"Took back {count}: the conversation stands at {where}.")

    def _fork(self, name: str) -> None:
        if not name:
            raise ValueError("/fork needs a name: /fork NAME.")
        self.session.store.fork(self.session.session, name)
        line = Text("The conversation so far is also ") + output.one_line(name)
        self.console.print(line + Text("."), soft_wrap=True)

    def _ask(self, text: str) -> None:
        if not text:
            raise ValueError("/ask needs a question: /ask TEXT.")
        self._answer(text, aside=True)

    def _system(self, text: str) -> None:
        if not text:
            shown = f"System prompt: {output.plain(self.system)}" if self.system else _NO_SYSTEM
            self.console.print(Text(shown), soft_wrap=True)
            return
        self.system, self._system_told = text, True
        told = "It is read with the next turn"
        if self.session.head is not None:
            told += ", behind what the conversation holds: what was read before stays in it"
        self.console.print(f"{told}.")

    def _stats(self) -> None:
        stats = self.session.chat.stats()  # type: ignore[attr-defined]
        self.console.print(Text(output.plain(str(stats))), soft_wrap=True)

    def _help(self) -> None:
        for usage, meaning in _COMMANDS:
            self.console.print(Text(f"  {usage:<14}{meaning}"))

    def _quit(self) -> None:
        self._over = True

    def _greet(self) -> None:
        info = self.session.store.session(self.session.session, renew=False)
        name = output.one_line(self.session.session)
        if info is None:
            self.console.print(Text("New session ") + name + Text(". /help lists commands."))
            return
        turns = counted(info.n_turns, "turn")
        text = f": {turns}, {counted(info.n_tokens, 'token')}, last used "
        text += f"{output.ago(info.updated_seconds, time.time())}. /help lists commands."
        self.console.print(Text("Session ") + name + Text(text), soft_wrap=True)

    def _say_goodbye(self) -> None:
        info = self.session.store.session(self.session.session, renew=False)
        if info is None:
            return
        expires = output.until(info.expires_seconds, time.time())
        text = (
            f": {counted(info.n_tokens, 'token')} in {output.size(info.nbytes)}, expires {expires}."
        )
        line = Text("Kept ") + output.one_line(self.session.session) + Text(text)
        self.console.print(line, style="dim", soft_wrap=True)

    def _write(self, text: Text) -> None:
        self.console.print(text, end="", soft_wrap=True)
        self.console.file.flush()


def _prompt(who: str, console: Console) -> str:
    """Returns the prompt for `input`; to readline, colour codes are marked as taking no room."""
    try:
        import readline  # noqa: F401
    except ImportError:
        begin = end = ""  # a terminal would show the marks, or do what it likes
    else:
        begin, end = "\x01", "\x02"
    if console.no_color or not console.color_system or console.legacy_windows:
        return f"{who}  \u203a "
    bold, dim, plain = (f"{begin}\x1b[{code}m{end}" for code in ("1;36", "0;2", "0"))
    return f"{bold}{who}{dim}  \u203a {plain}"


@contextmanager
def _waiting(console: Console, text: str, *, shown: bool) -> Iterator[None]:
    if not shown:
        yield
        return
    with console.status(Text(output.plain(text))):
        yield
