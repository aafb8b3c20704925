"""Stores that are read where nothing can, or shall, be written.

The easy mistake is to test a store that was closed in order alone: what was committed last may
stand in SQLite's log beside the database, which a read-only disk does not let it take in.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from langchain_rwkv_state.errors import StateNotFound, StoreError
from langchain_rwkv_state.store import DiskStateStore
from tests.helpers.states import SetClock, random_state, turns

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


def contents(path: Path) -> dict[str, bytes]:
    files = (each for each in path.rglob("*") if each.is_file())
    return {str(each.relative_to(path)): each.read_bytes() for each in files}


def writes(store: DiskStateStore, bundle: Path) -> dict[str, object]:
    """Returns each verb that changes a store in which bob has turns."""
    ref = store.head("bob")
    assert ref is not None
    mine = store.stage(random_state([9]))
    return {
        "put": lambda: store.put(random_state([8])),
        "keep": lambda: store.keep(ref, "thread"),
        "copy_kept": lambda: store.copy_kept("thread", "other"),
        "release": lambda: store.release("thread"),
        "commit": lambda: store.commit("bob", mine, ref),
        "append": lambda: store.append_unread("bob", ["{}"]),
        "fork": lambda: store.fork("bob", "al"),
        "rewind": lambda: store.rewind("bob"),
        "delete": lambda: store.delete_session("bob"),
        "import": lambda: store.import_session(bundle, "al"),
        "prune": store.prune,
        "mend": lambda: store.check(fix=True),
    }


def test_all_that_reads_works_and_all_that_writes_says_why_not(path, tmp_path):
    with DiskStateStore(path) as store:
        refs = turns(store, "bob", 3)
        store.append_unread("bob", ['"one"'])
        info = store.session("bob")
    before = contents(path)
    with DiskStateStore(path, read_only=True) as store:
        assert store.read_only
        assert store.sessions() == ["bob"]
        assert store.session("bob") == info
        assert store.get(refs[-1]) == random_state([*b"bob", 0, 1, 2])
        assert [entry.ref for entry in store.log("bob")] == refs[::-1]
        assert store.stats().sessions == 1
        assert store.check().sound
        store.export_session("bob", tmp_path / "bob.zip")
        staged = store.stage(random_state([7]), parent=refs[-1])
        assert store.get(staged) == random_state([7]), "an answer may be staged, in memory"
        for verb in writes(store, tmp_path / "bob.zip").values():
            with pytest.raises(StoreError, match="read-only"):
                verb()  # type: ignore[operator]
    assert contents(path) == before, "nothing was written, and no file was made"
    with DiskStateStore(tmp_path / "other") as other:
        assert other.import_session(tmp_path / "bob.zip").n_turns == 3


def test_a_read_renews_nothing(path):
    clock = SetClock()
    with DiskStateStore(path, ttl=1000, clock=clock) as store:
        turns(store, "bob", 1)
        ref = store.put(random_state([5]))
    clock.advance(500)
    before = contents(path)
    with DiskStateStore(path, ttl=1000, clock=clock, read_only=True) as store:
        store.head("bob")
        store.get(ref)
    assert contents(path) == before


@pytest.mark.slow
def test_what_another_process_commits_meanwhile_is_seen(path):
    with DiskStateStore(path) as store:
        turns(store, "bob", 1)
    code = """
        import sys
        from langchain_rwkv_state.store import DiskStateStore
        from tests.helpers.states import turns

        store = DiskStateStore(sys.argv[1])
        turns(store, "bob", 1, start=int(sys.argv[2]))
        print(store.head("bob"), flush=True)
        if sys.stdin.read() == "close":
            store.close()
        else:
            import os
            os._exit(0)
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with DiskStateStore(path, read_only=True) as reader:
        for turn, end in ((1, "close"), (2, "close"), (3, "kill")):
            with subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(code), str(path), str(turn)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as writer:
                assert writer.stdout is not None
                head = writer.stdout.readline().strip()
                assert reader.head("bob") == head, "while it has the store open"
                writer.communicate(end)
            assert reader.head("bob") == head, "after it is gone"
            assert reader.get(head)
            assert reader.check().sound


