"""Out of memory in a pass, or as a state is moved: fewer are served at once, and nobody fails."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_rwkv_state._free_memory import is_out_of_memory
from langchain_rwkv_state.engine import Delta, Done, Engine, Request, Sampling, Thought
from langchain_rwkv_state.engine import engine as engine_module
from langchain_rwkv_state.engine import slots as slots_module
from langchain_rwkv_state.engine.slots import SlotPool
from langchain_rwkv_state.errors import EngineError, ModelLoadError
from langchain_rwkv_state.grammar.constraint import json_schema_constraint
from langchain_rwkv_state.prefix_cache import Caching, PrefixStateCache
from langchain_rwkv_state.runtime.base import Budgets
from langchain_rwkv_state.runtime.native.model import NativeSlots
from langchain_rwkv_state.runtime.slots import Read, Reads, StateSlots
from langchain_rwkv_state.state import RWKVState
from langchain_rwkv_state.tokenizer import JsonTokenizer
from tests.helpers.ahead_slots import AheadSlots
from tests.helpers.checkpoints import write_tokenizer
from tests.helpers.fake_runtime import FakeRuntime
from tests.helpers.scripted import GREEDY
from tests.helpers.watch import wait_until

NO_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB"
ROOM = json_schema_constraint({"type": "object", "properties": {"room": {"type": "integer"}}})


Fails = Callable[[StateSlots, str], bool]


class _Tight(StateSlots):
    """Slots that fail where they are told to; a pass that fails leaves states spoilt."""

    def __init__(self, runtime: Any, count: int, fails: Fails) -> None:
        super().__init__(runtime, count)
        self._fails = fails

    def _try(self, act: str) -> None:
        if self._fails(self, act):
            raise torch.OutOfMemoryError(NO_MEMORY)

    def put(self, slot: int, state: RWKVState) -> None:
        self._try("put")
        super().put(slot, state)

    def get(self, slot: int) -> RWKVState:
        self._try("get")
        return super().get(slot)

    def copy(self, source: int, target: int) -> None:
        self._try("copy")
        super().copy(source, target)


class TightSlots(_Tight):
    """On the host."""

    def read(self, reads: Reads) -> torch.Tensor:
        logits = super().read(reads)  # into each, and then it fails
        self._try("read")
        return logits


class TightAheadSlots(_Tight, AheadSlots):
    """As on a card, a step ahead."""

    def begin_get(self, slot: int) -> Callable[[], RWKVState]:
        self._try("begin_get")
        return super().begin_get(slot)

    def launch(self, reads: Sequence[Read]) -> Any:
        step = super().launch(reads)
        self._try("read")
        return step


def tighten(runtime: Any, fails: Fails, *, ahead: bool = False) -> list[int]:
    """Gives a runtime slots that fail; returns the numbers that are opened, as they are."""
    opened: list[int] = []

    def slots(count: int) -> StateSlots:
        opened.append(count)
        return (TightAheadSlots if ahead else TightSlots)(runtime, count, fails)

    runtime.slots = slots
    runtime.budgets = Budgets(grows=not ahead)
    return opened


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> JsonTokenizer:
    return JsonTokenizer(write_tokenizer(tmp_path_factory.mktemp("t") / "tokenizer.json"))


@pytest.fixture
def runtime(tokenizer: JsonTokenizer) -> FakeRuntime:
    return FakeRuntime(tokenizer.vocab_size)


@pytest.fixture
def serve(runtime: FakeRuntime, tokenizer: JsonTokenizer) -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make(**settings: Any) -> Engine:
        made.append(Engine(runtime, tokenizer, **settings))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def simple(runtime: FakeRuntime, name: int = 5, **more: Any) -> Request:
    return Request(runtime.zero_state(), [name], max_tokens=3, sampling=GREEDY, **more)


def stay(pool: SlotPool, at_work: int) -> bool:
    """In place of `SlotPool.shrink`: memory is there again at once."""
    pool.close()
    return True


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError(NO_MEMORY), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_mean_too_little_memory(error, is_memory):
    assert is_out_of_memory(error) is is_memory
    outer = RuntimeError("It failed.")
    outer.__cause__ = error
    assert is_out_of_memory(outer) is is_memory


def test_two_hundred_requests_are_served_in_the_slots_that_there_is_memory_for(
    runtime, serve, caplog
):
    opened = tighten(runtime, lambda slots, act: act == "read" and slots.count >= 64)
    engine = serve(slots=64)
    handles = [engine.submit(simple(runtime, n)) for n in range(200)]
    found = [handle.result() for handle in handles]
    assert max(opened) == 64
    assert 1 < opened[-1] < 64
    assert engine.stats().decoded_tokens == 600
    warnings = [each.message for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "requests are read again" in warnings[0]
    del runtime.slots
    alone = serve(slots=1)
    assert [alone.submit(simple(runtime, n)).result() for n in (0, 77, 199)] == [
        found[n] for n in (0, 77, 199)
    ]


def test_a_request_that_is_alone_gets_the_memory_of_the_slots_beside_it(runtime, serve):
    tighten(runtime, lambda slots, act: slots.count > 1 and len(runtime.batches) == 3)
    engine = serve(slots=16)
    engine._slots.make_room(16)
    assert engine.submit(simple(runtime)).result().answer_tokens == 3
    assert engine.stats().slots == 1


def test_an_answer_whose_state_cannot_be_copied_out_comes_all_the_same(runtime, serve):
    failing = iter([True])
    tighten(runtime, lambda slots, act: act == "begin_get" and next(failing, False), ahead=True)
    handle = serve(slots=4).submit(simple(runtime))
    wait_until(lambda: handle.over)
    ids = handle.result().answer_ids
    assert handle.result().state == runtime.forward([5, *ids], runtime.zero_state())[1]


def test_a_long_prompt_is_read_in_smaller_pieces(runtime, serve, caplog):
    tighten(runtime, lambda slots, act: act == "read" and len(runtime.batches[-1][0]) > 40)
    prompt, seen = [3] * 200, []
    request = Request(runtime.zero_state(), prompt, on_progress=lambda at, end: seen.append(at))
    engine = serve(slots=1, prefill_chunk=128)
    assert engine.submit(request).result().state == runtime.forward(prompt, request.base)[1]
    assert seen == [32, 64, 96, 128, 160, 192, 200]
    assert caplog.text.count("up to") == 2


def test_what_does_not_fit_alone_fails_alone_and_says_what_to_do(runtime, serve, monkeypatch):
    monkeypatch.setattr(engine_module, "_IDLE_SECONDS", 0.05)
    too_much = 7
    opened = tighten(runtime, lambda slots, act: act == "read" and reads(too_much))

    def reads(token: int) -> bool:
        return any(token in ids for ids in runtime.batches[-1])

    engine = serve(slots=4)
    handles = [engine.submit(simple(runtime, n)) for n in (5, 6, too_much, 8, 9)]
    for handle in (*handles[:2], *handles[3:]):
        assert handle.result().answer_tokens == 3
    with pytest.raises(EngineError, match=r"not enough memory.*OutOfMemoryError: CUDA.*int8") as it:
        handles[2].result()
    assert isinstance(it.value.__cause__, torch.OutOfMemoryError)
    wait_until(lambda: not engine.at_work)
    opened.clear()
    for handle in [engine.submit(simple(runtime, n)) for n in (5, 6, 8, 9)]:
        handle.result()
    assert max(opened) > 1  # once idle, it tries again with as many as were asked for


def test_other_failures_of_the_device_end_those_that_are_served(runtime, serve):
    def fails(slots: StateSlots, act: str) -> bool:
        if act == "read":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return False

    tighten(runtime, fails)
    with pytest.raises(EngineError, match="illegal memory access"):
        serve().submit(simple(runtime)).result()


def test_what_a_callback_raises_is_its_requests_affair(runtime, serve, caplog):
    def fail(at: int, end: int) -> None:
        raise MemoryError("in the callback")

    with pytest.raises(EngineError, match="in the callback"):
        serve().submit(simple(runtime, on_progress=fail)).result()
    assert "read again" not in caplog.text


def test_one_that_is_cancelled_while_it_is_to_be_read_again_is_still_counted(runtime, serve):
    failing = [False]
    tighten(runtime, lambda slots, act: failing[0] and act == "read" and slots.count > 1)
    engine = serve(slots=2)
    long = [Request(runtime.zero_state(), [n], max_tokens=500, sampling=GREEDY) for n in (5, 6)]
    handles = [engine.submit(each) for each in long]
    wait_until(lambda: engine.stats().decoded_tokens > 20)
    failing[0] = True
    wait_until(lambda: engine.stats().queued == 1)
    before = engine.stats().decoded_tokens
    handles[1].cancel()
    handles[0].result()
    wait_until(lambda: not engine.stats().active)
    assert engine.stats().decoded_tokens >= max(before, 500 + 10)


def request_of(
    runtime: FakeRuntime,
    tokenizer: JsonTokenizer,
    name: int,
    cache: PrefixStateCache,
    seen: list[int],
) -> Request:
    """A request of any kind."""
    chance = random.Random(name)
    prompt = [7] * chance.choice([1, 20, 40]) + [name + 1] * chance.choice([1, 30])
    more: dict[str, Any] = {
        "max_tokens": chance.choice([0, 1, 5, 20]),
        "sampling": chance.choice(
            [GREEDY, Sampling(seed=name, top_p=1, temperature=2, presence_penalty=0.3)]
        ),
    }
    if more["max_tokens"]:
        more |= {"stop": chance.choice([(), ("e", "a"), ("\n\n",)])}
        kind = chance.choice(["plain", "settled", "thought", "held"])
        if kind == "settled":
            more |= {"settled": prompt[:-1]}
        elif kind == "thought":
            more |= {"thought": Thought(">", "a"), "settled": prompt[:-1]}
        elif kind == "held":
            more |= {"constraint": ROOM, "max_tokens": 20, "stop": ()}
        if kind != "settled" and chance.random() < 0.5:
            more |= {"canonical": lambda text: tokenizer.encode(f" {text}") if text else []}
    if chance.random() < 0.5:
        more |= {"caching": Caching(cache, ends=(len(prompt) // 2,))}
    common = len(prompt) - ("settled" in more)
    if chance.random() < 0.4:
        more |= {"checkpoints": (common, common // 2, 0)}
    if more["max_tokens"]:
        more |= {"logprobs": chance.choice([None, 0, 3])}
    return Request(
        runtime.zero_state(),
        prompt,
        stop_ids=tokenizer.eos_ids,
        on_progress=lambda at, end: seen.append(at),
        **more,
    )


def answers(
    tokenizer: JsonTokenizer, names: Sequence[int], fails: Fails, *, ahead: bool = False
) -> list[tuple[Done, str, list[int]]]:
    """Serves requests of these names together; returns end, text and progress of each."""
    runtime, cache = FakeRuntime(tokenizer.vocab_size), PrefixStateCache()
    tighten(runtime, fails, ahead=ahead)
    engine = Engine(runtime, tokenizer, slots=4, prefill_chunk=24, prefill_budget=8)
    progress: list[list[int]] = [[] for _ in names]
    handles = [
        engine.submit(request_of(runtime, tokenizer, name, cache, seen))
        for name, seen in zip(names, progress, strict=True)
    ]
    found = []
    for handle, seen in zip(handles, progress, strict=True):
        *deltas, done = list(handle)
        assert isinstance(done, Done)
        text = "".join(each.text for each in deltas if isinstance(each, Delta))
        came = [entry for each in deltas if isinstance(each, Delta) for entry in each.logprobs]
        assert came == list(done.logprobs or ())
        found.append((done, text, seen))
    stats = engine.stats()
    assert stats.decoded_tokens == sum(done.answer_tokens for done, _, _ in found)
    assert stats.prompt_tokens >= sum(done.prompt_tokens - done.reused for done, _, _ in found) - 1
    engine.close()
    return found


@settings(deadline=None, max_examples=60)
@given(
    names=st.lists(st.integers(0, 90), min_size=1, max_size=6, unique=True),
    acts=st.sampled_from(
        [("read",), ("read", "put", "get", "copy"), ("get", "begin_get"), ("copy", "put")]
    ),
    every=st.sampled_from([3, 10, 30]),
    seed=st.integers(0, 2**32),
    shrinks=st.booleans(),
    ahead=st.booleans(),
)
def test_whatever_fails_and_when_answers_and_states_are_those_of_an_undisturbed_run(
    tokenizer, names, acts, every, seed, shrinks, ahead
):
    chance, left = random.Random(seed), 12

    def fails(slots: StateSlots, act: str) -> bool:
        nonlocal left
        failing = act in acts and left > 0 and (slots.count > 1 + ahead or not shrinks)
        failing = failing and chance.random() < 1 / every
        left -= failing
        return failing

    undisturbed = answers(tokenizer, names, lambda slots, act: False)
    # Where it shrinks, there is soon one slot, and then enough memory.
    with nullcontext() if shrinks else patch.object(SlotPool, "shrink", stay):
        disturbed = answers(tokenizer, names, fails, ahead=ahead)
    for (one, text, seen), (other, other_text, _) in zip(disturbed, undisturbed, strict=True):
        assert (one.text, text, one.finish_reason) == (other.text, other_text, other.finish_reason)
        assert one.state == other.state
        assert one.checkpoints == other.checkpoints
        assert one.answer_ids == other.answer_ids
        assert one.thought == other.thought
        assert one.logprobs == other.logprobs
        assert (one.answer_tokens, one.forced_tokens, one.thought_tokens, one.reread) == (
            *(other.answer_tokens, other.forced_tokens, other.thought_tokens, other.reread),
        )
        assert seen == sorted(set(seen))
        assert not seen or seen[-1] == one.prompt_tokens


def test_sessions_and_batches_of_a_chat_go_on_as_if_nothing_had_been(make_chat, monkeypatch):
    """On real arithmetic: what is read again in one go may differ in the last digits."""
    questions = [f"The other one, {n}?" for n in range(5)]

    def talk(**settings: Any) -> tuple[list[str], RWKVState]:
        chat = make_chat(7, temperature=1, seed=3, max_tokens=20, **settings)
        bob = chat.with_session("bob", ttl=60)
        said = [bob.invoke("Hello there"), bob.invoke("And again"), *chat.batch(questions)]
        head = chat.store.head("bob")
        assert head is not None
        state = chat.store.get(head)
        chat.store.delete_session("bob")
        return [answer.text for answer in said], state

    undisturbed, whole = talk(prefix_cache=False)
    chance, failed, read = random.Random(1), 0, NativeSlots.read

    def fail_now_and_then(slots: NativeSlots, reads: Reads) -> torch.Tensor:
        nonlocal failed
        logits = read(slots, reads)
        if chance.random() < 0.1 and failed < 12:
            failed += 1
            raise torch.OutOfMemoryError(NO_MEMORY)
        return logits

    monkeypatch.setattr(NativeSlots, "read", fail_now_and_then)
    monkeypatch.setattr(SlotPool, "shrink", stay)
    for caching in ({"prefix_cache": False}, {}):
        failed = 0
        disturbed, state = talk(**caching)
        assert failed > 3
        assert disturbed == undisturbed
        assert state.derivation == whole.derivation
        for name in state:
            torch.testing.assert_close(state[name], whole[name], rtol=0, atol=1e-4)


def test_a_model_beside_which_no_state_fits_is_told_as_it_is_loaded(runtime, serve, monkeypatch):
    def none(runtime: FakeRuntime, count: int) -> Any:
        raise ModelLoadError(f"no room for {count}")

    engine = serve()
    monkeypatch.setattr(runtime, "budgets", Budgets(grows=False), raising=False)
    monkeypatch.setattr(slots_module, "open_slots", none)
    with pytest.raises(ModelLoadError, match="no room for 1"):
        engine.open()
