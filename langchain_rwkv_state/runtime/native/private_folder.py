"""Makes a folder for code that this process will run: nobody else may have put it there.

Whoever can write to a folder can replace what lies in it, folders too, so each one on the way
counts, up to the user's home (above it, the system's rules hold) or to the root. A home that is
writable for its group is usual, and allowed, where each user has a group of their own.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def private_folder(path: Path) -> Path:
    """Makes a folder, and those above it that are missing, for the user alone.

    Args:
        path: An absolute path.

    Returns:
        The folder, links followed.

    Raises:
        OSError: It cannot be made, or others may write to it or to one above it; the message says
            to which.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    found = path.resolve(strict=True)
    if os.name == "nt":
        return found  # folders of a user's profile are the user's alone there
    for folder in _on_the_way(found):
        reason = _open_to_others(folder.stat(), is_last=folder == found)
        if reason:
            raise PermissionError(f"{folder} {reason}")
    return found


def _on_the_way(folder: Path) -> list[Path]:
    """Returns the folder and those above it, as far as they are to be trusted."""
    way = [folder, *folder.parents]
    try:
        home = Path.home().resolve()
    except RuntimeError:  # a user without a home
        return way
    return way[: way.index(home) + 1] if home in way else way


def _open_to_others(status: os.stat_result, *, is_last: bool) -> str:
    """Says how others may write to a folder; empty where they may not."""
    ours = (os.getuid(),) if is_last else (os.getuid(), 0)
    if not stat.S_ISDIR(status.st_mode):
        return "is no directory"
    if status.st_uid not in ours:
        return "belongs to another user"
    if status.st_mode & stat.S_ISVTX and not is_last:
        return ""  # as /tmp: what lies in it can be replaced by its owner alone
    if status.st_mode & stat.S_IWOTH:
        return "can be written to by everybody"
    if status.st_mode & stat.S_IWGRP and not _is_own_group(status):
        return "can be written to by its group"
    return ""


def _is_own_group(status: os.stat_result) -> bool:
    """Says whether a folder's group is the owner's alone, as Debian, Ubuntu and Fedora make it."""
    import grp  # there are none on Windows
    import pwd

    try:
        owner = pwd.getpwuid(status.st_uid)
        group = grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    named_alike = owner.pw_gid == group.gr_gid and owner.pw_name == group.gr_name
    return named_alike and set(group.gr_mem) <= {owner.pw_name}
