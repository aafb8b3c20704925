"""A store's URL: what it says, what it refuses, and that it never shows a password."""

import copy
import inspect
import pickle
import sys
import threading
from typing import Any

import pytest

from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.state import StateLayout, zero_state
from langchain_rwkv_state.store import (
    DiskStateStore,
    MemoryStateStore,
    RedisStateStore,
    open_store,
    urls,
)
from langchain_rwkv_state.store.lazy import LazyUrlStore, lazy_store
from langchain_rwkv_state.store.urls import StoreUrl, is_url

STATE = zero_state(StateLayout.of(7, n_layer=1, n_embd=64, head_size=64), "model")
SECRET = "s3cret"


class FakeRedis(MemoryStateStore):
    """Stands for `RedisStateStore`: notes how it was opened."""

    opened: list[tuple[str, dict[str, object]]]

    def __init__(self, url, **settings):
        super().__init__(ttl=settings.get("ttl", 60))
        self.opened.append((url, settings))


@pytest.fixture
def redis(monkeypatch):
    monkeypatch.setattr(urls, "_redis_class", lambda: FakeRedis)
    FakeRedis.opened = []
    return FakeRedis.opened


class TestAUrlIsTold:
    @pytest.mark.parametrize(
        "place", ["states", "/a/b:c", "./a:b", "~/states", r"C:\states", "C:/states", "", None]
    )
    def test_from_a_path(self, place):
        assert not is_url(place)

    @pytest.mark.parametrize("place", ["redis://h", "file:x", "memory:", "reddis:x", "MEMORY:a"])
    def test_by_a_word_and_a_colon(self, place):
        assert is_url(place)

    def test_and_a_directory_is_never_called_like_one(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for url in ("redis://h", "memory:", tmp_path.__class__("redis:/h")):
            with pytest.raises(ValueError, match="is a URL and no directory"):
                DiskStateStore(url)
        monkeypatch.setenv("RWKV_STATE_DIR", "redis://h")
        with pytest.raises(StoreError, match="RWKV_STATE_DIR names the user's own store by a URL"):
            DiskStateStore()
        assert list(tmp_path.iterdir()) == []


class TestWhatItOpens:
    def test_a_directory(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for place in ("file:a%20b", f"file://{tmp_path}/a%20b", tmp_path / "a b", "a b"):
            with open_store(place) as store:
                assert isinstance(store, DiskStateStore)
                assert store.path == tmp_path / "a b"
        assert [each.name for each in tmp_path.iterdir()] == ["a b"]

    def test_memory_once_for_a_name(self):
        with open_store("memory:test_memory") as one, open_store("memory:test_memory") as other:
            one.begin("bob", STATE)
            assert other.sessions() == ["bob"]
            assert open_store("memory:test_memory_2").sessions() == []
        with open_store("memory:test_memory") as again:  # to the process's end
            assert again.sessions() == ["bob"]

    def test_a_staged_state_of_the_one_is_committed_by_the_other(self):
        one, other = open_store("memory:test_staged"), open_store("memory:test_staged")
        other.commit("bob", one.stage(STATE), None)
        assert one.head("bob") is not None

    def test_redis_with_its_settings_and_what_the_client_reads(self, redis):
        open_store("rediss://u:p@h:1/2?tenant=a&ttl=7d&history=3&ssl_cert_reqs=none&sliding=no")
        open_store("unix:///s?db=0&blobs=/mnt/a", tenant="b")
        open_store("redis://h?tenant=a", tenant="b")
        assert redis == [
            (
                "rediss://u:p@h:1/2?ssl_cert_reqs=none",
                {"tenant": "a", "ttl": "7d", "history": 3, "sliding": False},
            ),
            ("unix:///s?db=0", {"blobs": "/mnt/a", "tenant": "b"}),
            ("redis://h", {"tenant": "b"}),
        ]

    def test_settings_of_a_disk(self, tmp_path):
        with open_store(f"file:{tmp_path}/s?log=tokens&size_limit=1000000&create=true") as store:
            assert store.stats().size_limit == 1_000_000

    def test_the_users_own(self, tmp_path, monkeypatch):
        monkeypatch.setenv("RWKV_STATE_DIR", str(tmp_path / "own"))
        with open_store() as store:
            assert isinstance(store, DiskStateStore)
            assert store.path == tmp_path / "own"
        monkeypatch.setenv("RWKV_STATE_DIR", "memory:own")
        own = open_store()
        assert repr(own) == "MemoryStateStore.named('own')"
        assert own.location == "memory:own"

    def test_nothing_without_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "redis", None)
        with pytest.raises(ImportError, match=r"langchain-rwkv-state\[redis\]"):
            open_store("redis://h")

    @pytest.mark.parametrize(
        ("scheme", "kind"),
        [("redis", RedisStateStore), ("file", DiskStateStore), ("memory", MemoryStateStore)],
    )
    def test_with_every_setting_that_the_class_has(self, scheme, kind):
        known = set(inspect.signature(kind).parameters) - {"url", "path", "clock"}
        assert set(urls.SCHEMES[scheme]) == known


class TestWhatItRefuses:
    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("reddis://h", "'reddis'.*redis:, rediss:, unix:, file:, memory:.*mean redis:?"),
            ("s3://bucket", "'s3'.*redis:, rediss:, unix:, file:, memory:"),
            ("redis://h?tenat=a", "'tenat': did you mean tenant?"),
            ("memory:?tenant=a", "'tenant': it may have ttl"),
            ("redis://h?ttl=1h&ttl=2h", "'ttl' twice"),
            ("redis://h?ttl=soon", "'soon' is no time to live"),
            ("redis://h?history=-1", "history='-1': give a whole number"),
            ("redis://h?sliding=maybe", "sliding='maybe': say true or false"),
            ("memory:?log=all", "log is one of"),
            ("file:x?codec=zip", "zip"),
            ("file:", "names no directory"),
            ("file://host/x", "another machine, 'host'"),
            ("redis:h", "is to be as redis://HOST:6379/0"),
            ("redis://h:port", "is to be as redis://HOST:6379/0"),
            ("redis://h/name", "is to be as redis://HOST:6379/0"),
            ("unix://host", "is to be as unix:///PATH"),
            ("memory:a#b", "write it as %23"),
            ("redis://h?password=x", "no setting 'password': write redis://USER:PASSWORD@HOST"),
        ],
    )
    def test_says_what_to_do(self, url, says):
        with pytest.raises(ValueError, match=f"(?s){says}"):
            lazy_store(url)

    @pytest.mark.parametrize(
        "wrong",
        [
            f"reddis://:{SECRET}@h",
            f"redis://:{SECRET}/x@h:1/0",
            f"redis://:{SECRET}#x@h",
            f"redis://:{SECRET}?x@h",
            f"redis://:12?{SECRET}@h",
            f"redis://u?:{SECRET}@h",
            f"redis://:{SECRET}@h:port",
            f"redis://:{SECRET}@h?tenat=1",
            f"redis://:{SECRET}@h?ttl=x",
            f"redis://h?password={SECRET}",
            f"redis:{SECRET}@h",
        ],
    )
    def test_and_never_shows_a_password(self, wrong):
        with pytest.raises(ValueError, match=r".") as error:
            lazy_store(wrong)
        assert SECRET not in str(error.value)
        assert error.value.__cause__ is None


