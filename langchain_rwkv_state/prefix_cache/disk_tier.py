"""Keeps the disk tier: entries in a directory of their own, which a machine's processes share.

Each entry is a row (where it hangs in which tree, when it expires) and a file (the state codec's
bytes, with their checksum). It stands on the store's diskcache backend, so no pickle is read or
written; other than there, what does not fit the budget is culled. A row gives the ids of its
prompt: whoever may read the directory may read the prompts. A row is not trusted: its
file may be gone, damaged or another's, and each of these is a miss.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
import platformdirs
import torch

from langchain_rwkv_state.errors import RWKVStateError, StateCorrupt, StoreError
from langchain_rwkv_state.prefix_cache.entries import CachedState, Namespace
from langchain_rwkv_state.prefix_cache.eviction import score
from langchain_rwkv_state.prefix_cache.radix_tree import unpack
from langchain_rwkv_state.state import Buffer, Derivation, decode, encode_parts
from langchain_rwkv_state.store.disk_backend import DiskBackend
from langchain_rwkv_state.store.place import has_sessions, holds_store, require_place
from langchain_rwkv_state.store.schema import DATABASE
from langchain_rwkv_state.store.tables import Sql

T = TypeVar("T")

_ENTRY, _ENTRY_END = b"e", b"f"
_BY_DIGEST = b"d"
_LAST = b"s"
_CHECK_BYTES = 16
_HALF_LIFE_SECONDS = 86_400.0  # of an entry's score, from its last use on
_FILL = 0.95  # of the budget, after a culling: culling looks at every row, so it is not for each
_SMALL_ROWS_BYTES = 64  # the digest's and the counter's, and a longer number in the entry's
_GRACE_SECONDS = 60.0  # a row is written before its file

_SOUND = (
    "(raw = 1 AND mode = 1 AND expire_time IS NULL AND tag IS NULL AND filename IS NULL"
    " AND typeof(key) = 'blob' AND typeof(value) = 'blob')"
)
_PUT = (
    "INSERT INTO Cache(key, raw, store_time, access_time, size, mode, value)"
    " VALUES (?, 1, ?, ?, ?, 1, ?) ON CONFLICT(key, raw) DO UPDATE SET"
    " store_time = excluded.store_time, expire_time = NULL,"
    " access_time = excluded.access_time, access_count = 0, tag = NULL, size = excluded.size,"
    " mode = excluded.mode, filename = NULL, value = excluded.value"
)


def default_cache_directory() -> Path:
    """Returns the user's own directory for prefix caches."""
    return Path(platformdirs.user_cache_dir("langchain-rwkv-state", appauthor=False)) / "prefixes"


@dataclass(frozen=True)
class Row:
    """What the directory says of an entry.

    Attributes:
        number: Rises with each entry written.
        namespace: Its tree.
        key: The packed ids of its path.
        blob: Name of its file.
        nbytes: Size of that file.
        saved: Ids that it saved when it was written, beside those of the entry above it.
        uses: How often it was used.
        created: Unix time; so are the next two.
        used: Of the last use.
        expires: `math.inf` for never.
        has_logits: Whether the logits of the next token are with it.
        pin: The name that it is pinned under, ``None`` for none.
    """

    number: int
    namespace: Namespace
    key: bytes
    blob: str
    nbytes: int
    saved: int
    uses: int
    created: float
    used: float
    expires: float
    has_logits: bool
    pin: str | None = None

    @property
    def row_key(self) -> bytes:
        """The key of this row."""
        return _ENTRY + self.number.to_bytes(8, "big")

    def to_bytes(self) -> bytes:
        """Returns the row, under a checksum that covers its key."""
        about = {k: v for k, v in asdict(self).items() if k not in ("key", "namespace")}
        about["root"] = asdict(self.namespace)  # its name in the file
        about["expires"] = None if math.isinf(self.expires) else self.expires
        body = json.dumps(about, sort_keys=True).encode() + b"\n" + self.key
        return _check(self.row_key, body) + body

    @classmethod
    def from_bytes(cls, row_key: bytes, data: bytes | None) -> Row:
        """Reads what `to_bytes` wrote.

        Raises:
            StateCorrupt: It was changed, or is of foreign making.
        """
        if data is None or data[:_CHECK_BYTES] != _check(row_key, data[_CHECK_BYTES:]):
            raise StateCorrupt("A row of the prefix cache was changed, or is of foreign making.")
        try:
            header, _, key = data[_CHECK_BYTES:].partition(b"\n")
            about: dict[str, Any] = json.loads(header)
            about["namespace"] = Namespace(**about.pop("root"))
            expires = about.pop("expires")
            return cls(key=key, expires=math.inf if expires is None else expires, **about)
        except (ValueError, TypeError, KeyError) as error:
            raise StateCorrupt(f"A row of the prefix cache is not readable: {error}") from error

    def rank(self, now: float) -> float:
        """Returns the entry's score: tokens saved per byte, halved with each day unused."""
        age = max(now - self.used, 0.0) / _HALF_LIFE_SECONDS
        return float(score(self.saved, self.uses + 1, self.nbytes) * 0.5 ** min(age, 1000.0))


