"""How what is read one after the other comes to be of one moment, and a change to be of one step.

A look or a transaction reads and decides here; then Redis is asked whether all that was read still
stands, and only if it does is the look believed, or all that is to be written written. Else it runs
anew: one of those who compete always gets through, and nobody holds a lock that a killed process
would leave. What reads too much for that, such as a check of a large store, goes by the number of
writes, and where somebody always writes it has the writers wait, for seconds at most from its last
sign of life. The easy mistake is to believe what a transaction raises: it may have read one row
before another's turn and one behind it.
"""

from __future__ import annotations

import logging
import math
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.store.redis import functions
from langchain_rwkv_state.store.redis.connect import CONNECT_SECONDS, RESENDS, errors
from langchain_rwkv_state.store.redis.functions import APPLY, FREE, NAMES, STAND, Op
from langchain_rwkv_state.store.redis.keys import Keys, row_place
from langchain_rwkv_state.store.redis.space import Space, TooMuch
from langchain_rwkv_state.store.redis.tables import PAGE
from langchain_rwkv_state.store.rows import META

if TYPE_CHECKING:
    from redis import Redis

logger = logging.getLogger("langchain_rwkv_state.store")

T = TypeVar("T")
Work = Callable[[Space], T]
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.0005, 0.05
_LOOKS = 8
_MOST = 5000  # commands that are looked at again at once: Redis does nothing else for 50 ms
_STILL_SECONDS = 5.0
_STILLS = 3
_LEAST_REMEMBERED_SECONDS = 600
_NOBODY = b"-"


