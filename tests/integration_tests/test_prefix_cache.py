"""What is cached never changes an answer, and what was read is not read again."""

import asyncio
import logging
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from langchain_rwkv_state import ChatRWKV, DiskStateStore, PrefixStateCache
from langchain_rwkv_state.engine import Request
from langchain_rwkv_state.errors import RWKVStateError, StoreError
from langchain_rwkv_state.prefix_cache import Namespace
from langchain_rwkv_state.prefix_cache.disk_tier import DiskTier
from langchain_rwkv_state.prefix_cache.prefix import APART
from langchain_rwkv_state.prompt.markers import STATE_KEY, marker
from tests.helpers.devices import ON_CARD, ON_CPU, on_card
from tests.helpers.law import TOLERANCE, assert_same, ids, read_once, turns
from tests.helpers.watch import watch

EVERY_MODEL = [
    *((version, ON_CPU) for version in (4, 5.2, 6, 7)),
    (7, "package cpu fp32"),
    on_card((7, ON_CARD)),
]
SYSTEM = SystemMessage("You are a careful assistant who answers in one sentence. " * 4)


def human(text) -> HumanMessage:
    return HumanMessage(str(text))


def read_by(answer) -> int:
    """Returns how many ids of its prompt were read for an answer."""
    usage = answer.usage_metadata
    return int(usage["input_tokens"] - usage["input_token_details"]["cache_read"])


def ref_of(answer) -> str:
    return str(answer.response_metadata[STATE_KEY])


@pytest.fixture(params=EVERY_MODEL, ids=lambda param: f"rwkv-{param[0]}-{param[1]}")
def pair(request, make_chat):
    """One model with a cache and without."""
    model, strategy = request.param
    return (
        make_chat(model, strategy=strategy, max_tokens=8),
        make_chat(model, strategy=strategy, max_tokens=8, prefix_cache=False),
    )


@pytest.mark.filterwarnings("ignore:The prompt holds the text of a state marker")
@settings(max_examples=10)
@given(turns=turns, seed=st.integers(0, 2**32), temperature=st.sampled_from([0.0, 1.0]))
def test_transcripts_replayed_give_the_states_of_one_reading(pair, turns, seed, temperature):
    cached, _ = pair
    transcript = []
    for messages in turns:
        transcript += messages
        for _ in range(2):
            answer = cached.invoke(transcript, seed=seed, temperature=temperature, top_p=1.0)
            whole = [*transcript, AIMessage(answer.content)]
            assert_same(cached, cached.store.get(ref_of(answer)), read_once(cached, whole))
        transcript.append(AIMessage(answer.content))


def test_logits_of_a_hit_are_those_of_one_reading(pair):
    cached, _ = pair
    rng, cache = random.Random(0), cached.prefix_cache
    loaded = cached.loaded()
    for number in range(20):
        messages = [SYSTEM, *(human(rng.randrange(3)) for _ in range(rng.randrange(1, 4)))]
        cached.invoke([*messages, human(number)])
        prompt = ids(cached, [*messages, human("next")])
        hit = cache.lookup(Namespace.of(loaded.zero), prompt)
        assert hit is not None
        here = loaded.runtime.forward(prompt[hit.n_tokens :], hit.cached.state)[0]
        there = loaded.runtime.forward(prompt, loaded.zero)[0]
        assert float((here.softmax(0) - there.softmax(0)).abs().max()) <= TOLERANCE
        whole = (*ids(cached, [*messages, human(number)]), *answer_prompt(cached))
        full = cache.lookup(Namespace.of(loaded.zero), whole)
        assert full is not None
        assert full.n_tokens == len(whole)
        expected = loaded.runtime.forward(whole, loaded.zero)[0]
        assert torch.allclose(full.cached.logits, expected, atol=TOLERANCE)


def answer_prompt(chat) -> tuple[int, ...]:
    [segment] = chat.loaded().template.segments([], start=False, answer=True)
    return tuple(segment.ids)