def require_place_for_cache(path: Path) -> None:
    """Checks that a directory holds a cache or may come to hold one; makes and changes nothing.

    Args:
        path: The directory.

    Raises:
        StoreError: It holds a session store, which a cache would throw away, or other things.
    """
    database = path / DATABASE
    try:
        require_place(path, create=None)
        if not holds_store(path):
            return
        with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)) as opened:
            found = has_sessions(opened)
    except (sqlite3.Error, OSError, UnicodeDecodeError):  # the last from a damaged schema
        return  # a directory that cannot be used costs time, and no answer
    if found:
        raise _session_store(path)


def _session_store(path: Path) -> StoreError:
    return StoreError(
        f"{path} is a session store, and a prefix cache forgets what it holds: name another "
        "directory for the cache."
    )


class DiskTier:
    """Entries in a directory, at most so many bytes of them.

    Args:
        path: The directory, made where it is missing.
        budget: The most bytes of files and rows; the database's own pages come on top.
        clock: Gives Unix time.
        only_reads: Whether to leave the directory as it is: what is damaged is passed over.

    Attributes:
        evictions: Entries that had to go for others.
        failed: Whether it could not be used, and is to be opened anew.

    Raises:
        StoreError: The directory holds something else than a cache of this package, or nothing
            that could be read.
        StoreFull: The disk leaves no room for one.
    """

    def __init__(
        self,
        path: Path,
        budget: int,
        clock: Callable[[], float] = time.time,
        *,
        only_reads: bool = False,
    ) -> None:
        if only_reads and not holds_store(path):
            raise StoreError(f"Nothing is kept in {path} that could be read.")
        self.path = path
        self.budget = budget
        self.evictions = 0
        self.failed = False
        self._clock = clock
        require_place_for_cache(path)
        self._backend = DiskBackend(path, 5.0, create=None, read_only=only_reads, tables=False)
        self._reader = _Reader(self._backend.sql)
        self._only_reads = only_reads

    @property
    def nbytes(self) -> int:
        """Bytes of files and rows."""
        return self._reader.nbytes()

    def news(self, after: int) -> tuple[list[Row], int, int]:
        """Returns entries written since, by whatever process.

        Args:
            after: Number of the last entry that is known, 0 for none.

        Returns:
            The entries, how many rows were damaged, and the number of the last one.
        """
        found = self._reader.scan(_ENTRY + (after + 1).to_bytes(8, "big"), _ENTRY_END)
        last = int.from_bytes(found[-1][0][1:9], "big") if found else after
        return (*self._readable(found), last)

    def rows(self) -> list[Row]:
        """Returns all entries."""
        return self._readable(self._reader.scan(_ENTRY, _ENTRY_END))[0]

    def load(self, row: Row) -> CachedState | None:
        """Returns what an entry holds, ``None`` where its file is gone.

        Raises:
            StateCorrupt: The file is damaged, or is not that of this entry.
            StateMismatch: It belongs to another model.
        """
        data = self._backend.read_blob(row.blob, row.nbytes)
        return None if data is None else _unpack(row, data)

    def save(
        self,
        namespace: Namespace,
        key: bytes,
        cached: CachedState,
        *,
        saved: int,
        ttl: float,
        pin: str | None = None,
    ) -> Row | None:
        """Writes an entry; one that is there already stays, unless this one knows more.

        Returns:
            The entry's row, ``None`` where it does not fit the budget.
        """
        parts = _pack(cached)
        nbytes = sum(map(len, parts))
        digest = _digest(namespace, key)
        now = self._clock()
        row = Row(
            number=0,
            namespace=namespace,
            key=key,
            blob=f"{digest.hex()}-{secrets.token_hex(8)}",
            nbytes=nbytes,
            saved=saved,
            uses=0,
            created=now,
            used=now,
            expires=math.inf if pin else now + ttl,
            has_logits=cached.logits is not None,
            pin=pin,
        )

        def work(rows: _Transaction) -> tuple[Row | None, bool]:
            there = _find(rows, digest)
            if there is not None:
                better = row.has_logits and not there.has_logits
                same_pin = pin is None or there.pin == pin
                if same_pin and not better and rows.blob_exists(there.blob):
                    return there, False
                self._remove(rows, there)
            if not self._make_room(rows, nbytes + len(row.to_bytes()) + _SMALL_ROWS_BYTES, now):
                return None, False
            last = int.from_bytes(rows.get(_LAST) or b"", "big") + 1
            kept_pin = pin or (there.pin if there else None)
            fresh = replace(
                row, number=last, pin=kept_pin, expires=math.inf if kept_pin else row.expires
            )
            rows.put(_LAST, last.to_bytes(8, "big"))
            rows.put(fresh.row_key, fresh.to_bytes(), blob_nbytes=fresh.nbytes)
            rows.put(_BY_DIGEST + digest, last.to_bytes(8, "big"))
            return fresh, True

        written, is_new = self._transact(work, freeing=True)
        if written is not None and is_new:
            try:
                self._backend.write_blob(written.blob, parts)
            except RWKVStateError:
                self.discard(written)
                raise
            # Another writer of the same entry may have missed the file, and put its own in place.
            if self._transact(lambda rows: rows.get(written.row_key)) is None:
                self._backend.drop_blobs((written.blob,))
        return written

    def update(self, row: Row, change: Callable[[Row], Row]) -> Row | None:
        """Writes what a change makes of an entry; ``None`` where it is gone."""

        def work(rows: _Transaction) -> Row | None:
            data = rows.get(row.row_key)
            if data is None:
                return None
            changed = change(Row.from_bytes(row.row_key, data))
            rows.put(changed.row_key, changed.to_bytes(), blob_nbytes=changed.nbytes)
            return changed

        return self._transact(work)

    def discard(self, row: Row) -> None:
        """Removes an entry, if it is still there and anything is to be removed."""
        if self._only_reads:
            return

        def work(rows: _Transaction) -> None:
            if rows.get(row.row_key) is not None:
                self._remove(rows, row)

        self._transact(work, freeing=True)

    def forget(self, stands: Callable[..., bool]) -> int:
        """Removes entries for good: neither their ids nor their bytes are found in the directory.

        Args:
            stands: Says of a namespace and a key, and whether it is ``pinned``, that it goes.

        Returns:
            How many there were.
        """
        gone = [row for row in self.rows() if stands(row.namespace, row.key, pinned=bool(row.pin))]
        for row in gone:
            self.discard(row)
        if gone:
            self._backend.scrub(frozenset(row.blob[:64] for row in gone))
        return len(gone)

    def is_fresh(self, row: Row) -> bool:
        """Says whether an entry's file may still be on its way."""
        return abs(self._clock() - row.created) < _GRACE_SECONDS

    def clear(self) -> int:
        """Removes everything; returns how many entries there were."""

        def work(rows: _Transaction) -> int:
            count = rows.count(_ENTRY, _ENTRY_END)
            rows.delete_range(_BY_DIGEST, _ENTRY_END)
            return count

        count = self._transact(work, freeing=True)
        for name, _ in list(self._backend.blobs()):
            self._backend.drop_blobs([name])
        return count

    def sweep(self) -> None:
        """Removes what has expired, and files that no row names."""
        now = self._clock()
        for row in self.rows():
            if row.expires <= now:
                self.discard(row)
        named = {row.blob for row in self.rows()}
        for name, age in list(self._backend.blobs()):
            if name not in named and age > _GRACE_SECONDS:
                self._backend.drop_blobs([name])

    def close(self) -> None:
        """Lets go of the directory."""
        self._backend.close()

    def _transact(self, work: Callable[[_Transaction], T], *, freeing: bool = False) -> T:
        """Runs `work` in a transaction, and deletes the files that it dropped; as the backend's."""

        def transaction(sql: Sql) -> tuple[T, list[str]]:
            rows = _Transaction(sql, self._backend.blob_exists)
            return work(rows), rows.dropped

        result, dropped = self._backend.transact(transaction, freeing=freeing)
        if dropped:
            self._backend.drop_blobs(dropped)
        return result

    def _readable(self, found: list[tuple[bytes, bytes | None]]) -> tuple[list[Row], int]:
        rows, bad = [], []
        for key, data in found:
            try:
                rows.append(Row.from_bytes(key, data))
            except StateCorrupt:
                bad.append(key)
        if bad and not self._only_reads:
            self._transact(lambda changes: changes.delete(*bad), freeing=True)
        return rows, len(bad)

    def _make_room(self, rows: _Transaction, nbytes: int, now: float) -> bool:
        """Removes entries of the lowest score until there is room; says whether there is."""
        held = rows.nbytes()
        if held + nbytes <= self.budget:
            return True
        entries = []
        for key, data in rows.scan(_ENTRY, _ENTRY_END):
            try:
                entries.append(Row.from_bytes(key, data))
            except StateCorrupt:
                rows.delete(key)
        loose = [row for row in entries if row.pin is None]
        pinned = sum(row.nbytes for row in entries) - sum(row.nbytes for row in loose)
        if pinned + nbytes > self.budget:
            return False
        loose.sort(key=lambda row: (row.expires > now, row.rank(now)))
        goal = max(self.budget * _FILL - nbytes, pinned)
        for row in loose:
            if rows.nbytes() <= goal:
                break
            self._remove(rows, row)
            self.evictions += row.expires > now
        return rows.nbytes() + nbytes <= self.budget

    @staticmethod
    def _remove(rows: _Transaction, row: Row) -> None:
        digest_key = _BY_DIGEST + _digest(row.namespace, row.key)
        rows.delete(row.row_key)
        if rows.get(digest_key) == row.number.to_bytes(8, "big"):
            rows.delete(digest_key)
        rows.drop_blob(row.blob)


