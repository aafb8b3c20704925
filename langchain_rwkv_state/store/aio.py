"""The async twin of every verb, on threads of the store's own.

The twins add nothing but a thread: what blocks, blocks there and never the event loop, and a
store that is busy cannot use up the loop's default executor. The easy mistake is to think that a
cancelled twin did nothing: its thread runs to its end, and a commit in it may have happened. Who
has to know uses `to_its_end`.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from langchain_rwkv_state.store.clock import TTL
from langchain_rwkv_state.store.records import (
    CheckReport,
    Filing,
    LogEntry,
    QueuedTurn,
    SessionInfo,
    StoreStats,
)
from langchain_rwkv_state.store.verbs import StoreVerbs

if TYPE_CHECKING:
    from langchain_rwkv_state.state import RWKVState

P = ParamSpec("P")
T = TypeVar("T")
_THREADS = 4  # each opens a database connection of its own


class Threads:
    """An executor that is made at first use, and anew in a forked child."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: tuple[int, ThreadPoolExecutor] | None = None

    def get(self) -> ThreadPoolExecutor:
        """Returns this process's executor."""
        made = self._made
        if made is not None and made[0] == os.getpid():
            return made[1]
        if made is not None:  # the child has one thread, and perhaps a lock that nobody frees
            self._lock, self._made = threading.Lock(), None
        with self._lock:
            if self._made is None:
                pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="rwkv-state-store")
                self._made = (os.getpid(), pool)
            return self._made[1]

    def close(self) -> None:
        """Ends the threads once they have done what they were given."""
        made, self._made = self._made, None
        if made is not None and made[0] == os.getpid():
            made[1].shutdown(wait=False)


