"""Stores of earlier releases open as what they were.

The last release of format 1 made `old_format.zip`. A table that lacks a column is one of today's
whose last column was taken away.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import zipfile
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from langchain_rwkv_state.errors import StateCorrupt, StateExpired, StoreError, StoreFull
from langchain_rwkv_state.state import RWKVState
from langchain_rwkv_state.store import DiskStateStore, old_format, place, rows
from langchain_rwkv_state.store.schema import make_tables
from langchain_rwkv_state.store.tables import Changes
from tests.helpers.states import SetClock, random_state

SOURCE = Path(__file__).with_name("old_format.zip")
WEEK = 7 * 86400.0


@pytest.fixture
def known(tmp_path) -> dict[str, Any]:
    with zipfile.ZipFile(SOURCE) as archive:
        archive.extractall(tmp_path)
    found: dict[str, Any] = json.loads((tmp_path / "expected.json").read_text())
    return found


@pytest.fixture
def path(tmp_path: Path, known: dict[str, Any]) -> Path:
    return tmp_path / "tokens"


def opened(path: Path, known: dict[str, Any], **settings: Any) -> DiskStateStore:
    return DiskStateStore(path, log="tokens", clock=SetClock(known["now"]), **settings)


def digest(state: RWKVState) -> str:
    return hashlib.sha256(b"".join(each.numpy().tobytes() for each in state.values())).hexdigest()


def sql(path: Path, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path / "cache.db", isolation_level=None)) as database:
        return database.execute(statement, values).fetchall()


def compare(store: DiskStateStore, known: dict[str, Any]) -> None:
    """Holds all that a store tells against what it told before."""
    assert store.sessions() == list(known["sessions"])
    for name, about in known["sessions"].items():
        info = store.session(name, renew=False)
        assert info is not None
        now = {**asdict(info), "unread": list(info.unread)}
        assert {each: now[each] for each in about} == about  # what came since is more
        log = [
            {k: list(v) if k == "said" else v for k, v in asdict(each).items()}
            for each in store.log(name)
        ]
        for entry, old in zip(log, known["logs"][name], strict=True):
            assert {k: entry[k] for k in old} == old
    for ref, expected in known["states"].items():
        assert digest(store.get(ref, renew=False)) == expected
    for ref in known["gone"]:
        with pytest.raises(StateExpired):
            store.get(ref)
    assert [turn.token for turn in store.queue("bob")] == known["queue"]
    stats = store.stats()
    assert [stats.sessions, stats.states] == known["counts"]
    assert len(store._view().path(known["sessions"]["bob"]["head"])) == 4


def test_all_of_it_is_there(path, known):
    files = {each: each.stat().st_mtime_ns for each in path.glob("??/*")}
    with opened(path, known) as store:
        compare(store, known)
        assert store.check().problems == ()
    with opened(path, known) as store:
        compare(store, known)
        assert {each: each.stat().st_mtime_ns for each in path.glob("??/*")} == files


def test_it_goes_on(path, known):
    with opened(path, known, history=2) as store:
        head = store.head("bob")
        store.commit("bob", store.stage(random_state([1]), parent=head), head)
        assert store.rewind("bob") == head
        assert store.release("thread:42") == 2
        assert store.prune() == 2, "the session that had expired, with its state"
        assert store.delete_session("fork of bob")
        assert store.check().sound


def test_it_is_read_where_nothing_may_be_written(path, known):
    before = (path / "cache.db").read_bytes()
    with opened(path, known, read_only=True) as store:
        compare(store, known)
        assert store.check().problems == ()
    assert (path / "cache.db").read_bytes() == before


def test_a_reader_sees_what_is_converted_beside_it(path, known):
    with opened(path, known, read_only=True) as reader:
        compare(reader, known)
        with opened(path, known) as store:
            store.delete_session("never")
            assert "never" not in reader.sessions()


def test_a_lossy_one_keeps_its_codec(path, known):
    with DiskStateStore(path.with_name("lossy"), clock=SetClock(known["now"])) as store:
        assert store.codec == "int8"
        assert store.head("bob") == known["lossy"]["head"]
        assert digest(store.get(known["lossy"]["head"])) == known["lossy"]["sha"]
        assert store.check().sound


def test_one_from_before_witnesses_had_a_table_opens_too(path, known):
    for key, value in sql(path, "SELECT key, value FROM Anchor"):
        sql(
            path,
            "INSERT INTO Cache(key, raw, store_time, access_time, size, mode, value)"
            " VALUES (?, 1, 0, 0, ?, 1, ?)",
            (key, len(value), value),
        )
    sql(path, "DROP TABLE Anchor")
    with opened(path, known) as store:
        compare(store, known)
        assert store.check().sound


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_amid_the_conversion_leaves_the_old_or_the_new(path, known):
    finished = 0
    for step in range(0, 300, 12):
        child = os.fork()
        if not child:
            try:
                die_at(step)
                opened(path, known)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        finished += not os.WIFSIGNALED(status)
        if finished:
            break
        assert sql(path, "SELECT name FROM sqlite_master WHERE name = 'meta'") == []
    assert finished, "the last one came to its end"
    with opened(path, known) as store:
        compare(store, known)
        assert store.check().sound


def die_at(step: int) -> None:
    """Makes this process kill itself after so many rows were converted."""
    move, left = old_format._Move._one, step

    def counted(*args: Any) -> None:
        nonlocal left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        move(*args)

    old_format._Move._one = counted  # type: ignore[assignment, method-assign]


def test_what_was_damaged_stays_damaged_and_the_rest_is_whole(path, known):
    for key in (b"sbob", b"lfixed\xff" + (1).to_bytes(8, "big")):
        sql(path, "UPDATE Cache SET value = x'00' WHERE key = ?", (key,))
    with opened(path, known) as store:
        for name in ("bob", "fixed"):
            with pytest.raises(StateCorrupt):
                store.head(name)
        assert store.sessions() == list(known["sessions"])
        assert store.head("never") == known["sessions"]["never"]["head"]
        assert any("'bob'" in problem for problem in store.check().problems)


def test_a_secret_that_was_changed_or_lost_converts_nothing(path, known):
    for statement in ("UPDATE Cache SET value = x'00'", "DELETE FROM Cache"):
        sql(path, f"{statement} WHERE key = ?", (old_format.ABOUT_KEY,))
        before = sql(path, "SELECT * FROM Cache")
        with pytest.raises(StoreError, match="secret"):
            opened(path, known)
        assert sql(path, "SELECT * FROM Cache") == before


def state_of(store: DiskStateStore, session: str) -> RWKVState:
    head = store.head(session)
    assert head is not None
    return store.get(head)


class TestColumnsThatCameSince:
    """A release adds a column to a table; stores of before open, and have nothing in it."""

    @pytest.fixture(
        params=[rows.SessionRow.TABLE, rows.LOG, rows.StateRow.TABLE], ids=lambda t: t.name
    )
    def table(self, request: pytest.FixtureRequest) -> rows.Table:
        table: rows.Table = request.param
        return table

    @pytest.fixture
    def place(self, tmp_path: Path, table: rows.Table) -> Path:
        """A store from before the table's last column."""
        with DiskStateStore(tmp_path / "store") as store:
            for token, name in enumerate(("bob", "eve")):
                store.commit(name, store.stage(random_state([token]), parent=None), None)
        with closing(sqlite3.connect(tmp_path / "store" / "cache.db")) as database:
            changes = Changes(lambda sql, values: database.execute(sql, values).fetchall(), 0.0)
            totals = changes.totals()
            found = changes.rows_of(table)
            database.execute(f"DROP TABLE {table.name}")
            database.execute(table.sql(1))
            make_tables(database)
            for raw in found:
                row = (*raw[:-2], rows.checksum(table.name, raw[:-2]))
                database.execute(
                    f"INSERT INTO {table.name} VALUES ({'?, ' * (len(row) - 1)}?)", row
                )
            gone = sum(rows.size(raw[-2:-1]) for raw in found)
            changes.set_totals(totals._replace(nbytes=totals.nbytes - gone))
            database.commit()
        return tmp_path / "store"

    def test_without_a_word_of_it_the_store_is_refused(self, place, table, monkeypatch):
        monkeypatch.setattr(table, "added", 0)
        with pytest.raises(StoreError, match="not of this package's making"):
            DiskStateStore(place)

    def test_all_of_it_is_there_and_goes_on(self, place, table, monkeypatch):
        monkeypatch.setattr(table, "added", 1)
        with DiskStateStore(place) as store:
            assert store.check().problems == ()
            assert state_of(store, "eve") == random_state([1])
            assert {raw[-2] for raw in store._view().rows_of(table)} == {None}
            store.commit(
                "bob", store.stage(random_state([2]), parent=store.head("bob")), store.head("bob")
            )
        with DiskStateStore(place) as store:
            assert state_of(store, "bob") == random_state([2])
            assert store.check().problems == ()

    def test_it_is_read_where_nothing_may_be_written(self, place, table, monkeypatch):
        monkeypatch.setattr(table, "added", 1)
        before = (place / "cache.db").read_bytes()
        with DiskStateStore(place, read_only=True) as store:
            assert store.sessions() == ["bob", "eve"]
            assert state_of(store, "eve") == random_state([1])
            assert store.check().problems == ()
        assert (place / "cache.db").read_bytes() == before

    def test_what_was_damaged_stays_damaged(self, place, table, monkeypatch):
        sql(place, f"UPDATE {table.name} SET sum = x'00'")
        monkeypatch.setattr(table, "added", 1)
        with DiskStateStore(place) as store:
            damaged = [each for each in store.check().problems if "checksum" in each]
            assert len(damaged) == store._view().count(table.name)

    def test_a_failure_amid_it_leaves_the_store_as_it_was(self, place, table, monkeypatch):
        monkeypatch.setattr(table, "added", 1)
        with monkeypatch.context() as broken:
            broken.setattr(Changes, "finish", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                DiskStateStore(place)
        assert sql(place, "SELECT sql FROM sqlite_master WHERE name = ?", (table.name,)) == [
            (table.sql(1),)
        ]
        with DiskStateStore(place) as store:
            assert store.check().problems == ()


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        ("UPDATE Anchor SET key = ? WHERE key = ?", (7, b"abob")),
        ("UPDATE Anchor SET key = ? WHERE key = ?", (b"a\xffob", b"abob")),
        ("INSERT INTO Anchor VALUES (?, ?)", (b"sbob", b"")),
        (
            "INSERT INTO Cache(key, raw, store_time, size, mode) VALUES (?, 1, 0, 1, ?)",
            (b"abob", 3),
        ),
    ],
)
def test_a_damaged_witness_is_one_damage_and_no_crash(path, known, statement, values):
    sql(path, statement, values)
    for read_only in (True, False):
        with opened(path, known, read_only=read_only) as store:
            compare(store, known)


