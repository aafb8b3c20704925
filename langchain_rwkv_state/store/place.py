"""Whether a directory holds a store, may become one, and can be written; it changes nothing.

The easy mistake is to ask only whether there is a directory: a program that is started with the
store ``.`` would strew a store among its user's own files.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.store.files import DAMAGED, RESERVE, SHARD
from langchain_rwkv_state.store.preflight import SMALLEST_BYTES, file_size
from langchain_rwkv_state.store.schema import COMPANIONS, DATABASE, UNFINISHED
from langchain_rwkv_state.store.staged_files import STAGED

LOCK = "lock"
KNOWN_FILES = frozenset(
    {
        *(DATABASE, *COMPANIONS, *UNFINISHED),
        *(RESERVE, LOCK, DAMAGED, STAGED),
        "lost+found",  # a disk of its own has it
    }
)
_SHOWN = 3


def holds_store(root: Path) -> bool:
    """Says whether there is a database of a size that one can have."""
    return file_size(root / DATABASE) >= SMALLEST_BYTES


def require_place(root: Path, *, create: bool | None) -> None:
    """Checks that a directory holds a store, or may come to hold one.

    Args:
        root: The directory.
        create: Whether to make a store: ``None`` only where nothing else lies, ``True`` also among
            other files, ``False`` not at all.

    Raises:
        StoreError: There is none and none may be made; the message says how one is.
    """
    if root.exists() and not root.is_dir():
        raise StoreError(f"{root} is no directory: a store is one. Name another path.")
    if holds_store(root):
        return
    if create is False:
        raise StoreError(
            f"There is no store in {root}: name the directory of one, or leave out create=False "
            "and read_only=True to make one."
        )
    if create or not root.exists():
        return
    others = sorted(name for name in os.listdir(root) if not _is_ours(name))  # noqa: PTH208 # names
    if others:
        shown = ", ".join(map(repr, others[:_SHOWN])) + (", ..." if len(others) > _SHOWN else "")
        raise StoreError(
            f"{root} holds other things ({shown}) and no store. Name a directory of the store's "
            "own, or say create=True to make one among these files."
        )


def is_writable(root: Path) -> bool:
    """Says whether a store's directory, or the first one above it that exists, can be written."""
    there = next((each for each in (root, *root.parents) if each.exists()), root)
    if not os.access(there, os.W_OK | os.X_OK):
        return False
    files = (root / DATABASE, root / LOCK)
    return all(os.access(path, os.W_OK) for path in files if path.exists())


def _is_ours(name: str) -> bool:
    return name in KNOWN_FILES or re.fullmatch(SHARD, name) is not None
