"""Reads sizes as people write them: ``4MB``. Nothing of the server's stands behind it."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|kB|KB|MB|GB)?")
_UNITS = {None: 1, "B": 1, "kB": 1 << 10, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


def read_size(text: str, *, least: int = 1) -> int:
    """Reads a number of bytes.

    Args:
        text: Such as ``4194304``, ``512kB`` or ``4MB``; a MB is 1024 times 1024 bytes here.
        least: The fewest bytes that will do.

    Raises:
        ValueError: It is none, or less than `least`.

    Example:
        >>> read_size("4MB"), read_size("100")
        (4194304, 100)
    """
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[found[2]]) if found else -1
    if size < least:
        raise ValueError(f"{text!r} is no size: give bytes, or a number with kB, MB or GB.")
    return size
