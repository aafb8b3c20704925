"""Making and opening a store: what a killed program left, what somebody planted, where none may be.

Stores of format 1 are opened in `test_old_format`.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import textwrap
import threading
from contextlib import closing
from pathlib import Path

import pytest

from langchain_rwkv_state.errors import RWKVStateError, StateCorrupt, StoreError
from langchain_rwkv_state.store import DiskStateStore, schema
from tests.helpers.states import random_state, turns

ROOT = Path(__file__).parents[3]
MAGIC = bytes.fromhex("d9d505f920a163d7")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


def database(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path / "cache.db", isolation_level=None, timeout=30)


def killed(path: Path, code: str) -> None:
    """Runs code on a store's database in a process that ends without closing anything."""
    text = "import os, sqlite3, sys\nsql = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    command = [sys.executable, "-c", text + textwrap.dedent(code) + "\nos._exit(0)", path]
    subprocess.run([*map(str, command[:-1]), str(path / "cache.db")], check=True)


def left_hot(path: Path, statement: str) -> None:
    """Leaves a change half written, with the journal by which it is taken back."""
    killed(
        path,
        f"""
        sql.execute("PRAGMA journal_mode = DELETE").fetchall()
        sql.execute("PRAGMA cache_size = 1")
        sql.execute("PRAGMA cache_spill = 1")
        sql.execute("BEGIN IMMEDIATE")
        sql.execute({statement!r})
        sql.execute("UPDATE log SET said = zeroblob(9000)")
        """,
    )
    assert (path / "cache.db-journal").stat().st_size > 512


# -- after a kill ---------------------------------------------------------------------------------


def test_a_change_that_was_left_half_written_is_taken_back(path):
    with DiskStateStore(path) as store:
        refs = turns(store, "bob", 20)
    left_hot(path, "DELETE FROM log WHERE seq = 0")
    with DiskStateStore(path) as store:
        assert store.head("bob") == refs[-1]
        assert store.check().sound


def test_what_is_planted_by_a_half_written_change_is_refused_once_it_is_taken_back(path):
    with DiskStateStore(path) as store:
        turns(store, "bob", 20)
    with closing(database(path)) as sql:
        sql.execute("PRAGMA journal_mode = DELETE").fetchall()
        sql.execute("CREATE TRIGGER evil AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END")
    left_hot(path, "DROP TRIGGER evil")
    with pytest.raises(StoreError, match="evil"):
        DiskStateStore(path)


