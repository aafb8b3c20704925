"""Reads and writes the file of a bundle: a ZIP whose comment ends with a digest of all before it.

It knows neither stores nor tensors; `docs/bundles.md` describes the file byte by byte, and lists
the fields of `session.json`, which says what the session is. A digest is no signature: names, sizes
and order are checked as if somebody had made the file by hand, and a log whose turns do not follow
on one another, or that does not end at a state that came along, is refused before a store sees it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from langchain_rwkv_state._files import whole_file
from langchain_rwkv_state.errors import StateCorrupt
from langchain_rwkv_state.state.header import FILE_LIMIT_BYTES, is_later
from langchain_rwkv_state.state.regular_file import open_plain
from langchain_rwkv_state.store.clock import LONGEST_TTL_SECONDS
from langchain_rwkv_state.store.records import Body, LogEntry, Origin, unpack_tokens
from langchain_rwkv_state.store.rows import NAME_MAX, SessionRow, finite
from langchain_rwkv_state.store.settings import no_constant, require_messages
from langchain_rwkv_state.store.tables import LOG_ENTRIES

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
                {"member": state_member(number), **vars(state)}
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
        fields = _Fields(f"bundle's {MEMBER}", values)
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
    """Takes typed values out of an object of the text, as narrowly as a stranger's file needs."""

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
            raise StateCorrupt(f"The {self._where} has an unusable {name!r}: {error}") from error
        return texts

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
        if not self.has(name):
            return None
        where, values = f"{self._where}, {name}", self.value(name)
        unpack_tokens(Body(where, values).text("tokens"))
        origin = Origin.from_body(where, values)
        try:
            f"{origin.fingerprint}{origin.block}".encode()
        except UnicodeEncodeError as error:  # JSON can hold half a surrogate pair
            raise self._wrong(name) from error
        return origin


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


MANIFEST_LIMIT_BYTES = 16 << 20
"""The largest `session.json`: three million token ids, or as many letters unread."""

_DIGEST_BYTES = 64  # hex digits of a SHA-256
_MARK = f"{FORMAT}/{FORMAT_VERSION} sha256:".encode()
_COMMENT_BYTES = len(_MARK) + _DIGEST_BYTES
_COMMENT = re.compile(rb"%s/(\d{1,9}) sha256:([0-9a-f]{64})\Z" % FORMAT.encode())
_LOCAL_HEADER_BYTES = 30
_DATE = (1980, 1, 1, 0, 0, 0)  # a ZIP's first day: one session gives one file
_OWNER_ONLY = (stat.S_IFREG | 0o600) << 16
_UNIX = 3
_CHUNK_BYTES = 1 << 20
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError),
    *(struct.error, ValueError, OverflowError),
)


