"""Turns as they are typed: lines, blocks between three quotes, and pastes that are marked."""

import builtins
import contextlib
import sys

import pytest

from langchain_rwkv_state.cli.turn_input import Typed, marked_pastes, typed_turn


def _typed(*lines):
    """Returns the turn, and whether each line that was read went on with one."""
    left, asked = list(lines), []

    def read(more):
        asked.append(more)
        if not left:
            raise EOFError
        return left.pop(0)

    turn = typed_turn(read)
    assert not left
    return turn, asked


@pytest.mark.parametrize(
    ("lines", "text", "is_line"),
    [
        (["  hi  "], "hi", True),
        (["/help"], "/help", True),
        (['"""one', "two", '"""'], "one\ntwo", False),
        (['"""', "one", "", 'two"""  '], "one\n\ntwo", False),
        (['"""/help"""'], "/help", False),  # said, and not obeyed
        (['"""a "quoted" word"""'], 'a "quoted" word', False),
        (['say """ and go'], 'say """ and go', True),
        (["one\n/two"], "one\n/two", False),  # as readline hands over a paste
        (["\x1b[200~one", "two", "\x1b[201~"], "one\ntwo", False),  # as it comes without readline
        (["see: \x1b[200~one", "two\x1b[201~ there"], "see: one\ntwo there", False),
        (["\x1b[200~one\x1b[201~ and \x1b[200~two", "three\x1b[201~"], "one and two\nthree", False),
        (['"""', '\x1b[200~"""', 'x\x1b[201~"""'], '"""\nx', False),
    ],
)
def test_a_turn_is_a_line_a_block_or_a_paste(lines, text, is_line):
    turn, asked = _typed(*lines)
    assert turn == Typed(text, is_line)
    assert asked == [False] + [True] * (len(lines) - 1)


@pytest.mark.parametrize("lines", [[], ['"""begun'], ["\x1b[200~begun"]])
def test_input_that_ends_in_a_turn_ends_it(lines):
    with pytest.raises(EOFError):
        _typed(*lines)


def test_without_readline_the_terminal_is_asked_to_mark_pastes_and_is_left_as_it_was(
    monkeypatch, capsys
):
    own = builtins.__import__

    def without(name, *rest, **more):
        if name == "readline":
            raise ImportError(name)
        return own(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setenv("TERM", "xterm")
    with contextlib.suppress(KeyError), marked_pastes():
        assert capsys.readouterr().out == "\x1b[?2004h"
        raise KeyError
    assert capsys.readouterr().out == "\x1b[?2004l"
    monkeypatch.setenv("TERM", "dumb")
    with marked_pastes():
        pass
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("kind", "told"), [("GNU readline", 1), ("libedit readline", 0)])
def test_readline_is_asked_in_its_own_words(monkeypatch, kind, told):
    class Readline:
        __doc__ = kind
        said: tuple[str, ...] = ()

        def parse_and_bind(self, line):
            self.said = (*self.said, line)

    readline = Readline()
    monkeypatch.setitem(sys.modules, "readline", readline)
    with marked_pastes():
        assert len(readline.said) == told
