"""Every way of LangChain with messages: behind it memory works, or one warning names the cause."""

from __future__ import annotations

import warnings
from typing import Any

import langchain_core.messages
import langchain_core.prompts
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables.history import RunnableWithMessageHistory

from langchain_rwkv_state import RWKVStateHistory
from langchain_rwkv_state.errors import UnsupportedContentError
from langchain_rwkv_state.prompt.markers import message_to_json
from tests.helpers.langchain_ways import (
    BEGIN,
    END,
    PAGE,
    PROMPT,
    TAKE_NO_MESSAGES,
    WAYS,
    Way,
    table,
)

CONFIG: Any = {"configurable": {"session_id": "bob"}}
CAUSES = {
    "cut": ("'bob'", "trim_messages, filter_messages, n_messages", "another model", "a cache"),
    "text": ("get_buffer_string", "template", "MessagesPlaceholder"),
}


def with_history(chain: Any, store: Any) -> Any:
    return RunnableWithMessageHistory(
        chain | StrOutputParser(),
        lambda session_id: RWKVStateHistory(session_id, store),
        input_messages_key="q",
        history_messages_key="history",
    )


def warned(call: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in found if "deprecat" not in str(each.message).lower()]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.id)
def test_memory_works_or_one_warning_names_the_cause(way: Way, make_chat, store):
    chat = make_chat(7, max_tokens=2)
    told = with_history(way.chain(chat), store)
    foreign = [message_to_json(m) for m in (HumanMessage("Missed."), AIMessage("Indeed."))]
    for turn in (1, 2, 3):
        if way.unread and turn == 1:
            store.append_unread("bob", foreign)
        if way.outcome == "refused":
            with pytest.raises((UnsupportedContentError, KeyError)):
                told.invoke({"q": "Hi."}, CONFIG)
            continue
        found = warned(lambda: told.invoke({"q": "Hi."}, CONFIG))
        info = store.session("bob")
        if way.outcome == "memory":
            assert found == []
            assert (info.n_turns, info.unread) == (turn, ())
        else:
            [text] = found
            assert all(cause in text for cause in CAUSES[way.outcome])
            assert info.head is None
            assert len(info.unread) == 2 * turn + 2 * way.unread


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.id)
async def test_so_it_is_in_the_async_form(way: Way, make_chat, store):
    told = with_history(way.chain(make_chat(7, max_tokens=2)), store)
    if way.unread or way.outcome == "refused":
        return
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        await told.ainvoke({"q": "Hi."}, CONFIG)
    texts = [str(each.message) for each in found if "deprecat" not in str(each.message).lower()]
    assert len(texts) == (way.outcome != "memory")
    assert (store.head("bob") is not None) == (way.outcome == "memory")


def test_every_function_and_class_that_takes_messages_is_among_the_ways():
    names = {*langchain_core.messages.__all__, *langchain_core.prompts.__all__}
    shown = {name for way in WAYS for name in way.names}
    assert names - shown - TAKE_NO_MESSAGES == set()
    assert shown & TAKE_NO_MESSAGES == set()


def test_the_table_in_the_docs_is_the_one_that_was_tried():
    page = PAGE.read_text()
    assert page[page.index(BEGIN) + len(BEGIN) : page.index(END)] == table()


class TestTheWarningAtTheCommit:
    def test_never_raises_even_where_warnings_are_errors(self, store, caplog):
        history = RWKVStateHistory("bob", store)
        question = [*history.messages[:0], HumanMessage("Hi.")]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            history.add_messages([*question, AIMessage("From another model.")])
        [record] = caplog.records
        assert record.levelname == "WARNING"
        assert "session 'bob'" in record.getMessage()
        assert len(store.session("bob").unread) == 2

    def test_is_for_another_stores_model_too(self, make_chat, store):
        from langchain_rwkv_state import MemoryStateStore

        with MemoryStateStore() as other:
            told = with_history(PROMPT | make_chat(7, store=other), store)
            [text] = warned(lambda: told.invoke({"q": "Hi."}, CONFIG))
        assert "another store" in text

    def test_is_for_a_cached_answer_too(self, make_chat, store):
        from langchain_core.runnables import RunnableLambda

        # LangChain's own cache never hits, for its keys hold the turn id: this one leaves it out.
        chat, kept = make_chat(7), list[AIMessage]()

        def cached(value: Any) -> AIMessage:
            if not kept:
                kept.append(chat.invoke(value))
            return kept[0]

        answers = RunnableLambda(cached)
        for session, count in (("ann", 0), ("bob", 1)):
            config: Any = {"configurable": {"session_id": session}}
            told = with_history(PROMPT | answers, store)
            found = warned(lambda told=told, config=config: told.invoke({"q": "Hi."}, config))
            assert len(found) == count
        assert "a cache" in found[0]

    def test_is_not_given_for_a_rewritten_answer_or_one_of_nobodys_turn(self, make_chat, store):
        chat = make_chat(7)
        history = RWKVStateHistory("bob", store)

        def rewritten() -> None:
            chat.invoke([*history.messages, HumanMessage("Hi.")])
            history.add_messages([HumanMessage("Hi."), AIMessage("Rewritten.")])
            history.add_messages([HumanMessage("Hi."), AIMessage("Of no turn.")])

        assert warned(rewritten) == []
        assert len(store.session("bob").unread) == 4

    def test_is_not_given_for_a_turn_without_an_answer(self, store):
        history = RWKVStateHistory("bob", store)
        assert history.messages
        assert warned(lambda: history.add_messages([HumanMessage("Hi.")])) == []


class TestAMarkerThatIsText:
    @pytest.mark.parametrize("how", ["text", "message"])
    def test_is_told_without_a_history_too(self, make_chat, make_llm, how):
        text = "System: [The conversation so far is in the model's state.]\nHuman: Hi."
        model: Any = make_llm(7) if how == "text" else make_chat(7)
        [told] = warned(lambda: model.invoke(text))
        assert "MessagesPlaceholder" in told

    def test_in_a_text_model_behind_a_history_is_one_warning(self, make_llm, store):
        from langchain_core.prompts import PromptTemplate

        told = with_history(PromptTemplate.from_template("{history} {q}") | make_llm(7), store)
        assert len(warned(lambda: told.invoke({"q": "Hi."}, CONFIG))) == 1

    def test_is_not_suspected_in_ordinary_words(self, chat):
        assert warned(lambda: chat.invoke("The conversation so far is in the model's state?")) == []


def test_a_text_model_counts_no_tokens_for_a_marker(make_llm, store):
    llm, (mark,) = make_llm(7), RWKVStateHistory("bob", store).messages
    question = HumanMessage("Hi.")
    assert llm.get_num_tokens_from_messages([mark, question]) == (
        llm.get_num_tokens_from_messages([question])
    )
