"""Staged states that memory has no room for, as files in the store's directory.

Each process has a folder of its own there, which it holds by a lock as long as it lives; whoever
opens the store removes the folders of those that have died. Nothing here is durable: what is
committed gets a second name among the store's own files, and is flushed then. The easy mistake is
to tell the dead by age: a staged state lives as long as it is used.
"""

from __future__ import annotations

import atexit
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_rwkv_state import _files
from langchain_rwkv_state._files import NO_LINK, write_new
from langchain_rwkv_state._fork import ForkLock
from langchain_rwkv_state.errors import StateCorrupt, StoreError, StoreFull
from langchain_rwkv_state.store.files import (
    NO_WAIT,
    SUFFIX,
    is_full,
    make_directories,
    read_regular,
)

if TYPE_CHECKING:
    from langchain_rwkv_state.state import Buffer

STAGED = "staged"
_LOCK = "lock"
_FOLDER = re.compile(r"\.?[0-9a-f]{16}")
_OLD_SECONDS = 86_400.0  # where there are no locks to tell the dead by
_LEFT_BYTES, _LEFT_SHARE = 1 << 30, 20  # left free of a disk: 1 GB, of a small one a twentieth


_all_files: weakref.WeakSet[StagedFiles] = weakref.WeakSet()


class StagedFiles:
    """One process's staged states on disk.

    Args:
        root: The store's directory; ``None`` for a store that writes nothing to its own: then the
            folder lies among the system's temporary files.
    """

    def __init__(self, root: Path | None) -> None:
        self._root = None if root is None else root / STAGED
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
            return self._write(parts)
        except FileNotFoundError:  # somebody removed the folder
            with self._lock:
                self._let_go()
        except OSError as error:
            raise _error(error) from error
        try:
            return self._write(parts)
        except OSError as error:
            raise _error(error) from error

    def _write(self, parts: Sequence[Buffer]) -> Path:
        folder = self._own_folder()
        usage = shutil.disk_usage(folder)
        # What is staged must not take the room that commits need.
        if usage.free - sum(map(len, parts)) < min(_LEFT_BYTES, usage.total // _LEFT_SHARE):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path = folder / f"{secrets.token_hex(16)}{SUFFIX}"
        write_new(path, parts, flush=False)
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
        if self._root is None:
            return gone
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
            folder = self._let_go()
        if folder is not None and self._pid == os.getpid():
            shutil.rmtree(folder, ignore_errors=True)

    def _let_go(self) -> Path | None:
        folder, held, self._folder, self._held = self._folder, self._held, None, None
        if held is not None:
            os.close(held)
        return folder

    def _own_folder(self) -> Path:
        with self._lock:
            if self._folder is None and self._root is None:
                self._folder = Path(tempfile.mkdtemp(prefix="rwkv-state-staged-"))
            elif self._folder is None and self._root is not None:
                self._folder, self._held = _make_held(self._root)
            assert self._folder is not None  # noqa: S101 # one of the two
            return self._folder

    def _forked(self) -> None:
        """In a forked child: leaves the parent's folder alone, and its lock held."""
        self._folder = self._held = None
        self._pid = os.getpid()


def _error(error: OSError) -> StoreError | StoreFull:
    reason = error.strerror or type(error).__name__
    if is_full(error):
        return StoreFull(f"The disk leaves no room for a staged state: {reason}.")
    return StoreError(f"A staged state could not be written: {reason}.")


def _make_held(root: Path) -> tuple[Path, int]:
    """Makes a folder of this process's own, and a lock in it that is held until it ends."""
    name = secrets.token_hex(8)
    made = root / f".{name}"
    make_directories(made)
    if not _files.MOVABLE:  # no sweep takes a young folder there
        made = made.rename(root / name)
    handle = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | NO_LINK, 0o600)
    if not _files.take_lock(handle):
        raise OSError(errno.EAGAIN, f"Somebody holds {made / _LOCK}, which was just made")
    # It takes its name once it is locked, so that no sweep finds it free before.
    return (made.rename(root / name) if _files.MOVABLE else made), handle


def _remove_if_dead(folder: Path) -> bool:
    """Removes a folder whose process has died; says whether it did."""
    if not stat.S_ISDIR(folder.lstat().st_mode):
        return False
    dead = _is_old(folder)
    if not folder.name.startswith("."):  # else it is being made
        dead = (dead or _files.MOVABLE) and _is_free(folder / _LOCK, folder)
    if dead:
        shutil.rmtree(folder, ignore_errors=True)
    return dead


def _is_free(lock: Path, folder: Path) -> bool:
    """Says whether nobody holds a lock; one that is not there yet may be made any moment."""
    try:
        handle = os.open(lock, os.O_RDWR | NO_LINK | NO_WAIT)
    except FileNotFoundError:
        return _is_old(folder)
    try:
        return _files.take_lock(handle)
    except OSError:
        return False
    finally:
        os.close(handle)


def _is_old(folder: Path) -> bool:
    return time.time() - folder.stat().st_mtime > _OLD_SECONDS


def _close_all() -> None:
    for files in list(_all_files):
        files.close()


atexit.register(_close_all)
