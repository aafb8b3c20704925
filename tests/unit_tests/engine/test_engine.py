"""The engine: what a request gives, and that its state stands for exactly the text."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage

from langchain_rwkv_state.engine import Delta, Done, Engine, Request, Sampling
from langchain_rwkv_state.engine import engine as engine_module
from langchain_rwkv_state.engine.sequence import TokenSequence
from langchain_rwkv_state.errors import EngineError, StateMismatch
from langchain_rwkv_state.state import RWKVState
from tests.helpers.fake_runtime import ALL_AHEAD, EACH_WAY, FakeRuntime
from tests.helpers.scripted import GREEDY, TEMPLATE, WORLD, scripted

PROMPT = [
    token
    for segment in TEMPLATE.segments([HumanMessage("Hi")], start=True, answer=True)
    for token in segment.ids
]


@pytest.fixture
def runtime(request: pytest.FixtureRequest) -> FakeRuntime:
    return FakeRuntime(65_536, ahead=getattr(request, "param", ALL_AHEAD))


@pytest.fixture
def engine(runtime: FakeRuntime) -> Iterator[Engine]:
    engine = Engine(runtime, WORLD, prefill_chunk=4)
    yield engine
    engine.close()


@pytest.fixture
def ask(runtime: FakeRuntime) -> Callable[..., Request]:
    """Makes a chat request whose answer's ids are scripted."""

    def make(answer: Sequence[int] = (), **settings: Any) -> Request:
        return scripted(runtime, PROMPT, answer, **settings)

    return make


def read(runtime: FakeRuntime, ids: Sequence[int]) -> RWKVState:
    """The state after reading ids from zero in one go."""
    return FakeRuntime(runtime.vocab_size).forward(ids, runtime.zero_state())[1]


@EACH_WAY
def test_an_answer_comes_in_deltas_and_ends_with_done(engine, ask):
    *deltas, done = engine.submit(ask([*WORLD.encode(" Hello there."), 261]))
    assert all(isinstance(event, Delta) for event in deltas)
    assert isinstance(done, Done)
    assert "".join(delta.text for delta in deltas) == done.text == "Hello there."
    assert done.finish_reason == "stop"
    assert done.prompt_tokens == len(PROMPT)
    assert done.answer_tokens == 4
    assert done.answer_ids == tuple(WORLD.encode(" Hello there."))
    assert not done.reread


def test_only_the_worker_calls_the_runtime(engine, ask, runtime):
    engine.submit(ask([261])).result()
    assert runtime.threads == {"rwkv-engine"}


