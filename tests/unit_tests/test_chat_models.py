import contextvars
import copy
import gc
import json
import pickle
import threading
import warnings
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.globals import set_llm_cache
from langchain_core.load import dumpd, load
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import (
    ChatPromptTemplate,
    HumanMessagePromptTemplate,
    PromptTemplate,
)
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnableSequence

from langchain_rwkv_state import ChatRWKV, DiskStateStore, MemoryStateStore
from langchain_rwkv_state.errors import (
    DeadlineExceeded,
    EngineError,
    MarkerError,
    ModelLoadError,
    SessionConflict,
    StateExpired,
    StateMismatch,
    StateNotFound,
    UnsupportedContentError,
)
from langchain_rwkv_state.prompt.markers import STATE_KEY, marker
from langchain_rwkv_state.state import is_reference
from tests.helpers.watch import is_idle, wait_until, watch

NOWHERE = "rwkv1-" + "0" * 64
NAMESPACES = ["langchain_rwkv_state", "langchain", "langchain_core"]
ALLOWED: list[Any] = [ChatRWKV, ChatPromptTemplate, HumanMessagePromptTemplate, PromptTemplate]
ALLOWED += [RunnableSequence, StrOutputParser]
MESSAGES = [SystemMessage("Be kind."), HumanMessage("Hello, who are you?")]


def look(at: str) -> str:
    """Look at something."""
    return at


def n_written(chat, messages):
    """Tokens of messages alone, with no answer to follow."""
    return sum(len(s.ids) for s in chat.loaded().template.segments(messages, start=True))


def ref_of(message: AIMessage) -> str:
    return str(message.response_metadata[STATE_KEY])


def joined(chunks) -> AIMessageChunk:
    total = None
    for chunk in chunks:
        total = chunk if total is None else total + chunk
    assert isinstance(total, AIMessageChunk)
    return total


def counted(answer) -> dict:
    """Returns a message's token counts, without what the prefix cache saved."""
    return {k: v for k, v in answer.usage_metadata.items() if k != "input_token_details"}


