"""Names of sessions are held against what proves that they exist, with a prefix and without."""

from __future__ import annotations

import pytest

from langchain_rwkv_state.errors import StateCorrupt
from langchain_rwkv_state.store import DiskStateStore


@pytest.fixture
def store(tmp_path):
    with DiskStateStore(tmp_path / "store") as opened:
        for name in ("a", "ab", "b", "\U0010ffff", "\U0010ffffx"):
            opened.append_unread(name, ["{}"])
        yield opened


def harm(store: DiskStateStore, *statements: str) -> None:
    store._backend.transact(lambda sql: [sql(statement, ()) for statement in statements])


def test_a_prefix_gives_those_that_begin_so(store):
    assert store.sessions("a") == ["a", "ab"]
    assert store.sessions("\U0010ffff") == ["\U0010ffff", "\U0010ffffx"]
    assert store.sessions("c") == []
    assert store.sessions() == ["a", "ab", "b", "\U0010ffff", "\U0010ffffx"]


@pytest.mark.parametrize("prefix", ["", "a"])
def test_one_whose_row_is_lost_is_listed_all_the_same(store, prefix):
    harm(store, "DELETE FROM sessions WHERE name = x'6162'")
    assert "ab" in store.sessions(prefix)


def test_one_that_nothing_tells_any_more_is_missed(store):
    harm(
        store,
        "DELETE FROM sessions WHERE name = x'6162'",
        "DELETE FROM log WHERE session = x'6162'",
    )
    with pytest.raises(StateCorrupt, match="counts 5 sessions, and finds 4"):
        store.sessions()
    assert not store.check(fix=True).sound
    assert store.sessions("a") == ["a"]
    assert store.sessions() == ["a", "b", "\U0010ffff", "\U0010ffffx"]
