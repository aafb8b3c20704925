"""What the store on disk promises beyond the contract: one experiment for each way to lose data.

Each repeats, small, what diskcache by itself does with a store: see `docs/sessions.md`. The
easy mistake is to test through the verbs alone: most of these begin with another hand on the files.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import sqlite3
import stat
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import diskcache
import pytest

from langchain_rwkv_state._fork import inside_sqlite, not_amid_a_fork
from langchain_rwkv_state.errors import (
    SessionConflict,
    StateCorrupt,
    StateNotFound,
    StoreError,
    StoreFull,
)
from langchain_rwkv_state.state import Buffer, decode
from langchain_rwkv_state.store import DiskStateStore, default_directory, rows, tables
from langchain_rwkv_state.store.disk_backend import DiskBackend, _only_one
from tests.helpers.mutations import Payload
from tests.helpers.states import SetClock, random_state, turns

WRITE = "writev" if hasattr(os, "writev") else "write"
"""What writes a state's file."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(path):
    with DiskStateStore(path) as opened:
        yield opened


def execute(path: Path, statement: str, values: tuple = ()) -> list[tuple]:
    """Runs a statement on a store's database, as a stranger would."""
    with closing(sqlite3.connect(path / "cache.db", isolation_level=None, timeout=30)) as database:
        return database.execute(statement, values).fetchall()


def state_files(path: Path) -> list[Path]:
    return sorted(path.glob("??/*.safetensors"))


def backend_of(store: DiskStateStore) -> DiskBackend:
    backend = store._backend
    assert isinstance(backend, DiskBackend)
    return backend


# -- opening -------------------------------------------------------------------------------------


def test_what_was_committed_is_there_after_a_restart(path):
    with DiskStateStore(path) as store:
        refs = turns(store, "bob", 3)
        store.append_unread("bob", ['"one"'])
        info = store.session("bob")
    with DiskStateStore(path) as store:
        assert store.session("bob") == info
        assert store.get(refs[-1]) == random_state([*b"bob", 0, 1, 2])
        assert [entry.ref for entry in store.log("bob")] == refs[::-1]
        assert store.rewind("bob") == refs[1]


def test_two_objects_on_one_directory_are_one_store(path, store):
    with DiskStateStore(path) as other:
        (ref,) = turns(store, "bob", 1)
        assert other.head("bob") == ref
        assert other.put(random_state([*b"bob", 0])) == ref
        turns(other, "bob", 1, start=1)
        with pytest.raises(SessionConflict):
            store.commit("bob", store.stage(random_state([9])), ref)


def test_the_users_own_store_is_named_by_a_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("RWKV_STATE_DIR", str(tmp_path / "mine"))
    with DiskStateStore() as store:
        assert store.path == tmp_path / "mine"
    monkeypatch.delenv("RWKV_STATE_DIR")
    assert default_directory().name == "states"


def test_an_unknown_codec_is_named_and_leaves_no_directory(path):
    with pytest.raises(ValueError, match=r"'int2'.*'exact'"):
        DiskStateStore(path, codec="int2")  # type: ignore[arg-type]
    assert not path.exists()


def test_a_leap_of_the_clock_between_two_processes_expires_nothing(path):
    clock = SetClock()
    for years in (0, 20, -30):
        clock.advance(years * 365 * 86400)
        with DiskStateStore(path, clock=clock) as store:
            turns(store, "bob", 1, start=years)
            assert store.prune() == 0
    with DiskStateStore(path, clock=clock) as store:
        assert len(store.log("bob")) == 3


def test_the_machines_clock_is_compared_with_a_steady_one(path, monkeypatch):
    from langchain_rwkv_state.store.clock import StoreClock

    wall, steady = SetClock(), SetClock(5.0)
    clock = StoreClock(wall, 100.0, lambda: None, steady)
    start = clock.now()
    wall.advance(2 * 86400)
    assert clock.now() == start
    wall.advance(60)
    steady.advance(60)
    assert clock.now() == start + 60
    wall.advance(-3 * 86400)
    steady.advance(40)
    assert clock.now() == start + 100


