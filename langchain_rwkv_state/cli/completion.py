"""Offers a shell what completes a word: names of sessions, and files of models and of states.

It reads the store's database as plain SQLite, so that neither is PyTorch imported for a key press
nor a store made. No error gets out: it would be printed into the line that somebody types, so where
nothing can be read nothing is offered.
"""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import typer

_SESSIONS_MOST = 200
_MODEL_ENDS = (".pth", ".gguf", ".safetensors")
_STATE_ENDS = (".safetensors", ".state", ".pt", ".pth", ".zip")
_END = b"\xff"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def complete_session(ctx: typer.Context, incomplete: str) -> list[str]:
    """Offers the sessions of the store that the line names; those that need no quotes."""
    try:
        named = ctx.params.get("store") or os.environ.get("RWKV_STATE_DIR")
        if named and _URL.match(str(named)):
            return []  # no key press is to wait for a server
        return _sessions(Path(named).expanduser() if named else _default_store(), incomplete)
    except (OSError, sqlite3.Error, ValueError):
        return []


def complete_model(incomplete: str) -> list[str]:
    """Offers files and folders of models."""
    return [*(["demo"] if "demo".startswith(incomplete) else []), *_files(incomplete, _MODEL_ENDS)]


def complete_source(ctx: typer.Context, incomplete: str) -> list[str]:
    """Offers sessions, and files of states."""
    return [*complete_session(ctx, incomplete), *_files(incomplete, _STATE_ENDS)]


def _default_store() -> Path:
    """Returns what `default_directory` of the store does, without its imports."""
    named = os.environ.get("RWKV_STATE_DIR")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("langchain-rwkv-state", appauthor=False)) / "states"


def _sessions(directory: Path, begun: str) -> list[str]:
    database = (directory / "cache.db").absolute()
    start = begun.encode()
    with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)) as opened:
        rows = opened.execute(
            "SELECT name FROM sessions WHERE name >= ? AND name < ? LIMIT ?",
            (start, start + _END, _SESSIONS_MOST),
        ).fetchall()
    names = (bytes(name).decode("utf-8", "replace") for (name,) in rows)
    return [name for name in names if _is_plain(name) and not name.startswith("-")]


def _is_plain(name: str) -> bool:
    """Says whether a name needs no quotes; where it does, the shell's own completion knows how."""
    return shlex.quote(name) == name


def _files(begun: str, ends: tuple[str, ...]) -> list[str]:
    """Returns files of such names and folders; of a folder that is alone, what is in it too."""
    found = list(_beside(begun, ends))
    if len(found) == 1 and found[0].endswith("/"):  # else a shell takes it for the whole word
        found += _beside(found[0], ends)
    return found


def _beside(begun: str, ends: tuple[str, ...]) -> Iterable[str]:
    folder, _, name = begun.rpartition("/")
    shown = f"{folder}/" if "/" in begun else ""
    try:
        entries = sorted(Path(shown or ".").expanduser().iterdir())
        for entry in entries:
            if not entry.name.startswith(name) or (entry.name.startswith(".") and not name):
                continue
            if not _is_plain(entry.name):
                continue
            if entry.is_dir():
                yield f"{shown}{entry.name}/"
            elif entry.name.lower().endswith(ends):
                yield f"{shown}{entry.name}"
    except OSError:
        return
