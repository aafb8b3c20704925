"""An unread message that RWKV cannot read does not end its session's memory."""

from __future__ import annotations

import warnings

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    RemoveMessage,
    ToolMessage,
)

from langchain_rwkv_state import RWKVStateHistory
from langchain_rwkv_state.conversation.unread import readable

IMAGE = {"type": "image", "url": "http://example.org/y.png"}
WARNED = "unread messages of session 'bob'"


@pytest.mark.parametrize(
    ("message", "read"),
    [
        (HumanMessage([{"type": "text", "text": "What?"}, IMAGE]), HumanMessage("What?")),
        (HumanMessage([IMAGE]), HumanMessage("[image]")),
        (AIMessage([IMAGE, IMAGE]), AIMessage("[image]")),
        (ToolMessage([IMAGE], tool_call_id="1"), ToolMessage("[image]", tool_call_id="1")),
        (RemoveMessage(id="1"), HumanMessage("[remove]")),
        (ChatMessage(role="a b\n\nc", content="Once."), HumanMessage("Once.")),
    ],
)
def test_an_unreadable_message_is_its_text_or_a_word(message, read):
    with pytest.warns(UserWarning, match=WARNED):
        found = readable([HumanMessage("Hi."), message], "bob")
    assert [(type(one), one.content) for one in found[1:]] == [(type(read), read.content)]
    assert found[0].content == "Hi."


def test_readable_messages_are_left_as_they_are():
    messages: list[BaseMessage] = [HumanMessage("Hi."), ChatMessage(role="narrator", content="x")]
    assert readable(messages, "bob") == messages


def test_it_is_no_error_where_warnings_are(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(readable([HumanMessage([IMAGE])], "bob")) == 1
    assert WARNED in caplog.text


@pytest.mark.parametrize(
    "message", [HumanMessage([IMAGE]), RemoveMessage(id="1"), ChatMessage(role="a b", content="x")]
)
def test_a_session_goes_on_behind_one(chat, store, message):
    RWKVStateHistory("bob", store).add_messages([message, AIMessage("A cat.")])
    with pytest.warns(UserWarning, match=WARNED):
        chat.with_session("bob").invoke("Hi.")
    info = store.session("bob")
    assert (info.n_turns, info.unread) == (1, ())
    chat.with_session("bob").invoke("Hi.")


def test_a_history_goes_on_behind_one(chat, store):
    history = RWKVStateHistory("bob", store)
    history.add_messages([HumanMessage([IMAGE]), AIMessage("A cat.")])
    with pytest.warns(UserWarning, match=WARNED):
        given = history.messages
    question = HumanMessage("Hi.")
    history.add_messages([question, chat.invoke([*given, question])])
    info = store.session("bob")
    assert (info.n_turns, info.unread) == (1, ())
