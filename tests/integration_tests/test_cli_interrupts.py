"""Ctrl-C at a terminal is never lost, whenever it arrives, shown on a talk that needs no model."""

import random
import sys
import time

import pytest

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
