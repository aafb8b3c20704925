"""Which sorted sets find a row: from a row to its entries, and from an entry back to its row.

An index tells nothing that the rows do not tell, so each can be made again, and each entry of one
names a row, or a hash in which some row must be. The easy mistake is to change one direction alone:
`check` holds the two against each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from langchain_rwkv_state.store.redis.keys import (
    DIGEST_BYTES,
    Keys,
    holder,
    name_of,
    number_of,
    numbered,
)
from langchain_rwkv_state.store.rows import (
    LOG,
    TOMBSTONES,
    Holder,
    HoldRow,
    QueueRow,
    SessionRow,
    StateRow,
    Table,
)
from langchain_rwkv_state.store.tables import RENEW_AFTER


class Entry(NamedTuple):
    """What an index holds for a row.

    Attributes:
        key: That of the sorted set.
        member: Its member.
        score: Its score; ``None`` where it is not to be in there.
    """

    key: bytes
    member: bytes
    score: float | None = 0.0


def entries(keys: Keys, table: Table, columns: Sequence[Any]) -> list[Entry]:
    """Returns what the indices hold for a row.

    Args:
        keys: What rows are called.
        table: The row's table.
        columns: Its columns.
    """
    if table is SessionRow.TABLE:
        name = columns[0]
        return [Entry(keys.names, name), Entry(keys.due(table), name, columns[6])]
    if table is LOG:
        name, seq, ref = columns[:3]
        told = [] if columns[6] is None or ref is None else [keys.tellers(ref)]
        return [Entry(keys.names, name), *(Entry(index, numbered(name, seq)) for index in told)]
    if table is StateRow.TABLE:
        return [Entry(keys.states, columns[0])]
    if table is HoldRow.TABLE:
        digest, kind, owner, expires, ttl = columns
        held = holder(kind, owner)
        kept = Entry(keys.kept(owner), digest, _worn_from(expires, ttl))
        owners = [kept] if kind == Holder.OWNER else []
        return [
            Entry(keys.states, digest),  # a hold whose state is lost is to be found, too
            Entry(keys.holds(digest), held),
            Entry(keys.due(table), digest + held, expires),
            *owners,
        ]
    if table is TOMBSTONES:
        return [Entry(keys.due(table), columns[0], columns[1])]
    if table is QueueRow.TABLE:
        return [Entry(keys.queues, numbered(columns[0], columns[1]), columns[5])]
    return []


def _worn_from(expires: float | None, ttl: float | None) -> float:
    """Returns from when on a hold is due to start anew when its owner is used."""
    return math.inf if expires is None or ttl is None else expires - (1 - RENEW_AFTER) * ttl


def row_of(keys: Keys, index: bytes, member: bytes) -> tuple[Table, tuple[Any, ...]] | None:
    """Returns the table and the key of the row that an entry finds.

    Args:
        keys: What rows are called.
        index: A sorted set of `entries`, but those of names and of states, which find hashes.
        member: One of its members.

    Returns:
        The row's place; ``None`` where no row has such an entry.
    """
    try:
        return _row_of(keys, index, member)
    except ValueError:
        return None


def _row_of(keys: Keys, index: bytes, member: bytes) -> tuple[Table, tuple[Any, ...]] | None:
    if index == keys.queues:
        return QueueRow.TABLE, (name_of(member), number_of(member))
    for table in (SessionRow.TABLE, TOMBSTONES):
        if index == keys.due(table):
            return table, (member,)
    if index == keys.due(HoldRow.TABLE):
        return HoldRow.TABLE, held_by(member[:DIGEST_BYTES], member[DIGEST_BYTES:])
    kind, _, rest = index.removeprefix(keys.base).partition(b":")
    if kind == b"h":
        return HoldRow.TABLE, held_by(bytes.fromhex(rest.decode()), member)
    if kind == b"o":
        return HoldRow.TABLE, (member, int(Holder.OWNER), rest)
    if kind == b"g":
        return LOG, (name_of(member), number_of(member))
    return None


def held_by(digest: bytes, held: bytes) -> tuple[bytes, int, bytes]:
    """Returns a hold's key, from its state and what `keys.holder` made.

    Raises:
        ValueError: That made no such thing.
    """
    return digest, int(held[1:2]), held[2:]


def is_held_by(digest: bytes, held: bytes) -> tuple[bytes, int, bytes] | None:
    """Returns what `held_by` does; ``None`` for what `keys.holder` did not make."""
    try:
        return held_by(digest, held)
    except ValueError:
        return None