@pytest.mark.each_device
class TestEveryWayOfAsking:
    """Greedy answers and their references do not depend on the way a model is called."""

    @pytest.fixture
    def expected(self, chat):
        answer = chat.invoke(MESSAGES)
        assert answer.content
        return answer

    def same(self, answer: AIMessage, expected: AIMessage) -> None:
        assert answer.content == expected.content
        assert counted(answer) == counted(expected)
        assert answer.response_metadata == expected.response_metadata

    def test_invoke_again(self, chat, expected):
        self.same(chat.invoke(MESSAGES), expected)

    def test_stream(self, chat, expected):
        self.same(joined(chat.stream(MESSAGES)), expected)

    def test_batch(self, chat, expected):
        for answer in chat.batch([MESSAGES] * 3):
            self.same(answer, expected)

    def test_a_batch_is_answered_in_one_pass(self, chat, expected):
        watched = watch(chat)
        watched.delay_seconds = 0.01
        for answer in chat.batch([MESSAGES] * 12):
            self.same(answer, expected)
        assert watched.widest > 6  # as many as LangChain starts at once on two cores
        for config in ({"max_concurrency": 2}, [{"max_concurrency": 2}] * 6):
            watched.widest = 0
            assert len(chat.batch([MESSAGES] * 6, config)) == 6
            assert watched.widest <= 2

    def test_an_answer_that_takes_too_long_is_given_up(self, chat, expected):
        watched = watch(chat)
        watched.delay_seconds = 0.05
        with pytest.raises(DeadlineExceeded, match=r"0\.02 s"):
            chat.invoke(MESSAGES, timeout=0.02)
        hurried = chat.model_copy(update={"timeout": 0.02})
        hurried._loaded = chat.loaded()
        with pytest.raises(DeadlineExceeded, match=r"0\.02 s"):
            hurried.invoke(MESSAGES)
        watched.delay_seconds = 0
        self.same(hurried.invoke(MESSAGES, timeout=60), expected)

    async def test_ainvoke(self, chat, expected):
        self.same(await chat.ainvoke(MESSAGES), expected)

    async def test_astream(self, chat, expected):
        self.same(joined([chunk async for chunk in chat.astream(MESSAGES)]), expected)

    async def test_abatch(self, chat, expected):
        for answer in await chat.abatch([MESSAGES] * 3):
            self.same(answer, expected)

    async def test_astream_events(self, chat, expected):
        events = [event async for event in chat.astream_events(MESSAGES, version="v2")]
        chunks = [e["data"]["chunk"] for e in events if e["event"] == "on_chat_model_stream"]
        [end] = [event for event in events if event["event"] == "on_chat_model_end"]
        self.same(joined(chunks), expected)
        self.same(end["data"]["output"], expected)

    def test_a_chain(self, chat, expected):
        prompt = ChatPromptTemplate.from_messages([("system", "Be kind."), ("human", "{text}")])
        chain = prompt | chat | StrOutputParser()
        assert chain.invoke({"text": "Hello, who are you?"}) == expected.content
        assert "".join(chain.stream({"text": "Hello, who are you?"})) == expected.content

    def test_tuples_dicts_and_prompt_values(self, chat, expected):
        as_tuples = [("system", "Be kind."), ("human", "Hello, who are you?")]
        prompt = ChatPromptTemplate.from_messages(as_tuples)
        self.same(chat.invoke(as_tuples), expected)
        self.same(chat.invoke(prompt.invoke({})), expected)

    def test_text_in_blocks(self, chat, expected):
        blocks = [
            SystemMessage([{"type": "text", "text": "Be kind."}]),
            HumanMessage([{"type": "text", "text": "Hello, "}, "who are you?"]),
        ]
        self.same(chat.invoke(blocks), expected)

    def test_a_plain_text_is_what_a_human_says(self, chat):
        self.same(chat.invoke("Hello."), chat.invoke([HumanMessage("Hello.")]))

    def test_bound_configured_retried(self, chat, expected):
        self.same(chat.with_config(tags=["x"]).invoke(MESSAGES), expected)
        self.same(chat.with_retry().invoke(MESSAGES), expected)
        self.same(chat.bind(temperature=0).invoke(MESSAGES), expected)
        self.same(chat.with_fallbacks([chat]).invoke(MESSAGES), expected)

    def test_from_many_threads_at_once(self, chat, expected):
        answers: list[AIMessage] = []
        threads = [
            threading.Thread(target=lambda: answers.append(chat.invoke(MESSAGES))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 8
        for answer in answers:
            self.same(answer, expected)


class TestTheAnswer:
    def test_names_model_template_sampling_reason_and_state_and_nothing_else(self, chat):
        about = chat.invoke("Hello.").response_metadata
        assert set(about) == {"model_name", "template", "sampling", "finish_reason", STATE_KEY}
        assert about["template"] == "world"
        assert about["sampling"]["temperature"] == chat.temperature
        assert about["sampling"]["frequency_penalty"] == 0.5  # the template's
        assert about["model_name"] == chat.model
        assert about["finish_reason"] in ("stop", "length")
        assert is_reference(about[STATE_KEY])

    @pytest.mark.each_device
    def test_is_cut_at_max_tokens(self, chat):
        answer = chat.invoke("Hello.", max_tokens=3)
        assert answer.response_metadata["finish_reason"] == "length"
        assert answer.usage_metadata["output_tokens"] == 3

    def test_is_json_safe(self, chat):
        json.dumps(dumpd(chat.invoke("Hello.")))

    def test_states_behind_one_text_have_one_reference(self, chat):
        one, other = chat.invoke("Hello."), chat.invoke("Hello.")
        assert ref_of(one) == ref_of(other)
        assert ref_of(chat.invoke("Hello!")) != ref_of(one)

    def test_input_tokens_cover_all_that_the_state_stands_for(self, chat, store):
        first = chat.invoke("Hello.")
        assert first.usage_metadata["input_token_details"] == {"cache_read": 0}
        state = store.get(ref_of(first))
        second = chat.invoke([marker(ref_of(first)), HumanMessage("Again.")])
        usage = second.usage_metadata
        assert usage["input_token_details"] == {"cache_read": state.n_tokens}
        transcript = chat.invoke(
            [HumanMessage("Hello."), AIMessage(first.content), HumanMessage("Again.")]
        )
        assert usage["input_tokens"] == transcript.usage_metadata["input_tokens"]
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]

    def test_usage_reaches_callbacks(self, chat):
        with get_usage_metadata_callback() as callback:
            answer = chat.invoke("Hello.")
            joined(chat.stream("Hello."))
        total = callback.usage_metadata[chat.model]
        assert total["input_tokens"] == 2 * answer.usage_metadata["input_tokens"]

    def test_exactly_one_chunk_names_the_state(self, chat):
        chunks = list(chat.stream("Hello."))
        assert [STATE_KEY in chunk.response_metadata for chunk in chunks].count(True) == 1
        assert [chunk.usage_metadata is not None for chunk in chunks].count(True) == 1
        assert chunks[-1].chunk_position == "last"

    def test_a_stream_hands_out_text_before_the_end(self, chat):
        chunks = list(chat.stream("Hello.", max_tokens=20))
        assert len([chunk for chunk in chunks if chunk.text]) > 5

    def test_callbacks_see_each_token_once(self, chat):
        class Tokens(BaseCallbackHandler):
            def __init__(self) -> None:
                self.seen: list[str] = []

            def on_llm_new_token(self, token, **kwargs):
                self.seen.append(token)

        handler = Tokens()
        answer = joined(chat.stream("Hello.", config={"callbacks": [handler]}))
        assert "".join(handler.seen) == answer.content

    @pytest.mark.each_device
    def test_ends_at_a_stop_text_that_is_not_in_it(self, chat):
        whole = chat.invoke("Hello.").content
        stop = whole[5:8]
        expected = whole[: whole.index(stop)].rstrip()
        for answer in (
            chat.invoke("Hello.", stop=[stop]),
            chat.bind(stop=[stop]).invoke("Hello."),
            joined(chat.stream("Hello.", stop=[stop])),
        ):
            assert answer.content == expected
            assert answer.response_metadata["finish_reason"] == "stop"

    def test_ends_at_stop_texts_of_model_and_call(self, chat, make_chat):
        whole = chat.invoke("Hello.").content
        early, late = whole[3:6], whole[10:13]
        own = make_chat(7, stop=[late])
        assert own.invoke("Hello.").content == whole[: whole.index(late)].rstrip()
        assert own.invoke("Hello.", stop=[early]).content == whole[: whole.index(early)].rstrip()
        assert make_chat(7, stop=late).stop == [late]

    def test_a_stop_text_need_not_be_in_a_list(self, chat):
        whole = chat.invoke("Hello.").content
        stop = whole[5:7] + whole[7]
        one, listed = chat.invoke("Hello.", stop=stop), chat.invoke("Hello.", stop=[stop])
        assert one.content == listed.content == whole[: whole.index(stop)].rstrip()

    @pytest.mark.each_device
    def test_with_one_seed_is_one_text(self, chat):
        hot = chat.bind(temperature=2.0, top_p=1.0)
        one, same, other = (hot.invoke("Hello.", seed=seed).content for seed in (1, 1, 2))
        assert one == same != other

    @pytest.mark.each_device
    def test_without_a_seed_is_another_one_each_time(self, chat):
        hot = chat.bind(temperature=2.0, top_p=1.0)
        assert len({hot.invoke("Hello.").content for _ in range(4)}) > 1


class TestGeneratingCommitsNothing:
    def test_in_memory(self, chat, store):
        chat.invoke("Hello.")
        joined(chat.stream("Hello."))
        assert store.sessions() == []
        assert store.stats().states == 0

    def test_on_disk(self, make_chat, disk_store):
        chat = make_chat(7, store=disk_store)
        before = disk_store.stats()
        ref = ref_of(chat.invoke("Hello."))
        after = disk_store.stats()
        assert (after.sessions, after.states, after.nbytes) == (
            before.sessions,
            before.states,
            before.nbytes,
        )
        assert disk_store.get(ref).n_tokens > 0  # in memory, for a while

    def test_a_staged_state_is_seen_by_all_that_name_its_store(self, make_chat, disk_store):
        ref = ref_of(make_chat(7, store=disk_store).invoke("Hello."))
        with DiskStateStore(disk_store.path) as other:
            assert other.get(ref) == disk_store.get(ref)


class TestMarkers:
    def test_carry_a_conversation_on(self, chat, store):
        first = chat.invoke("Hello.")
        second = chat.invoke([marker(ref_of(first)), HumanMessage("Again.")])
        transcript = [HumanMessage("Hello."), AIMessage(first.content), HumanMessage("Again.")]
        assert second.content == chat.invoke(transcript).content
        assert ref_of(second) == ref_of(chat.invoke(transcript))

    def test_of_no_known_state_are_an_error(self, chat):
        with pytest.raises(StateNotFound):
            chat.invoke([marker(NOWHERE), HumanMessage("Hello.")])

    def test_of_an_expired_state_are_an_error(self, make_chat):
        now = [1_000_000.0]
        store = MemoryStateStore(clock=lambda: now[0])
        chat = make_chat(7, store=store)
        ref = chat.prefill("Once", ttl=60)
        now[0] += 61
        with pytest.raises(StateExpired):
            chat.invoke([marker(ref), HumanMessage("Hello.")])

    def test_of_another_model_are_an_error_that_names_both(self, make_chat, tiny_model):
        mine = make_chat(7)
        for other in (make_chat(6), make_chat(tiny_model(7, seed=1))):
            with pytest.raises(StateMismatch) as error:
                mine.invoke([marker(ref_of(other.invoke("Hello."))), HumanMessage("Hello.")])
            assert mine.loaded().runtime.fingerprint in str(error.value)
            assert other.loaded().runtime.fingerprint in str(error.value)

    def test_that_are_malformed_are_an_error(self, chat):
        forged = SystemMessage("", additional_kwargs={STATE_KEY: "head"})
        with pytest.raises(MarkerError, match="'head'"):
            chat.invoke([forged, HumanMessage("Hello.")])

    def test_with_an_unchanged_block_before_them_do_not_warn(self, chat):
        ref = ref_of(chat.invoke(MESSAGES))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with_block = chat.invoke([MESSAGES[0], marker(ref), HumanMessage("Again.")])
        without = chat.invoke([marker(ref), HumanMessage("Again.")])
        assert ref_of(with_block) == ref_of(without)

    def test_with_a_changed_block_before_them_warn_once_and_read_it(self, chat):
        ref = ref_of(chat.invoke(MESSAGES))
        changed = SystemMessage("It is Tuesday.")
        with pytest.warns(UserWarning, match="before the state marker") as caught:
            answer = chat.invoke([changed, marker(ref), HumanMessage("Again.")])
        assert len(caught) == 1
        behind = chat.invoke([marker(ref), changed, HumanMessage("Again.")])
        assert ref_of(answer) == ref_of(behind)

    def test_count_no_tokens(self, chat):
        ref = ref_of(chat.invoke("Hello."))
        human = HumanMessage("Again.")
        counted = chat.get_num_tokens_from_messages([marker(ref), human])
        assert counted == chat.get_num_tokens_from_messages([human])


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("option", "value", "shown"),
        [
            ("temperature", -1, "-1"),
            ("temperature", float("nan"), "nan"),
            ("temperature", "hot", "'hot'"),
            ("top_p", 0, "0"),
            ("top_p", 1.5, "1.5"),
            ("top_k", -2, "-2"),
            ("penalty_decay", 2, "2"),
            ("presence_penalty", float("inf"), "inf"),
            ("max_tokens", 0, "0"),
            ("max_tokens", -3, "-3"),
            ("stop", [""], "''"),
        ],
    )
    def test_a_value_out_of_range(self, chat, option, value, shown):
        with pytest.raises(ValueError, match=option) as error:
            chat.invoke("Hello.", **{option: value})
        assert shown in str(error.value)
        with pytest.raises(ValueError, match=option):
            ChatRWKV(model=chat.model, **{option: value})

    def test_an_unknown_option(self, chat):
        with pytest.raises(ValueError, match="'temprature'"):
            chat.invoke("Hello.", temprature=0)
        with pytest.raises(ValueError, match="'logit_bias'"):
            list(chat.stream("Hello.", logit_bias={}))

    def test_an_image(self, chat):
        url = {"url": "data:image/png;base64,"}
        as_data = {"type": "image", "base64": "", "mime_type": "image/png"}
        for block in ({"type": "image_url", "image_url": url}, as_data):
            with pytest.raises(UnsupportedContentError, match="image"):
                chat.invoke([HumanMessage([{"type": "text", "text": "What is it?"}, block])])

    def test_no_messages(self, chat):
        with pytest.raises(ValueError, match="message"):
            chat.invoke([])

    def test_a_model_that_is_not_there(self, tmp_path):
        with pytest.raises(ModelLoadError, match=r"missing\.pth"):
            ChatRWKV(model=str(tmp_path / "missing.pth")).invoke("Hello.")

    def test_a_strategy_that_cannot_be(self, chat):
        with pytest.raises(ModelLoadError, match="abacus"):
            ChatRWKV(model=chat.model, strategy="abacus fp32")

    def test_a_prefix_cache(self, chat):
        with pytest.raises(ValueError, match="prefix"):
            ChatRWKV(model=chat.model, prefix_cache=object())
        assert ChatRWKV(model=chat.model, prefix_cache=False).model == chat.model

    def test_an_error_leaves_the_model_usable(self, chat):
        before = chat.invoke("Hello.").content
        with pytest.raises(ValueError, match="top_p"):
            chat.invoke("Hello.", top_p=7)
        with pytest.raises(StateNotFound):
            chat.invoke([marker(NOWHERE), HumanMessage("Hello.")])
        assert chat.invoke("Hello.").content == before