@EACH_WAY
class TestTheStateStandsForTheText:
    """Whatever was sampled, the state is that of the prompt and the text's canonical ids."""

    def check(self, runtime: FakeRuntime, done: Done, text: str) -> None:
        assert done.text == text
        assert done.answer_ids == tuple(TEMPLATE.answer_ids(text))
        assert done.state == read(runtime, [*PROMPT, *TEMPLATE.answer_ids(text)])

    def test_after_an_end_of_text(self, engine, ask, runtime):
        self.check(runtime, engine.submit(ask([*WORLD.encode(" Hi."), 0])).result(), "Hi.")

    def test_after_a_stop_text_of_several_tokens(self, engine, ask, runtime):
        newline = WORLD.encode("\n")
        done = engine.submit(ask([*WORLD.encode(" Hi."), *newline, *newline])).result()
        self.check(runtime, done, "Hi.")
        assert not done.reread
        assert runtime.calls[-1] == tuple(newline)  # the state before it was at hand

    def test_after_a_stop_text_in_the_middle_of_a_token(self, engine, ask, runtime):
        blank = WORLD.encode(" \n\n")
        assert len(blank) == 1
        done = engine.submit(ask([*WORLD.encode(" Hi"), *blank])).result()
        self.check(runtime, done, "Hi")
        done = engine.submit(
            replace(ask([*WORLD.encode(" Hi"), *WORLD.encode(" there")]), stop=("ere",))
        ).result()
        self.check(runtime, done, "Hi th")
        assert done.reread

    def test_after_other_ids_than_the_text_has(self, engine, ask, runtime):
        letters = [token for letter in " Hello" for token in WORLD.encode(letter)]
        done = engine.submit(ask([*letters, 261])).result()
        self.check(runtime, done, "Hello")
        assert done.reread
        assert engine.stats().rereads == 1

    def test_after_max_tokens(self, engine, ask, runtime):
        done = engine.submit(ask(WORLD.encode(" one two three"), max_tokens=2)).result()
        self.check(runtime, done, "one two")
        assert done.finish_reason == "length"
        assert done.answer_tokens == 2
        assert not done.reread

    def test_an_incomplete_character_at_the_end_is_left_out(self, engine, ask, runtime):
        halves = WORLD.encode(" a") + [1 + byte for byte in "€".encode()[:2]]
        assert WORLD.decode_bytes(halves) == b" a" + "€".encode()[:2]
        for request in (ask(halves, max_tokens=len(halves)), ask([*halves, 0])):
            self.check(runtime, engine.submit(request).result(), "a")

    def test_bytes_that_are_no_text_stand_as_replacement_characters(self, engine, ask, runtime):
        done = engine.submit(ask([*WORLD.encode(" a"), 1 + 0xFF, *WORLD.encode("b"), 0])).result()
        self.check(runtime, done, "a�b")
        assert done.reread

    def test_an_empty_answer(self, engine, ask, runtime):
        for answer in ([261], [0], [*WORLD.encode(" "), 261]):
            runtime.calls.clear()
            done = engine.submit(ask(answer)).result()
            self.check(runtime, done, "")
            assert done.state == read(runtime, PROMPT)

    def test_blank_lines_that_cleaning_takes_out(self, engine, ask, runtime):
        done = engine.submit(ask([*WORLD.encode(" a\n \nb"), 0])).result()
        assert done.text == "a\n \nb"
        assert done.state == read(runtime, [*PROMPT, *TEMPLATE.answer_ids("a\nb")])
        assert done.reread

    def test_ids_without_text_that_do_not_stop(self, engine, ask, runtime):
        done = engine.submit(ask([*WORLD.encode(" a"), 65_535, *WORLD.encode(" b"), 0])).result()
        self.check(runtime, done, "a b")


@pytest.mark.parametrize("ahead", [False, True])
@settings(deadline=None, max_examples=60)
@given(
    answer=st.lists(
        st.one_of(
            st.sampled_from([*WORLD.encode(" a b\n.\n\n \n x"), 65_535, 1 + 0xE2, 1 + 0x82]),
            st.integers(1, 65_529),
        ),
        max_size=12,
    ),
    ending=st.sampled_from([[], [0], [261], [11, 11]]),
    strip=st.booleans(),
    stop=st.sampled_from([("\n\n",), (), ("b", "\n\n"), (" x\n",)]),
    max_tokens=st.integers(1, 14),
)
def test_the_state_is_the_text_s_whatever_was_sampled(
    ahead, answer, ending, strip, stop, max_tokens
):
    runtime = FakeRuntime(65_536, ahead=ahead)
    runtime.script(PROMPT, [*answer, *ending, 0])
    canonical = TEMPLATE.answer_ids if strip else None
    request = Request(
        runtime.zero_state(),
        PROMPT,
        max_tokens=max_tokens,
        sampling=GREEDY,
        stop=stop,
        stop_ids=WORLD.eos_ids,
        strip=strip,
        canonical=canonical,
    )
    engine = Engine(runtime, WORLD)
    *deltas, done = engine.submit(request)
    engine.close()
    assert isinstance(done, Done)
    assert "".join(d.text for d in deltas if isinstance(d, Delta)) == done.text
    assert not any(text in done.text for text in stop)
    ids = (canonical or WORLD.encode)(done.text)
    assert done.answer_ids == tuple(ids)
    assert done.state == read(runtime, [*PROMPT, *ids])