# -- nothing is pickled --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0, 1, 2, 3, 4])
def test_a_planted_pickle_is_refused_and_never_run(path, store, tmp_path, mode):
    turns(store, "bob", 1)
    target = tmp_path / "ran"
    payload = pickle.dumps(Payload(target))
    key = b"planted"
    execute(path, "UPDATE sessions SET unread = ? WHERE name = ?", (payload, b"bob"))
    execute(path, "DROP TRIGGER Cache_format_1")  # as whoever plants a row would
    for planted, raw in ((key, 1), (payload, 0)):
        execute(
            path,
            "INSERT INTO Cache(key, raw, mode, value, store_time, access_time, tag)"
            " VALUES (?, ?, ?, ?, 0, 0, ?)",
            (planted, raw, mode, payload, payload),
        )
    for verb in (lambda: store.head("bob"), lambda: store.session("bob")):
        with pytest.raises(StateCorrupt):
            verb()
    cache = backend_of(store)._opened()
    if mode == 1:
        assert cache.get(key) == payload, "bytes, as they stand"
    else:
        with pytest.raises(StateCorrupt):
            cache.get(key)
    for each in (lambda: list(cache), lambda: cache.peekitem()):
        with pytest.raises((StateCorrupt, TypeError)):
            each()
    report = store.check(fix=True)
    assert len(report.problems) >= 2
    with pytest.raises(StateCorrupt):
        store.head("bob")
    with DiskStateStore(path) as again:
        assert again.sessions() == ["bob"], "it exists, and is not left out as if it did not"
        assert again.delete_session("bob")
        assert again.head("bob") is None
    assert not target.exists()


def test_rows_are_bytes_and_nothing_else(store):
    cache = backend_of(store)._opened()
    for key, value in (("text", b""), (b"", "text"), (b"", 7), (("a",), b"")):
        with pytest.raises(TypeError):
            cache.set(key, value)


# -- transactions --------------------------------------------------------------------------------


def test_a_rolled_back_delete_keeps_the_file(path, store):
    (ref,) = turns(store, "bob", 1)

    def work(ledger: Any) -> None:
        ledger.remove_session("bob")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store._write(work)
    assert len(state_files(path)) == 1
    assert store.get(store.head("bob")) == random_state([*b"bob", 0])
    assert ref == store.head("bob")


def test_bytes_are_written_before_the_transaction_and_not_at_all_for_a_lost_race(
    path, store, monkeypatch
):
    (first,) = turns(store, "bob", 1)
    backend = backend_of(store)
    written: list[bool] = []
    write = backend.files.write

    def watched(name: str, data: Sequence[Buffer]) -> None:
        written.append(backend._opened()._con.in_transaction)
        write(name, data)

    monkeypatch.setattr(backend.files, "write", watched)
    turns(store, "bob", 1, start=1)
    assert written == [False]
    with pytest.raises(SessionConflict):
        store.commit("bob", store.stage(random_state([9])), first)
    assert written == [False]


def test_a_race_lost_inside_the_transaction_leaves_no_file(path, store, monkeypatch):
    (first,) = turns(store, "bob", 1)
    backend = backend_of(store)
    write = backend.files.write

    def slow(name: str, data: Sequence[Buffer]) -> None:
        write(name, data)
        monkeypatch.setattr(backend.files, "write", write)
        with DiskStateStore(path) as other:
            turns(other, "bob", 1, start=1)

    monkeypatch.setattr(backend.files, "write", slow)
    with pytest.raises(SessionConflict):
        store.commit("bob", store.stage(random_state([9])), first)
    assert len(state_files(path)) == 2
    assert store.check().sound


def test_a_state_deleted_between_the_look_and_the_transaction_is_written_again(
    path, store, monkeypatch
):
    ref = store.stage(random_state([9]))
    store.stage(random_state([9]))
    store.keep(ref, "thread")
    write_bytes = store._write_bytes

    def look(*args: Any) -> Any:
        found = write_bytes(*args)
        monkeypatch.setattr(store, "_write_bytes", write_bytes)
        store.release("thread")
        return found

    monkeypatch.setattr(store, "_write_bytes", look)
    store.commit("bob", ref, None)
    assert store.get(ref) == random_state([9])


