"""Rows: what a store writes beside the states, as bytes with a version and a checksum.

A row is a short canonical JSON text with an expiry before it; a key is a family byte and what
names the row. The easy mistake is to check the value alone: the checksum covers the key too, so a
row that was moved to another key is refused there.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from langchain_rwkv_state.errors import StateCorrupt
from langchain_rwkv_state.state import is_reference

ROW_VERSION = b"r1"
NAME_MAX = 512
"""The most characters of a session's or owner's name."""
COUNT_MAX = 1 << 53
"""The most of anything that is counted: the whole numbers that every reader of JSON has."""
_CHECKSUM_BYTES = 16
_HASH = hashlib.blake2b(digest_size=_CHECKSUM_BYTES, person=b"rwkv-state-row")  # to be copied
_EXPIRY = struct.Struct(">d")
_SEQ = struct.Struct(">Q")
_HEAD_BYTES = len(ROW_VERSION) + _CHECKSUM_BYTES + _EXPIRY.size
_END = b"\xff"  # stands in no UTF-8 text, so it ends a name of any characters

ABOUT_KEY = b"!about"
CLOCK_KEY = b"!clock"
FAMILIES = {
    b"!": "about",
    b"a": "anchor",
    b"d": "due",
    b"h": "holder",
    b"l": "log",
    b"o": "owner",
    b"q": "queue",
    b"r": "rebuild",
    b"s": "session",
    b"t": "state",
    b"x": "tombstone",
}
HOLDER_KINDS = {b"s": "session", b"k": "owner", b"p": "put"}


# -- keys ----------------------------------------------------------------------------------------


def name_bytes(name: str) -> bytes:
    """Returns a session's or owner's name as bytes that sort as the name does."""
    return name.encode("utf-8", "surrogatepass")


def name_text(data: bytes) -> str:
    """Reads what `name_bytes` made."""
    return data.decode("utf-8", "surrogatepass")


def ref_bytes(ref: str) -> bytes:
    """Returns a reference's digest as bytes."""
    return bytes.fromhex(ref[-64:])


def ref_text(data: bytes) -> str:
    """Reads what `ref_bytes` made."""
    return f"rwkv1-{data.hex()}"


def session_key(name: str) -> bytes:
    """Names a session's row."""
    return b"s" + name_bytes(name)


def anchor_key(name: str) -> bytes:
    """Names the row that says that a session exists, whatever became of its own row."""
    return b"a" + name_bytes(name)


def log_key(name: str, seq: int) -> bytes:
    """Names the row of a session's turn `seq` (from 1)."""
    return b"l" + name_bytes(name) + _END + _SEQ.pack(seq)


def log_range(name: str, first: int = 0, last: int = (1 << 64) - 1) -> tuple[bytes, bytes]:
    """Returns the keys of turns `first` to `last`, as start and end (exclusive)."""
    return log_key(name, first), log_key(name, last) + b"\x00"


def log_name(key: bytes) -> tuple[str, int]:
    """Returns session and turn of a log row's key."""
    return name_text(key[1 : -_SEQ.size - 1]), _SEQ.unpack(key[-_SEQ.size :])[0]


def queue_key(name: str, seq: int) -> bytes:
    """Names the row of a place in a session's queue."""
    return b"q" + name_bytes(name) + _END + _SEQ.pack(seq)


def queue_range(name: str) -> tuple[bytes, bytes]:
    """Returns the keys of all places in a session's queue, as start and end (exclusive)."""
    return queue_key(name, 0), queue_key(name, (1 << 64) - 1) + b"\x00"


def state_key(ref: str) -> bytes:
    """Names a state's row."""
    return b"t" + ref_bytes(ref)


def tombstone_key(ref: str) -> bytes:
    """Names the row that says when a state expired."""
    return b"x" + ref_bytes(ref)


def holder_key(ref: str, kind: bytes, owner: str) -> bytes:
    """Names the row that says that something needs a state."""
    return b"h" + ref_bytes(ref) + kind + name_bytes(owner)


