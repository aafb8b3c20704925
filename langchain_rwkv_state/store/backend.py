"""Where a store keeps its tables and its states' files: on disk (`DiskBackend`), or in memory.

Whoever implements it runs SQL and keeps files, and knows no session, no time and no state. A file
that a transaction lets go of is deleted only once that has happened.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from langchain_rwkv_state.store.records import CheckReport
from langchain_rwkv_state.store.tables import Changes, Sql, Tables

if TYPE_CHECKING:
    from langchain_rwkv_state.state import Buffer

T = TypeVar("T")


class Backend(Protocol):
    """Where a store keeps its tables and files."""

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written; every verb that would write raises `StoreError`."""
        ...

    @property
    def lists_states(self) -> bool:
        """Whether each state has a row of diskcache's own table, too."""
        ...

    @property
    def may_be_late(self) -> bool:
        """Whether a transaction that came to a `StoreError` may yet happen: over a network."""
        ...

    def sql(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Runs one statement, outside of a transaction, or in that of `look`.

        Raises:
            StoreError: As `transact`.
        """
        ...

    def view(self, now: float) -> Tables:
        """Returns the tables outside of a transaction, or in that of `look`, at a store's time."""
        ...

    def changes(self, sql: Sql, now: float) -> Changes:
        """Returns the tables in a transaction, which runs its statements by `sql`."""
        ...

    def look(self, work: Callable[[], T]) -> T:
        """Runs `work`, whose `sql` sees all as it stood at one moment; it may run anew.

        Raises:
            StoreError: As `transact`.
        """
        ...

    def transact(
        self, work: Callable[[Sql], T], *, freeing: bool = False, durable: bool = True
    ) -> T:
        """Runs `work` in a transaction: all of it happens, durably, or nothing.

        Args:
            work: Gets what runs its statements; may run a second time after a failure.
            freeing: Whether it makes room, and so may use the room that is kept back.
            durable: Whether to wait until it is on the disk. Without, it may be lost with the
                power, and only together with all that came after it.

        Raises:
            StoreFull: The disk leaves no room.
            StoreError: The store is damaged, busy, closed or gone.
        """
        ...

    def write_blob(self, name: str, parts: Sequence[Buffer]) -> str:
        """Writes a file, durably, or nothing.

        Args:
            name: A name that was never used.
            parts: Its bytes, in pieces.

        Returns:
            The name that finds it: the same, or one that begins so.

        Raises:
            StoreFull: The disk leaves no room.
        """
        ...

    def adopt_blob(self, name: str, path: Path) -> bool:
        """Makes a state's file of one that lies in the store's directory, durably; that one stays.

        Args:
            name: A name that was never used.
            path: The file.

        Returns:
            Whether it could be done; if not, the state is to be written.
        """
        ...

    def read_blob(self, name: str, nbytes: int | None = None) -> bytes | None:
        """Returns a file's bytes, ``None`` where it is missing.

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
        """Returns at most `nbytes` of a file from its start, ``None`` where it is missing.

        Raises:
            StateCorrupt: As `read_blob`, but for the length.
        """
        ...

    def blob_exists(self, name: str) -> bool:
        """Says whether a file is there."""
        ...

    def drop_blobs(self, names: Sequence[str]) -> None:
        """Deletes files, as far as they are there."""
        ...

    def set_aside(self, name: str) -> str:
        """Puts a file where no row finds it; returns a clause that says where."""
        ...

    def blobs(self) -> Iterator[tuple[str, float]]:
        """Yields each file's name and its age in seconds."""
        ...

    def scrub(self, digests: Collection[str]) -> None:
        """Takes what was deleted off the disk: free room in the database, its log of changes.

        Args:
            digests: The last 64 digits of references of which no file is to stay, by whatever name
                one of the store's files goes.

        Raises:
            StoreError: Somebody reads, and goes on to, what was there before.
        """
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


class SqlTables:
    """What a backend that runs SQL gives as tables."""

    lists_states: bool
    may_be_late = False

    if TYPE_CHECKING:

        def sql(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
            """See `Backend.sql`."""

        def blob_exists(self, name: str) -> bool:
            """See `Backend.blob_exists`."""

    def view(self, now: float) -> Tables:
        """See `Backend.view`."""
        return Tables(self.sql, now)

    def changes(self, sql: Sql, now: float) -> Changes:
        """See `Backend.changes`."""
        return Changes(sql, now, blob_exists=self.blob_exists, lists_states=self.lists_states)


def look(backend: Backend, now: float, work: Callable[[Tables], T]) -> T:
    """Runs `work` on the tables as they stood at one moment."""
    return backend.look(lambda: work(backend.view(now)))


def change(
    backend: Backend,
    now: float,
    work: Callable[[Changes], T],
    *,
    freeing: bool = False,
    durable: bool = True,
) -> T:
    """Runs `work` on the tables in a transaction, then deletes the files that it let go of."""

    def transaction(sql: Sql) -> tuple[T, list[str]]:
        changes = backend.changes(sql, now)
        result = work(changes)
        changes.finish()
        return result, changes.dropped

    result, dropped = backend.transact(transaction, freeing=freeing, durable=durable)
    if dropped:
        backend.drop_blobs(dropped)
    return result
