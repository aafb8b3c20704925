"""What a store's rows are called in Redis, and how a row becomes bytes there.

All keys of a store lie under one hash tag, ``rwkv:{TENANT}:``, so that one function may touch any
of them and nothing of another tenant's. Rows keep the checksum that `rows` gives them, which covers
their own keys, too: a row that was changed, or lies under another key than its own, comes out as
one that no checksum fits. The easy mistake is to read an index for a row: indices (the sorted sets)
only tell where rows may be.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

from langchain_rwkv_state.store import rows
from langchain_rwkv_state.store.rows import (
    LOG,
    TOMBSTONES,
    HoldRow,
    QueueRow,
    Raw,
    SessionRow,
    StateRow,
    Table,
)

ROW = b"row"
"""The field of a session's or a state's own row, in its hash."""
TOP = b"top"
"""The field that tells the newest log row of a session: its number and state."""
BYTES = b"bytes"
"""The field of a state's hash that names the key of its bytes, which expire with it."""

DIGEST_BYTES = 32
"""Of a state's reference."""

_COUNT = struct.Struct(">q")
_NUMBER = struct.Struct(">d")
_LENGTH = struct.Struct(">I")
_SUM_BYTES = 16
_FIELD = re.compile(rb"0|[1-9][0-9]{0,17}")  # of a log row; no longer than 64 bits have


class Keys:
    """The keys of one tenant's store.

    Args:
        tenant: Whose it is.

    Attributes:
        base: What all of them begin with.
        meta: Hash: what is noted of the store as a whole.
        totals: Hash: what all rows come to.
        tombstones: Hash: when states expired.
        names: Sorted set: the sessions' names.
        states: Sorted set: the states' digests.
        pause: Text: who has all that write wait.
        queues: Sorted set: places in queues, by their ends.
    """

    def __init__(self, tenant: str) -> None:
        # Neither a brace nor a pattern of SCAN stands in what is quoted so.
        self.base = f"rwkv:{{{quote(tenant, safe='', errors='surrogatepass')}}}:".encode()
        self.meta = self.base + b"meta"
        self.totals = self.base + b"totals"
        self.tombstones = self.base + b"tombstones"
        self.names = self.base + b"names"
        self.states = self.base + b"states"
        self.pause = self.base + b"pause"
        self.queues = self.base + b"queues"

    def session(self, name: bytes) -> bytes:
        """Returns the hash of a session: its row, and its log by number."""
        return self.base + b"s:" + name

    def state(self, digest: bytes) -> bytes:
        """Returns the hash of a state: its row, and the holds on it."""
        return self.base + b"r:" + digest.hex().encode()

    def holds(self, digest: bytes) -> bytes:
        """Returns the sorted set of a state's holders, as `holder` has them."""
        return self.base + b"h:" + digest.hex().encode()

    def kept(self, owner: bytes) -> bytes:
        """Returns the sorted set of the states that an owner keeps."""
        return self.base + b"o:" + owner

    def queue(self, name: bytes) -> bytes:
        """Returns the hash of the places in a session's queue, by number."""
        return self.base + b"q:" + name

    def tellers(self, digest: bytes) -> bytes:
        """Returns the sorted set of the log rows that tell how a state was read."""
        return self.base + b"g:" + digest.hex().encode()

    def due(self, table: Table) -> bytes:
        """Returns the sorted set of what expires, by its end."""
        return self.base + b"due:" + table.name.encode()

    @property
    def folder(self) -> str:
        """The key of the name of the folder that large states' files lie in."""
        return f"{self.base.decode()}folder"

    def blob(self, name: str) -> str:
        """Returns the key of a state's bytes."""
        return f"{self.base.decode()}b:{name}"

    def aside(self, name: str) -> str:
        """Returns the key of bytes that were set aside."""
        return f"{self.base.decode()}aside:{name}"

    def place(self, blob: str) -> str:
        """Returns where a state's bytes are, as `blobs` has it, from what the state's row says."""
        name, _, place = blob.partition("@")
        return place or f"r:{self.blob(name)}"

    def noted(self, name: str, place: str) -> str:
        """Returns what a state's row says of where its bytes are; it begins with their name."""
        return name if place == self.place(name) else f"{name}@{place}"

    def bytes_key(self, blob: str) -> bytes | None:
        """Returns the key of a state's bytes, ``None`` where they lie in a file."""
        kind, _, key = self.place(blob).partition(":")
        return key.encode() if kind == "r" else None