def test_check_and_prune_beside_writers_lose_nothing(path):
    stop = threading.Event()
    failures: list[BaseException] = []

    def tend() -> None:
        with DiskStateStore(path) as tender:
            while not stop.is_set():
                tender.check(fix=True)
                tender.prune()

    def write(name: str) -> None:
        try:
            with DiskStateStore(path) as writer:
                turns(writer, name, 12)
        except BaseException as error:
            failures.append(error)

    with DiskStateStore(path) as store:
        tender = threading.Thread(target=tend)
        writers = [threading.Thread(target=write, args=(f"s{n}",)) for n in range(3)]
        for thread in (tender, *writers):
            thread.start()
        for thread in writers:
            thread.join()
        stop.set()
        tender.join()
        assert failures == []
        for name in ("s0", "s1", "s2"):
            assert len(store.log(name)) == 12
            for entry in store.log(name)[:2]:
                assert store.get(entry.ref)
        assert store.check().sound


def test_diskcache_evicts_and_expires_nothing(path, store):
    settings = dict(execute(path, "SELECT key, value FROM Settings"))
    assert settings["eviction_policy"] == "none"
    assert settings["cull_limit"] == 0
    assert settings["size_limit"] >= 1 << 62
    turns(store, "bob", 1)
    assert execute(path, "SELECT COUNT(*) FROM Cache WHERE expire_time IS NOT NULL") == [(0,)]


# -- durability ----------------------------------------------------------------------------------


def test_a_commit_is_flushed_before_it_returns(path, store, monkeypatch):
    flushed: list[str] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        fsync(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", watched)
    turns(store, "bob", 1)
    (file,) = state_files(path)
    assert str(file) in flushed
    assert str(path) in flushed, "the new folder's name is flushed, too"
    assert backend_of(store)._opened()._sql("PRAGMA synchronous").fetchone() == (2,)
    assert backend_of(store)._opened()._sql("PRAGMA journal_mode").fetchone() == ("wal",)


def test_every_file_is_its_owners_alone(path):
    old = os.umask(0)
    try:
        with DiskStateStore(path / "deep" / "er") as store:
            turns(store, "bob", 2)
            for each in [path, *path.rglob("*")]:
                mode = stat.S_IMODE(each.lstat().st_mode)
                assert mode == (0o700 if each.is_dir() else 0o600), each
    finally:
        os.umask(old)


def test_sessions_are_listed_by_two_statements_however_many_there_are(store):
    turns(store, "bob", 1)
    for number in range(5):
        store.append_unread(f"s{number}", ["{}"])
    statements: list[str] = []
    connection = backend_of(store)._opened()._con
    connection.set_trace_callback(statements.append)
    store.sessions()
    connection.set_trace_callback(None)
    assert len([each for each in statements if each.startswith("SELECT")]) == 2


def test_a_stranger_sees_the_states_in_diskcache_and_its_repair_deletes_none(path):
    with DiskStateStore(path, history=2) as store:
        refs = turns(store, "bob", 3)
        store.rewind("bob")
    files = state_files(path)
    with closing(diskcache.Cache(str(path))) as cache:
        assert set(cache) == set(refs[:2])
        assert decode(cache[refs[1]], ref=refs[1]).state == random_state([*b"bob", 0, 1])
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            found = cache.check(fix=True)
        assert len(found) >= 2, "it knows neither the lock nor the reserve"
        assert not any(".safetensors" in str(each.message) for each in found)
    assert state_files(path) == files
    with DiskStateStore(path) as store:
        assert store.check().sound
        assert store.get(str(store.head("bob"))) == random_state([*b"bob", 0, 1])


@pytest.mark.parametrize("returns", [True, False])
def test_diskcaches_rows_and_counters_follow_every_commit(path, monkeypatch, returns):
    """The row of a state that goes becomes the new one's, or is deleted where SQLite is old."""
    monkeypatch.setattr(tables, "_RETURNS", returns and tables._RETURNS)
    clock = SetClock()
    with DiskStateStore(path, ttl=100, clock=clock) as store:
        refs = turns(store, "bob", 5)
        assert store.check().sound
        with closing(diskcache.Cache(str(path))) as cache:
            assert set(cache) == set(refs[-2:])
        clock.seconds += 200
        # The session has expired, and begins anew with a state that it still held.
        last = store.stage(random_state([*b"bob", 0, 1, 2, 3, 4]))
        assert last == refs[-1]
        store.commit("bob", last, None)
        execute(path, "DELETE FROM Cache")  # by another hand: no row is left to be taken over
        after = store.stage(random_state([7]))
        store.commit("bob", after, last)
        store.commit("bob", newest := store.stage(random_state([8])), after)
        with closing(diskcache.Cache(str(path))) as cache:
            assert set(cache) == {after, newest}
        assert store.check().sound


# -- strange files -------------------------------------------------------------------------------


def test_a_file_name_in_a_row_leads_nowhere(path, store, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (ref,) = turns(store, "bob", 1)
    execute(path, "UPDATE Cache SET filename = ? WHERE key = ?", ("../victim", ref))
    assert any("diskcache's table" in problem for problem in store.check().problems)
    assert store.get(ref)
    store.delete_session("bob")
    assert victim.read_text() == "precious"
    assert state_files(path) == []
    assert store.check().sound


@pytest.mark.parametrize("name", ["../victim", "/etc/passwd", "x", "", "a" * 64 + "-" + "b" * 15])
def test_a_blob_has_a_strict_name(path, store, name):
    files = backend_of(store).files
    for verb in (files.read, files.drop, files.exists, lambda each: files.write(each, [])):
        with pytest.raises(StateCorrupt, match="not the name"):
            verb(name)


@pytest.mark.posix
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "folder link"])
def test_what_is_no_plain_file_is_not_opened(path, store, tmp_path, kind):
    (ref,) = turns(store, "bob", 1)
    (file,) = state_files(path)
    moved = tmp_path / file.name
    if kind == "folder link":
        file.parent.rename(tmp_path / "moved")
        file.parent.symlink_to(tmp_path / "moved")
    else:
        file.rename(moved)
    if kind == "link":
        file.symlink_to(moved)
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    with pytest.raises((StateCorrupt, StoreError)):
        store.get(ref)
    report = store.check(fix=True)
    assert any(file.name[:8] in problem or ref in problem for problem in report.problems)
    assert store.head("bob") == ref
    store.delete_session("bob")
    assert (tmp_path / "moved" / file.name).exists() or moved.exists()