class AsyncVerbs(StoreVerbs):
    """The verbs of `StoreVerbs` with an ``a`` before their names, as coroutines."""

    @property
    def _threads(self) -> Threads:
        """The store's threads; an implementation need not make them in its constructor."""
        threads: Threads | None = self.__dict__.get("_threads_made")
        if threads is None:
            threads = self.__dict__.setdefault("_threads_made", Threads())
        return threads

    async def _in_thread(self, verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads.get(), partial(verb, *args, **kwargs))

    async def to_its_end(
        self, verb: str, *args: Any, revoke: bool = True, tell: bool = False, **options: Any
    ) -> Any:
        """Runs a verb so that whoever is cancelled meanwhile still learns what came of it.

        A cancellation that comes before the verb has begun is raised, and the verb never begins.
        One that comes while it runs is not raised: the outcome is, since it is what happened.

        Args:
            verb: The blocking verb's name, such as ``commit``.
            args: By position.
            revoke: Whether a cancellation keeps a verb from beginning; without it, it begins.
            tell: Whether a cancellation is raised all the same, once the verb has ended.
            options: By name.
        """
        job = self._threads.get().submit(partial(getattr(self, verb), *args, **options))
        outcome = asyncio.wrap_future(job)
        cancelled: asyncio.CancelledError | None = None
        while not outcome.done():
            try:
                await asyncio.wait([outcome])
            except asyncio.CancelledError as error:
                if revoke and job.cancel():
                    raise
                cancelled = error
        if tell and cancelled is not None:
            outcome.exception()  # looked at
            raise cancelled
        return outcome.result()

    async def aput(self, state: RWKVState, *, ttl: TTL = None) -> str:
        """Async twin of `put`."""
        return await self._in_thread(self.put, state, ttl=ttl)

    async def astage(
        self, state: RWKVState, *, parent: str | None = None, tokens: Sequence[int] = ()
    ) -> str:
        """Async twin of `stage`."""
        return await self._in_thread(self.stage, state, parent=parent, tokens=tokens)

    async def aget(self, ref: str, *, renew: bool = True) -> RWKVState:
        """Async twin of `get`."""
        return await self._in_thread(self.get, ref, renew=renew)

    async def adescends(self, later: str, earlier: str) -> bool:
        """Async twin of `descends`."""
        return await self._in_thread(self.descends, later, earlier)

    async def akeep(self, ref: str, owner: str, ttl: TTL = None) -> None:
        """Async twin of `keep`."""
        await self._in_thread(self.keep, ref, owner, ttl)

    async def arelease(self, owner: str) -> int:
        """Async twin of `release`."""
        return await self._in_thread(self.release, owner)

    async def ahead(self, session: str) -> str | None:
        """Async twin of `head`."""
        return await self._in_thread(self.head, session)

    async def asession(self, session: str, *, renew: bool = True) -> SessionInfo | None:
        """Async twin of `session`."""
        return await self._in_thread(self.session, session, renew=renew)

    async def acommit(
        self,
        session: str,
        ref: str,
        parent: str | None,
        ttl: TTL = None,
        *,
        sliding: bool | None = None,
        unread_covered: int = 0,
        said: Sequence[str] = (),
        place: str | None = None,
    ) -> None:
        """Async twin of `commit`."""
        await self._in_thread(
            self.commit,
            session,
            ref,
            parent,
            ttl,
            sliding=sliding,
            unread_covered=unread_covered,
            said=said,
            place=place,
        )

    async def aappend_unread(self, session: str, messages: Sequence[str], ttl: TTL = None) -> None:
        """Async twin of `append_unread`."""
        await self._in_thread(self.append_unread, session, messages, ttl)

    async def aenter_queue(self, session: str, token: str, seconds: float) -> int:
        """Async twin of `enter_queue`."""
        return await self._in_thread(self.enter_queue, session, token, seconds)

    async def aleave_queue(self, session: str, token: str) -> bool:
        """Async twin of `leave_queue`."""
        return await self._in_thread(self.leave_queue, session, token)

    async def aqueue(self, session: str) -> list[QueuedTurn]:
        """Async twin of `queue`."""
        return await self._in_thread(self.queue, session)

    async def alog(self, session: str) -> list[LogEntry]:
        """Async twin of `log`."""
        return await self._in_thread(self.log, session)

    async def asessions(self, prefix: str = "") -> list[str]:
        """Async twin of `sessions`."""
        return await self._in_thread(self.sessions, prefix)

    async def afork(self, session: str, new_session: str, at: str | None = None) -> str:
        """Async twin of `fork`."""
        return await self._in_thread(self.fork, session, new_session, at)

    async def arewind(self, session: str, turns: int = 1, to: str | None = None) -> str | None:
        """Async twin of `rewind`."""
        return await self._in_thread(self.rewind, session, turns, to)

    async def arename(self, session: str, new_session: str) -> None:
        """Async twin of `rename`."""
        await self._in_thread(self.rename, session, new_session)

    async def adelete_session(self, session: str) -> bool:
        """Async twin of `delete_session`."""
        return await self._in_thread(self.delete_session, session)

    async def aexport_session(
        self, session: str, path: str | os.PathLike[str], *, tokens: bool = False
    ) -> None:
        """Async twin of `export_session`."""
        await self._in_thread(self.export_session, session, path, tokens=tokens)

    async def aimport_session(
        self, path: str | os.PathLike[str], session: str | None = None, *, ttl: TTL = None
    ) -> SessionInfo:
        """Async twin of `import_session`."""
        return await self._in_thread(self.import_session, path, session, ttl=ttl)

    async def afile(self, turn_id: str, filing: Filing) -> None:
        """Async twin of `file`."""
        await self._in_thread(self.file, turn_id, filing)

    async def afilings(self, turn_id: str) -> list[Filing]:
        """Async twin of `filings`."""
        return await self._in_thread(self.filings, turn_id)

    async def aforget_turn(self, turn_id: str) -> None:
        """Async twin of `forget_turn`."""
        await self._in_thread(self.forget_turn, turn_id)

    async def aprune(self) -> int:
        """Async twin of `prune`."""
        return await self._in_thread(self.prune)

    async def astats(self) -> StoreStats:
        """Async twin of `stats`."""
        return await self._in_thread(self.stats)

    async def acheck(self, *, fix: bool = False) -> CheckReport:
        """Async twin of `check`."""
        return await self._in_thread(self.check, fix=fix)

    async def aclose(self) -> None:
        """Async twin of `close`."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)
