"""A bundle's bytes: a changed one anywhere is refused, and so is a file that was made to deceive.

What a bundle carries is in the store contract; here are the file, its checks and its codecs. The
easy mistake is to test forged files with a wrong digest: see `tests.helpers.bundles`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import threading
import zipfile
from pathlib import Path

import pytest

from langchain_rwkv_state import state as states
from langchain_rwkv_state.errors import (
    RWKVStateError,
    SessionConflict,
    StateCorrupt,
    StateNotFound,
    StoreError,
)
from langchain_rwkv_state.state import CODECS, LOSSY, decode, encode, lossy
from langchain_rwkv_state.store import DiskStateStore, MemoryStateStore, bundle
from tests.helpers.bundles import (
    MARK,
    TINY,
    forged,
    members,
    sealed,
    small_bundle,
    with_manifest,
)
from tests.helpers.states import Reader, chat, head_of, random_state, turns


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bob.zip"


@pytest.fixture
def data(path):
    return small_bundle(path)


@pytest.fixture
def target():
    with MemoryStateStore() as store:
        turns(store, "al", 1)
        yield store


@pytest.fixture
def refused(path, target):
    """Says whether a file's bytes are refused, with the target as it was."""
    before = target.stats()

    def check(changed: bytes) -> str:
        path.write_bytes(changed)
        with pytest.raises(StateCorrupt) as caught:
            target.import_session(path, "new")
        assert target.stats() == before
        return str(caught.value)

    return check


# -- changed bytes -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_changed_byte_anywhere_is_refused(data, refused):
    for at in range(len(data)):
        for mask in (0x01, 0x20, 0x80, 0xFF):
            refused(data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])


def test_a_missing_byte_anywhere_is_refused(data, refused):
    for at in range(len(data)):
        refused(data[:at])
        refused(data[at + 1 :])
        refused(data[:at] + data[at + 1 :])


def test_an_added_byte_anywhere_is_refused(data, refused):
    for at in range(len(data) + 1):
        refused(data[:at] + b"\x00" + data[at:])
    for value in range(256):
        refused(data + bytes([value]))
        refused(bytes([value]) + data)
    refused(data + data)


def test_a_changed_byte_under_a_new_digest_makes_no_unsound_session(data, path, target):
    refused = 0
    for at in range(len(data) - len(MARK) - 64):
        changed = sealed(data[:at] + bytes([data[at] ^ 0x04]) + data[at + 1 :])
        path.write_bytes(changed)
        before = target.stats()
        try:
            target.import_session(path, "new")
        except RWKVStateError:
            refused += 1
            assert target.stats() == before
            continue
        assert target.check().problems == ()
        target.delete_session("new")
    assert refused > len(data) / 2
    assert target.check().sound


# -- files made by hand --------------------------------------------------------------------------


def test_the_helper_makes_bundles_that_are_taken_in(data, path, target):
    path.write_bytes(forged(list(members(data).items())))
    assert target.import_session(path).n_turns == 2
    path.write_bytes(with_manifest(data, lambda values: None))
    assert target.import_session(path, "again").n_turns == 2


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members_are_refused(data, refused, compression):
    message = refused(forged(list(members(data).items()), compression=compression))
    assert "compressed" in message


@pytest.mark.parametrize(
    "name",
    [
        "../0.safetensors",
        "/etc/passwd",
        "states/../../x",
        "states/00.safetensors",
        "states\\0.safetensors",
        "states/0.safetensors\x00",
        "STATES/0.safetensors",
        "states/",
        "st\u00e4tes/0.safetensors",
    ],
    ids=ascii,
)
def test_foreign_names_are_refused(data, refused, name):
    parts = list(members(data).items())
    for at in range(len(parts)):
        assert "in the place of" in refused(
            forged([*parts[:at], (name, parts[at][1]), *parts[at + 1 :]])
        )
    assert refused(forged([*parts, (name, b"x")]))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_missing_and_misplaced_members_are_refused(data, refused):
    first, second, last = members(data).items()
    for parts in (
        [first, first, second, last],
        [first, second, last, last],
        [second, first, last],
        [last, first, second],
        [first, last],
        [second, last],
        [first, second],
        [last],
        [],
    ):
        refused(forged(parts))


