"""`RedisStateStore`: sessions and states that processes on many machines share.

The same code and the same rows as on disk; only where the rows lie is another. It needs redis-py
(the extra ``[redis]``) and a Redis 7 that keeps what it acknowledged. The easy mistake is to take
`stage` for something that another machine sees: what is staged is this process's until it is
committed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from langchain_rwkv_state.store.clock import TTL, StoreClock, steady_seconds
from langchain_rwkv_state.store.passwords import hidden
from langchain_rwkv_state.store.pins import KeptPins, SharedPins
from langchain_rwkv_state.store.records import Codec, LogKind
from langchain_rwkv_state.store.redis.backend import RedisBackend
from langchain_rwkv_state.store.redis.blobs import LARGE_BYTES, open_blobs
from langchain_rwkv_state.store.redis.clock import ServerClock
from langchain_rwkv_state.store.redis.connect import Persistence, check_persistence, connect, shown
from langchain_rwkv_state.store.redis.keys import Keys
from langchain_rwkv_state.store.redis.pins import RedisPinRows
from langchain_rwkv_state.store.resources import OPEN_STORES, Resources
from langchain_rwkv_state.store.settings import (
    DEFAULT_TTL,
    StoreSettings,
    check_name,
    check_opening,
)
from langchain_rwkv_state.store.staging import STAGED_BUDGET_BYTES, StagedFiles
from langchain_rwkv_state.store.store import TableStore
from langchain_rwkv_state.store.writes import clock_mark

if TYPE_CHECKING:
    import os

DEFAULT_URL = "redis://localhost:6379/0"


class RedisStateStore(TableStore):
    """Keeps states and sessions in Redis, for all processes that name the same server and tenant.

    Two objects over one tenant are one store: what one process commits, another one sees. Each verb
    that changes something happens in one step or not at all. Where the connection is lost, what was
    under way is sent again and is done once; where that does not help, `StoreError` says so, and
    the session's head tells what became of it.

    Args:
        url: The server: ``redis://``, ``rediss://`` or ``unix://``.
        ttl: How long sessions and states live, unless said otherwise.
        sliding: Whether commits and reads renew that.
        history: How many states before a session's head are kept.
        log: ``"tokens"`` keeps the token ids, so that `rebuild` can make states again.
        size_limit: The most bytes that the tenant may store, ``None`` for no limit.
        codec: How states become bytes; see `DiskStateStore`.
        tenant: Whose store it is. One tenant sees nothing of another, and a reference of one
            names nothing for another.
        clock: Gives Unix time; by default that of the server, which all processes share.
        staged_bytes: The most bytes of staged states to hold in memory; beyond that they are kept
            in temporary files, which end with the process.
        blobs: A directory that all machines share, or a URL that fsspec reads, for large states;
            ``None`` for all in Redis.
        large_bytes: States of so many bytes are large.
        persistence: What the server must promise, see `check_persistence`: ``"always"`` that what
            was acknowledged is on its disk.
        timeout_seconds: How long to wait for an answer, and for others who write the same.

    Raises:
        ValueError: A value is out of range.
        ImportError: redis-py is not installed.
        StoreError: The server cannot be reached, or may lose what it acknowledged.

    Example:
        >>> store = RedisStateStore("redis://localhost:6379/0", tenant="me")  # doctest: +SKIP
        >>> store.sessions()  # doctest: +SKIP
        []
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        ttl: TTL = DEFAULT_TTL,
        sliding: bool = True,
        history: int = 1,
        log: LogKind = "none",
        size_limit: int | None = None,
        codec: Codec | None = None,
        *,
        tenant: str = "default",
        clock: Callable[[], float] = time.time,
        staged_bytes: int = STAGED_BUDGET_BYTES,
        blobs: str | os.PathLike[str] | None = None,
        large_bytes: int = LARGE_BYTES,
        persistence: Persistence = "always",
        timeout_seconds: float = 60.0,
    ) -> None:
        settings = StoreSettings(ttl, sliding, history, log, size_limit, codec, clock, staged_bytes)
        check_opening(None, timeout_seconds, None, None)
        check_name(tenant, "tenant")
        self._url = url
        self._tenant = tenant
        self._opening: dict[str, Any] = {
            "tenant": tenant,
            "blobs": blobs,
            "large_bytes": large_bytes,
            "persistence": persistence,
            "timeout_seconds": timeout_seconds,
        }

        def opened() -> Resources:
            client = connect(url, timeout_seconds=timeout_seconds, persistence=persistence)
            try:
                keys = Keys(tenant)
                where = open_blobs(client, blobs, keys.folder, large_bytes=large_bytes)
                backend = RedisBackend(client, keys, where, timeout_seconds)
            except BaseException:
                client.close()
                raise
            backend.promises.add(persistence)
            return Resources(backend, StagedFiles(None))

        def fits(found: Resources) -> bool:
            backend = found.backend
            assert isinstance(backend, RedisBackend)  # noqa: S101 # as `opened` made it
            if backend.is_usable and persistence not in backend.promises:
                check_persistence(backend.client, persistence)
                backend.promises.add(persistence)
            return backend.is_usable

        key = ("redis", url, tenant, None if blobs is None else str(blobs))
        held = OPEN_STORES.held(key, opened, fits=fits)
        super().__init__(held, settings)
        backend = self._backend
        assert isinstance(backend, RedisBackend)  # noqa: S101 # as `opened` made it
        try:
            backend.bind(self._key)
        except BaseException:
            held.release()
            raise

    def _shared_clock(self, clock: Callable[[], float]) -> StoreClock:
        if clock is not time.time:
            return super()._shared_clock(clock)
        shared, backend = self._resources.value, self._backend
        if shared.clock is None:
            assert isinstance(backend, RedisBackend)  # noqa: S101 # as the constructor made it
            told = ServerClock(backend.client)
            shared.clock = StoreClock(told, self._ttl, partial(clock_mark, backend), steady_seconds)
        return shared.clock

    @property
    def shares_pins(self) -> bool:
        """See `StateStore.shares_pins`."""
        return True

    def shared_pins(self) -> SharedPins:
        """See `StateStore.shared_pins`."""
        self._check_open()
        backend = self._backend
        assert isinstance(backend, RedisBackend)  # noqa: S101 # as the constructor made it
        return KeptPins(self, RedisPinRows(backend.client, Keys(self._tenant).base), self.codec)

    @property
    def url(self) -> str:
        """The server, without user and password."""
        return shown(self._url)

    @property
    def location(self) -> str | None:
        """See `StateStore.location`."""
        rest, _, query = hidden(self._url).partition("?")
        usual = {"tenant": "default", "blobs": None, "persistence": "always"}
        ours = {name: str(self._opening[name]) for name in usual}
        more = urlencode({name: text for name, text in ours.items() if text != str(usual[name])})
        query = "&".join(filter(None, (query, more)))
        return hidden(f"{rest}?{query}" if query else rest)

    @property
    def tenant(self) -> str:
        """Whose store it is."""
        return self._tenant

    def __repr__(self) -> str:
        return f"RedisStateStore({self.url!r}, tenant={self._tenant!r})"

    def __reduce__(self) -> tuple[Callable[[], RedisStateStore], tuple[()]]:
        """Travels as its URL (with the password in it) and its settings."""
        return partial(RedisStateStore, self._url, **vars(self._settings), **self._opening), ()
