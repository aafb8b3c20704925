"""A store in Redis by its URL: in a chat model, at the command line, and for pinned prefixes."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from typer.testing import CliRunner

from langchain_rwkv_state import ChatRWKV, PrefixStateCache, RWKVStateHistory
from langchain_rwkv_state.cli import app
from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.prefix_cache import shared
from langchain_rwkv_state.serve import ServeSettings
from langchain_rwkv_state.serve.tenants import Tenants
from langchain_rwkv_state.store import open_store
from langchain_rwkv_state.store.redis.pins import CODE, RedisPinRows
from langchain_rwkv_state.store.redis.store import RedisStateStore
from tests.helpers.redis_server import RedisServer, redis_server
from tests.helpers.served_tenants import write_keys

MakeChat = Callable[..., ChatRWKV]
SYSTEM = SystemMessage("You are a helper that answers in few words, and in the words it was asked.")
NO_CACHE = {"RWKV_PREFIX_CACHE_DIR": ""}
_tenants = count()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as started:
        yield started


@pytest.fixture
def url(server: RedisServer) -> str:
    """Names a store of the test's own."""
    return f"{server.url}&tenant=urls{next(_tenants)}"


@pytest.fixture
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(shared, "_RETRY_SECONDS", 0.0)


def cache_of(chat: ChatRWKV) -> PrefixStateCache:
    assert chat.prefix_cache is not None
    return chat.prefix_cache


def reused(chat: ChatRWKV, *messages: Any, **options: Any) -> int:
    """Returns how many tokens of a prompt a chat model did not have to read."""
    answer = chat.invoke(list(messages), max_tokens=1, **options)
    assert answer.usage_metadata is not None
    return answer.usage_metadata["input_token_details"]["cache_read"]


def eventually(holds: Callable[[], bool]) -> bool:
    """Waits until something holds, for ten seconds at most."""
    end = time.monotonic() + 10
    while not holds():
        if time.monotonic() > end:
            return False
        threading.Event().wait(0.02)
    return True


class TestAChatModel:
    def test_begins_a_session_that_another_goes_on_with(
        self, make_chat: MakeChat, url: str
    ) -> None:
        one, other = make_chat(7, store=url), make_chat(7, store=url)
        one.with_session("bob").invoke("Hello.")
        other.with_session("bob").invoke("Again.")
        with open_store(url) as store:
            assert isinstance(store, RedisStateStore)
            assert len(store.log("bob")) == 2

    def test_commits_what_another_staged(self, make_chat: MakeChat, url: str) -> None:
        ref = make_chat(7, store=url).invoke("Hello.").response_metadata["rwkv_state"]
        with open_store(url) as store:
            store.commit("bob", ref, None)
            assert store.head("bob") == ref

    def test_and_a_history_answer_beside_the_event_loop(
        self, make_chat: MakeChat, url: str
    ) -> None:
        chat = make_chat(7, store=url)
        history = RWKVStateHistory("bob", url)

        async def turn() -> None:
            said = [*await history.aget_messages(), HumanMessage("Hello.")]
            await history.aadd_messages([said[-1], await chat.ainvoke(said)])

        asyncio.run(turn())
        with open_store(url) as store:
            assert store.sessions() == ["bob"]

    def test_travels_by_the_stores_name(self, make_chat: MakeChat, server: RedisServer) -> None:
        with RedisStateStore(server.url, tenant="a/b") as store:
            assert store.location == f"{server.url}&tenant=a%2Fb"
            store.append_unread("bob", ['"hello"'])
            named = make_chat(7, store=make_chat(7, store=store).store_location)
            assert named.store.sessions() == ["bob"]

    def test_of_one_tenant_sees_nothing_of_another(self, make_chat: MakeChat, url: str) -> None:
        make_chat(7, store=url).with_session("bob").invoke("Hello.")
        with open_store(url, tenant="somebody else") as other:
            assert other.sessions() == []


