"""`MemoryStateStore`: a store that lives and dies with its object, for tests and demos.

The same code, the same tables and the same bytes as on disk, in a database and a dict in memory. It
is not a cache and evicts nothing. A forked child has a copy of its own. One that has a name, as the
URL ``memory:NAME`` gives it, lives as long as the process instead: closing an object ends nothing.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

from langchain_rwkv_state._fork import ForkLock
from langchain_rwkv_state._registry import Hold, of_process
from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.store.backend import SqlTables
from langchain_rwkv_state.store.clock import TTL
from langchain_rwkv_state.store.records import CheckReport, Codec, LogKind
from langchain_rwkv_state.store.resources import Resources
from langchain_rwkv_state.store.schema import make_tables
from langchain_rwkv_state.store.settings import DEFAULT_TTL, StoreSettings
from langchain_rwkv_state.store.staging import STAGED_BUDGET_BYTES, StagedFiles
from langchain_rwkv_state.store.store import TableStore
from langchain_rwkv_state.store.tables import Sql

if TYPE_CHECKING:
    from langchain_rwkv_state.state import Buffer

T = TypeVar("T")


class MemoryBackend(SqlTables):
    """Tables on one connection, which readers take turns at, and files in a dict."""

    read_only = False
    lists_states = False

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._database = self._made()
        self._blobs: dict[str, tuple[bytes, float]] = {}

    @staticmethod
    def _made() -> sqlite3.Connection:
        made = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        make_tables(made)
        return made

    def sql(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """See `Backend.sql`."""
        try:
            with self._lock:
                return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"The store in memory cannot be used: {error}.") from error

    def look(self, work: Callable[[], T]) -> T:
        """See `Backend.look`."""
        with self._lock:
            return work()

    def transact(
        self,
        work: Callable[[Sql], T],
        *,
        freeing: bool = False,  # noqa: ARG002 # there is no room to keep back
        durable: bool = True,  # noqa: ARG002 # and no disk to wait for
    ) -> T:
        """See `Backend.transact`."""
        with self._lock:
            self.sql("BEGIN")
            try:
                result = work(self.sql)
            except BaseException:
                self.sql("ROLLBACK")
                raise
            self.sql("COMMIT")
            return result

    def write_blob(self, name: str, parts: Sequence[Buffer]) -> str:
        """See `Backend.write_blob`."""
        data = b"".join(parts)
        with self._lock:
            self._blobs[name] = (data, time.monotonic())
        return name

    def adopt_blob(self, name: str, path: Path) -> bool:  # noqa: ARG002
        """See `Backend.adopt_blob`: nothing of it lies in files."""
        return False

    def read_blob(self, name: str, nbytes: int | None = None) -> bytes | None:  # noqa: ARG002
        """See `Backend.read_blob`: what is in memory needs no look before it is read."""
        with self._lock:
            found = self._blobs.get(name)
            return None if found is None else found[0]

    def read_blob_start(self, name: str, nbytes: int) -> bytes | None:
        """See `Backend.read_blob_start`."""
        data = self.read_blob(name)
        return None if data is None else data[:nbytes]

    def blob_exists(self, name: str) -> bool:
        """See `Backend.blob_exists`."""
        return name in self._blobs

    def drop_blobs(self, names: Sequence[str]) -> None:
        """See `Backend.drop_blobs`."""
        with self._lock:
            for name in names:
                self._blobs.pop(name, None)

    def set_aside(self, name: str) -> str:
        """See `Backend.set_aside`: what is in memory is dropped."""
        self.drop_blobs([name])
        return "it was dropped"

    def blobs(self) -> Iterator[tuple[str, float]]:
        """See `Backend.blobs`."""
        with self._lock:
            now = time.monotonic()
            return iter([(name, now - made) for name, (_, made) in self._blobs.items()])

    def scrub(self, digests: Collection[str]) -> None:
        """See `Backend.scrub`: there is no disk."""
        self.drop_blobs([name for name in list(self._blobs) if name[:64] in digests])

    def check(self, *, fix: bool) -> CheckReport:  # noqa: ARG002
        """See `Backend.check`: there is nothing beside the tables."""
        return CheckReport(())

    @property
    def is_usable(self) -> bool:
        """See `Backend.is_usable`."""
        return True

    def close(self) -> None:
        """See `Backend.close`."""
        with self._lock:
            self._database.close()
            self._database, self._blobs = self._made(), {}


class MemoryStateStore(TableStore):
    """Keeps states and sessions in memory, until it is closed.

    Args:
        ttl: How long sessions and states live, unless said otherwise.
        sliding: Whether commits and reads renew that.
        history: How many states before a session's head are kept.
        log: ``"tokens"`` keeps the token ids, so that `rebuild` can make states again.
        size_limit: The most bytes to store, ``None`` for no limit.
        codec: How states become bytes; see `DiskStateStore`.
        clock: Gives Unix time.
        staged_bytes: The most bytes of staged states to hold in memory; beyond that they are kept
            in temporary files, which end with the process. ``None`` for all in memory.

    Raises:
        ValueError: A value is out of range.

    Example:
        >>> from langchain_rwkv_state.state import StateLayout, zero_state
        >>> state = zero_state(StateLayout.of(7, n_layer=1, n_embd=64, head_size=64), "model")
        >>> store = MemoryStateStore(ttl=3600)
        >>> ref = store.put(state)
        >>> store.get(ref) == state
        True
    """

    def __init__(
        self,
        ttl: TTL = DEFAULT_TTL,
        sliding: bool = True,
        history: int = 1,
        log: LogKind = "none",
        size_limit: int | None = None,
        codec: Codec = "exact",
        *,
        clock: Callable[[], float] = time.time,
        staged_bytes: int | None = None,
    ) -> None:
        settings = StoreSettings(ttl, sliding, history, log, size_limit, codec, clock, staged_bytes)
        files = None if staged_bytes is None else StagedFiles(None)
        super().__init__(Hold(Resources(MemoryBackend(), files), _nothing), settings)

    @staticmethod
    def named(name: str = "", **settings: Any) -> MemoryStateStore:
        """Returns a store that all of this process share who name it so, to the process's end.

        Args:
            name: Any text.
            settings: As those of the class; each object goes by its own.

        Example:
            >>> MemoryStateStore.named("both").append_unread("bob", ['"hello"'])
            >>> MemoryStateStore.named("both").sessions()
            ['bob']
        """
        return _NamedMemoryStateStore(name, settings)

    def close(self) -> None:
        """See `StateStore.close`: everything in it goes."""
        if not self._closed:
            super().close()
            self._resources.value.close()

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Returns the store itself: what it holds is in no other place."""
        return self

    def __copy__(self) -> Self:
        """Returns the store itself."""
        return self

    def __reduce__(self) -> str | tuple[object, ...]:
        """Refuses to be pickled.

        Raises:
            TypeError: What it holds cannot travel.
        """
        raise TypeError(
            "A MemoryStateStore cannot be pickled, since what it holds is in this process alone: "
            "use a DiskStateStore."
        )


class _NamedMemoryStateStore(MemoryStateStore):
    """See `MemoryStateStore.named`."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        wanted = StoreSettings(**{"staged_bytes": STAGED_BUDGET_BYTES, **settings})
        shared = of_process(("store in memory", name), _shared)
        TableStore.__init__(self, Hold(shared, _nothing), wanted)
        self._name = name
        self._given = dict(settings)

    def close(self) -> None:
        """See `StateStore.close`: what is in it stays, for others of its name."""
        TableStore.close(self)

    @property
    def location(self) -> str | None:
        """See `StateStore.location`."""
        return f"memory:{quote(self._name)}"

    def __repr__(self) -> str:
        return f"MemoryStateStore.named({self._name!r})"

    def __reduce__(self) -> tuple[object, ...]:
        """Travels as its name: another process has its own store of that name."""
        return _NamedMemoryStateStore, (self._name, self._given)


def _shared() -> Resources:
    return Resources(MemoryBackend(), StagedFiles(None))


def _nothing(*, now: bool = False) -> None:
    """Gives nothing back: a store in memory is shared by its object alone."""