def test_random_requests_with_shared_beginnings_get_the_answers_of_a_model_without(make_chat):
    cached = make_chat("demo", max_tokens=12, prefix_cache=PrefixStateCache(ram_bytes=4 << 20))
    plain = make_chat("demo", max_tokens=12, prefix_cache=False)
    rng = random.Random(0)
    for _ in range(120):
        messages: list = [SystemMessage(f"Your name is {rng.choice(['Ada', 'Vera'])}. " * 3)]
        for _ in range(rng.randrange(1, 4)):
            messages.append(human(f"My name is {rng.choice(['Bob', 'Eve'])}."))
        messages.append(human(rng.choice(["What is my name?", "What is your name?"])))
        stop = rng.choice([None, ["."], ["a", "is"]])
        assert (
            cached.invoke(messages, stop=stop).content == plain.invoke(messages, stop=stop).content
        )
    stats = cached.prefix_cache.stats()
    assert stats.hits > 100
    assert stats.nbytes["ram"] <= stats.budgets["ram"]


@pytest.mark.each_device
class TestWhatIsRead:
    def test_a_document_once_and_then_the_questions(self, chat):
        watched = watch(chat)
        first = chat.invoke([SYSTEM, human("One?")])
        block = len(ids(chat, [SYSTEM]))
        assert read_by(first) == first.usage_metadata["input_tokens"]
        for question in ("Two?", "Three?"):
            answer = chat.invoke([SYSTEM, human(question)])
            assert answer.usage_metadata["input_token_details"]["cache_read"] == block
        assert chat.prefix_cache.stats().tokens_saved == 2 * block
        assert max(map(len, watched.calls[-30:])) < block

    def test_a_replayed_transcript_only_its_new_turn(self, chat):
        said = [SYSTEM, human("One?")]
        for question in ("Two?", "Three?", "Four?"):
            answer = chat.invoke(said)
            said = [*said, AIMessage(answer.content), human(question)]
            new = chat.loaded().template.segments([human(question)], start=False, answer=True)
            assert read_by(chat.invoke(said)) == sum(len(segment.ids) for segment in new)

    def test_nothing_to_answer_again(self, chat):
        first = chat.invoke([SYSTEM, human("One?")])
        watched = watch(chat)
        again = chat.invoke([SYSTEM, human("One?")])
        assert read_by(again) == 0
        assert again.content == first.content
        assert ref_of(again) == ref_of(first)
        assert chat.loaded().engine.stats().prompt_tokens == 0
        assert watched.calls  # the answer

    def test_what_two_prompts_share_from_the_third_time_on(self, chat):
        shared = "A long text. " * 20
        for number, expected in ((1, 0), (2, 0), (3, 200)):
            answer = chat.invoke([human(f"{shared}{number}?")])
            assert answer.usage_metadata["input_token_details"]["cache_read"] >= expected

    def test_prefill_reads_and_leaves_nothing_to_read(self, chat):
        chat.prefill([SYSTEM])
        answer = chat.invoke([SYSTEM, human("One?")])
        block = len(ids(chat, [SYSTEM]))
        assert answer.usage_metadata["input_token_details"]["cache_read"] == block
        said = []
        ref = chat.prefill([SYSTEM], on_progress=lambda *at: said.append(at))
        assert said == []
        assert chat.store.get(ref).n_tokens == block

    def test_plain_texts_too(self, make_llm):
        llm = make_llm(7)
        plain = make_llm(7, prefix_cache=False)
        text = "Once upon a time. " * 10
        for prompts in ([text, text], [text], [text + "And"]):
            assert llm.batch(prompts) == plain.batch(prompts)
        assert llm.prefix_cache.stats().hits >= 2

    def test_nothing_is_kept_with_the_cache_off(self, make_chat, prefix_cache):
        chat = make_chat(7, prefix_cache=False)
        assert chat.prefix_cache is None
        for _ in range(2):
            assert read_by(chat.invoke("Hello.")) > 0
        assert prefix_cache.stats().lookups == 0

    def test_a_line_in_the_log(self, chat, caplog):
        caplog.set_level(logging.INFO, "langchain_rwkv_state.prefix_cache")
        chat.invoke([SYSTEM, human("One?")])
        chat.invoke([SYSTEM, human("Two?")])
        block = len(ids(chat, [SYSTEM]))
        assert any(f"{block} of " in record.message for record in caplog.records)


