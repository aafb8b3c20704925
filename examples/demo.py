"""The demonstration that `make demo` runs: a second process recalls what a first one was told.

Three processes share nothing but a directory. The first is told three facts and ends. The second,
a fresh interpreter, is asked for them. Then this one, which loads no model, looks through every
byte of the directory for the words that were said. The session's name, which the store
must hold, is searched for as well: a search that finds nothing proves nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

SESSION = "demo-session"
QUESTIONS = ("What is my name?", "Where do I live?", "What is my lucky number?")


def main() -> int:
    """Runs the part that the command line names; returns the exit code."""
    options = _options()
    if options.part == "tell":
        return tell(options)
    if options.part == "ask":
        return ask(options)
    if options.store is not None:
        return demonstrate(options, options.store)
    with tempfile.TemporaryDirectory(prefix="rwkv-demo-") as directory:
        return demonstrate(options, Path(directory) / "store")


def demonstrate(options: argparse.Namespace, store: Path) -> int:
    """Runs the two processes one after the other, then searches the store."""
    console = _console()
    console.print()
    for part in ("tell", "ask"):
        words = ["--name", options.name, "--city", options.city, "--number", options.number]
        command = [sys.executable, __file__, "--part", part, "--store", str(store), *words]
        code = subprocess.run(command, check=False).returncode  # noqa: S603
        if code:
            return code
    clean = search(console, store, facts(options))
    if options.store is not None:
        line = f"The store is kept: rwkv-state show {SESSION} --store {store}"
        console.print(Text(line, style="dim"), soft_wrap=True)
    return 0 if clean else 1


def facts(options: argparse.Namespace) -> tuple[str, str, str]:
    """The three words that are told and asked for."""
    return options.name, options.city, options.number


def tell(options: argparse.Namespace) -> int:
    """The first process: is told the facts, and ends."""
    name, city, number = facts(options)
    told = (f"My name is {name}.", f"I live in {city}.", f"My lucky number is {number}.")
    console = _console()
    _converse(console, "Process 1 is told", options.store, told)
    console.print(Text(f"Process {os.getpid()} ends. Its memory is gone.\n", style="dim"))
    return 0


def ask(options: argparse.Namespace) -> int:
    """The second process: is asked, and shows what is stored."""
    console = _console()
    answers = _converse(console, "Process 2 is asked", options.store, QUESTIONS)
    recalled = [fact in answer for fact, answer in zip(facts(options), answers, strict=True)]
    style = "bold green" if all(recalled) else "bold red"
    line = f"It recalled {sum(recalled)} of {len(recalled)} facts."
    console.print(Text(line, style=style), end="\n\n")
    _show_stored(console, options.store)
    return 0 if all(recalled) else 1


def search(console: Console, store: Path, words: tuple[str, ...]) -> bool:
    """Looks for words in every file of the store, byte for byte; says whether none is there."""
    files = [path for path in sorted(store.rglob("*")) if path.is_file()]
    data = [path.read_bytes() for path in files]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("SEARCHED FOR", "FOUND", ""):
        table.add_column(column)

    def count(word: str, what: str) -> int:
        hits = sum(len(_pattern(word).findall(content)) for content in data)
        table.add_row(f'"{word}"', str(hits) if hits else "no", Text(what, "dim"))
        return hits

    found = sum(count(word, "was said") for word in words)
    control = count(SESSION, "the session's name, which must be there")
    console.print(f"Every byte of the store ({len(files)} files, {sum(map(len, data)):,} bytes):")
    console.print(table)
    console.print()
    if found or not control:
        wrong = "Some of what was said is" if found else "Not even the session's name is"
        console.print(Text(f"{wrong} in the store.", style="bold red"))
        return False
    line = "No transcript is stored: the memory is the model's state."
    console.print(Text(line, style="bold green"))
    return True


def _converse(console: Console, title: str, store: Path, lines: tuple[str, ...]) -> list[str]:
    """Loads the model, says the lines in the session and streams the answers."""
    console.print(Panel(Text(f"{title}   (process {os.getpid()})", style="bold"), expand=False))
    start = time.perf_counter()
    with console.status("Loading the built-in model"):
        from langchain_rwkv_state import ChatRWKV

        chat = ChatRWKV(model="demo", store=store, temperature=0)
        chat.loaded()
    seconds = time.perf_counter() - start
    console.print(Text(f"model loaded in {seconds:.1f} s", style="dim"))
    talk = chat.with_session(SESSION)
    answers = []
    for line in lines:
        console.print(Text("you  \u203a ", style="bold cyan") + Text(line))
        console.print(Text("rwkv \u203a ", style="bold green"), end="")
        pieces = []
        for chunk in talk.stream(line):
            pieces.append(str(chunk.text))
            console.print(Text(pieces[-1]), end="", soft_wrap=True)
        console.print()
        answers.append("".join(pieces))
    chat.store.close()
    return answers


def _show_stored(console: Console, directory: Path) -> None:
    from langchain_rwkv_state import DiskStateStore
    from langchain_rwkv_state.cli import output

    with DiskStateStore(directory) as store:
        info = store.session(SESSION)
        assert info is not None
        assert info.head is not None
        state = store.get(info.head)
        kept = sum(entry.kept for entry in store.log(SESSION))
    table = Table(title="What is stored for the session", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    lives = output.until(info.expires_seconds, time.time()).removeprefix("in ")
    table.add_row("head", output.short(info.head))
    table.add_row("stands for", f"{info.n_tokens} tokens, in {info.n_turns} turns")
    table.add_row("one state", f"{state.nbytes:,} bytes, however long the conversation")
    table.add_row("stored", f"{info.nbytes:,} bytes: {kept} states, so that a turn can be undone")
    table.add_row("time to live", f"{lives}, anew from each turn on")
    console.print(table)
    console.print()


def _pattern(word: str) -> re.Pattern[bytes]:
    """The bytes of a word; a number must not stand in a longer one, such as a time or checksum."""
    text = re.escape(word.encode())
    if word.isdecimal():
        text = rb"(?<![0-9a-f])" + text + rb"(?![0-9a-f])"
    return re.compile(text, re.I)


def _console() -> Console:
    return Console(highlight=False)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A second process recalls what a first was told.")
    parser.add_argument("--store", type=Path, help="keep the store in this directory")
    parser.add_argument("--name", default="Ottilie", help="a name of your own")
    parser.add_argument("--city", default="Lisbon", help="a city of your own")
    parser.add_argument("--number", default="4187", help="a number of your own")
    parser.add_argument("--part", choices=("tell", "ask"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
