"""Rows and reads of a store in Redis, without one."""

from __future__ import annotations

import os
from typing import Any

import pytest

from langchain_rwkv_state.errors import StateCorrupt, StoreError
from langchain_rwkv_state.store.redis.functions import CODE, LIBRARY, plain
from langchain_rwkv_state.store.redis.indices import entries, row_of
from langchain_rwkv_state.store.redis.keys import Keys, decode, encode
from langchain_rwkv_state.store.redis.moments import remembered_seconds
from langchain_rwkv_state.store.redis.space import Space
from langchain_rwkv_state.store.redis.tables import RedisTables
from langchain_rwkv_state.store.rows import (
    LOG,
    TOMBSTONES,
    Holder,
    HoldRow,
    QueueRow,
    SessionRow,
    StateRow,
    Table,
    ref_bytes,
)

REF = "rwkv1-" + "ab" * 32
DIGEST = ref_bytes(REF)
KEYS = Keys("me")
ROWS: list[tuple[Table, tuple[Any, ...]]] = [
    (SessionRow.TABLE, SessionRow("b\x00b", REF, 3, 1, 1.0, 2.0, 3.0, 4.0, True, (REF,)).pack()),
    (StateRow.TABLE, StateRow(REF, "blob", 7, 3, None, 1.0, 2).pack()),
    (HoldRow.TABLE, HoldRow(REF, Holder.OWNER, "thread", 9.0, 5.0).pack()),
    (HoldRow.TABLE, HoldRow(REF, Holder.PUT, "", 9.0, 5.0).pack()),
    (LOG, (*LOG.pack(("bob", 3, REF, None, 3, 1.0, None, ()))[:6], b"{}", None)),
    (TOMBSTONES, TOMBSTONES.pack((REF, 5.0))),
    (QueueRow.TABLE, QueueRow("bob", 2, "mine", 1, 1.0, 16.0).pack()),
]


@pytest.mark.parametrize(("table", "columns"), ROWS)
def test_a_row_comes_back_and_any_changed_byte_is_told(
    table: Table, columns: tuple[Any, ...]
) -> None:
    key, data = columns[: table.keys], encode(table, columns)
    raw = decode(table, key, data)
    table.require_sound(raw)
    assert tuple(raw[:-1]) == columns
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        raw = decode(table, key, bytes(changed))
        assert tuple(raw[: table.keys]) == key
        with pytest.raises(StateCorrupt):
            table.require_sound(raw)
    for end in range(len(data)):
        with pytest.raises(StateCorrupt):
            table.require_sound(decode(table, key, data[:end]))


def test_a_row_of_another_key_is_none() -> None:
    table, columns = ROWS[0]
    with pytest.raises(StateCorrupt):
        table.require_sound(decode(table, (b"al",), encode(table, columns)))


@pytest.mark.parametrize(("table", "columns"), ROWS)
def test_each_entry_of_an_index_finds_its_row(table: Table, columns: tuple[Any, ...]) -> None:
    found = entries(KEYS, table, columns)
    assert found
    for entry in found:
        if entry.key not in (KEYS.names, KEYS.states):
            assert row_of(KEYS, entry.key, entry.member) == (table, columns[: table.keys])
    assert row_of(KEYS, KEYS.queues, b"short") is None
    assert row_of(KEYS, KEYS.base + b"h:zz", b"h1bob") is None


def test_tenants_share_no_key_however_they_are_called() -> None:
    bases = [Keys(name).base for name in ("a", "a}", "{a", "a:s", "a%3As", "*", "\ud800", "日")]
    assert len(set(bases)) == len(bases)
    for base in bases:
        assert base.count(b"{") == base.count(b"}") == 1
        assert not any(base.startswith(other) for other in bases if other != base)
        assert not set(base) & set(b"*?[]\\")


def space(replies: dict[tuple[bytes, ...], Any], asked: list[Any], *, views: bool = False) -> Space:
    def run(ops: Any) -> list[Any]:
        asked.extend(ops)
        return [replies.get(op, [None] * (len(op) - 2)) for op in ops]

    return Space(KEYS, run, lambda *_: [], (lambda work: None) if views else None)


def test_a_transaction_reads_once_and_finds_what_it_wrote() -> None:
    asked: list[Any] = []
    one = space({(b"HMGET", b"k", b"a", b"b"): [b"1", b"2"]}, asked)
    assert one.fields([(b"k", (b"a", b"b"))]) == [[b"1", b"2"]]
    one.put(b"k", b"a", b"new")
    one.put(b"k", b"b", None)
    assert one.fields([(b"k", (b"a", b"b"))]) == [[b"new", None]]
    assert len(asked) == 1
    view = space({}, asked, views=True)
    view.field(b"k", b"a")
    view.field(b"k", b"a")
    assert len(asked) == 3, "a view asks each time"


def test_a_transaction_finds_the_members_that_it_entered() -> None:
    op = (b"ZRANGEBYLEX", b"z", b"-", b"+", b"LIMIT", b"0", b"8")
    one = space({op: [b"b", b"c"]}, [])
    one.enter(b"z", b"a")
    one.enter(b"z", b"b", None)
    assert one.between(b"z", limit=2) == [b"a", b"c"]
    due = (b"ZRANGEBYSCORE", b"z", b"-inf", b"5.0", b"LIMIT", b"0", b"4")
    two = space({due: [b"b"]}, [])
    two.enter(b"z", b"a", 4.0)
    two.enter(b"z", b"late", 6.0)
    assert two.until(b"z", 5.0, 2) == [b"b", b"a"]


def test_what_is_read_ahead_is_noted_once_it_is_used() -> None:
    asked: list[Any] = []
    one = space({(b"HMGET", b"k", b"a"): [b"1"]}, asked)
    one.early([(b"HMGET", b"k", b"a"), (b"HMGET", b"k", b"never")])
    assert one.seen() == [b"0"]
    assert one.field(b"k", b"a") == b"1"
    assert (one.seen()[0], len(asked)) == (b"1", 2)


def test_sql_is_refused() -> None:
    with pytest.raises(StoreError, match="has no SQL"):
        RedisTables(space({}, []), 0.0)._sql("SELECT 1", ())


def test_replies_become_one_text_however_a_hash_is_ordered() -> None:
    op = (b"HGETALL", b"k")
    assert plain(op, [b"a", b"1", b"b", b"2"]) == plain(op, [b"b", b"2", b"a", b"1"])
    assert plain(op, {b"a": b"1"}) == plain(op, [b"a", b"1"])
    texts = [plain((), each) for each in ([b"a"], [b"a", None], [b"", b"a"], [b"1:a"], 1, None)]
    assert len(set(texts)) == len(texts)


def test_the_functions_carry_the_librarys_name() -> None:
    assert CODE.startswith(f"#!lua name={LIBRARY}\n")
    assert "LIBRARY" not in CODE
    assert os.linesep == "\n" or "\r" not in CODE


@pytest.mark.parametrize("timeout_seconds", [0.1, 60.0, 900.0])
def test_a_call_is_known_longer_than_it_may_be_sent_again(timeout_seconds: float) -> None:
    known = remembered_seconds(timeout_seconds)
    assert known >= 600
    assert known > 3 * (timeout_seconds + 10)  # as often, and after a connection was made
