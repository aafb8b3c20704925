"""Waking event loops: once a step each, and at once where there is no step."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from langchain_rwkv_state.engine import Delta, Engine, Request, RequestHandle
from langchain_rwkv_state.engine.wakeups import gathered
from tests.helpers.scripted import GREEDY, WORLD
from tests.helpers.watch import wait_until


def counted(loop: asyncio.AbstractEventLoop) -> list[object]:
    """Notes each time that a loop is woken from another thread."""
    calls: list[object] = []
    call = loop.call_soon_threadsafe

    def note(*args: Any, **more: Any) -> Any:
        calls.append(args)
        return call(*args, **more)

    setattr(loop, "call_soon_threadsafe", note)  # noqa: B010
    return calls


def test_a_crowd_is_woken_at_once(runtime):
    engine = Engine(runtime, WORLD, slots=16)
    steps = 20

    async def take(handle: RequestHandle) -> int:
        return sum([isinstance(event, Delta) async for event in handle])

    async def crowd() -> tuple[list[int], int]:
        calls = counted(asyncio.get_running_loop())
        requests = [
            Request(runtime.zero_state(), [n], max_tokens=steps, sampling=GREEDY, strip=False)
            for n in range(16)
        ]
        for n in range(16):
            runtime.script([n], WORLD.encode(" word") * steps)
        handles = [engine.submit(request) for request in requests]
        return await asyncio.gather(*map(take, handles)), len(calls)

    deltas, woken = asyncio.run(crowd())
    engine.close()
    assert deltas == [steps] * 16
    # Once for what ended as ids were read, and once for what was chosen.
    assert woken <= 2 * engine.stats().steps < 16 * steps


def test_each_token_is_at_hand_before_the_next_step(runtime):
    engine = Engine(runtime, WORLD)
    runtime.script([1], WORLD.encode(" word") * 5)
    seen: list[int] = []
    taken = threading.Semaphore(0)

    def wait(ids: Any) -> None:
        if seen or ids != (1,):
            assert taken.acquire(timeout=60)

    runtime.before_forward = wait

    async def take() -> None:
        request = Request(runtime.zero_state(), [1], max_tokens=5, sampling=GREEDY, strip=False)
        async for event in engine.submit(request):
            if isinstance(event, Delta):
                seen.append(len(runtime.calls))
                taken.release()

    asyncio.run(take())
    runtime.before_forward = None
    engine.close()
    assert seen == sorted(seen)
    assert len(seen) == 5


def test_two_loops_are_woken_each_at_the_end_of_a_step_and_else_at_once():
    worker = threading.local()
    handles, woken = [RequestHandle(worker) for _ in range(2)], []

    async def take(handle: RequestHandle) -> None:
        async for event in handle:
            woken.append(event)

    threads = [
        threading.Thread(target=lambda each=each: asyncio.run(take(each))) for each in handles
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(handle._waiters for handle in handles))
    with gathered(worker):
        for handle in handles:
            handle.put(Delta("a"))
        assert woken == []
    wait_until(lambda: len(woken) == 2)
    for handle in handles:
        handle.cancel()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_a_loop_that_was_closed_harms_nobody():
    worker, dead = threading.local(), asyncio.new_event_loop()
    handle = RequestHandle(worker)
    handle._waiters.append((dead, dead.create_future()))
    dead.close()
    with gathered(worker):
        handle.put(Delta("a"))
    assert handle._events


def test_what_a_step_that_fails_has_brought_is_still_handed_over(runtime):
    engine = Engine(runtime, WORLD, prefill_chunk=1024)
    runtime.script([1], WORLD.encode(" word") * 3)

    def fail(ids: Any) -> None:
        if len(runtime.calls) == 3:
            raise RuntimeError("lost")

    runtime.before_forward = fail

    async def take() -> list[str]:
        said = []
        request = Request(runtime.zero_state(), [1], max_tokens=9, sampling=GREEDY, strip=False)
        try:
            async for event in engine.submit(request):
                said.append(event.text)
        except Exception as error:
            said.append(str(error))
        return said

    assert asyncio.run(take()) == [" word", " word", "The request failed: RuntimeError: lost"]
    runtime.before_forward = None
    engine.close()
