"""The arguments of the Ray application: texts become values, and unshared stores are refused."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest

from langchain_rwkv_state.ray import RayArguments, app
from langchain_rwkv_state.ray.shared import require_reachable
from langchain_rwkv_state.serve.settings import ServeError

REDIS = "redis://redis:6379/0"


def test_texts_of_a_command_line_become_settings_of_the_server():
    given = {
        "model": "demo",
        "store": REDIS,
        "slots": "32",
        "temperature": "0.5",
        "reasoning": "off",
        "ttl": "1h",
        "requests": "4",
        "drain_seconds": "7",
    }
    settings = RayArguments.read(given).serve_settings()
    assert (settings.model, settings.model_name, settings.store) == ("demo", "demo", REDIS)
    assert settings.options == {"slots": 32, "temperature": 0.5, "reasoning": False}
    assert (settings.ttl, settings.limits.requests, settings.drain_seconds) == (3600.0, 4, 7.0)
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_paths_are_made_whole_as_replicas_work_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.pth").touch()
    given = {"model": "m.pth", "store": "states", "api_key_file": "keys"}
    settings = RayArguments.read(given).serve_settings()
    assert (settings.model, settings.model_name) == (str(tmp_path / "m.pth"), "m")
    assert settings.store == str(tmp_path / "states")
    assert settings.api_key_file == str(tmp_path / "keys")
    by_url = RayArguments.read({"store": "file:states?history=3"}).serve_settings()
    assert by_url.store == f"file:{tmp_path / 'states'}?history=3"


def test_ttl_may_be_never_and_is_read_as_elsewhere():
    assert RayArguments.read({"store": REDIS, "ttl": "never"}).serve_settings().ttl == math.inf
    with pytest.raises(ValueError, match="is no time to live"):
        RayArguments.read({"store": REDIS, "ttl": "soon"})


def test_scaling_follows_the_slots_unless_told_otherwise():
    read = RayArguments.read({"store": REDIS})
    assert (read.target_ongoing, read.most_ongoing) == (32.0, 80)
    told = {"target_ongoing_requests": "5", "max_ongoing_requests": "9"}
    read = RayArguments.read({"store": REDIS, **told})
    assert (read.target_ongoing, read.most_ongoing) == (5.0, 9)
    with pytest.raises(ValueError, match="min_replicas=5 is more than max_replicas=4"):
        RayArguments.read({"store": REDIS, "min_replicas": 5})


@pytest.mark.parametrize(
    ("name", "meant"), [("modle", "model"), ("max_replica", "max_replicas"), ("slot", "slots")]
)
def test_an_argument_that_nobody_knows_gives_the_nearest(name, meant):
    with pytest.raises(ValueError, match=f"no setting '{name}': did you mean {meant}"):
        RayArguments.read({"store": REDIS, name: "x"})


@pytest.mark.parametrize("store", [None, "memory:", "memory:shared"])
def test_a_store_of_one_process_is_refused(store):
    with pytest.raises(ServeError, match="name a Redis that all of them reach"):
        RayArguments.read({} if store is None else {"store": store})


@pytest.mark.parametrize(
    "store",
    ["/var/states", "file:/var/states", "redis://localhost/0", "redis://127.0.0.1", "unix:///r.s"],
)
def test_a_store_of_one_machine_is_refused_where_there_are_several(store):
    require_reachable(store, 1)
    with pytest.raises(ServeError, match=r"another one on each machine.* on 2"):
        require_reachable(store, 2)


def test_a_redis_that_all_reach_is_not_refused_and_no_password_is_shown():
    require_reachable("redis://:secret@redis:6379/0", 9)
    with pytest.raises(ServeError) as told:
        require_reachable("redis://:secret@localhost:6379/0", 2)
    assert "secret" not in str(told.value)
    assert "secret" not in repr(RayArguments.read({"store": "redis://:secret@redis/0"}))


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ServeError, match=r"pip install 'langchain-rwkv-state\[ray,serve\]'"):
        app({"store": REDIS})
