"""Counts how often the built-in model goes rightly through the loop of an agent of LangChain's.

Each case is an agent of its own, made by `create_agent`, with three tools that really run. Their
names and all values are ones that training never drew. It measures no speed. A case is right only
where all of the loop is: one call, of the right tool, with the right arguments, and an answer that
holds what the tool gave back, to the letter.

    python -m benchmarks.agent_calls [--quick] [--check] [-n 200]
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from random import Random
from typing import Any

import torch
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver

from benchmarks.common import Check, Report, parser, print_table
from examples.demo_training.cases import HELD_OUT, TOOLS
from examples.demo_training.parameters import Arguments
from langchain_rwkv_state import ChatRWKV, MemoryStateStore, RWKVStateMiddleware

TARGET_PERCENT = 90
SAME_PERCENT = 99  # a close call between two tokens may go either way
MOST_STEPS = 12  # of a graph: a model that calls on and on is stopped, and its case is wrong
MISSES_KEPT = 10
STATE, TRANSCRIPT = "`RWKVStateMiddleware`", "no middleware"
SAMPLINGS: dict[str, dict[str, Any]] = {"greedy": {"temperature": 0}, "default sampling": {}}
"""What the user sets. The default is the built-in model's own: temperature 1, top_p 0.3."""

Ran = tuple[str, Arguments, str]
"""A tool's name, what it was called with and what it gave back."""


def real_tools(ran: list[Ran]) -> dict[str, BaseTool]:
    """Returns the six tools that training never saw, which note down that they ran.

    What they give back depends on their arguments alone.
    """

    def note(name: str, result: object, **arguments: Any) -> str:
        ran.append((name, arguments, str(result)))
        return str(result)

    @tool
    def add(a: int, b: int) -> str:
        """Add two numbers."""
        return note("add", a + b, a=a, b=b)

    @tool
    def multiply(a: int, b: int) -> str:
        """Multiply two numbers."""
        return note("multiply", a * b, a=a, b=b)

    @tool
    def get_weather(city: str) -> str:
        """Weather of a city."""
        rng = Random(f"weather {city}")
        sky = rng.choice(["Sunny", "Rainy", "Cloudy", "Windy"])
        return note("get_weather", f"{sky}, {rng.randint(10, 40)} degrees.", city=city)

    @tool
    def get_time(city: str) -> str:
        """Time in a city."""
        rng = Random(f"time {city}")
        return note("get_time", f"{rng.randint(0, 23)}:{rng.randint(10, 59)}", city=city)

    @tool
    def search(query: str) -> str:
        """Search the web."""
        return note("search", HELD_OUT.phrase(Random(f"search {query}"), 2), query=query)

    @tool
    def send_mail(to: str, text: str) -> str:
        """Send a mail."""
        return note("send_mail", f"Sent to {to}.", to=to, text=text)

    return {each.name: each for each in (add, multiply, get_weather, get_time, search, send_mail)}


def agent_versions() -> dict[str, str]:
    """Returns the versions of what runs an agent, beside those that every report names."""
    return {name: version(name) for name in ("langchain", "langgraph")}


def middleware(way: str) -> Sequence[AgentMiddleware[Any, Any, Any]]:
    """Returns what an agent of a way has around its model."""
    return [RWKVStateMiddleware()] if way == STATE else []


def last_turn(messages: Sequence[AnyMessage]) -> list[AIMessage]:
    """Returns what the model said since the user's last message."""
    found: list[AIMessage] = []
    for message in messages:
        if isinstance(message, HumanMessage):
            found = []
        elif isinstance(message, AIMessage):
            found.append(message)
    return found


@dataclass(frozen=True)
class Outcome:
    """What came of one case.

    Attributes:
        tool: The tool that was wanted.
        called: Whether it ran once, with the right arguments, and no other call was made.
        used: Whether the last answer holds what it gave back.
        answers: The texts of all answers, for comparing two ways.
        note: The question, and what ran, for looking at misses.
    """

    tool: str
    called: bool
    used: bool
    answers: tuple[str, ...]
    note: str

    @property
    def right(self) -> bool:
        """Whether all of the loop went as it should."""
        return self.called and self.used