def test_a_claimed_size_that_is_not_there_is_refused(data, refused):
    entry = data.index(b"PK\x01\x02")
    for value in (0, 1, 1 << 20, 0xFFFFFFFE, 0xFFFFFFFF):
        claimed = value.to_bytes(4, "little")
        for at in (entry + 20, entry + 24, entry + 42):  # compressed, whole, offset
            if data[at : at + 4] != claimed:
                refused(sealed(data[:at] + claimed + data[at + 4 :]))
        both = data[: entry + 20] + claimed * 2 + data[entry + 28 :]
        refused(sealed(both))


def test_bytes_between_before_and_behind_the_members_are_refused(data, refused):
    entry = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x03\x04", 4)
    for at in (0, second, entry, len(data) - len(MARK) - 64 - 22):
        refused(sealed(data[:at] + b"hidden" + data[at:]))


def test_a_session_json_without_end_is_refused_before_it_is_read(data, refused, monkeypatch):
    monkeypatch.setattr(bundle, "MANIFEST_LIMIT_BYTES", 500)
    assert "more than the 500 that are read" in refused(data)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"null", b"{", b"[" * 100_000, b'{"format": 1}', b"\xff", b'{"a": NaN}']
)
def test_a_session_json_that_is_none_is_refused(data, refused, text):
    refused(forged([*list(members(data).items())[:-1], ("session.json", text)]))


def rehashed(parts):
    """Returns a bundle of changed states whose digests were put right."""
    *states, (name, text) = parts
    values = json.loads(text)
    for about, (_, content) in zip(values["states"], states, strict=True):
        about.update(nbytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    return forged([*states, (name, json.dumps(values).encode())])


@pytest.mark.parametrize("where", ["comment", "manifest", "state"])
def test_a_later_version_is_told_to_upgrade(data, refused, where):
    match where:
        case "comment":
            later = data.replace(MARK, MARK.replace(b"/1 ", b"/12 "))
        case "manifest":
            name = "langchain-rwkv-state-bundle/2"
            later = with_manifest(data, lambda values: values.update(format=name))
        case _:
            first, *rest = members(data).items()
            state = first[1].replace(b'"langchain-rwkv-state/1"', b'"langchain-rwkv-state/2"')
            later = rehashed([(first[0], state), *rest])
    assert "upgrade" in refused(later)


def test_another_format_is_refused(data, refused):
    name = "some-other-bundle/1"
    refused(with_manifest(data, lambda values: values.update(format=name)))
    for other in (b"", b"PK\x05\x06" + b"\x00" * 18, b"x" * 5000, MARK, MARK + b"0" * 64):
        assert "not a bundle" in refused(other) or other.startswith(MARK)
    refused(sealed(b"x" * 500 + MARK + b"0" * 64))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda v: v.update(session=""), "name"),
        (lambda v: v.update(session="x" * 513), "name"),
        (lambda v: v.update(session=7), "session"),
        (lambda v: v.update(ttl=0), "time to live"),
        (lambda v: v.update(ttl=-1.5), "ttl"),
        (lambda v: v.update(ttl=1e308), "ttl"),
        (lambda v: v.update(ttl="1"), "ttl"),
        (lambda v: v.update(ttl=10**400), "ttl"),
        (lambda v: v.update(created=None), "created"),
        (lambda v: v.update(created=-1e300), "created"),
        (lambda v: v.update(updated=10**400), "updated"),
        (lambda v: v.update(updated=1e300), "updated"),
        (lambda v: v.update(sliding=1), "sliding"),
        (lambda v: v.update(turns=1), "turns"),
        (lambda v: v.update(turns=-1), "turns"),
        (lambda v: v.update(turns=1 << 64), "turns"),
        (lambda v: v.update(turns=True), "turns"),
        (lambda v: v.update(turns=0, log=[]), "head"),
        (lambda v: v.update(turns=0), "turns"),
        (lambda v: v.update(unread="x"), "unread"),
        (lambda v: v.update(unread=[1]), "unread"),
        (lambda v: v.update(unread=["not a message"]), "unread"),
        (lambda v: v.update(unread=["\ud800"]), "unread"),
        (lambda v: v.update(unread=["[" * 100_000]), "unread"),
        (lambda v: v.update(head=None), "head"),
        (lambda v: v.update(head=v["log"][0]["ref"]), "head"),
        (lambda v: v.update(log={}), "log"),
        (lambda v: v.update(log=[1, 2]), "log"),
        (lambda v: v["log"].reverse(), "head"),
        (lambda v: v["log"][0].update(ref="../x"), "ref"),
        (lambda v: v["log"][0].update(parent=v["head"]), "first turn"),
        (lambda v: v["log"][1].update(parent=None), "follow"),
        (lambda v: v["log"][1].update(n_tokens=77), "length"),
        (lambda v: v["log"][1].update(origin=7), "origin"),
        (lambda v: v["log"][1].update(origin={"tokens": "!"}), "token ids"),
        (lambda v: v["states"].reverse(), "states"),
        (lambda v: v["states"].pop(), "states"),
        (lambda v: v["states"][0].update(nbytes=1), "states"),
        (lambda v: v["states"][0].update(sha256="0" * 64), "session.json names"),
        (lambda v: v["states"][0].update(sha256="x"), "sha256"),
        (lambda v: v["states"][1].update(ref="rwkv1-" + "0" * 64), "holds the state"),
    ],
)
def test_a_session_json_that_contradicts_itself_is_refused(data, refused, change, word):
    assert word in refused(with_manifest(data, change))


