"""Lists a store's verbs: in the blocking form that an implementation writes, and as coroutines.

Promises, with no policy and no storage. Do not take `stage` for `put`: a staged state is this
process's for a short while, and is stored only when something commits or keeps it. The async twin
of a verb is the verb itself on a thread of the store's own: what blocks, blocks there and never the
event loop, and a busy store cannot use up the loop's default executor. A cancelled twin's thread
runs to its end, and a commit in it may have happened: who has to know uses `to_its_end`.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from langchain_rwkv_state._fork import ForkLock
from langchain_rwkv_state.store.clock import TTL
from langchain_rwkv_state.store.records import (
    CheckReport,
    LogEntry,
    QueuedTurn,
    SessionInfo,
    StoreStats,
)

if TYPE_CHECKING:
    from langchain_rwkv_state.state import RWKVState


class StoreVerbs(ABC):
    """Keeps states and sessions."""

    # -- states ------------------------------------------------------------------------------

    @abstractmethod
    def put(self, state: RWKVState, *, ttl: TTL = None) -> str:
        """Stores a state durably for `ttl` and returns its reference.

        The first bytes stored under a reference stay; putting again renews the time to live, and
        so does reading the state in a store that slides.

        Raises:
            StateCorrupt: It holds NaN or infinity: the model that made it overflowed.
            StoreFull: The size limit or the disk leaves no room.
        """

    @abstractmethod
    def stage(
        self, state: RWKVState, *, parent: str | None = None, tokens: Sequence[int] = ()
    ) -> str:
        """Keeps a state for a quarter of an hour, for whoever commits it; returns its reference.

        It is held by this process, for all that use the same store in it: in memory, and where that
        is full in files beside the store.

        Args:
            state: The state.
            parent: Reference of the state that it was read from.
            tokens: The ids read since the parent; stored only with ``log="tokens"``.

        Raises:
            StateCorrupt: It holds NaN or infinity: the model that made it overflowed.
            StateNotFound: `parent` was redacted meanwhile.
        """

    @abstractmethod
    def get(self, ref: str, *, renew: bool = True) -> RWKVState:
        """Returns a stored or staged state.

        Args:
            ref: Its reference.
            renew: Whether this counts as a use, from which the time to live of what was put and
                kept starts anew in a store that slides; ``False`` only looks.

        Raises:
            StateExpired: Its time to live ran out less than a week ago, or it was staged and
                nothing stored it in time.
            StateNotFound: It is not here (never was, or was deleted).
            StateCorrupt: Its bytes were changed; the message says whose it is and what mends it.
        """

    @abstractmethod
    def descends(self, later: str, earlier: str) -> bool:
        """Says whether one state was read on from another, as far as this store knows.

        Args:
            later: A reference.
            earlier: The reference that `later` may have been read from, in any number of turns.
        """

    @abstractmethod
    def keep(self, ref: str, owner: str, ttl: TTL = None) -> None:
        """Holds a state (durably) for an owner, such as ``thread:42``, without moving any head.

        In a store that slides it is a use of all that the owner keeps: their times to live start
        anew, each once a tenth of it has passed.

        Raises:
            StateNotFound, StateExpired, StoreFull: As `get` and `put`.
        """

    @abstractmethod
    def kept(self, owner: str) -> list[str]:
        """Returns the references of all that an owner keeps, in the order they were stored in.

        It is no use of them: no time to live starts anew.

        Raises:
            StateCorrupt: What is noted of one was changed.
        """

    @abstractmethod
    def copy_kept(self, owner: str, new_owner: str, ttl: TTL = None) -> int:
        """Holds all that an owner keeps for another owner, too: all of it or nothing.

        It is to states what a checkpointer's ``copy_thread`` is to a thread, as `release` is what
        ``delete_thread`` is.

        Args:
            owner: Who keeps them; nobody by that name is somebody who keeps nothing.
            new_owner: Who keeps them then, beside what it kept before.
            ttl: Their times to live from now on; ``None`` for those that they have with `owner`.

        Returns:
            How many states that were.

        Raises:
            StoreFull: No room.
        """

    @abstractmethod
    def release(self, owner: str) -> int:
        """Lets go of all that an owner keeps; returns how many states that were."""

    # -- sessions ----------------------------------------------------------------------------

    @abstractmethod
    def head(self, session: str) -> str | None:
        """Returns the reference of a session's state; ``None`` if new, deleted or expired."""

    @abstractmethod
    def session(self, session: str, *, renew: bool = True) -> SessionInfo | None:
        """Returns a session as it stands; ``None`` if new, deleted or expired.

        Args:
            session: Its name.
            renew: Whether this counts as a use of it, from which a sliding time to live starts
                anew; ``False`` only looks.
        """

    @abstractmethod
    def commit(
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
        """Moves a session's head from `parent` to `ref`, durably, or not at all.

        Args:
            session: Its name: 1 to 512 characters.
            ref: A stored or staged state.
            parent: The head that the caller saw; ``None`` for a new session.
            ttl: The session's time to live from now on; ``None`` leaves it (or the default).
            sliding: Whether the time to live starts anew at each commit and read; ``None``
                leaves it (or the default).
            unread_covered: How many of the oldest unread messages `ref` covers: these go.
            said: Short digests of the messages that `ref` covers and `parent` does not, for the
                log.
            place: The token of the caller's place in the queue, which it leaves with the commit.

        Raises:
            SessionConflict: The head is not `parent`; or the caller's place in the queue ran out,
                and another's turn began.
            StateNotFound, StateExpired: `ref` names no state.
            StoreFull: No room; the old head stays, readable.
        """

    @abstractmethod
    def create_session(self, session: str, ttl: TTL = None) -> None:
        """Makes a session that has read nothing yet, so that it is there before its first turn.

        A commit of a first turn needs none. This is for names that are given out: one that is not
        there any more was deleted, or ran out, and does not begin anew unnoticed.

        Args:
            session: Its name: 1 to 512 characters.
            ttl: Its time to live; ``None`` for the store's default.

        Raises:
            SessionConflict: There is such a session; it stays as it is.
            StoreFull: No room.
        """

    @abstractmethod
    def append_unread(self, session: str, messages: Sequence[str], ttl: TTL = None) -> None:
        """Keeps messages (JSON texts) behind whatever head the session has now.

        Raises:
            ValueError: One is no JSON that every store takes in, or is a state marker.
            StoreFull: No room, or more unread messages than a bundle holds; what was there stays.
        """

    @abstractmethod
    def log(self, session: str) -> list[LogEntry]:
        """Returns up to 100 steps behind and with the head, newest first."""

    @abstractmethod
    def sessions(self, prefix: str = "") -> list[str]:
        """Returns the names of the living sessions, sorted; of those that are damaged, too."""

    @abstractmethod
    def fork(self, session: str, new_session: str, at: str | None = None) -> str:
        """Gives a state of `session` (its head, or `at`) a second name; returns the reference.

        Raises:
            SessionConflict: `new_session` exists.
            StateNotFound: `session` or the state is not here.
        """

    @abstractmethod
    def rewind(self, session: str, turns: int = 1, to: str | None = None) -> str | None:
        """Moves a head back by `turns`, or to the reference `to`; returns the new head.

        Returns:
            The new head; ``None`` where the session was rewound to before its first turn.

        Raises:
            StateNotFound: The log does not reach so far, or that state is no longer kept (a
                store with a larger `history` keeps more).
        """

    @abstractmethod
    def rename(self, session: str, new_session: str) -> None:
        """Gives a session another name, with all that it has, at one stroke.

        Log, unread messages, states and time to live move along; the old name is that of no session
        then. It is no use of the session: its times stay as they are. Whoever still speaks of the
        old name begins a new session, so a turn that is under way, or waits, keeps both names.

        Raises:
            StateNotFound: There is no such session.
            SessionConflict: A session of the new name exists, or a turn of either is in its queue.
        """

    @abstractmethod
    def delete_session(self, session: str) -> bool:
        """Deletes a session and the states that nothing else needs; says whether it existed."""

    # -- the queue of a session's turns ------------------------------------------------------

    @abstractmethod
    def enter_queue(self, session: str, token: str, seconds: float) -> int:
        """Takes a place at the end of a session's queue, or renews the place that a token has.

        A place is lost that was not renewed in time; it takes a new one at the end then. A session
        need not exist to have a queue.

        Args:
            session: Its name.
            token: The caller's own, which nobody else knows.
            seconds: How long the place holds from now on.

        Returns:
            How many turns stand before it; at 0 the turn may begin.
        """

    @abstractmethod
    def leave_queue(self, session: str, token: str) -> bool:
        """Gives a place up; says whether there was one. A commit that names it does the same."""

    @abstractmethod
    def queue(self, session: str) -> list[QueuedTurn]:
        """Returns the turns that have a place in a session's queue, the one that runs first."""

    # -- bundles -----------------------------------------------------------------------------

    @abstractmethod
    def export_session(
        self, session: str, path: str | os.PathLike[str], *, tokens: bool = False
    ) -> None:
        """Writes a session to a file, a bundle, that another store can take in.

        It is a copy: log, unread messages, times, and all states of the log that are stored. The
        session stays as it is, and its time to live goes on.

        Args:
            session: A living session.
            path: A new file, by custom ``.zip``; it is for its owner alone.
            tokens: Whether the token ids go along that a store with ``log="tokens"`` keeps. By
                default they do not: they are a transcript, and a bundle is made to be given away.

        Raises:
            StateNotFound: There is no such session.
            StateCorrupt: One of its states or rows was changed.
            ValueError: No token ids of it are kept, or its log is too large for a bundle.
            FileExistsError: The file is there already.
            OSError: The file could not be written; nothing is left of it.
        """

    @abstractmethod
    def import_session(
        self, path: str | os.PathLike[str], session: str | None = None, *, ttl: TTL = None
    ) -> SessionInfo:
        """Takes in a session that `export_session` wrote, all of it or nothing.

        Its states have other references here: the same derivation under this store's secret. Log
        entries without a state keep the name that the other store gave them, which names nothing
        here. Token ids are taken in only with ``log="tokens"``. All states that came are kept until
        the next commit, which leaves as many as this store's `history` says.

        Args:
            path: The bundle.
            session: A name that is new here; ``None`` for the one in the bundle.
            ttl: The session's time to live from now on. ``None`` leaves it: a sliding one starts
                anew, a fixed one ends when it would have ended.

        Returns:
            The session as it stands, with its name and its head.

        Raises:
            StateCorrupt: A byte of the bundle was changed, or it is of a later version.
            SessionConflict: A session of that name exists.
            StateExpired: The session is a fixed one and its time is over: give a `ttl`.
            StoreFull: No room.
        """

    # -- upkeep ------------------------------------------------------------------------------

    @abstractmethod
    def prune(self) -> int:
        """Removes what has expired, in batches; returns how many sessions and states went."""

    @abstractmethod
    def stats(self) -> StoreStats:
        """Counts what is stored."""

    @abstractmethod
    def check(self, *, fix: bool = False) -> CheckReport:
        """Verifies every row and file as they stand at one moment, also beside writers.

        Args:
            fix: Whether to mend: sessions whose heads are damaged go back to their newest whole
                state, the damaged files are put aside, and what nothing can use is removed.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes the store; safe to call twice."""


P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")
_THREADS = 4  # each opens a database connection of its own


class Threads:
    """An executor that is made at first use, and anew in a forked child."""

    def __init__(self) -> None:
        self._lock = ForkLock(self._forked)
        self._made: ThreadPoolExecutor | None = None

    def get(self) -> ThreadPoolExecutor:
        """Returns this process's executor."""
        with self._lock:
            if self._made is None:
                self._made = ThreadPoolExecutor(_THREADS, thread_name_prefix="rwkv-state-store")
            return self._made

    def close(self) -> None:
        """Ends the threads once they have done what they were given."""
        made, self._made = self._made, None
        if made is not None:
            made.shutdown(wait=False)

    def _forked(self) -> None:
        """In a forked child: the threads are the parent's."""
        self._made = None


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
    akept = twin(StoreVerbs.kept)
    acopy_kept = twin(StoreVerbs.copy_kept)
    arelease = twin(StoreVerbs.release)
    ahead = twin(StoreVerbs.head)
    asession = twin(StoreVerbs.session)
    acommit = twin(StoreVerbs.commit)
    acreate_session = twin(StoreVerbs.create_session)
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