class TestTheCommandLine:
    def test_goes_on_where_the_store_is(self, make_chat: MakeChat, url: str) -> None:
        make_chat(7, store=url).with_session("bob").invoke("Hello.")
        env = {"RWKV_STATE_DIR": url}
        listed = json.loads(CliRunner().invoke(app, ["sessions", "--json"], env=env).stdout)
        assert [each["session"] for each in listed["sessions"]] == ["bob"]
        assert CliRunner().invoke(app, ["fork", "bob", "ada"], env=env).exit_code == 0
        with open_store(url) as store:
            assert store.sessions() == ["ada", "bob"]

    def test_says_that_a_server_is_away(self) -> None:
        words = ["sessions", "--store", "redis://u:s3cret@127.0.0.1:1"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 1
        assert "s3cret" not in result.output


@pytest.mark.usefixtures("looks_at_once")
class TestPinnedPrefixes:
    @pytest.fixture
    def replica(self, make_chat: MakeChat, url: str) -> Iterator[Callable[..., ChatRWKV]]:
        """Makes a chat model with a cache of its own over the same store."""
        caches: list[PrefixStateCache] = []

        def make(**options: Any) -> ChatRWKV:
            caches.append(PrefixStateCache(shared=url))
            chat = make_chat(7, store=url, prefix_cache=caches[-1], **options)
            chat.loaded()
            return chat

        yield make
        for cache in caches:
            cache.close()

    def test_of_one_replica_are_found_by_the_others(self, replica: Callable[..., ChatRWKV]) -> None:
        one, other = replica(), replica()
        expected = other.invoke([SYSTEM, HumanMessage("One.")], temperature=0).content
        cache_of(other).clear()
        assert one.pin_prefix([SYSTEM], name="support") == 0
        later = replica()
        assert eventually(lambda: reused(other, SYSTEM, HumanMessage("Two.")) > 0)
        assert eventually(lambda: reused(later, SYSTEM, HumanMessage("Two.")) > 0)
        assert later.invoke([SYSTEM, HumanMessage("One.")], temperature=0).content == expected
        assert cache_of(other).unpin("support")
        assert eventually(
            lambda: reused(later, SYSTEM, "x") >= 0 and not cache_of(later).stats().pinned
        )

    def test_of_the_command_line_are_found_by_all(
        self, replica: Callable[..., ChatRWKV], url: str, tmp_path: Path
    ) -> None:
        chat = replica()
        prompts = tmp_path / "prompts.yaml"
        prompts.write_text(json.dumps([{"name": "support", "system": SYSTEM.text}]))
        words = ["warm", "--file", str(prompts), "--model", chat.model, "--store", url]
        result = CliRunner().invoke(app, [*words, "--strategy", "package cpu fp32"], env=NO_CACHE)
        assert result.exit_code == 0, result.output
        assert f"PrefixStateCache(shared={open_store(url).location!r})" in result.output
        later = replica()
        assert eventually(lambda: reused(later, SYSTEM, HumanMessage("Two.")) > 0)

    def test_stay_with_their_salt(self, replica: Callable[..., ChatRWKV]) -> None:
        replica(cache_salt="ada").pin_prefix([SYSTEM], name="support")
        assert reused(replica(), SYSTEM, HumanMessage("One.")) == 0
        assert reused(replica(cache_salt="bob"), SYSTEM, HumanMessage("One.")) == 0
        assert reused(replica(cache_salt="ada"), SYSTEM, HumanMessage("One.")) > 0

    def test_of_a_tenant_of_a_server_are_its_own(
        self, replica: Callable[..., ChatRWKV], url: str, tmp_path: Path
    ) -> None:
        one = replica(cache_salt="alice")
        one.pin_prefix([SYSTEM], name="support")
        keys = write_keys(tmp_path)
        options = {"max_tokens": 1, "temperature": 0}
        tenants = Tenants(
            ServeSettings(
                one.model, "package cpu fp32", store=url, api_key_file=keys, options=options
            )
        )
        try:
            for name, finds in {"alice": True, "bob": False}.items():
                chat = tenants._opened(name).chat
                assert (reused(chat, SYSTEM, HumanMessage("One.")) > 0) == finds
                chat.unload()
                chat.store.close()
        finally:
            tenants.close()

    def test_outlive_an_upkeep_and_a_killed_server(
        self, replica: Callable[..., ChatRWKV], url: str, server: RedisServer
    ) -> None:
        one = replica()
        one.pin_prefix([SYSTEM], name="support")
        with open_store(url) as store:
            store.prune()
            assert store.check(fix=True).sound
        server.restart()
        assert reused(replica(), SYSTEM, HumanMessage("One.")) > 0
        one.pin_prefix([SYSTEM, HumanMessage("Hello.")], name="support")
        with open_store(url) as store:
            assert store.stats().states == 1
            cache_of(one).unpin("support")
            assert store.stats().states == 0

    def test_are_kept_from_no_answer_by_a_server_that_is_away(
        self, make_chat: MakeChat, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache = PrefixStateCache(shared="redis://127.0.0.1:1?timeout_seconds=1")
        chat = make_chat(7, prefix_cache=cache)
        with caplog.at_level(logging.WARNING):
            assert chat.invoke("Hello.").content is not None
            assert eventually(lambda: "not shared for a while" in caplog.text)
        with pytest.raises(StoreError):
            chat.pin_prefix([SYSTEM], name="support")

    def test_rows_bear_being_sent_twice_and_a_server_that_forgot(self, server: RedisServer) -> None:
        with server.client() as client:
            rows = RedisPinRows(client, f"rwkv:{{t{next(_tenants)}}}:".encode())
            assert rows.read(-1) == (0, {})
            for owner in ("pin:a", "pin:a", "pin:b"):
                rows.put(b"k" * 16, owner.encode(), owner)
            client.function_delete(CODE.split("name=")[1].split()[0])
            assert rows.read(0) == (2, {b"k" * 16: b"pin:b"})
            assert rows.read(2) == (2, None)
            assert rows.retired() == ["pin:a"]
            rows.released("pin:a")
            rows.drop([b"k" * 16])
            rows.drop([b"k" * 16])
            assert rows.read(2) == (3, {})
            assert rows.retired() == ["pin:b"]
