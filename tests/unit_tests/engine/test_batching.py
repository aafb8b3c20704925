"""Many requests at once: each gets what it would get alone, and nobody waits for long."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from langchain_core.messages import HumanMessage

from langchain_rwkv_state.engine import (
    Delta,
    Done,
    Engine,
    Limits,
    Request,
    RequestHandle,
    Sampling,
)
from langchain_rwkv_state.engine import engine as engine_module
from langchain_rwkv_state.engine.sequence import TokenSequence
from langchain_rwkv_state.engine.slots import SlotPool
from langchain_rwkv_state.errors import (
    DeadlineExceeded,
    EngineBusy,
    EngineError,
    StateMismatch,
)
from langchain_rwkv_state.runtime.base import Budgets
from tests.helpers.fake_runtime import ALL_AHEAD, EACH_WAY, FakeRuntime
from tests.helpers.scripted import GREEDY, TEMPLATE, WORLD, scripted

PATIENCE_SECONDS = 60


def prompt_of(text: str) -> list[int]:
    segments = TEMPLATE.segments([HumanMessage(text)], start=True, answer=True)
    return [token for segment in segments for token in segment.ids]


def chat(runtime: FakeRuntime, text: str, answer: Sequence[int] = (), **settings: Any) -> Request:
    """A chat request whose answer's ids are scripted."""
    return scripted(runtime, prompt_of(text), answer, **settings)


def long_answer(runtime: FakeRuntime, text: str, max_tokens: int) -> Request:
    """A request that samples exactly so many ids."""
    settings = {"max_tokens": max_tokens, "stop": (), "stop_ids": frozenset()}
    return chat(runtime, text, WORLD.encode(" word") * max_tokens, **settings)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


@pytest.fixture
def runtime(request: pytest.FixtureRequest) -> FakeRuntime:
    return FakeRuntime(65_536, ahead=getattr(request, "param", ALL_AHEAD))


@pytest.fixture
def serve(runtime: FakeRuntime) -> Iterator[Callable[..., Engine]]:
    """Makes engines, and closes them."""
    made: list[Engine] = []

    def make(**settings: Any) -> Engine:
        made.append(Engine(runtime, WORLD, **settings))
        return made[-1]

    yield make
    runtime.before_forward = None
    for engine in made:
        engine.close()


