"""What a store tells its callers: sessions, log entries, counts, as plain values.

Nothing here is stored as it stands (see `rows` for that). The easy mistake is to read `kept` of a
log entry as "can be reached for good": it is true at the moment of the call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from langchain_rwkv_state.state import CodecName


@dataclass(frozen=True)
class LogEntry:
    """One step of a session, newest first in `StateStore.log`.

    Attributes:
        ref: The state that became the head.
        parent: The head before it, ``None`` for the first.
        n_tokens: Tokens that the state stands for.
        created_seconds: Unix time of the commit.
        kept: Whether the state itself is still stored (and not only named).
        said: Short digests of the messages that the turn added, by which a session knows them
            again; empty where nobody told.
    """

    ref: str
    parent: str | None
    n_tokens: int
    created_seconds: float
    kept: bool
    said: tuple[str, ...] = ()


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
            name, such as ``RWKV-7 6x128 demo``; ``None`` where there is no head, or its file
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
