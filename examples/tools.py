"""Tools: the model calls them, decoding sees to it that the calls parse, and a session remembers.

python examples/tools.py
"""

from __future__ import annotations

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from rich.console import Console

from langchain_rwkv_state import ChatRWKV, MemoryStateStore


@tool
def get_weather(city: str) -> str:
    """Weather of a city."""
    return f"Sunny, {len(city) + 12} degrees."


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


TOOLS = {each.name: each for each in (get_weather, multiply)}


def main() -> None:
    """Asks, runs what is called, and hands the results back."""
    console = Console()
    chat = ChatRWKV(model="demo", temperature=0, store=MemoryStateStore())
    talk = chat.with_session("tools").bind_tools(list(TOOLS.values()))
    for question in ("What is the weather in Lisbon?", "Multiply 17 and 23.", "Good morning."):
        console.print(f"[bold]User:[/] {question}")
        said: list[BaseMessage] = [HumanMessage(question)]
        answer: AIMessage = talk.invoke(said)
        while answer.tool_calls:
            # A session remembers: only the results are new to it.
            said = []
            for call in answer.tool_calls:
                result: ToolMessage = TOOLS[call["name"]].invoke(call)
                console.print(f"  {call['name']}({call['args']}) -> {result.text}", markup=False)
                said.append(result)
            answer = talk.invoke(said)
        console.print(f"[bold]Assistant:[/] {answer.text}")


if __name__ == "__main__":
    main()
