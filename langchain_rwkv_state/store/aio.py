"""Makes the async twin of every verb: the verb itself, on a thread of the store's own.

What blocks, blocks there and never the event loop, and a store that is busy cannot use up the
loop's default executor. The easy mistake is to think that a cancelled twin did nothing: its thread
runs to its end, and a commit in it may have happened. Who has to know uses `to_its_end`.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from langchain_rwkv_state.store.verbs import StoreVerbs

P = ParamSpec("P")
S = TypeVar("S")
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


def twin(
    verb: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Returns a method that runs a blocking verb of the same object in a thread of the store.

    It has the verb's signature, and calls whatever the object has under the verb's name.

    Args:
        verb: The blocking method.
    """
    name = verb.__name__

    async def run(self: Any, /, *args: Any, **options: Any) -> Any:
        return await self._in_thread(getattr(self, name), *args, **options)

    run.__name__ = f"a{name}"
    run.__qualname__ = verb.__qualname__.replace(name, run.__name__)
    run.__module__ = verb.__module__
    run.__doc__ = f"Async twin of `{name}`."
    run.__signature__ = inspect.signature(verb)  # type: ignore[attr-defined] # what `help` shows
    return run


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

    aput = twin(StoreVerbs.put)
    astage = twin(StoreVerbs.stage)
    aget = twin(StoreVerbs.get)
    adescends = twin(StoreVerbs.descends)
    akeep = twin(StoreVerbs.keep)
    arelease = twin(StoreVerbs.release)
    ahead = twin(StoreVerbs.head)
    asession = twin(StoreVerbs.session)
    acommit = twin(StoreVerbs.commit)
    aappend_unread = twin(StoreVerbs.append_unread)
    alog = twin(StoreVerbs.log)
    asessions = twin(StoreVerbs.sessions)
    afork = twin(StoreVerbs.fork)
    arewind = twin(StoreVerbs.rewind)
    arename = twin(StoreVerbs.rename)
    adelete_session = twin(StoreVerbs.delete_session)
    aenter_queue = twin(StoreVerbs.enter_queue)
    aleave_queue = twin(StoreVerbs.leave_queue)
    aqueue = twin(StoreVerbs.queue)
    aexport_session = twin(StoreVerbs.export_session)
    aimport_session = twin(StoreVerbs.import_session)
    aprune = twin(StoreVerbs.prune)
    astats = twin(StoreVerbs.stats)
    acheck = twin(StoreVerbs.check)

    async def aclose(self) -> None:
        """Async twin of `close`, which ends the store's threads and so cannot run in one."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)
