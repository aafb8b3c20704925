"""What was cancelled commits nothing; a commit that was under way is told as what it came to."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from langchain_rwkv_state.errors import DeadlineExceeded, SessionConflict
from langchain_rwkv_state.prompt.markers import STATE_KEY

LONG = [HumanMessage("The weather is fine today. " * 4000)]
SHORT = [HumanMessage("The weather is fine today.")]


@pytest.fixture
def chat(make_chat):
    made = make_chat(7, prefix_cache=False)
    made.loaded()
    return made


def quiet(chat) -> None:
    """Waits until the engine has nothing to do."""
    end = time.monotonic() + 20
    engine = chat.loaded().engine
    while engine.stats().active or engine.stats().queued:
        assert time.monotonic() < end
        time.sleep(0.01)


class Slow:
    """Holds a verb of a store up, once it has begun."""

    def __init__(self, store: Any, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        real = getattr(store, verb)

        def slow(*args: Any, **options: Any) -> Any:
            self.began.set()
            assert self.go_on.wait(20)
            return real(*args, **options)

        monkeypatch.setattr(store, verb, slow)


class TestAPrefillThatIsCancelled:
    @pytest.mark.parametrize("session", ["doc", None])
    async def test_stores_nothing_and_leaves_the_engine(self, chat, store, session):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(chat.aprefill(LONG, session=session), 0.05)
        await asyncio.to_thread(quiet, chat)
        await asyncio.sleep(0.2)
        assert store.session("doc") is None
        assert store.queue("doc") == []
        assert store.stats().states == 0

    async def test_ends_at_once(self, chat):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(chat.aprefill(LONG, session="doc"), 0.05)
        cancelled = time.monotonic() - began
        await chat.aprefill(LONG, session="doc")
        whole = time.monotonic() - began - cancelled
        assert cancelled < whole / 2

    async def test_is_read_once_by_its_retry(self, chat, store):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(chat.aprefill(LONG, session="doc"), 0.05)
        ref = await chat.aprefill(LONG, session="doc")
        assert ref == store.head("doc") == chat.prefill(LONG)

    async def test_as_it_is_committed_is_committed_and_says_so(self, chat, store, monkeypatch):
        slow = Slow(store, "commit", monkeypatch)
        task = asyncio.create_task(chat.aprefill(SHORT, session="doc"))
        await asyncio.to_thread(slow.began.wait, 20)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        slow.go_on.set()
        assert await task == store.head("doc")

    async def test_as_it_is_put_is_put_and_says_so(self, chat, store, monkeypatch):
        slow = Slow(store, "put", monkeypatch)
        task = asyncio.create_task(chat.aprefill(SHORT))
        await asyncio.to_thread(slow.began.wait, 20)
        task.cancel()
        slow.go_on.set()
        assert store.get(await task).n_tokens > 0

    async def test_as_its_commit_fails_says_why(self, chat, store, monkeypatch):
        chat.prefill(SHORT, session="other")
        slow = Slow(store, "commit", monkeypatch)
        task = asyncio.create_task(chat.aprefill(SHORT, session="doc"))
        await asyncio.to_thread(slow.began.wait, 20)
        store.fork("other", "doc")
        task.cancel()
        slow.go_on.set()
        with pytest.raises(SessionConflict):
            await task
        assert store.queue("doc") == []

    async def test_was_on_no_thread_that_others_need(self, chat):
        """A loop whose executor has one thread can use it while a long text is read."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        reading = asyncio.create_task(chat.aprefill(LONG, session="doc"))
        while not chat.loaded().engine.stats().active:  # noqa: ASYNC110 # no event tells
            await asyncio.sleep(0.005)
        assert await asyncio.to_thread(lambda: "free") == "free"
        assert not reading.done()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading


class TestATimeout:
    @pytest.fixture
    def impatient(self, make_chat):
        made = make_chat(7, prefix_cache=False, timeout=0.05)
        made.loaded()
        return made

    def test_of_the_model_holds_for_prefill(self, impatient, store):
        for session in ("doc", None):
            with pytest.raises(DeadlineExceeded):
                impatient.prefill(LONG, session=session)
        assert store.sessions() == []
        assert store.queue("doc") == []
        assert store.stats().states == 0

    async def test_of_the_model_holds_for_aprefill(self, impatient, store):
        with pytest.raises(DeadlineExceeded):
            await impatient.aprefill(LONG, session="doc")
        assert store.sessions() == []

    async def test_of_the_call_holds_too(self, chat, impatient, store):
        with pytest.raises(DeadlineExceeded):
            chat.prefill(LONG, timeout=0.05)
        with pytest.raises(DeadlineExceeded):
            await chat.aprefill(LONG, session="doc", timeout=0.05)
        assert impatient.prefill(SHORT, timeout=20)

    def test_holds_for_the_wait_for_the_turns_before(self, chat, store):
        store.enter_queue("doc", "5" * 32, 15)
        began = time.monotonic()
        with pytest.raises(SessionConflict, match="1 turn before"):
            chat.prefill(SHORT, session="doc", timeout=0.1)
        assert time.monotonic() - began < 5


class TestATurnThatIsCancelled:
    async def test_as_it_is_answered_is_not_committed(self, make_chat, store):
        chat = make_chat(7, max_tokens=100_000, presence_penalty=0, frequency_penalty=0)
        task = asyncio.create_task(chat.with_session("bob").ainvoke("Hello."))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(quiet, chat)
        assert store.sessions() == []
        assert store.queue("bob") == []

    async def test_as_it_is_streamed_is_not_committed(self, make_chat, store):
        chat = make_chat(7, max_tokens=100_000, presence_penalty=0, frequency_penalty=0)

        async def read() -> None:
            async for _ in chat.with_session("bob").astream("Hello."):
                pass

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(), 0.1)
        await asyncio.to_thread(quiet, chat)
        assert store.sessions() == []
        assert store.queue("bob") == []

    @pytest.mark.parametrize("how", ["ainvoke", "astream"])
    async def test_as_it_is_committed_is_told_whole(self, chat, store, monkeypatch, how):
        bob = chat.with_session("bob")

        async def turn() -> str:
            if how == "ainvoke":
                return str((await bob.ainvoke("Hello.")).response_metadata[STATE_KEY])
            chunks = [chunk async for chunk in bob.astream("Hello.")]
            return str(chunks[-1].response_metadata[STATE_KEY])

        slow = Slow(store, "commit", monkeypatch)
        task = asyncio.create_task(turn())
        await asyncio.to_thread(slow.began.wait, 20)
        task.cancel()
        slow.go_on.set()
        assert await task == store.head("bob")
        assert store.queue("bob") == []

    async def test_before_its_commit_began_is_not_committed(self, chat, store, monkeypatch):
        busy = [Slow(store, "stats", monkeypatch)]
        held = [asyncio.create_task(store.astats()) for _ in range(4)]
        await asyncio.to_thread(busy[0].began.wait, 20)
        # All of the store's threads are busy: the first thing that a turn asks for has to wait.
        task = asyncio.create_task(chat.with_session("bob").ainvoke("Hello."))
        await asyncio.sleep(0.05)
        task.cancel()
        busy[0].go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.gather(*held)
        assert store.sessions() == []
        assert store.queue("bob") == []


async def test_to_its_end_tells_what_came_of_a_verb(store):
    assert await store.to_its_end("head", "bob") is None
    with pytest.raises(ValueError, match="name"):
        await store.to_its_end("head", "")
