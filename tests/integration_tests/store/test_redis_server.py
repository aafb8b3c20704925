"""A real redis-server: what it is set to is seen, and what it lost or refuses has our errors."""

from __future__ import annotations

import pytest

from langchain_rwkv_state.errors import StoreError, StoreFull
from langchain_rwkv_state.state import encode
from langchain_rwkv_state.store.redis.blobs import UNCOMMITTED_SECONDS, open_blobs
from langchain_rwkv_state.store.redis.connect import connect, errors
from tests.helpers.redis_server import needs_redis, redis_server
from tests.helpers.states import random_state

pytestmark = needs_redis


@pytest.fixture(scope="module")
def server():
    with redis_server() as started:
        yield started


def test_a_kill_and_a_restart_keep_what_was_acknowledged():
    with redis_server() as server, connect(server.url, timeout_seconds=5) as client:
        client.set("a", b"\x00\xff")
        server.kill()
        with pytest.raises(StoreError, match="lost or cannot be made"), errors():
            client.get("a")
        server.start()
        assert client.get("a") == b"\x00\xff"


def test_bytes_that_no_row_names_expire_and_outlive_a_kill_until_then(tmp_path):
    data = encode(random_state([1]))
    with redis_server() as server, connect(server.url) as client:
        for shared, kind in ((None, "r"), (tmp_path, "f")):
            blobs = open_blobs(client, shared, f"{kind}:folder", large_bytes=0)
            place = blobs.write(client, "k", "rwkv1-" + "ab" * 32, [data[:7], data[7:]])
            assert place.startswith(f"{kind}:")
            server.restart()
            assert open_blobs(client, shared, f"{kind}:folder").read(place) == data
            assert blobs.read_start(place, 7) == data[:7]
            if kind == "r":
                assert 0 < client.ttl("k") <= UNCOMMITTED_SECONDS
            blobs.drop([place])
            assert blobs.read(place) is None


def test_there_is_no_server(tmp_path):
    with pytest.raises(StoreError, match="lost or cannot be made"):
        connect(f"unix://{tmp_path}/none", timeout_seconds=5)


def test_a_server_that_may_lose_turns_is_opened_only_if_told_so(server):
    with connect(server.url) as client:
        client.config_set("appendfsync", "everysec")
        # At the command line a URL is all that there is to say it with.
        with pytest.raises(StoreError, match=r'say persistence="everysec".* URL .*\?persistence='):
            connect(server.url)
        connect(server.url, persistence="everysec").close()
        client.config_set("appendonly", "no")
        with pytest.raises(StoreError, match="appendonly no"):
            connect(server.url, persistence="everysec")
        connect(server.url, persistence="none").close()
        client.config_set("appendfsync", "always")
        client.config_set("appendonly", "yes")
        client.config_set("maxmemory-policy", "volatile-ttl")
        with pytest.raises(StoreError, match="maxmemory-policy volatile-ttl"):
            connect(server.url)
        client.config_set("maxmemory-policy", "noeviction")
        connect(server.url).close()


def test_a_user_who_may_not_see_the_settings_has_to_vouch_for_them(server):
    with connect(server.url) as client:
        client.acl_setuser(
            "guest", enabled=True, passwords=["+word"], keys=["*"], commands=["+@all", "-config"]
        )
    guest = server.url.replace("unix://", "unix://guest@") + "&password=word"
    with pytest.raises(StoreError, match="does not show its settings"):
        connect(guest)
    connect(guest, persistence="trusted").close()
    with pytest.raises(StoreError, match="does not know this user"):
        connect(guest.replace("=word", "=wrong"))


def test_a_setting_that_redis_py_does_not_know_is_no_possible_url(server):
    with pytest.raises(ValueError, match=r"open_store.*tenant"):
        connect(f"{server.url}&tenant=x")


def test_a_replica_is_refused(server):
    with connect(server.url) as client:
        client.replicaof("127.0.0.1", 1)
        try:
            with pytest.raises(StoreError, match="This server is a replica"):
                connect(server.url)
            with pytest.raises(StoreError, match="has become a replica"), errors():
                client.set("a", "b")
        finally:
            client.replicaof("no", "one")


def test_no_memory_is_store_full(server):
    with connect(server.url) as client:
        client.config_set("maxmemory", "1mb")
        try:
            with pytest.raises(StoreFull, match="no memory left"), errors():
                client.set("a", "b")
        finally:
            client.config_set("maxmemory", "0")
