"""The rows and files of a prefix cache's directory: bytes by key in diskcache's own table.

It gives a transaction that counts bytes and deletes files once it has happened; what a row means is
for the tier.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from langchain_rwkv_state.store.disk_backend import DiskBackend
from langchain_rwkv_state.store.tables import Sql

if TYPE_CHECKING:
    from langchain_rwkv_state.state import Buffer

T = TypeVar("T")
_SOUND = (
    "(raw = 1 AND mode = 1 AND expire_time IS NULL AND tag IS NULL AND filename IS NULL"
    " AND typeof(key) = 'blob' AND typeof(value) = 'blob')"
)
_PUT = (
    "INSERT INTO Cache(key, raw, store_time, access_time, size, mode, value)"
    " VALUES (?, 1, ?, ?, ?, 1, ?) ON CONFLICT(key, raw) DO UPDATE SET"
    " store_time = excluded.store_time, expire_time = NULL,"
    " access_time = excluded.access_time, access_count = 0, tag = NULL, size = excluded.size,"
    " mode = excluded.mode, filename = NULL, value = excluded.value"
)


class Reader:
    """Rows as they stand.

    Args:
        sql: Runs a statement.
    """

    def __init__(self, sql: Sql) -> None:
        self._sql = sql

    def get(self, key: bytes) -> bytes | None:
        """Returns a row's bytes; ``None`` where there is none of our making."""
        found = self._sql(
            f"SELECT CASE WHEN {_SOUND} THEN value END FROM Cache WHERE key = ?",  # noqa: S608
            (key,),
        )
        return found[0][0] if len(found) == 1 else None

    def scan(self, start: bytes, end: bytes) -> list[tuple[bytes, bytes | None]]:
        """Returns rows from `start` to `end` (exclusive) in order; ``None`` for a foreign one."""
        return [
            (key, value)
            for key, value in self._sql(
                f"SELECT key, CASE WHEN {_SOUND} THEN value END FROM Cache"  # noqa: S608
                " WHERE key >= ? AND key < ? ORDER BY key",
                (start, end),
            )
        ]

    def count(self, start: bytes, end: bytes) -> int:
        """Returns how many rows there are from `start` to `end` (exclusive)."""
        ((number,),) = self._sql(
            "SELECT COUNT(*) FROM Cache WHERE key >= ? AND key < ?", (start, end)
        )
        return int(number)

    def nbytes(self) -> int:
        """Returns the bytes of all rows and of the files that they count."""
        found = self._sql("SELECT value FROM Settings WHERE key = 'size'", ())
        if len(found) == 1 and isinstance(found[0][0], int):
            return found[0][0]
        ((number,),) = self._sql("SELECT TOTAL(size) FROM Cache", ())  # the counter was changed
        return int(number)


class Transaction(Reader):
    """Rows as they will stand if the transaction happens.

    Args:
        sql: Runs a statement.
        blob_exists: Says whether a file is there.

    Attributes:
        dropped: Files to delete after it.
    """

    def __init__(self, sql: Sql, blob_exists: Callable[[str], bool]) -> None:
        super().__init__(sql)
        self.blob_exists = blob_exists
        self.dropped: list[str] = []

    def put(self, key: bytes, value: bytes, *, blob_nbytes: int = 0) -> None:
        """Writes a row that counts for its own bytes and for `blob_nbytes`."""
        now = time.time()
        self._sql(_PUT, (key, now, now, len(value) + blob_nbytes, value))

    def delete(self, *keys: bytes) -> None:
        """Deletes rows, as far as they are there."""
        for key in keys:
            self._sql("DELETE FROM Cache WHERE key = ?", (key,))

    def delete_range(self, start: bytes, end: bytes) -> None:
        """Deletes the rows from `start` to `end` (exclusive)."""
        self._sql("DELETE FROM Cache WHERE key >= ? AND key < ?", (start, end))

    def drop_blob(self, name: str) -> None:
        """Deletes a file after the transaction has happened."""
        self.dropped.append(name)


class DiskRows:
    """A prefix cache's directory.

    Args:
        root: The directory; see `DiskBackend`.
        read_only: Whether nothing is written.

    Raises:
        StoreError: The directory holds something else.
        StoreFull: The disk leaves no room.
    """

    def __init__(self, root: Path, *, read_only: bool) -> None:
        self._disk = DiskBackend(root, 5.0, create=None, read_only=read_only, tables=False)
        self.read_only = read_only
        self.sql = self._disk.sql
        self.reader = Reader(self._disk.sql)

    def transact(self, work: Callable[[Transaction], T], *, freeing: bool = False) -> T:
        """Runs `work` in a transaction; see `DiskBackend.transact`."""

        def transaction(sql: Sql) -> tuple[T, list[str]]:
            rows = Transaction(sql, self._disk.blob_exists)
            return work(rows), rows.dropped

        result, dropped = self._disk.transact(transaction, freeing=freeing)
        if dropped:
            self._disk.drop_blobs(dropped)
        return result

    def write_blob(self, name: str, parts: Sequence[Buffer]) -> None:
        """Writes a file."""
        self._disk.write_blob(name, parts)

    def read_blob(self, name: str, nbytes: int) -> bytes | None:
        """Returns a file's bytes, ``None`` where it is missing."""
        return self._disk.read_blob(name, nbytes)

    def drop_blob(self, name: str) -> None:
        """Deletes a file, if it is there."""
        self._disk.drop_blobs([name])

    def blobs(self) -> Iterator[tuple[str, float]]:
        """Yields each file's name and its age in seconds."""
        return self._disk.blobs()

    def close(self) -> None:
        """Lets go of the directory."""
        self._disk.close()
