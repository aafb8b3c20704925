"""Opens a file that somebody named: a regular file, or nothing at all.

A link is followed, since the caller named it. It never opens first and looks afterwards: a pipe
waits for whoever writes to it, for good.
"""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from langchain_rwkv_state.errors import StateCorrupt


def open_plain(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file for reading.

    Raises:
        StateCorrupt: A folder, a pipe, a device or a socket stands there.
        OSError: It is not there or cannot be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if stat.S_ISSOCK(_mode(path)):
            raise StateCorrupt(f"{path} is not a plain file.") from error
        raise
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    raise StateCorrupt(f"{path} is not a plain file.")


def _mode(path: str | os.PathLike[str]) -> int:
    try:
        return os.stat(path).st_mode  # noqa: PTH116 # a path of any kind
    except OSError:
        return 0
