"""Measures an agent's thread in a checkpointer on disk: a reference beside the transcript.

The same agent (`create_agent`, the built-in model, three tools) is asked the same 50 questions in
three ways, which take turns. Every checkpoint is measured as it lies in the database, and the store
of states beside it, since what is not in the one is in the other. It does not measure how well the
model chooses: see `agent_calls`.

    python -m benchmarks.agent_thread [--quick] [--check] [--turns 50]
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.sqlite import SqliteSaver

from benchmarks.agent_calls import (
    MOST_STEPS,
    SAME_PERCENT,
    STATE,
    TRANSCRIPT,
    Outcome,
    Ran,
    agent_versions,
    judged,
    last_turn,
    middleware,
    real_tools,
)
from benchmarks.common import Check, Report, parser, print_table, seconds
from benchmarks.conversation import tokens_read
from examples.demo_training.cases import TOOLS
from examples.demo_training.parameters import Arguments
from langchain_rwkv_state import ChatRWKV, DiskStateStore, PrefixStateCache

CACHED = "no middleware, prefix cache"
WAYS = (STATE, TRANSCRIPT, CACHED)
ASKED = ("add", "get_weather", "send_mail")
THREAD = "thread"
WINDOW = 10  # turns whose median is compared: one turn's values are longer than another's
SETTLED = 10  # turns after which the digests of dropped messages are all there are: see `coverage`
FLAT = 1.02  # what is left of words that are longer by chance
SMALLER = 5  # times, of a thread of 50 turns
RIGHT_PERCENT = 80  # the thread is longer than any dialogue of the training; this is no test of it

_CHECKPOINTS = """
    SELECT length(c.checkpoint) + coalesce((
        SELECT sum(length(w.value)) FROM writes w WHERE w.thread_id = c.thread_id
        AND w.checkpoint_ns = c.checkpoint_ns AND w.checkpoint_id = c.checkpoint_id
    ), 0) FROM checkpoints c ORDER BY c.checkpoint_id
"""  # the ids are ordered by time


@dataclass
class Agent:
    """One way of holding the thread, and what its turns cost.

    Attributes:
        way: One of `WAYS`.
        folder: Where its database and its states lie.
        rows: One of each turn.
    """

    way: str
    folder: Path
    resources: ExitStack
    rows: list[dict[str, Any]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Opens what the agent works on."""
        self.folder.mkdir()
        self.database = self.folder / "checkpoints.sqlite"
        enter = self.resources.enter_context
        self.saver = enter(SqliteSaver.from_conn_string(str(self.database)))
        self.store = enter(DiskStateStore(self.folder / "states"))
        cache = PrefixStateCache() if self.way == CACHED else False
        self.ran: list[Ran] = []
        tools = real_tools(self.ran)
        self.agent = create_agent(
            ChatRWKV(model="demo", temperature=0, store=self.store, prefix_cache=cache),
            [tools[name] for name in ASKED],
            middleware=middleware(self.way),
            checkpointer=self.saver,
        )

    def turn(self, wanted: str, arguments: Arguments, question: str) -> None:
        """Asks one question, and notes what it cost."""
        self.ran.clear()
        done: dict[str, Any] = {}

        def ask() -> None:
            config: RunnableConfig = {
                "configurable": {"thread_id": THREAD},
                "recursion_limit": MOST_STEPS,
            }
            done.update(self.agent.invoke({"messages": [HumanMessage(question)]}, config))

        took = seconds(ask)
        said = last_turn(done["messages"])
        self.outcomes.append(judged(wanted, arguments, question, self.ran, said))
        read = [tokens_read(each) for each in said]
        self.rows.append(
            {
                "seconds": took,
                "tokens_read": sum(read),
                "most_read_by_a_call": max(read),
                "model_calls": len(said),
                "database": self._database_bytes(),
                "store": self.store.stats().nbytes,
                "checkpoints": self._rows_of_checkpoints(),
            }
        )

    def _database_bytes(self) -> int:
        """Returns the size of the whole file, with what still stands in the log beside it."""
        self.saver.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return self.database.stat().st_size

    def _rows_of_checkpoints(self) -> int:
        [[count]] = self.saver.conn.execute("SELECT count(*) FROM checkpoints")
        return int(count)

    def measured(self) -> list[dict[str, Any]]:
        """Returns the turns' costs, with the bytes of their checkpoints.

        These are read at the end: what is asked next is written beside the last checkpoint.
        """
        sizes = [int(size) for (size,) in self.saver.conn.execute(_CHECKPOINTS)]
        rows, start = [], 0
        for row in self.rows:
            own, start = sizes[start : row["checkpoints"]], row["checkpoints"]
            sums = {"largest_checkpoint": max(own), "checkpoint_bytes": sum(own)}
            rows.append({**row, "checkpoints": len(own), **sums})
        return rows