class TestLangChainsParameters:
    def test_of_tracing(self, chat):
        params = chat._get_ls_params(stop=["x"], temperature=0.5)
        assert params["ls_provider"] == "rwkv"
        assert params["ls_model_name"] == chat.model
        assert params["ls_model_type"] == "chat"
        assert params["ls_temperature"] == 0.5
        assert params["ls_max_tokens"] == 24
        assert params["ls_stop"] == ["x"]

    def test_types_tell_the_faces_apart(self, chat, make_llm):
        assert chat._llm_type != make_llm(7)._llm_type

    def test_tokens_of_a_text_are_counted(self, chat):
        ids = chat.get_token_ids("Grüße, 你好.")
        assert chat.loaded().tokenizer.decode(ids) == "Grüße, 你好."
        assert chat.get_num_tokens("Grüße, 你好.") == len(ids)
        assert chat.get_num_tokens("") == 0

    def test_tokens_of_messages_are_those_that_are_read(self, chat):
        counted = chat.get_num_tokens_from_messages(MESSAGES)
        assert counted == chat.invoke(MESSAGES).usage_metadata["input_tokens"]
        assert chat.get_num_tokens_from_messages([]) == 0

    def test_messages_can_be_trimmed_by_tokens(self, chat):
        history = [HumanMessage(f"Message {number}.") for number in range(20)]
        kept = trim_messages(history, max_tokens=60, token_counter=chat, strategy="last")
        assert 0 < len(kept) < 20
        assert chat.get_num_tokens_from_messages(kept) <= 60

    @pytest.mark.parametrize("tools", [(), (look,)], ids=["no tools", "tools"])
    @pytest.mark.parametrize(
        ("template", "reasoning"),
        [("demo", None), ("world", None), *(("g1", how) for how in (None, False, True, "low"))],
    )
    def test_whatever_asks_for_the_answer_is_counted(self, make_chat, template, reasoning, tools):
        chat = make_chat(7, template=template, reasoning=reasoning, prefix_cache=False)
        call = AIMessage("", tool_calls=[{"name": "look", "args": {"at": "x"}, "id": "1"}])
        for said in (MESSAGES, MESSAGES[1:], [*MESSAGES, call, ToolMessage("7", tool_call_id="1")]):
            asked = chat.bind_tools(tools) if tools else chat
            usage = asked.invoke(said, max_tokens=1).usage_metadata
            assert chat.get_num_tokens_from_messages(said, tools=tools) == usage["input_tokens"]

    def test_counting_asks_for_no_thought_behind_an_answer(self, make_chat):
        chat = make_chat(7, template="g1", reasoning=True)
        assert chat.get_num_tokens_from_messages([*MESSAGES, AIMessage("Yes.")]) > 0

    def test_an_answers_beginning_is_counted_as_such(self, chat):
        begun = [*MESSAGES, AIMessage("Yes, and")]
        usage = chat.invoke(begun, max_tokens=1).usage_metadata
        assert chat.get_num_tokens_from_messages(begun) == usage["input_tokens"]


