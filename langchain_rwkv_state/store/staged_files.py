"""Staged states that memory has no room for, as files in the store's directory.

Each process has a folder of its own there, which it holds by a lock as long as it lives; whoever
opens the store removes the folders of those that have died. Nothing here is durable: what is
committed gets a second name among the store's own files, and is flushed then. The easy mistake is
to tell the dead by age: a staged state lives as long as it is used.
"""

from __future__ import annotations

import atexit
import os
import re
import secrets
import shutil
import stat
import sys
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from langchain_rwkv_state.errors import StateCorrupt, StoreError, StoreFull
from langchain_rwkv_state.state import Buffer
from langchain_rwkv_state.store.files import (
    SUFFIX,
    is_full,
    make_directories,
    read_regular,
    write_new,
)
from langchain_rwkv_state.store.forks import ForkLock

if sys.platform != "win32":
    import fcntl

STAGED = "staged"
_LOCK = "lock"
_FOLDER = re.compile(r"[0-9a-f]{16}")
_OLD_SECONDS = 86_400.0  # where there are no locks to tell the dead by


_all_files: weakref.WeakSet[StagedFiles] = weakref.WeakSet()


class StagedFiles:
    """One process's staged states on disk.

    Args:
        root: The store's directory.
    """

    def __init__(self, root: Path) -> None:
        self._root = root / STAGED
        self._folder: Path | None = None
        self._held: int | None = None
        self._lock = ForkLock(self._forked)
        self._pid = os.getpid()
        _all_files.add(self)

    def write(self, parts: Sequence[Buffer]) -> Path:
        """Writes a state's bytes and returns their file.

        Args:
            parts: The bytes, in pieces.

        Raises:
            StoreFull: The disk leaves no room.
            StoreError: Nothing can be written there.
        """
        try:
            path = self._own_folder() / f"{secrets.token_hex(16)}{SUFFIX}"
            write_new(path, parts, flush=False)
        except OSError as error:
            if is_full(error):
                raise StoreFull(f"The disk leaves no room for a staged state: {error}.") from error
            raise StoreError(f"A staged state could not be written: {error}.") from error
        return path

    def read(self, path: Path, nbytes: int) -> bytes | None:
        """Returns what a file holds; ``None`` where it is gone.

        Args:
            path: The file.
            nbytes: How long it is.

        Raises:
            StateCorrupt: Something else stands there, or it cannot be read.
        """
        try:
            return read_regular(path, nbytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateCorrupt(f"The staged state {path} cannot be read: {error}.") from error

    def drop(self, path: Path) -> None:
        """Deletes a file, if it is there."""
        with suppress(OSError):
            path.unlink()

    def sweep(self) -> int:
        """Removes what processes left that have died; returns how many folders went."""
        gone = 0
        with suppress(OSError):
            if not stat.S_ISDIR(self._root.lstat().st_mode):
                return 0
            for folder in list(self._root.iterdir()):
                if _FOLDER.fullmatch(folder.name) and folder != self._folder:
                    gone += _remove_if_dead(folder)
        return gone

    def close(self) -> None:
        """Removes this process's folder."""
        with self._lock:
            folder, held, self._folder, self._held = self._folder, self._held, None, None
        if folder is not None and self._pid == os.getpid():
            shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)

    def _own_folder(self) -> Path:
        with self._lock:
            if self._folder is None:
                folder = self._root / secrets.token_hex(8)
                make_directories(folder)
                self._held = _hold(folder / _LOCK)
                self._folder = folder
            return self._folder

    def _forked(self) -> None:
        """In a forked child: leaves the parent's folder alone, and its lock held."""
        self._folder = self._held = None
        self._pid = os.getpid()


def _hold(path: Path) -> int:
    """Makes a lock file and holds it until the process ends."""
    no_link = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | no_link, 0o600)
    if sys.platform != "win32":
        fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _remove_if_dead(folder: Path) -> bool:
    """Removes a folder whose process has died; says whether it did."""
    if not stat.S_ISDIR(folder.lstat().st_mode):
        return False
    if sys.platform == "win32":
        dead = time.time() - folder.stat().st_mtime > _OLD_SECONDS
    else:
        dead = _is_free(folder / _LOCK, folder)
    if dead:
        shutil.rmtree(folder, ignore_errors=True)
    return dead


def _is_free(lock: Path, folder: Path) -> bool:
    """Says whether nobody holds a lock; one that is not there yet may be made any moment."""
    if sys.platform == "win32":
        return False
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return time.time() - folder.stat().st_mtime > _OLD_SECONDS
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _close_all() -> None:
    for files in list(_all_files):
        files.close()


atexit.register(_close_all)
