"""What a Redis must be set to, and what its errors are called here: no server is needed."""

from __future__ import annotations

import pytest
from redis import exceptions as theirs

from langchain_rwkv_state.errors import StoreError, StoreFull
from langchain_rwkv_state.store.redis.connect import (
    check_server,
    check_url,
    connect,
    errors,
    lost_by,
    require_persistence,
    shown,
)

SAFE = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}


@pytest.mark.parametrize("wanted", ["always", "everysec", "trusted"])
def test_a_server_that_flushes_each_write_keeps_every_promise(wanted):
    assert lost_by(SAFE, {}, wanted) is None


@pytest.mark.parametrize(
    ("changed", "wanted", "said"),
    [
        ({"appendonly": "no"}, "always", "all turns since its last snapshot"),
        ({"appendonly": "no"}, "everysec", "all turns since its last snapshot"),
        ({"appendfsync": "everysec"}, "always", "the last second or two"),
        ({"appendfsync": "no"}, "everysec", "half a minute"),
        ({"no-appendfsync-on-rewrite": "yes"}, "always", "rewrites its log"),
        ({"maxmemory-policy": "volatile-lru"}, "everysec", "drops whole sessions"),
        ({"maxmemory-policy": "volatile-lru"}, "trusted", "drops whole sessions"),
    ],
)
def test_a_server_that_may_lose_more_is_refused_with_what_to_set(changed, wanted, said):
    problem = lost_by({**SAFE, **changed}, {}, wanted)
    assert problem is not None
    assert said in problem
    assert "persistence=" in problem
    assert "Set " in problem


def test_a_server_may_lose_what_it_was_allowed_to():
    assert lost_by({**SAFE, "appendfsync": "everysec"}, {}, "everysec") is None
    assert lost_by({**SAFE, "appendonly": "no"}, {}, "trusted") is None


def test_a_server_that_hides_its_settings_has_to_be_vouched_for():
    problem = lost_by(None, {"maxmemory_policy": "noeviction"}, "always")
    assert problem is not None
    assert 'persistence="trusted"' in problem
    assert lost_by(None, {"maxmemory_policy": "noeviction"}, "trusted") is None
    evicts = lost_by(None, {"maxmemory_policy": "allkeys-lru"}, "trusted")
    assert evicts is not None
    assert "allkeys-lru" in evicts


def test_an_old_server_and_a_replica_are_refused():
    with pytest.raises(StoreError, match=r"Redis 6\.2\.14, and a store needs 7\.0"):
        check_server({"redis_version": "6.2.14"})
    replica = {"role": "slave", "master_host": "db1", "master_port": 6379}
    with pytest.raises(StoreError, match="name the primary, which it follows at db1:6379"):
        check_server({"redis_version": "7.0.15", **replica})
    check_server({"redis_version": "10.0.1", "role": "master"})
    check_server({})


@pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", "", None, 6379])
def test_another_url_is_refused(url):
    with pytest.raises(ValueError, match="begins with redis://"):
        check_url(url)


def test_a_url_sets_nothing_that_the_store_sets():
    with pytest.raises(ValueError, match="sets decode_responses, which the store sets itself"):
        check_url("redis://localhost/0?decode_responses=true")
    with pytest.raises(ValueError, match="no URL that redis-py can use") as found:
        connect("redis://:hidden@localhost:one/0")
    assert "hidden" not in str(found.value)


def test_a_password_is_not_shown():
    assert shown("redis://me:hidden@db:6380/1?password=hidden") == "redis://db:6380/1"
    assert shown("unix:///run/redis.sock?password=hidden") == "unix:///run/redis.sock"


def test_another_word_for_persistence_is_refused():
    with pytest.raises(ValueError, match=r"persistence is one of 'always', .*got 'sometimes'"):
        require_persistence("sometimes")


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (theirs.OutOfMemoryError("command not allowed"), StoreFull, "no memory left"),
        (theirs.ResponseError("MISCONF Errors writing to the AOF file"), StoreFull, "its disk"),
        (theirs.ReadOnlyError("You can't write"), StoreError, "has become a replica"),
        (theirs.BusyLoadingError("Redis is loading"), StoreError, "still loading"),
        (theirs.AuthenticationError("invalid password"), StoreError, "user or password"),
        (theirs.NoPermissionError("no permissions"), StoreError, "ACL LIST"),
        (theirs.TimeoutError("Timeout reading"), StoreError, "whether the command was done"),
        (theirs.ConnectionError("refused"), StoreError, "lost or cannot be made"),
        (theirs.ClusterCrossSlotError("CROSSSLOT"), StoreError, "is a cluster"),
        (theirs.ResponseError("ERR what"), StoreError, "refused a command: ERR what"),
    ],
)
def test_each_error_has_a_name_here(raised, kind, said):
    with pytest.raises(kind, match=said) as found, errors():
        raise raised
    assert found.value.__cause__ is raised


def test_other_errors_pass():
    with pytest.raises(KeyError), errors():
        raise KeyError("x")
