"""What the prefix cache saves: of one prompt after another, and of those that come together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from langchain_rwkv_state.engine import Done, Engine, Request, Thought
from langchain_rwkv_state.engine.slots import SlotPool
from langchain_rwkv_state.errors import DeadlineExceeded
from langchain_rwkv_state.prefix_cache import Caching, PrefixStateCache
from langchain_rwkv_state.prefix_cache.entries import CachedState, Namespace
from tests.helpers.fake_runtime import FakeRuntime
from tests.helpers.scripted import GREEDY, WORLD
from tests.helpers.watch import wait_until


@pytest.fixture
def engine(runtime: FakeRuntime) -> Iterator[Engine]:
    engine = Engine(runtime, WORLD, prefill_chunk=32)
    yield engine
    runtime.before_forward = None
    engine.close()


TURN = [0, *WORLD.encode("System: " + "Some rules to keep. " * 20), 261]
BEFORE = [*TURN, *WORLD.encode("User: Hi"), 261, *WORLD.encode("Assistant:")]
THINKS = [*BEFORE, *WORLD.encode(" <think")]


def ask(
    runtime: FakeRuntime, engine: Engine, cache: PrefixStateCache, prompt: list[int], **more: Any
) -> tuple[Done, int]:
    """Answers through the cache; returns the end, and how many ids were reused."""
    request = Request(
        runtime.zero_state(),
        prompt,
        max_tokens=9,
        sampling=GREEDY,
        stop_ids=WORLD.eos_ids,
        canonical=lambda text: WORLD.encode(f" {text}") if text else [],
        caching=Caching(cache, ends=(len(TURN), len(BEFORE))),
        **more,
    )
    done = engine.submit(request).result()
    return done, done.reused


def test_what_is_settled_is_reused_and_the_opened_thought_is_not(runtime, engine):
    runtime.script(THINKS, [*WORLD.encode("> Hm.</think> Yes"), 0])
    runtime.script(BEFORE, [*WORLD.encode(" No"), 0])
    cache = PrefixStateCache()
    special = {"settled": BEFORE, "thought": Thought(">", "</think>")}
    first, reused = ask(runtime, engine, cache, THINKS, **special)
    assert (first.text, first.thought, reused) == ("Yes", "Hm.", 0)
    again, reused = ask(runtime, engine, cache, THINKS, **special)
    assert (again.text, again.thought, again.state) == ("Yes", "Hm.", first.state)
    assert len(TURN) <= reused <= len(BEFORE)
    ids = [*BEFORE, *WORLD.encode(" Yes")]
    assert first.state == FakeRuntime(65_536).forward(ids, runtime.zero_state())[1]
    # The next turn begins where the answer ended, without its thought.
    following = [*ids, 261, *WORLD.encode("User: So?"), 261, *WORLD.encode("Assistant:")]
    assert ask(runtime, engine, cache, following)[1] == len(ids)
    assert ask(runtime, engine, cache, BEFORE)[0].text == "No"


# -- those that come together ---------------------------------------------------------------------

SYSTEM = list(range(1000, 1200))  # ids of which none comes twice


def question(number: int) -> list[int]:
    return [*SYSTEM, 2000 + number, 2500, 2501]


def request(
    runtime: FakeRuntime, cache: PrefixStateCache, prompt: list[int], **more: Any
) -> Request:
    """A request for some words, whose system prompt others may share."""
    caching = Caching(cache, ends=(len(SYSTEM),), system_end=len(SYSTEM), salt=more.pop("salt", ""))
    given: dict[str, Any] = {"max_tokens": 2, "sampling": GREEDY, "caching": caching, **more}
    return Request(runtime.zero_state(), prompt, **given)


class Gate:
    """Holds the worker in its reads until it is let go on."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self._arrived, self._go = threading.Semaphore(0), threading.Event()
        runtime.before_forward = self._pass

    def _pass(self, _: Sequence[int]) -> None:
        self._arrived.release()
        assert self._go.wait(60)

    def wait(self) -> None:
        """Waits until the worker is in a read."""
        assert self._arrived.acquire(timeout=60)

    def open(self) -> None:
        self._go.set()


def times_read(runtime: FakeRuntime, token: int) -> int:
    """Returns how often an id was read."""
    return sum(call.count(token) for call in runtime.calls)


