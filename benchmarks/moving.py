"""Counts what each of LangChain's ways to remember reads and keeps, beside what it becomes here.

All hold the same conversations with the built-in model: five facts, then other turns, none of which
is a fact. It measures no time. What is counted as read are prompt tokens that went through the
model: a session's state and the prefix cache's are not. The built-in model cannot summarise, so a
stand-in writes summaries, which knows what to keep: what it would have read counts, what it loses
is not a real model's loss.

    python -m benchmarks.moving [--quick] [--check] [--talks 10] [--turns 50]
"""

from __future__ import annotations

import json
import re
import sqlite3
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, SummarizationMiddleware
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.chat_history import BaseChatMessageHistory, InMemoryChatMessageHistory
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    get_buffer_string,
    messages_to_dict,
    trim_messages,
)
from langchain_core.outputs import ChatGeneration, ChatResult, LLMResult
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables.history import RunnableWithMessageHistory
from langgraph.checkpoint.sqlite import SqliteSaver
from rich.progress import track

from benchmarks import common, values
from benchmarks.common import Check, Report
from benchmarks.conversation import tokens_read
from langchain_rwkv_state import (
    ChatRWKV,
    DiskStateStore,
    PrefixStateCache,
    RWKVStateHistory,
    RWKVStateMiddleware,
)
from langchain_rwkv_state.toolbox.recall.values import FACTS, holds, other_turn

KINDS = ("name", "city", "pet", "number", "colour")
TRIM_TOKENS = 300
SUMMARY_AT, SUMMARY_KEEPS = 30, 10  # messages
SUMMARISE = (
    "Progressively summarize the lines of conversation provided, adding onto the previous summary "
    "returning a new summary.\n\nCurrent summary:\n{summary}\n\nNew lines of conversation:\n"
    "{new_lines}\n\nNew summary:"
)
"""The prompt of `ConversationSummaryMemory`, without its example."""
_TOLD = re.compile(
    "|".join(re.escape(tell).replace(r"\{v\}", r"\S+?") for tell, _ in FACTS.values())
)


class Counter(BaseCallbackHandler):
    """Adds up the prompt tokens that models read."""

    def __init__(self) -> None:
        self.tokens = 0

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        """Adds one call's."""
        [[generation]] = response.generations
        assert isinstance(generation, ChatGeneration)
        assert isinstance(generation.message, AIMessage)
        self.tokens += tokens_read(generation.message)


class Notes(BaseChatModel):
    """Stands in for a model that summarises: gives back all facts in a prompt, and nothing else."""

    chat: ChatRWKV
    """Counts the tokens."""

    @property
    def _llm_type(self) -> str:
        return "notes"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        told = dict.fromkeys(_TOLD.findall("\n".join(message.text for message in messages)))
        read = self.chat.get_num_tokens_from_messages(messages)
        usage: Any = {"input_tokens": read, "output_tokens": 0, "total_tokens": read}
        said = AIMessage(" ".join(told) or "Nothing yet.", usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=said)])


@dataclass(frozen=True)
class Desk:
    """What a way has at hand.

    Attributes:
        chat: The model; it counts what it reads.
        notes: What summarises; it counts into the same counter.
        folder: A directory of the way's own.
        closing: What is closed behind it.
    """

    chat: ChatRWKV
    notes: Notes
    folder: Path
    closing: ExitStack


Say = Callable[[str], str]
Kept = Callable[[], int]
"""Bytes of what is kept beside the store."""
Way = Callable[[Desk], tuple[Say, Kept]]


# -- before ----------------------------------------------------------------------------------------


def buffer(desk: Desk) -> tuple[Say, Kept]:
    """Does what `ConversationBufferMemory` did: all messages, each time."""
    said: list[BaseMessage] = []

    def say(text: str) -> str:
        said.append(HumanMessage(text))
        said.append(desk.chat.invoke(said))
        return said[-1].text

    return say, lambda: _json_bytes(said)


def summary(desk: Desk) -> tuple[Say, Kept]:
    """Does what `ConversationSummaryMemory` did: after each turn a new summary, of old and turn."""
    known = ""

    def say(text: str) -> str:
        nonlocal known
        question = HumanMessage(text)
        answer = desk.chat.invoke([SystemMessage(known), question] if known else [question])
        new_lines = get_buffer_string([question, answer])
        known = desk.notes.invoke(SUMMARISE.format(summary=known, new_lines=new_lines)).text
        return answer.text

    return say, lambda: _json_bytes([SystemMessage(known)])


