"""The command line without a model: sessions of hand-made states, options, errors, speed."""

import contextlib
import importlib
import inspect
import shlex
import subprocess
import sys
import tomllib
import typing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from langchain_core.messages import HumanMessage
from typer.testing import CliRunner

from langchain_rwkv_state import __main__ as program
from langchain_rwkv_state.cli import app, options, output
from langchain_rwkv_state.cli.cache import cache
from langchain_rwkv_state.cli.options import read_ttl
from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.prompt.markers import message_to_json
from langchain_rwkv_state.state import StateLayout, zero_state
from langchain_rwkv_state.store import DiskStateStore, disk_backend
from tests.helpers.checkpoints import random_checkpoint, write_checkpoint, write_tokenizer
from tests.helpers.hugging_face import write_hugging_face

LAYOUT = StateLayout.of(7, n_layer=1, n_embd=64, head_size=64)


def _turns(store, session, count, ttl=None):
    """Commits turns of made-up states; returns the last reference."""
    head = store.head(session)
    state = zero_state(LAYOUT, "model") if head is None else store.get(head)
    for number in range(count):
        tensors = {name: state[name] + 1 for name in state}
        state = state.advanced(tensors, [ord(c) for c in f"{session}{number}"])
        ref = store.stage(state, parent=head)
        store.commit(session, ref, head, ttl)
        head = ref
    return head


@pytest.fixture
def store(tmp_path):
    with DiskStateStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def run(store):
    def call(*words, **options):
        return CliRunner().invoke(app, [*words, "--store", str(store.path)], **options)

    return call


@pytest.fixture
def no_demo(monkeypatch):
    """Spares `doctor` the built-in model."""
    monkeypatch.setattr("langchain_rwkv_state.cli.doctor._demo", lambda: iter(()))


def test_help_does_not_import_pytorch():
    code = (
        "import sys\nfrom typer.testing import CliRunner\n"
        "from langchain_rwkv_state.cli import app\n"
        "result = CliRunner().invoke(app, ['chat', '--help'])\n"
        "assert result.exit_code == 0 and '--session' in result.output, result.output\n"
        "heavy = {'torch', 'rwkv', 'langchain_core', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"COLUMNS": "120"})


def test_the_module_is_the_program_under_its_name():
    words = [sys.executable, "-m", "langchain_rwkv_state", "sesions"]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: rwkv-state [OPTIONS]")
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))
    module, _, name = project["project"]["scripts"]["rwkv-state"].partition(":")
    assert getattr(importlib.import_module(module), name) is program.main


