"""Several asynchronous iterators taken as they give."""

import asyncio

import pytest

from langchain_rwkv_state.serve.merging import merged


class Source:
    """Gives what is put in; remembers that it was left."""

    def __init__(self):
        self.queue: asyncio.Queue = asyncio.Queue()
        self.left = False

    async def __aiter__(self):
        try:
            while (each := await self.queue.get()) is not None:
                if isinstance(each, Exception):
                    raise each
                yield each
        finally:
            self.left = True


async def test_what_comes_first_is_given_first():
    one, other = Source(), Source()
    taken = merged([aiter(one), aiter(other)])
    other.queue.put_nowait("b")
    assert await anext(taken) == (1, "b")
    one.queue.put_nowait("a")
    assert await anext(taken) == (0, "a")
    for source in (one, other):
        source.queue.put_nowait(None)
    assert [each async for each in taken] == []


async def test_an_error_of_one_leaves_all():
    one, other = Source(), Source()
    one.queue.put_nowait(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        [each async for each in merged([aiter(one), aiter(other)])]
    assert other.left


@pytest.mark.parametrize("count", [1, 2])
async def test_whoever_is_cancelled_leaves_all(count):
    sources = [Source() for _ in range(count)]

    async def take():
        return [each async for each in merged([aiter(source) for source in sources])]

    task = asyncio.ensure_future(take())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(source.left for source in sources)
