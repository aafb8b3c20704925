"""Where the bytes of states lie: in Redis, or in files beside it that all machines share."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from langchain_rwkv_state.errors import StateCorrupt, StoreError
from langchain_rwkv_state.state import encode
from langchain_rwkv_state.store.redis.blobs import UNCOMMITTED_SECONDS, open_blobs
from tests.helpers.states import random_state

REF = "rwkv-state:" + "ab" * 32
STATE = encode(random_state([1]))
MARKER = "rwkv:{t}:blobs"


class DictRedis:
    """The few commands that are used, over a dict."""

    def __init__(self):
        self.values: dict[str, bytes] = {}
        self.expires: dict[str, int] = {}

    def get(self, key):
        return self.values.get(key)

    def getrange(self, key, first, last):
        return self.values.get(key, b"")[first : last + 1]

    def set(self, key, value, *, ex=None, nx=False):
        if not (nx and key in self.values):
            self.values[key] = value.encode() if isinstance(value, str) else value
            self.expires[key] = ex

    def exists(self, key):
        return int(key in self.values)

    def unlink(self, *keys):
        for key in keys:
            self.values.pop(key, None)


@pytest.fixture
def redis():
    return DictRedis()


@pytest.fixture(params=["path", "file", "memory"])
def shared(request, tmp_path):
    """A directory that machines share: as a path, as a URL, and behind fsspec."""
    if request.param == "memory":
        return f"memory://{tmp_path.name}"
    return tmp_path if request.param == "path" else tmp_path.as_uri()


def opened(redis: Any, shared, **settings):
    return open_blobs(redis, shared, MARKER, **settings)


def test_without_a_directory_bytes_are_in_redis_and_expire_unless_committed(redis):
    blobs = opened(redis, None)
    place = blobs.write(redis, "k", REF, [STATE[:9], memoryview(STATE)[9:]])
    assert place == "r:k"
    assert redis.values == {"k": STATE}
    assert redis.expires == {"k": UNCOMMITTED_SECONDS}
    assert blobs.read(place) == STATE
    assert blobs.read_start(place, 20) == STATE[:20]
    blobs.drop([place])
    assert blobs.read(place) is None
    assert blobs.read_start(place, 20) is None
    assert blobs.sweep([]) == 0


def test_large_states_are_files_and_small_ones_stay_in_redis(redis, shared):
    blobs = opened(redis, shared, large_bytes=len(STATE))
    small = blobs.write(redis, "k", REF, [STATE[:-1]])
    large = blobs.write(redis, "l", REF, [STATE[:9], memoryview(STATE)[9:]])
    assert small == "r:k"
    assert large.startswith("f:" + "ab" * 32)
    assert set(redis.values) == {"k", MARKER}
    again = opened(redis, shared)
    assert again.read(large) == STATE
    assert again.read_start(large, 20) == STATE[:20]
    assert again.read(small) == STATE[:-1]
    again.drop([small, large])
    again.drop([small, large])
    assert blobs.read(large) is None
    assert blobs.read_start(large, 20) is None
    assert set(redis.values) == {MARKER}


def test_no_name_is_used_twice(redis, shared):
    blobs = opened(redis, shared, large_bytes=0)
    places = {blobs.write(redis, "k", REF, [STATE]) for _ in range(5)}
    assert len(places) == 5


def test_a_sweep_takes_old_files_that_no_row_names(redis, shared, tmp_path, monkeypatch):
    blobs = opened(redis, shared, large_bytes=0)
    kept, lost = (blobs.write(redis, "k", REF, [STATE]) for _ in range(2))
    assert blobs.sweep([kept]) == 0, "somebody may be about to name it"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3700)
    young = blobs.write(redis, "k", REF, [STATE])
    for path in tmp_path.glob(f"*/??/{young[2:]}*"):
        os.utime(path, (now + 3700, now + 3700))
    assert blobs.orphans([kept]) == [lost]
    assert blobs.sweep([kept]) == 1
    assert blobs.read(lost) is None
    assert blobs.read(kept) == blobs.read(young) == STATE


def test_no_file_is_deleted_while_a_backup_holds_them(redis, shared, monkeypatch):
    blobs = opened(redis, shared, large_bytes=0)
    place = blobs.write(redis, "k", REF, [STATE])
    redis.set(f"{MARKER}:hold", "1")
    blobs.drop([place])
    monkeypatch.setattr("langchain_rwkv_state.store.redis.blobs.ORPHAN_SECONDS", -1.0)
    assert blobs.sweep([]) == 0
    assert blobs.read(place) == STATE
    redis.unlink(f"{MARKER}:hold")
    assert blobs.sweep([]) == 1
    assert blobs.read(place) is None


def test_all_files_of_a_state_are_erased_but_not_under_a_backup(redis, shared):
    blobs = opened(redis, shared, large_bytes=0)
    named, lost = (blobs.write(redis, "k", REF, [STATE]) for _ in range(2))
    other = blobs.write(redis, "k", "rwkv-state:" + "abc" + "d" * 61, [STATE])
    redis.set(f"{MARKER}:hold", "1")
    with pytest.raises(StoreError, match=f"held for a backup, by the key {MARKER}:hold"):
        blobs.erase({REF[-64:]})
    assert blobs.read(named) == STATE
    redis.unlink(f"{MARKER}:hold")
    blobs.erase({REF[-64:], "0" * 64})
    assert [blobs.read(each) for each in (named, lost, other)] == [None, None, STATE]


def test_tenants_and_other_redises_do_not_sweep_each_other(redis, shared):
    mine = opened(redis, shared, large_bytes=0)
    theirs = opened(DictRedis(), shared, large_bytes=0)
    place = theirs.write(redis, "k", REF, [STATE])
    assert mine.read(place) is None
    assert mine.sweep([]) == 0
    assert theirs.read(place) == STATE


def test_another_directory_is_refused_and_so_is_none(redis, shared, tmp_path):
    opened(redis, shared)
    (tmp_path / "other").mkdir()
    with pytest.raises(StoreError, match="is the share mounted"):
        opened(redis, tmp_path / "other")
    with pytest.raises(StoreError, match="name that directory, blobs="):
        opened(redis, None)
    with pytest.raises(StoreError, match=f"memory://other.*delete the key {MARKER}"):
        opened(redis, "memory://other")


def test_who_was_second_to_name_a_folder_uses_that_of_the_first(redis, tmp_path):
    first = opened(redis, tmp_path, large_bytes=0)
    place = first.write(redis, "k", REF, [STATE])

    class Late(DictRedis):
        """Finds no folder at first, as if both had come at one time."""

        def get(self, key):
            found = self.values.get(key) if self.expires.pop("asked", None) else None
            self.expires["asked"] = 1
            return found

    late = Late()
    late.values = redis.values
    assert opened(late, tmp_path).read(place) == STATE
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_directory_is_not_made(redis, tmp_path):
    with pytest.raises(StoreError, match="is the share mounted"):
        opened(redis, tmp_path / "share")
    assert not (tmp_path / "share").exists()
    assert redis.values == {}


@pytest.mark.parametrize("blobs", ["", "relative/path", "file://elsewhere/share"])
def test_another_path_is_refused(redis, blobs):
    with pytest.raises(ValueError, match=r"blobs is|names a directory of the machine elsewhere"):
        opened(redis, blobs)


def test_a_url_that_nothing_reads_is_refused_without_its_password(redis):
    with pytest.raises(StoreError, match="The states at ftpq://host/x cannot be reached") as found:
        opened(redis, "ftpq://me:hidden@host/x")
    assert "hidden" not in str(found.value)


@pytest.mark.parametrize("large_bytes", [-1, 1.5, True, None])
def test_large_bytes_is_a_number_of_bytes(redis, tmp_path, large_bytes):
    with pytest.raises(ValueError, match="large_bytes is a number of bytes"):
        opened(redis, tmp_path, large_bytes=large_bytes)


def test_places_that_were_changed_are_refused(redis, shared):
    blobs = opened(redis, shared)
    for place in ("f:../../etc/passwd", "f:", "x:k", "k"):
        with pytest.raises(StateCorrupt, match="is not the"):
            blobs.read(place)
    with pytest.raises(StoreError, match="open the store with blobs="):
        opened(DictRedis(), None).read("f:" + "ab" * 32)
    redis.values[MARKER] = b"../elsewhere"
    with pytest.raises(StoreError, match="holds no folder's name"):
        opened(redis, shared)


def test_a_file_that_is_longer_than_its_header_says_is_corrupt(redis, tmp_path):
    blobs = opened(redis, tmp_path, large_bytes=0)
    place = blobs.write(redis, "k", REF, [STATE + bytes(2 << 20)])
    with pytest.raises(StateCorrupt, match="more than its header tells"):
        blobs.read(place)


def test_a_folder_that_is_gone_is_an_error(redis, tmp_path):
    blobs = opened(redis, tmp_path, large_bytes=0)
    (folder,) = tmp_path.iterdir()
    folder.rmdir()
    folder.write_bytes(b"")
    with pytest.raises(StoreError, match="still mounted"):
        blobs.write(redis, "k", REF, [STATE])
