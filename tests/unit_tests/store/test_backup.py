"""Backups: whole, of one moment, for their owner alone, and never in the place of anything."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat

import pytest

from langchain_rwkv_state.errors import StateCorrupt, StoreError, StoreFull
from langchain_rwkv_state.store import DiskStateStore, backup
from langchain_rwkv_state.store.files import StateFiles
from tests.helpers.states import head_of, random_state, turns


@pytest.fixture
def store(tmp_path):
    with DiskStateStore(tmp_path / "store", history=2) as opened:
        turns(opened, "bob", 4)
        turns(opened, "al", 1)
        opened.append_unread("al", ['"one"'])
        opened.put(random_state([9]))
        opened.stage(random_state([10]))
        yield opened


def _state_files(path):
    return sorted(file.relative_to(path) for file in path.glob("??/*.safetensors"))


def test_a_backup_is_a_store_that_holds_the_same(store, tmp_path):
    made = store.backup(tmp_path / "new" / "copy")
    assert (made.path, made.sessions, made.states) == (tmp_path / "new" / "copy", 2, 5)
    assert made.nbytes == sum(f.stat().st_size for f in made.path.rglob("*") if f.is_file())
    assert _state_files(made.path) == _state_files(store.path)
    turns(store, "bob", 3, start=4)
    store.delete_session("al")
    with DiskStateStore(made.path) as copy:
        assert copy.check().problems == ()
        info = copy.session("al", renew=False)
        assert info is not None
        assert info.unread == ('"one"',)
        assert [each.ref for each in copy.log("bob")] == [each.ref for each in store.log("bob")][3:]
        assert head_of(copy, "bob").n_tokens == 7
        turns(copy, "bob", 1, start=4)  # the same secret: the same names
        assert copy.head("bob") in [entry.ref for entry in store.log("bob")]
    assert store.check().problems == ()


def test_a_backup_takes_no_room_on_the_same_disk_and_only_its_owner_reads_it(store, tmp_path):
    made = store.backup(tmp_path / "copy")
    for file in _state_files(store.path):
        assert (store.path / file).samefile(made.path / file)
    for path in (made.path, *made.path.rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted
    assert not (made.path / "staged").exists()


def test_where_there_are_no_links_bytes_are_copied(store, tmp_path, monkeypatch):
    def no_links(*_, **__):
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", no_links)
    made = store.backup(tmp_path / "copy")
    with DiskStateStore(made.path, read_only=True) as copy:
        assert copy.check().problems == ()
    for file in _state_files(store.path):
        assert not (store.path / file).samefile(made.path / file)
        assert (made.path / file).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("vanishing", [1, 3, 100])
def test_files_that_are_deleted_meanwhile_make_no_hole(store, tmp_path, monkeypatch, vanishing):
    """Before each look's files are taken, the session goes on, and old files go."""
    looks: list[None] = []
    take = backup._Copy._take

    def after_a_turn(self, connection):
        connection.execute("SELECT COUNT(*) FROM Cache").fetchall()  # the snapshot stands
        looks.append(None)
        if len(looks) <= vanishing and len(looks) < backup._LOOKS:
            turns(store, "bob", 3, start=4 + 3 * len(looks))
        return take(self, connection)

    monkeypatch.setattr(backup._Copy, "_take", after_a_turn)
    made = store.backup(tmp_path / "copy")
    assert len(looks) == min(vanishing + 1, backup._LOOKS)
    with DiskStateStore(made.path, read_only=True) as copy:
        assert copy.check().problems == ()
        assert copy.head("bob") == store.head("bob")
        assert len(_state_files(made.path)) == made.states == store.stats().states


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("store", "is inside the store"),
        ("store/in/it", "is inside the store"),
        ("other", "holds a store already"),
        ("letters", "is not empty"),
        ("letters/dear.txt", "is no directory"),
    ],
)
def test_nothing_is_written_over(store, tmp_path, place, said):
    DiskStateStore(tmp_path / "other").close()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("Dear")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match=said):
        store.backup(tmp_path / place)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_directory_may_become_a_backup(store, tmp_path):
    (tmp_path / "copy").mkdir()
    assert store.backup(tmp_path / "copy").sessions == 2