class TestTheGlobalCache:
    @pytest.fixture(autouse=True)
    def cache(self):
        set_llm_cache(InMemoryCache())
        yield
        set_llm_cache(None)

    def test_is_left_alone(self, make_chat):
        chat = make_chat(7, prefix_cache=False)
        watched = watch(chat)
        chat.invoke("Hello.")
        read = watched.tokens_read
        chat.invoke("Hello.")
        assert watched.tokens_read == 2 * read

    def test_is_used_where_asked_for(self, make_chat):
        chat = make_chat(7, cache=True)
        watched = watch(chat)
        first = chat.invoke("Hello.")
        read = watched.tokens_read
        assert chat.invoke("Hello.").content == first.content
        assert watched.tokens_read == read

    def test_tells_conversations_apart(self, make_chat):
        chat = make_chat(7, cache=True)
        one, other = (ref_of(chat.invoke(text)) for text in ("Hello.", "Go away."))
        same_question = HumanMessage("What did I say?")
        chat.invoke([marker(one), same_question])
        answer = chat.invoke([marker(other), same_question])
        assert ref_of(answer) == ref_of(chat.invoke([marker(other), same_question], seed=1))


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
class TestTravelling:
    def test_through_langchains_serialisation(self, make_chat, disk_store):
        chat = make_chat(7, store=disk_store, top_p=0.9, seed=3, stop=["x"])
        text = json.dumps(dumpd(chat))
        loaded = load(json.loads(text), allowed_objects=ALLOWED, valid_namespaces=NAMESPACES)
        assert isinstance(loaded, ChatRWKV)
        assert loaded.asdict() == chat.asdict()
        assert isinstance(loaded.store, DiskStateStore)
        assert loaded.store.path == disk_store.path
        assert loaded.invoke("Hello.").content == chat.invoke("Hello.").content
        loaded.unload()
        loaded.store.close()

    def test_inside_a_chain(self, chat):
        chain = ChatPromptTemplate.from_template("{text}") | chat | StrOutputParser()
        text = json.dumps(dumpd(chain))
        loaded = load(json.loads(text), allowed_objects=ALLOWED, valid_namespaces=NAMESPACES)
        assert loaded.invoke({"text": "Hello."}) == chain.invoke({"text": "Hello."})
        loaded.steps[1].unload()

    def test_pickled_without_the_weights(self, make_chat, disk_store):
        chat = make_chat(7, store=disk_store)
        expected = chat.invoke("Hello.").content
        pickled = pickle.dumps(chat)
        assert len(pickled) < 100_000
        again = pickle.loads(pickled)
        assert again.invoke("Hello.").content == expected
        assert again.asdict() == chat.asdict()
        again.unload()
        again.store.close()

    def test_a_store_in_memory_cannot_be_pickled(self, chat):
        with pytest.raises(TypeError, match="MemoryStateStore"):
            pickle.dumps(chat)

    @pytest.mark.parametrize(
        "copied",
        [
            lambda chat: chat.model_copy(),
            lambda chat: chat.model_copy(deep=True),
            copy.copy,
            copy.deepcopy,
        ],
        ids=["model_copy", "deep", "copy", "deepcopy"],
    )
    def test_a_copy_answers_alike_and_is_unloaded_on_its_own(self, chat, store, copied):
        expected = chat.invoke("Hello.")
        twin = copied(chat)
        assert twin.store is store
        assert ref_of(twin.invoke("Hello.")) == ref_of(expected)
        twin.unload()
        assert chat.invoke("Hello.").content == expected.content

    def test_a_copy_with_another_model_is_that_model(self, chat, make_chat, tiny_model):
        other = make_chat(6)
        chat.invoke("Hello.")
        twin = chat.model_copy(update={"model": other.model})
        assert ref_of(twin.invoke("Hello.")) == ref_of(other.invoke("Hello."))
        twin.unload()

    def test_configured_at_run_time_it_keeps_its_store(self, chat, store):
        configurable = chat.configurable_fields(max_tokens=ConfigurableField(id="length"))
        answer = configurable.invoke("Hello.", config={"configurable": {"length": 3}})
        assert answer.usage_metadata["output_tokens"] == 3
        assert store.get(ref_of(answer)).n_tokens > 0

    def test_its_text_shows_neither_weights_nor_states(self, chat):
        chat.invoke("Hello.")
        assert len(repr(chat)) < 2_000


