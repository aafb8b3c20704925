"""Gives LangChain's agents a memory that is a state: `RWKVStateMiddleware`, for `create_agent`.

The thread's reference lives in a private field of the graph's state, so that forks, time travel and
restarts take it along. This is the one module that imports LangChain's own package, which is an
extra: ``pip install 'langchain-rwkv-state[agents]'``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NotRequired, cast

from langchain_core.messages import AnyMessage, BaseMessage

from langchain_rwkv_state.conversation.coverage import FIELD, Coverage
from langchain_rwkv_state.conversation.graph_turn import GraphTurn, ThreadKeeping
from langchain_rwkv_state.store import TTL

try:
    from langchain.agents.middleware.types import (
        AgentMiddleware,
        AgentState,
        ExtendedModelResponse,
        ModelRequest,
        ModelResponse,
        PrivateStateAttr,
    )
    from langgraph.config import get_config
    from langgraph.runtime import Runtime
    from langgraph.types import Command
except ImportError as error:
    raise ImportError(
        "RWKVStateMiddleware is for agents of LangChain's own package, which is not installed, or "
        "older than 1.4: pip install 'langchain-rwkv-state[agents]'."
    ) from error


class ThreadState(AgentState[Any]):
    """The state of a graph whose threads remember by RWKV's states."""

    rwkv_state: NotRequired[Annotated[dict[str, Any], PrivateStateAttr]]


class RWKVStateMiddleware(AgentMiddleware[ThreadState, Any, Any]):
    """Keeps an agent's memory in states: a checkpoint holds a reference, and no transcript.

    Each call of the model goes on from the thread's last state and reads only what came since. At
    the beginning of each turn, messages that the states stand for are dropped from the thread;
    ``result["messages"]`` holds those of the turn. What is edited, redacted, summarised or removed
    while the thread still holds it is read again, from the state before it.

    States of answers are kept in the model's store, for the owner ``thread:<thread_id>``: `release`
    of that owner is the counterpart of a checkpointer's `delete_thread`, `copy_kept` that of
    `copy_thread`. Without a ``thread_id`` they are staged, and live for the run alone.

    Stand it last in the list of middleware, so that it sees the messages as the others leave them.
    The agent's model is a `ChatRWKV`. A session remembers by itself, and is a `TypeError`.

    Args:
        keep_last: How many messages that are in the state the thread keeps at least, for a user
            interface to show. It drops whole steps, so that it may keep twice as many.
        keep_all: Whether the thread keeps its transcript: then only the reading is saved, and a
            state that was lost is read again.
        ttl: How long states live after the thread's last use (seconds, a `timedelta`, or a text
            such as ``"12h"``); ``None`` means the store's default, `math.inf` never.

    Raises:
        ValueError: At construction: `keep_last` or the time to live is not possible.
        TypeError: At construction: `keep_last` is no integer.

    Example:
        >>> agent = create_agent(  # doctest: +SKIP
        ...     ChatRWKV(model="demo"),
        ...     tools=[get_weather],
        ...     middleware=[RWKVStateMiddleware()],
        ...     checkpointer=InMemorySaver(),
        ... )
    """

    state_schema = ThreadState

    def __init__(self, *, keep_last: int = 0, keep_all: bool = False, ttl: TTL = None) -> None:
        super().__init__()
        self.keeping = ThreadKeeping(keep_last, keep_all, ttl)
        self.tools = []

    def before_agent(self, state: ThreadState, runtime: Runtime[Any]) -> dict[str, Any]:  # noqa: ARG002
        """Drops what the thread's states stand for, and what a client may not bring along."""
        field = state.get(FIELD)
        coverage, _, gone = self.keeping.begin(field, state["messages"])
        update: dict[str, Any] = {"messages": gone}
        # A thread without a field is left so until its first answer, which looks for a lost one.
        return update if field is None else {**update, FIELD: coverage.to_field()}

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """Lets the model go on from the thread's state, and keeps the state of its answer."""
        turn = _turn(request)
        response = turn.ask(lambda messages: handler(_with(request, messages)))
        turn.answered(response.result)
        turn.keep(self.keeping.ttl)
        return _with_field(response, turn)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """As `wrap_model_call`, without blocking the event loop."""
        turn = _turn(request)
        response = await turn.aask(lambda messages: handler(_with(request, messages)))
        turn.answered(response.result)
        await turn.akeep(self.keeping.ttl)
        return _with_field(response, turn)


def _turn(request: ModelRequest[Any]) -> GraphTurn:
    coverage = Coverage.of(request.state.get(FIELD))
    return GraphTurn(coverage, request.messages, request.model, get_config())


def _with(request: ModelRequest[Any], messages: list[BaseMessage]) -> ModelRequest[Any]:
    return request.override(messages=cast("list[AnyMessage]", messages))


def _with_field(
    response: ModelResponse[Any], turn: GraphTurn
) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
    """Returns what a call of the model gave, with the thread's field where it changed."""
    if turn.ref is None:
        return response
    return ExtendedModelResponse(response, Command(update={FIELD: turn.coverage.to_field()}))
