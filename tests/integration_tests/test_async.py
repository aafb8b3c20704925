"""Async calls: the event loop is never blocked, and a cancelled task stops its model."""

import asyncio
import contextlib
import time

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from langchain_rwkv_state import DiskStateStore
from langchain_rwkv_state.prompt.markers import STATE_KEY, marker
from tests.helpers.watch import is_idle, wait_until, watch

ENDLESS = 1_000_000
SLOW_SECONDS = 0.5
TICK_SECONDS = 0.01
TOKEN_SECONDS = 0.02  # slow enough that a task is cancelled in the middle of an answer


@contextlib.asynccontextmanager
async def ticking():
    """Counts how often an event loop comes round."""
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(TICK_SECONDS)

    task = asyncio.create_task(tick())
    try:
        yield ticks
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class TestTheEventLoop:
    async def test_goes_on_during_a_long_prefill(self, chat):
        chat.loaded()
        async with ticking() as ticks:
            began = time.monotonic()
            await chat.ainvoke("word " * 3_000, max_tokens=1)
            took = time.monotonic() - began
        assert len(ticks) >= min(10, took / TICK_SECONDS / 10)

    async def test_goes_on_while_the_model_computes(self, chat):
        watched = watch(chat)
        watched.delay_seconds = SLOW_SECONDS
        async with ticking() as ticks:
            await chat.ainvoke("Hello.", max_tokens=1)
        assert len(ticks) > 5

    async def test_goes_on_while_a_model_loads(self, make_chat, monkeypatch):
        chat = make_chat(7)
        load = type(chat)._hold_model

        def slowly(self):
            time.sleep(SLOW_SECONDS)
            return load(self)

        monkeypatch.setattr(type(chat), "_hold_model", slowly)
        async with ticking() as ticks:
            await chat.ainvoke("Hello.", max_tokens=1)
        assert len(ticks) > 5

    @pytest.mark.parametrize("verb", ["session", "commit", "stage", "get"])
    async def test_goes_on_while_the_store_is_slow(self, make_chat, tmp_path, monkeypatch, verb):
        with DiskStateStore(tmp_path / "states") as store:
            chat = make_chat(7, store=store)
            bob = chat.with_session("bob")
            await bob.ainvoke("Hello.")
            quick = getattr(store, verb)

            def slowly(*args, **kwargs):
                time.sleep(SLOW_SECONDS)
                return quick(*args, **kwargs)

            monkeypatch.setattr(store, verb, slowly)
            async with ticking() as ticks:
                await bob.ainvoke("Again.", max_tokens=1)
            streamed = len(ticks)
            async with ticking() as ticks:
                async for _ in bob.astream("Again.", max_tokens=1):
                    pass
        assert min(streamed, len(ticks)) > 5


class TestCancelling:
    """Decoding stops within a token: the call that runs when the task is cancelled is the last."""

    @pytest.fixture
    def watched(self, chat):
        watched = watch(chat)
        watched.delay_seconds = TOKEN_SECONDS
        return watched

    async def test_a_task_that_invokes(self, chat, watched):
        task = asyncio.create_task(chat.ainvoke("Hello.", max_tokens=ENDLESS))
        await asyncio.to_thread(watched.wait_for_calls, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        calls = len(watched.calls)
        await asyncio.to_thread(wait_until, lambda: is_idle(chat))
        assert len(watched.calls) <= calls + 1

    async def test_a_task_that_streams(self, chat, watched):

        async def stream() -> None:
            async for _ in chat.astream("Hello.", max_tokens=ENDLESS):
                pass

        task = asyncio.create_task(stream())
        await asyncio.to_thread(watched.wait_for_calls, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        calls = len(watched.calls)
        await asyncio.to_thread(wait_until, lambda: is_idle(chat))
        assert len(watched.calls) <= calls + 2

    async def test_a_generator_that_is_closed(self, chat, watched):
        stream = chat.astream("Hello.", max_tokens=ENDLESS)
        async for _ in stream:
            break
        await stream.aclose()
        await asyncio.sleep(0)
        calls = len(watched.calls)
        await asyncio.to_thread(wait_until, lambda: is_idle(chat))
        assert len(watched.calls) <= calls + 2

    async def test_a_long_prefill(self, chat):
        watched = watch(chat, prefill_chunk=16)
        watched.delay_seconds = TOKEN_SECONDS
        task = asyncio.create_task(chat.ainvoke("word " * 5_000))
        await asyncio.to_thread(watched.wait_for_calls, 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_until, lambda: is_idle(chat))
        assert watched.tokens_read < 5_000

    async def test_a_chain(self, chat, watched):
        prompt = ChatPromptTemplate.from_template("{text}")
        chain = prompt | chat.bind(max_tokens=ENDLESS) | StrOutputParser()
        stream = chain.astream({"text": "Hello."})
        async for _ in stream:
            break
        await stream.aclose()
        await asyncio.to_thread(wait_until, lambda: is_idle(chat))
        assert len(watched.calls) < 10_000

    async def test_one_of_two_leaves_the_other(self, chat):
        expected = await chat.ainvoke("Hello.")
        endless = asyncio.create_task(chat.ainvoke("Go on.", max_tokens=ENDLESS))
        await asyncio.sleep(0.05)
        other = asyncio.create_task(chat.ainvoke("Hello."))
        await asyncio.sleep(0.05)
        endless.cancel()
        assert (await other).content == expected.content

    async def test_a_session_leaves_its_head(self, chat, store):
        bob = chat.with_session("bob")
        first = await bob.ainvoke("Hello.")
        head = first.response_metadata[STATE_KEY]
        expected = await chat.ainvoke([marker(head), HumanMessage("Again.")])
        watched = watch(chat)
        watched.delay_seconds = TOKEN_SECONDS
        task = asyncio.create_task(bob.ainvoke("Else.", max_tokens=ENDLESS))
        await asyncio.to_thread(watched.wait_for_calls, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stream = bob.astream("Else.", max_tokens=ENDLESS)
        async for _ in stream:
            break
        await stream.aclose()
        await asyncio.to_thread(wait_until, lambda: is_idle(chat))
        assert store.head("bob") == head
        assert (await bob.ainvoke("Again.")).content == expected.content

    async def test_a_timeout(self, chat, watched):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(chat.ainvoke("Hello.", max_tokens=ENDLESS), timeout=0.3)
        await asyncio.to_thread(wait_until, lambda: is_idle(chat))
        assert len(watched.calls) < 1_000


class TestManyAtOnce:
    async def test_tasks_on_many_sessions_do_not_mix(self, chat, store):
        alone = {}
        for number in range(6):
            session = chat.with_session(f"alone-{number}")
            for text in (f"One {number}.", f"Two {number}."):
                await session.ainvoke(text)
            alone[number] = session.head

        async def converse(number: int) -> None:
            session = chat.with_session(f"at-once-{number}")
            for text in (f"One {number}.", f"Two {number}."):
                await session.ainvoke(text)

        await asyncio.gather(*(converse(number) for number in range(6)))
        assert {n: store.head(f"at-once-{n}") for n in range(6)} == alone

    async def test_two_loops_one_after_another_share_a_model(self, chat):
        def in_a_loop_of_its_own() -> str:
            return str(asyncio.run(chat.ainvoke("Hello.")).content)

        first = await asyncio.to_thread(in_a_loop_of_its_own)
        assert first == await asyncio.to_thread(in_a_loop_of_its_own)
        assert first == (await chat.ainvoke("Hello.")).content
