"""The commands that name, take back, copy and repair: what they say, do, and leave alone."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from langchain_rwkv_state.cli import app
from langchain_rwkv_state.store import DiskStateStore
from tests.helpers.states import turns


@pytest.fixture
def store(tmp_path):
    with DiskStateStore(tmp_path / "store", history=5) as opened:
        turns(opened, "bob", 4)
        turns(opened, "al", 1)
        yield opened


@pytest.fixture
def run(store):
    def call(*words, at=store.path):
        return CliRunner().invoke(app, [*map(str, words), "--store", str(at)])

    return call


@pytest.fixture(autouse=True)
def _no_demo(monkeypatch):
    monkeypatch.setattr("langchain_rwkv_state.cli.doctor._demo", lambda: iter(()))


def test_a_session_is_forked_taken_back_and_renamed(run, store):
    forked = run("fork", "bob", "two")
    assert (forked.exit_code, forked.stdout) == (0, "Forked bob as two: 4 turns.\n")
    back = run("rewind", "two", "2")
    assert (back.exit_code, back.stdout) == (0, "Took back 2 turns of two: 2 turns.\n")
    renamed = run("rename", "two", "three [red]")
    assert (renamed.exit_code, renamed.stdout) == (0, "Renamed two as three [red]: 2 turns.\n")
    assert store.sessions() == ["al", "bob", "three [red]"]
    kept = [entry.kept for entry in store.log("three [red]")]
    assert kept == [True, True]  # what a program keeps behind a head, a command does not take away
    assert run("rewind", "bob").stdout == "Took back 1 turn of bob: 3 turns.\n"
    assert store.check().problems == ()


def test_a_turn_that_is_not_kept_is_not_blamed_on_the_store_as_the_command_opens_it(run, store):
    turns(store, "dot", 8)
    back = run("rewind", "dot", "7")
    assert back.exit_code == 1
    assert "is no longer kept: before a head there are as many as history= says" in back.stderr
    # A state's name is 64 hexadecimal digits, in which any number may stand.
    assert "100" not in re.sub(r"rwkv1-[0-9a-f]{64}", "", back.stderr)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fork", "bob", "al"), "'al' exists already"),
        (("fork", "cy", "dan"), "There is no session 'cy'"),
        (("rename", "bob", "al"), "'al' exists already"),
        (("rename", "cy", "dan"), "There is no session 'cy'"),
        (("rewind", "cy"), "There is no session 'cy'"),
        (("rewind", "bob", "9"), "It has 4 turns"),
        (("restore", "nothing"), "nothing: name the directory of one."),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_a_sentence_and_changes_nothing(run, store, words, said):
    before = {name: store.log(name) for name in store.sessions()}
    result = run(*words)
    assert result.exit_code == 1
    assert said in result.stderr
    assert {name: store.log(name) for name in store.sessions()} == before


def test_a_session_whose_turns_are_all_taken_back_has_none_and_no_unread_messages(run):
    assert run("rewind", "al").stdout == "Took back 1 turn of al: 0 turns.\n"
    assert "none: no turn so far" in run("show", "al").stdout
    assert "has no state: no turn so far." in run("inspect", "al").stderr


@pytest.mark.parametrize("command", [("fork", "a", "b"), ("rewind", "a"), ("backup", "copy")])
def test_no_command_makes_a_store_to_look_into(run, tmp_path, command):
    result = run(*command, at=tmp_path / "none")
    assert result.exit_code == 1
    assert "There is no store" in result.stderr
    assert not (tmp_path / "none").exists()


def test_a_store_is_backed_up_and_restored_in_another_place(run, store, tmp_path):
    made = run("backup", tmp_path / "copy")
    assert made.exit_code == 0
    assert made.stdout.startswith("Backed up 2 sessions and 5 states, ")
    refused = run("restore", tmp_path / "copy")
    assert refused.exit_code == 1
    assert "holds a store already" in refused.stderr
    restored = run("restore", tmp_path / "copy", at=tmp_path / "again")
    assert restored.exit_code == 0
    assert restored.stdout.startswith("Restored 2 sessions and 5 states, ")
    with DiskStateStore(tmp_path / "again") as again:
        assert again.log("bob") == store.log("bob")


def _damage(store):
    """Damages the head of a session that has an earlier state, and of one that has none."""
    for name in ("bob", "al"):
        head = store.head(name)
        (file,) = store.path.glob(f"??/{head[-64:]}-*.safetensors")
        file.write_bytes(b"no state")


def test_doctor_names_the_sessions_that_it_repairs_and_those_that_it_cannot(run, store):
    _damage(store)
    found = run("doctor")
    assert found.exit_code == 1
    assert "doctor --fix" in found.stdout
    repaired = run("doctor", "--fix")
    assert repaired.exit_code == 1
    lines = [" ".join(line.split()) for line in repaired.stdout.splitlines()]
    assert any(line.startswith("\u2713 done The session 'bob' went back") for line in lines)
    assert any(line.startswith("\u2717 left") and "'al'" in line for line in lines)
    assert "1 of these need attention." in repaired.stdout
    assert run("rm", "al").exit_code == 0
    well = run("doctor", "--fix")
    assert well.exit_code == 0
    assert "nothing was to be repaired" in well.stdout
    assert store.session("bob").n_turns == 3


def test_doctor_says_when_all_is_repaired(run, store):
    store.delete_session("al")
    head = store.head("bob")
    (file,) = store.path.glob(f"??/{head[-64:]}-*.safetensors")
    file.unlink()
    repaired = run("doctor", "--fix")
    assert repaired.exit_code == 0
    assert "yes, 1 problem repaired" in repaired.stdout
    assert "All is well." in repaired.stdout


@pytest.mark.slow
def test_looking_after_a_store_needs_no_pytorch(store):
    turns(store, "cy", 2)
    commands = (
        "sessions",
        "sessions --json",
        "show bob",
        "show bob --json",
        "fork bob two",
        "rewind two",
        "rename two three",
        "rm three al",
        "prune",
        f"backup {store.path.with_name('copy')}",
    )
    code = (
        "import sys\nfrom typer.testing import CliRunner\n"
        "from langchain_rwkv_state.cli import app\n"
        f"for line in {commands!r}:\n"
        f"    result = CliRunner().invoke(app, [*line.split(), '--store', {str(store.path)!r}])\n"
        "    assert result.exit_code == 0, (line, result.output)\n"
        "heavy = {'torch', 'numpy', 'langchain_core'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
