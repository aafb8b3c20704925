"""Time travel: an agent's thread goes back, is edited, and goes on twice, each with its own memory.

python examples/fork.py
"""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.sqlite import SqliteSaver

from langchain_rwkv_state import ChatRWKV, RWKVStateMiddleware

THREAD: RunnableConfig = {"configurable": {"thread_id": "marlow"}}


def main() -> None:
    """Tells a thread two things, goes back to the first, and tells it something else."""
    with tempfile.TemporaryDirectory() as folder:
        database = sqlite3.connect(Path(folder, "threads.db"), check_same_thread=False)
        chat = ChatRWKV(model="demo", temperature=0, store=str(Path(folder, "states")))
        agent: Any = create_agent(
            chat, middleware=[RWKVStateMiddleware()], checkpointer=SqliteSaver(database)
        )

        def say(text: str, at: RunnableConfig = THREAD) -> RunnableConfig:
            """Says something at a place of the thread; returns the place behind the answer."""
            done = agent.invoke({"messages": [HumanMessage(text)]}, at)
            print(f"  you   {text}\n  rwkv  {done['messages'][-1].text}")
            behind: RunnableConfig = agent.get_state(THREAD).config
            return behind

        print("One thread")
        named = say("My name is Marlow.")
        lisbon = say("I live in Lisbon.")

        print("Back to the first answer, and on from there")
        kyoto = say("I live in Kyoto.", named)

        print("Each branch remembers its own")
        say("Where do I live?", lisbon)
        say("Where do I live?", kyoto)
        say("What is my name?", kyoto)

        print("Back before the first answer: the question is edited, and answered anew")
        asked = next(
            step
            for step in agent.get_state_history(THREAD)
            if step.next == ("model",) and step.values["messages"][-1].text == "My name is Marlow."
        )
        question = asked.values["messages"][-1]
        edited = agent.update_state(
            asked.config, {"messages": [HumanMessage("My name is Ottilie.", id=question.id)]}
        )
        print(f"  rwkv  {agent.invoke(None, edited)['messages'][-1].text}")
        say("What is my name?")

        chat.store.release("thread:marlow")
        database.close()


if __name__ == "__main__":
    main()
