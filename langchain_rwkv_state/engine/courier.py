"""Hands over what takes time to fetch, on a thread of its own, so that no step waits for it.

A state on a card is copied off it beside the next steps, and then into memory that may be kept:
whoever ends would hold up everybody else.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

T = TypeVar("T")


class Receiver(Protocol):
    """Who waits for what is fetched: a `RequestHandle`."""

    def fail(self, error: BaseException) -> None:
        """Takes what went wrong."""
        ...

    def orphan(self) -> None:
        """Learns, in a forked child, that nothing comes any more."""
        ...


class Courier:
    """Fetches things and hands them over, in order. Its thread starts with the first of them."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: list[Receiver] = []

    def bring(
        self, fetch: Callable[[], T], hand_over: Callable[[T], None], receiver: Receiver
    ) -> None:
        """Fetches something and hands it over, later.

        Args:
            fetch: Waits for it.
            hand_over: Takes it.
            receiver: Learns of what either of them raises.
        """

        def run() -> None:
            try:
                hand_over(fetch())
            except BaseException as error:  # noqa: BLE001 - whoever waits is to be told
                receiver.fail(error)
            self._waiting.remove(receiver)

        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="rwkv-courier")
        self._waiting.append(receiver)
        self._pool.submit(run)

    def close(self, *, wait: bool = True) -> None:
        """Ends the thread once all is handed over; the next thing to fetch starts another.

        Args:
            wait: Whether to wait for that.
        """
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait)

    def orphan(self) -> None:
        """Ends in a forked child, where the thread is not."""
        for receiver in self._waiting:
            receiver.orphan()
        self._pool, self._waiting = None, []
