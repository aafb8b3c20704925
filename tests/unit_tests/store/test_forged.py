"""Files, bundles and rows that somebody made by hand, with a right checksum: an error of ours each.

The easy mistake is to forge values of a wrong type alone: numbers of 5,000 digits, half a surrogate
pair and a nesting without end each come out of Python as another error.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from langchain_rwkv_state.errors import RWKVStateError, StateCorrupt, StoreFull
from langchain_rwkv_state.state import RWKVState, decode, encode
from langchain_rwkv_state.store import DiskStateStore, rows, settings
from langchain_rwkv_state.store.tables import Changes
from tests.helpers.bundles import with_manifest
from tests.helpers.states import random_state

HALF = "\udc80"
ODD: list[Any] = [
    *(None, True, -1, 1, 2**63, 10**400, math.nan, math.inf, -1e308, 0.5),
    *("", "x", HALF, "9" * 5000, "\u0663", [], {}, [[]], {"a": 1}, "[" * 100_000),
]
CODE = encode(random_state([1, 2]))
MARKERS = [
    {"type": "system", "data": {"content": "", "additional_kwargs": {"rwkv_state": "new"}}},
    {"type": "system", "content": "", "additional_kwargs": {"rwkv_state": "rwkv1-" + "0" * 64}},
    {
        "lc": 1,
        "type": "constructor",
        "id": ["langchain", "schema", "messages", "SystemMessage"],
        "kwargs": {"content": "", "additional_kwargs": {"rwkv_state": "new"}},
    },
]


def forged(change: Callable[[dict[str, Any]], object]) -> bytes:
    """Returns a state's file with another header, under a right checksum."""
    end = 8 + int.from_bytes(CODE[:8], "little")
    header = json.loads(CODE[8:end])
    change(header["__metadata__"])
    header["__metadata__"].setdefault("checksum", "")
    header["__metadata__"]["checksum"] = "0" * 64
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = len(text).to_bytes(8, "little") + text + CODE[end:]
    at = data.find(b'"checksum":"') + len(b'"checksum":"')
    return data[:at] + hashlib.sha256(data).hexdigest().encode() + data[at + 64 :]