def test_a_program_of_before_that_goes_on_is_refused_and_loses_nothing_in_silence(path, known):
    with opened(path, known), pytest.raises(sqlite3.IntegrityError, match="newer release"):
        sql(path, "INSERT INTO Cache(key, raw, value) VALUES (?, 1, ?)", (b"t" * 33, b"r1"))


@pytest.mark.parametrize("reserve", [True, False])
def test_a_full_disk_says_so_unless_what_was_kept_back_is_enough(path, known, monkeypatch, reserve):
    kept_back = path / "reserve"
    if not reserve:
        kept_back.unlink(missing_ok=True)
    elif not kept_back.exists():
        kept_back.write_bytes(bytes(1 << 20))

    convert = old_format.convert

    def on_a_full_disk(*args: Any, **options: Any) -> None:
        convert(*args, **options)
        if kept_back.exists() or not reserve:
            raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(old_format, "convert", on_a_full_disk)
    if not reserve:
        with pytest.raises(StoreFull, match="unharmed"):
            opened(path, known)
        monkeypatch.undo()
    with opened(path, known) as store:
        compare(store, known)
        assert kept_back.stat().st_size == 1 << 20


def test_old_rows_are_overwritten_whatever_sqlite_was_built_with(path, known, monkeypatch):
    connect = place.connect

    def built_otherwise(*args: Any, **settings: Any) -> sqlite3.Connection:
        connection = connect(*args, **settings)
        connection.execute("PRAGMA secure_delete = 0")
        return connection

    monkeypatch.setattr(place, "connect", built_otherwise)
    assert b'"holders":' in (path / "cache.db").read_bytes()
    opened(path, known).close()
    assert b'"holders":' not in (path / "cache.db").read_bytes()