def test_a_journal_that_names_another_file_deletes_nothing(path, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    with DiskStateStore(path) as store:
        turns(store, "bob", 20)
    left_hot(path, "DELETE FROM log WHERE seq = 0")
    name = str(victim).encode()
    record = name + struct.pack(">II", len(name), sum(name)) + MAGIC
    with (path / "cache.db-journal").open("ab") as file:
        file.write(struct.pack(">I", (1 << 30) // 4096 + 1) + record)
    with pytest.raises(StoreError, match="names another database"):
        DiskStateStore(path)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    "names", [["lock"], ["lock", "cache.db"], ["cache.db", "cache.db-journal"]]
)
def test_what_an_earlier_release_left_when_it_was_killed_at_the_start_becomes_a_store(path, names):
    path.mkdir()
    for name in names:
        (path / name).touch()
    if "cache.db-journal" in names:
        (path / "cache.db-journal").write_bytes(MAGIC + bytes(600))
    with DiskStateStore(path) as store:
        turns(store, "bob", 1)
    with DiskStateStore(path) as store:
        assert store.check().sound


def test_a_database_that_was_being_made_is_made_anew(path):
    path.mkdir()
    for name in schema.UNFINISHED:
        (path / name).write_bytes(b"half")
    with DiskStateStore(path) as store:
        turns(store, "bob", 1)
        assert store.check().sound
    assert not any((path / name).exists() for name in schema.UNFINISHED)


def test_a_database_takes_its_name_once_it_is_whole(path, monkeypatch):
    def killed_here(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("langchain_rwkv_state.store.place.make_all", killed_here)
        with pytest.raises(KeyboardInterrupt):
            DiskStateStore(path)
    assert not (path / "cache.db").exists()
    with DiskStateStore(path) as store:
        turns(store, "bob", 1)


def test_a_reserve_that_was_half_written_is_written_again(path):
    DiskStateStore(path).close()
    os.truncate(path / "reserve", 1000)
    DiskStateStore(path).close()
    assert (path / "reserve").stat().st_size == 1 << 20


def test_changes_beside_a_missing_database_are_not_taken_for_a_new_store(path):
    with DiskStateStore(path) as store:
        turns(store, "bob", 1)
        shutil.copytree(path, path.with_name("copy"))
    copy = path.with_name("copy")
    (copy / "cache.db").unlink()
    for folder in copy.glob("??"):
        shutil.rmtree(folder)
    with pytest.raises(StoreError, match="missing or truncated"):
        DiskStateStore(copy)


def test_a_lost_log_of_changes_is_said_and_makes_no_new_store(path):
    copy = path.with_name("copy")
    with DiskStateStore(path) as store:
        turns(store, "bob", 3)
        shutil.copytree(path, copy)
    (copy / "cache.db-wal").unlink()
    (copy / "cache.db-shm").unlink()
    with pytest.raises(StoreError, match="secret is lost"):
        DiskStateStore(copy)


# -- damage ---------------------------------------------------------------------------------------


def test_the_row_of_a_session_and_what_proves_it_lie_in_different_trees(path):
    with DiskStateStore(path) as store:
        turns(store, "bob", 1)
    with closing(database(path)) as sql:
        pages = sql.execute("SELECT rootpage FROM sqlite_master WHERE name IN ('log', 'sessions')")
        assert len(set(pages.fetchall())) == 2
        assert sql.execute("SELECT session FROM log WHERE seq = 0").fetchall() == [(b"bob",)]
        sql.execute("DELETE FROM sessions WHERE name = ?", (b"bob",))
    with DiskStateStore(path) as store:
        mine = store.stage(random_state([9]))
        for verb in (lambda: store.head("bob"), lambda: store.commit("bob", mine, None)):
            with pytest.raises(StateCorrupt, match="delete_session\\('bob'\\)"):
                verb()
        assert store.sessions() == ["bob"]


def test_a_malformed_database_is_refused_at_opening_and_reported_by_check(path):
    with DiskStateStore(path) as store:
        for number in range(60):
            store.append_unread(f"s{number}", ["{}"])
        connection = store._backend._opened()._con  # type: ignore[attr-defined]
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        with (path / "cache.db").open("r+b") as file:
            for page in range(4, 12):
                file.seek(page * 4096)
                file.write(bytes(4096))
        connection.execute("PRAGMA shrink_memory")
        report = store.check()
        assert any("SQLite reports" in problem for problem in report.problems)
        assert any("from a copy" in problem for problem in report.problems)
    with pytest.raises(StoreError, match="from a copy"):
        DiskStateStore(path)


@pytest.mark.parametrize("byte", [b"\xff", b"\xc0", b"\x00"])
def test_damaged_text_of_the_schema_is_an_error_of_ours(path, byte):
    with DiskStateStore(path) as store:
        turns(store, "bob", 1)
    data = (path / "cache.db").read_bytes()
    for text in (
        b"CREATE INDEX Cache_expire_time",
        b"CREATE TABLE sessions",
        b"Settings_size_insert",
    ):
        damaged = data.replace(text, text[:9] + byte + text[10:])
        assert damaged != data
        (path / "cache.db").write_bytes(damaged)
        with pytest.raises(RWKVStateError):
            DiskStateStore(path)


# -- where a store may be -------------------------------------------------------------------------


def test_a_directory_of_other_things_becomes_a_store_only_when_asked(path):
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"'notes.txt'.*create=True"):
        DiskStateStore(path)
    assert sorted(each.name for each in path.iterdir()) == ["notes.txt"], "nothing was made"
    with DiskStateStore(path, create=True) as store:
        turns(store, "bob", 1)
    with DiskStateStore(path) as store:
        assert store.sessions() == ["bob"], "it is one now"


def test_only_a_store_that_is_there_is_opened_where_none_is_to_be_made(path):
    for _ in range(2):
        with pytest.raises(StoreError, match=f"no store in {path}"):
            DiskStateStore(path, create=False)
        path.mkdir(exist_ok=True)
    assert list(path.iterdir()) == []
    DiskStateStore(path).close()
    DiskStateStore(path, create=False).close()


def test_an_empty_path_makes_no_store_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="working directory"):
        DiskStateStore("")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_directory_for_a_store(path):
    path.write_text("mine")
    with pytest.raises(StoreError, match="no directory"):
        DiskStateStore(path)


# -- pipes, links and devices ---------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", ["lock", "reserve", *schema.COMPANIONS, *schema.UNFINISHED])
@pytest.mark.parametrize("made", [False, True])
def test_a_pipe_at_any_name_is_refused_and_not_waited_for(path, name, made):
    if made:
        DiskStateStore(path).close()
        (path / name).unlink(missing_ok=True)
    else:
        path.mkdir()
    os.mkfifo(path / name)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            DiskStateStore(path, timeout_seconds=1)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits"
    assert [type(error) for error in failed] == [StoreError]
    assert "plain file" in str(failed[0])


def test_a_lock_that_somebody_holds_is_waited_for_no_longer_than_said(path):
    fcntl = pytest.importorskip("fcntl")
    DiskStateStore(path).close()
    with (path / "lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="busy"):
            DiskStateStore(path, timeout_seconds=0.1)
    DiskStateStore(path).close()