def holder(kind: int, owner: bytes) -> bytes:
    """Returns a hold's field in its state's hash; they sort by kind and owner."""
    return b"h%d" % kind + owner


def number(seq: int) -> bytes:
    """Returns the field of a log row, or of a place in a queue."""
    return b"%d" % seq


def numbers(found: Iterable[bytes]) -> list[int]:
    """Returns the numbers among a hash's fields, sorted; what `number` did not write is none."""
    return sorted(int(field) for field in found if _FIELD.fullmatch(field))


def numbered(name: bytes, seq: int) -> bytes:
    """Returns a log row, or a place in a queue, as a member of an index."""
    return _COUNT.pack(seq) + name


def name_of(member: bytes) -> bytes:
    """Reads a session's name from what `numbered` made."""
    return member[_COUNT.size :]


def number_of(member: bytes) -> int:
    """Reads the number from what `numbered` made.

    Raises:
        ValueError: It made no such thing.
    """
    if len(member) < _COUNT.size:
        raise ValueError("no number")
    return int(_COUNT.unpack_from(member)[0])


def pack_top(seq: int, ref: bytes | None) -> bytes:
    """Returns what `TOP` holds."""
    return _COUNT.pack(seq) + (ref or b"")


def top_number(top: bytes) -> int:
    """Reads the number from what `pack_top` made; -1 where it was changed."""
    return int(_COUNT.unpack_from(top)[0]) if len(top) >= _COUNT.size else -1


def row_place(keys: Keys, table: Table, key: Sequence[Any]) -> tuple[bytes, bytes]:
    """Returns the hash and the field that a row lies in.

    Args:
        keys: What rows are called.
        table: The row's table.
        key: Its columns, or the first of them.
    """
    if table is SessionRow.TABLE:
        return keys.session(key[0]), ROW
    if table is LOG:
        return keys.session(key[0]), number(key[1])
    if table is StateRow.TABLE:
        return keys.state(key[0]), ROW
    if table is HoldRow.TABLE:
        return keys.state(key[0]), holder(key[1], key[2])
    if table is QueueRow.TABLE:
        return keys.queue(key[0]), number(key[1])
    return (keys.tombstones if table is TOMBSTONES else keys.meta), key[0]


# -- rows ----------------------------------------------------------------------------------------


def encode(table: Table, columns: Sequence[Any]) -> bytes:
    """Returns a row with its checksum as bytes."""
    parts: list[bytes] = []
    for each in columns:
        if each is None:
            parts.append(b"n")
        elif type(each) is bytes:
            parts += (b"b", _LENGTH.pack(len(each)), each)
        elif type(each) is float:
            parts += (b"d", _NUMBER.pack(each))
        else:
            parts += (b"q", _COUNT.pack(each))
    return b"".join((rows.checksum(table.name, columns), *parts))


def decode(table: Table, key: Sequence[Any], data: bytes) -> Raw:
    """Reads a row: its columns, then its checksum.

    Args:
        table: Its table.
        key: What its first columns must be.
        data: What `encode` made.

    Returns:
        The row; for what is none, one of that key that no checksum fits.
    """
    try:
        columns = _columns(data)
    except (struct.error, ValueError, IndexError):
        columns = []
    if len(columns) != len(table.columns) or tuple(columns[: len(key)]) != tuple(key):
        return (*key, *[None] * (len(table.columns) - len(key)), b"")
    return (*columns, data[:_SUM_BYTES])


def _columns(data: bytes) -> list[Any]:
    found: list[Any] = []
    at, end = _SUM_BYTES, len(data)
    while at < end:
        letter, at = data[at], at + 1
        if letter == b"n"[0]:
            found.append(None)
        elif letter == b"b"[0]:
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size
            if at + length > end:
                raise ValueError("cut off")
            found.append(data[at : at + length])
            at += length
        elif letter == b"d"[0]:
            found.append(_NUMBER.unpack_from(data, at)[0])
            at += _NUMBER.size
        elif letter == b"q"[0]:
            found.append(_COUNT.unpack_from(data, at)[0])
            at += _COUNT.size
        else:
            raise ValueError("no column")
    return found
