"""Drives agents whose memory is a state, each beside a twin that keeps its transcript.

The twin is the same agent without `RWKVStateMiddleware`, over a model of the same words: what it
reads at its last call is the conversation from zero. So the law of equivalence can be asked of
every scenario: the thread's state stands for the very text that the twin reads, under the very
reference that this text has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool

from langchain_rwkv_state import RWKVStateMiddleware
from langchain_rwkv_state.conversation.coverage import FIELD, Coverage
from langchain_rwkv_state.prompt.call_options import as_tools
from langchain_rwkv_state.prompt.markers import STATE_KEY, without_markers
from tests.helpers.text_model import BORDER, TextRWKV

Given = str | Sequence[BaseMessage] | dict[str, Any] | Any | None
_TURNS: dict[str, type[BaseMessage]] = {
    "User": HumanMessage,
    "Assistant": AIMessage,
    "System": SystemMessage,
}


@tool
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


def user(text: str) -> str:
    """Returns a turn of the user as the model reads it."""
    return f"User: {text}"


def said(text: str) -> str:
    """Returns an answer as the model reads it."""
    return f"Assistant: {text}"


def called(*calls: tuple[str, dict[str, Any]]) -> str:
    """Returns an answer that calls tools, as the model reads it."""
    written = [
        json.dumps({"name": name, "arguments": arguments}, separators=(",", ":"))
        for name, arguments in calls
    ]
    body = written[0] if len(written) == 1 else f"[{','.join(written)}]"
    return said(f"```json\n{body}\n```")


def result(text: str) -> str:
    """Returns a tool's result as the model reads it."""
    return user(f"Function output:\n{text}")