def history(desk: Desk) -> tuple[Say, Kept]:
    """Has `RunnableWithMessageHistory` keep a list."""
    kept = InMemoryChatMessageHistory()
    return _chain(desk, kept), lambda: _json_bytes(kept.messages)


def trimmed(desk: Desk) -> tuple[Say, Kept]:
    """Keeps all messages, and shows the last ones."""
    said: list[BaseMessage] = []

    def say(text: str) -> str:
        said.append(HumanMessage(text))
        shown = trim_messages(
            said, max_tokens=TRIM_TOKENS, token_counter=desk.chat, start_on="human"
        )
        said.append(desk.chat.invoke(shown))
        return said[-1].text

    return say, lambda: _json_bytes(said)


def summarised(desk: Desk) -> tuple[Say, Kept]:
    """Has an agent summarise its thread where it has grown long."""
    summarising = SummarizationMiddleware(
        desk.notes, trigger=("messages", SUMMARY_AT), keep=("messages", SUMMARY_KEEPS)
    )
    return _agent(desk, [summarising])


def checkpointer(desk: Desk) -> tuple[Say, Kept]:
    """Has an agent keep its thread in a checkpointer, and nothing else."""
    return _agent(desk, [])


# -- after -----------------------------------------------------------------------------------------


def session(desk: Desk) -> tuple[Say, Kept]:
    """Goes on from a session's state."""
    talk = desk.chat.with_session("s")
    return lambda text: str(talk.invoke(text).text), _nothing_else


def state_history(desk: Desk) -> tuple[Say, Kept]:
    """Has `RunnableWithMessageHistory` keep a state."""
    return _chain(desk, RWKVStateHistory("s", store=desk.chat.store)), _nothing_else


def middleware(desk: Desk) -> tuple[Say, Kept]:
    """Has an agent's thread keep a reference."""
    return _agent(desk, [RWKVStateMiddleware()])


# -- both ------------------------------------------------------------------------------------------


def _chain(desk: Desk, kept: BaseChatMessageHistory) -> Say:
    prompt = ChatPromptTemplate.from_messages([MessagesPlaceholder("history"), ("human", "{text}")])
    chain = RunnableWithMessageHistory(
        prompt | desk.chat,
        lambda session_id: kept,  # noqa: ARG005 # the name that it calls by
        input_messages_key="text",
        history_messages_key="history",
    )
    config: Any = {"configurable": {"session_id": "s"}}
    return lambda text: str(chain.invoke({"text": text}, config).text)


def _agent(desk: Desk, middlewares: Sequence[AgentMiddleware[Any, Any]]) -> tuple[Say, Kept]:
    database = sqlite3.connect(desk.folder / "threads.db", check_same_thread=False)
    desk.closing.callback(database.close)
    agent = create_agent(desk.chat, middleware=middlewares, checkpointer=SqliteSaver(database))
    config: Any = {"configurable": {"thread_id": "s"}}

    def say(text: str) -> str:
        done = agent.invoke({"messages": [HumanMessage(text)]}, config)
        return str(done["messages"][-1].text)

    def database_bytes() -> int:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return (desk.folder / "threads.db").stat().st_size

    return say, database_bytes


def _nothing_else() -> int:
    return 0


def _json_bytes(messages: Sequence[BaseMessage]) -> int:
    return len(json.dumps(messages_to_dict(messages)).encode())


BEFORE: dict[str, Way] = {
    "ConversationBufferMemory": buffer,
    "ConversationSummaryMemory": summary,
    "RunnableWithMessageHistory": history,
    "trim_messages": trimmed,
    "SummarizationMiddleware": summarised,
    "a checkpointer alone": checkpointer,
}
AFTER: dict[str, Way] = {
    "with_session": session,
    "RWKVStateHistory": state_history,
    "RWKVStateMiddleware": middleware,
}
BECOMES = {
    "ConversationBufferMemory": "with_session",
    "ConversationSummaryMemory": "with_session",
    "RunnableWithMessageHistory": "RWKVStateHistory",
    "trim_messages": "with_session",
    "SummarizationMiddleware": "RWKVStateMiddleware",
    "a checkpointer alone": "RWKVStateMiddleware",
}