class _Reader:
    """Rows as they stand.

    Args:
        sql: Runs a statement.
    """

    def __init__(self, sql: Sql) -> None:
        self._sql = sql

    def get(self, key: bytes) -> bytes | None:
        """Returns a row's bytes; ``None`` where there is none of our making."""
        found = self._sql(
            f"SELECT CASE WHEN {_SOUND} THEN value END FROM Cache WHERE key = ?",  # noqa: S608
            (key,),
        )
        return found[0][0] if len(found) == 1 else None

    def scan(self, start: bytes, end: bytes) -> list[tuple[bytes, bytes | None]]:
        """Returns rows from `start` to `end` (exclusive) in order; ``None`` for a foreign one."""
        return [
            (key, value)
            for key, value in self._sql(
                f"SELECT key, CASE WHEN {_SOUND} THEN value END FROM Cache"  # noqa: S608
                " WHERE key >= ? AND key < ? ORDER BY key",
                (start, end),
            )
        ]

    def count(self, start: bytes, end: bytes) -> int:
        """Returns how many rows there are from `start` to `end` (exclusive)."""
        ((number,),) = self._sql(
            "SELECT COUNT(*) FROM Cache WHERE key >= ? AND key < ?", (start, end)
        )
        return int(number)

    def nbytes(self) -> int:
        """Returns the bytes of all rows and of the files that they count."""
        found = self._sql("SELECT value FROM Settings WHERE key = 'size'", ())
        if len(found) == 1 and isinstance(found[0][0], int):
            return found[0][0]
        ((number,),) = self._sql("SELECT TOTAL(size) FROM Cache", ())  # the counter was changed
        return int(number)


