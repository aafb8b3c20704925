"""An agent whose threads and states are on disk: opened anew at will, and killed at any point.

As a program (``python -m tests.helpers.agent_on_disk FOLDER``) it forks a child for each point of
a turn; the child is killed there (SIGKILL), and another goes on with the thread. It prints a JSON
line a point. The parent has all loaded and opens nothing, so that a fork costs next to nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from langchain.agents import create_agent
from langchain_core.messages import BaseMessage
from langgraph.checkpoint.sqlite import SqliteSaver

from langchain_rwkv_state import DiskStateStore, RWKVStateMiddleware
from langchain_rwkv_state.conversation.coverage import FIELD, Coverage
from tests.helpers.agents import add, as_config, as_input
from tests.helpers.checkpoints import write_tokenizer
from tests.helpers.text_model import BORDER, TextRWKV, text_chat

ROOT = Path(__file__).parents[2]
FIRST = "My name is Ann."
ASKED = 'call add {"a": 1, "b": 2}, then say done'
LAST = "who am I?"


@dataclass
class Opened:
    """An agent as one process has it.

    Attributes:
        graph: The agent.
        chat: Its model.
        saver: Its checkpointer.
    """

    graph: Any
    chat: TextRWKV
    saver: SqliteSaver

    def run(self, given: Any, config: Any = "t", **options: Any) -> list[BaseMessage]:
        """Runs it on a text, messages, a command, or ``None`` to go on; returns the messages."""
        found = self.graph.invoke(as_input(given), as_config(config), **options)
        return list(found["messages"])

    def say(self, text: str, config: Any = "t") -> str:
        """Returns the answer to what the user says."""
        return str(self.run(text, config)[-1].text)

    def state(self, config: Any = "t") -> Any:
        """Returns the thread's snapshot."""
        return self.graph.get_state(as_config(config))

    def ref(self, config: Any = "t") -> str | None:
        """Returns the reference of the thread's last state."""
        return Coverage.of(self.state(config).values.get(FIELD)).covered[-1].ref

    def heard(self, config: Any = "t") -> list[str]:
        """Returns what the thread's last state stands for, turn by turn, but for the system's."""
        return self.chat.text(self.ref(config)).split(BORDER)[1:]


@contextmanager
def opened(folder: Path, *others: Any, tools: Sequence[Any] = (add,), **settings: Any) -> Any:
    """Opens the agent of a folder with all that is its own, and closes that.

    Args:
        folder: Where its threads and states are; a ``tokenizer.json`` is written to it.
        others: Middleware before ours.
        tools: Its tools.
        settings: Others of `create_agent`.
    """
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.exists():
        write_tokenizer(tokenizer)
    connection = sqlite3.connect(folder / "threads.sqlite", check_same_thread=False)
    store = DiskStateStore(folder / "states")
    chat = text_chat(tokenizer, store, capacity=4096)
    try:
        saver = SqliteSaver(connection)
        graph = create_agent(
            chat,
            tools=list(tools),
            system_prompt="Be kind.",
            middleware=[*others, RWKVStateMiddleware()],
            checkpointer=saver,
            **settings,
        )
        yield Opened(graph, chat, saver)
    finally:
        chat.close()
        store.close()
        connection.close()


@dataclass
class Killed:
    """What became of a thread whose process was killed.

    Attributes:
        point: Where.
        heard: What the thread's state stands for, once others have gone on with it.
        answers: What they were answered.
    """

    point: str
    heard: list[str]
    answers: list[str]


def kill_everywhere(folder: Path) -> list[Killed]:
    """Kills an agent at each point of a turn, and goes on in another process.

    Args:
        folder: An empty folder.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.helpers.agent_on_disk", str(folder)]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return [Killed(**json.loads(line)) for line in done.stdout.splitlines()]


class _Points:
    """Counts what happens, and kills the process at one of them."""

    def __init__(self, at: int, note: Path) -> None:
        self._left = at
        self._note = note
        self._lock = threading.Lock()  # the checkpointer writes on a thread of its own

    def __call__(self, name: str) -> None:
        with self._lock:
            if self._left == 0:
                self._note.write_text(name)
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1

    def around(self, owner: Any, name: str) -> None:
        """Puts a point before and behind each call of a method."""
        inner: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self(f"before {name}")
            found = inner(*args, **kwargs)
            self(f"behind {name}")
            return found

        object.__setattr__(owner, name, call)


def _until_killed(folder: Path, at: int) -> None:
    with opened(folder) as agent:
        agent.say(FIRST)
        points = _Points(at, folder / "point")
        points.around(agent.saver, "put")
        points.around(agent.saver, "put_writes")
        points.around(agent.chat.store, "stage")
        points.around(agent.chat.store, "keep")
        points.around(add, "func")
        points.around(agent.chat, "plan_call")
        agent.say(ASKED)


def _go_on(folder: Path) -> Killed:
    with opened(folder) as agent:
        state = agent.state()
        if state.tasks:  # `next` leaves out those that ended and whose checkpoint was not written
            agent.run(None)
        elif state.values["messages"][-1].text != "done":
            agent.say(ASKED)  # it was killed before the question was taken
        answers = [agent.state().values["messages"][-1].text]
    with opened(folder) as agent:
        answers.append(agent.say(LAST))
        return Killed((folder / "point").read_text(), agent.heard(), answers)


def _child(work: Callable[[], None]) -> int:
    """Does something in a child; returns how that ended."""
    pid = os.fork()
    if not pid:
        _end(work)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _end(work: Callable[[], None]) -> NoReturn:
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _points(folder: Path) -> Iterator[Path]:
    at = 0
    while True:
        place = folder / str(at)
        place.mkdir()
        ended = _child(lambda: _until_killed(place, at))  # noqa: B023 # it is called at once
        if ended == 0:
            return
        if ended != -signal.SIGKILL:
            raise RuntimeError(f"The child of point {at} ended with {ended}.")
        yield place
        at += 1


def main(folder: Path) -> None:
    for place in _points(folder):

        def report() -> None:
            line = json.dumps(asdict(_go_on(place)))  # noqa: B023 # it is called at once
            os.write(1, f"{line}\n".encode())

        if _child(report):
            raise RuntimeError(f"Nobody could go on in {place}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
