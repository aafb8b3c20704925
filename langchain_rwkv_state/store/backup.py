"""A consistent copy of a store's directory, made while others go on committing.

A state's file is never changed, only deleted, so it is enough to have all files that one snapshot
of the rows names, and that snapshot. Files are taken first; where one of them is gone by then, a
later snapshot is looked at, and the last look keeps writers out. The easy mistake is to copy the
database first: by the time its files are taken, some of them are deleted.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from langchain_rwkv_state._files import flush_directory, flush_file, write_new
from langchain_rwkv_state.errors import StateCorrupt, StoreError, StoreFull
from langchain_rwkv_state.store.disk_backend import DiskBackend
from langchain_rwkv_state.store.files import RESERVE, StateFiles, is_full, make_directories
from langchain_rwkv_state.store.place import holds_store
from langchain_rwkv_state.store.records import Backup
from langchain_rwkv_state.store.rows import TABLES, StateRow
from langchain_rwkv_state.store.schema import DATABASE

_LOOKS = 5  # the first takes all files, each later one what was committed since
_READ_ONLY_LOOKS = 50  # where writers cannot be kept out
_MEND = (
    "The copy would not be whole: mend the store first, with check(fix=True) or `rwkv-state doctor "
    "--fix`."
)


def back_up(backend: DiskBackend, directory: Path) -> Backup:
    """See `DiskStateStore.backup`."""
    target = Path(os.path.realpath(directory))  # where a link stands, what it leads to
    with _errors(directory):
        _require_free(backend, target)
        making = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        make_directories(target.parent)
        making.mkdir(mode=0o700)
        try:
            made = _Copy(backend, making, directory).make()
            _flush_all(making)
            with suppress(FileNotFoundError):
                target.rmdir()  # it is empty, or the next line fails
            making.rename(target)
            flush_directory(target.parent)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
    return Backup(directory, *made)


@contextmanager
def _errors(directory: Path) -> Iterator[None]:
    """Tells errors of the copy's disk as such, and not as the store's."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        full = is_full(error) if isinstance(error, OSError) else "disk is full" in str(error)
        if full:
            raise StoreFull(
                f"The disk leaves no room for a backup in {directory}: nothing of it is left. "
                "Make room, or name a directory on another disk."
            ) from error
        raise StoreError(f"No backup could be made in {directory}: {error}.") from error


def _require_free(backend: DiskBackend, directory: Path) -> None:
    """Checks that nothing stands where the copy is to be.

    Raises:
        StoreError: Something does, or the place is in the store itself, or cannot be replaced.
    """
    if directory.is_relative_to(backend.root.resolve()):
        raise StoreError(f"{directory} is inside the store: name a directory outside of it.")
    if directory.is_dir() and (holds_store(directory) or (directory / RESERVE).exists()):
        raise StoreError(
            f"{directory} holds a store already, and nothing is written over: name another "
            f"directory, or move that one away (mv {directory} {directory}.old)."
        )
    if directory.exists() and not directory.is_dir():
        raise StoreError(f"{directory} is there and is no directory: name a new one.")
    if directory.exists() and any(directory.iterdir()):
        raise StoreError(f"{directory} is there and is not empty: name a new directory.")
    if os.path.ismount(directory) or (directory.exists() and directory.samefile(os.curdir)):
        raise StoreError(
            f"{directory} is the working directory, or where a disk is mounted: a copy cannot "
            f"take its place. Name a new directory in it, such as {directory / 'states'}."
        )


class _Copy:
    """A copy that is being made in `root`; `directory` is what it will be named."""

    def __init__(self, backend: DiskBackend, root: Path, directory: Path) -> None:
        self._backend = backend
        self._root = root
        self._directory = directory
        self._files = StateFiles(root)
        self._taken: set[str] = set()

    def make(self) -> tuple[int, int, int]:
        """Makes it; returns the numbers of sessions, states and bytes.

        Raises:
            StateCorrupt: The store is damaged: a row was changed, or a file is missing or of
                another size.
        """
        missing: StateRow | None = None
        looks = _READ_ONLY_LOOKS if self._backend.read_only else _LOOKS
        for look in range(looks):
            alone = look == looks - 1 and not self._backend.read_only
            try:
                found = self._backend.snapshot(self._take, alone=alone)
            except StateCorrupt as error:
                raise StateCorrupt(f"{error} {_MEND}") from error
            if not isinstance(found, StateRow):
                return found
            missing = found
        assert missing is not None  # noqa: S101 # there is at least one look
        raise StateCorrupt(
            f"The file {missing.blob} of the state {missing.ref} is missing. {_MEND}"
        )

    def _take(self, connection: sqlite3.Connection) -> tuple[int, int, int] | StateRow:
        """Copies what a snapshot holds; returns what is missing where a file is gone by now."""
        for table in TABLES.values():  # one row that was changed would be so in the copy
            for raw in connection.execute(f"SELECT * FROM {table.name}"):  # noqa: S608 # ours
                table.unpack(raw)
        states = [StateRow.unpack(raw) for raw in connection.execute("SELECT * FROM states")]
        missing = None
        for row in states:
            if row.blob in self._taken:
                continue
            with _errors(self._directory):
                taken = self._backend.files.copy_to(self._files, row.blob, row.nbytes)
            if taken:
                self._taken.add(row.blob)
            else:
                missing = row
        if missing is not None:
            return missing
        for blob in self._taken - {row.blob for row in states}:  # from an earlier look
            self._files.drop(blob)
        path = self._root / DATABASE
        with _errors(self._directory):
            path.unlink(missing_ok=True)  # a read-only store may be looked at anew
            write_new(path, [])
            with closing(sqlite3.connect(path)) as target:
                connection.backup(target)
        ((sessions,),) = connection.execute("SELECT COUNT(*) FROM sessions")
        nbytes = path.stat().st_size + sum(row.nbytes for row in states)
        return int(sessions), len(states), nbytes


def _flush_all(root: Path) -> None:
    """Waits until a new store's database, folders and names are on the disk."""
    flush_file(root / DATABASE)
    for folder in (*(each for each in root.iterdir() if each.is_dir()), root):
        flush_directory(folder)
