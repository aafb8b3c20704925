"""The rows of a store's tables as values, and how a value becomes columns under a checksum.

Values in, values out; no SQL. A checksum covers the table's name and every column, each told apart
by its type and length, so a row that was changed, or moved to another key or table, is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from operator import attrgetter, itemgetter
from typing import Annotated, Any, ClassVar, NamedTuple, Self, get_type_hints

from langchain_rwkv_state.errors import StateCorrupt
from langchain_rwkv_state.state.header import Named
from langchain_rwkv_state.store.records import COUNT_MAX, LogEntry
from langchain_rwkv_state.store.records import Body as Body
from langchain_rwkv_state.store.records import Origin as Origin

NAME_MAX = 512
"""The most characters of a session's or owner's name."""
_HASH = hashlib.blake2b(digest_size=16, person=b"rwkv-state-row")  # to be copied
_LETTERS = {int: "q", float: "d", bytes: "b", str: "t", type(None): "n"}
_REF_BYTES = 32

_SIZED = frozenset((bytes, str))
Raw = Sequence[Any]
"""A row as SQLite gives it: columns, then the checksum."""


class Holder(IntEnum):
    """What holds a state."""

    SESSION = 0
    OWNER = 1
    PUT = 2


# -- names and references ------------------------------------------------------------------------


def name_bytes(name: str) -> bytes:
    """Returns a session's or owner's name as bytes that sort as the name does."""
    return name.encode("utf-8", "surrogatepass")


def readable_name(data: object) -> str | None:
    """Reads what `name_bytes` made; ``None`` for what it never made."""
    try:
        return name_text(_bytes(data))
    except ValueError:
        return None


def name_text(data: bytes) -> str:
    """Reads what `name_bytes` made."""
    return data.decode("utf-8", "surrogatepass")


def ref_bytes(ref: str) -> bytes:
    """Returns a reference's digest as bytes."""
    return bytes.fromhex(ref[-64:])


def ref_text(data: bytes) -> str:
    """Reads what `ref_bytes` made."""
    return f"rwkv1-{data.hex()}"


def finite(seconds: float) -> float | None:
    """Returns seconds as JSON can hold them: ``None`` for never."""
    return None if math.isinf(seconds) else seconds