class BundleWriter:
    """Fills a bundle: the states, newest first, then what the session is."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._written = 0

    def add_state(self, ref: str, data: bytes) -> BundledState:
        """Adds the file of one state."""
        self._add(state_member(self._written), data)
        self._written += 1
        return BundledState(ref, len(data), hashlib.sha256(data).hexdigest())

    def add_manifest(self, manifest: Manifest) -> None:
        """Adds what the session is, as the last thing.

        Raises:
            StateCorrupt: Its parts do not fit each other.
            ValueError: It is too large.
        """
        manifest.require_sound()
        data = manifest.to_bytes()
        if len(data) > MANIFEST_LIMIT_BYTES:
            raise ValueError(
                f"The log and the unread messages of {manifest.row.name!r} take {len(data)} bytes "
                f"as JSON, and a bundle holds {MANIFEST_LIMIT_BYTES}: leave the token ids out, or "
                "let the messages be read first."
            )
        self._add(MEMBER, data)

    def _add(self, name: str, data: bytes) -> None:
        about = zipfile.ZipInfo(name, _DATE)
        about.create_system = _UNIX
        about.external_attr = _OWNER_ONLY
        self._archive.writestr(about, data, zipfile.ZIP_STORED)


@contextmanager
def new_bundle(path: Path) -> Iterator[BundleWriter]:
    """Writes a bundle: whole, flushed and for its owner alone, or not at all.

    Raises:
        FileExistsError: It is there.
        OSError: It could not be written; nothing is left of it.
    """
    with whole_file(path, new=True) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            yield BundleWriter(archive)
            archive.comment = _MARK + b"0" * _DIGEST_BYTES
        end = file.seek(0, os.SEEK_END) - _COMMENT_BYTES
        digest = _digest(file, end)
        file.seek(end + len(_MARK))
        file.write(digest)


class BundleReader:
    """An open bundle whose digest, members and `session.json` are known to be right."""

    def __init__(
        self, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], manifest: Manifest
    ) -> None:
        self._archive = archive
        self._members = members
        self.manifest = manifest

    def state(self, number: int) -> bytes:
        """Returns the file of a state, by its place in the manifest.

        Raises:
            StateCorrupt: It is not the one that the manifest names.
        """
        data = _read(self._archive, self._members[number])
        if hashlib.sha256(data).hexdigest() != self.manifest.states[number].sha256:
            raise StateCorrupt(f"{state_member(number)} is not the file that {MEMBER} names.")
        return data


@contextmanager
def open_bundle(path: Path) -> Iterator[BundleReader]:
    """Opens a bundle and checks all of it but what the states hold.

    A link is followed: the caller named it. A pipe or a device is not read.

    Raises:
        StateCorrupt: The file was changed, truncated or added to, or is something else.
        OSError: It is not there or cannot be read.
    """
    with open_plain(path) as file:
        comment = _checked_comment(file)
        with _zip_errors():
            archive = zipfile.ZipFile(file)
        with archive:
            members = _checked_members(archive, comment)
            manifest = Manifest.from_bytes(_read(archive, members[-1]))
            sizes = [state.nbytes for state in manifest.states]
            if sizes != [member.file_size for member in members[:-1]]:
                raise StateCorrupt(f"The states in the bundle are not those that {MEMBER} names.")
            yield BundleReader(archive, members, manifest)


def _checked_comment(file: BinaryIO) -> bytes:
    """Returns the ZIP's comment once the digest in it is known to be right."""
    end = max(0, file.seek(0, os.SEEK_END) - _COMMENT_BYTES - 8)  # room for a longer version
    file.seek(end)
    found = _COMMENT.search(file.read())
    if found is None:
        raise StateCorrupt(
            "The file is not a bundle of a session, or was truncated or added to: it does not end "
            f"with {FORMAT}/... and a digest."
        )
    require_version(found[1].decode())
    if _digest(file, end + found.start()) != found[2]:
        raise StateCorrupt("The digest is wrong: the bundle was truncated or changed.")
    return found[0]


def _checked_members(archive: zipfile.ZipFile, comment: bytes) -> list[zipfile.ZipInfo]:
    """Returns the members once they are known to be exactly those of a bundle, end to end."""
    members = archive.infolist()
    names = [*map(state_member, range(len(members) - 1)), MEMBER]
    at = 0
    for member, name in zip(members, names, strict=False):
        if member.orig_filename != name:
            raise StateCorrupt(
                f"The bundle holds {member.orig_filename!r:.200} in the place of {name!r}."
            )
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits or member.comment:
            raise StateCorrupt(f"{name} in the bundle is compressed, encrypted or commented.")
        if member.header_offset != at or member.file_size != member.compress_size:
            raise StateCorrupt(f"{name} in the bundle has a size that does not add up.")
        at += _LOCAL_HEADER_BYTES + len(name) + member.file_size
    if not members or at != archive.start_dir or archive.comment != comment:
        raise StateCorrupt("The bundle holds more, or less, than its members.")
    if members[-1].file_size > MANIFEST_LIMIT_BYTES:
        raise StateCorrupt(
            f"The bundle's {MEMBER} has {members[-1].file_size} bytes, more than the "
            f"{MANIFEST_LIMIT_BYTES} that are read."
        )
    return members


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with _zip_errors():
        return archive.read(member)


@contextmanager
def _zip_errors() -> Iterator[None]:
    """Turns what `zipfile` says of a file that somebody made by hand into `StateCorrupt`."""
    try:
        yield
    except (*_ZIP_ERRORS, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # it sought a wild offset
            raise
        raise StateCorrupt(f"The bundle is not a ZIP of this package's making: {error}.") from error


def _digest(file: BinaryIO, end: int) -> bytes:
    """Returns the hex SHA-256 of a file's first `end` bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    left = end
    while left:
        chunk = file.read(min(left, _CHUNK_BYTES))
        if not chunk:
            break
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest().encode()