def test_states_that_are_swapped_or_doubled_are_refused(data, refused):
    first, second, last = members(data).items()
    assert "holds the state" in refused(
        rehashed([(first[0], second[1]), (second[0], first[1]), last])
    )
    found = decode(first[1])
    refs = [each["ref"] for each in json.loads(last[1])["states"]]
    copy = encode(found.state, ref=refs[1])
    values = json.loads(last[1])
    values["log"][0]["n_tokens"] = found.state.n_tokens
    doubled = rehashed([first, (second[0], copy), (last[0], json.dumps(values).encode())])
    assert "under two names" in refused(doubled)


# -- the file ------------------------------------------------------------------------------------


def test_one_session_gives_one_file(tmp_path):
    with MemoryStateStore() as store:
        turns(store, "bob", 3)
        for name in ("a", "b"):
            store.export_session("bob", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_bundle_is_a_zip_like_any_other(data, path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [
            "states/0.safetensors",
            "states/1.safetensors",
            "session.json",
        ]
        state = decode(archive.read("states/0.safetensors")).state
    assert state == random_state([1, 1], layout=TINY)
    assert sealed(data) == data


def test_the_page_on_bundles_tells_how_to_read_one(data, tmp_path, monkeypatch):
    page = (Path(__file__).parents[3] / "docs" / "bundles.md").read_text()
    (code,) = re.findall(r"```python\n(import hashlib.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(code, found)
    assert found["session"]["session"] == "bob"
    assert [decode(state).state.n_tokens for state in found["states"]] == [2, 1]
    assert f"small bundle ({len(data):,} bytes)" in page
    assert f"{8 * len(data) + 514:,} changes in all" in page, "see the three tests above"


def test_a_bundle_is_its_owners_alone_and_flushed(tmp_path, monkeypatch):
    flushed, own = [], os.fsync

    def fsync(handle):
        flushed.append(stat.S_ISDIR(os.fstat(handle).st_mode))
        own(handle)

    with MemoryStateStore() as store:
        turns(store, "bob", 1)
        monkeypatch.setattr(os, "fsync", fsync)
        store.export_session("bob", tmp_path / "bob.zip")
    assert stat.S_IMODE((tmp_path / "bob.zip").stat().st_mode) == 0o600
    assert flushed == [False, True]
    assert [each.name for each in tmp_path.iterdir()] == ["bob.zip"]


@pytest.mark.posix
@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_nothing_that_is_there_is_written_over(tmp_path, path, kind):
    match kind:
        case "file":
            path.write_bytes(b"mine")
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to(tmp_path / "nowhere")
    with MemoryStateStore() as store:
        turns(store, "bob", 1)
        with pytest.raises(FileExistsError, match="is there already"):
            store.export_session("bob", path)
    assert [each.name for each in tmp_path.iterdir()] == ["bob.zip"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_came_meanwhile_is_not_written_over(tmp_path, path, monkeypatch, links):
    def write_first(*_):
        path.write_bytes(b"theirs")
        raise OSError(errno.EEXIST if links else errno.EPERM, "no")

    with MemoryStateStore() as store:
        turns(store, "bob", 1)
        monkeypatch.setattr(os, "link", write_first)
        with pytest.raises(FileExistsError, match="is there already"):
            store.export_session("bob", path)
    assert path.read_bytes() == b"theirs"
    assert [each.name for each in tmp_path.iterdir()] == ["bob.zip"]


def test_a_file_system_without_links_will_do(data, tmp_path, monkeypatch, target):
    def no_links(*_):
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", no_links)
    target.export_session("al", tmp_path / "al.zip")
    assert target.import_session(tmp_path / "al.zip", "new").n_turns == 1


def test_a_full_disk_leaves_no_half_bundle(tmp_path, monkeypatch):
    def no_room(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with MemoryStateStore() as store:
        turns(store, "bob", 1)
        before = store.stats()
        monkeypatch.setattr(os, "fsync", no_room)
        with pytest.raises(OSError, match="No space"):
            store.export_session("bob", tmp_path / "bob.zip")
        assert store.stats() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.posix
@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_plain_file_is_not_read(path, target, kind):
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case _:
            path.symlink_to("/dev/zero")
    with pytest.raises(StateCorrupt, match="not a plain file"):
        target.import_session(path)


@pytest.mark.posix
def test_a_bundle_may_be_named_by_a_link(data, path, tmp_path, target):
    (tmp_path / "link").symlink_to(path)
    assert target.import_session(tmp_path / "link").n_turns == 2


def test_a_log_that_is_too_large_is_said_before_it_is_given_away(tmp_path, monkeypatch, target):
    monkeypatch.setattr(bundle, "MANIFEST_LIMIT_BYTES", 1500)
    target.append_unread("al", ['"' + "x" * 2000 + '"'])
    with pytest.raises(ValueError, match="a bundle holds 1500"):
        target.export_session("al", tmp_path / "al.zip")
    assert list(tmp_path.iterdir()) == []


# -- what leaves a store -------------------------------------------------------------------------


def test_a_bundle_does_not_tell_the_stores_secret(tmp_path):
    with MemoryStateStore(log="tokens") as store:
        chat(store, Reader(), "bob", 2)
        store.export_session("bob", tmp_path / "bob.zip", tokens=True)
        data = (tmp_path / "bob.zip").read_bytes()
        assert store._key not in data
        assert store._key.hex().encode() not in data


@pytest.mark.parametrize("harm", ["changed", "missing"])
def test_a_damaged_state_does_not_leave_the_store(tmp_path, harm):
    with DiskStateStore(tmp_path / "store") as store:
        turns(store, "bob", 1)
        (file,) = (tmp_path / "store").glob("??/*.safetensors")
        whole = file.read_bytes()
        if harm == "missing":
            file.unlink()
        else:
            file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(StateCorrupt):
            store.export_session("bob", tmp_path / "bob.zip")
        assert not (tmp_path / "bob.zip").exists()
        file.write_bytes(whole)
        assert store.check().sound


def test_a_session_that_goes_on_during_its_export_leaves_as_it_was(tmp_path, monkeypatch):
    with MemoryStateStore(history=2) as store, MemoryStateStore() as other:
        turns(store, "bob", 3)
        log = store.log("bob")
        own, done = bundle.BundleWriter.add_state, threading.Event()

        def add_while_it_goes_on(writer, ref, data):
            if not done.is_set():
                done.set()
                turns(store, "bob", 5, start=3)
                store.delete_session("bob")
            return own(writer, ref, data)

        monkeypatch.setattr(bundle.BundleWriter, "add_state", add_while_it_goes_on)
        store.export_session("bob", tmp_path / "bob.zip")
        other.import_session(tmp_path / "bob.zip")
        found = other.log("bob")
        assert [e.created_seconds for e in found] == [e.created_seconds for e in log]
        assert all(entry.kept for entry in found)
        assert (store.stats().sessions, store.stats().states) == (0, 0)


def test_a_name_taken_during_an_import_stays_with_who_took_it(data, path, monkeypatch, target):
    def decode_while_another_commits(*args, **kwargs):
        if target.head("bob") is None:
            target.commit("bob", target.put(random_state([1])), None)
        return decode(*args, **kwargs)

    name = "langchain_rwkv_state.state.decode"
    monkeypatch.setattr(name, decode_while_another_commits)
    before = target.stats().states
    with pytest.raises(SessionConflict, match="'bob' exists"):
        target.import_session(path)
    assert head_of(target, "bob") == random_state([1])
    assert target.stats().states == before + 1
    assert target.check().sound


# -- codecs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_states_of_one_codec_come_in_as_they_are(tmp_path, codec):
    stores = [DiskStateStore(tmp_path / name, codec=codec) for name in "ab"]
    with stores[0] as there, stores[1] as here:
        turns(there, "bob", 2)
        there.export_session("bob", tmp_path / "bob.zip")
        info = here.import_session(tmp_path / "bob.zip")
        state = head_of(here, "bob")
        assert state == head_of(there, "bob"), "no second root"
        assert here.put(state) == info.head
        here.export_session("bob", tmp_path / "back.zip")
        assert there.import_session(tmp_path / "back.zip", "again").head == there.head("bob")
        assert here.check().sound


@pytest.mark.parametrize("codec", sorted(LOSSY))
def test_a_lossy_store_takes_its_loss_and_an_exact_one_takes_what_comes(tmp_path, codec):
    with (
        MemoryStateStore() as exact,
        MemoryStateStore(codec=codec) as small,
        MemoryStateStore() as back,
    ):
        turns(exact, "bob", 2)
        exact.export_session("bob", tmp_path / "exact.zip")
        small.import_session(tmp_path / "exact.zip")
        assert head_of(small, "bob") == lossy(head_of(exact, "bob"), codec)
        small.export_session("bob", tmp_path / "small.zip")
        back.import_session(tmp_path / "small.zip")
        assert head_of(back, "bob") == head_of(small, "bob")
        assert small.check().sound
        assert back.check().sound


def test_lossless_codecs_follow_one_another(tmp_path):
    with DiskStateStore(tmp_path / "a") as store:
        turns(store, "bob", 1)
    with DiskStateStore(tmp_path / "a", codec="zstd") as store, MemoryStateStore() as other:
        turns(store, "bob", 1, start=1)
        store.export_session("bob", tmp_path / "bob.zip")
        parts = members((tmp_path / "bob.zip").read_bytes())
        codecs = [decode(parts[f"states/{n}.safetensors"]).codec for n in range(2)]
        assert codecs == ["zstd", "exact"]
        other.import_session(tmp_path / "bob.zip")
        for entry, old in zip(other.log("bob"), store.log("bob"), strict=True):
            assert other.get(entry.ref) == store.get(old.ref)


def test_a_failed_import_of_states_that_nothing_can_keep_leaves_nothing(tmp_path, monkeypatch):
    state = random_state([1])
    broken = state.advanced({name: state[name] * float("nan") for name in state}, [2])
    with MemoryStateStore() as exact, MemoryStateStore(codec="int8") as small:
        exact.commit("bob", exact.put(state), None)
        with monkeypatch.context() as unchecked:
            unchecked.setattr(states, "require_finite", lambda _: None)
            exact.commit("bob", exact.put(broken), exact.head("bob"))
        exact.export_session("bob", tmp_path / "bob.zip")
        for target, error in ((small, ValueError), (MemoryStateStore(), StateCorrupt)):
            turns(target, "al", 1)
            before = target.stats()
            with pytest.raises(error, match="NaN"):
                target.import_session(tmp_path / "bob.zip")
            assert target.stats() == before


def test_a_store_that_breaks_amid_an_import_says_what_broke(data, path, monkeypatch, target):
    def broken(*_, **settings):
        raise StoreError("the disk is gone")

    monkeypatch.setattr(target._backend, "write_blob", broken)
    monkeypatch.setattr(target._backend, "transact", broken)
    with pytest.raises(StoreError, match="the disk is gone"):
        target.import_session(path)
    monkeypatch.undo()
    with pytest.raises(StateNotFound):
        target.fork("bob", "new")
