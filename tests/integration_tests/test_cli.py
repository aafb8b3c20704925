"""The command line in processes of its own, with the built-in model: pipe, terminal, doctor."""

import os
import signal
import sys

import pytest

from langchain_rwkv_state.store import DiskStateStore
from tests.helpers.command import rwkv_state
from tests.helpers.terminal import Terminal


def _chat(store, *words, text):
    return rwkv_state(store, "chat", "-s", "bob", "--temperature", "0", *words, text=text)


def test_a_second_process_remembers_through_a_pipe_and_obeys_commands(tmp_path):
    store = tmp_path / "store"
    first = _chat(store, "--ttl", "2h", text="My name is Marlow.\n\nI live in Lisbon.\n")
    assert (first.returncode, first.stderr) == (0, "")
    assert len(first.stdout.splitlines()) == 2  # one line, one turn, and only answers

    lines = ["What is my name?", "/fork bob2", "/rewind", "/log", "Where do I live?"]
    second = _chat(store, text="\n".join(lines))
    answers = second.stdout.splitlines()
    assert second.returncode == 0
    assert "Marlow" in answers[0]
    assert "bob2" in answers[1]
    assert answers[2].startswith("Took back the last turn")
    assert sum("rwkv1-" in line for line in answers) == 2
    assert "Lisbon" in answers[-1]
    assert second.stderr == ""

    with DiskStateStore(store) as opened:
        assert opened.sessions() == ["bob", "bob2"]
        info = opened.session("bob")
        assert info is not None
        assert info.n_turns == 3
        assert info.expires_seconds - info.updated_seconds == pytest.approx(7200, abs=1)


def test_an_error_in_a_pipe_ends_it_with_a_sentence(tmp_path):
    result = _chat(tmp_path / "store", text="/rewind\nMy name is Marlow.\n")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/wrong", "There is no command '/wrong': /help lists them."),
        ("/rewind much", "/rewind takes a number of turns from 1 on, not 'much'."),
        ("/fork", "/fork needs a name: /fork NAME."),
    ],
)
def test_a_command_that_is_none_ends_a_pipe_with_exit_code_1(tmp_path, line, said):
    result = _chat(tmp_path / "store", text=f"My name is Marlow.\n{line}\nWhat is my name?\n")
    assert result.returncode == 1
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == f"error: {said}\n"


def test_a_system_prompt_is_obeyed_and_a_changed_one_is_a_note(tmp_path):
    store = tmp_path / "store"
    first = _chat(store, "--system", "Talk like a pirate.", text="My name is Marlow.\nHow are you?")
    assert first.stderr == ""
    assert all(line.startswith("Arr!") for line in first.stdout.splitlines())
    second = _chat(store, "--system", "Be kind.", text="What is my name?\nHow are you?")
    assert second.returncode == 0
    assert second.stderr.count("note: ") == 1
    assert "UserWarning" not in second.stderr


def test_a_conversation_at_a_terminal(tmp_path):
    store = tmp_path / "store"
    words = ("chat", "-s", "bob", "--temperature", "0", "--store", str(store))
    terminal = Terminal(*words)
    try:
        terminal.until("New session bob")
        terminal.until("\u203a")
        terminal.type("My name is Marlow.\n")
        terminal.until("Nice to meet you, Marlow")
        terminal.until("you")
        terminal.type("\x03")  # at the prompt Ctrl-C ends nothing
        terminal.until("Ctrl-D or /quit ends")
        terminal.type("/rewind 7\n")
        terminal.until("error: ")
        terminal.until("\u203a")
        terminal.type("\x04")
        terminal.until("Kept bob")
        assert terminal.wait() == 0
    finally:
        terminal.close()
    assert "Traceback" not in terminal.seen


@pytest.mark.parametrize(
    ("option", "told", "sessions"),
    [
        ((), "Stopped. Nothing of this turn is kept.", []),
        (("--keep-question",), "Stopped. What you said is kept, and read with", ["bob"]),
    ],
)
def test_ctrl_c_stops_an_answer_and_nothing_of_that_is_kept(tmp_path, option, told, sessions):
    script = (
        "import time\n"
        "from langchain_rwkv_state.engine import request_handle\n"
        "own = request_handle.RequestHandle._next\n"
        "def slow(self):\n"
        "    event = own(self)\n"
        "    time.sleep(0.5)\n"
        "    return event\n"
        "from langchain_rwkv_state.cli import main\n"
        "request_handle.RequestHandle._next = slow\n"
        "main()"
    )
    store = tmp_path / "store"
    words = ("chat", "-s", "bob", "--temperature", "0", "--store", str(store), *option)
    terminal = Terminal(*words, program=[sys.executable, "-c", script])
    try:
        terminal.until("\u203a")
        terminal.type("Hello, my name is Marlow.\n")
        terminal.until("rwkv")
        terminal.until("Nice")
        os.kill(terminal.pid, signal.SIGINT)
        terminal.until(told)
        terminal.type("/quit\n")
        assert terminal.wait() == 0
    finally:
        terminal.close()
    with DiskStateStore(store) as opened:
        assert opened.sessions() == sessions
        for session in sessions:
            info = opened.session(session)
            assert info is not None
            assert ["Marlow" in text for text in info.unread] == [True]
            assert info.head is None


def test_doctor_finds_a_sound_installation_and_a_damaged_store(tmp_path):
    store = tmp_path / "store"
    with DiskStateStore(store):
        pass
    well = rwkv_state(store, "doctor")
    assert (well.returncode, well.stderr) == (0, "")
    for found in ("torch", "rwkv", "diskcache", "cpu fp32", "Vera", str(store), "All is well."):
        assert found in well.stdout

    (store / "cache.db").write_bytes(b"no database at all" * 100)
    ill = rwkv_state(store, "doctor")
    assert ill.returncode == 1
    assert "\u2192" in ill.stdout  # what to do
    assert "Vera" in ill.stdout  # one failed check does not hide the others
    assert "Traceback" not in ill.stderr


def test_a_conversation_is_watched_from_another_terminal_until_ctrl_c(tmp_path):
    store = tmp_path / "store"
    terminal = Terminal("watch", "bob", "--every", "0.1", "--store", str(store))
    try:
        terminal.until("There is no store")
        assert not store.exists()
        _chat(store, text="My name is Marlow.\n")
        terminal.until("turn \x1b[0m1")  # the name is dim, the number is not
        terminal.until("LAST TURNS")
        _chat(store, text="What is my name?\n")
        terminal.until("turn \x1b[0m2")
        rwkv_state(store, "rm", "bob")
        terminal.until("The session was deleted")
        os.kill(terminal.pid, signal.SIGINT)
        assert terminal.wait() == 0
    finally:
        terminal.close()
    assert "Traceback" not in terminal.seen
