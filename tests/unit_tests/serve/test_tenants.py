"""Tenants: opened once, closed when nobody asks, and read anew from their file."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from langchain_rwkv_state import PrefixStateCache
from langchain_rwkv_state.model_stats import ModelStats
from langchain_rwkv_state.serve import ServeSettings
from langchain_rwkv_state.serve.errors import ApiError
from langchain_rwkv_state.serve.metrics import Metrics
from langchain_rwkv_state.serve.settings import ServeError
from langchain_rwkv_state.serve.stores import cache_of, open_store_of
from langchain_rwkv_state.serve.tenants import Tenants
from tests.helpers.served_tenants import KEYS, ModellessTenants, write_keys


def tenants(tmp_path, **settings) -> ModellessTenants:
    return ModellessTenants(ServeSettings(api_key_file=write_keys(tmp_path), **settings))


async def until(true) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 # nobody tells of it
            await asyncio.sleep(0.001)


def held_up(known, monkeypatch) -> threading.Event:
    """Has stores open only once the event is set."""
    go_on, original = threading.Event(), known._opened

    def slowly(name):
        assert go_on.wait(10)
        return original(name)

    monkeypatch.setattr(known, "_opened", slowly)
    return go_on


async def test_two_first_requests_at_once_open_a_store_once(tmp_path):
    known = tenants(tmp_path)
    first, second = await asyncio.gather(known.enter("alice"), known.enter("alice"))
    assert first is second
    assert known.opened == ["alice"]


async def test_who_leaves_while_a_store_is_opened_takes_it_from_nobody(tmp_path, monkeypatch):
    known = tenants(tmp_path)
    go_on = held_up(known, monkeypatch)
    leaving = asyncio.ensure_future(known.enter("alice"))
    staying = asyncio.ensure_future(known.enter("alice"))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    known.leave("alice")
    go_on.set()
    assert (await staying).name == "alice"
    assert known.opened == ["alice"]


async def test_a_store_that_nobody_waits_for_any_more_is_closed_in_its_time(tmp_path, monkeypatch):
    known = tenants(tmp_path, idle_seconds=0.01)
    task = asyncio.ensure_future(known.enter("alice"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    known.leave("alice")
    await until(lambda: known.closed == ["alice"])


async def test_a_store_is_closed_when_nobody_asked_for_long_and_opened_again(tmp_path):
    known = tenants(tmp_path, idle_seconds=0.01)
    await known.enter("alice")
    await asyncio.sleep(0.03)
    assert not known.closed, "who asks keeps it"
    known.leave("alice")
    await until(lambda: known.closed == ["alice"])
    await known.enter("alice")
    assert known.opened == ["alice", "alice"]


async def test_of_too_many_open_stores_the_one_asked_longest_ago_is_closed(tmp_path):
    known = tenants(tmp_path, open_tenants=1)
    for name in ("alice", "bob"):
        async with known.using(name):
            pass
    await until(lambda: known.closed == ["alice"])
    async with known.using("bob"):
        pass
    assert known.opened == ["alice", "bob"]


async def test_a_store_in_use_is_not_closed_for_others(tmp_path):
    known = tenants(tmp_path, open_tenants=1)
    await known.enter("alice")
    async with known.using("bob"):
        pass
    await until(lambda: known.closed == ["bob"])
    known.leave("alice")
    assert known.closed == ["bob"]


async def test_a_store_that_fails_to_open_when_nobody_waits_any_more_leaves_nothing(tmp_path):
    known = tenants(tmp_path)
    known.failures = 1
    task = asyncio.ensure_future(known.enter("alice"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    known.leave("alice")
    await until(lambda: not known._places)


async def test_a_store_that_is_being_opened_at_the_end_is_closed(tmp_path, monkeypatch):
    known = tenants(tmp_path)
    go_on = held_up(known, monkeypatch)
    asking = asyncio.ensure_future(known.enter("alice"))
    await asyncio.sleep(0)
    ending = asyncio.ensure_future(known.aclose())
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(asking, ending)
    assert known.closed == ["alice"]


def test_figures_of_the_model_are_there_though_no_store_is_open(tmp_path):
    known = tenants(tmp_path)
    known._model = SimpleNamespace(  # type: ignore[assignment]
        stats=lambda: ModelStats("demo", "cpu fp32", loaded=True, steps=3)
    )
    assert Tenants.stats(known).steps == 3


def test_a_total_that_begins_anew_goes_on_in_its_counter():
    metrics = Metrics()
    for steps in (10, 12, 5, 6):
        metrics.look(ModelStats("demo", "cpu fp32", loaded=True, steps=steps))
    assert "rwkv_state_engine_steps_total 18.0" in metrics.text().decode()


async def test_keys_are_read_anew_and_those_that_left_open_nothing(tmp_path):
    known = tenants(tmp_path)
    assert known.name_of(KEYS["bob"]) == "bob"
    file = tmp_path / "keys"
    file.write_text(f"alice {KEYS['alice']} requests=1\ncarol sk-carol-0123456789ab\n")
    known.read_keys()
    with pytest.raises(ApiError):
        known.name_of(KEYS["bob"])
    assert known.name_of("sk-carol-0123456789ab") == "carol"
    assert known.account("alice").limits.requests == 1


def test_a_file_that_is_wrong_when_it_is_read_anew_leaves_the_keys_as_they_were(tmp_path):
    known = tenants(tmp_path)
    (tmp_path / "keys").write_text("alice")
    with pytest.raises(ServeError):
        known.read_keys()
    assert known.name_of(KEYS["bob"]) == "bob"


@pytest.mark.parametrize("place", ["{0}/states", "file:{0}/states", "memory:{0}"])
def test_each_tenant_has_a_store_of_its_own(tmp_path, place):
    settings = ServeSettings(store=place.format(tmp_path))
    alone, alice, bob = (open_store_of(settings, name) for name in (None, "alice", "bob"))
    alice.append_unread("talk", ['"hello"'])
    assert alice.sessions() == ["talk"]
    assert bob.sessions() == alone.sessions() == []
    again = open_store_of(settings, "alice")
    assert again.sessions() == ["talk"]
    for store in (alone, alice, bob, again):
        store.close()


@pytest.mark.parametrize(("asked", "held"), [(None, True), (1 << 20, True), (0, False)])
def test_a_server_has_a_prefix_cache_of_its_own_unless_told_otherwise(tmp_path, asked, held):
    found = cache_of(ServeSettings(store=str(tmp_path), prefix_cache_bytes=asked))
    assert isinstance(found, PrefixStateCache) is held
    if asked:
        assert repr(found) == f"PrefixStateCache({asked}, disk=None)"


def test_a_prefix_cache_of_less_than_nothing_is_refused():
    with pytest.raises(ServeError, match="prefix_cache_bytes is -1"):
        ServeSettings(prefix_cache_bytes=-1)