@pytest.mark.posix
@pytest.mark.parametrize("name", ["cache.db", "cache.db-wal", "lock"])
def test_a_link_in_the_place_of_the_database_is_refused(path, tmp_path, name):
    path.mkdir()
    (tmp_path / "target").touch()
    (path / name).symlink_to(tmp_path / "target")
    with pytest.raises(StoreError):
        DiskStateStore(path)


def test_a_missing_file_is_told_apart_from_a_deleted_state(path, store):
    refs = turns(store, "bob", 3)
    next(file for file in state_files(path) if refs[2][-64:] in file.name).unlink()
    with pytest.raises(StateCorrupt, match="missing"):
        store.get(refs[2])
    with pytest.raises(StateNotFound):
        store.get(refs[0])
    assert any("missing" in problem for problem in store.check().problems)
    assert store.head("bob") == refs[2], "a look changes nothing"
    report = store.check(fix=True)
    assert any("missing" in problem for problem in report.problems)
    assert store.head("bob") == refs[1], "what the advice says is done: it goes back by a turn"


def test_orphans_are_swept_once_they_are_older_than_a_minute(path, store):
    turns(store, "bob", 1)
    (file,) = state_files(path)
    orphan = file.with_name(file.name[:66] + "0" * 15 + ".safetensors")
    shutil.copy(file, orphan)
    assert store.check(fix=True).sound
    os.utime(orphan, (time.time() - 61, time.time() - 61))
    assert any(orphan.stem in problem for problem in store.check().problems)
    assert orphan.exists()
    store.check(fix=True)
    assert not orphan.exists()
    assert file.exists()
    assert store.check().sound


def test_files_of_others_are_reported_and_left_alone(path, store):
    (path / "notes.txt").write_text("mine")
    (path / "ab").mkdir(exist_ok=True)
    (path / "ab" / "x.val").write_text("mine")
    report = store.check(fix=True)
    assert len(report.problems) == 2
    assert (path / "notes.txt").exists()
    assert (path / "ab" / "x.val").exists()


