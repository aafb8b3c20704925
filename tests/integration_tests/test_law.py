"""The law: every way of arriving at a state is as good as reading the whole text from zero.

For the demo model and a random model of each version. Tolerances stand in `tests.helpers.law`.
"""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from langchain_rwkv_state import DiskStateStore, MemoryStateStore
from langchain_rwkv_state.engine import Engine, Request
from langchain_rwkv_state.prompt.markers import STATE_KEY, marker
from tests.helpers.devices import ON_CARD, ON_CPU, on_card
from tests.helpers.law import (
    assert_same,
    conversations,
    ids,
    read_once,
    session_turns,
    texts,
    turns,
)

EVERY_MODEL = [
    *((model, ON_CPU) for model in (4, 5.2, 6, 7, "demo")),  # RWKV-7 on the native runtime
    (7, "package cpu fp32"),  # and on the package
    on_card((7, ON_CARD)),
]
seeds = st.integers(0, 2**32)

# Some of the random texts hold a marker's words: the law holds for them, and they are told.
pytestmark = pytest.mark.filterwarnings("ignore:The prompt holds the text of a state marker")


@pytest.fixture(params=EVERY_MODEL, ids=lambda param: f"rwkv-{param[0]}-{param[1]}")
def any_chat(request, make_chat):
    model, strategy = request.param
    store = MemoryStateStore(history=10)
    return make_chat(model, strategy=strategy, max_tokens=8, store=store)


def ref_of(message) -> str:
    return str(message.response_metadata[STATE_KEY])


def said(messages, answer) -> list:
    """Returns a turn as a transcript shows it."""
    return [*messages, AIMessage(answer.content)]


@settings(max_examples=20)
@given(turns=turns, seed=seeds, temperature=st.sampled_from([0.0, 1.0, 2.5]))
def test_markers_turn_by_turn_equal_one_reading(any_chat, turns, seed, temperature):
    chat = any_chat
    transcript: list[BaseMessage] = []
    known: list[BaseMessage] = []
    for messages in turns:
        answer = chat.invoke([*known, *messages], temperature=temperature, top_p=1.0, seed=seed)
        known = [marker(ref_of(answer))]
        transcript += said(messages, answer)
        assert_same(chat, chat.store.get(ref_of(answer)), read_once(chat, transcript))


@settings(max_examples=20)
@given(messages=conversations, data=st.data())
def test_a_transcript_may_be_split_anywhere(any_chat, messages, data):
    chat = any_chat
    cuts = sorted(data.draw(st.sets(st.integers(0, len(messages)))))
    known: list[BaseMessage] = []
    for start, end in itertools.pairwise([0, *cuts, len(messages)]):
        if start < end:
            known = [marker(chat.prefill([*known, *messages[start:end]]))]
    state = chat.store.get(known[0].additional_kwargs["rwkv_state"])
    assert_same(chat, state, read_once(chat, messages))


@settings(max_examples=20)
@given(messages=conversations, chunk=st.integers(1, 40), data=st.data())
def test_chunks_of_any_size_equal_one_reading(any_chat, messages, chunk, data):
    loaded, whole = any_chat.loaded(), read_once(any_chat, messages)
    prompt = ids(any_chat, messages)
    engine = Engine(loaded.runtime, loaded.tokenizer, prefill_chunk=chunk)
    at = data.draw(st.integers(0, len(prompt)))
    done = engine.submit(Request(base=loaded.zero, prompt=prompt, checkpoints=(at,))).result()
    engine.close()
    assert_same(any_chat, done.state, whole)
    kept = done.checkpoints[0]
    rest = loaded.runtime.forward(prompt[at:], kept)[1] if at < len(prompt) else kept
    assert_same(any_chat, rest, whole)


@settings(max_examples=8)
@given(turns=session_turns, seed=seeds)
def test_a_store_that_was_closed_gives_the_same(any_chat, turns, seed, tmp_path_factory):
    path, transcript = tmp_path_factory.mktemp("law") / "states", []
    for messages in turns:
        with DiskStateStore(path) as store:
            bob = any_chat.model_copy(update={"store": store}).with_session("bob")
            answer = bob.invoke(messages, seed=seed, temperature=1.0)
            bob.chat.unload()
        transcript += said(messages, answer)
    with DiskStateStore(path) as store:
        head = store.head("bob")
        assert head is not None
        assert_same(any_chat, store.get(head), read_once(any_chat, transcript))