class _Transaction(_Reader):
    """Rows as they will stand if the transaction happens.

    Args:
        sql: Runs a statement.
        blob_exists: Says whether a file is there.

    Attributes:
        dropped: Files to delete after it.
    """

    def __init__(self, sql: Sql, blob_exists: Callable[[str], bool]) -> None:
        super().__init__(sql)
        self.blob_exists = blob_exists
        self.dropped: list[str] = []

    def put(self, key: bytes, value: bytes, *, blob_nbytes: int = 0) -> None:
        """Writes a row that counts for its own bytes and for `blob_nbytes`."""
        now = time.time()
        self._sql(_PUT, (key, now, now, len(value) + blob_nbytes, value))

    def delete(self, *keys: bytes) -> None:
        """Deletes rows, as far as they are there."""
        for key in keys:
            self._sql("DELETE FROM Cache WHERE key = ?", (key,))

    def delete_range(self, start: bytes, end: bytes) -> None:
        """Deletes the rows from `start` to `end` (exclusive)."""
        self._sql("DELETE FROM Cache WHERE key >= ? AND key < ?", (start, end))

    def drop_blob(self, name: str) -> None:
        """Deletes a file after the transaction has happened."""
        self.dropped.append(name)


def _find(rows: _Reader, digest: bytes) -> Row | None:
    number = rows.get(_BY_DIGEST + digest)
    if number is None:
        return None
    key = _ENTRY + number
    data = rows.get(key)
    try:
        return None if data is None else Row.from_bytes(key, data)
    except StateCorrupt:
        return None