# -- columns -------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """How a value of one kind becomes a column, and how a column is read.

    Attributes:
        read: Raises `ValueError` or `TypeError` for what no such value gives.
        write: Gives what SQLite stores.
        sql: SQLite's word for it.
    """

    read: Callable[[Any], Any]
    write: Callable[[Any], Any]
    sql: str = "BLOB"


def _bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise ValueError("no bytes")
    return value


def _read_ref(value: Any) -> str:
    if type(value) is not bytes or len(value) != _REF_BYTES:
        raise ValueError("no reference")
    return "rwkv1-" + value.hex()


def _read_refs(value: Any) -> tuple[str, ...]:
    data = _bytes(value)
    if len(data) % _REF_BYTES:
        raise ValueError("no references")
    places = range(0, len(data), _REF_BYTES)
    return tuple([ref_text(data[at : at + _REF_BYTES]) for at in places])


def _read_count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= COUNT_MAX:
        raise ValueError("no count")
    return value


def _read_seconds(value: Any) -> float:
    if type(value) is not float or not -math.inf < value < math.inf:
        raise ValueError("no time")
    return value


def _read_end(value: Any) -> float:
    if value is None:
        return math.inf
    if type(value) is not float or not -math.inf < value < math.inf:
        raise ValueError("no time")
    return value


def _write_end(value: float) -> float | None:
    return None if value == math.inf else float(value)


def _read_maybe_ref(value: Any) -> str | None:
    return None if value is None else _read_ref(value)


def _write_maybe_ref(value: str | None) -> bytes | None:
    return None if value is None else ref_bytes(value)


def _read_flag(value: Any) -> bool:
    if type(value) is not int or value not in (0, 1):
        raise ValueError("neither yes nor no")
    return bool(value)


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def _json_bytes(value: Any) -> bytes:
    return _encode(value).encode()


def _read_texts(value: Any) -> tuple[str, ...]:
    texts = json.loads(_bytes(value))
    if type(texts) is not list or not all(isinstance(each, str) for each in texts):
        raise ValueError("no texts")
    return tuple(texts)


def _read_origin(value: Any) -> Origin:
    return Origin.from_body("origin", json.loads(_bytes(value)))


@lru_cache(64)  # all states of a store are of a few models
def _read_model(value: Any) -> Named:
    fingerprint, *numbers = json.loads(_bytes(value))
    if not isinstance(fingerprint, str):
        raise TypeError("no model")
    version, n_layer, n_embd = map(_read_count, numbers)
    return Named(fingerprint, version, n_layer, n_embd)


@lru_cache(64)
def _write_model(model: Named) -> bytes:
    return _json_bytes(list(model))


def _maybe(kind: _Kind, nothing: Any = None) -> _Kind:
    """Returns a kind that also has a value for NULL."""
    return _Kind(
        lambda value: nothing if value is None else kind.read(value),
        lambda value: None if value == nothing else kind.write(value),
        kind.sql,
    )


_NAME = _Kind(lambda value: name_text(_bytes(value)), name_bytes)
_WORDS = _Kind(lambda value: _bytes(value).decode(), str.encode)
_REF = _Kind(_read_ref, ref_bytes)
_REFS = _Kind(_read_refs, lambda refs: b"".join(map(ref_bytes, refs)))
_COUNT = _Kind(_read_count, int, "INTEGER")
_SECONDS = _Kind(_read_seconds, float, "REAL")
_END = _Kind(_read_end, _write_end, "REAL")
_FLAG = _Kind(_read_flag, int, "INTEGER")
_TEXTS = _maybe(_Kind(_read_texts, _json_bytes), ())
_ORIGIN = _maybe(_Kind(_read_origin, lambda origin: _json_bytes(origin.to_body())))
_HOLDER = _Kind(lambda value: Holder(_read_count(value)), int, "INTEGER")
_MODEL = _maybe(_Kind(_read_model, _write_model))
_MAYBE_REF = _Kind(_read_maybe_ref, _write_maybe_ref)


class Table:
    """A table.

    Args:
        name: Its name.
        keys: How many of its first columns are its key.
        columns: All its columns but the checksum.
        added: How many of the last ones came after a release: stores of before open, too, and get
            them as NULL.
    """

    def __init__(self, name: str, keys: int, columns: dict[str, _Kind], added: int = 0) -> None:
        self.name = name
        self.keys = keys
        self.columns = columns
        self.added = added
        self.fields = attrgetter(*columns)  # of a row's value
        self._reads = tuple(kind.read for kind in columns.values())
        self._writes = tuple(kind.write for kind in columns.values())

    def sql(self, missing: int = 0) -> str:
        """Returns the statement that makes it, as it was before its last `missing` columns came."""
        columns = [f"{name} {kind.sql}" for name, kind in self.columns.items()]
        columns[len(columns) - missing :] = ["sum BLOB"]
        if self.keys == 1:
            columns[0] += " PRIMARY KEY"
        else:
            columns.append(f"PRIMARY KEY({', '.join(list(self.columns)[: self.keys])})")
        return f"CREATE TABLE {self.name}({', '.join(columns)}) WITHOUT ROWID"

    def pack(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Returns a row's columns, without the checksum."""
        return tuple([write(value) for write, value in zip(self._writes, values, strict=True)])

    def require_sound(self, raw: Raw) -> None:
        """Checks that a row's checksum is right.

        Raises:
            StateCorrupt: It is not.
        """
        if checksum(self.name, raw[:-1]) != raw[-1]:
            raise StateCorrupt(
                f"The checksum of the {self.describe(raw)} is wrong: it was changed."
            )

    def unpack(self, raw: Raw) -> list[Any]:
        """Returns a row's values, once its checksum is known to be right.

        Raises:
            StateCorrupt: It is wrong, or a column holds what none can.
        """
        self.require_sound(raw)
        try:
            return [read(column) for read, column in zip(self._reads, raw, strict=False)]
        except (ValueError, TypeError, RecursionError, StateCorrupt) as error:
            raise StateCorrupt(
                f"The {self.describe(raw)} has no usable {self._first_unusable(raw)}."
            ) from error

    def read(self, raw: Raw, places: Sequence[int]) -> list[Any]:
        """Returns the values of some columns of a row that is known to be sound.

        Raises:
            StateCorrupt: One holds what none can.
        """
        try:
            return [self._reads[place](raw[place]) for place in places]
        except (ValueError, TypeError) as error:
            raise StateCorrupt(
                f"The {self.describe(raw)} has no usable {self._first_unusable(raw)}."
            ) from error

    def _first_unusable(self, raw: Raw) -> str:
        """Returns words for the first column that cannot be read."""
        for (name, kind), column in zip(self.columns.items(), raw, strict=False):
            try:
                kind.read(column)
            except (ValueError, TypeError, RecursionError, StateCorrupt):
                return f"{name!r}: {column!r:.200}"
        return "columns"

    def describe(self, raw: Raw) -> str:
        """Returns words for a row, for messages; its key may be damaged."""
        key = raw[: self.keys]
        try:
            words = [
                kind.read(each) for kind, each in zip(self.columns.values(), key, strict=False)
            ]
        except (ValueError, TypeError):
            return f"{_ROW[self.name]} row {list(key)!r:.90}"
        first = (
            words[0] if self.name in ("states", "holds", "tombstones", "meta") else repr(words[0])
        )
        more = ""
        if self.name in ("log", "queue"):
            more = f", {'turn' if self.name == 'log' else 'place'} {words[1]}"
        elif self.name == "holds" and words[1] != Holder.PUT:
            more = f" ({words[1].name.lower()} {words[2]!r})"
        if self.name == "meta":
            return f"{first} row"
        return f"{_ROW[self.name]} row of {first}{more}"


