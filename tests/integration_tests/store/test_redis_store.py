"""What a store in Redis promises beyond the contract: between processes, and when things break."""

from __future__ import annotations

import hashlib
import math
import pickle
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from langchain_rwkv_state.errors import (
    SessionConflict,
    StateCorrupt,
    StateExpired,
    StateNotFound,
    StoreError,
    StoreFull,
)
from langchain_rwkv_state.store import RedisStateStore
from langchain_rwkv_state.store.redis import moments, tables
from langchain_rwkv_state.store.redis.blobs import UNCOMMITTED_SECONDS
from langchain_rwkv_state.store.redis.keys import encode, row_place
from langchain_rwkv_state.store.rows import TOMBSTONES, ref_bytes
from langchain_rwkv_state.testing.states import DAY, Reader, SetClock, chat, random_state, turns
from tests.helpers.found import forms_of_ids, forms_of_ref, found_in
from tests.helpers.redis_server import RedisServer, redis_server

Open = Callable[..., RedisStateStore]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as started:
        yield started


@pytest.fixture
def client(server: RedisServer) -> Iterator[Any]:
    with server.client() as opened:
        opened.config_set("maxmemory", 0)
        opened.flushall()
        yield opened
        opened.config_set("maxmemory", 0)


@pytest.fixture
def make(server: RedisServer, client: Any) -> Iterator[Open]:
    """Opens stores; those of another `machine` share nothing in this process."""
    made: list[RedisStateStore] = []

    def opened(machine: int = 0, **settings: Any) -> RedisStateStore:
        url = f"{server.url}&health_check_interval={machine}"
        made.append(RedisStateStore(url, **settings))
        return made[-1]

    yield opened
    for store in made:
        store.close()


@pytest.fixture
def store(make: Open) -> RedisStateStore:
    return make()


def key_of(store: RedisStateStore, ref: str) -> bytes:
    """Returns the key of a state's bytes."""
    row = store._view().state(ref)
    key = store._backend.keys.bytes_key(row.blob)  # type: ignore[attr-defined]
    assert isinstance(key, bytes)
    return key


# -- two machines, two tenants -------------------------------------------------------------------


def test_two_machines_share_sessions_and_one_secret(make: Open) -> None:
    here, there = make(0), make(1)
    refs = turns(here, "bob", 2)
    assert there.head("bob") == refs[-1]
    assert there.get(refs[-1]) == here.get(refs[-1])
    mine, theirs = here.stage(random_state([8])), there.stage(random_state([9]))
    with pytest.raises(StateNotFound):
        there.get(mine)
    there.commit("bob", theirs, refs[-1])
    with pytest.raises(SessionConflict, match=theirs):
        here.commit("bob", mine, refs[-1])
    assert here.put(random_state([5])) == there.put(random_state([5]))
    assert here.enter_queue("bob", "a", 15) == 0
    assert there.enter_queue("bob", "b", 15) == 1
    assert here.leave_queue("bob", "a")
    assert [turn.token for turn in there.queue("bob")] == ["b"]
    assert here.check().sound


def test_objects_of_one_process_over_one_tenant_share_what_is_staged(make: Open) -> None:
    ref = make().stage(random_state([1]))
    make().commit("bob", ref, None)
    with pytest.raises(StateNotFound):
        make(tenant="other").get(ref)