def _digest(namespace: Namespace, key: bytes) -> bytes:
    text = json.dumps([namespace.fingerprint, namespace.base, namespace.salt]).encode()
    return hashlib.sha256(text + b"\n" + key).digest()


def _check(row_key: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(row_key + body, digest_size=_CHECK_BYTES).digest()


def _pack(cached: CachedState) -> list[Buffer]:
    """Returns a file in pieces: the state, the logits, their checksum and their size."""
    logits = b"" if cached.logits is None else cached.logits.numpy().tobytes()
    check = hashlib.blake2b(logits, digest_size=_CHECK_BYTES).digest()
    return [*encode_parts(cached.state), logits + check + len(logits).to_bytes(8, "little")]


def _unpack(row: Row, data: bytes) -> CachedState:
    size = int.from_bytes(data[-8:], "little")
    end = len(data) - 8 - _CHECK_BYTES
    if end < size:
        raise StateCorrupt("The entry is truncated.")
    logits, check = data[end - size : end], data[end:-8]
    if hashlib.blake2b(logits, digest_size=_CHECK_BYTES).digest() != check or size % 4:
        raise StateCorrupt("The entry's checksum is wrong: it was truncated or changed.")
    if bool(size) != row.has_logits:
        raise StateCorrupt("The entry is not what its row says.")
    state = decode(data[: end - size], fingerprint=row.namespace.fingerprint).state
    if state.derivation != Derivation(row.namespace.fingerprint).read(unpack(row.key)):
        raise StateCorrupt("The entry holds the state of another prompt.")
    if not size:
        return CachedState(state)
    return CachedState(state, torch.from_numpy(np.frombuffer(logits, np.float32).copy()))
