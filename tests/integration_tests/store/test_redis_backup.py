"""A backup that was made while sessions went on, as docs/redis.md says, is whole."""

from __future__ import annotations

import shutil
import subprocess
import threading

import pytest

from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.store import RedisStateStore
from tests.helpers.redis_server import RedisServer, needs_redis, redis_server
from tests.helpers.states import random_state

pytestmark = [
    needs_redis,
    pytest.mark.skipif(shutil.which("redis-cli") is None, reason="no redis-cli here"),
]


def test_a_backup_made_while_sessions_go_on_is_restored_whole(tmp_path):
    files, stop = tmp_path / "files", threading.Event()
    turns: list[str] = []
    files.mkdir()
    with (
        redis_server(repl_diskless_sync_delay=0) as server,
        RedisStateStore(server.url, blobs=files, large_bytes=0) as store,
    ):

        def talk():
            head = None
            while not stop.is_set():
                ref = store.stage(random_state([len(turns)]), parent=head)
                store.commit("s", ref, head)
                head = ref
                turns.append(ref)
                stop.wait(0.005)

        talker = threading.Thread(target=talk)
        talker.start()
        try:
            before = _after(turns, 3)
            cli("set", "rwkv:{default}:folder:hold", "1", of=server)
            cli("--rdb", str(tmp_path / "copy.rdb"), of=server)
            _after(turns, len(turns) + 5)  # which let go of what the snapshot names
            shutil.copytree(files, tmp_path / "copied")
            cli("del", "rwkv:{default}:folder:hold", of=server)
        finally:
            stop.set()
            talker.join()

    with redis_server(start=False) as server:
        (server.folder / "dump.rdb").write_bytes((tmp_path / "copy.rdb").read_bytes())
        server.start(appendonly="no")
        with pytest.raises(StoreError, match="appendonly no"):
            RedisStateStore(server.url, blobs=tmp_path / "copied")
        cli("config", "set", "appendonly", "yes", of=server)
        while "aof_rewrite_in_progress:1" in cli("info", "persistence", of=server):
            stop.wait(0.01)
        server.stop()
        server.start()
        with RedisStateStore(server.url, blobs=tmp_path / "copied") as store:
            assert store.check().problems == ()
            log = [entry.ref for entry in reversed(store.log("s"))]
            copied = turns.index(log[-1]) + 1
            assert log == turns[:copied][-len(log) :]
            assert copied >= before
            store.get(log[-1])


def _after(turns, number):
    """Waits until there were so many turns; returns how many there were."""
    pause = threading.Event()
    while len(turns) < number:
        pause.wait(0.01)
    return len(turns)


def cli(*words, of: RedisServer):
    """Runs redis-cli as an operator does."""
    command = ["redis-cli", "-s", str(of.folder / "s"), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
