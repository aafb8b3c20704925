"""Ctrl-C is never lost: at a terminal, on a talk without a model; in commands, at any moment."""

import random
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from langchain_rwkv_state import ChatRWKV, DiskStateStore
from tests.helpers.command import PATIENCE_SECONDS, RWKV_STATE
from tests.helpers.terminal import Terminal

_HINT = "Ctrl-D or /quit ends"
_SOON_SECONDS = 20  # a machine that is busy is slow, but nobody waits for a lost key this long
_TALK = """
import os, signal, sys, types
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.chat import _Talk

class Store:
    def session(self, name, renew): pass
    def rewind(self, name, turns): pass

class Session:
    session, head, store = "bob", None, Store()
    def stream(self, messages):
        for word in ("so ", "it ", "is."):
            yield types.SimpleNamespace(text=word)

def talk():
    _Talk(Session(), None, output.out(), True).run()
    print("The end.")
"""


def _terminal(script):
    return Terminal(program=[sys.executable, "-c", _TALK + script])


@pytest.mark.parametrize(
    "swallower",
    [
        "import readline; readline.set_pre_input_hook(press)",  # drawn, not yet read
        "sys.stderr = types.SimpleNamespace(flush=press)",  # before the prompt is drawn
    ],
    ids=["in a hook of readline", "in a flush"],
)
def test_an_interrupt_whose_raise_is_swallowed_is_heard_all_the_same(swallower):
    terminal = _terminal(f"""
left = [signal.SIGINT]
def press():
    if left:
        os.kill(os.getpid(), left.pop())
{swallower}
talk()
""")
    try:
        terminal.until(_HINT, within_seconds=_SOON_SECONDS)
        terminal.type("/quit\n")
        terminal.until("The end.", within_seconds=_SOON_SECONDS)
        assert terminal.wait() == 0
    finally:
        terminal.close()
    assert terminal.seen.count(_HINT) == 1


def test_every_ctrl_c_around_the_drawing_of_a_prompt_has_an_effect():
    moment = random.Random(0)
    terminal = _terminal("talk()")
    try:
        terminal.until("\u203a")
        for _ in range(400):
            terminal.type("Go on.\n")
            terminal.until("so ", within_seconds=_SOON_SECONDS)
            until = time.perf_counter() + moment.random() * 1e-3
            while time.perf_counter() < until:
                pass
            terminal.type("\x03")  # during the answer, behind it, or at the prompt
            terminal.until(_HINT, "Stopped", within_seconds=_SOON_SECONDS)
            terminal.until("you", within_seconds=_SOON_SECONDS)
        terminal.type("\x04")
        terminal.until("The end.", within_seconds=_SOON_SECONDS)
        assert terminal.wait() == 0
    finally:
        terminal.close()
    assert "Traceback" not in terminal.seen


_COMMANDS = (
    "ask -s bob hi",
    "chat -s bob",
    "report bob {n}.html",
    "prefill manual{n} --words 'The ladder is in the attic.'",
    "blend bob bob --into both{n}",
    "doctor",
)
_LISTENS = (
    "from langchain_rwkv_state import _stopping as stopping; stopping.listen(); print(flush=True);"
)
_MAIN = "from langchain_rwkv_state.__main__ import main; main()"


def _interrupted(words, after_seconds, folder):
    """Runs a command, and stops it so long after it began to listen."""
    process = subprocess.Popen(
        [sys.executable, "-c", _LISTENS + _MAIN, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write("Good morning.\n" * 20)
    process.stdin.close()
    process.stdin = None
    process.stdout.readline()
    time.sleep(after_seconds)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=PATIENCE_SECONDS)[1]
    return process.returncode, said


def test_a_command_that_is_stopped_at_any_moment_says_so_and_leaves_nothing_half(tmp_path):
    with DiskStateStore(tmp_path / "store") as store:
        chat = ChatRWKV(model="demo", store=store)
        chat.with_session("bob").invoke("My name is Marlow.")
        chat.unload()
    moment = random.Random(0)

    def one(number):
        words = shlex.split(_COMMANDS[number % len(_COMMANDS)].format(n=number))
        after = moment.uniform(0, 4)
        ended = _interrupted([*words, "--store", "store"], after, tmp_path)
        return ended in ((130, "Stopped.\n"), (0, "")), (words, after, ended)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(one, range(2 * len(_COMMANDS))))
    assert [told for well, told in found if not well] == []
    left = {path.suffix or path.name for path in tmp_path.iterdir()}
    assert left <= {"store", ".html"}
    for page in tmp_path.glob("*.html"):
        assert page.read_text("utf-8").rstrip().endswith("</html>")
    with DiskStateStore(tmp_path / "store") as store:
        assert store.check().sound
        assert store.session("bob") is not None


def test_at_a_terminal_the_loading_of_a_model_is_stopped_and_the_cursor_comes_back(tmp_path):
    terminal = Terminal("chat", "--store", str(tmp_path / "store"), program=RWKV_STATE)
    try:
        terminal.until("Loading")
        terminal.type("\x03")
        terminal.until("Stopped.")
        assert terminal.wait() == 130
    finally:
        terminal.close()
    assert "Traceback" not in terminal.seen
    assert terminal.seen.rindex("\x1b[?25h") > terminal.seen.rindex("\x1b[?25l")