class TestStores:
    def test_may_be_named_by_a_directory(self, make_chat, tmp_path):
        chat = make_chat(7, store=tmp_path / "states")
        assert isinstance(chat.store, DiskStateStore)
        assert chat.store is chat.store
        chat.with_session("bob").invoke("Hello.")
        with DiskStateStore(tmp_path / "states") as store:
            assert store.sessions() == ["bob"]
        chat.store.close()

    def test_default_to_the_users_own(self, make_chat, monkeypatch, tmp_path):
        monkeypatch.setenv("RWKV_STATE_DIR", str(tmp_path / "own"))
        chat = make_chat(7, store=None)
        assert str(chat.store.path).startswith(str(tmp_path / "own"))
        chat.store.close()

    def test_are_not_touched_before_they_are_needed(self, make_chat, monkeypatch, tmp_path):
        monkeypatch.setenv("RWKV_STATE_DIR", str(tmp_path / "own"))
        make_chat(7, store=None)
        assert not (tmp_path / "own").exists()


class TestUnloading:
    def test_the_next_call_loads_again(self, chat):
        before = chat.invoke("Hello.")
        chat.unload()
        chat.unload()
        assert ref_of(chat.invoke("Hello.")) == ref_of(before)

    def test_weights_are_shared_and_the_last_user_frees_them(self, tmp_path, tiny_model):
        from langchain_rwkv_state.runtime.registry import MODELS

        folder = tiny_model(7).parent
        for name in ("model.pth", "tokenizer.json"):
            (tmp_path / name).write_bytes((folder / name).read_bytes())
        before = len(MODELS)
        path = str(tmp_path / "model.pth")
        one, other = (ChatRWKV(model=path, store=MemoryStateStore()) for _ in range(2))
        one_model, other_model = (vars(c.loaded().runtime)["_model"] for c in (one, other))
        assert one_model is other_model
        assert len(MODELS) == before + 1
        one.unload()
        assert len(MODELS) == before + 1
        other.unload()
        assert len(MODELS) == before

    def test_a_model_that_is_dropped_gives_its_weights_back(self, tmp_path, tiny_model):
        from langchain_rwkv_state.runtime.registry import MODELS

        folder = tiny_model(7).parent
        for name in ("model.pth", "tokenizer.json"):
            (tmp_path / name).write_bytes((folder / name).read_bytes())
        gc.collect()  # agents of tests before are in circles, and their models with them
        before = len(MODELS)
        chat = ChatRWKV(model=str(tmp_path / "model.pth"), store=MemoryStateStore())
        chat.loaded()
        assert len(MODELS) == before + 1
        del chat
        gc.collect()
        wait_until(lambda: len(MODELS) == before)