@pytest.mark.parametrize(
    "command", ["chat", "sessions", "show", "rm", "prune", "doctor", "fork", "backup"]
)
def test_every_command_has_help_and_takes_a_store(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert "--store" in result.stdout


def test_doctor_says_what_a_model_is_and_what_it_takes(tmp_path, monkeypatch, no_demo):
    folder = write_hugging_face(tmp_path / "rwkv7-0.1B-g1", random_checkpoint(7, head_size=64))
    write_tokenizer(folder / "tokenizer.json")
    monkeypatch.setattr("langchain_rwkv_state.cli.model_check.TRIAL_SECONDS", 0.05)
    words = ["doctor", "--store", str(tmp_path / "none"), "--model"]
    well = CliRunner().invoke(app, [*words, str(folder)], env={"COLUMNS": "300"})
    for found in (
        "a Hugging Face model in fla's names",
        f"1 file in {folder}",
        "RWKV-7 2x128, 288 tokens, float32",
        "template g1",
        "JsonTokenizer",
        "by the native runtime",
        "memory of a state 67.6 kB",
        "would fit",
        "unlimited",
        "tokens a second",
        "All is well.",
    ):
        assert found in " ".join(well.stdout.split())
    unhurried = CliRunner().invoke(app, [*words, str(folder), "--no-trial"])
    assert "tokens a second" not in unhurried.stdout
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    ill = CliRunner().invoke(app, [*words, str(folder)], env={"COLUMNS": "300"})
    assert ill.exit_code == 1
    assert "git lfs pull" in " ".join(ill.stdout.split())


def test_doctor_tells_once_that_a_model_cannot_be_read(tmp_path, no_demo):
    words = ["doctor", "--store", str(tmp_path / "none"), "--model", str(tmp_path / "none.pth")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "1 of these need attention" in result.stdout
    assert "left out" in result.stdout


def test_doctor_tells_what_a_model_lacks_beside_all_else(tmp_path, monkeypatch, no_demo):
    tensors = random_checkpoint(7, head_size=64)
    tensors["head.weight"][3] = float("nan")
    file = write_checkpoint(tmp_path / "ill.pth", tensors=tensors)
    monkeypatch.setattr("langchain_rwkv_state.cli.model_check.TRIAL_SECONDS", 0.05)
    words = ["doctor", "--store", str(tmp_path / "none"), "--model", str(file)]
    ill = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    shown = " ".join(ill.stdout.split())
    assert "\u2717 tokenizer No tokenizer is known for a model of 288 tokens" in shown
    assert "\u2713 memory of a state 67.6 kB" in shown
    assert "\u2717 answers no text: its logits hold NaN or infinity" in shown
    assert "2 of these need attention." in shown


def _commands(command, words=()):
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, (*words, name))


@pytest.mark.parametrize(
    "words", [words for words, _ in _commands(typer.main.get_command(app))], ids=" ".join
)
def test_help_shows_every_word_that_was_written(words):
    """Compared with the sources: what rich takes for markup would be missing."""
    callbacks = {tuple(_name(each)): each for each in app.registered_commands}
    callbacks |= {("cache", *_name(each)): each for each in cache.registered_commands}
    made = callbacks.get(words)
    written = [inspect.getdoc(made.callback)] if made else []
    hints = typing.get_type_hints(made.callback, include_extras=True) if made else {}
    for hint in hints.values():
        for info in getattr(hint, "__metadata__", ()):
            written += [info.help, info.show_default]
    assert written or words in ((), ("cache",))
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "1000"})
    shown = " ".join(result.stdout.split())
    assert result.exit_code == 0
    for text in (each for each in written if isinstance(each, str)):
        for paragraph in text.split("\n\n"):
            assert " ".join(paragraph.split()) in shown


def _examples():
    commands: Any = typer.main.get_command(app)
    return {
        name: command.epilog.removeprefix("Example: rwkv-state ")
        for name, command in commands.commands.items()
    }


@pytest.mark.parametrize("name", _examples())
def test_every_command_has_a_group_and_an_example_that_can_be_typed(name, tmp_path, monkeypatch):
    commands: Any = typer.main.get_command(app)
    command = commands.commands[name]
    assert command.rich_help_panel in ("Talk", "Sessions", "States", "Models", "Cache")
    first, *words = shlex.split(_examples()[name])
    assert first == name
    for word in words:
        if "." in word:
            (tmp_path / word).touch()
    monkeypatch.chdir(tmp_path)
    context = commands.context_class(commands, info_name="rwkv-state")
    command.make_context(name, words, parent=context)  # or it raises a UsageError


def test_help_shows_the_commands_in_groups_at_80_columns():
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"})
    lines = result.stdout.splitlines()
    panels = [line.split()[1] for line in lines if line.startswith("\u256d")]
    assert panels == ["Options", "Talk", "Sessions", "States", "Models", "Cache"]
    assert max(map(len, lines)) <= 80


def test_a_paragraph_of_help_is_folded_by_the_terminal_alone():
    text = CliRunner().invoke(app, ["chat", "--help"], env={"COLUMNS": "80"}).stdout
    said = [line for line in text.splitlines() if line.startswith(" ") and "pipe" in line]
    assert len(said[0].rstrip()) > 60
    assert "Example: rwkv-state chat --session bob" in text


def _name(command):
    return [(command.name or command.callback.__name__).replace("_", "-").rstrip("-")]


