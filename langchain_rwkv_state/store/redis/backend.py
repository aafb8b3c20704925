"""Where a store in Redis keeps its rows and states: `Backend`, over one tenant's keys.

A transaction reads and decides here, and asks Redis to write all of it if what it read still
stands; where that does not, it runs anew. So one of those who compete always gets through, and
nobody holds a lock that a killed process would leave. The easy mistake is to believe what a
transaction raises: it may have read one row before another's turn and one behind it.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_rwkv_state.errors import StateCorrupt, StoreError
from langchain_rwkv_state.store.records import CheckReport
from langchain_rwkv_state.store.redis import functions
from langchain_rwkv_state.store.redis.blobs import UNCOMMITTED_SECONDS, Blobs
from langchain_rwkv_state.store.redis.changes import RedisChanges
from langchain_rwkv_state.store.redis.connect import errors
from langchain_rwkv_state.store.redis.functions import APPLY, FREE, NAMES, STAND, Op
from langchain_rwkv_state.store.redis.keys import Keys
from langchain_rwkv_state.store.redis.space import Space
from langchain_rwkv_state.store.redis.tables import PAGE, RedisTables
from langchain_rwkv_state.store.redis.upkeep import check_indices
from langchain_rwkv_state.store.rows import StateRow
from langchain_rwkv_state.store.tables import Changes, Sql, Tables

if TYPE_CHECKING:
    from redis import Redis

    from langchain_rwkv_state.state import Buffer

T = TypeVar("T")
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.0005, 0.05
_LOOKS = 8  # then what was read is so much that somebody always writes in between
_SCANNED = 1000


class RedisBackend:
    """One tenant's rows and states in Redis.

    Args:
        client: A connection; it is closed with this.
        keys: What the tenant's keys are called.
        blobs: Where bytes are.
        timeout_seconds: How long to try where others write the same.

    Raises:
        StoreError: The server cannot be reached, or does not take functions.
    """

    read_only = False
    lists_states = False

    def __init__(self, client: Redis, keys: Keys, blobs: Blobs, timeout_seconds: float) -> None:
        self.client = client
        self._keys = keys
        self._blobs = blobs
        self._timeout = timeout_seconds
        self._at_work = threading.local()
        self._closed = False
        functions.load(client)

    def sql(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """See `Backend.sql`.

        Raises:
            StoreError: Always.
        """
        return self._view_space()(statement, values)

    # -- looking ---------------------------------------------------------------------------------

    def view(self, now: float) -> Tables:
        """See `Backend.view`."""
        space: Space | None = getattr(self._at_work, "space", None)
        return RedisTables(self._view_space() if space is None else space, now)

    def changes(self, sql: Sql, now: float) -> Changes:
        """See `Backend.changes`."""
        return RedisChanges(sql, now, self._exists_for(sql))

    def look(self, work: Callable[[], T]) -> T:
        """See `Backend.look`."""
        if getattr(self._at_work, "space", None) is not None:
            return work()
        return self._looked(lambda _: work())

    def _looked(self, work: Callable[[Space], T]) -> T:
        for number in range(_LOOKS):
            space = self._space()
            with self._working(space):
                result, error = _outcome(partial(work, space))
            if space.is_one or number == _LOOKS - 1 or self._stands(space):
                break
        if error is not None:
            raise error
        return result  # type: ignore[return-value] # there is one, where there is no error

    def _sure(self, now: float, work: Callable[[RedisTables], T]) -> T:
        """Runs a look; that something is gone is believed only as of one moment."""
        for number in range(_LOOKS):
            space = self._space()
            result, error = _outcome(partial(work, RedisTables(space, now)))
            is_there = error is None and result is not False
            if is_there or space.is_one or number == _LOOKS - 1 or self._stands(space):
                break
        if error is not None:
            raise error
        return result  # type: ignore[return-value] # as above

    def _stands(self, space: Space) -> bool:
        """Says whether all that was read is still as it was read."""
        args = space.seen()
        return bool(functions.call(self.client, STAND, self._keys.base, args, reads=True))

    def _space(self) -> Space:
        return Space(self._keys, self._run, self._page)

    def _view_space(self) -> Space:
        return Space(self._keys, self._run, self._page, self._sure)

    def _run(self, ops: Sequence[Op]) -> list[Any]:
        """Runs commands that read, and returns their replies as Redis gives them."""
        self._require_open()
        with errors():
            if len(ops) == 1:
                return [self.client.execute_command(*ops[0])]  # type: ignore[no-untyped-call]
            pipeline = self.client.pipeline(transaction=False)
            for op in ops:
                pipeline.execute_command(*op)  # type: ignore[no-untyped-call]
            return list(pipeline.execute())

    def _page(self, low: bytes, high: bytes) -> list[tuple[bytes, bytes | None, bytes | None]]:
        self._require_open()
        args = (low, high, PAGE)
        found = functions.call(self.client, NAMES, self._keys.base, args, reads=True)
        return [(each[0], each[1], each[2]) for each in found]

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("The store is closed: open it again to use it.")

    # -- changing --------------------------------------------------------------------------------

    def transact(
        self,
        work: Callable[[Sql], T],
        *,
        freeing: bool = False,
        durable: bool = True,  # noqa: ARG002 # the server's settings say
    ) -> T:
        """See `Backend.transact`."""
        deadline = time.monotonic() + self._timeout
        pause = _FIRST_PAUSE_SECONDS
        while True:
            space = self._space()
            with self._working(space):
                result, error = _outcome(partial(work, space))
            if error is not None:
                if space.is_one or self._stands(space):
                    raise error
            elif self._happened(space, freeing=freeing):
                return result  # type: ignore[return-value] # as above
            if time.monotonic() > deadline:
                raise StoreError(
                    f"Others write the same so often that nothing came of {self._timeout:.0f} "
                    "seconds of trying: try again."
                ) from error
            time.sleep(random.uniform(0, pause))  # noqa: S311 # so that two do not meet again
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _happened(self, space: Space, *, freeing: bool) -> bool:
        """Writes all that a transaction came to; says whether what it read still stood."""
        self._require_open()
        if not space.is_changed:
            return space.is_one or self._stands(space)
        limit = b"-" if space.limit is None else b"%d" % space.limit
        args = [secrets.token_bytes(16).hex().encode(), limit, b"%d" % space.growth]
        args += [*space.seen(), *space.written()]
        done = functions.call(self.client, FREE if freeing else APPLY, self._keys.base, args)
        return bytes(done) == b"done"

    @contextmanager
    def _working(self, space: Space) -> Iterator[None]:
        """Has views that are made meanwhile see what `space` sees."""
        before = getattr(self._at_work, "space", None)
        self._at_work.space = space
        try:
            yield
        finally:
            self._at_work.space = before

    # -- bytes -----------------------------------------------------------------------------------

    def write_blob(self, name: str, parts: Sequence[Buffer]) -> str:
        """See `Backend.write_blob`."""
        self._require_open()
        ref = f"rwkv1-{name[:64]}"
        place = self._blobs.write(self.client, self._keys.blob(name), ref, parts)
        return self._keys.noted(name, place)

    def adopt_blob(self, name: str, path: Path) -> bool:  # noqa: ARG002
        """See `Backend.adopt_blob`: what is staged in a file here is no other machine's."""
        return False

    def read_blob(self, name: str, nbytes: int | None = None) -> bytes | None:
        """See `Backend.read_blob`."""
        data = self._blobs.read(self._keys.place(name))
        if data is not None and nbytes is not None and len(data) != nbytes:
            raise StateCorrupt(f"{name} has {len(data)} bytes, and its row says {nbytes}.")
        return data

    def read_blob_start(self, name: str, nbytes: int) -> bytes | None:
        """See `Backend.read_blob_start`."""
        return self._blobs.read_start(self._keys.place(name), nbytes)

    def blob_exists(self, name: str) -> bool:
        """See `Backend.blob_exists`."""
        return self.read_blob_start(name, 1) is not None

    def _exists_for(self, sql: Sql) -> Callable[[str], bool]:
        """Returns what says whether bytes are there, and still are when all is written."""

        def exists(blob: str) -> bool:
            key = self._keys.bytes_key(blob)
            if key is None:
                return self.blob_exists(blob)
            return bool(_space_of(sql).read([(b"EXISTS", key)])[0])

        return exists

    def drop_blobs(self, names: Sequence[str]) -> None:
        """See `Backend.drop_blobs`."""
        self._blobs.drop([self._keys.place(name) for name in names])

    def set_aside(self, name: str) -> str:
        """See `Backend.set_aside`."""
        key = self._keys.bytes_key(name)
        if key is None:
            return "it stays where it is until it is swept"
        aside = self._keys.base + b"aside:" + name.encode()
        with errors():
            if not self.client.exists(key):
                return "it is gone"
            self.client.rename(key, aside)
            self.client.persist(aside)
        return f"it is the value of {aside.decode()} now"

    def blobs(self) -> Iterator[tuple[str, float]]:
        """See `Backend.blobs`: of bytes in Redis that have lasted longer than their first expiry.

        What is younger goes by itself, and so it is nobody's task.
        """
        prefix = self._keys.blob("")
        with errors():
            for key in self.client.scan_iter(match=f"{prefix}*", count=_SCANNED):
                left: Any = self.client.ttl(key)
                if not 0 <= left <= UNCOMMITTED_SECONDS:
                    yield key.decode().removeprefix(prefix), UNCOMMITTED_SECONDS

    def scrub(self, digests: Collection[str]) -> None:
        """See `Backend.scrub`: Redis writes its log anew in the background, without it."""
        names = [name for name, _ in self.blobs() if name[:64] in digests]
        self.drop_blobs(names)
        with errors():
            from redis.exceptions import ResponseError

            try:
                self.client.bgrewriteaof()
            except ResponseError as error:
                if "in progress" not in str(error):
                    raise

    # -- upkeep ----------------------------------------------------------------------------------

    def check(self, *, fix: bool) -> CheckReport:
        """See `Backend.check`."""

        def look(work: Callable[[Space], Any]) -> Any:
            return self._looked(work)

        def change(work: Callable[[Space], Any]) -> Any:
            return self.transact(lambda sql: work(_space_of(sql)), freeing=True)

        found = check_indices(
            self.client, self._keys, self._view_space(), look, change if fix else None
        )
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
        for raw in RedisTables(self._view_space(), 0.0).rows_of(StateRow.TABLE):
            try:
                known.add(self._keys.place(StateRow.unpack(raw).blob))
            except StateCorrupt:
                all_sound = False
        return self._blobs.orphans(known), all_sound

    @property
    def is_usable(self) -> bool:
        """See `Backend.is_usable`."""
        return not self._closed

    def close(self) -> None:
        """See `Backend.close`."""
        self._closed = True
        self.client.close()


def _space_of(sql: Sql) -> Space:
    assert isinstance(sql, Space)  # noqa: S101 # as `transact` gives it
    return sql


def _outcome(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Returns what came of something, or what it raised because of what it read."""
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001 # half of what it read may be another's
        return None, error
