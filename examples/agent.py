"""An agent whose thread is a reference: three tools, two processes, and what a checkpoint holds.

python examples/agent.py
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite import SqliteSaver

from langchain_rwkv_state import ChatRWKV, RWKVStateMiddleware


@tool
def get_weather(city: str) -> str:
    """Weather of a city."""
    return f"Sunny, {len(city) + 12} degrees."


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


@tool
def search(query: str) -> str:
    """Search the web."""
    return f"Nothing new about {query}."


THREAD: RunnableConfig = {"configurable": {"thread_id": "marlow"}}
TALKS = (
    ("My name is Marlow.", "What is the weather in Lisbon?", "Multiply 17 and 23."),
    ("Good morning.", "What is my name?"),
)


def talk(folder: Path, number: int) -> None:
    """Holds one of the talks: with a model, a graph and a database of this process's own."""
    database = sqlite3.connect(folder / "threads.db", check_same_thread=False)
    chat = ChatRWKV(model="demo", temperature=0, store=str(folder / "states"))
    agent: Any = create_agent(
        chat,
        [get_weather, multiply, search],
        middleware=[RWKVStateMiddleware()],
        checkpointer=SqliteSaver(database),
    )
    print(f"process {number + 1}", flush=True)
    for question in TALKS[number]:
        print(f"  you    {question}")
        for update in agent.stream({"messages": [("user", question)]}, THREAD):
            for message in (update.get("model") or update.get("tools") or {}).get("messages", []):
                for call in getattr(message, "tool_calls", []):
                    print(f"  calls  {call['name']}({call['args']})")
                if message.text:
                    print(f"  {message.type:<6} {message.text}")
        print(f"         {_newest_bytes(database):,} bytes of checkpoint", flush=True)


def _newest_bytes(database: sqlite3.Connection) -> int:
    newest = "SELECT length(checkpoint) FROM checkpoints ORDER BY checkpoint_id DESC LIMIT 1"
    return int(database.execute(newest).fetchone()[0])


def main() -> None:
    """Holds two talks of one thread, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(len(TALKS)):
            command = [sys.executable, __file__, folder, str(number)]
            subprocess.run(command, check=True)  # noqa: S603 # this program


if __name__ == "__main__":
    if len(sys.argv) > 1:
        talk(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
