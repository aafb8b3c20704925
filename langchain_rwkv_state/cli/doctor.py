"""The command ``doctor``: what is installed, what would run, whether model and store are sound.

Each check gives findings and changes nothing but for a store that it opens. The easy mistake is to
let one failed check hide the others: a check that raises is itself a finding.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.options import StoreOption, is_store, open_store, store_directory

_PACKAGES = (
    "langchain-rwkv-state",
    "torch",
    "rwkv",
    "langchain-core",
    "diskcache",
    "tokenizers",
    "pyrwkv-tokenizer",
    "safetensors",
)
_SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: What was looked at.
        value: What was found.
        advice: What to do; empty where all is well.
    """

    name: str
    value: str
    advice: str = ""


Check = Callable[[], Iterator[Finding]]

LookedAtOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", show_default="none", help="A model to look into, without loading it."
    ),
]


def doctor(store: StoreOption = None, model: LookedAtOption = None) -> None:
    """Say what is installed, what would run, and whether a model and the store are sound.

    The exit code is 1 when something is wrong.
    """
    console = output.out()

    def check_store() -> Iterator[Finding]:
        return _store(store)

    checks: list[tuple[str, Check]] = [
        ("packages", _packages),
        ("device", _device),
        ("demo model", _demo),
        ("store", check_store),
    ]
    if model is not None:
        checks.insert(3, ("model", lambda: _model(model)))
    wrong = 0
    for title, check in checks:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in _findings(title, check):
            wrong += bool(finding.advice)
            mark = Text("\u2717", "bold red") if finding.advice else Text("\u2713", "green")
            table.add_row(mark, finding.name, Text(output.plain(finding.value)))
            if finding.advice:
                table.add_row("", "", Text(f"\u2192 {output.plain(finding.advice)}", "yellow"))
        console.print(Text(title, "bold"))
        console.print(table)
    if wrong:
        console.print(Text(f"{wrong} of these need attention.", "bold red"))
        raise typer.Exit(1)
    console.print(Text("All is well.", "bold green"))


def _findings(title: str, check: Check) -> Iterator[Finding]:
    """Runs one check; what it raises is a finding too."""
    try:
        yield from check()
    except Exception as problem:  # noqa: BLE001 - whatever is broken here is what is looked for
        advice = "The message says why; the documentation's page on errors says what to do."
        yield Finding(title, f"{type(problem).__name__}: {problem}", advice)


def _packages() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} ({platform.platform()})")
    for name in _PACKAGES:
        try:
            yield Finding(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            advice = f"Install it: {sys.executable} -m pip install {name}"
            yield Finding(name, "not installed", advice)


def _device() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        yield Finding("cuda", f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})")
    else:
        yield Finding("cuda", "no device: models run on the CPU")
    yield Finding("cpu", f"{torch.get_num_threads()} threads")


def _demo() -> Iterator[Finding]:
    from langchain_rwkv_state.chat_models import ChatRWKV
    from langchain_rwkv_state.runtime.strategy import Strategy
    from langchain_rwkv_state.store import MemoryStateStore

    chat = ChatRWKV(model="demo", store=MemoryStateStore(), temperature=0)
    try:
        loaded = chat.loaded()
        layout = loaded.runtime.layout
        shape = f"RWKV-{layout.version}, {layout.n_layer}x{layout.n_embd}"
        yield Finding("loads", f"{shape}, {output.size(layout.nbytes)} a state")
        about = getattr(loaded.runtime, "about", "unknown")
        yield Finding("runtime", f"{about}; 'auto' is {str(Strategy.parse('auto'))!r}")
        talk = chat.with_session("doctor")
        talk.invoke("My name is Vera.")
        answer = str(talk.invoke("What is my name?").text)
        advice = "" if "Vera" in answer else "It should name Vera: install the package anew."
        yield Finding("remembers", answer or "(an empty answer)", advice)
    finally:
        chat.unload()


def _model(name: str) -> Iterator[Finding]:
    """Says what a model's files are; nothing is loaded into a runtime."""
    from langchain_rwkv_state.loaded import trained_on
    from langchain_rwkv_state.runtime import locate
    from langchain_rwkv_state.runtime.checkpoint import Checkpoint, read_contents
    from langchain_rwkv_state.tokenizer import load_tokenizer

    path = locate(name)
    contents = read_contents(path, mapped=True)
    yield Finding("form", contents.form)
    sizes = sum(file.stat().st_size for file in contents.files)
    files = f"{len(contents.files)} files in {path}" if path.is_dir() else str(path)
    yield Finding("files", f"{files}, {output.size(sizes)}")
    found = Checkpoint.of(contents.tensors, path)
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in contents.tensors.values()})
    shape = f"RWKV-{found.version}, {found.n_layer}x{found.n_embd}"
    yield Finding("model", f"{shape}, {found.vocab_size:,} tokens, {' and '.join(dtypes)}")
    yield Finding("weights", found.weights)
    yield Finding("template", trained_on(name, path).name)
    yield Finding(
        "tokenizer", repr(load_tokenizer(None, model_path=path, vocab_size=found.vocab_size))
    )


def _store(directory: Path | None) -> Iterator[Finding]:
    path = store_directory(directory)
    if not is_store(path):
        yield Finding("path", f"{path} (none yet: the first conversation makes it)")
        return
    store = open_store(directory)
    try:
        yield Finding("path", str(path))
        stats = store.stats()
        limit = "no limit" if stats.size_limit is None else f"limit {output.size(stats.size_limit)}"
        yield Finding("sessions", str(stats.sessions))
        yield Finding("states", f"{stats.states} in {output.size(stats.nbytes)} ({limit})")
        files = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
        yield Finding("on disk", f"{output.size(sum(files))} in {len(files)} files")
        report = store.check()
        if report.sound:
            yield Finding("sound", "yes")
        for problem in report.problems[:_SHOWN_PROBLEMS]:
            advice = "DiskStateStore(path).check(fix=True) mends what can be mended, and says how."
            yield Finding("problem", problem, advice)
        more = len(report.problems) - _SHOWN_PROBLEMS
        if more > 0:
            yield Finding("problem", f"and {more} more", "Repair those first.")
    finally:
        store.close()