_ROW = {
    "meta": "meta",
    "sessions": "session",
    "states": "state",
    "log": "log",
    "holds": "hold",
    "tombstones": "tombstone",
    "queue": "queue",
}


def checksum(table: str, columns: Sequence[Any]) -> bytes:
    """Returns the checksum of a row: over its table's name and each column's type and length."""
    tag, pack, numbers, texts = _layout(table, tuple(map(type, columns)))
    blobs = texts(columns)
    digest = _HASH.copy()
    digest.update(b"".join((tag, pack(*numbers(columns), *map(len, blobs)), *blobs)))
    return digest.digest()


_Take = Callable[[Sequence[Any]], Sequence[Any]]


@lru_cache(256)
def _layout(
    table: str, types: tuple[type, ...]
) -> tuple[bytes, Callable[..., bytes], _Take, _Take]:
    """Returns how columns of these types are laid out: a tag, numbers and lengths, then bytes."""
    letters = "".join(_LETTERS[each] for each in types)
    numbers = [place for place, letter in enumerate(letters) if letter in "qd"]
    texts = [place for place, letter in enumerate(letters) if letter in "bt"]
    form = "".join(letters[place] for place in numbers)
    packed = struct.Struct(f">{form}{'Q' * len(texts)}")
    take = _taker(texts)
    if "t" in letters:  # this package writes none

        def take(columns: Sequence[Any]) -> Sequence[Any]:
            return [
                each.encode("utf-8", "surrogatepass") if type(each) is str else each
                for each in (columns[place] for place in texts)
            ]

    return f"{table}:{letters}:".encode(), packed.pack, _taker(numbers), take


def _taker(places: Sequence[int]) -> _Take:
    """Returns what takes the columns at some places, as fast as there is."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda columns: [columns[place] for place in places]


def size(columns: Sequence[Any]) -> int:
    """Returns the bytes that a row's columns count for."""
    texts = [len(each) for each in columns if type(each) in _SIZED]
    return sum(texts) + 8 * (len(columns) - len(texts))


META = Table("meta", 1, {"key": _WORDS, "value": _Kind(_bytes, bytes)})
TOMBSTONES = Table("tombstones", 1, {"ref": _REF, "expires": _SECONDS})
LOG = Table(
    "log",
    2,
    {
        "session": _NAME,
        "seq": _COUNT,
        "ref": _MAYBE_REF,
        "parent": _MAYBE_REF,
        "n_tokens": _COUNT,
        "created": _SECONDS,
        "origin": _ORIGIN,
        "said": _TEXTS,
    },
)


# -- rows ----------------------------------------------------------------------------------------


class Row:
    """A row that is a value of its own: its fields are the table's columns.

    Args:
        table: The table's name.
        keys: How many of its first fields are its key.
        added: As that of `Table`.
    """

    TABLE: ClassVar[Table]

    def __init_subclass__(cls, *, table: str, keys: int = 1, added: int = 0) -> None:
        hints = get_type_hints(cls, include_extras=True)
        columns = {name: hints[name].__metadata__[0] for name in hints if name != "TABLE"}
        cls.TABLE = Table(table, keys, columns, added)

    @classmethod
    def unpack(cls, raw: Raw) -> Self:
        """Reads a row.

        Raises:
            StateCorrupt: It was changed.
        """
        row = cls(*cls.TABLE.unpack(raw))
        vars(row)["_raw"] = raw
        return row

    def pack(self) -> tuple[Any, ...]:
        """Returns the columns, without the checksum."""
        return self.TABLE.pack(self.TABLE.fields(self))

    @property
    def size(self) -> int:
        """The bytes that its columns count for; a row that was read is not packed for that."""
        raw = vars(self).get("_raw")
        return size(self.pack() if raw is None else raw[:-1])