class Hold:
    """Holds the worker in its first read until it is let go."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self.arrived = threading.Event()
        self._go = threading.Event()
        runtime.before_forward = self._hold

    def _hold(self, _: Sequence[int]) -> None:
        self.arrived.set()
        assert self._go.wait(PATIENCE_SECONDS)

    def wait(self) -> None:
        assert self.arrived.wait(PATIENCE_SECONDS)

    def let_go(self) -> None:
        self._go.set()


def random_request(runtime: FakeRuntime, name: int, chance: random.Random) -> Request:
    """A request of any kind: canonical ids or others, stop texts across tokens, seeds."""
    text = f"{name} " + "word " * chance.choice([0, 0, 5, 60])
    words = "".join(chance.choices([" a", " Hello", "\n", ".\n", " é", "x", " \n"], k=8))
    letters = [token for letter in words for token in WORLD.encode(letter)]
    answer = [
        *chance.choice([WORLD.encode(words), letters]),
        *chance.choice([[261], [0], [11, 11], WORLD.encode("ello"), [1 + 0xE2]]),
    ]
    settings: dict[str, Any] = {
        "max_tokens": chance.choice([0, 1, 4, 30]),
        "stop": chance.choice([TEMPLATE.stops, ("ello", "\n\n"), (" a\n",), ()]),
        "sampling": chance.choice([GREEDY, Sampling(seed=name, top_p=0.4)]),
    }
    if chance.random() < 0.3:
        settings |= {"strip": False, "canonical": None}
    if chance.random() < 0.3:
        settings["checkpoints"] = (3, 0)
    return chat(runtime, text, answer, **settings)


@EACH_WAY
@pytest.mark.slow
def test_everybody_in_a_crowd_gets_what_each_gets_alone(runtime, serve):
    chance = random.Random(4)
    requests = [random_request(runtime, name, chance) for name in range(200)]
    crowd = serve(slots=8, prefill_budget=20, prefill_chunk=40)
    handles: list[RequestHandle] = []
    for request in requests:
        handles.append(crowd.submit(request))
        if chance.random() < 0.3:
            time.sleep(0.005)
        if chance.random() < 0.15:
            chance.choice(handles[-20:]).cancel()
    found: list[Done | None] = []
    for handle in handles:
        events: list[Any] = list(handle)
        found.append(events[-1] if events and isinstance(events[-1], Done) else None)
        if found[-1] is not None:
            assert "".join(event.text for event in events[:-1]) == found[-1].text
    assert sum(done is None for done in found) < 60
    alone = serve(slots=1)
    for request, done in zip(requests, found, strict=True):
        if done is not None:
            assert done == alone.submit(request).result()
            canonical = (request.canonical or WORLD.encode)(done.text)
            ids = [*request.prompt, *(canonical if request.max_tokens else ())]
            assert done.state == runtime.forward(ids, runtime.zero_state())[1]
    assert crowd.stats().rereads > 20
    assert max(map(len, runtime.batches)) == 8


@EACH_WAY
def test_a_seeded_answer_does_not_depend_on_the_others(runtime, serve):
    engine = serve()
    request = chat(
        runtime, "seeded", sampling=Sampling(seed=3, temperature=1.3, top_p=0.6), max_tokens=20
    )
    alone = engine.submit(request).result()
    others = [chat(runtime, f"{n}", sampling=Sampling(), max_tokens=9 + n) for n in range(9)]
    handles = [engine.submit(one) for one in (*others, request, *others)]
    assert handles[len(others)].result() == alone
    for handle in handles:
        handle.cancel()


class TestWaiting:
    """Who decodes waits for one step, whatever comes meanwhile."""

    def test_a_long_prompt_among_decoding_requests_is_read_bit_by_bit(self, runtime, serve):
        engine = serve(prefill_budget=64)
        handles = [engine.submit(long_answer(runtime, f"{n}", 400)) for n in range(15)]
        wait_until(lambda: engine.stats().active == 15)
        read = engine.stats().decoded_tokens
        wait_until(lambda: engine.stats().decoded_tokens >= read + 30)  # all 15 decode by then
        done = engine.submit(Request(runtime.zero_state(), [7] * 2000)).result()
        assert not any(handle.over for handle in handles)
        mixed = [batch for batch in runtime.batches if (7,) * 16 in {ids[:16] for ids in batch}]
        assert len(mixed) >= 2000 // 64
        for batch in mixed:
            assert sum(len(ids) for ids in batch if ids[0] == 7) <= 64
            assert sum(len(ids) == 1 for ids in batch) == 15
        assert done.state == runtime.forward([7] * 2000, runtime.zero_state())[1]

    def test_prompts_share_what_is_read_in_a_step(self, runtime, serve):
        engine, hold = serve(prefill_chunk=64), Hold(runtime)
        first = engine.submit(Request(runtime.zero_state(), [9]))
        hold.wait()
        handles = [
            engine.submit(Request(runtime.zero_state(), [n] * size))
            for n, size in ((1, 500), (2, 40), (3, 30))
        ]
        hold.let_go()
        for handle in (first, *handles):
            handle.result()
        assert [len(ids) for ids in runtime.batches[1]] == [22, 21, 21]
        assert max(sum(map(len, batch)) for batch in runtime.batches) == 64

    def test_what_is_read_in_a_step_suits_the_device_where_nobody_says_more(
        self, runtime, serve, monkeypatch
    ):
        monkeypatch.setattr(runtime, "budgets", Budgets(100, 30), raising=False)
        assert serve().limits == Limits(prefill_budget=30)
        assert serve(prefill_budget=7).limits == Limits(prefill_budget=7)
        serve().submit(Request(runtime.zero_state(), [7] * 250)).result()
        assert [len(ids) for ids in runtime.calls] == [100, 100, 50]
        runtime.calls.clear()
        serve(prefill_chunk=200).submit(Request(runtime.zero_state(), [7] * 250)).result()
        assert [len(ids) for ids in runtime.calls] == [200, 50]

    def test_decoding_and_prompts_share_one_pass(self, runtime, serve):
        engine = serve()
        answering = engine.submit(long_answer(runtime, "a", 200))
        wait_until(lambda: engine.stats().decoded_tokens > 0)
        engine.submit(Request(runtime.zero_state(), [5, 6, 7])).result()
        batch = next(batch for batch in runtime.batches if (5, 6, 7) in batch)
        assert len(batch) == 2
        answering.cancel()


class TestSlots:
    """More requests than slots is normal; slots are there only as long as they are needed."""

    def test_those_beyond_the_slots_wait_in_order(self, runtime, serve):
        engine, hold = serve(slots=2), Hold(runtime)
        handles = [engine.submit(chat(runtime, f"{n}", [261])) for n in range(6)]
        hold.wait()
        wait_until(lambda: engine.stats().active in (1, 2))
        assert engine.stats().queued >= 4
        hold.let_go()
        for handle in handles:
            handle.result()
        firsts = [tuple(prompt_of(f"{n}")) for n in range(6)]
        assert [ids for ids in runtime.calls if ids in firsts] == firsts
        assert max(map(len, runtime.batches)) == 2

    def test_one_conversation_takes_one_slot(self, runtime, serve):
        engine = serve()
        assert engine.stats().slots == 0
        engine.submit(chat(runtime, "a", [261])).result()
        stats = engine.stats()
        assert (stats.slots, stats.max_slots) == (1, 64)

    def test_an_idle_engine_gives_its_slots_back(self, runtime, serve, monkeypatch):
        monkeypatch.setattr(engine_module, "_IDLE_SECONDS", 0.01)
        engine = serve()
        for handle in [engine.submit(chat(runtime, f"{n}", [261])) for n in range(9)]:
            handle.result()
        wait_until(lambda: engine.stats().slots == 0)
        assert engine.submit(chat(runtime, "again", [261])).result().text == ""

    def test_a_cancelled_request_frees_its_slot_within_a_step(self, runtime, serve):
        engine = serve(slots=1)
        endless = engine.submit(long_answer(runtime, "a", 10_000))
        waiting = engine.submit(chat(runtime, "b", [261]))
        wait_until(lambda: engine.stats().decoded_tokens > 3)
        endless.cancel()
        steps = engine.stats().steps
        assert waiting.result().text == ""
        assert engine.stats().steps <= steps + 3

    def test_states_are_copied_out_rarely(self, runtime, serve, monkeypatch):
        copies: list[int] = []
        state = SlotPool.state

        def count(pool: SlotPool, slot: int) -> Any:
            copies.append(slot)
            return state(pool, slot)

        monkeypatch.setattr(SlotPool, "state", count)
        engine = serve()
        engine.submit(chat(runtime, "a", [*WORLD.encode(" one two three four"), 261])).result()
        assert len(copies) == 2  # after the prompt and after the answer
        copies.clear()
        engine.submit(Request(runtime.zero_state(), [1, 2, 3], checkpoints=(3,))).result()
        assert len(copies) == 1

    def test_the_copy_behind_text_that_is_always_held_back_is_renewed(self, runtime, serve):
        word, end = WORLD.encode(" there"), WORLD.encode("!")
        assert len(word) == 1
        request = chat(runtime, "a", [*word * 40, *end], stop=("there!",))
        done = serve().submit(request).result()
        assert done.text == " ".join(["there"] * 39)
        assert len(runtime.calls[-1]) <= 16
        ids = [*request.prompt, *TEMPLATE.answer_ids(done.text)]
        assert done.state == runtime.forward(ids, runtime.zero_state())[1]


class TestRefusing:
    """A bounded queue, and deadlines."""

    def test_a_full_queue_refuses_and_says_so(self, runtime, serve):
        engine, hold = serve(slots=1, max_queue=2), Hold(runtime)
        handles = [engine.submit(chat(runtime, "0", [261]))]
        hold.wait()
        handles += [engine.submit(chat(runtime, f"{n}", [261])) for n in (1, 2)]
        with pytest.raises(EngineBusy, match=r"2 requests wait behind 1.*no more than 2"):
            engine.submit(chat(runtime, "3", [261]))
        handles[1].cancel()
        handles.append(engine.submit(chat(runtime, "4", [261])))
        hold.let_go()
        assert [handle.result().text for handle in (handles[0], *handles[2:])] == [""] * 3

    def test_a_deadline_ends_a_request_in_the_queue(self, runtime, serve):
        engine, hold = serve(slots=1), Hold(runtime)
        first = engine.submit(chat(runtime, "0", [261]))
        hold.wait()
        late = engine.submit(chat(runtime, "1", [261], deadline=0.001))
        ample = engine.submit(chat(runtime, "2", [261], deadline=PATIENCE_SECONDS))
        time.sleep(0.01)
        hold.let_go()
        with pytest.raises(DeadlineExceeded, match=r"0\.001 s passed while it waited"):
            late.result()
        assert first.result().text == ample.result().text == ""
        assert tuple(prompt_of("1")) not in runtime.calls

    def test_a_deadline_ends_a_request_that_is_served(self, runtime, serve):
        engine = serve()
        handle = engine.submit(replace(long_answer(runtime, "a", 10_000), deadline=0.2))
        events: list[object] = []
        with pytest.raises(DeadlineExceeded, match=r"after [1-9]\d* tokens"):
            events.extend(handle)
        assert isinstance(events[0], Delta)
        wait_until(lambda: engine.stats().active == 0)


class TestFailingAlone:
    """What one request raises ends that request; the others do not notice."""

    def check(self, runtime: FakeRuntime, engine: Engine, failing: Request, match: str) -> None:
        hold = Hold(runtime)
        first = engine.submit(chat(runtime, "first", [261]))
        hold.wait()
        sound = [engine.submit(chat(runtime, f"{n}", [*WORLD.encode(" Hi"), 261])) for n in "ab"]
        sound.insert(1, engine.submit(failing))
        hold.let_go()
        failed = sound.pop(1)
        with pytest.raises(EngineError, match=match):
            failed.result()
        assert first.result().text == ""
        assert [handle.result().text for handle in sound] == ["Hi", "Hi"]

    def test_a_callback(self, runtime, serve):
        def fail(read: int, total: int) -> None:
            raise LookupError("no bar")

        failing = chat(runtime, "x", [261], on_progress=fail)
        self.check(runtime, serve(), failing, "LookupError: no bar")

    def test_canonical_ids(self, runtime, serve):
        def fail(text: str) -> Sequence[int]:
            raise LookupError(f"no ids of {text}")

        failing = chat(runtime, "x", [*WORLD.encode(" Hi"), 261], canonical=fail)
        self.check(runtime, serve(), failing, "LookupError: no ids of Hi")

    def test_canonical_ids_that_the_model_does_not_know(self, runtime, serve):
        answer = [*WORLD.encode(" Hi"), 261]
        failing = chat(runtime, "x", answer, canonical=lambda _: [65_536])
        self.check(runtime, serve(), failing, "text stands for holds 65536")

    def test_logits_that_are_no_numbers(self, runtime, serve):
        failing = chat(runtime, "x")
        runtime.script_logits(failing.prompt, torch.full((65_536,), float("nan")))
        self.check(runtime, serve(), failing, "not numbers")

    def test_a_state_of_another_model(self, runtime, serve):
        base = runtime.zero_state().with_fingerprint("other/fp32/-/-")
        engine = serve()
        hold = Hold(runtime)
        sound = engine.submit(chat(runtime, "a", [261]))
        hold.wait()
        failing = engine.submit(chat(runtime, "x", [261], base=base))
        hold.let_go()
        with pytest.raises(StateMismatch, match="another weights"):
            failing.result()
        assert sound.result().text == ""

    def test_a_callback_that_waits_for_the_same_engine(self, runtime, serve):
        engine = serve()

        def wait(*_: int) -> None:
            engine.submit(chat(runtime, "y", [261])).result()

        def listen(*_: int) -> None:
            list(engine.submit(chat(runtime, "y", [261])))

        def await_(*_: int) -> None:
            asyncio.run(engine.submit(chat(runtime, "y", [261])).aresult())

        for callback in (wait, listen, await_):
            failing = chat(runtime, "x", [261], on_progress=callback)
            self.check(runtime, engine, failing, "waits for an answer of the same engine")

    def test_a_callback_may_wait_for_another_engine(self, runtime, serve):
        other, found = Engine(FakeRuntime(65_536), WORLD), []
        request = Request(runtime.zero_state(), [1], on_progress=lambda *_: found.append(ask()))

        def ask() -> Done:
            return other.submit(Request(runtime.zero_state(), [2])).result()

        serve().submit(request).result()
        other.close()
        assert found[0].prompt_tokens == 1


class TestLosingTheDevice:
    """A pass that fails ends all that are in it; the engine goes on with the others."""

    def test_all_that_are_served_fail_and_those_that_wait_go_on(self, runtime, serve, caplog):
        engine, seen = serve(slots=2), threading.Event()

        def fail_once(_: Sequence[int]) -> None:
            assert seen.wait(PATIENCE_SECONDS)
            if len(runtime.batches[-1]) == 2:
                runtime.before_forward = None
                raise RuntimeError("CUDA error: an illegal memory access")

        runtime.before_forward = fail_once
        handles = [engine.submit(long_answer(runtime, f"{n}", 20)) for n in range(5)]
        seen.set()
        for handle in handles[:2]:
            with pytest.raises(EngineError, match="RuntimeError: CUDA error") as caught:
                handle.result()
            assert isinstance(caught.value.__cause__, RuntimeError)
        for handle in handles[2:]:
            assert handle.result().answer_tokens == 20
        assert "2 requests with it" in caplog.text

    def test_slots_that_cannot_be_opened_fail_requests_and_not_the_engine(
        self, runtime, serve, monkeypatch
    ):
        def fail(_: int) -> None:
            raise MemoryError("no room")

        engine = serve()
        runtime.slots = fail
        with pytest.raises(EngineError, match="MemoryError: no room"):
            engine.submit(chat(runtime, "a", [261])).result()
        del runtime.slots
        assert engine.submit(chat(runtime, "b", [261])).result().text == ""

    def test_no_finished_request_is_held(self, runtime, serve, monkeypatch):
        sequences: list[weakref.ref[TokenSequence]] = []

        def make(*args: Any) -> TokenSequence:
            sequence = TokenSequence(*args)
            sequences.append(weakref.ref(sequence))
            return sequence

        def fail(_: Sequence[int]) -> None:
            raise RuntimeError("lost")

        monkeypatch.setattr(engine_module, "TokenSequence", make)
        engine, errors = serve(), []
        runtime.before_forward = fail
        for n in range(3):
            try:
                engine.submit(chat(runtime, f"{n}", [261])).result()
            except EngineError as error:
                errors.append(error)
        runtime.before_forward = None
        handles = [engine.submit(chat(runtime, f"{n}", [261])) for n in range(6)]
        handles[3].cancel()
        assert {handle.result().text for handle in (*handles[:3], *handles[4:])} == {""}
        assert len(errors) == 3

        def gone() -> bool:
            gc.collect()
            return not any(sequence() for sequence in sequences)

        wait_until(gone)


class TestWatching:
    """Numbers, and log lines."""

    def test_stats_show_the_work(self, runtime, serve):
        engine, hold = serve(slots=4), Hold(runtime)
        handles = [engine.submit(long_answer(runtime, f"{n}", 20)) for n in range(6)]
        hold.wait()
        stats = engine.stats()
        assert stats.queued + stats.active == 6
        assert stats.first_token_p50 is None
        hold.let_go()
        for handle in handles:
            handle.result()
        stats = engine.stats()
        assert stats.decoded_tokens == 120
        assert stats.steps >= 40
        assert stats.decode_rate > 0 < stats.prefill_rate
        assert stats.first_token_p50 is not None
        assert stats.first_token_p99 is not None
        assert 0 < stats.first_token_p50 <= stats.first_token_p99 < PATIENCE_SECONDS

    def test_a_line_is_logged_now_and_then(self, runtime, serve, monkeypatch, caplog):
        caplog.set_level(logging.DEBUG, "langchain_rwkv_state.engine")
        engine = serve()
        engine.submit(chat(runtime, "a", [261])).result()
        assert not [record for record in caplog.records if record.levelno >= logging.INFO]
        wait_until(lambda: engine.stats().steps == 1)
        monkeypatch.setattr(engine_module, "_LOG_SECONDS", 0)
        engine.submit(chat(runtime, "b", [261])).result()
        wait_until(lambda: any(record.levelno == logging.INFO for record in caplog.records))
        assert "Admitted 1 requests, 0 wait" in caplog.text
        assert "Retired 1 requests, 0 go on" in caplog.text
        line = next(record for record in caplog.records if record.levelno == logging.INFO)
        assert line.message.startswith("queued 0, active ")