class Moments:
    """Looks and transactions on one tenant's keys.

    Args:
        client: A connection.
        keys: What the tenant's keys are called.
        timeout_seconds: How long to try where others write the same.

    Attributes:
        closed: Whether nothing is to be run any more.
        replaced: Whether another store was found in the place of the one that was opened.
    """

    def __init__(self, client: Redis, keys: Keys, timeout_seconds: float) -> None:
        self._client = client
        self._keys = keys
        self._timeout = timeout_seconds
        self._at_work = threading.local()
        self._same: dict[Op, Any] = {}
        self.closed = False
        self.replaced = False

    # -- spaces ----------------------------------------------------------------------------------

    @property
    def at_work(self) -> Space | None:
        """What the look or transaction of this thread sees, if it is in one."""
        found: Space | None = getattr(self._at_work, "space", None)
        return found

    def view(self) -> Space:
        """Returns what sees things as they are, each at its own moment."""
        return Space(self._keys, self.run, self._page, self._sure)

    def run(self, ops: Sequence[Op]) -> list[Any]:
        """Runs commands and returns their replies as Redis gives them.

        Raises:
            StoreError: The store is closed, or the server cannot be reached.
        """
        self._require_open()
        with errors():
            if len(ops) == 1:
                return [self._client.execute_command(*ops[0])]  # type: ignore[no-untyped-call]
            pipeline = self._client.pipeline(transaction=False)
            for op in ops:
                pipeline.execute_command(*op)  # type: ignore[no-untyped-call]
            return list(pipeline.execute())

    def _page(self, low: bytes, high: bytes) -> list[tuple[bytes, bytes | None, bytes | None]]:
        self._require_open()
        args = (low, high, PAGE)
        found = functions.call(self._client, NAMES, self._keys.base, args, reads=True)
        return [(each[0], each[1], each[2]) for each in found]

    def _require_open(self) -> None:
        if self.closed:
            raise StoreError("The store is closed: open it again to use it.")

    # -- the same store --------------------------------------------------------------------------

    def bind(self, folder: str | None, is_known: Callable[[Any], bool]) -> None:
        """Has all changes from now on made sure that the store is the one that was opened.

        A server that lost all it had is an empty store, in which whoever comes first makes a new
        secret and a new folder: what a process wrote that goes by the old ones, nobody could read.

        Args:
            folder: The name of the folder of large states, ``None`` where none is used.
            is_known: Says whether the row of the secret is the one that was read before.

        Raises:
            StoreError: It is another store by now.
        """
        if self._same:
            return
        about = (b"HGET", *row_place(self._keys, META, (b"about",)))
        same: dict[Op, Any] = {about: self.run([about])[0]}
        if folder is not None:
            same[b"GET", self._keys.folder.encode()] = folder.encode()
        if not is_known(same[about]) or self.run(list(same)) != list(same.values()):
            raise StoreError(_REPLACED)
        self._same = same

    def _require_same(self) -> None:
        """Makes sure that a change was not refused because the store is another one.

        Raises:
            StoreError: It is.
        """
        for _ in range(_LOOKS):
            if self.run(list(self._same)) == list(self._same.values()):
                return
            parts = (self._keys.totals, self._keys.names, self._keys.states, self._keys.meta)
            empty: dict[Op, Any] = {(b"EXISTS", key): 0 for key in (*parts, *self._marks())}
            if self.run(list(empty)) != list(empty.values()):
                break
            self._put_back(empty)
        self.replaced = True
        raise StoreError(_REPLACED)

    def _marks(self) -> list[bytes]:
        return [op[1] for op in self._same]

    def _put_back(self, empty: dict[Op, Any]) -> None:
        """Gives a store that lost everything its secret and its folder again."""
        space = Space(self._keys, self.run, self._page)
        for op, value in self._same.items():
            space.also(b"HSET" if op[0] == b"HGET" else b"SET", *op[1:], value)
        if self._applied(space, _NOBODY, space.seen(empty), freeing=False):
            logger.warning(
                "Redis has lost all that the store %s held (it came back empty, or all was "
                "deleted): its sessions are gone, and it goes on with the secret that it had.",
                self._keys.base.decode(),
            )

    # -- looks and transactions ------------------------------------------------------------------

    def look(self, work: Work[T]) -> T:
        """Runs `work`, which reads all as it stood at one moment; it may run anew."""
        for _ in range(_LOOKS):
            space, outcome = self._tried(work)
            if outcome.is_too_much:
                break
            if space.is_one or self._stands(space):
                return outcome.taken()
        return self._still(work, lambda *_: True)

    def _sure(self, work: Work[Any]) -> Any:
        """Runs a look for a view; that something is gone is believed only as of one moment."""
        space, outcome = self._tried(work)
        found = outcome.is_there and outcome.taken() is not False
        if found or (not outcome.is_too_much and (space.is_one or self._stands(space))):
            return outcome.taken()
        return self.look(work)

    def transact(self, work: Work[T], *, freeing: bool) -> T:
        """Runs `work`, and writes what it came to if all that it read still stands; else anew.

        Args:
            work: Reads, and has its space note what is to be written.
            freeing: Whether it makes room.

        Raises:
            StoreError: Nothing came of it within the timeout.
        """
        deadline = time.monotonic() + self._timeout
        pause = _FIRST_PAUSE_SECONDS
        while True:
            space, outcome = self._tried(work)
            if outcome.is_too_much:
                return self._still(
                    work, lambda still, token: self._written(still, token, freeing=freeing)
                )
            if not outcome.is_there or not space.is_changed:
                if space.is_one or self._stands(space):
                    return outcome.taken()
            elif self._applied(space, _NOBODY, self._seen(space), freeing=freeing):
                return outcome.taken()
            else:
                self._require_same()
            if time.monotonic() > deadline:
                raise StoreError(
                    f"Others write the same so often that nothing came of {self._timeout:.0f} "
                    "seconds of trying: try again."
                )
            time.sleep(random.uniform(0, pause))  # noqa: S311 # so that two do not meet again
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _tried(self, work: Work[T]) -> tuple[Space, _Outcome[T]]:
        space = Space(self._keys, self.run, self._page, most=_MOST)
        with self._working(space):
            return space, _Outcome(work, space)

    @contextmanager
    def _working(self, space: Space) -> Iterator[None]:
        """Has views that are made meanwhile see what `space` sees."""
        before = self.at_work
        self._at_work.space = space
        try:
            yield
        finally:
            self._at_work.space = before

    def _stands(self, space: Space) -> bool:
        """Says whether all that was read is still as it was read."""
        args = space.seen()
        return bool(functions.call(self._client, STAND, self._keys.base, args, reads=True))

    def _applied(self, space: Space, token: bytes, seen: Sequence[bytes], *, freeing: bool) -> bool:
        """Writes what a space notes; says whether what was `seen` still stood."""
        self._require_open()
        limit = b"-" if space.limit is None else b"%d" % space.limit
        call = secrets.token_hex(16).encode()
        known = b"%d" % remembered_seconds(self._timeout)
        args = [call, token, limit, b"%d" % space.growth, known, *seen, *space.written()]
        name = FREE if freeing else APPLY
        return bytes(functions.call(self._client, name, self._keys.base, args)) == b"done"

    # -- where much is read ----------------------------------------------------------------------

    def _still(self, work: Work[T], then: Callable[[Space, bytes], bool]) -> T:
        """Runs `work` while nobody writes: where somebody does, the others wait the next time.

        Args:
            work: Reads, and notes what is to be written.
            then: Writes it, with the token of who makes the others wait; says whether it could.
        """
        for number in range(_STILLS):
            with self._writers_wait() if number else nullcontext(_NOBODY) as token:

                def run(ops: Sequence[Op], token: bytes = token) -> list[Any]:
                    if token == _NOBODY:
                        return self.run(ops)
                    again = (b"PEXPIRE", self._keys.pause, b"%d" % (_STILL_SECONDS * 1000))
                    return self.run([*ops, again])[:-1]

                space = Space(self._keys, run, self._page)
                version = self._version()
                with self._working(space):
                    outcome = _Outcome(work, space)
                space.only_saw(version)
                if self._stands(space) and (not outcome.is_there or then(space, token)):
                    return outcome.taken()
        raise StoreError(
            "Others write so often that the store could not be read as of one moment: try again."
        )

    def _written(self, space: Space, token: bytes, *, freeing: bool) -> bool:
        if not space.is_changed:
            return True
        if self._applied(space, token, self._seen(space), freeing=freeing):
            return True
        self._require_same()
        return False

    def _seen(self, space: Space) -> list[bytes]:
        """Returns what must stand for a change: all that it read, and that the store is ours."""
        return space.seen(self._same)

    def _version(self) -> tuple[Op, Any]:
        op = (b"HGET", self._keys.totals, b"version")
        return op, self.run([op])[0]

    @contextmanager
    def _writers_wait(self) -> Iterator[bytes]:
        """Has whoever writes wait, as long as something is read once in a few seconds."""
        token = secrets.token_hex(16).encode()
        take = (b"SET", self._keys.pause, token, b"NX", b"PX", b"%d" % (_STILL_SECONDS * 1000))
        deadline = time.monotonic() + self._timeout
        while not self.run([take])[0]:
            if time.monotonic() > deadline:
                raise StoreError("Another process holds up all that write here: try again.")
            time.sleep(_LONGEST_PAUSE_SECONDS)
        try:
            yield token
        finally:
            own = Space(self._keys, self.run, self._page)
            own.only_saw(((b"GET", self._keys.pause), token))
            own.also(b"DEL", self._keys.pause)
            self._applied(own, token, own.seen(), freeing=True)


