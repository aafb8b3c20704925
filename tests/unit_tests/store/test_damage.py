"""States whose files are damaged: the error names the session and the verb, and `check` does it.

Each test also says what must stay.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from langchain_rwkv_state.errors import StateCorrupt, StateNotFound
from langchain_rwkv_state.state import RWKVState
from langchain_rwkv_state.store import CheckReport, DiskStateStore
from tests.helpers.states import random_state, turns


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(path):
    with DiskStateStore(path, history=3) as opened:
        yield opened


def file_of(store: DiskStateStore, ref: str) -> Path:
    (found,) = store.path.glob(f"??/{ref[-64:]}-*.safetensors")
    return found


def damage(store: DiskStateStore, ref: str) -> Path:
    file = file_of(store, ref)
    data = bytearray(file.read_bytes())
    data[-5] ^= 255
    file.write_bytes(data)
    return file


def lose(store: DiskStateStore, ref: str) -> Path:
    file = file_of(store, ref)
    file.unlink()
    return file


def grow(store: DiskStateStore, ref: str) -> Path:
    file = file_of(store, ref)
    os.truncate(file, 40 << 30)
    return file


def cut(store: DiskStateStore, ref: str) -> Path:
    file = file_of(store, ref)
    os.truncate(file, 100)
    return file


@pytest.mark.parametrize("harm", [damage, lose, grow, cut])
def test_a_damaged_head_names_its_session_and_the_verb_that_mends_it(store, harm):
    refs = turns(store, "bob", 3)
    harm(store, refs[-1])
    with pytest.raises(StateCorrupt) as caught:
        store.get(refs[-1])
    assert "'bob' can go back to turn 2 of 3: store.rewind('bob')" in str(caught.value)
    (problem,) = store.check().problems
    assert "'bob' can go back to turn 2 of 3: store.rewind('bob')" in problem
    assert refs[-1] in problem
    assert store.head("bob") == refs[-1], "a look changes nothing"
    store.rewind("bob")
    assert store.check().sound
    assert store.get(store.head("bob")) == random_state([*b"bob", 0, 1])


@pytest.mark.parametrize("harm", [damage, lose, cut])
def test_check_does_what_the_advice_says_and_sets_the_file_aside(store, harm):
    refs = turns(store, "bob", 3)
    kept = turns(store, "al", 2)
    store.append_unread("bob", ['"later"'])
    file = harm(store, refs[-1])
    bytes_before = file.read_bytes() if file.exists() else None
    report = store.check(fix=True)
    assert any("'bob' went back from turn 3 to turn 2" in done for done in report.repaired)
    info = store.session("bob")
    assert (info.head, info.n_turns, info.unread) == (refs[1], 2, ('"later"',))
    assert [entry.ref for entry in store.log("bob")] == [refs[1], refs[0]]
    assert store.head("al") == kept[-1]
    assert store.check().sound
    assert not file.exists()
    if bytes_before is not None:
        assert (store.path / "damaged" / file.name).read_bytes() == bytes_before
        assert any(str(store.path / "damaged") in done for done in report.repaired)
    turns(store, "bob", 1, start=2)
    assert store.head("bob") == refs[-1], "the same turn gives the same state again"
    assert store.get(refs[-1])


def test_a_session_goes_back_over_all_that_is_damaged(store):
    refs = turns(store, "bob", 4)
    damage(store, refs[3])
    lose(store, refs[2])
    with pytest.raises(StateCorrupt, match=r"turn 2 of 4: store.rewind\('bob', turns=2\)"):
        store.get(refs[3])
    report = store.check(fix=True)
    assert store.head("bob") == refs[1], report
    assert store.check().sound
    assert store.rewind("bob") == refs[0]


def test_an_earlier_state_that_is_damaged_is_let_go_of_and_the_head_stays(store):
    refs = turns(store, "bob", 3)
    damage(store, refs[1])
    (problem,) = store.check().problems
    assert "'bob' keeps it as an earlier state" in problem
    store.check(fix=True)
    assert store.head("bob") == refs[2]
    assert store.check().sound
    assert [entry.kept for entry in store.log("bob")] == [True, False, True]
    with pytest.raises(StateNotFound):
        store.rewind("bob")
    assert store.rewind("bob", turns=2) == refs[0]


def test_where_nothing_is_whole_it_is_said_what_is_left_to_do(store):
    (ref,) = turns(store, "bob", 1)
    file = damage(store, ref)
    for _ in range(2):
        report = store.check(fix=True)
        (problem,) = report.problems
        assert "no other whole state" in problem
        assert "store.delete_session('bob')" in problem
        assert report.repaired == ()
    assert store.head("bob") == ref, "it is not taken for a new session"
    assert file.exists()
    with pytest.raises(StateCorrupt, match=r"delete_session\('bob'\)"):
        store.get(ref)
    store.delete_session("bob")
    assert store.check().sound


def test_one_state_of_many_sessions_names_some_and_counts_the_rest(store):
    refs = turns(store, "bob", 2)
    for number in range(6):
        store.fork("bob", f"fork {number}")
    damage(store, refs[1])
    (problem,) = store.check().problems
    assert "'bob'" in problem
    assert "4 more need it." in problem
    store.check(fix=True)
    assert {store.head(name) for name in store.sessions()} == {refs[0]}
    assert len(store.sessions()) == 7
    assert store.check().sound


def test_what_was_put_or_kept_and_is_damaged_can_be_put_anew(store):
    ref = store.put(random_state([5]))
    store.keep(ref, "thread:42")
    damage(store, ref)
    (problem,) = store.check().problems
    assert "store.release('thread:42')" in problem
    report = store.check(fix=True)
    assert any("'thread:42'" in done for done in report.repaired)
    assert store.check().sound
    with pytest.raises(StateNotFound):
        store.get(ref)
    assert store.put(random_state([5])) == ref
    assert store.get(ref) == random_state([5])


def test_a_file_that_cannot_be_read_just_now_is_reported_and_left_alone(store, monkeypatch):
    refs = turns(store, "bob", 2)

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("langchain_rwkv_state.store.files.read_regular", fail)
        report = store.check(fix=True)
    assert any("Input/output error" in problem for problem in report.problems)
    assert report.repaired == ()
    assert store.head("bob") == refs[1]
    assert store.check().sound


def test_an_export_of_a_damaged_session_names_the_verb(store, tmp_path):
    refs = turns(store, "bob", 2)
    damage(store, refs[1])
    with pytest.raises(StateCorrupt, match=r"store.rewind\('bob'\)"):
        store.export_session("bob", tmp_path / "bob.zip")
    assert not (tmp_path / "bob.zip").exists()


def test_a_changed_row_of_a_holder_loses_no_state(store):
    ref = store.put(random_state([5]))
    for change in ("sum = x'00'", "expires = 5.0", "ttl = 'never'"):
        store._backend.transact(lambda sql, change=change: sql(f"UPDATE holds SET {change}", ()))
        assert store.check(fix=True).repaired
        assert store.check().sound
        assert store.get(ref) == random_state([5])
    store._backend.transact(lambda sql: sql("DELETE FROM holds", ()))
    store.check(fix=True)
    assert store.check().sound
    assert store.get(ref) == random_state([5]), "its own count says that something held it"


def test_a_store_whose_totals_were_changed_opens_and_is_mended(path):
    with DiskStateStore(path) as store:
        _, head = turns(store, "bob", 2)
        store._backend.transact(
            lambda sql: sql("UPDATE meta SET sum = x'00' WHERE key = ?", (b"totals",))
        )
    with DiskStateStore(path) as store:
        assert store.head("bob") == head
        for use in (
            store.sessions,
            lambda: store.commit("new", store.stage(random_state([7])), None),
        ):
            with pytest.raises(StateCorrupt, match=r"check\(fix=True\)"):
                use()
        assert store.check(fix=True).repaired
        assert store.check().sound
        assert store.sessions() == ["bob"]


def test_a_state_row_under_another_key_takes_no_file_from_who_holds_it(store):
    _, head = turns(store, "bob", 2)
    store._backend.transact(
        lambda sql: sql(
            "UPDATE states SET ref = zeroblob(32) WHERE ref = ?", (bytes.fromhex(head[-64:]),)
        )
    )
    assert store.check(fix=True).repaired
    assert store.head("bob") == head
    assert store.get(head).n_tokens
    assert store.check().sound


@pytest.mark.parametrize("harm", ["holds", "states", "both", "key"])
def test_a_state_that_only_a_damaged_row_holds_is_set_aside_and_never_deleted(store, harm):
    ref = store.put(random_state([5]))
    file = file_of(store, ref)
    data = file.read_bytes()
    os.utime(file, (0, 0))
    statements = {
        "holds": ["UPDATE holds SET sum = x'00'", "UPDATE states SET holders = 0"],
        "states": ["UPDATE states SET sum = x'00'", "DELETE FROM holds"],
        "both": ["UPDATE states SET created = 1.5", "UPDATE holds SET ttl = 1.5"],
        "key": ["UPDATE states SET ref = zeroblob(32)", "UPDATE holds SET ref = zeroblob(32)"],
    }
    for statement in statements[harm]:
        store._backend.transact(lambda sql, statement=statement: sql(statement, ()))
    done = [store.check(fix=True) for _ in range(3)]
    found = [*store.path.glob(f"??/{file.name}"), *store.path.glob(f"damaged/{file.name}")]
    assert [each.read_bytes() for each in found] == [data]
    if found[0].parent.name == "damaged":
        assert any(str(found[0]) in text for report in done for text in report.repaired)
        assert store.put(RWKVState.load(found[0])) == ref
    assert store.get(ref) == random_state([5])
    assert store.check().sound


def test_a_blend_without_a_parent_is_sound_where_token_ids_are_kept(tmp_path):
    with DiskStateStore(tmp_path / "tokens", log="tokens") as store:
        for name in ("a", "b"):
            store.commit(
                name, store.stage(random_state([*name.encode()]), tokens=[*name.encode()]), None
            )
        store.blend("a", "b", into="both")
        store.commit("a", store.stage(store.state_of("both")), store.head("a"))
        for fix in (False, True, False):
            assert store.check(fix=fix) == CheckReport(())
        assert store.head("a") == store.head("both")


def test_a_row_under_bytes_that_are_no_name_is_found_and_deleted(tmp_path: Path) -> None:
    with DiskStateStore(tmp_path / "store", log="tokens") as store:
        head = turns(store, "bob", 2)[-1]
    with closing(sqlite3.connect(tmp_path / "store" / "cache.db")) as database:
        database.execute(
            "UPDATE log SET session = x'f333' WHERE session = CAST('bob' AS BLOB) AND seq = 0"
        )
        database.execute(
            "INSERT INTO log SELECT x'f334', seq, ref, parent, n_tokens, created, said, origin, sum"
            " FROM log WHERE seq = 2"
        )
        database.commit()
    with DiskStateStore(tmp_path / "store", log="tokens") as store:
        assert not store.check().sound
        store.check(fix=True)
        assert store.check().sound
        assert store.head("bob") == head
