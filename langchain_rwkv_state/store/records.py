"""What a store tells its callers: sessions, log entries, counts, as plain values.

Token ids are texts here, and how the origins of states join up stands beside `Origin`: the later
must start where the earlier ended.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from langchain_rwkv_state import demo
from langchain_rwkv_state.errors import StateCorrupt, StateMismatch
from langchain_rwkv_state.state import CodecName, Fingerprint, is_reference
from langchain_rwkv_state.state.header import Named

if TYPE_CHECKING:
    from langchain_rwkv_state.state import RWKVState


COUNT_MAX = 1 << 53
"""The most of anything that is counted: the whole numbers that every reader of JSON has."""


class Body:
    """Takes typed values out of a JSON object.

    Args:
        where: What the object is, for messages.
        values: The parsed JSON value.

    Raises:
        StateCorrupt: It is no object; or, of every method, has no value of the name and type.
    """

    def __init__(self, where: str, values: object) -> None:
        if not isinstance(values, Mapping):
            raise StateCorrupt(f"The {where} is no JSON object.")
        self._where = where
        self._values: Mapping[str, Any] = values

    def has(self, name: str) -> bool:
        """Says whether there is a value that is not ``None``."""
        return self._values.get(name) is not None

    def value(self, name: str) -> Any:
        """Returns a value of whatever type."""
        return self._values.get(name)

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
            f"The {self._where} has no usable {name!r}: {self._values.get(name)!r:.200}."
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
        return dict(vars(self))

    @classmethod
    def from_body(cls, where: str, values: object) -> Origin:
        """Reads what `to_body` made.

        Raises:
            StateCorrupt: It is something else.
        """
        body = Body(where, values)
        return cls(
            base=body.maybe_ref("base"),
            tokens=body.text("tokens"),
            fingerprint=body.text("fingerprint"),
            block=body.maybe_text("block"),
        )


def pack_tokens(tokens: Sequence[int]) -> str:
    """Returns token ids as a text."""
    return base64.b64encode(struct.pack(f"<{len(tokens)}I", *tokens)).decode()


def unpack_tokens(text: str) -> list[int]:
    """Reads what `pack_tokens` made.

    Raises:
        StateCorrupt: The text is something else.
    """
    try:
        data = base64.b64decode(text, validate=True)
        return list(struct.unpack(f"<{len(data) // 4}I", data))
    except (binascii.Error, ValueError, struct.error) as error:
        raise StateCorrupt("The token ids of a stored state cannot be read.") from error


def joined(earlier: Origin, later: Origin) -> Origin:
    """Returns the origin of the later state, told from the earlier one's base."""
    tokens = unpack_tokens(earlier.tokens) + unpack_tokens(later.tokens)
    return Origin(earlier.base, pack_tokens(tokens), later.fingerprint, later.block)


def merged(ref: str, gone: Origin | None, kept: Origin | None) -> Origin | None:
    """Returns the origin of an entry after the entry before it, of the state `ref`, went.

    Args:
        ref: The state of the entry that went.
        gone: Its origin.
        kept: The origin of the entry that stays.
    """
    if gone is None or kept is None or kept.base != ref:
        return kept
    return joined(gone, kept)


@dataclass(frozen=True)
class LogEntry:
    """One step of a session, newest first in `StateStore.log`.

    Attributes:
        ref: The state that became the head.
        parent: The head before it, ``None`` for the first.
        n_tokens: Tokens that the state stands for.
        created_seconds: Unix time of the commit.
        kept: Whether the state itself is still stored (and not only named), at the moment of the
            call.
        said: Short digests of the messages that the turn added, by which a session knows them
            again; empty where nobody told.
        origin: The token ids that led to the state, where a store keeps them.
        seq: The turn's number, from 1.
    """

    ref: str
    parent: str | None
    n_tokens: int
    created_seconds: float
    kept: bool = False
    said: tuple[str, ...] = ()
    origin: Origin | None = field(default=None, repr=False)
    seq: int = field(default=0, repr=False, compare=False)


@dataclass(frozen=True)
class TranscriptTurn:
    """One turn of a session as text, oldest first in `TableStore.transcript`.

    Attributes:
        number: Its number, from 1; `TableStore.redact` takes it.
        ref: The state behind it.
        created_seconds: Unix time of the commit.
        text: What was read and what was answered, as the model read it; ``None`` where no token
            ids of the turn are kept.
        joined: Whether the text of turns before it is in it too: so it is with the oldest turn in
            the log of a session that has more turns than a log keeps.
    """

    number: int
    ref: str
    created_seconds: float
    text: str | None
    joined: bool = False


