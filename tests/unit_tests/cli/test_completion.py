"""What a shell completes: sessions of the store that is named, and files; quickly and silently."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from langchain_rwkv_state.cli import completion as complete
from langchain_rwkv_state.state import StateLayout, zero_state
from langchain_rwkv_state.store import DiskStateStore, default_directory

LAYOUT = StateLayout.of(7, n_layer=1, n_embd=64, head_size=64)


@pytest.fixture
def store(tmp_path):
    with DiskStateStore(tmp_path / "store") as opened:
        for name in ("bob", "bob2", "ann", "a name to quote", "b$x", "-v"):
            opened.commit(name, opened.stage(zero_state(LAYOUT, "model")), None)
        yield opened


def _with(store) -> Any:
    """Stands for the context of a line that names a store."""
    return SimpleNamespace(params={"store": store})


def test_sessions_are_offered_that_begin_so_and_need_no_quotes(store):
    assert complete.complete_session(_with(store.path), "b") == ["bob", "bob2"]
    assert complete.complete_session(_with(store.path), "") == ["ann", "bob", "bob2"]
    assert complete.complete_session(_with(str(store.path)), "x") == []


def test_the_store_is_the_users_where_the_line_names_none(store, monkeypatch):
    monkeypatch.setenv("RWKV_STATE_DIR", str(store.path))
    assert complete.complete_session(_with(None), "bob2") == ["bob2"]
    for named in (str(store.path), ""):
        monkeypatch.setenv("RWKV_STATE_DIR", named)
        assert complete._default_store() == default_directory()


def test_where_nothing_can_be_read_nothing_is_offered_and_nothing_made(tmp_path, capfd):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "cache.db").write_bytes(b"no database" * 100)
    for name in ("missing", "broken"):
        assert complete.complete_session(_with(tmp_path / name), "b") == []
    assert not (tmp_path / "missing").exists()
    assert complete.complete_model("no/such/folder/") == []
    assert capfd.readouterr() == ("", "")


def test_files_of_models_and_states_are_offered_with_their_folders(store, tmp_path, monkeypatch):
    for name in (
        "a.pth",
        "b.GGUF",
        "c.safetensors",
        "d.txt",
        ".hidden.pth",
        "sub/e.pth",
        "a b.pth",
        "a$.pth",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert complete.complete_model("") == [
        *("demo", "a.pth", "b.GGUF", "c.safetensors", "store/", "sub/")
    ]
    assert complete.complete_model("sub/") == ["sub/e.pth"]
    assert complete.complete_model("su") == ["sub/", "sub/e.pth"]  # or the shell would end there
    assert complete.complete_model(f"{tmp_path}/a") == [f"{tmp_path}/a.pth"]
    assert complete.complete_source(_with(store.path), "a") == ["ann", "a.pth"]


def test_a_shell_is_answered_without_pytorch(store):
    code = (
        "import atexit, sys\n"
        "from langchain_rwkv_state.__main__ import main\n"
        "def told():\n"
        "    heavy = {'torch', 'numpy', 'langchain_core'} & set(sys.modules)\n"
        "    sys.stderr.write(f'heavy: {heavy}')\n"
        "atexit.register(told)\n"
        "sys.argv = ['rwkv-state']\n"
        "main()"
    )
    asked = {
        "_RWKV_STATE_COMPLETE": "complete_bash",
        "COMP_WORDS": f"rwkv-state --store {store.path} -s bo",  # of ask, without the word
        "COMP_CWORD": "4",
    }
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stdout.split() == ["bob", "bob2"], answer
    assert answer.stderr == "heavy: set()"
