"""Takes from several asynchronous iterators as they give, in one loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def merged(sources: Sequence[AsyncIterator[T]]) -> AsyncGenerator[tuple[int, T]]:
    """Yields what sources give, each with its source's place, until all have ended.

    What one of them raises ends it; the others are left, and closing them is for whoever has them.

    Args:
        sources: Asynchronous iterators.
    """
    if len(sources) == 1:
        async for each in sources[0]:
            yield 0, each
        return
    waiting = {asyncio.ensure_future(_next(each)): place for place, each in enumerate(sources)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=waiting.__getitem__):
                place = waiting.pop(task)
                for each in task.result():
                    waiting[asyncio.ensure_future(_next(sources[place]))] = place
                    yield place, each
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _next(source: AsyncIterator[T]) -> tuple[T, ...]:
    """Returns the next, or nothing at the end: a task cannot raise `StopAsyncIteration`."""
    async for each in source:
        return (each,)
    return ()
