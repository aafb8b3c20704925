"""The seam below the policy: rows as bytes by key, blobs by name, and a transaction.

Whoever implements it (diskcache and dicts here) knows no session, no time and no state. The easy
mistake is to delete a blob inside a transaction: it goes only once the transaction has happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from langchain_rwkv_state.store.records import CheckReport

if TYPE_CHECKING:
    from langchain_rwkv_state.state import Buffer

T = TypeVar("T")


class Reader(Protocol):
    """Rows as they stand."""

    def get(self, key: bytes) -> bytes | None:
        """Returns a row's bytes, ``None`` where there is none.

        Raises:
            StateCorrupt: There is one that is not of this store's making.
        """
        ...

    def scan(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> list[tuple[bytes, bytes | None]]:
        """Returns rows from `start` to `end` (exclusive) in order; ``None`` for a foreign one."""
        ...

    def count(self, start: bytes, end: bytes) -> int:
        """Returns how many rows there are from `start` to `end` (exclusive)."""
        ...

    def nbytes(self) -> int:
        """Returns the bytes of all rows and of the blobs that they count."""
        ...


class Transaction(Reader, Protocol):
    """Rows as they will stand if the transaction happens."""

    def put(self, key: bytes, value: bytes, *, blob_nbytes: int = 0) -> None:
        """Writes a row that counts for its own bytes and for `blob_nbytes`."""
        ...

    def delete(self, *keys: bytes) -> None:
        """Deletes rows, as far as they are there."""
        ...

    def delete_range(self, start: bytes, end: bytes) -> None:
        """Deletes the rows from `start` to `end` (exclusive)."""
        ...

    def drop_blob(self, name: str) -> None:
        """Deletes a blob after the transaction has happened."""
        ...

    def blob_exists(self, name: str) -> bool:
        """Says whether a blob is there."""
        ...


class Backend(Protocol):
    """Where a store keeps its rows and blobs."""

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written; every verb that would write raises `StoreError`."""
        ...

    @property
    def reader(self) -> Reader:
        """Rows outside of any transaction."""
        ...

    def look(self, work: Callable[[Reader], T]) -> T:
        """Runs `work` on the rows as they stood at one moment; it writes nothing, and may run anew.

        Raises:
            StoreError: As `transact`.
        """
        ...

    def transact(
        self, work: Callable[[Transaction], T], *, freeing: bool = False, durable: bool = True
    ) -> T:
        """Runs `work` in a transaction: all of it happens, durably, or nothing.

        Args:
            work: Gets the transaction; may run a second time after a failure.
            freeing: Whether it makes room, and so may use the room that is kept back.
            durable: Whether to wait until it is on the disk. Without, it may be lost with the
                power, and only together with all that came after it.

        Raises:
            StoreFull: The disk leaves no room.
            StoreError: The store is damaged, busy, closed or gone.
        """
        ...

    def write_blob(self, name: str, parts: Sequence[Buffer]) -> None:
        """Writes a blob, durably, or nothing.

        Args:
            name: A name that was never used.
            parts: Its bytes, in pieces.

        Raises:
            StoreFull: The disk leaves no room.
        """
        ...

    def adopt_blob(self, name: str, path: Path) -> bool:
        """Makes a blob of a file that lies in the store's directory, durably; the file stays.

        Args:
            name: A name that was never used.
            path: The file.

        Returns:
            Whether it could be done; if not, the blob is to be written.
        """
        ...

    def read_blob(self, name: str, nbytes: int | None = None) -> bytes | None:
        """Returns a blob, ``None`` where it is missing.

        Args:
            name: Its name.
            nbytes: How long it must be, which is looked at first; ``None`` for a state whose row is
                lost, which must be as long as its own header says.

        Raises:
            StateCorrupt: What stands there is not a plain file of that length, or the name is none
                of ours.
        """
        ...

    def read_blob_start(self, name: str, nbytes: int) -> bytes | None:
        """Returns at most `nbytes` of a blob from its start, ``None`` where it is missing.

        Raises:
            StateCorrupt: As `read_blob`, but for the length.
        """
        ...

    def drop_blob(self, name: str) -> None:
        """Deletes a blob, if it is there."""
        ...

    def set_aside(self, name: str) -> str:
        """Puts a damaged blob where no row finds it; returns a clause that says where."""
        ...

    def blobs(self) -> Iterator[tuple[str, float]]:
        """Yields each blob's name and its age in seconds."""
        ...

    def check(self, *, fix: bool) -> CheckReport:
        """Verifies what only the backend knows: settings, counters, foreign rows and files."""
        ...

    @property
    def is_usable(self) -> bool:
        """Whether it is open, and still where it was."""
        ...

    def close(self) -> None:
        """Lets go of all that is open."""
        ...