def holder_name(key: bytes) -> tuple[str, bytes, str]:
    """Returns state, kind and owner of a holder's key."""
    return ref_text(key[1:33]), key[33:34], name_text(key[34:])


def owner_key(owner: str, ref: str) -> bytes:
    """Names the row by which an owner's states are found."""
    return b"o" + name_bytes(owner) + _END + ref_bytes(ref)


def owner_prefix(owner: str) -> bytes:
    """Returns the start of all of an owner's rows."""
    return b"o" + name_bytes(owner) + _END


def rebuild_key(ref: str, session: str) -> bytes:
    """Names the row by which the log entry of a state is found."""
    return b"r" + ref_bytes(ref) + name_bytes(session)


def due_key(seconds: float, target: bytes) -> bytes:
    """Names the row by which a thing that may have expired is found."""
    return b"d" + _EXPIRY.pack(max(0.0, seconds)) + target


def due_target(key: bytes) -> tuple[float, bytes]:
    """Returns time and target of a due row's key."""
    return _EXPIRY.unpack(key[1:9])[0], key[9:]


def after_prefix(prefix: bytes) -> bytes:
    """Returns the first key that lies behind all keys that start with `prefix`."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1])


# -- bytes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row as read: its expiry and its body."""

    expires: float
    body: dict[str, Any]


def pack(key: bytes, body: Mapping[str, Any], expires: float = math.inf) -> bytes:
    """Returns a row as bytes."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    covered = _EXPIRY.pack(expires) + text
    return ROW_VERSION + _checksum(key, covered) + covered


def unpack(key: bytes, data: bytes | None) -> Row:
    """Reads what `pack` made.

    Args:
        key: Where the row was found.
        data: Its bytes; ``None`` for a row that is not of this store's making.

    Raises:
        StateCorrupt: The row was changed or moved, or is foreign or of a later version.
    """
    expires = peek_expires(key, data)
    try:
        body = json.loads(cast("bytes", data)[_HEAD_BYTES:])
    except (ValueError, RecursionError) as error:
        raise StateCorrupt(f"The {describe(key)} holds no JSON text.") from error
    if not isinstance(body, dict):
        raise StateCorrupt(f"The {describe(key)} holds no JSON object.")
    return Row(expires, body)


def peek_expires(key: bytes, data: bytes | None) -> float:
    """Returns a row's expiry once its checksum is known to be right, without parsing the rest.

    Raises:
        StateCorrupt: As `unpack`.
    """
    if data is None:
        raise StateCorrupt(f"The {describe(key)} is not as this package writes rows.")
    if data[:2] != ROW_VERSION:
        raise StateCorrupt(
            f"The {describe(key)} has version {data[:2]!r}; this release reads {ROW_VERSION!r}: "
            "upgrade langchain-rwkv-state, or restore the store."
        )
    covered = data[2 + _CHECKSUM_BYTES :]
    if len(data) < _HEAD_BYTES or _checksum(key, covered) != data[2 : 2 + _CHECKSUM_BYTES]:
        raise StateCorrupt(f"The checksum of the {describe(key)} is wrong: it was changed.")
    expires: float = _EXPIRY.unpack_from(covered)[0]
    if math.isnan(expires):
        raise StateCorrupt(f"The {describe(key)} expires at no time.")
    return expires


def describe(key: bytes) -> str:
    """Returns words for a row's key, for messages."""
    family = FAMILIES.get(key[:1])
    try:
        if family in ("session", "anchor"):
            return f"{family} row of {name_text(key[1:])!r}"
        if family == "log":
            return "log row of {!r}, turn {}".format(*log_name(key))
        if family == "queue":
            return "queue row of {!r}, place {}".format(*log_name(key))
        if family == "holder" and key[33:34] in HOLDER_KINDS:
            ref, kind, owner = holder_name(key)
            return f"holder row of {ref}" + (f" ({HOLDER_KINDS[kind]} {owner!r})" if owner else "")
        if family == "owner" and len(key) > 34:
            return f"owner row of {name_text(key[1:-33])!r}"
        if family == "due" and len(key) > 9:
            return f"due row of the {describe(key[9:])}"
        if family in ("state", "tombstone", "holder", "rebuild") and len(key) >= 33:
            return f"{family} row of {ref_text(key[1:33])}"
    except (ValueError, struct.error):
        pass
    return f"{family or 'unknown'} row {key[:80]!r}"


