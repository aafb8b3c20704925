"""The command line over stores that are named by URLs."""

import json

import pytest
from typer.testing import CliRunner

from langchain_rwkv_state.cli import app, completion
from langchain_rwkv_state.state import StateLayout, zero_state
from langchain_rwkv_state.store import MemoryStateStore, open_store, urls

STATE = zero_state(StateLayout.of(7, n_layer=1, n_embd=64, head_size=64), "model")
URL = "redis://user:s3cret@h/0?tenant=a"
SHOWN = "redis://user:***@h/0?tenant=a"


@pytest.fixture(autouse=True)
def store(monkeypatch):
    """Stands for a Redis server that holds one session."""
    held = MemoryStateStore()
    held.begin("bob", STATE)
    monkeypatch.setattr(held, "close", lambda: None)
    monkeypatch.setattr(urls, "_redis_class", lambda: lambda *_, **__: held)
    return held


def said(result):
    """Returns what was printed in one line, without the frame around an error."""
    return " ".join(result.output.replace("│", "").split())


def run(*words, env=None):
    return CliRunner().invoke(app, list(words), env=env or {"RWKV_STATE_DIR": URL})


def test_a_url_stands_where_a_directory_does():
    for result in (run("sessions", "--store", URL, env={"RWKV_STATE_DIR": ""}), run("sessions")):
        assert result.exit_code == 0, result.output
        assert "bob" in result.stdout
    document = json.loads(run("sessions", "--json").stdout)
    assert (document["store"], document["sessions"][0]["session"]) == (SHOWN, "bob")


def test_commands_do_what_any_store_can(store, tmp_path):
    assert run("fork", "bob", "ada").exit_code == 0
    assert run("show", "ada").exit_code == 0
    assert run("export", "ada", str(tmp_path / "ada.zip")).exit_code == 0
    assert run("import", str(tmp_path / "ada.zip"), "eve").exit_code == 0
    assert run("rm", "ada").exit_code == 0
    assert run("prune").exit_code == 0
    assert store.sessions() == ["bob", "eve"]


def test_what_is_about_a_directory_says_so(tmp_path):
    for words in (["backup", str(tmp_path / "to")], ["restore", str(tmp_path)]):
        result = run(*words)
        assert result.exit_code == 2
        assert "is for a store in a directory" in said(result)
        assert "s3cret" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_what_keeps_no_token_ids_says_so(store, monkeypatch):
    class Bare:
        session = store.session
        close = staticmethod(store.close)

    monkeypatch.setattr(urls, "_redis_class", lambda: lambda *_, **__: Bare())
    monkeypatch.setattr("langchain_rwkv_state.chat_models.ChatRWKV", lambda **_: store)
    monkeypatch.setattr(store, "unload", lambda: None, raising=False)
    for words in (["transcript", "bob"], ["redact", "bob", "--turn", "1"]):
        result = run(*words)
        assert result.exit_code == 2
        assert "keeps no token ids" in said(result)


def test_doctor_looks_at_it(monkeypatch):
    monkeypatch.setattr("langchain_rwkv_state.cli.doctor._demo", lambda: iter(()))
    result = run("doctor", "--json")
    found = {each["name"]: each["value"] for each in json.loads(result.stdout)["findings"]}
    assert found["url"] == SHOWN
    assert found["sessions"] == "1"
    assert found["sound"] == "yes"
    assert "on disk" not in found


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("reddis://user:s3cret@h", "Did you mean redis:?"),
        ("redis://user:s3cret@h?tenat=a", "did you mean tenant?"),
    ],
)
def test_one_that_cannot_be_right_is_a_usage_error(url, says):
    for result in (run("sessions", "--store", url), run("sessions", env={"RWKV_STATE_DIR": url})):
        assert result.exit_code == 2
        assert says in said(result)
        assert "s3cret" not in result.output


def test_a_file_url_is_a_directory(tmp_path):
    where = f"file:{tmp_path}/states?history=3"
    missing = run("sessions", "--store", where)
    assert f"There is no store at {tmp_path}/states yet." in said(missing)
    open_store(where).close()
    assert run("sessions", "--store", where).exit_code == 0
    assert run("backup", str(tmp_path / "copy"), "--store", where).exit_code == 0
    assert (tmp_path / "copy" / "cache.db").exists()


def test_no_key_press_waits_for_a_server(store, monkeypatch):
    monkeypatch.setattr(urls, "_redis_class", pytest.fail)
    context = type("Context", (), {"params": {"store": URL}})()
    assert completion.complete_session(context, "b") == []
    monkeypatch.setenv("RWKV_STATE_DIR", URL)
    assert completion.complete_session(type("Context", (), {"params": {}})(), "b") == []
