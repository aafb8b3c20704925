"""The command ``ask`` and the words that mean it, without a model."""

import io
import sys

import pytest
import typer
from langchain_core.messages import AIMessageChunk
from typer.testing import CliRunner

from langchain_rwkv_state.cli import app
from langchain_rwkv_state.cli import ask as asking
from langchain_rwkv_state.cli.ask import _turns
from langchain_rwkv_state.cli.default_command import asked
from langchain_rwkv_state.errors import SessionConflict

COMMANDS = typer.main.get_command(app)


def _routed(*words):
    context = COMMANDS.context_class(COMMANDS, info_name="rwkv-state", help_option_names=["--help"])
    return asked(COMMANDS, context, list(words))


@pytest.mark.parametrize(
    "words",
    [
        ["hi"],
        ["hi", "--temperature", "0"],
        ["-s", "bob", "hi"],
        ["--session=bob", "hi"],
        ["-m", "sessions", "Why?"],  # a model of that name
        ["What is my name?", "-s", "bob"],
        ["sessions?"],
        ["What is", "my name?"],
        ["\u00bfsesions?"],
        ["--", "--help"],
        ["--", "-1 and 2?"],
        ["--system", "- be kind", "hi"],
        ["--temperature", "0"],  # the question is in standard input
        [],
    ],
)
def test_words_that_name_no_command_are_a_question(words):
    assert _routed(*words) == ["ask", *words]


@pytest.mark.parametrize("words", [["sessions"], ["ask", "hi"], ["--version"], ["cache", "clear"]])
def test_commands_and_options_of_the_program_stay_what_they_are(words):
    assert _routed(*words) == words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sesions"], "Did you mean 'sessions'? To ask it: rwkv-state ask sesions"),
        (["Show", "me"], "Did you mean 'show'? To ask it: rwkv-state ask 'Show me'"),
        (["open", "bob"], "No such command 'open'. To ask it: rwkv-state ask 'open bob'"),
        (["delete", "bob"], "Did you mean 'rm'? To ask it: rwkv-state ask 'delete bob'"),
        (["ls"], "Did you mean 'sessions'? To ask it: rwkv-state ask ls"),
        (["What", "is", "new?"], "To ask it: rwkv-state ask 'What is new?'"),
        (["-s", "bob", "sesions"], "Did you mean 'sessions'?"),
        (["--store", "x", "sessions"], "'sessions' comes first, and its options behind it"),
        (["--sesion", "bob", "hi"], "No such option"),
        (["help"], "Did you mean '--help'?"),
        (["version"], "Did you mean '--version'?"),
        (["-1 and 2?", "-s", "bob"], "To ask it: rwkv-state -- '-1 and 2?'"),
        (["--help me"], "To ask it: rwkv-state -- '--help me'"),
    ],
)
def test_a_mistyped_command_is_not_asked(words, said, monkeypatch):
    def model(*_, **__):
        raise AssertionError("a model was asked")

    monkeypatch.setattr(asking, "_turns", model)
    result = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ask"], "There is no question"),
        ([], "There is no question"),
        ([""], "There is no question"),
        (["ask", "--aside", "hi"], "--aside is a session's"),
        (["ask", "--ttl", "1h", "hi"], "--ttl is a session's"),
        (["ask", "--store", "x", "hi"], "--store is a session's"),
        (["ask", "--create", "hi"], "--create is a session's"),
        (["ask", "-s", "bob", "--aside", "--ttl", "1h", "hi"], "--aside keeps nothing"),
    ],
)
def test_what_cannot_be_meant_is_an_error_before_a_model_is_loaded(words, said, tmp_path):
    result = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize("words", [["--temperature", "inf"], ["--presence-penalty", "nan"]])
def test_a_number_that_is_none_is_one_sentence(words):
    result = CliRunner().invoke(app, ["ask", "hi", *words])
    assert result.exit_code == 1
    name = words[0].strip("-").replace("-", "_")
    assert result.stderr == f"error: {name} is {words[1]}: Input should be a finite number.\n"


def test_without_a_standard_input_there_are_only_words(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert list(_turns("Why?", lines=True)) == ["Why?"]


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _given(monkeypatch, text):
    piped = _Terminal() if text is None else io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8")
    monkeypatch.setattr(sys, "stdin", piped)


@pytest.mark.parametrize(
    ("question", "text", "lines", "turns"),
    [
        ("Why?", None, False, ["Why?"]),
        ("Why?", None, True, ["Why?"]),
        ("", None, False, []),
        ("Sum up:", "one\n\ntwo\n", False, ["Sum up:\n\none\n\ntwo"]),
        ("", "\ufeffone\r\ntwo\n", False, ["one\ntwo"]),
        ("Why?", "", False, ["Why?"]),
        ("Why?", " \n", False, ["Why?"]),
        ("", "one\n\n two \n", True, ["one", "two"]),
        ("Sum up:", "one\ntwo\n", True, ["Sum up:\n\none", "Sum up:\n\ntwo"]),
        ("", "  indented\n", False, ["  indented"]),
    ],
)
def test_a_pipe_is_one_turn_or_one_a_line(monkeypatch, question, text, lines, turns):
    _given(monkeypatch, text)
    assert list(_turns(question, lines=lines)) == turns


@pytest.mark.parametrize("error", [KeyboardInterrupt, SessionConflict])
@pytest.mark.parametrize(("words", "shown"), [((), ""), (("so ", "it"), "so it\n")])
def test_what_ends_an_answer_stands_on_a_line_of_its_own(capsys, error, words, shown):
    def stream():
        yield from (AIMessageChunk(content=word) for word in words)
        raise error("moved")

    with pytest.raises(error):
        asking._print(stream())
    assert capsys.readouterr().out == shown


def test_at_a_terminal_no_words_are_a_call_for_help(monkeypatch):
    monkeypatch.setattr(sys.modules["langchain_rwkv_state.cli.app"], "is_piped", lambda: False)
    result = CliRunner().invoke(app, [], env={"COLUMNS": "100"})
    assert "Usage" in result.output
    assert "sessions" in result.output
