"""A graph's turn: what its thread lets go of, whatever the graph's messages are like."""

from __future__ import annotations

import sqlite3
from typing import Any, cast

import pytest
from deepagents import create_deep_agent
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph.message import add_messages

from langchain_rwkv_state import ChatRWKV, MemoryStateStore, RWKVStateMiddleware
from langchain_rwkv_state.conversation.coverage import Coverage
from langchain_rwkv_state.conversation.graph_turn import ThreadKeeping

REF = "rwkv1-" + "0" * 64


def test_messages_without_ids_are_dropped_as_others_are():
    question, answer = HumanMessage("Hello."), AIMessage("Hi.", id="a")
    field = Coverage().and_answered([question], answer, REF).to_field()
    new = HumanMessage("How are you?", id="b")
    held: list[Any] = [question, answer, new]
    coverage, talk, gone = ThreadKeeping().begin(field, held)
    assert (coverage.covered[0].ref, talk) == (REF, [new])
    assert add_messages(held, cast("Any", gone)) == [new]


def test_a_deep_agent_lets_go_of_messages_that_were_given_as_pairs():
    chat = ChatRWKV(model="demo", temperature=0, store=MemoryStateStore())
    agent: Any = create_deep_agent(
        chat, middleware=[RWKVStateMiddleware()], checkpointer=InMemorySaver()
    )
    for text in ("My name is Marlow.", "Good morning.", "What is my name?"):
        done = agent.invoke({"messages": [("user", text)]}, {"configurable": {"thread_id": "deep"}})
        assert [message.text for message in done["messages"][:-1]] == [text]
    assert done["messages"][-1].text == "Your name is Marlow."


def test_options_bound_to_an_agents_model_outlive_its_tools():
    """LangChain's own binding hands `bind_tools` on, and drops what is bound."""

    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    chat = ChatRWKV(model="demo", temperature=0, store=MemoryStateStore())
    agent: Any = create_agent(cast("Any", chat.bind(max_tokens=3)), [add])
    done = agent.invoke({"messages": [("user", "My name is Marlow.")]})
    assert done["messages"][-1].text == "Nice to meet"


def test_a_thread_that_lost_its_field_in_a_run_without_us_is_told_of():
    chat = ChatRWKV(model="demo", temperature=0, store=MemoryStateStore())
    saver = SqliteSaver(sqlite3.connect(":memory:", check_same_thread=False))
    ours = create_agent(chat, middleware=[RWKVStateMiddleware()], checkpointer=saver)
    plain = create_agent(chat, checkpointer=saver)

    def say(agent: Any, text: str) -> str:
        config = {"configurable": {"thread_id": "1"}}
        return str(agent.invoke({"messages": [("user", text)]}, config)["messages"][-1].text)

    say(plain, "Hello.")  # a thread that began without us has lost nothing
    say(ours, "My name is Marlow.")
    say(ours, "I live in Oslo.")
    say(plain, "Hello.")
    with pytest.warns(UserWarning, match="field that names them is gone"):
        assert say(ours, "What is my name?") == "I don't know your name."
    assert say(ours, "Where do I live?") == "You live in Oslo."  # and once is enough
