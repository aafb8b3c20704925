"""State files in a store's directory: strict names, whole or absent, flushed, owner only.

A file is written once under a name that is never used again, and deleted; it is never changed.
The easy mistake is to open what stands under a name: a link, a pipe or a device may stand there,
so nothing but a regular file in a real folder is opened, and no link is followed.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import stat
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from langchain_rwkv_state._files import NO_LINK, flush_directory, flush_file, link_file, write_new
from langchain_rwkv_state.errors import StateCorrupt, StoreError, StoreFull
from langchain_rwkv_state.state.header import read_state_file

if TYPE_CHECKING:
    from langchain_rwkv_state.state import Buffer

SUFFIX = ".safetensors"
RESERVE = "reserve"
DAMAGED = "damaged"
"""A folder for files that `check(fix=True)` found damaged: for whoever wants to look into them."""
_RESERVE_BYTES = 1 << 20  # SQLite needs some pages of its log to delete a row
_NAME = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}")
_PIECE_BYTES = 1 << 20
SHARD = re.compile(r"[0-9a-f]{2}")
_MANY, _THREADS = 8, 8  # 100 deletes take 12 ms instead of 60 to 300 on a busy disk
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_PLAIN_FILE = (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR)
NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a pipe would wait for a writer


def is_full(error: OSError) -> bool:
    """Says whether an error means that there is no room."""
    return error.errno in _FULL


def file_limit(error: Exception) -> str:
    """Returns a sentence on the largest file that may be written, where that may be the cause."""
    if isinstance(error, OSError) and error.errno != errno.EFBIG:
        return ""
    if isinstance(error, sqlite3.Error) and "I/O" not in str(error):
        return ""
    limit = _largest_file()
    if limit is not None:
        return (
            f" This process may write no file of more than {limit} bytes (the limit FSIZE, "
            "`ulimit -f`): raise that limit."
        )
    if isinstance(error, OSError):
        return " The file system takes no file of that size: use another one."
    return ""


def _largest_file() -> int | None:
    """Returns the system's limit for this process, ``None`` for none."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit


def make_directories(path: Path) -> None:
    """Makes a directory and those above it, each for the owner alone, and flushes them."""
    missing = [path, *path.parents]
    missing = missing[: next(i for i, each in enumerate(missing) if each.exists())]
    for each in reversed(missing):
        with suppress(FileExistsError):
            each.mkdir(mode=0o700)
            flush_directory(each.parent)


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Opens a regular file, and waits for nothing; returns its handle.

    Raises:
        FileNotFoundError: There is nothing of that name.
        StateCorrupt: Something else than a regular file stands there.
    """
    try:
        handle = os.open(path, flags | NO_LINK | NO_WAIT, 0o600)
    except OSError as error:
        if error.errno in _NO_PLAIN_FILE:
            raise StateCorrupt(f"{path.name} is not a plain file: it was put there.") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise StateCorrupt(f"{path.name} is not a plain file: it was put there.")
    return handle


def read_regular(path: Path, nbytes: int | None) -> bytes:
    """Returns what a regular file holds.

    Args:
        path: Its name.
        nbytes: How long it must be; ``None`` for as long as a state's file says at its start that
            it is. A file of another length is not read.

    Raises:
        FileNotFoundError: There is nothing of that name.
        StateCorrupt: Something else than a regular file of that length stands there.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        if nbytes is None:
            return read_state_file(file)
        _require_size(path, file, nbytes)
        return file.read(nbytes)


def _require_size(path: Path, file: BinaryIO, nbytes: int) -> None:
    size = os.fstat(file.fileno()).st_size
    if size != nbytes:
        raise StateCorrupt(
            f"The file {path.name} has {size} bytes and should have {nbytes}: it was truncated "
            "or changed."
        )