def test_a_store_is_made_among_other_files_only_when_asked_for(tmp_path):
    (tmp_path / "letter.txt").write_text("Dear")
    state = tmp_path / "a.safetensors"
    zero_state(LAYOUT, "model").save(state)
    words = ["import", str(state), "bob", "--store", str(tmp_path)]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 1
    assert "holds other things and no store" in refused.stderr
    assert "pass --create" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "letter.txt"]
    assert CliRunner().invoke(app, [*words, "--create"]).exit_code == 0
    assert CliRunner().invoke(app, ["sessions", "--store", str(tmp_path)]).exit_code == 0
    (tmp_path / "more.txt").write_text("and more")  # a store is one, whatever lies beside it
    words[2] = "ada"
    assert CliRunner().invoke(app, words).exit_code == 0


@pytest.mark.parametrize("answer", [True, False])
def test_a_terminal_is_asked_first(tmp_path, monkeypatch, answer):
    (tmp_path / "letter.txt").write_text("Dear")
    asked = []

    def confirm(text):
        asked.append(text)
        return answer

    monkeypatch.setattr(options, "_is_terminal", lambda: True)
    monkeypatch.setattr(typer, "confirm", confirm)
    with contextlib.nullcontext() if answer else pytest.raises(StoreError, match="--create"):
        options.open_store(str(tmp_path)).close()
    assert ["holds other things" in text for text in asked] == [True]
    assert (tmp_path / "cache.db").exists() == answer


def test_ctrl_c_at_that_question_is_ctrl_c(tmp_path, monkeypatch, capfd):
    (tmp_path / "letter.txt").write_text("Dear")

    def confirm(text):
        raise typer.Abort

    monkeypatch.setattr(options, "_is_terminal", lambda: True)
    monkeypatch.setattr(typer, "confirm", confirm)
    result = CliRunner().invoke(app, ["chat", "--store", str(tmp_path)])
    assert result.exit_code == 130
    assert capfd.readouterr().err == "Stopped.\n"


@pytest.mark.parametrize("command", ["sessions", "doctor", "prune"])
def test_looking_into_a_folder_of_other_things_makes_no_store(tmp_path, command, no_demo):
    (tmp_path / "letter.txt").write_text("Dear")
    result = CliRunner().invoke(app, [command, "--store", str(tmp_path)])
    assert result.exit_code == (command == "doctor")  # which says that it is no place for a store
    assert ("holds other things, and no store" in result.stdout) == (command == "doctor")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_store_that_cannot_be_written_is_listed_shown_and_exported(
    run, store, tmp_path, monkeypatch
):
    _turns(store, "bob", 2)
    store.close()
    monkeypatch.setattr(
        disk_backend, "is_writable", lambda root: False
    )  # as on a mount for reading
    assert "bob" in run("sessions").stdout
    assert "turns       2" in run("show", "bob").stdout
    assert run("export", "bob", str(tmp_path / "bob.zip")).exit_code == 0
    assert run("inspect", "bob").exit_code == 0
    refused = run("rm", "bob")
    assert refused.exit_code == 1
    assert "read" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "UserWarning" not in refused.stderr


def test_sessions_are_listed_with_their_numbers(run, store):
    _turns(store, "bob", 3)
    _turns(store, "ada", 1, ttl=float("inf"))
    result = run("sessions")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    wanted = ["SESSION", "MODEL", "TURNS", "TOKENS", "BYTES", "LAST", "USED", "EXPIRES"]
    assert lines[0].split() == wanted
    assert lines[1].split()[:6] == ["ada", "RWKV-7", "1x64", "model", "1", "4"]
    assert lines[1].rstrip().endswith("never")
    assert lines[2].split()[:6] == ["bob", "RWKV-7", "1x64", "model", "3", "12"]
    assert lines[2].rstrip().endswith("in 30 d")


def test_sessions_can_be_chosen_by_prefix(run, store):
    _turns(store, "a/1", 1)
    _turns(store, "b/1", 1)
    assert "b/1" not in run("sessions", "--prefix", "a/").stdout


def test_a_name_with_markup_and_escapes_is_shown_harmlessly(run, store):
    _turns(store, "[red]x\x1b[31m\ny[/]", 1)
    line = run("sessions").stdout.splitlines()[1]
    assert "\x1b" not in line
    assert line.startswith("[red]x\ufffd[31m y[/]")


def test_an_empty_store_says_so(run):
    assert "No sessions in" in run("sessions").stdout