def judged(
    wanted: str, arguments: Arguments, question: str, ran: Sequence[Ran], said: Sequence[AIMessage]
) -> Outcome:
    """Compares what an agent did in a turn with what it should have done."""
    calls = sum(len(each.tool_calls) + len(each.invalid_tool_calls) for each in said)
    called = calls == 1 and [each[:2] for each in ran] == [(wanted, arguments)]
    answer = said[-1].text if said else ""
    used = bool(ran) and ran[-1][2] in answer
    texts = tuple(str(each.text) for each in said)
    return Outcome(wanted, called, used, texts, f"{question} -> {list(ran)!r}, {answer!r}")


def case(number: int, *, way: str, settings: dict[str, Any], store: MemoryStateStore) -> Outcome:
    """Asks an agent with three tools what one of them is needed for."""
    rng = Random(f"agent {number}")
    wanted, *others = rng.sample(list(TOOLS), 3)
    question, arguments = TOOLS[wanted].ask(rng)
    ran: list[Ran] = []
    tools = real_tools(ran)
    agent = create_agent(
        ChatRWKV(model="demo", store=store, seed=number, **settings),
        [tools[name] for name in rng.sample([wanted, *others], 3)],
        middleware=middleware(way),
        checkpointer=InMemorySaver(),
    )
    config: RunnableConfig = {
        "configurable": {"thread_id": f"case {number}"},
        "recursion_limit": MOST_STEPS,
    }
    try:
        done = agent.invoke({"messages": [HumanMessage(question)]}, config)
    except Exception as error:  # noqa: BLE001 # whatever an agent raises, its case is wrong
        return Outcome(wanted, False, False, (), f"{question} -> {error!r}")
    return judged(wanted, arguments, question, ran, last_turn(done["messages"]))


def outcomes(n: int, *, way: str, sampling: str, at_once: int = 32) -> list[Outcome]:
    """Runs some cases, many at once on one model, which answers them together."""
    settings = SAMPLINGS[sampling]
    with MemoryStateStore() as store, ThreadPoolExecutor(at_once) as pool:
        run = partial(case, way=way, settings=settings, store=store)
        return list(pool.map(run, range(n)))


def summary(found: Sequence[Outcome]) -> dict[str, Any]:
    """Counts what is right, in all and by tool."""
    by_tool = {
        name: {
            "right": sum(each.right for each in found if each.tool == name),
            "n": sum(each.tool == name for each in found),
        }
        for name in TOOLS
    }
    return {
        "n": len(found),
        "called": sum(each.called for each in found),
        "right": sum(each.right for each in found),
        "by_tool": by_tool,
        "misses": [each.note for each in found if not each.right][:MISSES_KEPT],
    }


def main() -> int:
    options = parser(str(__doc__).partition("\n")[0])
    options.add_argument("-n", type=int, default=None, help="cases (200; 20 if quick)")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    n = arguments.n or (20 if arguments.quick else 200)
    settings = {"model": "demo", "n": n, "samplings": SAMPLINGS, "versions": agent_versions()}
    report = Report("agent_calls", settings)
    for sampling in SAMPLINGS:
        found = {way: outcomes(n, way=way, sampling=sampling) for way in (TRANSCRIPT, STATE)}
        for way, each in found.items():
            made = report.results[f"{sampling}, {way}"] = summary(each)
            percent = 100 * made["right"] / n
            name = f"agent's loop right, {sampling}, {way}"
            report.add(Check(name, percent, TARGET_PERCENT, "at least", "%", n))
        same = sum(one.answers == other.answers for one, other in zip(*found.values(), strict=True))
        report.results[f"{sampling}, same answers"] = same
        name = f"the same answers either way, {sampling}"
        report.add(Check(name, 100 * same / n, SAME_PERCENT, "at least", "%", n))
    print_table(
        "The built-in model as an agent",
        ["how", "right", "called rightly", *TOOLS],
        [
            [
                how,
                *(f"{100 * row[key] / n:.1f} %" for key in ("right", "called")),
                *(f"{each['right']} of {each['n']}" for each in row["by_tool"].values()),
            ]
            for how, row in report.results.items()
            if isinstance(row, dict)
        ],
    )
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
