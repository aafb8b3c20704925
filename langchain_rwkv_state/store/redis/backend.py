"""Where a store in Redis keeps its rows and states: `Backend`, over one tenant's keys.

It joins what reads and changes rows, what makes that one step, and where bytes are. The easy
mistake is to let a session's row name bytes that may yet go: they are written first with a short
expiry, and the step that names them takes it away, if they are still there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_rwkv_state.errors import StateCorrupt
from langchain_rwkv_state.store.records import CheckReport
from langchain_rwkv_state.store.redis import functions
from langchain_rwkv_state.store.redis.blobs import UNCOMMITTED_SECONDS, Blobs
from langchain_rwkv_state.store.redis.changes import RedisChanges
from langchain_rwkv_state.store.redis.connect import errors
from langchain_rwkv_state.store.redis.keys import Keys
from langchain_rwkv_state.store.redis.moments import Moments
from langchain_rwkv_state.store.redis.space import Space
from langchain_rwkv_state.store.redis.tables import RedisTables
from langchain_rwkv_state.store.redis.upkeep import check_indices, write_log_anew
from langchain_rwkv_state.store.rows import StateRow
from langchain_rwkv_state.store.tables import Changes, Sql, Tables

if TYPE_CHECKING:
    from redis import Redis

    from langchain_rwkv_state.state import Buffer

T = TypeVar("T")
_SCANNED = 1000
_FOR_EVER = -1  # as TTL says it; a key that is gone has -2


class RedisBackend:
    """One tenant's rows and states in Redis.

    Args:
        client: A connection; it is closed with this.
        keys: What the tenant's keys are called.
        blobs: Where bytes are.
        timeout_seconds: How long to try where others write the same.

    Attributes:
        client: As given.
        keys: As given.
        promises: What the server was found to promise, as `connect.check_persistence` has it.

    Raises:
        StoreError: The server cannot be reached, or does not take functions.
    """

    read_only = False
    lists_states = False
    may_be_late = True

    def __init__(self, client: Redis, keys: Keys, blobs: Blobs, timeout_seconds: float) -> None:
        self.client = client
        self.keys = keys
        self.promises: set[str] = set()
        self._blobs = blobs
        self._timeout = timeout_seconds
        self._moments = Moments(client, keys, timeout_seconds)
        functions.require(client, keys.base)

    def bind(self, secret: bytes) -> None:
        """Has no change made in another store than that of a secret: see `Moments.bind`.

        Raises:
            StoreError: There is another store by now.
        """

        def is_known(row: bytes | None) -> bool:
            return row is not None and secret.hex().encode() in row

        self._moments.bind(self._blobs.folder, is_known)

    def sql(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """See `Backend.sql`.

        Raises:
            StoreError: Always.
        """
        return self._moments.view()(statement, values)

    def view(self, now: float) -> Tables:
        """See `Backend.view`."""
        return RedisTables(self._moments.at_work or self._moments.view(), now)

    def changes(self, sql: Sql, now: float) -> Changes:
        """See `Backend.changes`."""
        return RedisChanges(sql, now, partial(self._exists_for, _space_of(sql)))

    def look(self, work: Callable[[], T]) -> T:
        """See `Backend.look`."""
        if self._moments.at_work is not None:
            return work()
        return self._moments.look(lambda _: work())

    def transact(
        self,
        work: Callable[[Sql], T],
        *,
        freeing: bool = False,
        durable: bool = True,  # noqa: ARG002 # the server's settings say
    ) -> T:
        """See `Backend.transact`."""
        return self._moments.transact(work, freeing=freeing)

    # -- bytes -----------------------------------------------------------------------------------

    def write_blob(self, name: str, parts: Sequence[Buffer]) -> str:
        """See `Backend.write_blob`."""
        ref = f"rwkv1-{name[:64]}"
        place = self._blobs.write(self.client, self.keys.blob(name), ref, parts)
        return self.keys.noted(name, place)

    def adopt_blob(self, name: str, path: Path) -> bool:  # noqa: ARG002
        """See `Backend.adopt_blob`: what is staged in a file here is no other machine's."""
        return False

    def read_blob(self, name: str, nbytes: int | None = None) -> bytes | None:
        """See `Backend.read_blob`."""
        data = self._blobs.read(self.keys.place(name))
        if data is not None and nbytes is not None and len(data) != nbytes:
            raise StateCorrupt(f"{name} has {len(data)} bytes, and its row says {nbytes}.")
        return data

    def read_blob_start(self, name: str, nbytes: int) -> bytes | None:
        """See `Backend.read_blob_start`."""
        return self._blobs.read_start(self.keys.place(name), nbytes)

    def blob_exists(self, name: str) -> bool:
        """See `Backend.blob_exists`."""
        return self.read_blob_start(name, 1) is not None

    def _exists_for(self, space: Space, blob: str) -> bool:
        """Says whether bytes are there; the step that names them makes sure of it again."""
        key = self.keys.bytes_key(blob)
        if key is None:
            return self.blob_exists(blob)
        return bool(space.read([(b"EXISTS", key)])[0])

    def drop_blobs(self, names: Sequence[str]) -> None:
        """See `Backend.drop_blobs`."""
        self._blobs.drop([self.keys.place(name) for name in names])

    def set_aside(self, name: str) -> str:
        """See `Backend.set_aside`."""
        key = self.keys.bytes_key(name)
        if key is None:
            return "it stays where it is until it is swept"
        aside = self.keys.aside(name)
        with errors():
            if not self.client.exists(key):
                return "it is gone"
            self.client.rename(key, aside)
            self.client.persist(aside)
        return f"it is the value of {aside} now"

    def blobs(self) -> Iterator[tuple[str, float]]:
        """See `Backend.blobs`: of bytes in Redis that have lasted longer than their first expiry.

        What is younger goes by itself, and so it is nobody's task.
        """
        prefix = self.keys.blob("")
        with errors():
            for key in self.client.scan_iter(match=f"{prefix}*", count=_SCANNED):
                left: Any = self.client.ttl(key)
                if left == _FOR_EVER or left > UNCOMMITTED_SECONDS:
                    yield key.decode().removeprefix(prefix), UNCOMMITTED_SECONDS

    def scrub(self, digests: Collection[str]) -> None:
        """See `Backend.scrub`: Redis writes its log anew, without what was deleted."""
        for start in (self.keys.blob(""), self.keys.aside("")) if digests else ():
            with errors():
                for key in self.client.scan_iter(match=f"{start}*", count=_SCANNED):
                    if key.decode().removeprefix(start)[:64] in digests:
                        self.client.unlink(key)
        self._blobs.erase(digests)
        write_log_anew(self.client, self._timeout)

    # -- upkeep ----------------------------------------------------------------------------------

    def check(self, *, fix: bool) -> CheckReport:
        """See `Backend.check`."""

        def change(work: Callable[[Space], Any]) -> Any:
            return self._moments.transact(work, freeing=True)

        view, look = self._moments.view(), self._moments.look
        found = check_indices(self.client, self.keys, view, look, change if fix else None)
        orphans, can_go = self._orphans()
        problems = [f"The file {place} belongs to no state." for place in orphans]
        repaired = []
        if fix and can_go:
            self._blobs.drop(orphans)
            repaired = [f"Deleted the file {place}." for place in orphans]
        return CheckReport((*found.problems, *problems), (*found.repaired, *repaired))

    def _orphans(self) -> tuple[list[str], bool]:
        """Returns the files that no row names, and whether all rows can be read that might."""
        known: set[str] = set()
        all_sound = True
        for raw in RedisTables(self._moments.view(), 0.0).rows_of(StateRow.TABLE):
            try:
                known.add(self.keys.place(StateRow.unpack(raw).blob))
            except StateCorrupt:
                all_sound = False
        return self._blobs.orphans(known), all_sound

    @property
    def is_usable(self) -> bool:
        """See `Backend.is_usable`."""
        return not self._moments.closed and not self._moments.replaced

    def close(self) -> None:
        """See `Backend.close`."""
        self._moments.closed = True
        self.client.close()


def _space_of(sql: Sql) -> Space:
    assert isinstance(sql, Space)  # noqa: S101 # as `transact` gives it
    return sql