def test_looking_for_a_store_does_not_make_one(tmp_path):
    missing = tmp_path / "missing"
    for command in ("sessions", "prune"):
        result = CliRunner().invoke(app, [command, "--store", str(missing)])
        assert result.exit_code == 0
        assert "There is no store" in result.stderr
    assert not missing.exists()


def test_the_store_comes_from_the_environment_where_no_option_names_one(store):
    _turns(store, "bob", 1)
    result = CliRunner().invoke(app, ["sessions"], env={"RWKV_STATE_DIR": str(store.path)})
    assert "bob" in result.stdout


def test_show_tells_head_log_bytes_and_unread(run, store):
    head = _turns(store, "bob", 3)
    store.append_unread("bob", [message_to_json(HumanMessage("I moved.\nTwice."))])
    shown = run("show", "bob").stdout
    assert head in shown
    facts = dict(line.split(maxsplit=1) for line in shown.splitlines() if len(line.split()) > 1)
    assert facts["turns"] == "3"
    assert facts["tokens"].startswith("12")
    assert facts["bytes"].startswith(f"{store.session('bob').nbytes:,}")
    assert facts["unread"] == "1"
    assert facts["expires"].startswith("in 30 d")
    assert [line.split()[0] for line in shown.splitlines() if "rwkv1" in line] == [
        "head",
        "head",
        "-1",
        "-2",
    ]
    assert "human: I moved. Twice." in shown


def test_show_of_an_unknown_session_is_an_error(run):
    result = run("show", "nobody")
    assert result.exit_code == 1
    assert "There is no session 'nobody'" in result.stderr
    assert result.stdout == ""


def test_rm_says_what_it_did_and_what_it_could_not(run, store):
    _turns(store, "a", 1)
    _turns(store, "b", 1)
    result = run("rm", "a", "nosuch", "b")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == ["Deleted a.", "Deleted b."]
    assert result.stderr.startswith("error: There is no session 'nosuch'")
    assert store.sessions() == []


def test_rm_deletes_sessions(run, store):
    _turns(store, "bob", 1)
    _turns(store, "ada", 1)
    assert run("rm", "bob", "ada").exit_code == 0
    assert store.sessions() == []
    again = run("rm", "bob")
    assert again.exit_code == 1
    assert "There is no session 'bob'" in again.stderr


def test_prune_removes_what_has_expired(tmp_path):
    path = tmp_path / "store"
    now = [1_000_000_000.0]
    with DiskStateStore(path, clock=lambda: now[0]) as store:
        _turns(store, "old", 1, ttl=timedelta(seconds=1))
    result = CliRunner().invoke(app, ["prune", "--store", str(path)])
    assert result.exit_code == 0
    assert result.stdout.startswith("Removed")


def test_a_damaged_store_is_one_sentence(tmp_path):
    path = tmp_path / "store"
    path.mkdir()
    (path / "cache.db").write_bytes(b"no database at all" * 100)
    result = CliRunner().invoke(app, ["sessions", "--store", str(path)])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


def test_chat_with_a_missing_model_is_one_sentence(run):
    result = run("chat", "--model", "/nowhere/all.pth", input="hello\n")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "all.pth" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5h", 5400),
        ("30m", 1800),
        ("7d", 604800),
        ("1h30m", 5400),
        ("1d 12h", 129600),
        ("2w1s", 1209601),
        ("never", float("inf")),
    ],
)
def test_a_time_to_live_is_read(text, seconds):
    assert read_ttl(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "-1", "0", "3x", "0h0m", "30m1h", "1h1h", "1h30", "1h and 30m"]
)
def test_a_time_to_live_that_is_none_is_refused(run, text):
    result = run("chat", f"--ttl={text}")
    assert result.exit_code == 2
    assert "is no time" in result.stderr


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (34_603_008, "34.6 MB")],
)
def test_sizes_are_shown_in_the_unit_that_suits_them(nbytes, shown):
    assert output.size(nbytes) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-3, "0 s"),
        (0.2, "0 s"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (7201, "2 h"),
        (86_400 * 30 - 5, "30 d"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations_are_shown_in_two_units(seconds, shown):
    assert output.duration(seconds) == shown
