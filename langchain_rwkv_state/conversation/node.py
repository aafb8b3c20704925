"""Makes a node of a plain LangGraph graph that remembers by states: `rwkv_node`.

It does in one node what `RWKVStateMiddleware` does in an agent's. The graph's state has a field for
the thread's reference beside its messages, so that going back, forking and repeating a step are
right: a session by its name would be told the same turn once more.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    BaseMessage,
    RemoveMessage,
    SystemMessage,
    convert_to_messages,
)
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from langchain_rwkv_state.base import RWKVModel
from langchain_rwkv_state.conversation.coverage import FIELD
from langchain_rwkv_state.conversation.graph_turn import (
    GraphTurn,
    ThreadKeeping,
    unbound,
)
from langchain_rwkv_state.prompt.markers import STATE_KEY
from langchain_rwkv_state.store import TTL

_NO_FIELD = (
    f"Answers of this thread name states, but the thread has no {FIELD!r}: all its messages are "
    "read. That is right once, for a thread that began without rwkv_node. If it comes back, add "
    f"`{FIELD}: NotRequired[dict]` to the schema of the graph's state, which leaves out what it is "
    "not told of."
)
_NO_REDUCER = (
    "A RemoveMessage stands among the thread's messages: their reducer is none that removes. Take "
    "`messages: Annotated[list, add_messages]`, as in LangGraph's MessagesState."
)


def rwkv_node(
    chat: Runnable[Any, Any],
    *,
    system: str | SystemMessage | None = None,
    keep_last: int = 0,
    keep_all: bool = False,
    ttl: TTL = None,
) -> Runnable[Any, dict[str, Any]]:
    """Returns a node that answers a graph's messages from its thread's state.

    The graph's state needs a field beside its messages, ``rwkv_state: NotRequired[dict]``, and
    input that comes from clients a schema without it: whoever may write it may name another's
    state. Messages that are in the state are dropped from the thread at the next turn.

    Args:
        chat: A `ChatRWKV`, also with tools or options bound to it.
        system: The system prompt.
        keep_last: As for `RWKVStateMiddleware`, and so are the others.
        keep_all: Whether the thread keeps its transcript.
        ttl: How long states live after the thread's last use.

    Raises:
        TypeError: `chat` is no chat model of this package; `keep_last` is no integer.
        ValueError: `keep_last` or the time to live is not possible.

    Example:
        >>> class Thread(MessagesState):  # doctest: +SKIP
        ...     rwkv_state: NotRequired[dict]
        >>> graph = StateGraph(Thread, input_schema=MessagesState)  # doctest: +SKIP
        >>> graph.add_node("chat", rwkv_node(ChatRWKV(model="demo")))  # doctest: +SKIP
    """
    keeping = ThreadKeeping(keep_last, keep_all, ttl)
    model: Any = unbound(chat)
    if not (isinstance(model, RWKVModel) and isinstance(model, BaseChatModel)):
        raise TypeError(
            f"rwkv_node is given {type(model).__name__}: pass a ChatRWKV, also with tools "
            "or options bound to it."
        )
    lead = [SystemMessage(system)] if isinstance(system, str) else [system] if system else []

    def begin(state: Any, config: RunnableConfig) -> tuple[GraphTurn, list[BaseMessage]]:
        values = state if isinstance(state, Mapping) else vars(state)  # pydantic, a dataclass
        messages, field = convert_to_messages(values["messages"]), values.get(FIELD)
        if any(isinstance(one, RemoveMessage) for one in messages):
            raise ValueError(_NO_REDUCER)
        if field is None and any(STATE_KEY in one.response_metadata for one in messages):
            warnings.warn(_NO_FIELD, stacklevel=2)
        coverage, rest, gone = keeping.begin(field, messages, keep_turn=True)
        return GraphTurn(coverage, rest, chat, config), gone

    def end(turn: GraphTurn, answer: Any, gone: list[BaseMessage]) -> dict[str, Any]:
        return {"messages": [*gone, answer], FIELD: turn.coverage.to_field()}

    def call(state: Any, config: RunnableConfig) -> dict[str, Any]:
        turn, gone = begin(state, config)
        answer = turn.ask(lambda messages: chat.invoke([*lead, *messages], config))
        turn.answered([answer])
        turn.keep(ttl)
        return end(turn, answer, gone)

    async def acall(state: Any, config: RunnableConfig) -> dict[str, Any]:
        turn, gone = begin(state, config)
        answer = await turn.aask(lambda messages: chat.ainvoke([*lead, *messages], config))
        turn.answered([answer])
        await turn.akeep(ttl)
        return end(turn, answer, gone)

    return RunnableLambda(call, acall, name="rwkv_node")