class TestTogether:
    def test_what_they_share_is_read_once_and_each_gets_what_it_gets_alone(self, runtime, engine):
        cache, gate = PrefixStateCache(), Gate(runtime)
        handles = [engine.submit(request(runtime, cache, question(0)))]
        gate.wait()
        handles += [engine.submit(request(runtime, cache, question(n))) for n in range(1, 40)]
        gate.open()
        found = [handle.result() for handle in handles]
        assert times_read(runtime, SYSTEM[100]) == 1
        assert cache.stats().shared == 39
        assert [done.reused for done in found[1:]] == [len(SYSTEM)] * 39
        fresh = FakeRuntime(65_536)
        for n, done in enumerate(found):
            whole = [*question(n), *done.answer_ids]
            assert done.state == fresh.forward(whole, fresh.zero_state())[1]

    def test_a_prompt_that_is_being_read_is_answered_without_reading_it(self, runtime, engine):
        cache, gate = PrefixStateCache(), Gate(runtime)
        first = engine.submit(request(runtime, cache, question(0)))
        gate.wait()
        again = engine.submit(request(runtime, cache, question(0)))
        gate.open()
        assert (first.result().text, again.result().reused) == (
            again.result().text,
            len(question(0)),
        )
        assert times_read(runtime, SYSTEM[100]) == 1

    def test_no_slot_holds_a_copy_of_what_another_kept_meanwhile(
        self, runtime, engine, monkeypatch
    ):
        copied: list[int] = []
        snapshot = SlotPool.snapshot

        def count(pool: SlotPool, slot: int) -> Any:
            copied.append(slot)
            return snapshot(pool, slot)

        monkeypatch.setattr(SlotPool, "snapshot", count)
        cache, gate = PrefixStateCache(), Gate(runtime)
        handle = engine.submit(request(runtime, cache, question(0), max_tokens=1))
        gate.wait()
        zero = runtime.zero_state()
        kept = CachedState(FakeRuntime(65_536).forward(SYSTEM, zero)[1])
        assert cache.insert(Namespace.of(zero), SYSTEM, kept)
        gate.open()
        assert handle.result().reused == 0
        assert copied == []  # the copy behind the whole prompt goes to the cache, on the host

    def test_those_behind_one_that_waits_go_first(self, runtime, engine):
        cache, gate = PrefixStateCache(), Gate(runtime)
        first = engine.submit(request(runtime, cache, question(0)))
        gate.wait()
        waiting = engine.submit(request(runtime, cache, question(1)))
        other = engine.submit(Request(runtime.zero_state(), [7] * 10))
        gate.open()
        for handle in (first, waiting, other):
            handle.result()
        assert (7,) * 10 in runtime.batches[1]
        assert runtime.calls.index((7,) * 10) < min(
            place for place, call in enumerate(runtime.calls) if 2001 in call
        )

    @pytest.mark.parametrize("end", ["cancelled", "late", "failed"])
    def test_where_the_one_that_reads_ends_another_reads_and_the_rest_waits(
        self, runtime, engine, end
    ):
        def fail(*_: int) -> None:
            raise LookupError("no bar")

        cache, gate = PrefixStateCache(), Gate(runtime)
        kinds: dict[str, dict[str, Any]] = {
            "cancelled": {},
            "late": {"deadline": 0.3},
            "failed": {"on_progress": fail},
        }
        more = kinds[end]
        first = engine.submit(request(runtime, cache, question(0), **more))
        gate.wait()
        handles = [engine.submit(request(runtime, cache, question(n))) for n in range(1, 6)]
        if end == "cancelled":
            first.cancel()
        if end == "late":
            time.sleep(0.35)
        gate.open()
        found = [handle.result() for handle in handles]
        assert times_read(runtime, SYSTEM[100]) <= 2
        assert sorted(done.reused for done in found) == [0] + [len(SYSTEM)] * 4
        assert first.over

    def test_nobody_waits_longer_than_its_deadline(self, runtime, engine):
        cache, gate = PrefixStateCache(), Gate(runtime)
        first = engine.submit(request(runtime, cache, question(0)))
        gate.wait()
        late = engine.submit(request(runtime, cache, question(1), deadline=0.05))
        ample = engine.submit(request(runtime, cache, question(2), deadline=60.0))
        time.sleep(0.06)
        gate.open()
        with pytest.raises(DeadlineExceeded, match=r"0\.05 s passed while it waited"):
            late.result()
        assert ample.result().reused == len(SYSTEM)
        first.result()

    def test_one_that_waits_can_be_cancelled(self, runtime, engine):
        cache, gate = PrefixStateCache(), Gate(runtime)
        first = engine.submit(request(runtime, cache, question(0)))
        gate.wait()
        waiting = engine.submit(request(runtime, cache, question(1)))
        waiting.cancel()
        gate.open()
        first.result()
        wait_until(lambda: engine.stats().queued == engine.stats().active == 0)
        assert len(question(1)) not in map(len, runtime.calls)

    @pytest.mark.parametrize("salts", [("ada", "bob"), ("", "bob")])
    def test_nobody_waits_for_strangers(self, runtime, engine, salts):
        cache, gate = PrefixStateCache(), Gate(runtime)
        handles = [engine.submit(request(runtime, cache, question(0), salt=salts[0]))]
        gate.wait()
        handles.append(engine.submit(request(runtime, cache, question(0), salt=salts[1])))
        gate.open()
        assert [handle.result().reused for handle in handles] == [0, 0]
        assert cache.stats().shared == 0

    def test_nobody_waits_where_nothing_can_be_kept(self, runtime, engine):
        cache, gate = PrefixStateCache(ram_bytes=1), Gate(runtime)
        handles = [engine.submit(request(runtime, cache, question(0)))]
        gate.wait()
        handles.append(engine.submit(request(runtime, cache, question(0))))
        gate.open()
        assert [handle.result().reused for handle in handles] == [0, 0]
        assert cache.stats().shared == 0

    def test_whoever_waited_in_vain_waits_no_more(self, runtime, engine, monkeypatch):
        cache, gate = PrefixStateCache(), Gate(runtime)
        monkeypatch.setattr(cache, "insert", lambda *_, **__: False)
        handles = [engine.submit(request(runtime, cache, question(0)))]
        gate.wait()
        handles += [engine.submit(request(runtime, cache, question(n))) for n in range(1, 9)]
        gate.open()
        assert [handle.result().reused for handle in handles] == [0] * 9

    def test_a_cache_that_fails_costs_no_answer(self, runtime, engine, monkeypatch):
        def fail(*_: Any, **__: Any) -> None:
            raise OSError("the disk is gone")

        expected = engine.submit(request(runtime, PrefixStateCache(), question(0))).result()
        for verb in ("lookup", "depth", "note", "holds", "insert", "note_shared"):
            cache = PrefixStateCache()
            engine.submit(request(runtime, cache, question(1))).result()
            monkeypatch.setattr(cache, verb, fail)
            handles = [engine.submit(request(runtime, cache, question(0))) for _ in range(3)]
            for handle in handles:
                done = handle.result()
                assert (done.text, done.state) == (expected.text, expected.state)

    async def test_hundreds_that_wait_leave_the_event_loops_threads_alone(self, runtime, engine):
        cache, gate = PrefixStateCache(), Gate(runtime)
        handles = [engine.submit(request(runtime, cache, question(0))) for _ in range(500)]
        tasks = [asyncio.create_task(handle.aresult()) for handle in handles]
        await asyncio.to_thread(gate.wait)
        wait = asyncio.wait_for(asyncio.to_thread(threading.active_count), 5)
        assert await wait < 100
        assert not any(task.done() for task in tasks)
        gate.open()
        found = await asyncio.gather(*tasks)
        assert times_read(runtime, SYSTEM[100]) == 1
        assert len({done.text for done in found}) == 1