@settings(max_examples=15)
@given(turns=session_turns, other=texts, seed=seeds)
def test_forks_and_rewinds_give_the_same(any_chat, turns, other, seed):
    chat, store, transcript = any_chat, any_chat.store, []
    for name in ("bob", "rob"):
        store.delete_session(name)
    bob, rob = (chat.with_session(name) for name in ("bob", "rob"))
    for messages in turns:
        answer = bob.invoke(messages, seed=seed, temperature=1.0)
        transcript += said(messages, answer)
    store.fork("bob", "rob")
    aside = [HumanMessage(other)]
    branch = said(aside, rob.invoke(aside, seed=seed, temperature=1.0))
    assert_same(chat, store.get(store.head("rob")), read_once(chat, [*transcript, *branch]))
    bob.invoke([HumanMessage("Forget this.")])
    store.rewind("bob")
    assert_same(chat, store.get(store.head("bob")), read_once(chat, transcript))
    branch = said(aside, bob.invoke(aside, seed=seed, temperature=1.0))
    assert store.head("bob") == store.head("rob")
    assert_same(chat, store.get(store.head("bob")), read_once(chat, [*transcript, *branch]))


@settings(max_examples=15)
@given(text=texts, seed=seeds, data=st.data())
def test_a_stop_text_in_the_middle_of_a_token_is_not_in_the_state(any_chat, text, seed, data):
    chat, human = any_chat, HumanMessage(text)
    hot = {"temperature": 1.0, "seed": seed, "max_tokens": 16}
    whole = chat.invoke([human], **hot).content
    places = [at for at, character in enumerate(whole[:-1]) if not character.isspace()]
    if not places:
        return
    start = data.draw(st.sampled_from(places))
    stop = whole[start : start + data.draw(st.integers(1, 3))].rstrip()
    answer = chat.invoke([human], stop=[stop], **hot)
    assert answer.content == whole[: whole.index(stop)].rstrip()
    assert answer.response_metadata["finish_reason"] == "stop"
    assert_same(chat, chat.store.get(ref_of(answer)), read_once(chat, said([human], answer)))


@settings(max_examples=15)
@given(text=texts, seed=seeds, length=st.integers(1, 12))
def test_an_answer_that_was_cut_short_is_what_the_state_holds(any_chat, text, seed, length):
    chat, human = any_chat, HumanMessage(text)
    answer = chat.invoke([human], temperature=1.5, top_p=1.0, seed=seed, max_tokens=length)
    assert_same(chat, chat.store.get(ref_of(answer)), read_once(chat, said([human], answer)))


@settings(max_examples=10)
@given(text=texts, length=st.integers(1, 6))
def test_a_stream_that_was_left_never_happened(any_chat, text, length):
    chat, store, human = any_chat, any_chat.store, HumanMessage(text)
    store.delete_session("bob")
    bob = chat.with_session("bob")
    first = bob.invoke("Hello.")
    turn = [marker(ref_of(first)), human]
    seen = min(length, len(list(chat.stream(turn)))) - 1
    for stream in (chat.stream(turn), bob.stream([human])):
        for _ in itertools.islice(stream, seen):
            pass
        stream.close()
        assert store.head("bob") == ref_of(first)
    answer, direct = bob.invoke([human]), chat.invoke(turn)
    assert answer.content == direct.content
    transcript = [HumanMessage("Hello."), AIMessage(first.content), *said([human], answer)]
    assert_same(chat, store.get(store.head("bob")), read_once(chat, transcript))


def test_answers_whose_tokens_are_not_canonical_are_read_again(demo):
    for seed in range(12):
        answer = demo.invoke("Hello.", temperature=3.0, top_p=1.0, seed=seed, max_tokens=16)
        transcript = said([HumanMessage("Hello.")], answer)
        assert_same(demo, demo.store.get(ref_of(answer)), read_once(demo, transcript))
    assert demo.loaded().engine.stats().rereads > 0


def test_greedy_answers_of_the_demo_model_are_those_of_a_transcript(demo):
    bob = demo.with_session("bob")
    transcript: list[BaseMessage] = []
    for text in ("My name is Zanzibar.", "I live in Yarrowick.", "Thanks!", "What is my name?"):
        answer = bob.invoke(text)
        assert answer.content == demo.invoke([*transcript, HumanMessage(text)]).content
        transcript += said([HumanMessage(text)], answer)
    assert "Zanzibar" in transcript[-1].content
