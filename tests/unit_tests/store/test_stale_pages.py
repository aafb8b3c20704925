"""An old page of the database is put back, as a disk that lost a write leaves it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from langchain_rwkv_state.errors import RWKVStateError
from langchain_rwkv_state.store import DiskStateStore
from tests.helpers.states import random_state

PAGE = 4096
SESSIONS = 600


def pages_of(path: Path) -> list[bytes]:
    data = (path / "cache.db").read_bytes()
    return [data[at : at + PAGE] for at in range(0, len(data), PAGE)]


def test_a_stale_page_gives_no_wrong_head_and_no_short_list_unnoticed(tmp_path):  # noqa: C901 # steps
    path = tmp_path / "store"
    refs = [random_state([number]) for number in range(3)]
    heads: dict[str, str | None] = {}
    names = [f"session {number:03}" for number in range(SESSIONS)]
    with DiskStateStore(path) as store:
        known = [store.put(state) for state in refs]
        for number, name in enumerate(names):
            if number % 5:
                store.commit(name, known[0], None)
    before = pages_of(path)
    with DiskStateStore(path) as store:
        for number, name in enumerate(names):
            match number % 5:
                case 0:
                    store.commit(name, known[2], None)  # new
                case 1:
                    store.delete_session(name)
                case 2:
                    store.rewind(name)
                    store.commit(name, known[1], None)  # as many turns, another head
                case 3:
                    store.commit(name, known[1], known[0])
            heads[name] = store.head(name)
    after = pages_of(path)
    living = sorted(name for name, head in heads.items() if head)
    changed = [at for at, page in enumerate(before) if at and page != after[at]]
    assert len(changed) >= 50
    noticed = 0
    for at in changed[:: max(1, len(changed) // 50)]:
        for name in ("cache.db-wal", "cache.db-shm"):
            (path / name).unlink(missing_ok=True)
        stale = [before[at] if place == at else page for place, page in enumerate(after)]
        (path / "cache.db").write_bytes(b"".join(stale))
        refused = 0
        try:
            with DiskStateStore(path, read_only=True) as store:
                for name, head in heads.items():
                    try:
                        assert store.head(name) == head, (at, name)
                    except RWKVStateError:
                        refused += 1
                with suppress(RWKVStateError):
                    listed = store.sessions()
                    assert set(listed) >= set(living), at
                    assert set(listed) == set(living) or refused, at
                noticed += bool(refused) or not store.check().sound
        except RWKVStateError:
            noticed += 1
    assert noticed > 40
