"""Writing a file whole or not at all: for whatever a reader must never find half of.

It knows bytes and paths. The easy mistake is to write into the file itself: a full disk, or a
program that is stopped, then leaves the first half in the place of what was there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file that takes its name once it is written, flushed and closed.

    Args:
        path: Its name; what is there under it is replaced in one step. The file is readable by its
            owner alone.

    Yields:
        A file to write to, elsewhere in the same directory; it goes where an error is raised.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_whole(path: str | os.PathLike[str], *parts: bytes | memoryview) -> None:
    """Writes pieces to a file, whole or not at all, readable by its owner alone."""
    with whole_file(path) as file:
        file.writelines(parts)


def require_new(path: Path) -> Path:
    """Checks that there is no file yet, before anything is done that would be lost.

    Args:
        path: Where something is to be written.

    Returns:
        The path.

    Raises:
        ValueError: There is one, or no directory for it.
    """
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path} is there already: name another file, or remove it first.")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"There is no directory {path.absolute().parent}: make it first.")
    return path
