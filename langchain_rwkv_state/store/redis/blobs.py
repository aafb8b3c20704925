"""The bytes of states: in Redis itself, or, where they are large, in files that all machines share.

Bytes are written first, under a name of their own that is never used again, and a session's row
names them after; so no row ever names what is half there. What was written and never named goes by
itself: a value in Redis expires, a file is swept an hour later. The easy mistake is two machines
that name two directories, or a share that is not mounted: a tenant's files lie in a folder whose
name is in Redis, and without that folder a store is not opened.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from langchain_rwkv_state.errors import StateCorrupt, StoreError
from langchain_rwkv_state.store.redis.connect import errors
from langchain_rwkv_state.store.redis.folders import Files, shared_folder
from langchain_rwkv_state.store.settings import is_whole

if TYPE_CHECKING:
    import os

    from redis import Redis

    from langchain_rwkv_state.state import Buffer

BlobPlace = str
"""Where a state's bytes are, as its row says: ``r:`` and a key of Redis, or ``f:`` and a file."""

LARGE_BYTES = 1 << 20
"""States of so many bytes go into files, where there is a directory: from 0.3 MB on a file on a
local disk was written and read faster than Redis does, and one value of 1 MB holds up all others
for 3 ms."""
UNCOMMITTED_SECONDS = 600
"""How long a value that no row names stays in Redis."""
ORPHAN_SECONDS = 3600.0
"""How long a file that no row names is left alone: somebody may be about to name it."""

_LONGEST_VALUE = 512 << 20  # proto-max-bulk-len, which every Redis has
_MANY = 500
_FOLDER = re.compile(r"[0-9a-f]{32}")


class Blobs(Protocol):
    """Bytes of states, outside the rows that name them.

    Attributes:
        folder: The name of the tenant's folder, ``None`` where all is in Redis.
    """

    folder: str | None

    def write(self, client: Redis, key: str, ref: str, parts: Sequence[Buffer]) -> BlobPlace:
        """Writes a state's bytes, durably, before any row names them.

        Args:
            client: A connection to Redis.
            key: The key to use in Redis, never used before. There they go in
                `UNCOMMITTED_SECONDS`, unless a commit takes that expiry away.
            ref: The state's reference.
            parts: Its bytes, in pieces.

        Returns:
            Where they are.

        Raises:
            StoreFull: There is no room.
            StoreError: They cannot be written.
        """
        ...

    def read(self, place: BlobPlace) -> bytes | None:
        """Returns what is there, ``None`` where nothing is.

        Raises:
            StateCorrupt: Something else than a state's file lies there.
            StoreError: It cannot be read.
        """
        ...

    def read_start(self, place: BlobPlace, nbytes: int) -> bytes | None:
        """Returns at most `nbytes` from the start, ``None`` where nothing is."""
        ...

    def drop(self, places: Iterable[BlobPlace]) -> None:
        """Deletes what no row names any more, as far as it is there."""
        ...

    def erase(self, digests: Collection[str]) -> None:
        """Deletes all files of some states, those too that no row ever named.

        Args:
            digests: The last 64 digits of the states' references.

        Raises:
            StoreError: They cannot be deleted, or are held for a backup.
        """
        ...

    def orphans(self, known: Collection[BlobPlace]) -> list[BlobPlace]:
        """Returns the files older than `ORPHAN_SECONDS` that are not in `known`.

        Args:
            known: All places that rows named, collected before this is called.
        """
        ...

    def sweep(self, known: Collection[BlobPlace]) -> int:
        """Deletes `orphans`; returns how many."""
        ...


def open_blobs(
    client: Redis,
    blobs: str | os.PathLike[str] | None,
    marker: str,
    *,
    large_bytes: int = LARGE_BYTES,
) -> RedisBlobs:
    """Opens where a tenant's bytes are.

    Args:
        client: A connection to its Redis.
        blobs: A directory that all machines share, as a path, as ``file:///mnt/share`` or as
            another URL that fsspec reads (``s3://bucket/states``); ``None`` for Redis alone.
        marker: The key of Redis under which the name of the tenant's folder is kept; while there
            is a key of that name and ``:hold`` no file is deleted.
        large_bytes: States of so many bytes go there, smaller ones into Redis.

    Raises:
        ValueError: The path or `large_bytes` is not possible.
        ImportError: fsspec, or what it needs for this URL, is not installed.
        StoreError: The directory is missing, or is another one than the tenant's.
    """
    if not is_whole(large_bytes, 0):
        raise ValueError(f"large_bytes is a number of bytes, 0 or more, got {large_bytes!r}.")
    with errors():
        kept: Any = client.get(marker)
    folder = None if kept is None else kept.decode("ascii", "replace")
    if folder is not None and _FOLDER.fullmatch(folder) is None:
        raise StoreError(f"The key {marker} holds no folder's name: it was changed, or is foreign.")
    if blobs is None:
        if folder is not None:
            raise StoreError(
                f"This tenant keeps large states in files, in the folder {folder} of a directory: "
                "name that directory, blobs=."
            )
        return RedisBlobs(client)
    root = shared_folder(blobs)
    if folder is None:
        folder = secrets.token_hex(16)
        root.make(folder)  # before it is named, or whoever comes next would miss it
        with errors():
            client.set(marker, folder, nx=True)
            found: Any = client.get(marker)
        if found.decode() != folder:  # another process was first
            root.unmake(folder)
            folder = found.decode()
    if not root.has(folder):
        raise StoreError(
            f"The folder {folder} with this tenant's large states is not in {root}: is the share "
            "mounted, and is it the directory that the other machines name? If those files are "
            f"lost, delete the key {marker} to go on without them."
        )
    opened = FileBlobs(client, root.files(folder), f"{marker}:hold", large_bytes)
    opened.folder = folder
    return opened