@pytest.mark.posix
@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_leads_to_where_the_backup_is_made(store, tmp_path, is_there):
    if is_there:
        (tmp_path / "disk").mkdir()
    (tmp_path / "copy").symlink_to(tmp_path / "disk")
    made = store.backup(tmp_path / "copy")
    assert made.path == tmp_path / "copy"
    assert (tmp_path / "copy").is_symlink()
    with DiskStateStore(tmp_path / "disk", read_only=True) as copy:
        assert copy.sessions() == store.sessions()
    (tmp_path / "inside").symlink_to(store.path)
    with pytest.raises(StoreError, match="is inside the store"):
        store.backup(tmp_path / "inside" / "copy")


@pytest.mark.posix
def test_what_cannot_be_a_backups_name_is_said(store, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="name a directory"):
        store.backup("")
    with pytest.raises(StoreError, match="working directory"):
        store.backup(".")  # whoever works there would go on in a directory that is gone
    monkeypatch.chdir(tmp_path)
    for backup_of, to in ((store.path, ""), ("", "copy")):
        with pytest.raises(ValueError, match="name a directory"):
            DiskStateStore.restore(backup_of, to)
    with pytest.raises(TypeError, match="NoneType"):
        DiskStateStore.restore(None, "copy")  # type: ignore[arg-type] # not the user's own store
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("loop", "n" * 300):
        with pytest.raises(StoreError, match="No backup could be made in"):
            store.backup(tmp_path / name)
    monkeypatch.setattr(os.path, "ismount", lambda path: path.name == "here")
    with pytest.raises(StoreError, match=r"where a disk is mounted.*such as .*here"):
        store.backup(tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []


def test_nothing_is_left_of_a_backup_that_failed(store, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StateFiles, "copy_to", full)
    with pytest.raises(StoreFull, match="nothing of it is left"):
        store.backup(tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_damaged_store_is_not_backed_up_as_if_it_were_whole(store, tmp_path):
    file = store.path / _state_files(store.path)[0]
    file.unlink()
    with pytest.raises(StateCorrupt, match=f"{file.stem}.*is missing.*doctor --fix"):
        store.backup(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_file_of_another_size_or_a_row_that_was_changed_is_not_copied_as_if_it_were_whole(
    store, tmp_path
):
    file = store.path / _state_files(store.path)[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(StateCorrupt, match=f"{file.stem}.*truncated or changed.*doctor --fix"):
        store.backup(tmp_path / "copy")
    file.write_bytes(whole)
    with sqlite3.connect(store.path / "cache.db") as database:
        database.execute("UPDATE sessions SET unread = x'00' WHERE name = ?", (b"bob",))
    with pytest.raises(StateCorrupt, match=r"session row of 'bob'.*was changed.*doctor --fix"):
        store.backup(tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_closed_store_makes_none(store, tmp_path):
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.backup(tmp_path / "copy")


async def test_a_backup_has_an_async_twin(store, tmp_path):
    assert (await store.abackup(tmp_path / "copy")).sessions == 2
    assert (await DiskStateStore.arestore(tmp_path / "copy", tmp_path / "again")).sessions == 2


def test_a_backup_is_restored_where_no_store_is(store, tmp_path):
    made = store.backup(tmp_path / "copy")
    log = store.log("bob")
    before = {path: path.stat().st_mtime_ns for path in made.path.rglob("*")}
    with pytest.raises(StoreError, match=r"holds a store already.*mv "):
        DiskStateStore.restore(made.path, store.path)
    again = DiskStateStore.restore(made.path, tmp_path / "again")
    assert (again.sessions, again.states) == (made.sessions, made.states)
    with DiskStateStore(again.path) as restored:
        assert restored.log("bob") == log
        turns(restored, "bob", 2, start=4)
        assert restored.check().problems == ()
    assert {path: path.stat().st_mtime_ns for path in made.path.rglob("*")} == before
    with DiskStateStore(made.path, read_only=True) as copy:
        assert copy.check().problems == ()


def test_a_damaged_backup_is_not_restored(store, tmp_path):
    made = store.backup(tmp_path / "copy")
    file = made.path / _state_files(made.path)[0]
    data = bytearray(file.read_bytes())
    file.unlink()  # and not into the store's own file
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(StateCorrupt, match=r"backup .* is damaged.*checksum"):
        DiskStateStore.restore(made.path, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert store.check().sound


def test_what_is_no_backup_is_not_restored(tmp_path):
    (tmp_path / "letters").mkdir()
    for name in ("letters", "none"):
        with pytest.raises(StoreError, match="There is no backup in"):
            DiskStateStore.restore(tmp_path / name, tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["letters"]
