"""The command ``ask`` with the built-in model: what is answered, remembered, and left alone."""

import json
import re

import jsonschema
import pytest
from typer.testing import CliRunner

from langchain_rwkv_state import DiskStateStore
from langchain_rwkv_state.cli import app
from langchain_rwkv_state.cli.json_schemas import SCHEMAS
from langchain_rwkv_state.conversation.session import RWKVSession
from tests.helpers.command import rwkv_state


@pytest.fixture(autouse=True)
def _loaded_once(demo):
    demo.loaded()


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("RWKV_STATE_DIR", str(tmp_path / "store"))

    def call(*words, text=""):
        result = CliRunner().invoke(app, [*words, "--temperature", "0"], input=text)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        return result.stdout

    return call


def test_a_question_is_answered_in_one_line_and_nothing_is_kept(run, tmp_path):
    assert re.fullmatch(r"Hello\b.*\n", run("hi"))
    assert run("ask", "hi") == run("hi")
    assert "Marlow" in run("My name is Marlow.")
    assert "Marlow" not in run("What is my name?")
    assert not (tmp_path / "store").exists()


def test_with_a_session_it_is_a_turn(run, tmp_path):
    run("-s", "bob", "My name is Marlow.", "--ttl", "2h")
    assert "Marlow" in run("ask", "What is my name?", "-s", "bob")
    with DiskStateStore(tmp_path / "store") as opened:
        info = opened.session("bob")
        assert info is not None
        assert info.n_turns == 2


def test_a_pipe_is_one_turn_with_the_question_before_it(run, tmp_path):
    run("-s", "one", text="My name is Marlow.\nI live in Lisbon.\n")
    run("ask", "-s", "two", "My name is Marlow.", text="I live in Lisbon.\n")
    run("ask", "-s", "each", "--lines", text="My name is Marlow.\n\nI live in Lisbon.\n")
    with DiskStateStore(tmp_path / "store") as opened:
        turns = {name: len(opened.log(name)) for name in opened.sessions()}
    assert turns == {"one": 1, "two": 1, "each": 2}
    answer = run("ask", "--lines", text="My name is Marlow.\nWhat is my name?\n")
    assert len(answer.splitlines()) == 2  # one conversation, which ends with the command
    assert "Marlow" in answer.splitlines()[1]


def test_a_document_a_turn_for_programs(run, tmp_path):
    words = ("ask", "-s", "bob", "--json", "--lines")
    told, asked = map(json.loads, run(*words, text="I am Marlow.\nWhat is my name?\n").splitlines())
    with DiskStateStore(tmp_path / "store") as opened:
        refs = [entry.ref for entry in opened.log("bob")]
    assert [asked["state"], told["state"]] == refs
    assert 0 < asked["cached_tokens"] < asked["input_tokens"]
    assert [(type(asked[name]), asked[name]) for name in ("session", "model", "finish_reason")] == [
        (str, "bob"),
        (str, "demo"),
        (str, "stop"),
    ]
    jsonschema.validate(asked, SCHEMAS["ask"])
    alone = json.loads(run("--json", "--max-tokens", "2", "hi"))
    jsonschema.validate(alone, SCHEMAS["ask"])
    assert (alone["session"], alone["state"], alone["finish_reason"]) == (None, None, "length")
    assert alone["output_tokens"] == 2


def test_a_system_prompt_is_obeyed(run):
    assert run("ask", "--system", "Talk like a pirate.", "How are you?").startswith("Arr!")


def test_aside_is_answered_by_the_session_as_aside(run, monkeypatch, tmp_path):
    run("-s", "bob", "My name is Marlow.")
    asked = []

    def aside(self, messages, **options):
        asked.append((self.session, [message.content for message in messages]))
        yield from ()

    monkeypatch.setattr(RWKVSession, "stream_aside", aside, raising=False)
    assert run("ask", "--aside", "-s", "bob", "--system", "Be kind.", "Who am I?") == "\n"
    assert asked == [("bob", ["Be kind.", "Who am I?"])]
    with DiskStateStore(tmp_path / "store") as opened:
        assert len(opened.log("bob")) == 1


def test_a_session_before_a_question_in_quotes_is_asked_aside(run, tmp_path):
    run("-s", "bob", "My name is Marlow.")
    asked = CliRunner().invoke(app, ["ask", "bob", "What is my name?", "--temperature", "0"])
    assert (asked.exit_code, asked.stdout) == (0, "Your name is Marlow.\n")
    assert "Asked aside of 'bob'" in asked.stderr
    assert run("ask", "--aside", "bob", "What", "is", "my", "name?") == "Your name is Marlow.\n"
    assert run("ask", "ann", "What is my name?") == "I don't know your name.\n"  # all a question
    with DiskStateStore(tmp_path / "store") as opened:
        assert len(opened.log("bob")) == 1
    nobody = CliRunner().invoke(app, ["ask", "--aside", "ann", "What is my name?"])
    assert (nobody.exit_code, nobody.stdout) == (1, "")
    assert "There is no session 'ann'" in nobody.stderr


def test_thinking_and_a_tokenizer_are_the_models():
    result = CliRunner().invoke(app, ["ask", "--reasoning", "low", "Why?"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "models of the template 'demo' have none" in result.stderr
    result = CliRunner().invoke(app, ["ask", "--reasoning", "off", "--tokenizer", "nope", "Why?"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "The tokenizer 'nope' cannot be read" in result.stderr


def test_an_aside_of_nobody_is_an_error_and_makes_no_store(tmp_path, monkeypatch):
    monkeypatch.setenv("RWKV_STATE_DIR", str(tmp_path / "store"))
    result = CliRunner().invoke(app, ["ask", "--aside", "-s", "bbo", "Who am I?"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "There is no session 'bbo'" in result.stderr
    assert not (tmp_path / "store").exists()


def test_a_process_with_a_question_in_its_pipe_alone(tmp_path):
    done = rwkv_state(tmp_path / "store", "-s", "bob", text="My name is Marlow.\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Marlow" in done.stdout
