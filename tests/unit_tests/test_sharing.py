"""Chat objects are settings: whatever number of them names a model or a store, there is one.

No test holds on to a copy: what is shared must be so without that.
"""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField

from langchain_rwkv_state import (
    RWKVLLM,
    ChatRWKV,
    DiskStateStore,
    MemoryStateStore,
    PrefixStateCache,
    RWKVStateHistory,
)
from langchain_rwkv_state.engine import Limits
from langchain_rwkv_state.engine import engine as engine_module
from langchain_rwkv_state.messages import marker
from langchain_rwkv_state.prompt.template import WorldTemplate
from langchain_rwkv_state.runtime.base import Budgets
from langchain_rwkv_state.runtime.handle import RuntimeHandle
from langchain_rwkv_state.runtime.registry import MODELS
from langchain_rwkv_state.store.resources import OPEN_STORES
from langchain_rwkv_state.tokenizer import JsonTokenizer
from tests.helpers.watch import wait_until


def ref_of(answer: Any) -> str:
    return str(answer.response_metadata["rwkv_state"])


def by_pickle(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


@pytest.fixture
def own_model(tmp_path, tiny_model):
    """A model that no other test holds."""
    folder = tiny_model(7).parent
    for name in ("model.pth", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    return str(tmp_path / "model.pth")


def engines() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "rwkv-engine"}


def test_all_objects_over_one_model_share_its_engine(own_model, store):
    chats = [ChatRWKV(model=own_model, store=store) for _ in range(3)]
    llm = RWKVLLM(model=own_model, store=store)
    configurable: Any = chats[0].configurable_fields(temperature=ConfigurableField(id="t"))
    before = engines()
    for turn in range(20):
        configurable.invoke("Hi", {"configurable": {"t": turn / 10}})
        ChatRWKV(model=own_model, store=store, max_tokens=turn + 1).invoke("Hi")
    for model in (*chats, chats[0].bind(stop=["x"]), chats[0].model_copy()):
        model.invoke("Hi")
    assert len(engines() - before) == 1
    assert len({id(model.loaded().engine) for model in (*chats, llm)}) == 1
    for model in (*chats, llm):
        model.unload()


def test_64_objects_that_are_called_at_once_are_one_batch_on_one_thread(own_model, store):
    class Mine(WorldTemplate):
        name = "mine"

    beside = own_model.replace("model.pth", "tokenizer.json")
    settings: list[dict[str, Any]] = [
        {},
        {"template": Mine},
        {"tokenizer": beside},
        {"tokenizer": JsonTokenizer(beside)},
    ]
    chats = [
        ChatRWKV(
            model=own_model, store=store, prefix_cache=False, temperature=0, max_tokens=60, **more
        )
        for more in settings * 16
    ]
    models, threads, ready = len(MODELS), engines(), threading.Barrier(64)

    def called(chat: Any) -> int:
        ready.wait()
        return int(chat.invoke("Hi").usage_metadata["output_tokens"])

    with ThreadPoolExecutor(64) as pool:
        written = sum(pool.map(called, chats))
    assert len(MODELS) == models + 1
    assert len(engines() - threads) == 1
    assert len({id(chat.loaded().engine) for chat in chats}) == 1
    assert chats[0].loaded().engine.stats().steps < written / 8
    for chat in chats:
        chat.unload()
    assert len(MODELS) == models


def test_400_calls_of_a_configurable_model_leave_no_more_than_one(own_model, tmp_path):
    fields = {name: ConfigurableField(id=name) for name in ("temperature", "store", "max_tokens")}
    chat = ChatRWKV(model=own_model, prefix_cache=PrefixStateCache(), max_tokens=1)
    configurable: Any = chat.configurable_fields(**fields)

    def called(turn: int) -> tuple[int, ...]:
        configured = {"temperature": turn / 400, "store": str(tmp_path / "states"), "max_tokens": 1}
        configurable.invoke("Hi", {"configurable": configured})
        gc.collect()
        return (
            threading.active_count(),
            len(MODELS),
            len(OPEN_STORES),
            psutil.Process().num_fds() if hasattr(psutil.Process, "num_fds") else 0,
        )

    one = called(0)
    for turn in range(1, 399):
        configured = {"temperature": turn / 400, "store": str(tmp_path / "states")}
        configurable.invoke("Hi", {"configurable": configured})
    last = called(399)
    # What other tests left may go meanwhile.
    assert all(now <= then for now, then in zip(last, one, strict=True)), (one, last)


def test_another_template_shares_the_engine_and_not_the_fingerprint(own_model, store):
    class Mine(WorldTemplate):
        name = "mine"

    one = ChatRWKV(model=own_model, store=store)
    other = ChatRWKV(model=own_model, store=store, template=Mine)
    assert one.loaded().engine is other.loaded().engine
    fingerprints = [each.loaded().runtime.fingerprint for each in (one, other)]
    assert len(set(fingerprints)) == 2
    for each, fingerprint in zip((one, other), fingerprints, strict=True):
        state = store.get(ref_of(each.invoke("Hi")))
        assert state.fingerprint == fingerprint
        each.unload()


def test_a_template_may_be_made_by_an_object_without_a_hash(own_model, store):
    @dataclass
    class Maker:
        name: str

        def __call__(self, tokenizer: Any) -> WorldTemplate:
            return WorldTemplate(tokenizer)

    chat = ChatRWKV(model=str(own_model), store=store, max_tokens=1, template=Maker("mine"))
    assert isinstance(chat.loaded().template, WorldTemplate)
    chat.unload()


def test_copies_at_run_time_answer_from_each_others_references(own_model, tmp_path):
    chat = ChatRWKV(model=own_model, store=str(tmp_path / "states"), temperature=0, max_tokens=5)
    model: Any = chat.configurable_fields(temperature=ConfigurableField(id="t"))
    config = {"configurable": {"t": 0.0}}
    ref = ref_of(model.invoke("Hi", config))
    gc.collect()
    again = model.invoke([marker(ref), HumanMessage("Again.")], config)
    assert again.usage_metadata["input_token_details"]["cache_read"] > 0
    with DiskStateStore(tmp_path / "states") as store:
        store.commit("bob", ref_of(again), None)
    chat.unload()


def test_making_a_chat_object_is_cheap_once_the_model_is_at_work(own_model, store, monkeypatch):
    chat = ChatRWKV(model=own_model, store=store)
    chat.loaded()
    from langchain_rwkv_state import loaded
    from langchain_rwkv_state.runtime import loader

    for module, name in ((loader, "_load"), (loaded, "load_tokenizer")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("loaded again"))
    for _ in range(3):
        assert ChatRWKV(model=own_model, store=store).loaded() is chat.loaded()
    chat.unload()


class TestTheEnd:
    def test_a_dropped_model_stays_for_a_moment_after_its_last_answer(self, own_model, monkeypatch):
        monkeypatch.setattr(engine_module, "_IDLE_SECONDS", 2.0)  # a busy gc takes less
        before = len(MODELS)
        chat = ChatRWKV(model=own_model, store=MemoryStateStore(), max_tokens=3)
        chat.invoke("Hi")
        model = id(chat.loaded())
        del chat
        gc.collect()
        assert len(MODELS) != before
        again = ChatRWKV(model=own_model, store=MemoryStateStore(), max_tokens=3)
        assert id(again.loaded()) == model  # whoever comes now does not load it again
        del again
        gc.collect()
        wait_until(lambda: len(MODELS) == before)

    def test_unloading_the_last_one_frees_it_at_once(self, own_model):
        before = len(MODELS)
        one, other = (ChatRWKV(model=own_model, store=MemoryStateStore()) for _ in range(2))
        one.invoke("Hi", max_tokens=2)
        other.invoke("Hi", max_tokens=2)
        one.unload()
        assert other.invoke("Hi", max_tokens=2).content is not None
        other.unload()
        assert len(MODELS) == before

    def test_unloading_one_leaves_the_answers_of_others_alone(self, own_model, store):
        one = ChatRWKV(model=own_model, store=store, max_tokens=200)
        other = ChatRWKV(model=own_model, store=store, max_tokens=200)
        stream = other.stream("Hi")
        next(stream)
        one.invoke("Hi", max_tokens=1)
        one.unload()
        assert list(stream)
        other.unload()


class TestLimits:
    def test_the_first_who_sets_one_has_its_way_and_the_second_a_warning(self, own_model, store):
        plain = ChatRWKV(model=own_model, store=store)
        first = ChatRWKV(model=own_model, store=store, slots=3)
        second = ChatRWKV(model=own_model, store=store, slots=5, max_queue=7)
        engine = plain.loaded().engine
        assert engine.limits.slots == 64
        first.loaded()
        assert engine.limits.slots == 3
        with pytest.warns(UserWarning, match="slots=3.*slots=5 is not applied") as seen:
            second.loaded()
        assert len(seen) == 1
        assert (engine.limits.slots, engine.limits.max_queue) == (3, 7)
        for each in (first, second, plain):
            each.unload()

    def test_what_one_that_is_gone_set_is_forgotten(self, own_model, store):
        plain = ChatRWKV(model=own_model, store=store)
        plain.loaded()
        ChatRWKV(model=own_model, store=store, slots=3).loaded()
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            another = ChatRWKV(model=own_model, store=store, slots=4)
            assert another.loaded().engine.limits.slots == 4
        another.unload()
        plain.unload()

    def test_a_budget_that_nobody_sets_is_the_devices_own(self, own_model, store, monkeypatch):
        monkeypatch.setattr(RuntimeHandle, "budgets", Budgets(2048, 512))
        plain = ChatRWKV(model=own_model, store=store, slots=3)
        engine = plain.loaded().engine
        assert engine.limits == Limits(slots=3, prefill_budget=512)
        asked = ChatRWKV(model=own_model, store=store, prefill_budget=plain.prefill_budget)
        asked.loaded()
        assert engine.limits == Limits(slots=3, prefill_budget=64)  # for somebody said so
        asked.unload()
        plain.unload()

    def test_no_more_are_served_at_once_than_slots(self, own_model, store):
        chat = ChatRWKV(model=own_model, store=store, slots=2, max_tokens=30)
        chat.batch(["Hi"] * 8, {"max_concurrency": 8})
        assert chat.loaded().engine.stats().slots <= 4
        assert chat.loaded().engine.stats().max_slots == 2
        chat.unload()


class TestWhatTravels:
    """Sessions and histories are values, as the model is."""

    @pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, by_pickle])
    def test_a_session_a_chain_and_a_history_over_a_store_on_disk(self, own_model, tmp_path, way):
        store = DiskStateStore(tmp_path / "states")
        chat = ChatRWKV(model=own_model, store=store, temperature=0, max_tokens=4)
        bob = chat.with_session("bob", ttl="1h", on_conflict="fork")
        bob.invoke("Hello.")
        copied = way(bob)
        assert (copied.session, copied.ttl, copied.on_conflict) == ("bob", "1h", "fork")
        assert copied.head == bob.head
        copied.invoke("Again.")
        assert copied.head == bob.head
        assert len(bob.log()) == 2
        chain = ChatPromptTemplate.from_template("{q}") | bob
        way(chain).invoke({"q": "And again."})
        assert len(bob.log()) == 3
        history = RWKVStateHistory("bob", store, ttl="1h")
        assert history.messages
        again = way(history)
        assert (again.session_id, again.ttl) == ("bob", "1h")
        assert len(again.messages) == 1
        assert again.messages != history.messages  # a turn of its own
        chat.unload()

    def test_over_a_store_in_memory_they_are_copied_and_say_why_they_do_not_travel(self, chat):
        for thing in (chat.with_session("bob"), RWKVStateHistory("bob", chat.store)):
            assert copy.deepcopy(thing).store is chat.store
            with pytest.raises(TypeError, match=r"in memory|MemoryStateStore"):
                pickle.dumps(thing)

    @pytest.mark.parametrize("name", ["", "x" * 513, None, 5, b"bob"])
    def test_a_name_that_is_none_is_refused_at_once(self, chat, name):
        for make in (chat.with_session, lambda it: RWKVStateHistory(it, chat.store)):
            with pytest.raises(ValueError, match="session name"):
                make(name)

    @pytest.mark.parametrize("ttl", [0, -1, "soon", True, float("nan"), [1]])
    def test_a_time_to_live_that_is_none_is_refused_at_once(self, chat, ttl):
        for make in (chat.with_session, lambda it, ttl: RWKVStateHistory(it, chat.store, ttl=ttl)):
            with pytest.raises(ValueError, match="time to live"):
                make("bob", ttl=ttl)
