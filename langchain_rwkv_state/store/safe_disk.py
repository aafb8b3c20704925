"""`SafeDisk`: what diskcache may put into a row and take out of one: plain bytes.

diskcache asks a `Disk` how keys and values become columns; the stock one falls back on pickle for
anything that it does not know, in both directions, and opens and unlinks whatever file a row
names. This one knows bytes only, and no file. The easy mistake is to let an unknown row through
as "missing": it is refused, so that nobody takes a changed session for a new one.
"""

from __future__ import annotations

import sqlite3
import zlib
from typing import Any

from diskcache import Disk
from diskcache.core import MODE_RAW, UNKNOWN

from langchain_rwkv_state.errors import StateCorrupt


class SafeDisk(Disk):  # type: ignore[misc] # diskcache has no types
    """Bytes in, bytes out; never a pickle, never a file."""

    def hash(self, key: bytes) -> int:
        """Returns a portable hash of a key."""
        return zlib.adler32(_bytes(key)) & 0xFFFFFFFF

    def put(self, key: bytes) -> tuple[memoryview, bool]:
        """Returns a key as database columns."""
        return sqlite3.Binary(_bytes(key)), True

    def get(self, key: object, raw: object) -> bytes:
        """Returns the key that database columns hold."""
        if raw != 1 or not isinstance(key, (bytes, memoryview)):
            raise StateCorrupt("A row of the store has a key that this package never writes.")
        return bytes(key)

    def store(
        self,
        value: bytes,
        read: bool,  # noqa: ARG002
        key: object = UNKNOWN,  # noqa: ARG002
    ) -> tuple[int, int, None, memoryview]:
        """Returns a value as database columns."""
        data = _bytes(value)
        return len(data), MODE_RAW, None, sqlite3.Binary(data)

    def fetch(self, mode: object, filename: object, value: object, read: object) -> bytes:  # noqa: ARG002
        """Returns the value that database columns hold."""
        if mode != MODE_RAW or filename is not None or not isinstance(value, bytes):
            raise StateCorrupt("A row of the store has a value that this package never writes.")
        return value

    def filename(self, key: object = UNKNOWN, value: object = UNKNOWN) -> tuple[str, str]:  # noqa: ARG002
        """Refuses: rows have no files of diskcache's making."""
        raise StateCorrupt("Rows of this store have no files.")

    def remove(self, file_path: str) -> None:
        """Does nothing: a file name in a row is not this package's, and may lead anywhere."""


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"The store's rows are bytes, got {type(value).__name__}.")
    return value
