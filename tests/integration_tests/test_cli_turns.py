"""What can be typed at ``chat``, at a terminal, shown on a talk that needs no model."""

import sys

import pytest

from tests.helpers.terminal import Terminal

_SOON_SECONDS = 20
_TALK = """
import sys, types, warnings
from langchain_rwkv_state.cli import output
from langchain_rwkv_state.cli.chat import _Talk

class Store:
    def session(self, name, renew): pass

class Session:
    session, head, store = "bob", "a-head", Store()
    chat = types.SimpleNamespace(stats=lambda: "12 tokens a second [of late]")
    def stream(self, messages, kind="turn"):
        if len(messages) > 1:
            warnings.warn("The messages before the state marker are others.")
        yield types.SimpleNamespace(text=f"<{kind} {[m.content for m in messages]!r}>")
    def stream_aside(self, messages):
        return self.stream(messages, "aside")

_Talk(Session(), None, output.out(), True).run()
print("The end.")
"""


@pytest.fixture
def terminal():
    made = []

    def start(before=""):
        made.append(Terminal(program=[sys.executable, "-c", before + _TALK]))
        made[-1].until("\u203a", within_seconds=60)
        return made[-1]

    yield start
    for each in made:
        each.close()


def _say(terminal, text, *answers):
    terminal.type(text)
    for answer in answers:
        terminal.until(answer, within_seconds=_SOON_SECONDS)
    terminal.until("you", within_seconds=_SOON_SECONDS)


def test_a_turn_of_several_lines_a_paste_and_the_commands(terminal):
    at = terminal()
    _say(at, '"""one\n\n two"""\n', r"<turn ['one\n\n two']>")
    _say(at, "\x1b[200~/one\rtwo\r\x1b[201~\n", r"<turn ['/one\ntwo']>")
    _say(at, '"""lost\n\x03', "Ctrl-D or /quit ends")
    _say(at, "/ask Who am I?\n", "<aside ['Who am I?']>")
    _say(at, "/ask\n", "error: ", "/ask needs a question: /ask TEXT.")
    _say(at, "/ask\tWho?\n", "<aside ['Who?']>")
    _say(at, "/stats\n", "12 tokens a second [of late]")
    for word in ("/stats", "/log", "/help", "/quit"):
        _say(at, f"{word} [b]now\n", "error: ", f"{word} stands alone: what is '[b]now'?")
    _say(at, "/system\n", "No system prompt was set")
    _say(at, "/system Be [b]kind.\n", "It is read with the next turn, behind")
    _say(at, "/system\n", "System prompt: Be [b]kind.")
    _say(at, "/ask So?\n", "<aside ['Be [b]kind.', 'So?']>")
    _say(at, "Hi.\n", "<turn ['Be [b]kind.', 'Hi.']>")
    assert "marker" not in at.seen  # /system said so
    _say(at, "/help\n", '"""', "begin a turn of several lines")
    at.type('"""begun\n\x04')
    at.until("nothing of it is read", within_seconds=_SOON_SECONDS)
    at.until("The end.", within_seconds=_SOON_SECONDS)
    assert at.wait() == 0
    assert "begun']" not in at.seen


def test_a_paste_is_one_turn_without_readline_too(terminal):
    at = terminal("import sys; sys.modules['readline'] = None\n")
    assert "\x1b[?2004h" in at.seen
    assert "\x01" not in at.seen  # which marks colours for readline alone
    _say(at, "\x1b[200~one\ntwo\n\x1b[201~\n", r"<turn ['one\ntwo']>")
    at.type("\x04")
    at.until("\x1b[?2004l", within_seconds=_SOON_SECONDS)
    at.until("The end.", within_seconds=_SOON_SECONDS)
    assert at.wait() == 0
