"""An exclusive lock on an open file: `flock`, or on Windows a lock of the file's first byte.

It knows handles; who waits, and for how long, is for the caller. The easy mistake is to go on
without a lock where the system has none: two processes would make one store at the same moment.
"""

from __future__ import annotations

import errno
import os
from importlib import import_module
from typing import Any

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
