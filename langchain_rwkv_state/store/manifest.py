"""Reads and writes `session.json`, which says what the session in a bundle is.

It knows no ZIP, no store and no tensors; `docs/bundles.md` lists its fields. A log whose turns do
not follow on one another, or that does not end at a state that came along, is refused here, before
a store sees any of it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from langchain_rwkv_state.errors import StateCorrupt
from langchain_rwkv_state.state.header import FILE_LIMIT_BYTES, is_later
from langchain_rwkv_state.store.clock import LONGEST_TTL_SECONDS
from langchain_rwkv_state.store.records import Body, LogEntry, Origin
from langchain_rwkv_state.store.rows import NAME_MAX, SessionRow, finite
from langchain_rwkv_state.store.tables import LOG_ENTRIES
from langchain_rwkv_state.store.tokens import unpack_tokens
from langchain_rwkv_state.store.unread import no_constant, require_messages

FORMAT = "langchain-rwkv-state-bundle"
FORMAT_VERSION = 1
MEMBER = "session.json"

_LATEST_SECONDS = 2 * LONGEST_TTL_SECONDS  # no time of a session is later, and none before 1970
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SAID = re.compile(r"[0-9a-f]{16}")


def state_member(number: int) -> str:
    """Returns the name in the bundle of the state `number`, from 0."""
    return f"states/{number}.safetensors"


def require_version(version: str) -> None:
    """Checks a bundle's format version.

    Raises:
        StateCorrupt: This release does not read it.
    """
    if is_later(version, FORMAT_VERSION):
        raise StateCorrupt(
            f"The bundle has format version {version:.20}; this release reads up to "
            f"{FORMAT_VERSION}: upgrade langchain-rwkv-state."
        )
    if version != str(FORMAT_VERSION):
        raise StateCorrupt(f"The bundle's format version {version!r:.40} is not known.")


@dataclass(frozen=True)
class BundledState:
    """One state that came along.

    Attributes:
        ref: What its store calls it.
        nbytes: Size of its file.
        sha256: Digest of its file.
    """

    ref: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A session under the references of the store that it comes from.

    Attributes:
        row: The session.
        log: Up to 100 turns, oldest first.
        states: The states that came along, newest first.
    """

    row: SessionRow
    log: tuple[LogEntry, ...]
    states: tuple[BundledState, ...]

    @property
    def first(self) -> int:
        """Number of the log's first turn."""
        return self.row.turns - len(self.log) + 1

    def to_bytes(self) -> bytes:
        """Returns the JSON text."""
        values: dict[str, Any] = {
            "format": f"{FORMAT}/{FORMAT_VERSION}",
            "session": self.row.name,
            "created": self.row.created,
            "updated": self.row.updated,
            "expires": finite(self.row.expires),
            "ttl": finite(self.row.ttl),
            "sliding": self.row.sliding,
            "turns": self.row.turns,
            "head": self.row.head,
            "unread": self.row.unread,
            "log": [_turn_values(turn) for turn in self.log],
            "states": [
                {
                    "member": state_member(number),
                    "ref": state.ref,
                    "nbytes": state.nbytes,
                    "sha256": state.sha256,
                }
                for number, state in enumerate(self.states)
            ],
        }
        return json.dumps(values, indent=1, allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Reads what `to_bytes` wrote.

        Raises:
            StateCorrupt: It is something else, of a later version, or contradicts itself.
        """
        try:
            values = json.loads(data, parse_constant=no_constant)
        except (ValueError, RecursionError) as error:
            raise StateCorrupt(f"The bundle's {MEMBER} is not readable: {error}.") from error
        fields = _Fields(MEMBER, values)
        name, _, version = fields.text("format").partition("/")
        if name != FORMAT:
            raise StateCorrupt(f"The file is not a bundle of this package but {name!r:.200}.")
        require_version(version)
        log = tuple(map(_turn, fields.objects("log")))
        listed = fields.objects("states")
        states = tuple(map(_state, listed))
        row = SessionRow(
            name=fields.text("session"),
            head=fields.maybe_ref("head"),
            n_tokens=log[-1].n_tokens if log else 0,
            turns=fields.count("turns"),
            created=fields.time("created"),
            updated=fields.time("updated"),
            expires=fields.seconds("expires"),
            ttl=fields.seconds("ttl"),
            sliding=fields.flag("sliding"),
            kept=tuple(state.ref for state in states),
            unread=fields.messages("unread"),
        )
        if [each.text("member") for each in listed] != [*map(state_member, range(len(states)))]:
            raise StateCorrupt(f"The bundle's {MEMBER} names other states than it may.")
        found = cls(row, log, states)
        found.require_sound()
        return found

    def require_sound(self) -> None:
        """Checks that the parts fit each other.

        Raises:
            StateCorrupt: They do not.
        """
        refs = [state.ref for state in self.states]
        row, first = self.row, self.first
        head = self.log[-1].ref if self.log else None
        for sound, problem in (
            (row.head == head, "a log that does not end at its head"),
            (1 <= len(row.name) <= NAME_MAX, "a name that no session can have"),
            (row.ttl > 0, "a time to live that is none"),
            (len(self.log) <= LOG_ENTRIES, "too long a log"),
            (first >= 1 and bool(self.log) == bool(row.turns), "a log of other turns"),
            (first > 1 or not self.log or self.log[0].parent is None, "a first turn with a parent"),
            (
                all(later.parent == earlier.ref for earlier, later in pairwise(self.log)),
                "turns that do not follow on one another",
            ),
            (len(set(refs)) == len(refs), "one state twice"),
            (head in refs if self.log else not refs, "a head without its state"),
        ):
            if not sound:
                raise StateCorrupt(f"The bundle's {MEMBER} has {problem}.")


class _Fields(Body):
    """Takes typed values out of an object of the text.

    Args:
        where: Which object, for messages.
        values: The parsed JSON value.
    """

    def __init__(self, where: str, values: object) -> None:
        if not isinstance(values, Mapping):
            raise StateCorrupt(f"The bundle's {where} is no JSON object.")
        super().__init__(where, values)

    def seconds(self, name: str) -> float:
        """Returns a time; ``None`` stands for never."""
        value = super().seconds(name)
        if not 0 <= value <= _LATEST_SECONDS and value != math.inf:
            raise self._wrong(name)
        return value

    def messages(self, name: str) -> tuple[str, ...]:
        """Returns messages, which are JSON texts to a store."""
        texts = self.texts(name)
        try:
            require_messages(texts)
        except ValueError as error:
            raise StateCorrupt(
                f"The bundle's {self._where} has an unusable {name!r}: {error}"
            ) from error
        return texts

    def words(self, name: str) -> str:
        """Returns a text that can be written: JSON can hold half a surrogate pair."""
        text = self.text(name)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self._wrong(name) from error
        return text

    def time(self, name: str) -> float:
        """Returns a time that is not never."""
        value = self.seconds(name)
        if not math.isfinite(value):
            raise self._wrong(name)
        return value

    def digest(self, name: str) -> str:
        """Returns a SHA-256 in hexadecimal."""
        text = self.text(name)
        if _SHA256.fullmatch(text) is None:
            raise self._wrong(name)
        return text

    def digests(self, name: str) -> tuple[str, ...]:
        """Returns digests of messages; none where bundles of earlier releases have none."""
        if name not in self._values:
            return ()
        texts = self.texts(name)
        if not all(map(_SAID.fullmatch, texts)):
            raise self._wrong(name)
        return texts

    def objects(self, name: str) -> list[_Fields]:
        """Returns a list of objects."""
        return [_Fields(f"{self._where}, {name}", each) for each in self._take(name, list)]

    def origin(self, name: str) -> Origin | None:
        """Returns what a state was read from, ``None`` where that is not told."""
        if self._values.get(name) is None:
            return None
        fields = _Fields(f"{self._where}, {name}", self._values[name])
        unpack_tokens(fields.text("tokens"))
        return Origin(
            base=fields.maybe_ref("base"),
            tokens=fields.text("tokens"),
            fingerprint=fields.words("fingerprint"),
            block=None if fields.maybe_text("block") is None else fields.words("block"),
        )

    def _wrong(self, name: str) -> StateCorrupt:
        return StateCorrupt(
            f"The bundle's {self._where} has no usable {name!r}: {self._values.get(name)!r:.200}."
        )


def _turn_values(turn: LogEntry) -> dict[str, Any]:
    values: dict[str, Any] = {
        "ref": turn.ref,
        "parent": turn.parent,
        "n_tokens": turn.n_tokens,
        "created": turn.created_seconds,
    }
    if turn.origin is not None:
        values["origin"] = turn.origin.to_body()
    if turn.said:
        values["said"] = turn.said
    return values


def _turn(fields: _Fields) -> LogEntry:
    return LogEntry(
        ref=fields.ref("ref"),
        parent=fields.maybe_ref("parent"),
        n_tokens=fields.count("n_tokens"),
        created_seconds=fields.time("created"),
        origin=fields.origin("origin"),
        said=fields.digests("said"),
    )


def _state(fields: _Fields) -> BundledState:
    nbytes = fields.count("nbytes")
    if nbytes > FILE_LIMIT_BYTES:
        raise fields._wrong("nbytes")
    return BundledState(fields.ref("ref"), nbytes, fields.digest("sha256"))