@dataclass(frozen=True)
class SessionRow(Row, table="sessions"):
    """A session, as stored.

    Attributes:
        name: Its name.
        head: Its state.
        n_tokens: Tokens that the head stands for.
        turns: Turns committed and not rewound; also the number of the newest log row.
        created: Time of the first commit.
        updated: Time of the last commit.
        expires: When it expires.
        ttl: How long it lives from a commit or a read.
        sliding: Whether commits and reads renew it.
        kept: The states it holds, newest first.
        unread: Messages behind the head.
    """

    name: Annotated[str, _NAME]
    head: Annotated[str | None, _MAYBE_REF]
    n_tokens: Annotated[int, _COUNT]
    turns: Annotated[int, _COUNT]
    created: Annotated[float, _SECONDS]
    updated: Annotated[float, _SECONDS]
    expires: Annotated[float, _END]
    ttl: Annotated[float, _END]
    sliding: Annotated[bool, _FLAG]
    kept: Annotated[tuple[str, ...], _REFS] = ()
    unread: Annotated[tuple[str, ...], _TEXTS] = ()


@dataclass(frozen=True)
class StateRow(Row, table="states"):
    """A state, as stored.

    Attributes:
        ref: Its reference.
        blob: Name of its file.
        nbytes: Size of its file.
        n_tokens: Tokens that it stands for.
        parent: The state that it was read from.
        created: When it was stored.
        holders: How many things need it. The rows of `holds` say which; where the two disagree,
            the state stays.
        origin: With ``log="tokens"``, what it can be made from again.
        model: The model that it is of; ``None`` where only the file says.
    """

    ref: Annotated[str, _REF]
    blob: Annotated[str, _WORDS]
    nbytes: Annotated[int, _COUNT]
    n_tokens: Annotated[int, _COUNT]
    parent: Annotated[str | None, _MAYBE_REF]
    created: Annotated[float, _SECONDS]
    holders: Annotated[int, _COUNT] = 0
    origin: Annotated[Origin | None, _ORIGIN] = None
    model: Annotated[Named | None, _MODEL] = None


@dataclass(frozen=True)
class HoldRow(Row, table="holds", keys=3):
    """Something that needs a state: a session, an owner, or a `put`.

    Attributes:
        ref: The state.
        kind: What it is.
        owner: Name of the session or owner; empty for a `put`.
        expires: When it lets go; never for a session, whose own row says.
        ttl: How long it holds from a renewal.
    """

    ref: Annotated[str, _REF]
    kind: Annotated[Holder, _HOLDER]
    owner: Annotated[str, _NAME]
    expires: Annotated[float, _END] = math.inf
    ttl: Annotated[float, _END] = math.inf


@dataclass(frozen=True)
class QueueRow(Row, table="queue", keys=2):
    """A place in the queue of a session's turns, as stored.

    Attributes:
        session: The session.
        seq: Its number: who comes first has the lower one.
        token: Known to the turn that took it.
        process: Id of the process that took it, for messages.
        since: When it was taken.
        expires: Until when it holds.
    """

    session: Annotated[str, _NAME]
    seq: Annotated[int, _COUNT]
    token: Annotated[str, _NAME]
    process: Annotated[int, _COUNT]
    since: Annotated[float, _SECONDS]
    expires: Annotated[float, _SECONDS]


TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        META,
        LOG,
        TOMBSTONES,
        *(row.TABLE for row in (SessionRow, StateRow, HoldRow, QueueRow)),
    )
}
"""Every table by its name."""


def pack_turn(session: str, turn: LogEntry) -> tuple[Any, ...]:
    """Returns the columns of a log row, without the checksum."""
    return LOG.pack(
        (
            session,
            turn.seq,
            turn.ref,
            turn.parent,
            turn.n_tokens,
            turn.created_seconds,
            turn.origin,
            turn.said,
        )
    )


def unpack_turn(raw: Raw) -> LogEntry:
    """Reads a log row.

    Raises:
        StateCorrupt: It was changed.
    """
    _, seq, ref, parent, n_tokens, created, origin, said = LOG.unpack(raw)
    if ref is None:
        raise StateCorrupt(f"The {LOG.describe(raw)} names no state.")
    return LogEntry(ref, parent, n_tokens, created, said=said, origin=origin, seq=seq)