_REPLACED = (
    "Redis holds another store by now than the one that was opened: what it had was lost or "
    "deleted, wholly or its secret or folder alone. Nothing was changed; close the store and open "
    "it again."
)


def remembered_seconds(timeout_seconds: float) -> int:
    """Returns how long a call's id is known: longer than redis-py may yet send the call again.

    Args:
        timeout_seconds: How long an answer is waited for, each time that it is sent.
    """
    again = RESENDS * (timeout_seconds + CONNECT_SECONDS)
    return max(_LEAST_REMEMBERED_SECONDS, math.ceil(2 * again))


class _Outcome(Generic[T]):
    """What came of a try: a value, or what it raised because of what it read.

    Args:
        work: What is tried.
        space: What it sees.

    Attributes:
        is_there: Whether nothing was raised.
        is_too_much: Whether it read too much.
    """

    def __init__(self, work: Work[T], space: Space) -> None:
        self._error: Exception | None = None
        try:
            self._value = work(space)
        except Exception as error:  # noqa: BLE001 # half of what it read may be another's
            self._error = error
        self.is_too_much = isinstance(self._error, TooMuch)
        self.is_there = self._error is None

    def taken(self) -> T:
        """Returns the value, or raises what was raised."""
        if self._error is not None:
            raise self._error
        return self._value