def about(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    def change(header: dict[str, Any]) -> None:
        inner = json.loads(header["about"])
        header["about"] = json.dumps({**inner, key: value})

    return change


def layout(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    def change(header: dict[str, Any]) -> None:
        inner = json.loads(header["layout"])
        header["layout"] = json.dumps({**inner, key: value})

    return change


def test_an_unchanged_header_is_taken():
    assert decode(forged(lambda header: None)).state == random_state([1, 2])


@pytest.mark.parametrize(
    "version", ["9" * 5000, "9" * 10, "2", "\u0663", "-1", "1e5", "", "01", HALF]
)
def test_a_version_that_is_not_known_is_corrupt_whatever_its_digits(version):
    with pytest.raises(StateCorrupt) as caught:
        decode(forged(lambda header: header.update(format=f"langchain-rwkv-state/{version}")))
    assert len(str(caught.value)) < 300
    assert ("upgrade" in str(caught.value)) == (version[:1] in ("9", "2"))


@pytest.mark.parametrize(
    "key",
    ["n_tokens", "created", "root", "fingerprint", "block", "parent", "ref", "token_hash", "codec"],
)
def test_no_value_of_a_header_is_an_error_of_anybody_else(key):
    for value in ODD:
        try:
            decode(forged(about(key, value)))
        except RWKVStateError:
            continue
        assert key != "codec"


@pytest.mark.parametrize(
    "key", ["version", "n_layer", "n_embd", "n_head", "head_size", "shift_dtypes"]
)
def test_no_layout_is_an_error_of_anybody_else(key):
    for value in ODD:
        if value != json.loads(random_state([1]).layout.to_json())[key]:
            with pytest.raises(StateCorrupt):
                decode(forged(layout(key, value)))


def test_a_half_surrogate_pair_in_a_header_is_corrupt():
    for key in ("root", "fingerprint", "block"):
        with pytest.raises(StateCorrupt):
            decode(forged(about(key, HALF)))


def test_check_goes_on_past_a_forged_file(tmp_path):
    with DiskStateStore(tmp_path / "store") as store:
        refs = [store.put(random_state([number])) for number in range(3)]
        for ref, version in zip(refs[:2], ("9" * 5000, "\u0663"), strict=True):
            (file,) = store.path.glob(f"??/{ref[-64:]}-*")
            data = forged(lambda h, v=version: h.update(format=f"langchain-rwkv-state/{v}"))  # type: ignore[misc]
            row = store._view().stored_state(ref)
            assert row is not None
            file.write_bytes(data)
            fitting = replace(row, nbytes=len(data))
            store._write(partial(Changes.put_state, row=fitting, old=row))
            with pytest.raises(StateCorrupt):
                store.get(ref)
        assert len([each for each in store.check().problems if "cannot be used" in each]) == 2
        assert store.get(refs[2]) == random_state([2])


# -- files that are named -------------------------------------------------------------------------


def test_a_file_that_grew_is_refused_before_it_is_read(tmp_path):
    random_state([1]).save(tmp_path / "state")
    os.truncate(tmp_path / "state", 40 << 30)
    with pytest.raises(StateCorrupt, match="more than its header tells"):
        RWKVState.load(tmp_path / "state")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to a pipe"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, kind):
    place = tmp_path / "state"
    match kind:
        case "device":
            place = Path(os.devnull)
        case "folder":
            place.mkdir()
        case "pipe":
            os.mkfifo(place)
        case _:
            os.mkfifo(tmp_path / "pipe")
            place.symlink_to(tmp_path / "pipe")
    failed: list[BaseException] = []

    def work() -> None:
        try:
            RWKVState.load(place)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits"
    assert [type(error) for error in failed] == [StateCorrupt]


@pytest.mark.posix
def test_a_link_to_a_state_is_followed_and_a_missing_one_is_missing(tmp_path):
    random_state([1]).save(tmp_path / "state")
    (tmp_path / "link").symlink_to(tmp_path / "state")
    assert RWKVState.load(tmp_path / "link") == random_state([1])
    with pytest.raises(FileNotFoundError):
        RWKVState.load(tmp_path / "nothing")


# -- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ODD, ids=lambda value: f"{value!r:.20}")
def test_a_row_with_impossible_values_and_a_right_checksum_is_damaged(tmp_path, value):
    with DiskStateStore(tmp_path / "store", log="tokens") as store:
        ref = store.stage(random_state([1]), tokens=[1])
        store.commit("bob", ref, None, said=["0" * 16])
        for table in rows.TABLES.values():
            if table is rows.META:
                continue
            for raw in store._backend.sql(f"SELECT * FROM {table.name}"):
                for place in range(table.keys, len(table.columns)):
                    for column in columns(value):
                        forged_row = [*raw[:place], column, *raw[place + 1 :]]
                        write(store, table, forged_row)
                        use(store, ref)
                        write(store, table, raw)


def columns(value: Any) -> list[Any]:
    """Returns what SQLite may hold of a value: itself, or the bytes of its JSON text."""
    small = isinstance(value, int | float | None) and value not in (2**63, 10**400)
    return [json.dumps(value).encode(), *([value] if small else [])]


def write(store: DiskStateStore, table: rows.Table, raw: Sequence[Any]) -> None:
    """Writes a row under the checksum of what SQLite makes of it."""
    places = ", ".join("?" * len(raw))
    where = " AND ".join(f"{name} = ?" for name in list(table.columns)[: table.keys])
    key = list(raw[: table.keys])

    def work(sql: Any) -> None:
        sql(f"INSERT OR REPLACE INTO {table.name} VALUES ({places})", raw)
        (stored,) = sql(f"SELECT * FROM {table.name} WHERE {where}", key)
        right = rows.checksum(table.name, stored[:-1])
        sql(f"UPDATE {table.name} SET sum = ? WHERE {where}", [right, *key])

    store._backend.transact(work)


def use(store: DiskStateStore, ref: str) -> None:
    for verb in (
        lambda: store.session("bob"),
        lambda: store.get(ref),
        lambda: store.log("bob"),
        store.sessions,
        store.check,
    ):
        try:
            verb()
        except RWKVStateError:
            continue


def test_a_row_that_expires_at_no_time_is_damaged():
    raw = (bytes(32), math.nan)
    with pytest.raises(StateCorrupt, match="no usable 'expires'"):
        rows.TOMBSTONES.unpack((*raw, rows.checksum("tombstones", raw)))


# -- messages that wait unread --------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    with DiskStateStore(tmp_path / "store") as opened:
        yield opened


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("not JSON", "JSON text"),
        ("", "JSON text"),
        ("NaN", "no number"),
        ("1" * 5000, "JSON text"),
        ("[" * 100_000, "JSON text"),
        (f'"{HALF}"', "half a surrogate pair"),
        *((json.dumps(marker), "no state marker") for marker in MARKERS),
    ],
    ids=lambda value: f"{value!r:.30}",
)
def test_what_no_store_takes_in_may_not_wait_unread(store, tmp_path, text, problem):
    with pytest.raises(ValueError, match=problem):
        store.append_unread("bob", ['{"fine": 1}', text])
    assert store.session("bob") is None, "nothing of it is kept"
    with pytest.raises(StateCorrupt, match=problem):
        store.import_session(bundle_with(store, tmp_path, text))


def bundle_with(store: DiskStateStore, folder: Path, text: str) -> Path:
    """Returns a bundle that somebody made by hand around an unread message."""
    store.append_unread("made", ['{"fine": 1}'])
    store.export_session("made", folder / "whole.zip")
    data = (folder / "whole.zip").read_bytes()
    (folder / "forged.zip").write_bytes(with_manifest(data, lambda v: v.update(unread=[text])))
    store.delete_session("made")
    return folder / "forged.zip"


def test_a_message_that_is_no_marker_waits_and_moves(store, tmp_path):
    texts = [
        '"\\ud83d"',
        '{"type": "human", "data": {"content": "rwkv_state"}}',
        '{"type": "ai", "data": {"response_metadata": {"rwkv_state": "rwkv1-x"}}}',
        '{"type": "system", "data": {"content": "Be brief.", "additional_kwargs": {}}}',
    ]
    store.append_unread("bob", texts)
    store.export_session("bob", tmp_path / "bob.zip")
    store.delete_session("bob")
    assert store.import_session(tmp_path / "bob.zip").unread == tuple(texts)


def test_no_more_waits_unread_than_a_bundle_holds(store, tmp_path, monkeypatch):
    monkeypatch.setattr("langchain_rwkv_state.store.settings.LIMIT_BYTES", 100)
    monkeypatch.setattr("langchain_rwkv_state.store.store.LIMIT_BYTES", 100)
    with pytest.raises(ValueError, match="at most 100"):
        store.append_unread("bob", ['"' + "x" * 100 + '"'])
    store.append_unread("bob", ['"' + "x" * 60 + '"'])
    with pytest.raises(StoreFull, match="let a turn read them first"):
        store.append_unread("bob", ['"' + "x" * 60 + '"'])
    assert len(store.session("bob").unread) == 1
    assert settings.bundled_bytes(store.session("bob").unread) <= 100