class RedisBlobs:
    """Bytes in Redis alone.

    Args:
        client: A connection.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self.folder: str | None = None

    def write(self, client: Redis, key: str, ref: str, parts: Sequence[Buffer]) -> BlobPlace:
        """See `Blobs.write`."""
        del ref
        size = sum(map(len, parts))
        if size > _LONGEST_VALUE:
            raise StoreError(
                f"A state of {size} bytes is more than a value of Redis may have ({_LONGEST_VALUE} "
                "bytes): keep large states in a directory, blobs=."
            )
        with errors():
            client.set(key, b"".join(parts), ex=UNCOMMITTED_SECONDS)
        return f"r:{key}"

    def read(self, place: BlobPlace) -> bytes | None:
        """See `Blobs.read`."""
        with errors():
            found: Any = self._client.get(_key(place))
        return None if found is None else bytes(found)

    def read_start(self, place: BlobPlace, nbytes: int) -> bytes | None:
        """See `Blobs.read_start`."""
        with errors():
            found: Any = self._client.getrange(_key(place), 0, nbytes - 1)
        return bytes(found) or None  # no state is empty

    def drop(self, places: Iterable[BlobPlace]) -> None:
        """See `Blobs.drop`."""
        keys = [_key(place) for place in places]
        with errors():
            for start in range(0, len(keys), _MANY):
                self._client.unlink(*keys[start : start + _MANY])

    def erase(self, digests: Collection[str]) -> None:
        """See `Blobs.erase`: there are no files."""

    def orphans(self, known: Collection[BlobPlace]) -> list[BlobPlace]:
        """Returns nothing: what no row names expires."""
        del known
        return []

    def sweep(self, known: Collection[BlobPlace]) -> int:
        """See `Blobs.sweep`."""
        orphans = self.orphans(known)
        self.drop(orphans)
        return len(orphans)


def _key(place: BlobPlace) -> str:
    kind, _, name = place.partition(":")
    if kind == "r":
        return name
    if kind == "f":
        raise StoreError(
            "This state lies in a file of a directory that another process named: open the store "
            "with blobs=, as that one does."
        )
    raise StateCorrupt(f"{place!r:.200} is not the place of a state: its row was changed.")


class FileBlobs(RedisBlobs):
    """Large states in files, smaller ones in Redis.

    Args:
        client: A connection.
        files: The tenant's folder.
        hold: While there is a key of this name in Redis no file is deleted, so that whoever makes
            a backup finds all that a snapshot of Redis names. A later sweep takes what was left.
        large_bytes: What is large.
    """

    def __init__(
        self, client: Redis, files: Files, hold: str, large_bytes: int = LARGE_BYTES
    ) -> None:
        super().__init__(client)
        self._files = files
        self._hold = hold
        self._large_bytes = large_bytes

    def write(self, client: Redis, key: str, ref: str, parts: Sequence[Buffer]) -> BlobPlace:
        """See `Blobs.write`."""
        if sum(map(len, parts)) < self._large_bytes:
            return super().write(client, key, ref, parts)
        name = self._files.new_name(ref)
        self._files.write(name, list(parts))
        return f"f:{name}"

    def read(self, place: BlobPlace) -> bytes | None:
        """See `Blobs.read`."""
        name = _file(place)
        return super().read(place) if name is None else self._files.read(name)

    def read_start(self, place: BlobPlace, nbytes: int) -> bytes | None:
        """See `Blobs.read_start`."""
        name = _file(place)
        if name is None:
            return super().read_start(place, nbytes)
        return self._files.read_start(name, nbytes)

    def drop(self, places: Iterable[BlobPlace]) -> None:
        """See `Blobs.drop`."""
        every = list(places)
        super().drop(place for place in every if _file(place) is None)
        names = [name for place in every if (name := _file(place)) is not None]
        if names and not self._is_held():
            self._files.drop_all(names)

    def _is_held(self) -> bool:
        with errors():
            found: Any = self._client.exists(self._hold)
        return bool(found)

    def erase(self, digests: Collection[str]) -> None:
        """See `Blobs.erase`."""
        if digests and self._is_held():
            raise StoreError(
                f"The files of what was deleted are held for a backup, by the key {self._hold}: "
                "they go when the store is next opened once that key is gone."
            )
        self._files.drop_of(digests)

    def orphans(self, known: Collection[BlobPlace]) -> list[BlobPlace]:
        """See `Blobs.orphans`."""
        if self._is_held():
            return []
        named = frozenset(known)
        return [
            f"f:{name}"
            for name, age in self._files.all()
            if age > ORPHAN_SECONDS and f"f:{name}" not in named
        ]


def _file(place: BlobPlace) -> str | None:
    kind, _, name = place.partition(":")
    return name if kind == "f" else None