class TestLeavingAStream:
    def test_stops_decoding_within_a_token(self, chat):
        watched = watch(chat)
        stream = chat.stream("Hello.", max_tokens=100_000)
        for _ in range(3):
            next(stream)
        stream.close()
        calls = len(watched.calls)
        wait_until(lambda: is_idle(chat))
        assert len(watched.calls) <= calls + 1

    def test_leaves_the_next_answer_as_it_was(self, chat, store):
        base = ref_of(chat.invoke("Hello."))
        turn = [marker(base), HumanMessage("Again.")]
        expected = chat.invoke(turn)
        for length in (1, 2, 5):
            stream = chat.stream(turn)
            for _ in range(length):
                next(stream)
            stream.close()
            answer = chat.invoke(turn)
            assert answer.content == expected.content
            assert ref_of(answer) == ref_of(expected)


class TestPrefill:
    def test_reads_messages_without_answering(self, chat, store):
        ref = chat.prefill(MESSAGES)
        assert store.get(ref).n_tokens == n_written(chat, MESSAGES)
        assert store.stats().states == 1
        answer = chat.invoke([marker(ref), HumanMessage("Again.")])
        assert ref_of(answer) == ref_of(chat.invoke([*MESSAGES, HumanMessage("Again.")]))

    def test_reads_a_text_as_it_stands(self, chat, store):
        ref = chat.prefill("The capital of")
        template = chat.loaded().template
        assert store.get(ref).n_tokens == len(template.text_ids("The capital of", start=True))

    def test_goes_on_from_a_marker(self, chat):
        ref = chat.prefill(MESSAGES[:1])
        assert chat.prefill([marker(ref), MESSAGES[1]]) == chat.prefill(MESSAGES)

    def test_makes_a_state_that_may_be_used_again_and_again(self, chat):
        ref = chat.prefill(MESSAGES)
        turn = [marker(ref), HumanMessage("Again.")]
        assert len({ref_of(chat.invoke(turn)) for _ in range(3)}) == 1

    def test_shares_a_warm_block_without_a_warning(self, chat):
        ref = chat.prefill(MESSAGES[:1])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            chat.invoke([MESSAGES[0], marker(ref), HumanMessage("Again.")])

    def test_into_a_session_goes_on_from_its_head(self, chat, store):
        chat.prefill(MESSAGES, session="bob")
        ref = chat.prefill([HumanMessage("Again.")], session="bob")
        assert store.head("bob") == ref
        assert ref == chat.prefill([*MESSAGES, HumanMessage("Again.")])
        text = chat.prefill(" And then", session="bob")
        assert store.head("bob") == text
        assert store.get(text).n_tokens == store.get(ref).n_tokens + chat.get_num_tokens(
            " And then"
        )

    def test_outlives_the_process(self, make_chat, disk_store):
        chat = make_chat(7, store=disk_store)
        ref = chat.prefill(MESSAGES)
        with DiskStateStore(disk_store.path) as other:
            assert other.get(ref).n_tokens == n_written(chat, MESSAGES)

    def test_says_how_far_it_is(self, chat):
        seen: list[tuple[int, int]] = []
        chat.prefill("word " * 400, on_progress=lambda read, total: seen.append((read, total)))
        assert seen == sorted(seen)
        assert seen[-1][0] == seen[-1][1]
        assert len(seen) > 1

    @pytest.mark.parametrize("pooled", [False, True])
    def test_whose_callback_waits_for_an_answer_is_told_at_once(self, chat, pooled):
        def ask(*_: int) -> None:
            talk = RunnableLambda(lambda _: chat.invoke("Hello."))
            talk.batch([1, 2]) if pooled else talk.invoke(1)

        with pytest.raises(EngineError, match="put the work into a queue"):
            chat.prefill("word " * 400, on_progress=ask)
        assert chat.invoke("Hello.").content

    def test_whose_callback_talks_in_its_session_is_told_at_once(self, chat, store):
        talk = chat.with_session("bob", wait_timeout=30)
        told: list[SessionConflict] = []

        def ask(*_: int) -> None:
            with pytest.raises(SessionConflict, match="would wait for itself") as caught:
                talk.invoke("Hello.")
            told.append(caught.value)

        assert chat.prefill("word " * 400, session="bob", on_progress=ask) == store.head("bob")
        assert told

    def test_whose_callback_starts_work_for_later_lets_it_wait(self, chat):
        later: list[threading.Thread] = []
        found: list[str] = []
        over = threading.Event()

        def work() -> None:
            over.wait(20)
            found.append(chat.invoke("Hello.").content)

        def start(*_: int) -> None:
            if not later:
                context = contextvars.copy_context()
                later.append(threading.Thread(target=context.run, args=(work,)))
                later[0].start()

        chat.prefill("word " * 400, on_progress=start)
        over.set()
        later[0].join(20)
        assert found[0]

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"timeout": "x"}, TypeError),
            ({"timeout": True}, TypeError),
            ({"timeout": -1}, ValueError),
            ({"timeout": 0}, ValueError),
            ({"timeout": float("nan")}, ValueError),
            ({"on_progress": "x"}, TypeError),
        ],
    )
    def test_with_an_impossible_option_is_an_error(self, chat, options, error):
        with pytest.raises(error, match=next(iter(options)) + " is .*: pass a"):
            chat.prefill(MESSAGES, **options)

    async def test_has_an_async_twin(self, chat, store):
        ref = await chat.aprefill(MESSAGES, session="bob")
        assert ref == store.head("bob") == chat.prefill(MESSAGES)

    @pytest.mark.parametrize("nothing", ["", []])
    def test_of_nothing_is_an_error(self, chat, nothing):
        with pytest.raises(ValueError, match="read"):
            chat.prefill(nothing)


class TestInAChain:
    def test_a_fallback_takes_over(self, chat):
        broken: RunnableLambda[Any, Any] = RunnableLambda(lambda _: 1 / 0)
        assert broken.with_fallbacks([chat]).invoke("Hello.").content

    def test_a_state_may_be_carried_by_hand(self, chat):
        def keep(answer: AIMessage) -> list:
            return [marker(ref_of(answer)), HumanMessage("Again.")]

        chain = chat | keep | chat
        assert chain.invoke("Hello.").usage_metadata["input_token_details"]["cache_read"] > 0
