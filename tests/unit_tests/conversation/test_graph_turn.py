"""A graph's turn: what its thread lets go of, whatever the graph's messages are like."""

from __future__ import annotations

from typing import Any, cast

from deepagents import create_deep_agent
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
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