class StateFiles:
    """The files of one store, in 256 folders by the first digits of their names.

    Args:
        root: The store's directory.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._prefix = f"{root}{os.sep}"

    def write(self, name: str, parts: Sequence[Buffer]) -> None:
        """See `Backend.write_blob`."""
        path = self._text(name)
        folder = path[: -len(name) - len(SUFFIX) - 1]
        try:
            try:
                mode = os.lstat(folder).st_mode
            except FileNotFoundError:
                make_directories(Path(folder))
                mode = os.lstat(folder).st_mode
            if not stat.S_ISDIR(mode):
                raise _no_folder(Path(folder))
            write_new(path, parts)
        except OSError as error:
            if is_full(error):
                size = sum(map(len, parts))
                raise StoreFull(
                    f"The disk leaves no room for a state of {size} bytes: {error.strerror}. "
                    "What was stored before is unharmed; delete sessions or make room."
                ) from error
            raise StoreError(
                f"A state could not be written to {path}: {error}.{file_limit(error)}"
            ) from error

    def adopt(self, name: str, path: Path) -> bool:
        """See `Backend.adopt_blob`."""
        target = self._path(name)
        try:
            if not target.parent.exists():
                make_directories(target.parent)
            self._require_folder(target.parent)
            link_file(path, target)
        except OSError:
            return False  # no room, no links, or no such file: whoever asks writes it anew
        try:
            flush_file(target)
        except OSError:
            self.drop(name)
            return False
        return True

    def read(self, name: str, nbytes: int | None = None) -> bytes | None:
        """See `Backend.read_blob`."""
        return self._read(name, lambda path: read_regular(path, nbytes))

    def read_start(self, name: str, nbytes: int) -> bytes | None:
        """See `Backend.read_blob_start`."""

        def start(path: Path) -> bytes:
            with os.fdopen(open_regular(path), "rb", buffering=0) as file:
                return file.read(nbytes)

        return self._read(name, start)

    def _read(self, name: str, read: Callable[[Path], bytes]) -> bytes | None:
        path = self._path(name)
        try:
            self._require_folder(path.parent)
            return read(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"The state file {path} could not be read: {error}") from error

    def copy_to(self, other: StateFiles, name: str, nbytes: int) -> bool:
        """Puts a blob into another store's directory, durably; it stays here.

        The file gets a second name there, since it is never changed under either; where the disk
        is another one, or has no such names, its bytes are copied.

        Returns:
            Whether it was here; or there, from an earlier call.

        Raises:
            StateCorrupt: What stands under its name is no plain file of `nbytes` bytes.
            OSError: It could not be written.
        """
        source, target = self._path(name), other._path(name)
        try:
            self._require_folder(source.parent)
            handle = open_regular(source)  # from here on a delete takes away the name alone
        except FileNotFoundError:
            return target.exists()
        with os.fdopen(handle, "rb") as file:
            _require_size(source, file, nbytes)
            if not target.parent.exists():
                make_directories(target.parent)
            try:
                link_file(source, target)
            except FileExistsError:
                return True
            except OSError:
                write_new(target, iter(lambda: file.read(_PIECE_BYTES), b""))
            return True

    def drop(self, name: str) -> None:
        """See `Backend.drop_blob`."""
        # A prune deletes hundreds: texts, since `Path` takes as long as the disk does.
        path = self._text(name)
        try:
            if stat.S_ISDIR(os.lstat(path[: -len(name) - len(SUFFIX) - 1]).st_mode):
                os.unlink(path)  # noqa: PTH108
        except OSError:
            return  # gone already, or for `check` to report

    def drop_all(self, names: Sequence[str]) -> None:
        """Deletes blobs, many at a time: a delete mostly waits, for the disk's journal."""
        if len(names) < _MANY:
            for name in names:
                self.drop(name)
            return
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="rwkv-state-drop") as pool:
            list(pool.map(self.drop, names))

    def drop_of(self, digests: Collection[str]) -> None:
        """Deletes all files whose names begin so, those that were set aside and orphans too."""
        folders = {self._root / digest[:2] for digest in digests} | {self._root / DAMAGED}
        for folder in folders if digests else ():
            with suppress(FileNotFoundError):
                self._require_folder(folder)
                for path in list(folder.iterdir()):
                    if path.name[:64] in digests:
                        path.unlink(missing_ok=True)

    def set_aside(self, name: str) -> str:
        """See `Backend.set_aside`."""
        path = self._path(name)
        folder = self._root / DAMAGED
        make_directories(folder)
        self._require_folder(folder)
        self._require_folder(path.parent)
        target = folder / path.name
        try:
            path.rename(target)
        except FileNotFoundError:
            return "it is gone"
        flush_directory(folder)
        return f"it was moved to {target}"

    def exists(self, name: str) -> bool:
        """See `Transaction.blob_exists`."""
        return os.path.isfile(self._text(name))  # noqa: PTH113 # as `drop`

    def all(self) -> Iterator[tuple[str, float]]:
        """See `Backend.blobs`."""
        now = time.time()
        for folder in sorted(self._root.iterdir()):
            if SHARD.fullmatch(folder.name) is None or not _is_folder(folder):
                continue
            for path in sorted(folder.iterdir()):
                name = path.name.removesuffix(SUFFIX)
                with suppress(FileNotFoundError):
                    about = path.lstat()
                    if self._is_ours(folder, path) and stat.S_ISREG(about.st_mode):
                        yield name, now - about.st_mtime

    def strangers(self, known: frozenset[str]) -> Iterator[Path]:
        """Yields what stands in the directory and is no state file; `known` are fine names."""
        for path in sorted(self._root.iterdir()):
            if path.name in known:
                continue
            if SHARD.fullmatch(path.name) is None or not _is_folder(path):
                yield path
                continue
            for inner in sorted(path.iterdir()):
                if not self._is_ours(path, inner) or not _is_plain(inner):
                    yield inner

    def _is_ours(self, folder: Path, path: Path) -> bool:
        name = path.name.removesuffix(SUFFIX)
        return (
            path.name.endswith(SUFFIX)
            and _NAME.fullmatch(name) is not None
            and name.startswith(folder.name)
        )

    def _path(self, name: str) -> Path:
        return Path(self._text(name))

    def _text(self, name: str) -> str:
        if _NAME.fullmatch(name) is None:
            raise StateCorrupt(f"{name!r:.200} is not the name of a state file.")
        return f"{self._prefix}{name[:2]}{os.sep}{name}{SUFFIX}"

    def _require_folder(self, folder: Path) -> None:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise _no_folder(folder)

    def any_folder(self) -> bool:
        """Says whether a state was ever written here."""
        return any(SHARD.fullmatch(path.name) for path in self._root.iterdir())

    # -- the reserve -----------------------------------------------------------------------------

    def fill_reserve(self) -> None:
        """Keeps back some room, if there is any.

        Raises:
            StoreError: Something else than a plain file stands there.
        """
        path = self._root / RESERVE
        with suppress(OSError):
            about = path.lstat()
            if not stat.S_ISREG(about.st_mode):
                raise StoreError(f"{path} is not a plain file: delete it, or use another path.")
            if about.st_size == _RESERVE_BYTES:
                return
            path.unlink()  # somebody was killed who wrote it
        with suppress(OSError):
            write_new(path, [bytes(_RESERVE_BYTES)])

    def spend_reserve(self) -> bool:
        """Gives up the room that was kept back; says whether there was any."""
        try:
            (self._root / RESERVE).unlink()
        except OSError:
            return False
        return True


def _no_folder(path: Path) -> StateCorrupt:
    return StateCorrupt(f"{path.name} in the store is not a folder: it was put there.")


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return True  # deleted since it was listed
