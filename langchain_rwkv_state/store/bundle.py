"""Reads and writes the file of a bundle: a ZIP whose comment ends with a digest of all before it.

It knows neither stores nor tensors; `docs/bundles.md` describes the file byte by byte. The easy
mistake is to trust a ZIP because its digest is right: the digest is no signature, so names, sizes
and order are checked as if somebody had made the file by hand.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from langchain_rwkv_state._files import whole_file
from langchain_rwkv_state.errors import StateCorrupt
from langchain_rwkv_state.state.regular_file import open_plain
from langchain_rwkv_state.store.manifest import (
    FORMAT,
    FORMAT_VERSION,
    MEMBER,
    BundledState,
    Manifest,
    require_version,
    state_member,
)

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
    """Fills a bundle: the states, newest first, then what the session is.

    Args:
        archive: The ZIP.
    """

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

    Args:
        path: A file that is not there yet.

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
    """An open bundle whose digest, members and `session.json` are known to be right.

    Args:
        archive: The ZIP.
        members: Its members, the states first.
        manifest: What the session is.
    """

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