def _checksum(key: bytes, covered: bytes) -> bytes:
    digest = _HASH.copy()
    digest.update(b"".join((len(key).to_bytes(8, "big"), key, covered)))
    return digest.digest()


# -- bodies --------------------------------------------------------------------------------------


class Body:
    """Takes typed values out of a row's body.

    Args:
        key: Where the row stands, for messages.
        values: The parsed JSON object.
    """

    def __init__(self, key: bytes, values: Mapping[str, Any]) -> None:
        self._key = key
        self._values = values

    def text(self, name: str) -> str:
        """Returns a text."""
        return cast("str", self._take(name, str))

    def maybe_text(self, name: str) -> str | None:
        """Returns a text or ``None``."""
        return None if self._values.get(name) is None else self.text(name)

    def ref(self, name: str) -> str:
        """Returns a reference."""
        text = self.text(name)
        if not is_reference(text):
            raise self._wrong(name)
        return text

    def maybe_ref(self, name: str) -> str | None:
        """Returns a reference or ``None``."""
        return None if self._values.get(name) is None else self.ref(name)

    def count(self, name: str) -> int:
        """Returns a number of things."""
        value = self._take(name, int)
        if isinstance(value, bool) or not 0 <= value <= COUNT_MAX:
            raise self._wrong(name)
        return cast("int", value)

    def seconds(self, name: str) -> float:
        """Returns a time; ``None`` stands for never."""
        if name in self._values and self._values[name] is None:
            return math.inf
        value = self._take(name, (int, float))
        try:
            seconds = float(value)
        except OverflowError as error:
            raise self._wrong(name) from error
        if isinstance(value, bool) or math.isnan(seconds):
            raise self._wrong(name)
        return seconds

    def flag(self, name: str) -> bool:
        """Returns yes or no."""
        return cast("bool", self._take(name, bool))

    def texts(self, name: str) -> tuple[str, ...]:
        """Returns a list of texts."""
        values = self._take(name, list)
        if not all(isinstance(value, str) for value in values):
            raise self._wrong(name)
        return tuple(values)

    def refs(self, name: str) -> tuple[str, ...]:
        """Returns a list of references."""
        values = self.texts(name)
        if not all(map(is_reference, values)):
            raise self._wrong(name)
        return values

    def _take(self, name: str, kind: type | tuple[type, ...]) -> Any:
        value = self._values.get(name)
        if not isinstance(value, kind):
            raise self._wrong(name)
        return value

    def _wrong(self, name: str) -> StateCorrupt:
        return StateCorrupt(
            f"The {describe(self._key)} has no usable {name!r}: {self._values.get(name)!r:.200}."
        )


def finite(seconds: float) -> float | None:
    """Returns seconds as JSON can hold them: ``None`` for never."""
    return None if math.isinf(seconds) else seconds