@dataclass(frozen=True)
class Redaction:
    """What `TableStore.redact` did.

    Attributes:
        session: The session.
        turns: The numbers that the turns had.
        head: Reference of its new head; ``None`` where no turn is left.
        sessions: Other sessions that held these turns, as forks do, and are without them now.
        owners: Who kept a state that stood on them, and keeps it no more.
        states: How many states were removed.
        cached: How many states of prefix caches were dropped.
    """

    session: str
    turns: tuple[int, ...]
    head: str | None
    sessions: tuple[str, ...]
    owners: tuple[str, ...]
    states: int
    cached: int


@dataclass(frozen=True)
class SessionInfo:
    """One session as it stands.

    Attributes:
        session: Its name.
        head: Reference of its state; ``None`` where no turn is left, or was yet.
        n_tokens: Tokens that the head stands for.
        n_turns: Entries ever committed and not rewound.
        nbytes: Bytes stored for its states.
        created_seconds: Unix time of the first commit.
        updated_seconds: Unix time of the last commit.
        expires_seconds: Unix time at which it expires; `math.inf` for never.
        unread: Messages behind the head that no state covers yet, as JSON texts.
        model: The model that the head belongs to, for people: version, layers, width and a short
            name, such as ``RWKV-7 6x128 demo``; ``None`` where there is no head, or its row
            cannot be read.
        fingerprint: The same model for comparing, in full; likewise.
    """

    session: str
    head: str | None
    n_tokens: int
    n_turns: int
    nbytes: int
    created_seconds: float
    updated_seconds: float
    expires_seconds: float
    unread: tuple[str, ...] = field(default=(), repr=False)
    model: str | None = None
    fingerprint: str | None = None


_DIGITS = 8  # of a model's digest, that tell it apart for people


def model_words(named: Named) -> str:
    """Returns version, size and a short name of a model, for people and not for comparing.

    The built-in model has a name; of any other, the first digits of its digest tell it apart, and
    what was changed in it since it was read from its file.

    Example:
        >>> model_words(Named("rwkv7-0123456789abcdef+clamp(-8,-0.1)/fp32/-/-", 7, 24, 2048))
        'RWKV-7 24x2048 01234567+clamp(-8,-0.1)'
    """
    shape = f"RWKV-{named.version} {named.n_layer}x{named.n_embd}"
    try:
        weights = Fingerprint.parse(named.fingerprint).weights
    except StateMismatch:
        return f"{shape} {named.fingerprint:.{_DIGITS}}"
    whole, plus, change = weights.partition("+")
    name = "demo" if whole == demo.WEIGHTS else whole.rpartition("-")[2][:_DIGITS]
    return f"{shape} {name}{plus}{change}"


def model_named_by(state: RWKVState) -> Named:
    """Returns the model that a state is of."""
    layout = state.layout
    return Named(state.fingerprint, layout.version, layout.n_layer, layout.n_embd)


@dataclass(frozen=True)
class QueuedTurn:
    """A turn that has its place in a session's queue: the first one runs, the others wait.

    Attributes:
        token: Known to the turn.
        process: Id of its process.
        since_seconds: Unix time at which it came.
        expires_seconds: Unix time until which its place holds, if it is not renewed.
    """

    token: str
    process: int
    since_seconds: float
    expires_seconds: float


@dataclass(frozen=True)
class StoreStats:
    """Counts and sizes of a store.

    Attributes:
        sessions: Sessions stored, those included that have expired and wait for `prune`.
        states: States stored.
        nbytes: Bytes of all states and rows; what `size_limit` is compared with.
        staged: States that nothing has committed yet, of this process.
        staged_nbytes: Bytes of those that are in memory.
        size_limit: The most bytes that may be stored, ``None`` for no limit.
        spilled_nbytes: Bytes of staged states that memory had no room for; they are in files.
    """

    sessions: int
    states: int
    nbytes: int
    staged: int
    staged_nbytes: int
    size_limit: int | None
    spilled_nbytes: int = 0


@dataclass(frozen=True)
class Backup:
    """What `DiskStateStore.backup` and `restore` made.

    Attributes:
        path: The new directory.
        sessions: Sessions in it, those included that have expired and wait for `prune`.
        states: States in it.
        nbytes: Bytes of its files.
    """

    path: Path
    sessions: int
    states: int
    nbytes: int


@dataclass(frozen=True)
class CheckReport:
    """What `StateStore.check` found.

    Attributes:
        problems: One sentence each, with the row or file it is about; empty for a sound store.
        repaired: What `fix=True` did, one sentence each; what it did to a session names it.
    """

    problems: tuple[str, ...]
    repaired: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


Codec = CodecName
"""How states become bytes: ``"exact"`` and ``"zstd"`` lose nothing."""

LogKind = Literal["none", "tokens"]
"""Whether a store keeps the token ids that its states were read from."""
