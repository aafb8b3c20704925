"""Histories with real models: what a chain's session stands for is what was said in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory

from langchain_rwkv_state import ChatRWKV, RWKVStateHistory
from langchain_rwkv_state.prompt.markers import message_from_json

CONFIG: Any = {"configurable": {"session_id": "bob"}}
PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Your name is Ada."), MessagesPlaceholder("history"), ("human", "{question}")]
)
Ask = Callable[[Runnable[Any, Any], str], str]


def with_history(chat: ChatRWKV, chain: Runnable[Any, Any]) -> RunnableWithMessageHistory:
    return RunnableWithMessageHistory(
        chain,
        lambda session_id: RWKVStateHistory(session_id, chat.store),
        input_messages_key="question",
        history_messages_key="history",
    )


def ask(chain: Runnable[Any, Any], question: str) -> str:
    return str(chain.invoke({"question": question}, CONFIG))


def ask_streaming(chain: Runnable[Any, Any], question: str) -> str:
    return "".join(chain.stream({"question": question}, CONFIG))


def ask_async(chain: Runnable[Any, Any], question: str) -> str:
    return str(asyncio.run(chain.ainvoke({"question": question}, CONFIG)))


def unread(chat: ChatRWKV) -> list[str]:
    info = chat.store.session("bob")
    return [str(message_from_json(text).text) for text in info.unread] if info else []


def reference_of(chat: ChatRWKV, *said: str) -> str:
    """The reference of the whole conversation, read from zero in one go."""
    messages: list[BaseMessage] = [SystemMessage("Your name is Ada.")]
    for place, text in enumerate(said):
        messages.append(AIMessage(text) if place % 2 else HumanMessage(text))
    return chat.prefill(messages)


@pytest.mark.parametrize("way", [ask, ask_streaming, ask_async])
def test_the_head_stands_for_exactly_the_conversation(chat: ChatRWKV, way: Ask) -> None:
    chain = with_history(chat, PROMPT | chat | StrOutputParser())
    said: list[str] = []
    for question in ("one", "two", "three"):
        said += [question, way(chain, question)]
        assert chat.store.head("bob") == reference_of(chat, *said)
        assert unread(chat) == []


@pytest.mark.parametrize("way", [ask, ask_streaming, ask_async])
def test_text_that_waited_unread_stands_in_the_head_like_any_other(
    chat: ChatRWKV, way: Ask
) -> None:
    shout: Any = RunnableLambda(lambda text: f"[{text}]")
    rewritten = with_history(chat, PROMPT | chat | StrOutputParser() | shout)
    plain = with_history(chat, PROMPT | chat | StrOutputParser())
    said = ["one", way(rewritten, "one")]
    assert chat.store.head("bob") is None
    assert unread(chat) == said
    said += ["two", way(rewritten, "two")]
    assert chat.store.head("bob") == reference_of(chat, *said[:2])
    assert unread(chat) == said[2:]
    said += ["three", way(plain, "three")]
    assert chat.store.head("bob") == reference_of(chat, *said)
    assert unread(chat) == []


def test_a_stream_that_is_left_leaves_the_session_as_it_was(chat: ChatRWKV) -> None:
    chain = with_history(chat, PROMPT | chat)
    first = ask(with_history(chat, PROMPT | chat | StrOutputParser()), "one")
    stream: Any = chain.stream({"question": "two"}, CONFIG)
    next(stream)
    stream.close()
    assert chat.store.head("bob") == reference_of(chat, "one", first)
    assert unread(chat) == []


@pytest.mark.filterwarnings("ignore:The messages before the state marker")
def test_a_changing_system_prompt_never_makes_a_turn_unread(chat: ChatRWKV) -> None:
    dated = ChatPromptTemplate.from_messages(
        [("system", "Day {day}."), MessagesPlaceholder("history"), ("human", "{question}")]
    )
    chain = with_history(chat, dated | chat | StrOutputParser())
    for day in range(3):
        chain.invoke({"question": "hello", "day": day}, CONFIG)
        assert unread(chat) == []
    assert len(chat.store.log("bob")) == 3


@pytest.mark.parametrize("way", [ask, ask_streaming, ask_async])
def test_the_demo_model_recalls_a_name_through_a_chain(demo: ChatRWKV, way: Ask) -> None:
    chain = with_history(
        demo,
        ChatPromptTemplate.from_messages([MessagesPlaceholder("history"), ("human", "{question}")])
        | demo
        | StrOutputParser()
        | str.strip,
    )
    way(chain, "My name is Bob.")
    assert "Bob" in way(chain, "What is my name?")
    assert unread(demo) == []
