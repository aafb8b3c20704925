"""Several processes on one directory: races, first openings, disks that are full."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from langchain_rwkv_state.store import DiskStateStore
from tests.helpers.states import random_state

ROOT = Path(__file__).parents[3]


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Starts a Python process that runs `code`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for a process to end well; returns what it wrote."""
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    return out


def test_processes_that_open_and_race_at_once_lose_no_turn(tmp_path):
    code = """
        import sys
        from langchain_rwkv_state.errors import SessionConflict
        from langchain_rwkv_state.store import DiskStateStore
        from tests.helpers.states import random_state

        worker = int(sys.argv[2])
        with DiskStateStore(sys.argv[1]) as store:
            for number in range(5):
                while True:
                    head = store.head("bob")
                    ref = store.stage(random_state([worker, number]), parent=head)
                    try:
                        store.commit("bob", ref, head)
                    except SessionConflict:
                        continue
                    break
                store.append_unread("unread", [f'"{worker} {number}"'])
    """
    processes = [start(code, tmp_path / "new", worker) for worker in range(3)]
    for process in processes:
        finish(process)
    with DiskStateStore(tmp_path / "new") as store:
        assert len(store.log("bob")) == 15
        unread = store.session("unread")
        assert unread is not None
        assert len(set(unread.unread)) == 15
        assert store.check().sound


def test_a_state_outlives_its_process(tmp_path):
    code = """
        import sys
        from langchain_rwkv_state.store import DiskStateStore
        from tests.helpers.states import random_state

        store = DiskStateStore(sys.argv[1])
        store.commit("bob", store.stage(random_state([1, 2])), None)
        print(store.head("bob"))
    """
    ref = finish(start(code, tmp_path / "store")).strip()
    with DiskStateStore(tmp_path / "store") as store:
        assert store.head("bob") == ref
        assert store.get(ref) == random_state([1, 2])


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_FSIZE as on Linux")
def test_a_file_size_limit_of_the_system_is_said_to_be_one(tmp_path):
    with DiskStateStore(tmp_path / "store") as store:
        store.commit("bob", store.stage(random_state([1])), None)
        ref = store.head("bob")
    code = """
        import resource, signal, sys
        from langchain_rwkv_state.errors import StoreError
        from langchain_rwkv_state.store import DiskStateStore
        from tests.helpers.states import random_state

        store = DiskStateStore(sys.argv[1])
        mine = store.stage(random_state([2]))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        for verb in (lambda: store.commit("bob", mine, sys.argv[2]), lambda: store.keep(mine, "t")):
            try:
                verb()
            except StoreError as error:
                print("limit" if "of more than 20000 bytes" in str(error) else error)
        assert store.head("bob") == sys.argv[2]
        store.get(sys.argv[2])
    """
    assert finish(start(code, tmp_path / "store", ref)).split() == ["limit", "limit"]
    assert len(list((tmp_path / "store").glob("??/*.safetensors"))) == 1
    with DiskStateStore(tmp_path / "store") as store:
        assert store.head("bob") == ref
        assert store.check().sound


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs to mount a tmpfs")
def test_a_disk_that_is_really_full_leaves_the_old_head_and_deletes_work(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("may not mount a tmpfs")
    try:
        code = """
            import sys
            from langchain_rwkv_state.errors import StoreFull
            from langchain_rwkv_state.store import DiskStateStore
            from tests.helpers.states import random_state

            with DiskStateStore(sys.argv[1], history=0) as store:
                full = 0
                for number in range(400):
                    try:
                        store.commit(f"s{number}", store.stage(random_state([number])), None)
                        store.append_unread(f"s{number}", ['"' + "x" * 2000 + '"'])
                    except StoreFull:
                        full += 1
                assert full
                names = store.sessions()
                for name in names:
                    head = store.head(name)
                    assert head is None or store.get(head)
                for name in names:
                    assert store.delete_session(name)
                assert store.check(fix=True).repaired == ()
                store.commit("bob", store.stage(random_state([1])), None)
                print(len(names))
        """
        assert int(finish(start(code, disk / "store"))) > 5
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_a_backup_beside_four_writers_holds_one_moment(tmp_path):
    """No session torn, no file missing, and every head one that was committed."""
    code = """
        import sys
        from pathlib import Path
        from langchain_rwkv_state.store import DiskStateStore
        from tests.helpers.states import random_state

        root, worker = Path(sys.argv[1]), int(sys.argv[2])
        with DiskStateStore(root / "store", history=1) as store:
            names = [f"{worker}-{number}" for number in range(5)]
            heads = dict.fromkeys(names)
            number = 0
            told = (root / f"{worker}.txt").open("w")
            while not (root / "stop").exists():
                number += 1
                for name in names:
                    ref = store.stage(random_state([worker, number]), parent=heads[name])
                    store.commit(name, ref, heads[name])
                    heads[name] = ref
                    print(name, ref, file=told)
                if number == 1:
                    print("ready", flush=True)  # each session has its first turn
                if number % 10 == 0:
                    store.rewind(names[0])
                    heads[names[0]] = store.head(names[0])
            told.close()
    """
    with DiskStateStore(tmp_path / "store") as store:
        writers = [start(code, tmp_path, worker) for worker in range(4)]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        made = [store.backup(tmp_path / f"copy{number}") for number in range(3)]
        (tmp_path / "stop").touch()
        for writer in writers:
            finish(writer)
        told = [(tmp_path / f"{worker}.txt").read_text() for worker in range(4)]
        committed = {tuple(line.split()) for line in "".join(told).splitlines()}
        assert store.check().sound
    for backup in made:
        assert backup.sessions == 20
        with DiskStateStore(backup.path, read_only=True) as copy:
            assert copy.check().problems == ()
            assert len(copy.sessions()) == backup.sessions
            for name in copy.sessions():
                log = copy.log(name)
                assert copy.get(log[0].ref).n_tokens == log[0].n_tokens
                assert (name, log[0].ref) in committed