# -- strange databases ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE Settings SET value = '/tmp' WHERE key = 'sqlite_journal_mode'",
        "UPDATE Settings SET value = 0 WHERE key = 'sqlite_synchronous'",
        "UPDATE Settings SET value = 67108864 WHERE key = 'sqlite_mmap_size'",
        "UPDATE Settings SET value = 'x' WHERE key = 'count'",
        "INSERT INTO Settings VALUES ('_directory', '/tmp')",
        "INSERT INTO Settings VALUES ('sqlite_temp_store_directory', '/tmp')",
        "INSERT INTO Settings VALUES ('disk_x', 1)",
        "CREATE TRIGGER evil AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END",
        "CREATE TABLE other (a)",
        "CREATE VIEW other AS SELECT * FROM Cache",
        "ALTER TABLE Cache ADD COLUMN more",
        "DROP TRIGGER Settings_size_insert;",
    ],
)
def test_a_planted_setting_trigger_or_table_is_refused_before_opening(path, statement):
    with DiskStateStore(path) as store:
        turns(store, "bob", 1)
    execute(path, statement)
    if statement.startswith("DROP"):  # what is missing is made again, as after a kill
        with DiskStateStore(path) as store:
            assert store.head("bob")
        return
    with pytest.raises(StoreError, match=r"tampered|another program"):
        DiskStateStore(path)


def test_another_programs_database_is_refused(path):
    path.mkdir()
    execute(path, "CREATE TABLE mine (a)")
    with pytest.raises(StoreError, match="'mine'"):
        DiskStateStore(path)


def test_diskcaches_own_directory_is_refused(path):
    with closing(diskcache.Cache(str(path))) as cache:
        cache.set("a", 1)
    with pytest.raises(StoreError, match="another program"):
        DiskStateStore(path)


@pytest.mark.parametrize("change", ["UPDATE meta SET value = x'00' WHERE key = ?", None])
def test_a_store_without_its_secret_is_refused(path, change):
    with DiskStateStore(path) as store:
        turns(store, "bob", 1)
    execute(path, change or "DELETE FROM meta WHERE key = ?", (b"about",))
    with pytest.raises(StoreError, match="secret"):
        DiskStateStore(path)


def test_a_store_of_a_later_format_is_refused(path):
    with DiskStateStore(path):
        pass
    data = json.dumps({"format": 3, "key": "00" * 32, "codec": "exact"}).encode()
    sum_ = rows.checksum("meta", (b"about", data))
    execute(path, "UPDATE meta SET value = ?, sum = ? WHERE key = ?", (data, sum_, b"about"))
    with pytest.raises(StoreError, match="upgrade"):
        DiskStateStore(path)


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 5000])
def test_a_truncated_database_is_refused_and_not_mapped(path, size):
    with DiskStateStore(path) as store:
        turns(store, "bob", 20)
        assert backend_of(store)._opened()._sql("PRAGMA mmap_size").fetchone() == (0,)
    os.truncate(path / "cache.db", size)
    with pytest.raises(StoreError):
        DiskStateStore(path)


def test_a_database_truncated_under_an_open_store_is_an_error_of_ours(path, store):
    for number in range(40):
        store.append_unread(f"s{number}", ['"' + "x" * 2000 + '"'])
    backend_of(store)._opened()._sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    os.truncate(path / "cache.db", 8192)
    backend_of(store)._opened()._con.execute("PRAGMA shrink_memory")
    with pytest.raises(StoreError):
        read_all(store)


def read_all(store: DiskStateStore) -> None:
    for number in range(40):
        store.session(f"s{number}")


# -- a disk that is full or gone -----------------------------------------------------------------