MEANS = ("tokens", "last_turn", "cached_tokens", "kept", "states")


@dataclass
class Found:
    """What one way came to, conversation by conversation.

    Attributes:
        tokens: Prompt tokens that models read.
        last_turn: Those of the last turn.
        cached_tokens: As `tokens`, with a prefix cache.
        kept: Bytes of messages as JSON, or of the checkpoints' database.
        states: Bytes of the store: states and rows.
        right: How many facts were given back in the end.
        asked: How many there were.
    """

    tokens: list[int] = field(default_factory=list)
    last_turn: list[int] = field(default_factory=list)
    cached_tokens: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    states: list[int] = field(default_factory=list)
    right: int = 0
    asked: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Returns means over conversations."""
        means = {name: round(statistics.mean(getattr(self, name))) for name in MEANS}
        return {**means, "right": self.right, "asked": self.asked}


def conversation(number: int, turns: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Returns what is said in a conversation, and what is asked behind it with its answers."""
    rng = Random(f"moving {number}")
    told = [(kind, values.value(rng, kind)) for kind in KINDS]
    said = [FACTS[kind][0].format(v=value) for kind, value in told]
    said += [other_turn(rng, None, values.value) for _ in range(turns - len(said))]
    return said, [(FACTS[kind][1], value) for kind, value in told]


@contextmanager
def at_a_desk(cached: bool) -> Iterator[tuple[Desk, Counter]]:
    """Opens a store, a model over it and a directory, for one way and one conversation."""
    counter = Counter()
    with ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="rwkv-moving-")))
        store = closing.enter_context(DiskStateStore(folder / "states"))
        cache = PrefixStateCache(ram_bytes=256 << 20) if cached else False
        chat = ChatRWKV(
            model="demo", temperature=0, store=store, prefix_cache=cache, callbacks=[counter]
        )
        closing.callback(chat.unload)
        yield Desk(chat, Notes(chat=chat, callbacks=[counter]), folder, closing), counter


def hold(way: Way, number: int, turns: int, found: Found, *, cached: bool) -> None:
    """Holds one conversation in one way, and adds what came of it."""
    said, asked = conversation(number, turns)
    with at_a_desk(cached) as (desk, counter):
        say, kept = way(desk)
        for text in said:
            before = counter.tokens
            say(text)
        if cached:
            found.cached_tokens.append(counter.tokens)
            return
        found.tokens.append(counter.tokens)
        found.last_turn.append(counter.tokens - before)
        found.kept.append(kept())
        found.states.append(desk.chat.store.stats().nbytes)
        found.right += sum(holds(say(question), value) for question, value in asked)
        found.asked += len(asked)


def main() -> int:
    parser = common.parser("Counts what LangChain's ways to remember read and keep.")
    parser.add_argument("--talks", type=int, help="conversations (10; 1 with --quick)")
    parser.add_argument("--turns", type=int, help="turns of each (50; 8 with --quick)")
    arguments = parser.parse_args()
    talks = arguments.talks or (1 if arguments.quick else 10)
    turns = arguments.turns or (8 if arguments.quick else 50)
    for name in ("RunnableWithMessageHistory", "InMemoryChatMessageHistory"):
        warnings.filterwarnings("ignore", message=f".*{name}.*")  # deprecated: that is the matter
    found = {name: Found() for name in (*BEFORE, *AFTER)}
    for name, way in track([*BEFORE.items(), *AFTER.items()], "moving"):
        for number in range(talks):
            for cached in (False, True):
                hold(way, number, turns, found[name], cached=cached)
    rows = {name: each.as_dict() for name, each in found.items()}
    report = Report("moving", {"model": "demo", "talks": talks, "turns": turns})
    report.results = {"ways": rows, "becomes": BECOMES}
    for name, after in BECOMES.items():
        ratio = rows[after]["tokens"] / rows[name]["tokens"]
        report.add(Check(f"tokens read, {after} / {name}", ratio, 0.5, "at most", "x", talks))
    common.print_table(
        f"{talks} conversations of {turns} turns, means",
        [
            "way",
            "tokens read",
            "in the last turn",
            "with a prefix cache",
            "bytes kept",
            "of states",
            "right",
        ],
        [
            [name, *(f"{row[key]:,}" for key in MEANS), f"{row['right']} of {row['asked']}"]
            for name, row in rows.items()
        ],
    )
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