@dataclass(frozen=True)
class SessionRow:
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
        due: Time under which `prune` finds it.
    """

    name: str
    head: str | None
    n_tokens: int
    turns: int
    created: float
    updated: float
    expires: float
    ttl: float
    sliding: bool
    kept: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    due: float = math.inf

    def pack(self) -> bytes:
        """Returns the row as bytes."""
        return pack(
            session_key(self.name),
            {
                "head": self.head,
                "n_tokens": self.n_tokens,
                "turns": self.turns,
                "created": self.created,
                "updated": self.updated,
                "ttl": finite(self.ttl),
                "sliding": self.sliding,
                "kept": self.kept,
                "unread": self.unread,
                "due": finite(self.due),
            },
            self.expires,
        )

    @classmethod
    def unpack(cls, name: str, data: bytes | None) -> SessionRow:
        """Reads the row of `name`.

        Raises:
            StateCorrupt: The row was changed.
        """
        key = session_key(name)
        row = unpack(key, data)
        body = Body(key, row.body)
        return cls(
            name=name,
            head=body.maybe_ref("head"),
            n_tokens=body.count("n_tokens"),
            turns=body.count("turns"),
            created=body.seconds("created"),
            updated=body.seconds("updated"),
            expires=row.expires,
            ttl=body.seconds("ttl"),
            sliding=body.flag("sliding"),
            kept=body.refs("kept"),
            unread=body.texts("unread"),
            due=body.seconds("due"),
        )


@dataclass(frozen=True)
class StateRow:
    """A state, as stored.

    Attributes:
        ref: Its reference.
        blob: Name of its file.
        nbytes: Size of its file.
        n_tokens: Tokens that it stands for.
        parent: The state that it was read from.
        created: When it was stored.
        holders: How many things need it. The rows of the holders say which; where the two
            disagree, the state stays.
        origin: With ``log="tokens"``, what it can be made from again.
    """

    ref: str
    blob: str
    nbytes: int
    n_tokens: int
    parent: str | None
    created: float
    holders: int = 0
    origin: Origin | None = None

    def pack(self) -> bytes:
        """Returns the row as bytes."""
        body: dict[str, Any] = {
            "blob": self.blob,
            "nbytes": self.nbytes,
            "n_tokens": self.n_tokens,
            "parent": self.parent,
            "created": self.created,
            "holders": self.holders,
        }
        if self.origin is not None:
            body["origin"] = self.origin.to_body()
        return pack(state_key(self.ref), body)

    @classmethod
    def unpack(cls, ref: str, data: bytes | None) -> StateRow:
        """Reads the row of `ref`.

        Raises:
            StateCorrupt: The row was changed.
        """
        key = state_key(ref)
        values = unpack(key, data).body
        body = Body(key, values)
        return cls(
            ref=ref,
            blob=body.text("blob"),
            nbytes=body.count("nbytes"),
            n_tokens=body.count("n_tokens"),
            parent=body.maybe_ref("parent"),
            created=body.seconds("created"),
            holders=body.count("holders"),
            origin=Origin.from_body(key, values.get("origin")),
        )


@dataclass(frozen=True)
class Origin:
    """What a state can be made from again.

    Attributes:
        base: The state that the tokens were read from; ``None`` for the zero state.
        tokens: The token ids read since the base, packed as base64 of 4-byte little-endian words.
        fingerprint: The model that made the state.
        block: Digest of the system block that the conversation began with.
    """

    base: str | None
    tokens: str
    fingerprint: str
    block: str | None

    def to_body(self) -> dict[str, Any]:
        """Returns the JSON object."""
        return {
            "base": self.base,
            "tokens": self.tokens,
            "fingerprint": self.fingerprint,
            "block": self.block,
        }

    @classmethod
    def from_body(cls, key: bytes, values: object) -> Origin | None:
        """Reads what `to_body` made.

        Raises:
            StateCorrupt: It is something else.
        """
        if values is None:
            return None
        if not isinstance(values, dict):
            raise StateCorrupt(f"The {describe(key)} has an unusable origin.")
        body = Body(key, values)
        return cls(
            base=body.maybe_ref("base"),
            tokens=body.text("tokens"),
            fingerprint=body.text("fingerprint"),
            block=body.maybe_text("block"),
        )


@dataclass(frozen=True)
class HolderRow:
    """Something that needs a state: a session, an owner, or a `put`.

    Attributes:
        ref: The state.
        kind: A key of `HOLDER_KINDS`.
        owner: Name of the session or owner; empty for a `put`.
        expires: When it lets go; never for a session, whose own row says.
        ttl: How long it holds from a renewal.
        due: Time under which `prune` finds it.
    """

    ref: str
    kind: bytes
    owner: str
    expires: float = math.inf
    ttl: float = math.inf
    due: float = math.inf

    @property
    def key(self) -> bytes:
        """Where the row stands."""
        return holder_key(self.ref, self.kind, self.owner)

    def pack(self) -> bytes:
        """Returns the row as bytes."""
        return pack(self.key, {"ttl": finite(self.ttl), "due": finite(self.due)}, self.expires)

    @classmethod
    def unpack(cls, key: bytes, data: bytes | None) -> HolderRow:
        """Reads the row at `key`.

        Raises:
            StateCorrupt: The row was changed.
        """
        row = unpack(key, data)
        try:
            ref, kind, owner = holder_name(key)
        except ValueError as error:
            raise StateCorrupt(f"The {describe(key)} has no readable owner.") from error
        if kind not in HOLDER_KINDS:
            raise StateCorrupt(f"The {describe(key)} has a holder of an unknown kind.")
        body = Body(key, row.body)
        return cls(ref, kind, owner, row.expires, body.seconds("ttl"), body.seconds("due"))


def _session_and_number(key: bytes) -> tuple[str, int]:
    """Reads the key of a row that has a number within its session.

    Raises:
        StateCorrupt: It is no such key.
    """
    try:
        return log_name(key)
    except (ValueError, struct.error) as error:
        raise StateCorrupt(f"The {describe(key)} has no readable session.") from error


@dataclass(frozen=True)
class LogRow:
    """One turn of a session, as stored.

    `said` holds a short digest of each message that the turn added to the state; rows of earlier
    releases have none.
    """

    session: str
    seq: int
    ref: str
    parent: str | None
    n_tokens: int
    created: float
    origin: Origin | None = None
    said: tuple[str, ...] = ()

    def pack(self) -> bytes:
        """Returns the row as bytes."""
        body: dict[str, Any] = {
            "ref": self.ref,
            "parent": self.parent,
            "n_tokens": self.n_tokens,
            "created": self.created,
        }
        if self.said:
            body["said"] = self.said
        if self.origin is not None:
            body["origin"] = self.origin.to_body()
        return pack(log_key(self.session, self.seq), body)

    @classmethod
    def unpack(cls, key: bytes, data: bytes | None) -> LogRow:
        """Reads the row at `key`.

        Raises:
            StateCorrupt: The row was changed.
        """
        values = unpack(key, data).body
        body = Body(key, values)
        session, seq = _session_and_number(key)
        return cls(
            session=session,
            seq=seq,
            ref=body.ref("ref"),
            parent=body.maybe_ref("parent"),
            n_tokens=body.count("n_tokens"),
            created=body.seconds("created"),
            origin=Origin.from_body(key, values.get("origin")),
            said=body.texts("said") if "said" in values else (),
        )


@dataclass(frozen=True)
class QueueRow:
    """A place in the queue of a session's turns, as stored.

    Attributes:
        session: The session.
        seq: Its number: who comes first has the lower one.
        token: Known to the turn that took it.
        process: Id of the process that took it, for messages.
        since: When it was taken.
        expires: Until when it holds.
    """

    session: str
    seq: int
    token: str
    process: int
    since: float
    expires: float

    @property
    def key(self) -> bytes:
        """Where the row stands."""
        return queue_key(self.session, self.seq)

    def pack(self) -> bytes:
        """Returns the row as bytes."""
        body = {"token": self.token, "process": self.process, "since": self.since}
        return pack(self.key, body, self.expires)

    @classmethod
    def unpack(cls, key: bytes, data: bytes | None) -> QueueRow:
        """Reads the row at `key`.

        Raises:
            StateCorrupt: The row was changed.
        """
        row = unpack(key, data)
        body = Body(key, row.body)
        session, seq = _session_and_number(key)
        return cls(
            session=session,
            seq=seq,
            token=body.text("token"),
            process=body.count("process"),
            since=body.seconds("since"),
            expires=row.expires,
        )