def test_a_commit_that_arrives_after_all_finds_its_file(
    make: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import redis

    store = make(blobs=tmp_path, large_bytes=0)
    client = store._backend.client  # type: ignore[attr-defined]
    own, late = client.fcall, []

    def lose(*args: Any) -> Any:
        late.append(args)
        raise redis.exceptions.TimeoutError("no answer")

    monkeypatch.setattr(client, "fcall", lose)
    ref = store.stage(random_state([8]))
    with pytest.raises(StoreError, match="not known"):
        store.commit("bob", ref, None)
    assert store.head("bob") is None
    assert own(*late[-1]) == b"done"
    assert store.head("bob") == ref
    assert make(1, blobs=tmp_path).get(ref) == random_state([8])


def test_what_a_server_is_to_promise_is_looked_at_by_each_object(make: Open, client: Any) -> None:
    client.config_set("appendfsync", "everysec")
    try:
        make(persistence="everysec")
        with pytest.raises(StoreError, match="may lose turns"):
            make()
    finally:
        client.config_set("appendfsync", "always")
    make()


def test_one_tenant_sees_nothing_of_another(make: Open) -> None:
    mine, theirs = make(tenant="a:s"), make(tenant="a")
    refs = turns(mine, "bob", 2)
    mine.keep(refs[0], "thread")
    assert theirs.sessions() == []
    assert (theirs.stats().sessions, theirs.stats().states, theirs.stats().nbytes) == (0, 0, 0)
    assert theirs.put(mine.get(refs[1])) != refs[1]
    for ref in refs:
        with pytest.raises(StateNotFound):
            theirs.get(ref)
    assert theirs.kept("thread") == []
    assert theirs.release("thread") == 0
    assert not theirs.delete_session("bob")
    assert mine.head("bob") == refs[1]


@pytest.mark.parametrize("tenant", ["}{", "a*b?[c]", "nul\x00", "日本", "{x}:y"])
def test_a_tenant_may_have_any_name(make: Open, client: Any, tenant: str) -> None:
    turns(make(tenant=tenant), "bob", 1)
    assert make(tenant=tenant).sessions() == ["bob"]
    tags = {key[: key.index(b"}") + 1] for key in client.scan_iter()}
    assert len(tags) == 1, "all keys lie in one slot of a cluster"


@pytest.mark.parametrize("tenant", ["", None, 7, "x" * 513])
def test_other_tenants_are_refused(make: Open, tenant: Any) -> None:
    with pytest.raises(ValueError, match="A tenant name is a text"):
        make(tenant=tenant)


def test_a_store_travels_as_its_url_and_settings(make: Open) -> None:
    store = make(tenant="t", history=3)
    turns(store, "bob", 1)
    copy = pickle.loads(pickle.dumps(store))
    assert copy.sessions() == ["bob"]
    assert repr(copy) == repr(store)
    assert "health_check" not in repr(store)
    copy.close()


# -- a command that is sent twice ----------------------------------------------------------------


def test_a_commit_that_is_sent_again_happens_once(
    store: RedisStateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = turns(store, "bob", 1)
    client = store._backend.client  # type: ignore[attr-defined]
    own = client.fcall

    def twice(*args: Any) -> Any:
        own(*args)
        return own(*args)

    monkeypatch.setattr(client, "fcall", twice)
    ref = store.stage(random_state([8]))
    store.commit("bob", ref, first)
    store.append_unread("bob", ['"one"'])
    assert store.session("bob").n_turns == 2  # type: ignore[union-attr]
    assert store.session("bob").unread == ('"one"',)  # type: ignore[union-attr]
    assert store.enter_queue("bob", "mine", 15) == 0
    assert len(store.queue("bob")) == 1
    assert store.rewind("bob") == first
    assert store.check().sound


def test_a_reply_that_is_lost_is_no_conflict(
    store: RedisStateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import redis

    (first,) = turns(store, "bob", 1)
    pool = store._backend.client.connection_pool  # type: ignore[attr-defined]
    kind = pool.connection_class
    lost: list[object] = []
    own = kind.read_response

    def read(connection: Any, *args: Any, **options: Any) -> Any:
        reply = own(connection, *args, **options)
        if reply == b"done" and not lost:
            lost.append(reply)
            connection.disconnect()
            raise redis.exceptions.ConnectionError("lost")
        return reply

    monkeypatch.setattr(kind, "read_response", read)
    ref = store.stage(random_state([8]))
    store.commit("bob", ref, first)
    assert lost == [b"done"]
    assert [entry.ref for entry in store.log("bob")] == [ref, first]
    assert store.check().sound


def test_a_reply_reads_the_same_here_and_there_whatever_the_servers_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "en_US.utf8"
    words = ["localedef", "-i", "en_US", "-f", "UTF-8", str(made)]
    if not shutil.which(words[0]) or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("no locale can be made here: it takes Debian's package locales")
    monkeypatch.setenv("LOCPATH", str(tmp_path))
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")
    with (
        redis_server() as started,
        RedisStateStore(started.url, timeout_seconds=1, history=0) as store,
        started.client() as client,
    ):
        with client.pipeline() as pipeline:
            for number in range(20):
                ref = f"rwkv1-{hashlib.sha256(b'%d' % number).hexdigest()}"
                place = row_place(store._backend.keys, TOMBSTONES, (ref_bytes(ref),))  # type: ignore[attr-defined]
                pipeline.hset(*place, encode(TOMBSTONES, TOMBSTONES.pack((ref, 1e12))))
            pipeline.execute()
        report = store.check(fix=True)  # which reads all tombstones in one transaction
        assert report.repaired, report.problems
        assert store.check().sound


def test_functions_that_the_server_lost_are_loaded_again(
    store: RedisStateStore, client: Any
) -> None:
    (ref,) = turns(store, "bob", 1)
    client.function_flush()
    assert store.sessions() == ["bob"]
    client.function_flush()
    store.commit("bob", store.stage(random_state([8])), ref)
    assert store.check().sound


def test_a_server_that_is_gone_is_a_store_error() -> None:
    with redis_server() as alone:
        store = RedisStateStore(alone.url, timeout_seconds=2)
        (ref,) = turns(store, "bob", 1)
        mine = store.stage(random_state([8]))
        alone.kill()
        with pytest.raises(StoreError, match="connection to Redis is lost"):
            store.commit("bob", mine, ref)
        alone.start()
        assert store.head("bob") == ref
        store.commit("bob", mine, ref)
        assert store.check().sound
        store.close()


# -- time ----------------------------------------------------------------------------------------


def test_bytes_that_nothing_holds_go_by_themselves(
    store: RedisStateStore, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = store.stage(random_state([1]))
    backend: Any = store._backend
    monkeypatch.setattr(backend, "transact", _broken)
    monkeypatch.setattr(backend, "drop_blobs", lambda _: None)
    with pytest.raises(StoreError, match="broken"):
        store.commit("bob", ref, None)
    (key,) = client.keys("*:b:*")
    assert 0 < client.ttl(key) <= UNCOMMITTED_SECONDS
    monkeypatch.undo()
    assert store.check().sound
    store.commit("bob", ref, None)
    assert client.ttl(key_of(store, ref)) >= 37 * DAY
    store.commit("bob", ref, ref, ttl=math.inf)
    assert client.ttl(key_of(store, ref)) == -1
    store.delete_session("bob")
    assert client.keys("*:b:*") == [key], "one that was never named, and goes"


def _broken(*_: object, **__: object) -> None:
    raise StoreError("broken")


def test_bytes_live_as_long_as_the_last_who_holds_them(
    make: Open, client: Any, clock: SetClock
) -> None:
    store = make(clock=clock)
    ref = store.put(random_state([1]), ttl=60)
    assert client.ttl(key_of(store, ref)) <= 8 * DAY + 60
    store.keep(ref, "thread", ttl=100 * DAY)
    assert client.ttl(key_of(store, ref)) >= 107 * DAY
    store.put(random_state([1]), ttl=1)
    assert client.ttl(key_of(store, ref)) >= 107 * DAY
    clock.advance(90 * DAY)
    store.get(ref)
    assert client.ttl(key_of(store, ref)) >= 107 * DAY


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


def test_what_redis_let_expire_is_pruned_as_if_it_were_there(
    make: Open, client: Any, clock: SetClock
) -> None:
    store = make(clock=clock)
    (ref,) = turns(store, "bob", 1)
    key = key_of(store, ref)
    clock.advance(31 * DAY)
    with pytest.raises(StateExpired):
        store.get(ref)
    clock.advance(8 * DAY)
    client.delete(key)  # as Redis does by then
    with pytest.raises(StateNotFound):
        store.get(ref)
    assert store.check().sound
    assert store.prune() > 0
    assert store.stats().nbytes == 0
    assert store.check().sound


def test_by_default_all_go_by_the_servers_clock(make: Open, client: Any) -> None:
    store = make()
    turns(store, "bob", 1)
    seconds, micros = client.time()
    made = store.session("bob").created_seconds  # type: ignore[union-attr]
    assert abs(made - seconds - micros / 1e6) < 5


# -- damage --------------------------------------------------------------------------------------


def flip(client: Any, key: bytes, field: bytes) -> None:
    """Changes one byte of a row."""
    data = bytearray(client.hget(key, field))
    data[len(data) // 2] ^= 1
    client.hset(key, field, bytes(data))


@pytest.mark.parametrize(
    ("kind", "field"),
    [(b"s:bob", b"0"), (b"s:bob", b"4"), (b"r:*", b"h0bob"), (b"r:*", b"h2"), (b"r:*", b"row")],
)
def test_a_changed_row_is_told_and_mended(
    make: Open, client: Any, kind: bytes, field: bytes
) -> None:
    store = make(history=3)
    refs = turns(store, "bob", 4)
    store.put(random_state([1]))
    key = next(key for key in client.keys(b"*:" + kind) if client.hexists(key, field))
    flip(client, key, field)
    assert store.check().problems
    assert store.check(fix=True).repaired
    store.check(fix=True)
    assert store.check().sound
    assert store.head("bob") in refs


def test_a_changed_session_is_damaged_and_not_new(store: RedisStateStore, client: Any) -> None:
    (ref,) = turns(store, "bob", 1)
    (key,) = client.keys("*:s:bob")
    flip(client, key, b"row")
    for verb in (
        lambda: store.head("bob"),
        lambda: store.session("bob"),
        lambda: store.commit("bob", ref, None),
    ):
        with pytest.raises(StateCorrupt, match="'bob'"):
            verb()
    assert store.sessions() == ["bob"]
    client.hdel(key, "row")
    with pytest.raises(StateCorrupt, match="is lost or was changed"):
        store.head("bob")
    assert store.delete_session("bob")
    store.check(fix=True)
    assert store.check().sound


def test_a_row_under_another_key_is_no_row(store: RedisStateStore, client: Any) -> None:
    turns(store, "bob", 1)
    turns(store, "al", 1)
    (bob,), (al,) = client.keys("*:s:bob"), client.keys("*:s:al")
    client.hset(al, "row", client.hget(bob, "row"))
    with pytest.raises(StateCorrupt, match="'al'"):
        store.session("al")


def test_changed_bytes_are_told_and_the_session_goes_back(
    store: RedisStateStore, client: Any
) -> None:
    refs = turns(store, "bob", 2)
    key = key_of(store, refs[1])
    data = bytearray(client.get(key))
    data[-1] ^= 1
    client.set(key, bytes(data), keepttl=True)
    with pytest.raises(StateCorrupt, match=r"store\.rewind\('bob'\)"):
        store.get(refs[1])
    assert not store.check(fix=True).sound
    assert store.head("bob") == refs[0]
    assert store.check().sound


def test_an_index_that_lost_an_entry_is_made_again(make: Open, client: Any) -> None:
    store = make(log="tokens")
    refs, _ = chat(store, Reader(), "bob", 3)
    store.keep(refs[-1], "thread", ttl=50)
    store.enter_queue("bob", "mine", 15)
    indices = [key for key in client.keys("*") if client.type(key) == b"zset"]
    assert len(indices) >= 8
    before = {key: client.zrange(key, 0, -1, withscores=True) for key in indices}
    for key in indices:
        client.delete(key)
    client.zadd(indices[0], {b"nobody": 0})
    assert not store.check().sound
    assert not store.check(fix=True).sound
    assert store.check().sound
    assert {key: client.zrange(key, 0, -1, withscores=True) for key in indices} == before
    assert store.sessions() == ["bob"]


@pytest.mark.parametrize("broken", ["totals", "names", "version"])
def test_a_commit_that_could_not_be_done_to_its_end_is_not_begun(
    store: RedisStateStore, client: Any, broken: str
) -> None:
    (first,) = turns(store, "bob", 1)
    keys = store._backend.keys  # type: ignore[attr-defined]
    ref = store.stage(random_state([5]), parent=first)
    if broken == "version":  # nothing but a number that goes up: it begins anew
        client.hset(keys.totals, "version", "many")
        store.commit("bob", ref, first)
        assert store.check().sound
        return
    if broken == "totals":
        client.hset(keys.totals, "nbytes", "many")
    else:
        client.delete(keys.names)
        client.set(keys.names, "a text")
    before = {key: client.dump(key) for key in client.keys("*") if b":b:" not in key}
    with pytest.raises(StoreError, match="was changed"):
        store.commit("bob", ref, first)
    assert {key: client.dump(key) for key in client.keys("*") if b":b:" not in key} == before
    assert store.head("bob") == first


@pytest.mark.parametrize("command", ["zadd", "pexpire", "hincrby", "unlink"])
def test_a_user_who_may_not_do_all_of_a_commit_does_nothing_of_it(
    make: Open, server: RedisServer, client: Any, command: str
) -> None:
    sees = make(history=0)
    (first,) = turns(sees, "bob", 1)
    client.acl_setuser("al", True, passwords=["+pw"], commands=["+@all", f"-{command}"], keys=["*"])
    try:
        url = server.url.replace("unix://", "unix://al:pw@")
        with RedisStateStore(url, history=0) as store:
            ref = store.stage(random_state([5]), parent=first)
            with pytest.raises(StoreError, match=command.upper()):
                store.commit("bob", ref, first)
    finally:
        client.acl_deluser("al")
    assert sees.head("bob") == first
    assert sees.check().sound


def test_a_share_that_is_unmounted_meanwhile_takes_no_state_and_costs_none(
    make: Open, tmp_path: Path
) -> None:
    share, off = tmp_path / "share", tmp_path / "off"
    share.mkdir()
    store = make(blobs=share, large_bytes=0)
    refs = turns(store, "bob", 2)
    ref = store.stage(random_state([8]), parent=refs[1])
    share.rename(off)
    share.mkdir()
    for verb in (
        lambda: store.commit("bob", ref, refs[1]),
        lambda: store.get(refs[1]),
        lambda: store.check(fix=True),
    ):
        with pytest.raises(StoreError, match="still mounted"):
            verb()
    assert list(share.iterdir()) == []
    share.rmdir()
    off.rename(share)
    assert store.head("bob") == refs[1]
    store.commit("bob", ref, refs[1])
    assert store.get(ref) == random_state([8])
    assert store.check().sound


# -- a server that lost all ----------------------------------------------------------------------


def test_who_goes_on_in_an_emptied_server_is_read_by_who_comes_later(
    make: Open, client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here, also = (make(each, blobs=tmp_path, large_bytes=0) for each in (0, 1))
    (old,) = turns(here, "bob", 1)
    client.flushall()
    ref = here.stage(random_state([8]), parent=old)
    with pytest.raises(SessionConflict):
        here.commit("bob", ref, old)
    (new,) = turns(here, "eve", 1)
    turns(also, "al", 1)
    assert "Redis has lost all" in caplog.text
    later = make(2, blobs=tmp_path, large_bytes=0)
    assert later.sessions() == ["al", "eve"]
    assert later.get(new) == here.get(new)
    assert later.check().sound


@pytest.mark.parametrize("lost", ["all", "secret", "folder"])
def test_nothing_is_written_into_another_store_than_the_one_that_was_opened(
    make: Open, client: Any, tmp_path: Path, lost: str
) -> None:
    here = make(blobs=tmp_path, large_bytes=0)
    turns(here, "bob", 1)
    keys = here._backend.keys  # type: ignore[attr-defined]
    if lost == "all":
        client.flushall()
        turns(make(1, blobs=tmp_path, large_bytes=0), "carl", 1)
    else:
        client.delete(keys.meta if lost == "secret" else keys.folder)
    before = {key: client.dump(key) for key in client.keys("*")}
    with pytest.raises(StoreError, match="another store by now"):
        turns(here, "eve", 1)
    assert {key: client.dump(key) for key in client.keys("*")} == before
    if lost == "all":
        assert make(blobs=tmp_path, large_bytes=0).sessions() == ["carl"]


@pytest.mark.parametrize("field", [b"007", b"9" * 30, b"9" * 5000])
def test_a_field_that_is_no_rows_hides_no_row(
    store: RedisStateStore, client: Any, field: bytes
) -> None:
    refs = turns(store, "bob", 2)
    client.hset(store._backend.keys.session(b"bob"), field, "x")  # type: ignore[attr-defined]
    assert [entry.ref for entry in store.log("bob")] == refs[::-1]
    assert store.check().sound


@pytest.mark.parametrize("member", [b"", b"h", b"hx", b"\xff\xff"])
def test_a_member_that_is_no_holder_is_told_and_taken_out(
    store: RedisStateStore, client: Any, member: bytes
) -> None:
    (ref,) = turns(store, "bob", 1)
    keys = store._backend.keys  # type: ignore[attr-defined]
    for index in (keys.holds(ref_bytes(ref)), keys.base + b"due:holds"):
        client.zadd(index, {member: 0})
    assert store.fork("bob", "twin") == ref
    assert not store.check(fix=True).sound
    assert store.check().sound
    client.zadd(keys.base + b"due:holds", {member: 0})
    store.prune()
    assert store.check().sound


# -- redaction -----------------------------------------------------------------------------------


def test_redacted_turns_are_off_the_servers_disk(
    make: Open, client: Any, server: RedisServer
) -> None:
    client.config_set("rdbcompression", "no")
    store, runtime = make(log="tokens"), Reader()
    said = [[number * 1111 + each for each in range(6)] for number in range(1, 5)]
    refs: list[str | None] = [None]
    state = runtime.zero_state()
    for ids in said:
        _, state = runtime.forward(ids, state)
        refs.append(store.stage(state, parent=refs[-1], tokens=ids))
        store.commit("bob", refs[-1] or "", refs[-2])
    gone = refs[2] or ""
    wanted = {**forms_of_ids(said[1]), **forms_of_ref(gone)}
    assert found_in(server.folder / "appendonlydir", wanted)
    result = store.redact("bob", [2], runtime)
    assert "bob" in str(result)
    assert store.session("bob").n_turns == 3  # type: ignore[union-attr]
    with pytest.raises(StateNotFound):
        store.get(gone)
    assert found_in(server.folder / "appendonlydir", wanted) == []
    assert store.check().sound


def test_redacted_states_leave_no_file_though_whoever_was_to_delete_it_died(
    make: Open, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, runtime = make(log="tokens", blobs=tmp_path, large_bytes=0), Reader()
    state, ref = runtime.zero_state(), None
    for ids in ([1, 2, 3], [4, 5, 6]):
        _, state = runtime.forward(ids, state)
        before, ref = ref, store.stage(state, parent=ref, tokens=ids)
        store.commit("bob", ref, before)
    backend = store._backend
    monkeypatch.setattr(backend, "drop_blobs", lambda _: None)
    client.set(f"{backend.keys.folder}:hold", "1")  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match="not all that was deleted is off the disk yet"):
        store.redact("bob", [2], runtime)
    assert list(tmp_path.rglob(f"{(ref or '')[-64:]}*"))
    client.delete(f"{backend.keys.folder}:hold")  # type: ignore[attr-defined]
    make(1, blobs=tmp_path)
    assert not list(tmp_path.rglob(f"{(ref or '')[-64:]}*"))


# -- room ----------------------------------------------------------------------------------------


def test_a_full_redis_refuses_and_what_was_there_stays(store: RedisStateStore, client: Any) -> None:
    refs = turns(store, "bob", 2)
    mine = store.stage(random_state([8]))
    client.config_set("maxmemory", 1)
    for verb in (
        lambda: store.commit("bob", mine, refs[-1]),
        lambda: store.append_unread("bob", ['"one"']),
        lambda: store.keep(refs[0], "thread"),
    ):
        with pytest.raises(StoreFull):
            verb()
    assert store.head("bob") == refs[-1]
    assert store.get(refs[-1]) == random_state([*b"bob", 0, 1])
    assert store.delete_session("bob")
    client.config_set("maxmemory", 0)
    assert store.check().sound
    store.commit("bob", mine, None)


def test_a_full_redis_can_be_opened_to_make_room_in_it(
    store: RedisStateStore, make: Open, client: Any
) -> None:
    turns(store, "bob", 1)
    client.config_set("maxmemory", 1)
    another = make(1)
    assert another.sessions() == ["bob"]
    assert another.delete_session("bob")


def test_large_states_lie_in_a_shared_directory(
    make: Open, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(blobs=tmp_path)
    monkeypatch.setattr(store._backend._blobs, "_large_bytes", 1)  # type: ignore[attr-defined]
    refs = turns(store, "bob", 3)
    assert store.get(refs[-1]) == random_state([*b"bob", 0, 1, 2])
    assert client.keys("*:b:*") == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert make(1, blobs=tmp_path).get(refs[-1]) == store.get(refs[-1])
    assert store.check().sound
    files[0].unlink()
    assert not store.check(fix=True).sound
    assert store.check().sound
    store.delete_session("bob")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# -- many ----------------------------------------------------------------------------------------


def test_what_reads_much_is_of_one_moment_beside_writers(
    make: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "_MOST", 10)
    here, there = make(0), make(1)
    for number in range(10):
        turns(here, f"s{number}", 1)
        here.keep(here.head(f"s{number}") or "", "thread")
    done = threading.Event()
    conflicts: list[Exception] = []

    def write() -> None:
        head, number = there.head("s0"), 0
        while not done.is_set():
            ref = there.stage(random_state([number, 99]))
            try:
                there.commit("s0", ref, head)
            except SessionConflict as error:
                conflicts.append(error)
            head, number = ref, number + 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            assert here.check().problems == ()
        assert here.check(fix=True).repaired == ()
        assert here.release("thread") == 10
    finally:
        done.set()
        writer.join()
    assert not conflicts
    assert here.check().sound
    assert here.kept("thread") == []


def test_who_holds_writers_up_and_dies_does_so_for_seconds_only(
    store: RedisStateStore, client: Any
) -> None:
    (ref,) = turns(store, "bob", 1)
    backend: Any = store._backend
    client.set(backend.keys.pause, "another", px=300)
    assert store.head("bob") == ref, "whoever reads goes on"
    store.commit("bob", store.stage(random_state([8])), ref)
    assert not client.exists(backend.keys.pause)


def test_names_are_listed_in_pages(store: RedisStateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (moments, tables):
        monkeypatch.setattr(module, "PAGE", 3)
    for name in "gfedcba":
        store.append_unread(name, ['"one"'])
    assert store.sessions() == list("abcdefg")
    store.append_unread("aa", ['"one"'])
    assert store.sessions("a") == ["a", "aa"]


def test_places_in_queues_with_ends_of_their_own_are_all_swept(
    make: Open, clock: SetClock, client: Any
) -> None:
    store = make(clock=clock)
    for number, name in enumerate("cab"):
        store.enter_queue(name, "mine", 10 + number)
        store.enter_queue(name, "another", 30 - number)
    clock.advance(25)
    store.prune()
    assert [len(store.queue(name)) for name in "abc"] == [1, 1, 1]
    clock.advance(25)
    store.prune()
    assert client.keys("*:q:*") == client.keys("*:queues") == []


def test_a_use_of_an_owner_reads_only_what_is_due(
    make: Open, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(clock=clock)
    refs = [store.put(random_state([number])) for number in range(30)]
    for ref in refs:
        store.keep(ref, "thread", ttl=100)
    backend: Any = store._backend
    asked: list[Any] = []
    own = backend._moments.run

    def run(ops: Any) -> Any:
        asked.extend(ops)
        return own(ops)

    monkeypatch.setattr(backend._moments, "run", run)
    store.keep(refs[0], "thread", ttl=100)
    assert len(asked) < 15
    clock.advance(60)
    store.keep(refs[0], "thread", ttl=100)
    clock.advance(60)
    assert len(store.kept("thread")) == 30