def test_threads_read_one_store(path):
    with DiskStateStore(path) as store:
        refs = turns(store, "bob", 2)
    found: list[object] = []
    with DiskStateStore(path, read_only=True) as store:
        threads = [threading.Thread(target=lambda: found.append(store.head("bob"))) for _ in "1234"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [refs[-1]] * 4


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_threads_that_end_leave_nothing_open(path):
    with DiskStateStore(path) as store:
        turns(store, "bob", 2)

    def opened() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    with DiskStateStore(path, read_only=True) as store:
        store.head("bob")
        before = opened()
        for _ in range(20):
            thread = threading.Thread(target=lambda: store.head("bob"))
            thread.start()
            thread.join()
        assert opened() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_reads_on(path):
    with DiskStateStore(path) as store:
        refs = turns(store, "bob", 2)
    with DiskStateStore(path, read_only=True) as store:
        assert store.head("bob") == refs[-1]
        child = os.fork()
        if not child:
            code = 1
            try:
                code = 0 if store.head("bob") == refs[-1] and store.check().sound else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert store.head("bob") == refs[-1]


def test_a_closed_store_says_so(path):
    DiskStateStore(path).close()
    store = DiskStateStore(path, read_only=True)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.sessions()


def test_where_no_store_is_none_can_be_read_or_made(path):
    with pytest.raises(StoreError, match="no store"):
        DiskStateStore(path, read_only=True)
    with pytest.raises(ValueError, match="create"):
        DiskStateStore(path, read_only=True, create=True)
    assert not path.exists()


def test_a_change_left_half_written_is_refused_and_not_read_as_if_it_were_whole(path):
    with DiskStateStore(path) as store:
        turns(store, "bob", 1)
    (path / "cache.db-journal").write_bytes(bytes(1000))
    with pytest.raises(StoreError, match="middle of a change"):
        DiskStateStore(path, read_only=True)


# -- a directory that cannot be written ------------------------------------------------------------


@pytest.fixture
def unwritable(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store whose directory the system says cannot be written."""
    with DiskStateStore(path) as store:
        turns(store, "bob", 1)
    access = os.access
    monkeypatch.setattr(os, "access", lambda at, mode: not mode & os.W_OK and access(at, mode))
    return path


def test_a_store_that_cannot_be_written_is_read_with_one_warning(unwritable):
    with pytest.warns(UserWarning, match="open read-only") as caught:
        store = DiskStateStore(unwritable)
    assert [each.filename for each in caught] == [__file__]
    with store, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.head("bob") is not None
        with pytest.raises(StoreError, match="read-only"):
            turns(store, "bob", 1, start=1)


def test_who_says_so_gets_no_warning(unwritable):
    with DiskStateStore(unwritable, read_only=True) as store:
        assert store.read_only


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs to mount")
class TestMount:
    """A store on a disk that is mounted read-only, seen beside the place where it is written."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
        source, mounted = tmp_path / "source", tmp_path / "mounted"
        source.mkdir()
        mounted.mkdir()
        for command in (
            ["mount", "--bind", source, mounted],
            ["mount", "-o", "remount,ro,bind", mounted],
        ):
            done = subprocess.run([*map(str, command)], capture_output=True, check=False)
            if done.returncode:
                pytest.skip("may not mount")
        try:
            yield source / "store", mounted / "store"
        finally:
            subprocess.run(["umount", str(mounted)], check=True)

    def filled(self, path: Path, *, close: bool) -> str:
        """Fills a store in a process of its own, which closes it or is killed."""
        code = f"""
            import os, sys
            from langchain_rwkv_state.store import DiskStateStore
            from tests.helpers.states import turns

            store = DiskStateStore(sys.argv[1])
            turns(store, "bob", 3)
            print(store.head("bob"), flush=True)
            if {close}:
                store.close()
            os._exit(0)
        """
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(path)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    @pytest.mark.parametrize("close", [True, False])
    def test_sessions_are_listed_and_read(self, place, close):
        head = self.filled(place[0], close=close)
        with pytest.warns(UserWarning, match="read-only"):
            store = DiskStateStore(place[1])
        with store:
            assert store.sessions() == ["bob"]
            assert store.head("bob") == head
            assert store.get(head) == random_state([*b"bob", 0, 1, 2])
            assert store.check().sound

    @pytest.mark.slow
    def test_changes_that_cannot_be_read_are_refused_and_not_left_out(self, place):
        self.filled(place[0], close=False)
        (place[0] / "cache.db-shm").unlink()
        with pytest.raises(StoreError, match=r"last changes stand in cache\.db-wal"):
            DiskStateStore(place[1], read_only=True)

    def test_a_store_cannot_be_made_there(self, place):
        with pytest.raises(StoreError, match="Read-only file system"):
            DiskStateStore(place[1])


def test_a_state_that_is_not_there_is_not_found(path):
    with DiskStateStore(path) as store:
        turns(store, "bob", 1)
        gone = store.put(random_state([1, 2]))
    shutil.copytree(path, path.with_name("copy"))
    with DiskStateStore(path, read_only=True) as store, pytest.raises(StateNotFound):
        store.get(gone[:-4] + "0000")