class TestConversations:
    def test_new_sessions_share_the_system_prompt_alone(self, chat):
        block = len(ids(chat, [SYSTEM]))
        for name in ("ada", "bob"):
            answer = chat.with_session(name).invoke([SYSTEM, human("My secret is 17.")])
        assert answer.usage_metadata["input_token_details"]["cache_read"] == block
        assert chat.prefix_cache.stats().entries == 1

    def test_turns_of_a_session_leave_nothing_behind(self, chat, prefix_cache):
        bob = chat.with_session("bob")
        for _ in range(3):
            bob.invoke("My secret is 17.")
        assert prefix_cache.stats().entries == 0

    def test_a_document_behind_a_marker_is_read_once_and_stays_in_memory(self, make_chat, tmp_path):
        cache = PrefixStateCache(ram_bytes=8 << 20, disk=tmp_path / "prefixes")
        chat = make_chat(7, prefix_cache=cache)
        document = SystemMessage("What the document says. " * 20)
        known = marker(ref_of(chat.invoke("Hello.")))
        first = chat.invoke([known, document, human("One?")])
        second = chat.invoke([known, document, human("Two?")])
        assert read_by(second) < read_by(first) / 4
        other = marker(ref_of(chat.invoke("Good day to you.")))
        assert read_by(chat.invoke([other, document, human("Two?")])) > read_by(second)
        assert cache.flush()
        assert cache._disk.tier is not None
        roots = {row.namespace.base for row in cache._disk.tier.rows()}
        assert roots <= {"zero"}
        cache.close()

    def test_salts_keep_tenants_apart(self, chat):
        ada = chat.invoke([SYSTEM, human("One?")], cache_salt="ada")
        bob = chat.invoke([SYSTEM, human("One?")], cache_salt="bob")
        again = chat.invoke([SYSTEM, human("One?")], cache_salt="ada")
        assert read_by(ada) == read_by(bob) > 0
        assert read_by(again) == 0
        salted = chat.model_copy(update={"cache_salt": "bob"})
        assert read_by(salted.invoke([SYSTEM, human("One?")])) == 0
        salted.unload()
        assert sum(chat.prefix_cache.stats().misses.values()) == 2

    def test_a_pinned_prefix(self, chat):
        reused = chat.pin_prefix([SYSTEM], name="system")
        assert reused == 0
        assert chat.prefix_cache.stats().pinned == ("system",)
        block = len(ids(chat, [SYSTEM]))
        answer = chat.invoke([SYSTEM, human("One?")])
        assert answer.usage_metadata["input_token_details"]["cache_read"] == block