class TestAPassword:
    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            (f"redis://:{SECRET}@h/0", "redis://:***@h/0"),
            (f"redis://u:a@{SECRET}@h?tenant=a", "redis://u:***@h?tenant=a"),
            (f"unix://u:{SECRET}@/s?db=1", "unix://u:***@/s?db=1"),
            (f"redis://h?blobs=s3://k:{SECRET}@b/x", "redis://h?blobs=s3://k:***@b/x"),
            ("redis://u@h", "redis://u@h"),
        ],
    )
    def test_is_shown_nowhere(self, url, shown):
        store = lazy_store(url)
        assert store.location == str(StoreUrl.read(url)) == shown
        assert SECRET not in repr(store) + repr(StoreUrl.read(url))
        assert repr(store) == f"open_store({shown!r})"

    def test_travels_in_a_pickle(self, redis):
        store = pickle.loads(pickle.dumps(lazy_store(f"redis://:{SECRET}@h")))
        assert store.sessions() == []
        assert redis == [(f"redis://:{SECRET}@h", {})]

    def test_left_out_comes_from_the_environment(self, redis, monkeypatch):
        monkeypatch.delenv("RWKV_STATE_PASSWORD", raising=False)
        store = lazy_store(lazy_store(f"redis://u:{SECRET}@h").location)
        with pytest.raises(StoreError, match="set RWKV_STATE_PASSWORD"):
            store.sessions()
        monkeypatch.setenv("RWKV_STATE_PASSWORD", "a/b")
        assert store.sessions() == []
        assert redis == [("redis://u:a%2Fb@h", {})]


class TestAStoreThatIsNamed:
    def test_opens_at_its_first_use_and_once(self, redis):
        store = lazy_store("redis://h")
        copied = copy.deepcopy(store)
        assert isinstance(store, LazyUrlStore)
        assert redis == []
        store.begin("bob", STATE)
        assert store.sessions() == ["bob"]
        assert redis == [("redis://h", {})]
        copied.close()
        with pytest.raises(StoreError, match="closed"):
            copied.sessions()
        assert len(redis) == 1

    async def test_opens_beside_the_event_loop(self, redis, monkeypatch):
        seen: list[int] = []

        def redis_class():
            seen.append(threading.get_ident())
            return FakeRedis

        monkeypatch.setattr(urls, "_redis_class", redis_class)
        store = lazy_store("redis://h")
        assert store.beside == {}
        assert await store.asessions() == []
        assert seen
        assert threading.get_ident() not in seen
        await store.aclose()
        with pytest.raises(StoreError, match="closed"):
            await store.asessions()

    def test_what_is_kept_beside_it_stays_when_it_opens(self, redis):
        store = lazy_store("redis://beside")
        store.beside["filings"] = kept = type("Kept", (), {"is_needed": False})()
        store.sessions()
        assert store.beside["filings"] is store.opened().beside["filings"] is kept

    def test_has_what_its_class_has(self, redis):
        store: Any = lazy_store("redis://h")
        assert store.codec == "exact"
        with pytest.raises(AttributeError, match="sesions"):
            _ = store.sesions

    def test_fails_at_each_use_and_opens_when_it_can(self, redis, monkeypatch):
        real = urls._redis_class

        def away():
            raise StoreError("The server is away.")

        monkeypatch.setattr(urls, "_redis_class", away)
        store = lazy_store("redis://h")
        for _ in range(2):
            with pytest.raises(StoreError, match="away"):
                store.sessions()
        monkeypatch.setattr(urls, "_redis_class", real)
        assert store.sessions() == []

    def test_of_the_users_own_keeps_no_name(self, redis, monkeypatch):
        monkeypatch.setenv("RWKV_STATE_DIR", f"redis://:{SECRET}@h")
        store = lazy_store(None)
        assert store.location is None
        assert SECRET not in repr(store)
        assert store.sessions() == []
        assert pickle.loads(pickle.dumps(store)).location is None
