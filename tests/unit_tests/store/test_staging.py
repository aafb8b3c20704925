"""Staged states: alive until their time is up, wherever they lie and whoever made the store object.

The easy mistake is to test with one state: a budget matters from the second on.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import queue
import shutil
import signal
import tempfile
import threading
import time
import warnings
from pathlib import Path

import pytest

from langchain_rwkv_state.errors import StateExpired, StateNotFound, StoreFull
from langchain_rwkv_state.store import DiskStateStore, MemoryStateStore
from langchain_rwkv_state.store.files import StateFiles
from langchain_rwkv_state.store.records import unpack_tokens
from langchain_rwkv_state.store.resources import OPEN_STORES
from langchain_rwkv_state.store.staging import StagedFiles
from tests.helpers.command import rwkv_state
from tests.helpers.states import SetClock, random_state

SIZE = random_state([0]).nbytes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def small(path):
    """A store that holds three staged states in memory."""
    with DiskStateStore(path, staged_bytes=3 * SIZE) as opened:
        yield opened


def staged_files(path: Path) -> list[Path]:
    return sorted(path.glob("staged/*/*.safetensors"))


class TestBeyondMemory:
    def test_states_go_to_files_and_live_on(self, small, path):
        refs = [small.stage(random_state([number])) for number in range(10)]
        stats = small.stats()
        assert (stats.staged, stats.staged_nbytes, stats.spilled_nbytes) == (10, 3 * SIZE, 7 * SIZE)
        assert len(staged_files(path)) == 7
        for number, ref in enumerate(refs):
            assert small.get(ref) == random_state([number])

    def test_a_state_larger_than_all_room_is_staged(self, path):
        with DiskStateStore(path, staged_bytes=1) as store:
            refs = [store.stage(random_state([number])) for number in range(3)]
            assert store.stats().staged_nbytes == SIZE
            for number, ref in enumerate(refs):
                assert store.get(ref) == random_state([number])

    def test_a_commit_takes_the_file_over(self, small, path, monkeypatch):
        refs = [small.stage(random_state([number])) for number in range(10)]
        written: list[str] = []
        monkeypatch.setattr(StateFiles, "write", lambda _, name, __: written.append(name))
        for number in range(7):
            small.commit(f"s{number}", refs[number], None)
        assert not written
        assert not staged_files(path)
        assert small.stats().spilled_nbytes == 0
        assert small.check().sound
        monkeypatch.undo()
        small.close()
        with DiskStateStore(path) as again:
            for number in range(7):
                assert again.get(refs[number]) == random_state([number])
                assert again.head(f"s{number}") == refs[number]

    def test_a_file_system_without_links_is_written_to_anew(self, small, path, monkeypatch):
        refs = [small.stage(random_state([number])) for number in range(10)]

        def no_links(*_: object, **__: object) -> None:
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", no_links)
        small.commit("bob", refs[0], None)
        assert small.get(refs[0]) == random_state([0])
        assert small.check().sound

    def test_two_turns_with_one_text_can_both_be_committed(self, path):
        with DiskStateStore(path, staged_bytes=1, history=0) as store:
            refs = [store.stage(random_state([7])), store.stage(random_state([7]))]
            store.stage(random_state([8]))
            assert len(staged_files(path)) == 1
            store.commit("a", refs[0], None)
            store.delete_session("a")
            store.commit("b", refs[1], None)
            assert store.get(refs[1]) == random_state([7])

    def test_their_time_ends_them_and_their_files(self, path):
        clock = SetClock()
        with DiskStateStore(path, staged_bytes=1, clock=clock) as store:
            refs = [store.stage(random_state([number])) for number in range(3)]
            assert len(staged_files(path)) == 2
            clock.advance(15 * 60 + 1)
            for ref in refs:
                with pytest.raises(StateExpired, match="staged and expired"):
                    store.get(ref)
            assert not staged_files(path)

    def test_a_full_disk_leaves_them_in_memory_with_one_warning(self, small, monkeypatch):
        def full(*_: object) -> Path:
            raise StoreFull("no room")

        monkeypatch.setattr(StagedFiles, "write", full)
        with pytest.warns(UserWarning, match="beyond their share") as seen:
            refs = [small.stage(random_state([number])) for number in range(4)]
        assert len(seen) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refs += [small.stage(random_state([number])) for number in range(4, 8)]
        for number, ref in enumerate(refs):
            assert small.get(ref) == random_state([number])
        monkeypatch.undo()
        small.stage(random_state([8]))
        assert small.stats().staged_nbytes == 3 * SIZE

    def test_a_warning_that_is_an_error_loses_no_answer(self, small, monkeypatch, caplog):
        def full(*_: object) -> Path:
            raise StoreFull("no room")

        monkeypatch.setattr(StagedFiles, "write", full)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            refs = [small.stage(random_state([number])) for number in range(5)]
        assert small.get(refs[0]) == random_state([0])
        assert "beyond their share" in caplog.text

    def test_the_room_that_commits_need_is_left_on_the_disk(self, small, path, monkeypatch):
        usage = shutil.disk_usage(path)
        nearly_full = type(usage)(usage.total, usage.total, min(usage.total // 20, 1 << 30))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: nearly_full)
        with pytest.warns(UserWarning, match="leaves no room for a staged state") as seen:
            refs = [small.stage(random_state([number])) for number in range(8)]
        assert len(seen) == 1
        assert not staged_files(path)
        for number, ref in enumerate(refs):
            small.commit(f"s{number}", ref, None)

    def test_a_size_limit_counts_them(self, path):
        limit = 12 * SIZE
        with DiskStateStore(path, staged_bytes=1, size_limit=limit) as store:
            with pytest.warns(UserWarning, match=f"size limit of {limit} bytes"):
                refs = [store.stage(random_state([number])) for number in range(20)]
            stats = store.stats()
            assert stats.nbytes + stats.spilled_nbytes <= limit
            for number, ref in enumerate(refs):
                assert store.get(ref) == random_state([number])

    def test_a_folder_that_was_removed_by_hand_is_made_again(self, small, path):
        refs = [small.stage(random_state([number])) for number in range(5)]
        shutil.rmtree(path / "staged")
        with pytest.raises(StateNotFound):
            small.get(refs[0])
        assert small.get(refs[4]) == random_state([4])
        more = [small.stage(random_state([number])) for number in range(5, 10)]
        assert staged_files(path)
        for number, ref in enumerate(more, 5):
            assert small.get(ref) == random_state([number])

    @pytest.mark.parametrize("kind", ["read-only", "memory"])
    def test_a_store_that_writes_no_files_of_its_own_has_temporary_ones(
        self, path, kind, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
        (tmp_path / "temporary").mkdir()
        DiskStateStore(path).close()
        store = (
            MemoryStateStore(staged_bytes=2 * SIZE)
            if kind == "memory"
            else DiskStateStore(path, read_only=True, staged_bytes=2 * SIZE)
        )
        refs = [store.stage(random_state([number])) for number in range(6)]
        assert store.stats().staged_nbytes == 2 * SIZE
        assert len(list(tmp_path.glob("temporary/*/*.safetensors"))) == 4
        for number, ref in enumerate(refs):
            assert store.get(ref) == random_state([number])
        if kind == "memory":
            store.commit("bob", refs[0], None)
            assert store.get(refs[0]) == random_state([0])
        store.close()
        assert not list(tmp_path.glob("temporary/*"))

    def test_many_threads_lose_none_and_keep_to_the_memory_allowed(self, path):
        lost: list[object] = []
        most = [0]
        with DiskStateStore(path, staged_bytes=2 * SIZE) as store:

            def work(number: int) -> None:
                for turn in range(15):
                    ids = [number, turn]
                    ref = store.stage(random_state(ids))
                    most[0] = max(most[0], store.stats().staged_nbytes)
                    if store.get(ref) != random_state(ids):
                        lost.append(ids)
                    if turn % 2:
                        store.commit(f"{number} {turn}", ref, None)

            threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not lost
            assert most[0] <= 2 * SIZE
            assert store.check().sound


class TestOneDirectoryOneStore:
    def test_what_one_object_staged_another_commits(self, path):
        with DiskStateStore(path) as one, DiskStateStore(path) as other:
            ref = one.stage(random_state([1]))
            assert other.get(ref) == random_state([1])
            other.commit("bob", ref, None)
            assert one.head("bob") == ref

    @pytest.mark.posix
    def test_another_spelling_of_the_path_is_the_same_store(self, path, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "link").symlink_to(path)
        with (
            DiskStateStore(path) as one,
            DiskStateStore("store") as two,
            DiskStateStore(tmp_path / "link") as three,
        ):
            ref = one.stage(random_state([1]))
            assert two.get(ref) == three.get(ref)

    def test_a_staged_state_outlives_the_object_that_staged_it(self, path):
        ref = DiskStateStore(path).stage(random_state([1]))
        gc.collect()
        with DiskStateStore(path) as other:
            other.commit("bob", ref, None)

    def test_the_last_close_ends_what_is_staged(self, path):
        held = len(OPEN_STORES)
        one, other = DiskStateStore(path, staged_bytes=1), DiskStateStore(path)
        refs = [one.stage(random_state([number])) for number in range(2)]
        one.close()
        assert other.get(refs[0]) == random_state([0])
        other.close()
        assert len(OPEN_STORES) == held
        assert not list((path / "staged").iterdir())
        with DiskStateStore(path) as again, pytest.raises(StateNotFound):
            again.get(refs[0])

    def test_a_closed_object_leaves_the_others_open(self, path):
        one, other = DiskStateStore(path), DiskStateStore(path)
        one.close()
        other.put(random_state([1]))
        other.close()

    def test_a_directory_that_was_made_anew_is_another_store(self, path):
        first = DiskStateStore(path)
        first.commit("bob", first.stage(random_state([1])), None)
        shutil.rmtree(path)
        with DiskStateStore(path) as second:
            assert second.sessions() == []
        first.close()

    def test_one_that_keeps_token_ids_commits_what_one_that_does_not_staged(self, path):
        with DiskStateStore(path) as plain, DiskStateStore(path, log="tokens") as logging:
            first = plain.stage(random_state([1, 2]), tokens=[1, 2])
            logging.commit("bob", first, None)
            second = plain.stage(random_state([1, 2, 3]), parent=first, tokens=[3])
            logging.commit("bob", second, first)
            steps = logging._view().path(second)
            assert [unpack_tokens(origin.tokens) for _, origin in steps] == [[1, 2], [3]]

    def test_a_dropped_store_stays_open_only_as_long_as_what_it_staged_lives(
        self, path, monkeypatch
    ):
        gc.collect()  # those that other tests dropped, with what they staged, go before
        now = time.monotonic() + 16 * 60
        monkeypatch.setattr(time, "monotonic", lambda: now)
        OPEN_STORES.sweep()
        held = len(OPEN_STORES)
        DiskStateStore(path).stage(random_state([1]))
        gc.collect()
        OPEN_STORES.sweep()
        assert len(OPEN_STORES) == held + 1
        now += 16 * 60
        OPEN_STORES.sweep()
        assert len(OPEN_STORES) == held

    def test_objects_share_the_clock_so_that_a_step_of_it_parts_none(self, path):
        with DiskStateStore(path) as one, DiskStateStore(path, ttl=60) as other:
            assert other._clock is one._clock
            with DiskStateStore(path, clock=SetClock()) as apart:
                assert apart._clock is not one._clock

    def test_objects_share_their_threads(self, path):
        def threads() -> int:
            return sum(t.name.startswith("rwkv-state-store") for t in threading.enumerate())

        async def use() -> None:
            for _ in range(20):
                await DiskStateStore(path).asessions()

        import asyncio

        before = threads()
        with DiskStateStore(path):
            asyncio.run(use())
            assert threads() - before <= 4


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at the open files")
def test_a_thread_that_ends_leaves_no_open_file(path):
    def open_files() -> int:
        files = (each.resolve() for each in Path("/proc/self/fd").iterdir())
        return sum(file == path / "cache.db-wal" for file in files)

    with DiskStateStore(path) as store:
        gc.collect()
        gc.disable()
        try:
            before = open_files()
            for _ in range(30):
                thread = threading.Thread(target=store.sessions)
                thread.start()
                thread.join()
            assert open_files() == before
        finally:
            gc.enable()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at the open files")
def test_a_thread_that_goes_on_closes_what_it_had_open_of_closed_stores(tmp_path):
    asked: queue.Queue = queue.Queue()
    answered: queue.Queue = queue.Queue()

    def serve() -> None:
        for verb in iter(asked.get, None):
            answered.put(verb())

    thread = threading.Thread(target=serve)
    thread.start()
    gc.collect()
    gc.disable()
    try:
        for number in range(10):
            with DiskStateStore(tmp_path / str(number)) as store:
                asked.put(store.sessions)
                assert answered.get(timeout=30) == []
        files = [each.resolve() for each in Path("/proc/self/fd").iterdir()]
        still = [each for each in files if each.name == "cache.db-wal" and tmp_path in each.parents]
        assert len(still) <= 1
    finally:
        gc.enable()
        asked.put(None)
        thread.join()


class TestCopies:
    def test_a_store_on_disk_travels_as_its_directory_and_settings(self, path):
        with DiskStateStore(path, ttl=60, history=3) as store:
            ref = store.stage(random_state([1]))
            for made in (copy.copy(store), copy.deepcopy(store), pickle.loads(pickle.dumps(store))):
                assert made.path == store.path
                made.commit(f"{id(made)}", ref, None)
                made.close()
            assert len(store.sessions()) == 3

    def test_a_store_in_memory_is_itself_and_does_not_travel(self):
        with MemoryStateStore() as store:
            assert copy.deepcopy(store) is store
            with pytest.raises(TypeError, match="DiskStateStore"):
                pickle.dumps(store)


class TestProcesses:
    @pytest.mark.posix
    def test_what_a_killed_process_staged_goes_at_the_next_opening(self, path):
        DiskStateStore(path).close()
        child = os.fork()
        if child == 0:
            store = DiskStateStore(path, staged_bytes=1)
            for number in range(3):
                store.stage(random_state([number]))
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert len(staged_files(path)) == 2
        with DiskStateStore(path) as store:
            assert not staged_files(path)
            assert store.check().sound

    def test_what_a_living_process_staged_stays(self, small, path):
        refs = [small.stage(random_state([number])) for number in range(5)]
        assert rwkv_state(path, "sessions").returncode == 0
        for number, ref in enumerate(refs):
            assert small.get(ref) == random_state([number])

    @pytest.mark.posix
    def test_a_forked_child_stages_anew_what_its_parent_has_committed(self, small, path):
        refs = [small.stage(random_state([number])) for number in range(6)]
        ready, go = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            os.read(go[0], 1)
            again = small.stage(random_state([0]))
            small.commit("child", again, None)
            os._exit(0 if small.get(again) == random_state([0]) else 1)
        small.commit("parent", refs[0], None)
        small.delete_session("parent")
        os.write(go[1], b"x")
        _, status = os.waitpid(child, 0)
        for end in (*ready, *go):
            os.close(end)
        assert status == 0
        assert small.head("child") == refs[0]

    @pytest.mark.posix
    def test_a_forked_child_deletes_nothing_of_its_parents(self, small, path):
        refs = [small.stage(random_state([number])) for number in range(6)]
        child = os.fork()
        if child == 0:
            right = all(small.get(ref) == random_state([n]) for n, ref in enumerate(refs))
            for number in range(6, 12):
                small.stage(random_state([number]))
            small.commit("child", refs[0], None)
            small.close()
            os._exit(0 if right else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0
        assert small.head("child") == refs[0]
        for number, ref in enumerate(refs):
            assert small.get(ref) == random_state([number])