class TestTogether:
    def test_a_cold_prefix_is_read_once(self, make_chat):
        chat = make_chat(7, max_tokens=2)
        watched = watch(chat)
        watched.delay_seconds = 0.01
        system = SystemMessage("Word. " * 100)
        block = len(ids(chat, [system]))
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda n: chat.invoke([system, human(n)]), range(16)))
        assert sum(read_by(answer) >= block for answer in answers) == 1
        assert chat.prefix_cache.stats().shared > 0  # those that came later found it

    async def test_a_cold_prefix_is_read_once_by_tasks(self, make_chat):
        chat = make_chat(7, max_tokens=2)
        watched = watch(chat)
        watched.delay_seconds = 0.01
        asked = [chat.ainvoke([SYSTEM, human(number)]) for number in range(12)]
        answers = await asyncio.gather(*asked)
        block = len(ids(chat, [SYSTEM]))
        assert sum(map(read_by, answers)) < block + 12 * 40

    async def test_hundreds_that_wait_leave_the_event_loops_threads_alone(self, make_chat):
        chat = make_chat(7, max_tokens=2)
        watched = watch(chat)
        watched.delay_seconds = 2.0
        tasks = [asyncio.create_task(chat.ainvoke([SYSTEM, human("One?")])) for _ in range(500)]
        engine = chat.loaded().engine
        while engine.stats().queued + engine.stats().active < 500:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "unrelated"), 1.0) == "unrelated"
        assert not any(task.done() for task in tasks)
        watched.delay_seconds = 0
        answers = await asyncio.gather(*tasks)
        assert sum(read_by(answer) >= APART for answer in answers) == 1
        assert len({answer.content for answer in answers}) == 1

    def test_prompts_of_one_call_are_read_once(self, make_llm):
        llm = make_llm(7, max_tokens=2)
        text = "Once upon a time. " * 20
        result = llm.generate([text] * 4)
        assert len({each[0].text for each in result.generations}) == 1
        assert llm.prefix_cache.stats().tokens_saved > 0

    def test_whoever_waits_for_one_that_is_cancelled_reads_for_itself(self, make_chat):
        chat = make_chat(7, max_tokens=2)
        watched = watch(chat)
        watched.delay_seconds = 0.05
        system = SystemMessage("Word. " * 300)
        stream = chat.stream([system, human("One?")])
        reader = threading.Thread(target=lambda: next(stream, None))
        engine, plan = chat.plan_call([system, human("One?")], None, {})
        handle = engine.submit(plan.request)
        reader.start()
        handle.cancel()
        reader.join(60)
        stream.close()
        watched.delay_seconds = 0
        answer = chat.invoke([system, human("One?")])
        plain = make_chat(7, max_tokens=2, prefix_cache=False)
        assert answer.content == plain.invoke([system, human("One?")]).content

    def test_waiting_counts_for_the_deadline(self, make_chat):
        chat = make_chat(7, max_tokens=2)
        watched = watch(chat)
        watched.delay_seconds = 0.2
        system = SystemMessage("Word. " * 300)
        engine, plan = chat.plan_call([system, human("One?")], None, {})
        handle = engine.submit(plan.request)
        with pytest.raises(RWKVStateError, match="deadline"):
            chat.invoke([system, human("One?")], timeout=0.1)
        handle.cancel()

    async def test_a_cancelled_task_leaves_no_request_behind(self, make_chat):
        chat = make_chat(7)
        watched = watch(chat)
        watched.delay_seconds = 0.05
        task = asyncio.create_task(chat.ainvoke([SYSTEM, human("One?")]))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        watched.delay_seconds = 0
        for _ in range(200):
            if chat.loaded().engine.stats().active == 0:
                break
            await asyncio.sleep(0.05)
        assert chat.loaded().engine.stats().active == 0


class TestFailures:
    @pytest.mark.parametrize("verb", ["lookup", "insert"])
    def test_of_the_cache_are_misses(self, make_chat, verb, monkeypatch):
        cache = PrefixStateCache(ram_bytes=8 << 20)
        chat, plain = make_chat(7, prefix_cache=cache), make_chat(7, prefix_cache=False)
        expected = plain.invoke([SYSTEM, human("One?")])

        def fail(*_, **__):
            raise MemoryError("no room")

        monkeypatch.setattr(cache, verb, fail)
        for _ in range(2):
            answer = chat.invoke([SYSTEM, human("One?")])
            assert answer.content == expected.content
            assert read_by(answer) == read_by(expected)

    def test_of_the_model_are_those_of_one_request(self, chat):
        loaded = chat.loaded()
        with pytest.raises(ValueError, match="Token ids"):
            loaded.engine.submit(Request(base=loaded.zero, prompt=(10**6,), max_tokens=1))
        assert chat.invoke([SYSTEM, human("One?")]).content is not None


