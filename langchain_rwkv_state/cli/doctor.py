"""The command ``doctor``: says what is installed, what would run, and what is not sound.

Each check gives findings and changes nothing but for a store that it opens, or is told to repair.
Findings are shown as they come, the quick checks first.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from langchain_rwkv_state._text import counted, model_shape
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.device_check import check_devices, slower_of
from langchain_rwkv_state.cli.findings import Check, Finding, document, findings, show
from langchain_rwkv_state.cli.model_check import check_files, trial
from langchain_rwkv_state.cli.options import (
    JsonOption,
    StoreOption,
    is_directory,
    is_store,
    open_store,
    store_directory,
    store_name,
)

if TYPE_CHECKING:
    from langchain_rwkv_state.store import StateStore

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

LookedAtOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", show_default="none", help="A model to look into, and to try for 3 s."
    ),
]


def doctor(
    store: StoreOption = None,
    model: LookedAtOption = None,
    no_trial: Annotated[
        bool, typer.Option("--no-trial", help="Only look into the model, without loading it.")
    ] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Repair the store, and say what was done.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what is installed, what would run, and whether a model and the store are sound.

    The exit code is 1 when something is wrong, and with --fix where something is still wrong.
    """
    if no_trial and model is None:
        raise typer.BadParameter("--no-trial is for --model: name a model.")
    checks: list[tuple[str, Check]] = [
        ("packages", _packages),
        ("store", lambda: _store(store, fix=fix)),
        ("device", check_devices),
        ("demo model", _demo),
    ]
    if model is not None:
        readable = False

        def check_model() -> Iterator[Finding]:
            nonlocal readable
            yield from check_files(model)
            readable = True

        checks.insert(3, ("model", check_model))
        if not no_trial:  # what cannot be read is told once
            left_out = Finding("left out", "the model cannot be read")
            checks.append(("trial", lambda: trial(model) if readable else iter((left_out,))))
    wrong = _documented(checks) if as_json else _shown(checks)
    if wrong:
        raise typer.Exit(1)


def _shown(checks: Iterable[tuple[str, Check]]) -> int:
    """Prints each finding as it comes; returns how many need attention."""
    console = output.out()
    wrong = 0
    for title, check in checks:
        console.print(Text(title, "bold"))
        for finding in findings(title, check):
            show(finding)
            wrong += bool(finding.advice)
    if wrong:
        console.print(Text(f"{wrong} of these need attention.", "bold red"))
    else:
        console.print(Text("All is well.", "bold green"))
    return wrong


def _documented(checks: Iterable[tuple[str, Check]]) -> int:
    """Prints all findings as one document; returns how many need attention."""
    found = [
        document(title, finding) for title, check in checks for finding in findings(title, check)
    ]
    wrong = sum(each["advice"] is not None for each in found)
    output.as_json({"well": not wrong, "findings": found})
    return wrong


def _packages() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} ({platform.platform()})")
    for name in _PACKAGES:
        try:
            yield Finding(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            advice = f"Install it: {sys.executable} -m pip install {name}"
            yield Finding(name, "not installed", advice)


def _demo() -> Iterator[Finding]:
    from langchain_rwkv_state.chat_models import ChatRWKV
    from langchain_rwkv_state.runtime.strategy import Strategy
    from langchain_rwkv_state.store import MemoryStateStore

    chat = ChatRWKV(model="demo", store=MemoryStateStore(), temperature=0)
    try:
        loaded = chat.loaded()
        layout = loaded.runtime.layout
        shape = model_shape(layout.version, layout.n_layer, layout.n_embd)
        yield Finding("loads", f"{shape}, {output.size(layout.nbytes)} a state")
        about = getattr(loaded.runtime, "about", "unknown")
        yield Finding("runtime", f"{about}; 'auto' is {str(Strategy.parse('auto'))!r}")
        yield from slower_of(loaded.runtime)
        talk = chat.with_session("doctor")
        talk.invoke("My name is Vera.")
        answer = str(talk.invoke("What is my name?").text)
        advice = "" if "Vera" in answer else "It should name Vera: install the package anew."
        yield Finding("remembers", answer or "(an empty answer)", advice)
    finally:
        chat.unload()


def _store(place: str | None, *, fix: bool) -> Iterator[Finding]:
    if not is_store(place):
        yield _no_store(store_directory(place))
        return
    store = open_store(place)
    try:
        yield Finding("path" if is_directory(place) else "url", store_name(place))
        stats = store.stats()
        limit = "no limit" if stats.size_limit is None else f"limit {output.size(stats.size_limit)}"
        yield Finding("sessions", str(stats.sessions), figure=stats.sessions, unit="sessions")
        yield Finding(
            "states",
            f"{stats.states} in {output.size(stats.nbytes)} ({limit})",
            figure=stats.states,
            unit="states",
        )
        if is_directory(place):
            yield _on_disk(store_directory(place))
        yield from _fixed(store) if fix else _checked(store)
    finally:
        store.close()


def _on_disk(path: Path) -> Finding:
    files = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
    on_disk = f"{output.size(sum(files))} in {counted(len(files), 'file')}"
    return Finding("on disk", on_disk, figure=sum(files), unit="bytes")


def _no_store(path: Path) -> Finding:
    """Says whether a place in which no store is will do for one."""
    from langchain_rwkv_state.errors import StoreError
    from langchain_rwkv_state.store.place import require_place

    try:
        require_place(path, create=None)
    except StoreError:
        advice = "Name a store's directory by --store; --create of `chat` makes one among them."
        what = "it holds other things, and no store" if path.is_dir() else "it is no directory"
        return Finding("path", f"{path}: {what}", advice)
    return Finding("path", f"{path} (none yet: the first conversation makes it)")


def _checked(store: StateStore) -> Iterator[Finding]:
    """Says whether a store is sound."""
    problems = store.check().problems
    if not problems:
        yield Finding("sound", "yes")
    for problem in problems[:_SHOWN_PROBLEMS]:
        advice = "`rwkv-state doctor --fix` repairs what can be repaired, and says how."
        yield Finding("problem", problem, advice)
    more = len(problems) - _SHOWN_PROBLEMS
    if more > 0:
        yield Finding("problem", f"and {more} more", "Repair those first.")


def _fixed(store: StateStore) -> Iterator[Finding]:
    """Repairs a store; says what was wrong, what was done, and what is left."""
    report = store.check(fix=True)
    for problem in report.problems:
        yield Finding("found", problem)
    for done in report.repaired:
        yield Finding("done", done)
    left = store.check().problems
    for problem in left:
        advice = "It cannot be repaired: restore a backup, or delete the session (`rwkv-state rm`)."
        yield Finding("left", problem, advice)
    if not left:
        repaired = f"yes, {counted(len(report.problems), 'problem')} repaired"
        yield Finding("sound", repaired if report.problems else "yes, nothing was to be repaired")