class Agent:
    """An agent, driven with or without `await`, and its twin.

    Args:
        others: Middleware beside ours, in order.
        make_chat: Makes the model of either.
        make_saver: Makes the checkpointer of either, or ``None``.
        is_async: Whether it is awaited.
        last: Whether ours comes last of all, else first.
        tools: Its tools.
        system: Its system prompt.
        twin: Whether there is a twin.
        keep: Settings of our middleware.
        create: Makes the agent.
        settings: Others of `create`.
    """

    def __init__(
        self,
        *others: Any,
        make_chat: Callable[[], TextRWKV],
        make_saver: Callable[[], Any],
        is_async: bool,
        last: bool = True,
        tools: Sequence[Any] = (add,),
        system: str | None = "Be kind.",
        twin: bool = True,
        keep: dict[str, Any] | None = None,
        create: Callable[..., Any] = create_agent,
        **settings: Any,
    ) -> None:
        self.chat = make_chat()
        self.is_async = is_async
        self.tools = list(tools)
        self.system = system
        ours = RWKVStateMiddleware(**keep or {})
        known = {"tools": list(tools), "system_prompt": system, **settings}
        self.graph: Any = create(
            self.chat,
            middleware=[*others, ours] if last else [ours, *others],
            checkpointer=make_saver(),
            **known,
        )
        self.twin: Agent | None = None
        if twin:
            plain = Agent.__new__(Agent)
            plain.chat = make_chat()
            plain.is_async, plain.tools, plain.system = is_async, self.tools, system
            plain.graph = create(
                plain.chat, middleware=list(others), checkpointer=make_saver(), **known
            )
            plain.twin = None
            self.twin = plain

    def fails(self, *errors: Exception) -> None:
        """Lets the next calls of the model raise, the twin's too."""
        for agent in self.both():
            agent.chat.failures.extend(errors)

    async def run(self, given: Given, config: Any = "t", **options: Any) -> dict[str, Any]:
        """Runs it on input (a text is what the user says), and the twin alike.

        Args:
            given: A text, messages, a dict, a command, or ``None`` to go on.
            config: A configuration, or a thread's name.
            options: Others of `invoke`.
        """
        found = [await agent.run_alone(given, config, **options) for agent in self.both()]
        if self.twin is not None:
            ours, plain = ([m.text for m in each["messages"][-1:]] for each in found)
            assert ours == plain
        return found[0]

    async def say(self, text: str, config: Any = "t") -> str:
        """Returns the answer to what the user says."""
        return str((await self.run(text, config))["messages"][-1].text)

    async def state(self, config: Any = "t") -> Any:
        """Returns the thread's snapshot."""
        if self.is_async:
            return await self.graph.aget_state(as_config(config))
        return self.graph.get_state(as_config(config))

    async def history(self, config: Any = "t") -> list[Any]:
        """Returns the thread's snapshots, newest first."""
        if self.is_async:
            return [one async for one in self.graph.aget_state_history(as_config(config))]
        return list(self.graph.get_state_history(as_config(config)))

    async def update(
        self, change: Callable[[list[BaseMessage]], list[BaseMessage]], config: Any = "t"
    ) -> Any:
        """Updates a thread's messages, given what they are, and the twin's alike."""
        found = []
        for agent in self.both():
            values = {"messages": change((await agent.state(config)).values["messages"])}
            if self.is_async:
                found.append(await agent.graph.aupdate_state(as_config(config), values))
            else:
                found.append(agent.graph.update_state(as_config(config), values))
        return found[0]

    async def stream(self, given: Given, config: Any = "t", **options: Any) -> list[Any]:
        """Returns all that a stream gives; the twin is left alone."""
        given, config = as_input(given), as_config(config)
        if self.is_async:
            return [one async for one in self.graph.astream(given, config, **options)]
        return list(self.graph.stream(given, config, **options))

    async def ref(self, config: Any = "t") -> str | None:
        """Returns the reference of the thread's last state."""
        field = (await self.state(config)).values.get(FIELD)
        return Coverage.of(field).covered[-1].ref

    async def heard(self, config: Any = "t") -> list[str]:
        """Returns what the thread's last state stands for, turn by turn, but for the system's."""
        turns = self.chat.text(await self.ref(config)).split(BORDER)
        block = self.block()
        if block is not None:
            assert turns.pop(0) == block
        return turns

    async def expect(self, *turns: str, config: Any = "t") -> None:
        """Checks that a thread's state stands for a text, under the one reference of that text."""
        assert await self.heard(config) == list(turns)
        block = self.block()
        messages = list(map(_message, turns if block is None else (block, *turns)))
        assert self.chat.prefill(messages) == await self.ref(config)

    async def law(self, config: Any = "t") -> list[str]:
        """Checks a thread's state against what the twin has read; returns the turns."""
        assert self.twin is not None
        twin = self.twin
        last = twin.chat.calls[-1]
        answers = [m for m in (await twin.state(config)).values["messages"] if m.type == "ai"]
        ref = next(m.response_metadata[STATE_KEY] for m in reversed(answers) if _has_ref(m))
        assert twin.chat.text(ref).startswith(last.before + last.read)
        turns = twin.chat.text(ref).split(BORDER)
        assert self.chat.text(await self.ref(config)).split(BORDER) == turns
        read = self.chat.prefill(list(map(_message, turns)))
        assert read == await self.ref(config)
        return turns

    def block(self) -> str | None:
        """Returns the system prompt with the list of tools, as the model reads them."""
        listing = self.chat.loaded().template.tools.listing(as_tools(self.tools))
        lines = [self.system, listing if self.tools else None]
        text = "\n".join(line for line in lines if line)
        return f"System: {text}" if text else None

    def reads(self) -> list[str]:
        """Returns what each call read on top of a state."""
        return [call.read for call in self.chat.calls]

    async def run_alone(self, given: Given, config: Any = "t", **options: Any) -> dict[str, Any]:
        """As `run`, and the twin is left alone."""
        call = (as_input(given), as_config(config))
        if self.is_async:
            return dict(await self.graph.ainvoke(*call, **options))
        return dict(self.graph.invoke(*call, **options))

    def both(self) -> Iterator[Agent]:
        """Gives the agent, and its twin if there is one."""
        yield self
        if self.twin is not None:
            yield self.twin


def as_input(given: Given) -> Any:
    """Returns what a graph takes: a text is what the user says."""
    if isinstance(given, str):
        return {"messages": [HumanMessage(given)]}
    return {"messages": list(given)} if isinstance(given, (list, tuple)) else given


def as_config(config: Any) -> dict[str, Any]:
    """Returns a configuration; a text is a thread's name."""
    return {"configurable": {"thread_id": config}} if isinstance(config, str) else config


def refs_in(messages: Sequence[BaseMessage]) -> list[str]:
    """Returns the references that messages carry."""
    assert without_markers(messages) == list(messages)
    return [m.response_metadata[STATE_KEY] for m in messages if _has_ref(m)]


def _has_ref(message: BaseMessage) -> bool:
    return STATE_KEY in message.response_metadata


def _message(turn: str) -> BaseMessage:
    role, _, text = turn.partition(": ")
    return _TURNS[role](text)
