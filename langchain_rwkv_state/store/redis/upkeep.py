"""Holds the indices of a store in Redis against its rows, and takes what went off its disk.

The keys are scanned, since an index that has lost a name cannot tell of it. The easy mistake is to
believe the scan: somebody writes meanwhile, so whatever looks wrong is looked at again, as of one
moment, before it is told or mended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from langchain_rwkv_state.errors import StateCorrupt, StoreError
from langchain_rwkv_state.store.records import CheckReport
from langchain_rwkv_state.store.redis.connect import errors
from langchain_rwkv_state.store.redis.indices import Entry, entries, held_by, row_of
from langchain_rwkv_state.store.redis.keys import ROW, Keys, decode, row_place
from langchain_rwkv_state.store.redis.space import Space
from langchain_rwkv_state.store.rows import (
    LOG,
    TOMBSTONES,
    HoldRow,
    QueueRow,
    SessionRow,
    StateRow,
    Table,
)

if TYPE_CHECKING:
    from redis import Redis

_PAGE = 500

_LOOK_SECONDS = 0.05

Look = Callable[[Callable[[Space], Any]], Any]
"""Runs a look, or a transaction, on what it sees."""


def check_indices(
    client: Redis, keys: Keys, space: Space, look: Look, change: Look | None
) -> CheckReport:
    """Compares the indices with the rows.

    Args:
        client: A connection, for scans.
        keys: What rows are called.
        space: Reads without noting it.
        look: Looks at one moment.
        change: Changes something; ``None`` where nothing is to be mended.
    """
    problems: list[str] = []
    repaired: list[str] = []
    for some in _paged(_candidates(client, keys, space)):
        for entry in _differing(keys, space, list(dict.fromkeys(some))):
            if not look(partial(_corrected, keys, entry=entry)):
                continue  # it was being written
            words = _words(keys, entry)
            problems.append(f"The index {words} is not as the rows say.")
            if change is not None and change(partial(_mend, keys, entry=entry)):
                repaired.append(f"Wrote the index {words} again.")
    return CheckReport(tuple(problems), tuple(repaired))


def _words(keys: Keys, entry: Entry) -> str:
    index = entry.key.removeprefix(keys.base).decode("utf-8", "replace")
    return f"{index!r} of {entry.member!r}"


def _candidates(client: Redis, keys: Keys, space: Space) -> Iterator[Entry]:
    """Yields all entries that rows want, and all that there are; their scores count for nothing."""
    for some in _paged(_scanned(client, keys, (b"s:", b"r:", b"q:"), keys.tombstones)):
        for key, fields in zip(some, space.hashes(some), strict=True):
            for field, data in fields.items():
                place = _place(keys, key, field)
                if place is not None:
                    table, row = place
                    wanted = entries(keys, table, decode(table, row, data)[:-1])
                    yield from (each._replace(score=None) for each in wanted)
    due = [keys.due(table) for table in (SessionRow.TABLE, HoldRow.TABLE, TOMBSTONES)]
    own = (keys.names, keys.states, keys.queues, *due)
    for index in _scanned(client, keys, (b"h:", b"o:", b"g:"), *own):
        for member in space.members(index):
            yield Entry(index, member, None)


def _scanned(client: Redis, keys: Keys, kinds: Sequence[bytes], *known: bytes) -> Iterator[bytes]:
    yield from known
    for kind in kinds:
        with errors():
            yield from client.scan_iter(match=keys.base + kind + b"*", count=_PAGE)


def _paged(found: Iterator[Any]) -> Iterator[list[Any]]:
    page: list[Any] = []
    for each in found:
        page.append(each)
        if len(page) == _PAGE:
            yield page
            page = []
    if page:
        yield page


def _place(keys: Keys, key: bytes, field: bytes) -> tuple[Table, tuple[Any, ...]] | None:
    """Returns the table and the key of a row in a hash; ``None`` for what is no row."""
    kind, _, rest = key.removeprefix(keys.base).partition(b":")
    try:
        if kind == b"s" and field == ROW:
            return SessionRow.TABLE, (rest,)
        if kind == b"s":
            return LOG, (rest, int(field))
        if kind == b"q":
            return QueueRow.TABLE, (rest, int(field))
        if kind == b"r" and field == ROW:
            return StateRow.TABLE, (bytes.fromhex(rest.decode()),)
        if kind == b"r":
            return HoldRow.TABLE, held_by(bytes.fromhex(rest.decode()), field)
    except ValueError:
        return None
    return TOMBSTONES, (field,)


def _differing(keys: Keys, space: Space, some: list[Entry]) -> list[Entry]:
    """Returns the entries that seem to be wrong."""
    wanted = _wanted(keys, space, some)
    there = space.read([(b"ZSCORE", each.key, each.member) for each in some])
    return [
        each
        for each, right, score in zip(some, wanted, there, strict=True)
        if right is not None and right.score != (None if score is None else float(score))
    ]


def _wanted(keys: Keys, space: Space, some: list[Entry]) -> list[Entry | None]:
    """Returns each entry as the rows say it should be; ``None`` where the row was changed."""
    hashes = {keys.names: keys.session, keys.states: keys.state}
    places: list[tuple[Table, tuple[Any, ...]] | None] = []
    reads: list[tuple[bytes, ...]] = []
    for each in some:
        place = None
        if each.key in hashes:
            reads.append((b"HLEN", hashes[each.key](each.member)))
        else:
            place = row_of(keys, each.key, each.member)
            key, field = (b"", b"") if place is None else row_place(keys, *place)
            reads.append((b"HGET", key or keys.base, field))
        places.append(place)
    found: list[Entry | None] = []
    for each, place, reply in zip(some, places, space.read(reads), strict=True):
        if each.key in hashes:
            found.append(each._replace(score=0.0 if reply else None))
        elif place is None or reply is None:
            found.append(each._replace(score=None))
        else:
            found.append(_of_row(keys, each, *place, reply))
    return found


def _of_row(
    keys: Keys, entry: Entry, table: Table, key: tuple[Any, ...], data: bytes
) -> Entry | None:
    raw = decode(table, key, data)
    try:
        table.require_sound(raw)
    except StateCorrupt:
        return None
    for each in entries(keys, table, raw[:-1]):
        if each[:2] == entry[:2]:
            return each
    return entry._replace(score=None)


def _corrected(keys: Keys, space: Space, entry: Entry) -> list[Entry]:
    """Returns an entry as it should be; nothing where it is so."""
    wrong = _differing(keys, space, [entry])
    return [right for right in _wanted(keys, space, wrong) if right is not None]


def _mend(keys: Keys, space: Space, entry: Entry) -> bool:
    right = _corrected(keys, space, entry)
    for each in right:
        space.enter(*each)
    return bool(right)


def write_log_anew(client: Redis, timeout_seconds: float) -> None:
    """Has Redis write its log of changes anew, in which what was deleted still stands.

    A server without such a log keeps snapshots, and what was deleted goes with the next one.

    Args:
        client: A connection.
        timeout_seconds: How long to wait until that is done.

    Raises:
        StoreError: It is not done yet, or may not be asked for.
    """
    from redis.exceptions import ResponseError

    with errors():
        if not _log(client)["aof_enabled"]:
            return
        deadline = time.monotonic() + timeout_seconds
        while not _begun(client, ResponseError):
            _wait(deadline)
        while any(_log(client)[f"aof_rewrite_{each}"] for each in ("in_progress", "scheduled")):
            _wait(deadline)
        done = _log(client)["aof_last_bgrewrite_status"]
    if done != "ok":
        raise StoreError(f"Redis could not write its log anew ({done}): see the server's own log.")


def _log(client: Redis) -> Any:
    return client.info("persistence")


def _begun(client: Redis, refused: type[Exception]) -> bool:
    """Has the log written anew; says no where that is under way from before the deletion."""
    try:
        client.bgrewriteaof()
    except refused as error:
        if "in progress" in str(error):
            return False
        raise
    return True


def _wait(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise StoreError(
            "Redis is still writing its log anew, without what was deleted: it goes on by itself, "
            "and INFO persistence says when it is done."
        )
    time.sleep(_LOOK_SECONDS)  # Redis tells nobody when it is done