class TestProcesses:
    CODE = """
import sys
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_rwkv_state import ChatRWKV, MemoryStateStore, PrefixStateCache
cache = PrefixStateCache(ram_bytes=8 << 20, disk=sys.argv[2])
chat = ChatRWKV(model=sys.argv[1], temperature=0, max_tokens=4, store=MemoryStateStore(),
                prefix_cache=cache)
system = SystemMessage("You are a careful assistant who answers in one sentence. " * 4)
for question in sys.argv[3:]:
    answer = chat.invoke([system, HumanMessage(question)])
    usage = answer.usage_metadata
    print(usage["input_tokens"] - usage["input_token_details"]["cache_read"], end=" ")
cache.close()
"""

    def run(self, chat, path, *questions) -> list[int]:
        command = [sys.executable, "-c", self.CODE, chat.model, str(path), *questions]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    def test_a_prompt_is_read_once_by_two_processes(self, chat, tmp_path):
        block = len(ids(chat, [SYSTEM]))
        cold, warm = self.run(chat, tmp_path / "p", "One?", "Two?")
        assert cold > block > warm
        assert all(read < block for read in self.run(chat, tmp_path / "p", "Three?", "Four?"))

    def test_a_pin_survives_and_is_warmed_when_the_model_is_loaded(self, make_chat, tmp_path):
        first = PrefixStateCache(ram_bytes=8 << 20, disk=tmp_path / "p")
        make_chat(7, prefix_cache=first).pin_prefix([SYSTEM], name="system")
        first.close()
        second = PrefixStateCache(ram_bytes=8 << 20, disk=tmp_path / "p")
        chat = make_chat(7, prefix_cache=second)
        chat.loaded()
        stats = second.stats()
        assert stats.pinned == ("system",)
        assert stats.nbytes["ram"] > 0
        assert read_by(chat.invoke([SYSTEM, human("One?")])) < len(ids(chat, [SYSTEM]))
        second.close()


def test_the_default_is_one_cache_for_the_process(tiny_model, store):
    one = ChatRWKV(model=str(tiny_model(7)), store=store)
    other = ChatRWKV(model=str(tiny_model(7)), store=store)
    assert one.prefix_cache is not None
    assert one.prefix_cache is other.prefix_cache
    budgets = one.prefix_cache.stats().budgets
    assert 32 << 20 <= budgets["ram"] <= 1 << 30
    assert budgets["disk"] == 0


class TestAnothersDirectory:
    """A cache forgets what it holds, so it keeps away from what is no cache."""

    def test_a_session_store_is_refused_and_unharmed(self, make_chat, tmp_path):
        with DiskStateStore(tmp_path / "store") as store:
            bob = make_chat(7, store=store).with_session("bob")
            bob.invoke("Hello.")
            head = bob.head
        with pytest.raises(StoreError, match="is a session store"):
            PrefixStateCache(disk=tmp_path / "store")
        with pytest.raises(StoreError, match="is a session store"):
            DiskTier(tmp_path / "store", 1 << 20)
        with DiskStateStore(tmp_path / "store") as store:
            assert store.get(head).n_tokens > 0
            assert store.check().sound

    def test_a_folder_of_other_things_is_refused(self, tmp_path):
        (tmp_path / "a.txt").write_text("x")
        with pytest.raises(StoreError, match="holds other things"):
            PrefixStateCache(disk=tmp_path)
        assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]

    @pytest.mark.parametrize("odd", ["1GB", -1, True, 1.5])
    def test_a_size_is_a_number_of_bytes(self, odd):
        for name in ("ram_bytes", "disk_bytes", "device_bytes"):
            with pytest.raises(ValueError, match=f"{name} is a number of bytes"):
                PrefixStateCache(**{name: odd})