def test_a_completion_keeps_white_space_and_encodes_its_text_plainly(engine, ask, runtime):
    done = engine.submit(
        ask([*WORLD.encode(" Hi \n"), 0], strip=False, canonical=None, stop=())
    ).result()
    assert done.text == " Hi \n"
    assert done.state == read(runtime, [*PROMPT, *WORLD.encode(" Hi \n")])


def test_reading_without_answering(engine, ask, runtime):
    (done,) = engine.submit(ask(max_tokens=0))
    assert done == Done("", "length", read(runtime, PROMPT), len(PROMPT), 0, ())


def test_reading_nothing_gives_the_base_state(engine, ask, runtime):
    base = runtime.zero_state()
    done = engine.submit(Request(base, (), checkpoints=(0,))).result()
    assert done.state is base
    assert done.checkpoints == (base,)
    assert runtime.calls == []


@EACH_WAY
def test_checkpoints_are_the_states_at_their_positions(engine, ask, runtime):
    done = engine.submit(ask([261], checkpoints=(5, 0, len(PROMPT), 5))).result()
    assert done.checkpoints == (
        read(runtime, PROMPT[:5]),
        runtime.zero_state(),
        read(runtime, PROMPT),
        read(runtime, PROMPT[:5]),
    )


def test_a_long_prompt_is_read_in_chunks_with_progress(engine, ask, runtime):
    seen: list[tuple[int, int]] = []
    prompt = list(range(1, 11))
    request = ask(prompt=prompt, max_tokens=0, on_progress=lambda *at: seen.append(at))
    done = engine.submit(request).result()
    assert seen == [(4, 10), (8, 10), (10, 10)]
    assert [len(call) for call in runtime.calls] == [4, 4, 2]
    assert done.state == read(runtime, prompt)


@EACH_WAY
def test_a_seed_repeats_an_answer(engine, ask, runtime):
    def text(seed: int) -> str:
        sampling = Sampling(temperature=2, top_p=1, seed=seed)
        request = replace(ask(max_tokens=8), sampling=sampling, stop=())
        return str(engine.submit(request).result().text)

    assert text(1) == text(1) != text(2)


@pytest.fixture
def narrow(runtime: FakeRuntime) -> Iterator[Engine]:
    """An engine that serves one request at a time."""
    engine = Engine(runtime, WORLD, slots=1, prefill_chunk=4)
    yield engine
    engine.close()


def test_requests_are_admitted_in_the_order_of_their_coming(narrow, ask, runtime):
    order: list[int] = []
    handles = [
        narrow.submit(ask(max_tokens=0, on_progress=lambda *_, n=n: order.append(n)))
        for n in range(8)
    ]
    for handle in handles:
        handle.result()
    assert order == sorted(order)
    assert set(order) == set(range(8))


def test_stats_count_what_was_done(engine, ask):
    engine.submit(ask([*WORLD.encode(" Hi."), 261])).result()
    engine.submit(ask(max_tokens=0)).result()
    stats = engine.stats()
    assert (stats.queued, stats.active) == (0, 0)
    assert stats.prompt_tokens == 2 * len(PROMPT)
    assert stats.decoded_tokens == 3