@pytest.mark.parametrize("call", [WRITE, "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_head_and_no_half_file(path, store, monkeypatch, call, code):
    refs = turns(store, "bob", 1)
    mine = store.stage(random_state([9]))

    def fail(*args: object) -> int:
        raise OSError(code, "no room")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        for verb in (
            lambda: store.commit("bob", mine, refs[0]),
            lambda: store.put(random_state([10])),
            lambda: store.keep(mine, "thread"),
        ):
            with pytest.raises(StoreFull, match="unharmed"):
                verb()
        assert len(state_files(path)) == 1
        assert store.head("bob") == refs[0]
        assert store.get(refs[0])
    store.commit("bob", mine, refs[0])


@pytest.mark.parametrize("call", [WRITE, "fsync"])
def test_a_limit_on_the_size_of_files_is_no_lack_of_room(path, store, monkeypatch, call):
    mine = store.stage(random_state([9]))

    def fail(*args: object) -> int:
        raise OSError(errno.EFBIG, "File too large")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(StoreError, match=r"takes no file of that size|ulimit -f") as caught:
            store.commit("bob", mine, None)
    assert "make room" not in str(caught.value)
    assert state_files(path) == []
    store.commit("bob", mine, None)


def test_any_other_failure_of_the_disk_is_an_error_of_ours(path, store, monkeypatch):
    def fail(*args: object) -> int:
        raise OSError(errno.EIO, "broken")

    mine = store.stage(random_state([9]))
    with monkeypatch.context() as patched:
        patched.setattr(os, WRITE, fail)
        with pytest.raises(StoreError, match="broken"):
            store.commit("bob", mine, None)
    assert state_files(path) == []
    store.commit("bob", mine, None)


def test_a_full_database_is_a_full_store_and_its_connection_goes_on(path, store):
    refs = turns(store, "bob", 1)
    database = backend_of(store)._opened()
    ((pages,),) = database._sql("PRAGMA page_count").fetchall()
    database._sql(f"PRAGMA max_page_count = {pages}").fetchall()
    with pytest.raises(StoreFull):
        append_much(store)
    assert store.head("bob") == refs[0]
    assert store.get(refs[0])
    database._sql("PRAGMA max_page_count = 1000000").fetchall()
    turns(store, "bob", 1, start=1)
    assert store.check().sound


def append_much(store: DiskStateStore) -> None:
    for _ in range(50):
        store.append_unread("bob", ['"' + "x" * 500 + '"'])


def test_a_delete_may_use_the_room_that_was_kept_back(path, store, monkeypatch):
    turns(store, "bob", 1)
    backend = backend_of(store)
    reserve = path / "reserve"
    assert reserve.stat().st_size == 1 << 20
    transact = backend._transact

    def full(work: Any, *, durable: bool) -> Any:
        if reserve.exists():
            raise StoreFull("No room.")
        return transact(work, durable=durable)

    monkeypatch.setattr(backend, "_transact", full)
    with pytest.raises(StoreFull):
        store.append_unread("bob", ["{}"])
    assert store.delete_session("bob")
    assert reserve.stat().st_size == 1 << 20, "it is kept back again"


def test_a_read_goes_on_where_a_renewal_cannot_be_written(path, monkeypatch):
    clock = SetClock()
    with DiskStateStore(path, clock=clock) as store:
        (ref,) = turns(store, "bob", 1)
        clock.advance(20 * 86400)

        def full(work: Any, *, durable: bool) -> Any:
            raise StoreFull("No room.")

        monkeypatch.setattr(backend_of(store), "_transact", full)
        assert store.head("bob") == ref


@pytest.mark.parametrize("replaced", [False, True])
def test_a_directory_removed_under_an_open_store_takes_no_commits(path, store, replaced):
    refs = turns(store, "bob", 1)
    mine = store.stage(random_state([9]))
    if replaced:
        shutil.copytree(path, path.with_name("copy"))
        path.rename(path.with_name("old"))
        path.with_name("copy").rename(path)
    else:
        shutil.rmtree(path)
    with pytest.raises(StoreError, match="removed or replaced"):
        store.commit("bob", mine, refs[0])
    with pytest.raises(StoreError, match="removed or replaced"):
        store.head("bob")


def test_a_busy_store_gives_up_after_a_while(path):
    with DiskStateStore(path, timeout_seconds=0.2) as store:
        with closing(sqlite3.connect(path / "cache.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="busy"):
                store.append_unread("bob", ["{}"])
            other.execute("ROLLBACK")
        store.append_unread("bob", ["{}"])


# -- forks ---------------------------------------------------------------------------------------


def test_a_thread_opens_its_connection_for_a_read_not_amid_a_fork(store):
    read = threading.Event()

    def look() -> None:
        store.head("bob")
        read.set()

    with not_amid_a_fork():
        thread = threading.Thread(target=look)
        thread.start()
        assert not read.wait(0.3)
    assert read.wait(10)
    thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_waits_for_a_thread_that_is_inside_sqlite(path, store):
    inside, left = threading.Event(), threading.Event()

    def read() -> None:
        with inside_sqlite:
            inside.set()
            time.sleep(0.3)
            left.set()

    reader = threading.Thread(target=read)
    reader.start()
    inside.wait()
    child = os.fork()
    if not child:
        os._exit(0 if left.is_set() and store.head("nobody") is None else 1)
    reader.join()
    assert os.waitpid(child, 0)[1] == 0
    assert store.sessions() == [], "and everybody is let in again"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_forked_during_a_transaction_can_write(path, store):
    turns(store, "bob", 1)
    started, release = threading.Event(), threading.Event()

    def hold() -> None:
        def work(ledger: Any) -> None:
            started.set()
            release.wait(10)

        store._write(work)

    thread = threading.Thread(target=hold)
    thread.start()
    started.wait(10)
    threading.Timer(0.2, release.set).start()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            turns(store, "child", 2)
            code = 0 if store.session("child").n_turns == 2 and store.head("bob") else 2
        finally:
            os._exit(code)
    thread.join()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert store.session("child").n_turns == 2
    turns(store, "bob", 1, start=1)
    assert store.check().sound


def test_a_place_in_a_queue_is_not_waited_for_and_a_commit_after_it_is(store):
    def flushes() -> int:
        return int(backend_of(store).sql("PRAGMA synchronous")[0][0])

    seen: list[int] = []
    transact = DiskBackend.transact

    def look(backend, work, **options):
        def looking(changes):
            seen.append(flushes())
            return work(changes)

        return transact(backend, looking, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(DiskBackend, "transact", look)
        store.enter_queue("bob", "a" * 32, 15.0)
        store.commit("bob", store.stage(random_state([1])), None)
        with pytest.raises(ValueError, match="some seconds"):
            store.enter_queue("bob", "a" * 32, 0)
        store.leave_queue("bob", "a" * 32)
    assert seen == [1, 2, 1]
    assert flushes() == 2


def test_a_place_that_cannot_be_written_leaves_flushing_on(store, monkeypatch):
    def broken(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr("langchain_rwkv_state.store.turns.enter", broken)
        with pytest.raises(StoreError, match="disk I/O error"):
            store.enter_queue("bob", "a" * 32, 15.0)
    assert backend_of(store).sql("PRAGMA synchronous")[0][0] == 2


REF = bytes.fromhex("aa" * 32)


@pytest.mark.parametrize(
    ("table", "key", "words"),
    [
        ("holds", (REF, 0, b"bob"), f"hold row of rwkv1-{'a' * 64} (session 'bob')"),
        ("holds", (REF, 1, b"thread:1"), "(owner 'thread:1')"),
        ("holds", (REF, 2, b""), f"hold row of rwkv1-{'a' * 64}"),
        ("sessions", (b"bob",), "session row of 'bob'"),
        ("log", (b"bob", 3), "log row of 'bob', turn 3"),
        ("holds", (None, "x", 5), "hold row [None, 'x', 5]"),
    ],
)
def test_a_row_is_described_with_whose_it_is(table, key, words):
    assert rows.TABLES[table].describe(key).endswith(words)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_child_forked_while_a_store_opens_holds_up_nobody_for_its_life(tmp_path) -> None:
    lives, ends = os.pipe()
    with _only_one(tmp_path / "lock", 1.0):
        child = os.fork()
        if child == 0:
            os.close(ends)
            os.read(lives, 1)  # until the parent closes its end
            os._exit(0)
    try:
        with _only_one(tmp_path / "lock", 0.2):
            pass
    finally:
        os.close(ends)
        os.close(lives)
        os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_fork_waits_for_a_connection_that_is_being_opened(path, monkeypatch) -> None:
    opens, opened = threading.Event(), []
    connect = sqlite3.connect

    def slowly(*args: Any, **settings: Any) -> Any:
        opens.set()
        time.sleep(0.2)
        opened.append(connect(*args, **settings))
        return opened[-1]

    DiskStateStore(path).close()
    monkeypatch.setattr(sqlite3, "connect", slowly)
    thread = threading.Thread(target=lambda: DiskStateStore(path).close())
    thread.start()
    assert opens.wait(10)
    child = os.fork()
    if child == 0:
        os._exit(0 if opened else 1)  # a lock of SQLite's would be held here for good
    _, status = os.waitpid(child, 0)
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0