def script(turns: int) -> list[tuple[str, Arguments, str]]:
    """Returns the questions of a thread, with the call that each needs; their values are unseen."""
    rng = Random("agent thread")
    asked = []
    for turn in range(turns):
        wanted = ASKED[turn % len(ASKED)]
        question, arguments = TOOLS[wanted].ask(rng)
        asked.append((wanted, arguments, question))
    return asked


def run(turns: int) -> dict[str, Agent]:
    """Holds the thread in every way, a turn of each by turns; the model is loaded before."""
    asked = script(turns)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as resources:
        agents = {
            way: Agent(way, Path(folder) / str(place), resources) for place, way in enumerate(WAYS)
        }
        ChatRWKV(model="demo").loaded()
        for each in asked:
            for agent in agents.values():
                agent.turn(*each)
        for agent in agents.values():
            agent.rows = agent.measured()
    return agents


def growth(rows: Sequence[dict[str, Any]], key: str, *, after: int = 1) -> float:
    """Returns a cost of the last turns over that of the first ones after so many turns: medians."""
    rest = rows[after:]
    window = min(WINDOW, len(rest) // 2)
    early, late = (
        float(statistics.median(row[key] for row in part))
        for part in (rest[:window], rest[-window:])
    )
    return late / early


def shown(turns: int) -> list[int]:
    """Returns the places of the turns that a table shows: 1, 2, 10, 25, 50."""
    return [turn - 1 for turn in (1, 2, 10, 25, 50) if turn <= turns]


COSTS = {
    "largest_checkpoint": "bytes of a turn's largest checkpoint",
    "checkpoint_bytes": "bytes of a turn's checkpoints",
    "tokens_read": "tokens read in a turn",
}


def summary(agent: Agent) -> dict[str, Any]:
    """Returns a thread's figures."""
    keys = (*COSTS, "seconds")
    return {
        "right": sum(each.right for each in agent.outcomes),
        "misses": [each.note for each in agent.outcomes if not each.right],
        "growth": {key: growth(agent.rows, key) for key in keys},
        "settled_growth": {key: growth(agent.rows, key, after=SETTLED) for key in keys},
        "rows": agent.rows,
    }


def main() -> int:
    options = parser(str(__doc__).partition("\n")[0])
    options.add_argument("--turns", type=int, default=None, help="turns (50; 30 if quick)")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    turns = arguments.turns or (30 if arguments.quick else 50)
    if turns < SETTLED + 2:
        options.error(f"--turns is {turns}; what is measured needs {SETTLED + 2} or more.")
    agents = run(turns)
    settings = {"model": "demo", "turns": turns, "tools": ASKED, "versions": agent_versions()}
    report = Report("agent_thread", settings)
    report.results |= {way: summary(agent) for way, agent in agents.items()}
    ours, theirs = report.results[STATE], report.results[TRANSCRIPT]
    for key, name in COSTS.items():
        for of, since in (("growth", 2), ("settled_growth", SETTLED + 1)):
            what = f"{name}: the last {WINDOW} over those from turn {since}"
            report.add(Check(what, ours[of][key], FLAT, "at most", n=turns))
    smaller = theirs["rows"][-1]["database"] / ours["rows"][-1]["database"]
    what = "bytes of the database: with the transcript over ours"
    report.add(Check(what, smaller, SMALLER, "at least", n=turns))
    right = 100 * ours["right"] / turns
    report.add(Check("turns that went right", right, RIGHT_PERCENT, "at least", "%", turns))
    pairs = zip(agents[STATE].outcomes, agents[TRANSCRIPT].outcomes, strict=True)
    same = 100 * sum(one.answers == other.answers for one, other in pairs) / turns
    report.add(Check("turns with the same answers", same, SAME_PERCENT, "at least", "%", turns))
    print_table(
        f"Turn {turns} of an agent's thread",
        ["way", *ours["rows"][-1], "right"],
        [
            [
                way,
                *(f"{cost:,.4g}" for cost in report.results[way]["rows"][-1].values()),
                str(report.results[way]["right"]),
            ]
            for way in WAYS
        ],
    )
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
