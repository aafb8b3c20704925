"""Agents over models that remember every word: sync in memory, and async in SQLite."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from langchain_rwkv_state import MemoryStateStore
from tests.helpers.agents import Agent
from tests.helpers.checkpoints import write_tokenizer
from tests.helpers.text_model import TextRWKV, text_chat

MakeAgent = Callable[..., Agent]
MakeText = Callable[..., TextRWKV]


@pytest.fixture(scope="session")
def tiny_tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tiny") / "tokenizer.json")


@pytest.fixture
async def make_text(tiny_tokenizer_file: Path) -> AsyncIterator[MakeText]:
    """Makes models that remember every word, each over a store of its own."""
    made: list[TextRWKV] = []

    def make(store: Any = None, **settings: Any) -> TextRWKV:
        made.append(text_chat(tiny_tokenizer_file, store or MemoryStateStore(), **settings))
        return made[-1]

    yield make
    for chat in made:
        chat.close()
        chat.store.close()


@pytest.fixture(params=["sync memory", "async sqlite"])
def way(request: pytest.FixtureRequest) -> str:
    """How an agent is called, and where its threads are kept."""
    return str(request.param)


@pytest.fixture
async def make_agent(way: str, make_text: MakeText, tmp_path: Path) -> AsyncIterator[MakeAgent]:
    """Makes agents with twins, as `Agent` takes them."""
    is_async = way == "async sqlite"
    async with AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(aiosqlite.connect(tmp_path / f"threads-{n}.sqlite"))
            for n in range(4 if is_async else 0)
        ]

        def saver() -> Any:
            return AsyncSqliteSaver(connections.pop()) if is_async else InMemorySaver()

        def make(*others: Any, chat: TextRWKV | None = None, **settings: Any) -> Agent:
            first = iter([chat] if chat is not None else [])

            def make_chat() -> TextRWKV:
                return next(first, None) or make_text()

            known: dict[str, Any] = {
                "make_saver": saver,
                "make_chat": make_chat,
                "is_async": is_async,
            }
            return Agent(*others, **known | settings)

        yield make
