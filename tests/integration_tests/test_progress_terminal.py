"""The bars of long work at a real terminal, to its end and to a Ctrl-C."""

import sys

from tests.helpers.terminal import Terminal

_SCRIPT = """
import time
from langchain_rwkv_state import ChatRWKV, MemoryStateStore
from langchain_rwkv_state._progress import LateBar

LateBar._is_long = lambda *_: True
chat = ChatRWKV(model="demo", store=MemoryStateStore())
chat.loaded()
print("It is there.")

told = LateBar._tell
def slowly(bar, done, total):
    told(bar, done, total)
    time.sleep(0.2)
LateBar._tell = slowly
chat.prefill("One two three. " * 5000)
"""


def test_loading_and_reading_draw_bars_that_go_when_they_are_done_or_stopped():
    terminal = Terminal(program=[sys.executable, "-c", _SCRIPT])
    try:
        terminal.until("Loading demo")
        terminal.until("It is there.")
        before = terminal.seen
        assert before.rindex("\x1b[?25h") > before.rindex("\x1b[?25l")
        terminal.until("Reading")
        terminal.type("\x03")
        terminal.until("KeyboardInterrupt")
        terminal.wait()
    finally:
        terminal.close()
    assert terminal.seen.rindex("\x1b[?25h") > terminal.seen.rindex("\x1b[?25l")
