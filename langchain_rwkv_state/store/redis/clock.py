"""The time that all processes of a store in Redis go by: that of the server.

Two machines may disagree on what time it is, and a place in a queue that one gave for 15 seconds
must not be over for the other. The server is asked once a second at most; in between this process's
steady clock goes on from its answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_rwkv_state._fork import ForkLock
from langchain_rwkv_state.store.clock import steady_seconds
from langchain_rwkv_state.store.redis.connect import errors

if TYPE_CHECKING:
    from redis import Redis

_ASK_SECONDS = 1.0


class ServerClock:
    """Gives the server's Unix time.

    Args:
        client: A connection to it.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._lock = ForkLock()
        self._asked: float | None = None
        self._ahead = 0.0

    def __call__(self) -> float:
        """Returns the time.

        Raises:
            StoreError: The server cannot be reached.
        """
        now: float = steady_seconds()
        with self._lock:
            asked, ahead = self._asked, self._ahead
        if asked is not None and now - asked < _ASK_SECONDS:
            return now + ahead
        with errors():
            told: Any = self._client.time()
        after = steady_seconds()
        ahead = float(told[0] + told[1] / 1e6) - (now + after) / 2  # it answered about half-way
        with self._lock:
            self._asked, self._ahead = after, ahead
        return after + ahead