class Gate:
    """Holds the worker at each call of the runtime until it is let through."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self.arrived = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.open = False
        runtime.before_forward = self.hold

    def hold(self, tokens: Sequence[int]) -> None:
        if not self.open:
            self.arrived.release()
            assert self.go.acquire(timeout=10)

    def release(self) -> None:
        self.open = True
        self.go.release()


class TestCancelling:
    """Who stops listening stops the model within one token."""

    ANSWER = WORLD.encode(" one two three four five six seven eight nine ten")

    def settle(self, engine: Engine) -> None:
        engine.submit(Request(FakeRuntime().zero_state(), ())).result()

    def test_closing_the_iterator_stops_decoding(self, engine, ask, runtime):
        gate = Gate(runtime)
        events = iter(engine.submit(ask(self.ANSWER)))
        gate.go.release(3)
        assert next(events) == Delta("one")
        gate.arrived.acquire(timeout=10)
        events.close()
        before = len(runtime.calls)
        gate.release()
        self.settle(engine)
        assert len(runtime.calls) <= before + 2
        assert engine.stats().active == 0

    def test_a_cancelled_request_delivers_nothing_more(self, engine, ask, runtime):
        gate = Gate(runtime)
        handle = engine.submit(ask(self.ANSWER))
        gate.arrived.acquire(timeout=10)
        handle.cancel()
        gate.release()
        assert list(handle) == []
        with pytest.raises(EngineError, match="cancelled"):
            handle.result()
        assert engine.submit(ask([261])).result().text == ""

    def test_a_request_cancelled_in_the_queue_is_never_read(self, narrow, ask, runtime):
        engine, gate = narrow, Gate(runtime)
        first, second = engine.submit(ask([261])), engine.submit(ask(prompt=[9, 9, 9]))
        gate.arrived.acquire(timeout=10)
        assert engine.stats().queued == 1
        second.cancel()
        assert engine.stats().queued == 0
        gate.release()
        first.result()
        self.settle(engine)
        assert (9, 9, 9) not in runtime.calls

    def test_a_long_prefill_stops_between_chunks(self, engine, ask, runtime):
        gate = Gate(runtime)
        handle = engine.submit(ask(prompt=[1] * 400, max_tokens=0))
        gate.arrived.acquire(timeout=10)
        handle.cancel()
        gate.release()
        self.settle(engine)
        assert runtime.tokens_read <= 8

    def test_a_cancel_after_the_end_changes_nothing(self, engine, ask):
        handle = engine.submit(ask([*WORLD.encode(" Hi"), 261]))
        assert handle.result().text == "Hi"
        handle.cancel()
        assert handle.result().text == "Hi"
        assert [event.text for event in handle] == ["Hi", "Hi"]

    async def test_cancelling_the_task_stops_decoding(self, engine, ask, runtime):
        gate = Gate(runtime)
        seen: list[object] = []
        heard = asyncio.Event()

        async def listen() -> None:
            async for event in engine.submit(ask(self.ANSWER)):
                seen.append(event)
                heard.set()

        task = asyncio.create_task(listen())
        gate.go.release(3)
        await heard.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.release()
        await asyncio.to_thread(self.settle, engine)
        assert len(runtime.calls) <= 7
        assert not any(isinstance(event, Done) for event in seen)

    async def test_cancelling_a_wait_for_the_result_stops_decoding(self, engine, ask, runtime):
        gate = Gate(runtime)
        handle = engine.submit(ask(self.ANSWER))
        task = asyncio.create_task(handle.aresult())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.release()
        await asyncio.to_thread(self.settle, engine)
        assert handle.over
        assert len(runtime.calls) <= 2


class TestAsync:
    """The same for callers in an event loop, which is never blocked."""

    async def test_events_come_as_they_do_in_a_thread(self, engine, ask):
        request = ask([*WORLD.encode(" Hello there."), 261])
        found = [event async for event in engine.submit(request)]
        assert found == list(engine.submit(request))
        assert (await engine.submit(request).aresult()) == found[-1]

    async def test_in_lists_they_are_the_same_and_none_is_empty(self, engine, ask):
        request = ask([*WORLD.encode(" Hello there."), 261])
        expected = list(engine.submit(request))
        handle = engine.submit(request)
        handle.result()  # all are there, and come at once
        assert [events async for events in handle.batches()] == [expected]
        lists = [events async for events in engine.submit(request).batches()]
        assert all(lists)
        assert [event for events in lists for event in events] == expected

    async def test_leaving_the_lists_cancels(self, engine, ask):
        handle = engine.submit(ask([*WORLD.encode(" one two three four five six seven")]))
        lists = handle.batches()
        await anext(lists)
        await lists.aclose()
        assert handle.over

    async def test_the_loop_runs_on_while_the_model_works(self, engine, ask, runtime):
        gate = Gate(runtime)
        task = asyncio.create_task(
            engine.submit(ask([*WORLD.encode(" one two three"), 261])).aresult()
        )
        gate.go.release(3)  # two chunks of the prompt and one word: a delta lies ready
        for _ in range(4):
            await asyncio.to_thread(gate.arrived.acquire, timeout=10)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done()
        gate.release()
        assert (await task).text == "one two three"

    async def test_many_at_once(self, engine, ask):
        request = ask([*WORLD.encode(" Hi"), 261])
        done = await asyncio.gather(*(engine.submit(request).aresult() for _ in range(50)))
        assert {one.text for one in done} == {"Hi"}

    async def test_errors_reach_the_task(self, engine, ask, runtime):
        def fail(_: Sequence[int]) -> None:
            raise OSError("no memory")

        runtime.before_forward = fail
        with pytest.raises(EngineError, match="no memory"):
            await engine.submit(ask()).aresult()
        with pytest.raises(EngineError, match="no memory"):
            [event async for event in engine.submit(ask())]
        with pytest.raises(EngineError, match="no memory"):
            [events async for events in engine.submit(ask()).batches()]

    def test_a_loop_that_was_closed_meanwhile_does_no_harm(self, engine, ask, runtime):
        gate = Gate(runtime)

        async def leave() -> None:
            handle = engine.submit(ask([261]))
            waiting = handle.__aiter__().__anext__()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(waiting, 0.01)

        asyncio.run(leave())
        gate.release()
        assert engine.submit(ask([261])).result().text == ""


class TestErrors:
    """A request that fails fails alone, and says why."""

    def test_an_error_of_the_runtime_keeps_its_cause(self, engine, ask, runtime):
        def fail(_: Sequence[int]) -> None:
            raise RuntimeError("out of memory")

        runtime.before_forward = fail
        with pytest.raises(EngineError, match="RuntimeError: out of memory") as caught:
            engine.submit(ask()).result()
        assert isinstance(caught.value.__cause__, RuntimeError)
        runtime.before_forward = None
        assert engine.submit(ask([261])).result().text == ""

    def test_an_error_of_this_package_stays_what_it_is(self, engine, ask, runtime):
        def fail(_: Sequence[int]) -> None:
            raise StateMismatch("another model")

        runtime.before_forward = fail
        with pytest.raises(StateMismatch, match="another model"):
            list(engine.submit(ask()))

    def test_what_is_no_exception_does_not_end_the_worker(self, engine, ask, runtime):
        def fail(_: Sequence[int]) -> None:
            raise SystemExit

        runtime.before_forward = fail
        with pytest.raises(EngineError, match="SystemExit"):
            engine.submit(ask()).result()
        runtime.before_forward = None
        assert engine.submit(ask([261])).result().text == ""

    def test_an_error_of_the_progress_callback_fails_that_request_only(self, engine, ask):
        failing = engine.submit(ask(on_progress=lambda read, _: 1 // (read - read)))
        sound = engine.submit(ask([261]))
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            failing.result()
        assert sound.result().text == ""

    def test_deltas_before_the_error_are_delivered(self, engine, ask, runtime):
        answer = WORLD.encode(" one two")
        request = ask(answer)
        runtime.script_logits([*PROMPT, *answer], torch.full((65_536,), float("nan")))
        events = iter(engine.submit(request))
        assert [next(events), next(events)] == [Delta("one"), Delta(" two")]
        with pytest.raises(EngineError, match="not numbers"):
            next(events)

    def test_an_id_that_the_model_does_not_know_is_refused_at_once(self, engine, ask):
        for wrong in (-1, 65_536):
            with pytest.raises(ValueError, match=f"65536.*{wrong}"):
                engine.submit(ask(prompt=[1, wrong]))

    @pytest.mark.parametrize("name", ["slots", "prefill_budget", "prefill_chunk", "max_queue"])
    def test_a_limit_of_nothing_is_refused(self, runtime, name):
        settings: dict[str, Any] = {name: 0}
        with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
            Engine(runtime, WORLD, **settings)


class TestLifeAndEnd:
    """The worker starts when needed, ends when told or idle, and never outlives the process."""

    def test_no_thread_before_the_first_request(self, engine, ask):
        before = set(threading.enumerate())
        assert not engine.at_work
        engine.submit(ask([261])).result()
        started = set(threading.enumerate()) - before
        assert [thread.name for thread in started] == ["rwkv-engine"]
        assert engine.at_work

    def test_closing_ends_pending_requests(self, engine, ask, runtime):
        gate = Gate(runtime)
        handles = [engine.submit(ask([261])) for _ in range(3)]
        gate.arrived.acquire(timeout=10)
        closer = threading.Thread(target=engine.close)
        closer.start()
        for handle in handles:
            with pytest.raises(EngineError, match="closed"):
                handle.result()
        gate.release()
        closer.join(10)
        assert len(runtime.batches) == 1
        assert not runtime.closed  # its owner closes it
        with pytest.raises(EngineError, match="closed"):
            engine.submit(ask())
        engine.close()

    def test_an_idle_worker_ends_and_another_starts(self, engine, ask, monkeypatch):
        monkeypatch.setattr(engine_module, "_IDLE_SECONDS", 0.01)
        assert engine.submit(ask([261])).result().text == ""
        deadline = time.monotonic() + 10
        while engine._thread is not None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert engine._thread is None
        assert engine.submit(ask([261])).result().text == ""

    def test_an_idle_engine_holds_no_state(self, engine, ask, monkeypatch):
        sequences: list[weakref.ref[TokenSequence]] = []

        def make(*args: Any) -> TokenSequence:
            sequence = TokenSequence(*args)
            sequences.append(weakref.ref(sequence))
            return sequence

        monkeypatch.setattr(engine_module, "TokenSequence", make)
        engine.submit(ask([261])).result()
        deadline = time.monotonic() + 10
        while sequences[0]() is not None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert sequences[0]() is None

    def test_many_threads_get_each_its_own_answer(self, engine, ask, runtime):
        requests = []
        for n in range(12):
            prompt = [*PROMPT, *WORLD.encode(f" {n}")]
            runtime.script(prompt, [*WORLD.encode(f" answer {n}"), 261])
            requests.append(replace(ask(), prompt=prompt))
        found: dict[int, str] = {}

        def ask_one(n: int) -> None:
            found[n] = "".join(
                event.text for event in engine.submit(requests[n]) if isinstance(event, Delta)
            )

        threads = [threading.Thread(target=ask_one, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert found == {n: f"answer {n}" for n in range(12)}

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        head = """
            import os, sys, threading, time, torch
            torch.set_num_threads(1)
            from langchain_rwkv_state.engine import Engine, Request, Sampling
            from langchain_rwkv_state.tokenizer import WorldTokenizer
            from tests.helpers.fake_runtime import FakeRuntime
            runtime = FakeRuntime(65_536)
            engine = Engine(runtime, WorldTokenizer())
            request = Request(runtime.zero_state(), [1, 2, 3], max_tokens=5)
        """
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code)],
            capture_output=True,
            text=True,
            timeout=400,  # most of it is the import of PyTorch on a busy machine
            check=False,
        )

    @pytest.mark.slow
    def test_the_interpreter_ends_in_the_middle_of_an_answer(self):
        found = self.run("""
            runtime.before_forward = lambda tokens: time.sleep(0.01)
            handle = engine.submit(Request(runtime.zero_state(), [1], max_tokens=100_000))
            next(iter(handle)) and print("left")
        """)
        assert (found.returncode, found.stdout, found.stderr) == (0, "left\n", "")

    @pytest.mark.slow
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
    def test_a_forked_child_starts_a_worker_of_its_own(self):
        found = self.run("""
            import warnings
            warnings.simplefilter("ignore")
            gate = threading.Event()
            runtime.before_forward = lambda tokens: gate.wait(20)
            pending = engine.submit(request)
            time.sleep(0.1)
            child = os.fork()
            if child == 0:
                runtime.before_forward = None
                try:
                    pending.result()
                except Exception as error:
                    assert "forked" in str(error), error
                assert engine.submit(request).result().answer_tokens == 5
                os._exit(0)
            gate.set()
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert pending.result().answer_tokens == 5
        """)
        assert (found.returncode, found.stderr) == (0, "")
