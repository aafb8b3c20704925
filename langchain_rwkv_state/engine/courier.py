"""Delivers what takes time to fetch, on a thread of its own, so that no step waits for it.

A state on a card is copied off it beside the next steps, and again into memory that may be kept;
both would hold up everybody else.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Courier:
    """Fetches things and hands them over, in order. The thread starts with the first of them."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def bring(
        self,
        fetch: Callable[[], T],
        hand_over: Callable[[T], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """Fetches something and hands it over, later.

        Args:
            fetch: Waits for it.
            hand_over: Takes it.
            on_failure: Takes what either of them raised.
        """

        def run() -> None:
            try:
                hand_over(fetch())
            except BaseException as error:  # noqa: BLE001 - whoever waits is to be told
                on_failure(error)

        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="rwkv-courier")
        self._pool.submit(run)

    def close(self) -> None:
        """Waits until all is handed over, and ends the thread."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()