DOCUMENT = list(range(3000, 3700))


class TestADocumentAndItsQuestion:
    """Both stand in one message, so that nobody knows where the question begins."""

    def request(self, runtime: FakeRuntime, cache: PrefixStateCache, ask: Sequence[int]) -> Request:
        prompt = [*DOCUMENT, *ask, 2500, 2501, 2502]
        caching = Caching(cache, ends=(len(prompt) - 3, len(prompt)))
        return Request(runtime.zero_state(), prompt, max_tokens=2, sampling=GREEDY, caching=caching)

    def test_of_those_that_come_together_it_is_read_once(self, runtime, engine):
        cache, gate = PrefixStateCache(), Gate(runtime)
        handles = [engine.submit(self.request(runtime, cache, [10, 11, 12, 13]))]
        gate.wait()
        handles += [engine.submit(self.request(runtime, cache, [n] * n)) for n in (20, 30, 40)]
        gate.open()
        found = [handle.result() for handle in handles]
        assert times_read(runtime, DOCUMENT[300]) == 1
        assert [done.reused for done in found] == [0] + [len(DOCUMENT)] * 3

    def test_with_one_slot_too(self, runtime):
        engine, cache, gate = Engine(runtime, WORLD, slots=1), PrefixStateCache(), Gate(runtime)
        handles = [engine.submit(self.request(runtime, cache, [10, 11, 12, 13]))]
        gate.wait()
        handles += [engine.submit(self.request(runtime, cache, [n] * n)) for n in (20, 30)]
        gate.open()
        assert [handle.result().reused for handle in handles] == [0] + [len(DOCUMENT)] * 2
        engine.close()

    @pytest.mark.parametrize("length", [1, 20, 70, 200])
    def test_of_those_one_after_another_little_is_read_again(self, runtime, engine, length):
        cache = PrefixStateCache()
        engine.submit(self.request(runtime, cache, [10] * length)).result()
        done = engine.submit(self.request(runtime, cache, [20] * 5)).result()
        assert len(DOCUMENT) - done.reused <= max(32, length)
        assert cache.stats().entries <= 2 * 9 + 2
