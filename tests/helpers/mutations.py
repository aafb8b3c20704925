"""Changes a store behind its back: one column of one row, or some bytes of one file, at a time.

A campaign counts how many changes were noticed (refused with an error of ours, or found by
`check`), and whether one was run or made a session new. A change that changes nothing is not
counted.
"""

from __future__ import annotations

import os
import pickle
import random
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from langchain_rwkv_state.errors import RWKVStateError
from langchain_rwkv_state.state import CodecName, lossy
from langchain_rwkv_state.store import DiskStateStore, SessionInfo
from langchain_rwkv_state.store.rows import TABLES
from tests.helpers.states import random_state

LISTED = (
    *("key", "raw", "store_time", "expire_time", "access_time", "access_count"),
    *("tag", "size", "mode", "filename", "value"),
)
"""All of diskcache's columns but the rowid, which is SQLite's own and means nothing."""


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


class RowMutator:
    """Changes rows of a store and puts them back.

    Args:
        path: The store's directory; the store may be open.
        seed: Decides what is changed.
        payload: Bytes to plant.
    """

    def __init__(self, path: Path, seed: int, payload: bytes) -> None:
        self._dice = random.Random(seed)
        self._payload = payload
        self._database = sqlite3.connect(path / "cache.db", isolation_level=None, timeout=30)
        self._rows = {name: self._sql(f"SELECT * FROM {name}") for name in TABLES}
        self._settings = self._sql("SELECT * FROM Settings")
        self._listed = self._sql("SELECT * FROM Cache")

    def close(self) -> None:
        self._database.close()

    def mutate(self) -> str:
        """Changes one column of one row; returns its name, behind that of its table."""
        while True:
            name = self._dice.choice([*TABLES, *["Cache"] * 2])
            listed = name == "Cache"
            found = self._listed if listed else self._rows[name]
            if not found:
                continue
            row = self._dice.choice(found)
            columns = ("rowid", *LISTED) if listed else (*TABLES[name].columns, "sum")
            keys = 1 if listed else TABLES[name].keys
            place = self._dice.randrange(1 if listed else 0, len(columns))
            where = " AND ".join(f"{each} IS ?" for each in columns[:keys])
            new = self._changed(row[place])
            statement = f"UPDATE {name} SET {columns[place]} = ? WHERE {where}"
            try:
                self._sql(statement, (new, *row[:keys]))
            except sqlite3.Error:
                continue
            key = [*row[:place], new, *row[place + 1 :]][:keys]
            found = self._sql(f"SELECT {columns[place]} FROM {name} WHERE {where}", tuple(key))
            if not found or found[0][0] != row[place] or type(found[0][0]) is not type(row[place]):
                return f"{name}.{columns[place]}"

    def restore(self) -> None:
        """Puts everything back."""
        self._sql("BEGIN IMMEDIATE")
        for name, found in {
            **self._rows,
            "Cache": self._listed,
            "Settings": self._settings,
        }.items():
            self._sql(f"DELETE FROM {name}")
            if found:
                places = ", ".join("?" * len(found[0]))
                self._database.executemany(f"INSERT INTO {name} VALUES ({places})", found)
        self._sql("COMMIT")

    def _changed(self, value: Any) -> Any:
        dice = self._dice
        options: list[Any] = [self._payload, "../../victim", 0, -1, 1 << 40, 4, None, 3.5, b"", "x"]
        if isinstance(value, bytes) and value:
            at = dice.randrange(len(value))
            flipped = value[:at] + bytes([value[at] ^ 1 << dice.randrange(8)]) + value[at + 1 :]
            options += [flipped] * 12 + [value[:at], value + b"\x00"]
        return dice.choice([option for option in options if option != value])

    def _sql(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return self._database.execute(statement, values).fetchall()


def fill(store: DiskStateStore, sessions: int) -> dict[str, str]:
    """Commits turns, keeps states and leaves messages unread; returns the heads."""
    heads: dict[str, str] = {}
    for number in range(sessions):
        name, head = f"s{number}", None
        for turn in range(3):
            ref = store.stage(random_state([number, turn]), parent=head, tokens=[turn])
            store.commit(name, ref, head)
            head = heads[name] = ref
        store.append_unread(name, ['"x"'])
        store.keep(heads[name], f"thread of {name}")
    store.put(random_state([1]), ttl=60)
    return heads


def mutate_rows(path: Path, count: int, seed: int = 7) -> dict[str, int]:
    """Changes `count` rows, one at a time."""
    path.mkdir(parents=True)
    ran = path / "ran"
    found = {"changed": 0, "noticed": 0, "run": 0, "new_sessions": 0, "wrong_sessions": 0}
    with DiskStateStore(path / "store", log="tokens") as store:
        names = list(fill(store, 6))
        refs = {entry.ref for name in names for entry in store.log(name) if entry.kept}
        before = {name: store.session(name) for name in names}
        mutator = RowMutator(path / "store", seed, pickle.dumps(Payload(ran)))
        with closing(mutator):
            for _ in range(count):
                mutator.mutate()
                found["changed"] += 1
                noticed = _use(store, before, refs, found) or not store.check().sound
                found["noticed"] += noticed
                mutator.restore()
            assert store.check().sound
    found["run"] = int(ran.exists())
    return found


def _use(
    store: DiskStateStore,
    before: dict[str, SessionInfo | None],
    refs: set[str],
    found: dict[str, int],
) -> bool:
    """Uses all of a store; says whether something was refused."""
    refused = False
    for name, known in before.items():
        try:
            info = store.session(name)
            store.log(name)
        except RWKVStateError:
            refused = True
            continue
        found["new_sessions"] += info is None
        if info is not None and known is not None:
            # The size and the model are told by the states' rows: those that cannot be read count
            # nothing, and tell nothing.
            told: dict[str, Any] = {"nbytes": known.nbytes}
            if info.fingerprint is None:
                told |= {"model": known.model, "fingerprint": known.fingerprint}
            found["wrong_sessions"] += replace(info, **told) != known
    for ref in refs:
        try:
            store.get(ref)
        except RWKVStateError:
            refused = True
    return refused


def mutate_files(
    path: Path, count: int, seed: int = 11, *, codec: CodecName = "exact"
) -> dict[str, int]:
    """Changes the file of a head `count` times."""
    expected = lossy(random_state([1]), codec)
    dice = random.Random(seed)
    found = {"changed": 0, "noticed": 0, "run": 0, "new_sessions": 0}
    with DiskStateStore(path, codec=codec) as store:
        ref = store.stage(random_state([1]))
        store.commit("bob", ref, None)
        (file,) = path.glob("??/*.safetensors")
        whole = file.read_bytes()
        for _ in range(count):
            file.write_bytes(_changed_bytes(whole, dice))
            found["changed"] += 1
            try:
                store.get(ref)
            except RWKVStateError:
                found["noticed"] += 1
            found["new_sessions"] += store.head("bob") != ref
        assert not store.check().sound
        file.write_bytes(whole)
        assert store.get(ref) == expected
        assert store.check().sound
    return found


def _changed_bytes(whole: bytes, dice: random.Random) -> bytes:
    """Returns other bytes than `whole`."""
    data = bytearray(whole)
    match dice.randrange(5):
        case 0:
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        case 1:
            data[dice.randrange(min(2000, len(data)))] ^= 1 << dice.randrange(8)
        case 2:
            del data[dice.randrange(len(data)) :]
        case 3:
            data += dice.randbytes(dice.randrange(1, 100))
        case _:
            at = dice.randrange(len(data) - 16)
            data[at : at + 16] = dice.randbytes(16)
    return bytes(data) if bytes(data) != whole else b""
