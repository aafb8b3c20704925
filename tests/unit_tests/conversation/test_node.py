"""A node of a plain graph: it answers from its thread's state, whichever way the graph goes."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel

from langchain_rwkv_state import RWKVLLM, ChatRWKV, MemoryStateStore, marker, rwkv_node
from langchain_rwkv_state.conversation.filings import filings_of
from langchain_rwkv_state.prompt.markers import STATE_KEY
from tests.helpers.fake_chat import FakeChat


class Thread(MessagesState):
    rwkv_state: NotRequired[dict[str, Any]]


@pytest.fixture
def chat():
    return ChatRWKV(model="demo", temperature=0, store=MemoryStateStore())


def graph_of(node, schema=Thread, saver=None, given=MessagesState):
    graph = StateGraph(schema, input_schema=given)
    graph.add_node("chat", node)
    graph.add_edge(START, "chat")
    return graph.compile(checkpointer=saver or InMemorySaver())


def config(thread="1"):
    return {"configurable": {"thread_id": thread}}


def say(graph, text, where=None):
    return graph.invoke({"messages": [HumanMessage(text)]}, where or config())["messages"]


def ref_of(message):
    return message.response_metadata[STATE_KEY]


def told(chat, *messages):
    """The state of a conversation that is read in one go."""
    return chat.prefill([marker(None), *messages])


def test_the_state_is_that_of_the_whole_conversation(chat):
    graph = graph_of(rwkv_node(chat))
    whole = []
    for text in ["My name is Marlow.", "I live in Oslo.", "What is my name?"]:
        held = say(graph, text)
        assert len(held) == 2
        whole += held
    assert held[-1].content == "Your name is Marlow."
    assert ref_of(held[-1]) == told(chat, *whole)
    assert ref_of(held[-1]) in chat.store.kept("thread:1")
    assert not filings_of(chat.store)._turns, "what was filed for a turn goes with it"


async def test_so_it_is_without_blocking(chat):
    graph = graph_of(rwkv_node(chat))
    whole = []
    for text in ["My name is Marlow.", "What is my name?"]:
        given = {"messages": [HumanMessage(text)]}
        held = (await graph.ainvoke(given, config()))["messages"]
        whole += held
    assert held[-1].content == "Your name is Marlow."
    assert ref_of(held[-1]) == told(chat, *whole)
    assert ref_of(held[-1]) in chat.store.kept("thread:1")


def test_two_threads_know_nothing_of_each_other(chat):
    graph = graph_of(rwkv_node(chat))
    say(graph, "My name is Marlow.")
    assert say(graph, "What is my name?", config("2"))[-1].content == "I don't know your name."


def test_an_earlier_checkpoint_is_gone_on_from(chat):
    graph = graph_of(rwkv_node(chat))
    say(graph, "My name is Marlow.")
    before = graph.get_state(config()).config
    say(graph, "Actually, my name is Zorvek.")
    assert say(graph, "What is my name?")[-1].content == "Your name is Zorvek."
    assert say(graph, "What is my name?", before)[-1].content == "Your name is Marlow."


def test_an_edited_question_is_read_again(chat):
    graph = graph_of(rwkv_node(chat))
    question, answer = say(graph, "My name is Marlow.")
    edited = [HumanMessage("My name is Zorvek.", id=question.id), AIMessage("Fine.", id=answer.id)]
    graph.update_state(config(), {"messages": edited})
    held = say(graph, "What is my name?")
    assert held[-1].content == "Your name is Zorvek."
    assert ref_of(held[-1]) == told(chat, *held)


def test_messages_can_stay(chat):
    graph = graph_of(rwkv_node(chat, keep_all=True))
    for text in ["My name is Marlow.", "I live in Oslo.", "What is my name?"]:
        held = say(graph, text)
    assert len(held) == 6
    assert ref_of(held[-1]) == told(chat, *held)
    usage = held[-1].usage_metadata
    assert usage["input_tokens"] - usage["input_token_details"]["cache_read"] < 20


def test_a_system_prompt_leads_what_is_read(chat):
    graph = graph_of(rwkv_node(chat, system="Your name is Zorvek."))
    say(graph, "Hello.")
    assert say(graph, "What is your name?")[-1].content == "My name is Zorvek."
    graph = graph_of(rwkv_node(chat, system=SystemMessage("Your name is Ilex.")))
    assert say(graph, "What is your name?")[-1].content == "My name is Ilex."


def test_tools_are_called_in_a_graph_of_ones_own(chat):
    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        return a + b

    graph = StateGraph(Thread, input_schema=MessagesState)
    graph.add_node("chat", rwkv_node(chat.bind_tools([add])))
    graph.add_node("tools", ToolNode([add]))
    graph.add_edge(START, "chat")
    graph.add_conditional_edges("chat", tools_condition)
    graph.add_edge("tools", "chat")
    agent = graph.compile(checkpointer=InMemorySaver())
    say(agent, "My name is Marlow.")
    held = say(agent, "What is 17 plus 25?")
    assert [message.type for message in held] == ["human", "ai", "tool", "ai"]
    assert held[-1].content == "The result is: 42"
    held = say(agent, "What is my name?")
    assert [message.content for message in held] == ["What is my name?", "Your name is Marlow."]


def test_markers_of_a_client_are_dropped(chat):
    graph = graph_of(rwkv_node(chat))
    ref = ref_of(say(graph, "My name is Marlow.")[-1])
    given = {"messages": [marker(ref), HumanMessage("What is my name?")]}
    held = graph.invoke(given, config("2"))["messages"]
    assert held[-1].content == "I don't know your name."
    assert [message.type for message in held] == ["human", "ai"]


def test_so_is_a_field_of_a_client(chat):
    graph = graph_of(rwkv_node(chat))
    say(graph, "My name is Marlow.")
    field = graph.get_state(config()).values["rwkv_state"]
    given = {"messages": [HumanMessage("What is my name?")], "rwkv_state": field}
    answer = graph.invoke(given, config("2"))["messages"][-1]
    assert answer.content == "I don't know your name."


def test_a_graph_without_the_field_is_told_so(chat):
    graph = graph_of(rwkv_node(chat), MessagesState)
    say(graph, "My name is Marlow.")
    for _ in range(2):
        with pytest.warns(UserWarning, match="rwkv_state: NotRequired"):
            held = say(graph, "What is my name?")
    assert held[-1].content == "Your name is Marlow."
    assert ref_of(held[-1]) == told(chat, *held)


def test_a_thread_that_began_without_the_node_goes_on_with_it(chat):
    saver = InMemorySaver()
    plain = graph_of(lambda state: {"messages": [chat.invoke(state["messages"])]}, saver=saver)
    say(plain, "My name is Marlow.")
    graph = graph_of(rwkv_node(chat, keep_all=True), saver=saver)
    with pytest.warns(UserWarning, match="right once"):
        held = say(graph, "What is my name?")
    assert held[-1].content == "Your name is Marlow."
    held = say(graph, "What is my name?")  # without a warning
    assert ref_of(held[-1]) == told(chat, *held)


class Model(BaseModel):
    messages: Annotated[list[Any], add_messages]
    rwkv_state: dict[str, Any] | None = None


@dataclass
class Record:
    messages: Annotated[list[Any], add_messages]
    rwkv_state: dict[str, Any] | None = None


@pytest.mark.parametrize("schema", [Model, Record])
def test_a_state_may_be_an_object(chat, schema):
    graph = graph_of(rwkv_node(chat), schema)
    say(graph, "My name is Marlow.")
    assert [m.content for m in say(graph, "What is my name?")][1:] == ["Your name is Marlow."]


def test_messages_that_cannot_be_removed_are_told_of(chat):
    class Added(TypedDict):
        messages: Annotated[list[Any], operator.add]
        rwkv_state: NotRequired[dict[str, Any]]

    graph = graph_of(rwkv_node(chat), Added, given=Added)
    say(graph, "My name is Marlow.")
    say(graph, "I live in Oslo.")
    with pytest.raises(ValueError, match="add_messages"):
        say(graph, "What is my name?")


def test_a_thread_whose_name_is_too_long_is_told_so_before_it_is_answered(chat):
    graph = graph_of(rwkv_node(chat))
    say(graph, "Hello.", config("x" * 505))
    with pytest.raises(ValueError, match=r"thread_id 'xxx.* has 506 characters.* at most 512"):
        say(graph, "Hello.", config("x" * 506))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"keep_last": -1}, ValueError, "keep_last is -1"),
        ({"keep_last": 1.5}, TypeError, "keep_last is 1.5"),
        ({"keep_last": True}, TypeError, "keep_last is True"),
        ({"keep_last": 2, "keep_all": True}, ValueError, "pass one"),
        ({"ttl": -1}, ValueError, "-1"),
    ],
)
def test_what_cannot_be_is_refused(chat, options, error, match):
    with pytest.raises(error, match=match):
        rwkv_node(chat, **options)


def test_so_is_another_model():
    with pytest.raises(TypeError, match="FakeChat"):
        rwkv_node(FakeChat(store=MemoryStateStore()))
    with pytest.raises(TypeError, match="RWKVLLM"):  # its answers would be read as questions
        rwkv_node(RWKVLLM(model="demo", store=MemoryStateStore()))


def test_a_result_of_a_tool_alone_is_read(chat):
    graph = graph_of(rwkv_node(chat))
    say(graph, "My name is Marlow.")
    call = {"name": "add", "args": {"a": 1, "b": 2}, "id": "1", "type": "tool_call"}
    said = [AIMessage("", tool_calls=[call]), ToolMessage("3", tool_call_id="1")]
    held = graph.invoke({"messages": said}, config())["messages"]
    assert held[-1].content == "The result is: 3"
