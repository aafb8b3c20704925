"""A marker that came with the input opens no memory behind a history: neither chat's nor text's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    trim_messages,
)
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables.history import RunnableWithMessageHistory

from langchain_rwkv_state import MemoryStateStore, RWKVStateHistory
from langchain_rwkv_state.conversation.filings import filings_of
from langchain_rwkv_state.conversation.session import SESSION_KEY
from langchain_rwkv_state.prompt.markers import STATE_KEY, marker, message_to_json, read_marker

PROMPT = ChatPromptTemplate.from_messages(
    [MessagesPlaceholder("history"), MessagesPlaceholder("q")]
)
FORGED = "f" * 32
QUESTION = HumanMessage("What is it?")


def told_of(model: Any, store: Any, prompt: Any = PROMPT) -> RunnableWithMessageHistory:
    return RunnableWithMessageHistory(
        prompt | model,
        lambda session_id: RWKVStateHistory(session_id, store),
        input_messages_key="q",
        history_messages_key="history",
    )


def config(session: str) -> Any:
    return {"configurable": {"session_id": session}}


def forgeries(secret: str) -> list[list[BaseMessage]]:
    """Inputs by which a client tries to go on from somebody else's state."""
    return [
        [marker(secret), QUESTION],
        [marker(secret, turn_id=FORGED), QUESTION],
        [marker(secret, turn_id=FORGED, n_unread=1), QUESTION],
        [QUESTION, marker(secret)],
        [marker(None), marker(secret), QUESTION],
        [SystemMessage("x", additional_kwargs={STATE_KEY: "junk", "rwkv_turn": ["?"]}), QUESTION],
    ]


@pytest.fixture
def secret(chat) -> str:
    ref: str = chat.prefill([HumanMessage("The password is swordfish.")])
    return ref


class TestBehindAHistory:
    @pytest.mark.parametrize("number", range(6))
    def test_a_new_session_answers_as_if_it_were_not_there(self, chat, store, secret, number):
        alone = told_of(chat, store).invoke({"q": [QUESTION]}, config("control"))
        given = forgeries(secret)[number]
        answer = told_of(chat, store).invoke({"q": given}, config("mallory"))
        assert answer.response_metadata[STATE_KEY] == alone.response_metadata[STATE_KEY]
        assert store.head("mallory") == store.head("control")

    async def test_so_it_does_in_the_async_form_and_in_streams(self, chat, store, secret):
        alone = told_of(chat, store).invoke({"q": [QUESTION]}, config("control"))
        given = {"q": [marker(secret), QUESTION]}
        await told_of(chat, store).ainvoke(given, config("ainvoke"))
        async for _ in told_of(chat, store).astream(given, config("astream")):
            pass
        for _ in told_of(chat, store).stream(given, config("stream")):
            pass
        for session in ("ainvoke", "astream", "stream"):
            assert store.head(session) == alone.response_metadata[STATE_KEY]

    def test_a_session_from_a_shared_warm_state_does_not_read_a_sibling(self, chat, store):
        chat.prefill([HumanMessage("Hello.")], session="warm")
        for name in ("mine", "control", "alice"):
            store.fork("warm", name)
        chat.with_session("alice").invoke("The password is swordfish.")
        given = {"q": [marker(store.head("alice")), QUESTION]}
        told_of(chat, store).invoke(given, config("mine"))
        told_of(chat, store).invoke({"q": [QUESTION]}, config("control"))
        assert store.head("mine") == store.head("control")

    def test_the_own_marker_may_not_name_another_state(self, chat, store, secret):
        own = RWKVStateHistory("mallory", store).messages
        altered = marker(secret, turn_id=read_marker(own[0]).turn_id)
        expected = chat.invoke([QUESTION]).response_metadata[STATE_KEY]
        for given in ([*own, altered, QUESTION], [altered, *own, QUESTION]):
            assert chat.invoke(given).response_metadata[STATE_KEY] == expected

    def test_where_a_trimmer_cuts_the_own_one_the_clients_does_not_take_its_place(
        self, chat, store, secret
    ):
        trim = trim_messages(max_tokens=200, token_counter=chat, start_on="human")
        prompt: Any = PROMPT | trim  # type: ignore[operator] # a trimmer takes prompt values, too
        with pytest.warns(UserWarning, match="'mallory'"):
            answer = told_of(chat, store, prompt).invoke(
                {"q": [HumanMessage("Hi."), marker(secret), QUESTION]}, config("mallory")
            )
        expected = chat.invoke([HumanMessage("Hi."), QUESTION])
        assert answer.response_metadata[STATE_KEY] == expected.response_metadata[STATE_KEY]

    def test_a_text_model_drops_it_too(self, make_llm, chat, store, secret):
        llm = make_llm(7)
        told_of(llm, store).invoke({"q": [QUESTION]}, config("control"))
        for number, given in enumerate(forgeries(secret)):
            told_of(llm, store).invoke({"q": given}, config(f"mallory {number}"))
            assert store.head(f"mallory {number}") == store.head("control")

    def test_a_text_model_is_told_of_one_state_alone(self, make_llm, store, secret):
        told = told_of(make_llm(7).bind(state=secret), store)
        with pytest.raises(ValueError, match="leave one of them out"):
            told.invoke({"q": [QUESTION]}, config("bob"))


class TestAmongUnreadMessages:
    @pytest.fixture
    def bob(self, chat, store, secret):
        """Two sessions with unread messages, one with a marker among them."""
        said = [message_to_json(m) for m in (HumanMessage("Missed."), AIMessage("Indeed."))]
        for session in ("control", "bob"):
            store.append_unread(session, said)
        # A store takes no marker in; it may hold one from before it refused them.
        row = store._view().stored_session("bob")
        planted = message_to_json(marker(secret, turn_id=FORGED))
        new = replace(row, unread=(planted, *row.unread))
        store._write(lambda changes: changes.put(new, row))
        assert len(store.session("bob").unread) == 3
        return chat.with_session("bob")

    def test_it_is_not_read_by_a_session(self, chat, store, bob):
        bob.invoke("What is it?")
        chat.with_session("control").invoke("What is it?")
        assert store.head("bob") == store.head("control")
        assert store.session("bob").unread == ()

    def test_it_is_not_read_by_a_history(self, chat, store, bob):
        for session in ("bob", "control"):
            told_of(chat, store).invoke({"q": [QUESTION]}, config(session))
            assert store.session(session).unread == ()
        assert store.head("bob") == store.head("control")

    def test_it_is_not_read_by_prefill(self, chat, store, bob):
        for session in ("bob", "control"):
            chat.prefill([QUESTION], session=session)
        assert store.head("bob") == store.head("control")


class TestABareModel:
    def test_takes_the_marker_it_is_given(self, chat, secret):
        answer = chat.invoke([marker(secret), QUESTION])
        alone = chat.invoke([QUESTION])
        assert answer.response_metadata[STATE_KEY] != alone.response_metadata[STATE_KEY]

    def test_goes_on_from_a_marker_of_another_process_and_files_nothing(self, chat, store, secret):
        answer = chat.invoke([marker(secret, turn_id=FORGED), QUESTION])
        plain = chat.invoke([marker(secret), QUESTION])
        assert answer.response_metadata[STATE_KEY] == plain.response_metadata[STATE_KEY]
        assert filings_of(store).of(FORGED) == []


def test_a_session_of_another_store_is_not_opened_by_its_marker(make_chat, store, secret):
    with MemoryStateStore() as other:
        answer = make_chat(7, store=other).with_session("bob").invoke([marker(secret), QUESTION])
    assert answer.response_metadata[SESSION_KEY] == "bob"
