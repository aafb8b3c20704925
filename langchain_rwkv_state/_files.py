"""Writes a file whole or not at all, for whatever a reader must never find half of; locks one.

It knows bytes and paths; who waits for a lock, and for how long, is for the caller.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_OPENS_DIRECTORIES = os.name != "nt"
_PIECES = 1024  # the most that every Unix writes in one call
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


@contextmanager
def whole_file(path: str | os.PathLike[str], *, new: bool = False) -> Iterator[BinaryIO]:
    """Opens a file that takes its name once it is written, flushed and closed.

    Args:
        path: Its name. The file is readable by its owner alone.
        new: Whether nothing may have that name; else what has it is replaced in one step.

    Yields:
        A file to write to and read from, under another name in the same directory; where an error
        is raised before it has its own, nothing is left of it. Only a process that is killed
        leaves one, ``.rwkv-new-...``, which can be deleted.

    Raises:
        FileExistsError: With `new`, something has that name.
    """
    target = Path(path)
    if new:
        require_new(target)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".rwkv-new-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if new:
            _move_to_new(temporary, target)
        else:
            temporary.replace(target)
        flush_directory(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(
    path: str | os.PathLike[str], *parts: bytes | memoryview, new: bool = False
) -> None:
    """Writes pieces to a file; see `whole_file`."""
    with whole_file(path, new=new) as file:
        file.writelines(parts)


def require_new(path: Path) -> Path:
    """Checks that a file can be made, before anything is done that would be lost.

    Args:
        path: Where something is to be written.

    Returns:
        The path.

    Raises:
        FileExistsError: Something is there.
        FileNotFoundError: There is no directory for it.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"{path} is there already: name another file, or remove it first.")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no directory {folder}: make it first.")
    return path


def write_new(path: str | Path, parts: Iterable[bytes | memoryview], *, flush: bool = True) -> None:
    """Writes a file that must not exist yet, durably, or not at all.

    Args:
        path: Its name.
        parts: Its bytes, in pieces.
        flush: Whether to wait until it is on the disk; without, it is not durable.

    Raises:
        OSError: It could not be written; nothing is left of it.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o600)
    try:
        try:
            _write_all(handle, parts)
            if flush:
                os.fsync(handle)
        finally:
            os.close(handle)
    except BaseException:
        with suppress(OSError):
            Path(path).unlink()
        raise


def _write_all(handle: int, parts: Iterable[bytes | memoryview]) -> None:
    """Writes pieces; those of a list in one call, where the system has one that takes them."""
    written = 0
    if isinstance(parts, list) and len(parts) <= _PIECES and hasattr(os, "writev"):
        written = os.writev(handle, parts)
    for part in parts:
        left = memoryview(part)[written:]
        written -= min(written, len(part))
        while left:
            left = left[os.write(handle, left) :]


def flush_file(path: Path) -> None:
    """Waits until what a file holds is on the disk."""
    handle = os.open(path, os.O_RDWR | NO_LINK)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_directory(path: Path) -> None:
    """Makes the names in a directory durable."""
    if not _OPENS_DIRECTORIES:
        return  # Windows flushes them by itself
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_file(path: Path, new: Path) -> None:
    """Gives a file a second name; a link in its place is not followed where the system can tell.

    Raises:
        FileExistsError: Something has that name.
        OSError: The system, or the file system, has no such links, or there is no such file.
    """
    if not hasattr(os, "link"):
        raise OSError(errno.ENOSYS, "This system has no links")
    if os.link in os.supports_follow_symlinks:
        os.link(path, new, follow_symlinks=False)
    else:
        os.link(path, new)


def _move_to_new(temporary: Path, path: Path) -> None:
    """Gives a finished file its name, unless something has that name by now."""
    try:
        link_file(temporary, path)
    except FileExistsError:
        require_new(path)
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        require_new(path)  # a file system without links: a second writer may win the race
        temporary.rename(path)


# -- locks ---------------------------------------------------------------------------------------

_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


_fcntl, _msvcrt = _module("fcntl"), _module("msvcrt")

MOVABLE = os.name != "nt"
"""Whether the folder of a file that is open can be renamed."""


def take_lock(handle: int) -> bool:
    """Takes the lock of an open file, if nobody has it; it is held until the file is closed.

    Args:
        handle: A file that is open for writing. Another handle of the same process is another
            user of the file.

    Returns:
        Whether it was taken; ``False`` where somebody else holds it.

    Raises:
        OSError: There are no locks, on this system or on this file system.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file, open(file.name, "r+b") as again:
        ...     take_lock(file.fileno()), take_lock(again.fileno())
        (True, False)
    """
    try:
        if _fcntl is not None:
            _fcntl.flock(handle, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        elif _msvcrt is not None:
            os.lseek(handle, 0, os.SEEK_SET)
            _msvcrt.locking(handle, _msvcrt.LK_NBLCK, 1)
        else:
            raise OSError(errno.ENOLCK, "This system has no locks of files")
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def close_locked(handle: int) -> None:
    """Closes a file and lets its lock go, of which a child forked meanwhile has a copy.

    A lock belongs to all copies of an open file: closing one leaves it with the others.
    """
    try:
        if _fcntl is not None:
            with suppress(OSError):
                _fcntl.flock(handle, _fcntl.LOCK_UN)
    finally:
        os.close(handle)
