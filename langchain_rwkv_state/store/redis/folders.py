"""A directory that machines share, for states too large for Redis: mounted, or reached by fsspec.

Each tenant has a folder of its own in it, whose name nobody guesses. A file has its name from the
start and is never changed: that it is whole is for the row to say, which is written after. The easy
mistake is to make the directory where it is missing: a share that is not mounted would be replaced
by a folder on this machine's disk.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from langchain_rwkv_state._files import flush_directory
from langchain_rwkv_state.errors import StateCorrupt, StoreError, StoreFull
from langchain_rwkv_state.store.files import StateFiles, is_full

if TYPE_CHECKING:
    import os

    from langchain_rwkv_state.state import Buffer

_FILE = re.compile(r"[0-9a-f]{64}-[0-9a-f]{10}-[0-9a-f]{16}")
_MARK = "rwkv-state"  # a file in the folder: an object store has no empty folders
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


class Files(Protocol):
    """A tenant's folder of files, on a disk or wherever fsspec reaches."""

    def new_name(self, ref: str) -> str:
        """Returns a name that was never used, for a state's file."""
        ...

    def write(self, name: str, parts: Sequence[Buffer]) -> None:
        """Writes a file, durably."""
        ...

    def read(self, name: str) -> bytes | None:
        """Returns a file's bytes, ``None`` where it is missing."""
        ...

    def read_start(self, name: str, nbytes: int) -> bytes | None:
        """Returns at most `nbytes` of a file, ``None`` where it is missing."""
        ...

    def drop_all(self, names: Sequence[str]) -> None:
        """Deletes files, as far as they are there."""
        ...

    def drop_of(self, digests: Collection[str]) -> None:
        """Deletes all files whose names begin so."""
        ...

    def all(self) -> Iterator[tuple[str, float]]:
        """Yields each file's name and its age in seconds."""
        ...


class SharedFolder(Protocol):
    """The directory that machines share, with a folder for each tenant."""

    def make(self, folder: str) -> None:
        """Makes a tenant's folder."""
        ...

    def unmake(self, folder: str) -> None:
        """Takes an empty one away."""
        ...

    def has(self, folder: str) -> bool:
        """Says whether a tenant's folder is there."""
        ...

    def files(self, folder: str) -> Files:
        """Returns its files."""
        ...


def shared_folder(blobs: str | os.PathLike[str]) -> SharedFolder:
    """Returns the directory that a path or URL names.

    Args:
        blobs: An absolute path, a ``file:`` URL, or another URL that fsspec reads.

    Raises:
        ValueError: It names none.
        ImportError: fsspec, or what it needs for this URL, is not installed.
        StoreError: There is no such directory, or it cannot be reached.
    """
    text = str(blobs)
    if not text:
        raise ValueError("blobs is the path or URL of a directory, got an empty text.")
    scheme = urlsplit(text).scheme
    if isinstance(blobs, str) and scheme and _DRIVE.match(text) is None:
        if scheme != "file":
            return _Remote(text)
        parsed = urlsplit(text)
        if parsed.netloc not in ("", "localhost"):
            raise ValueError(
                f"{text:.200} names a directory of the machine {parsed.netloc}: mount it, and name "
                "where (file:///mnt/share)."
            )
        text = unquote(parsed.path)
    return _Local(Path(text).expanduser())


class _Local:
    """A directory on a disk, this machine's or one that is mounted."""

    def __init__(self, path: Path) -> None:
        if not path.is_absolute():
            raise ValueError(
                f"blobs is an absolute path, the same on each machine or not, got {str(path)!r}."
            )
        if not path.is_dir():
            raise StoreError(
                f"There is no directory {path} for large states: is the share mounted? A new one "
                "has to be made first."
            )
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def make(self, folder: str) -> None:
        try:
            (self._path / folder).mkdir(mode=0o700)
            flush_directory(self._path)
        except OSError as error:
            raise _not_written(f"{self._path / folder}", error) from error

    def unmake(self, folder: str) -> None:
        with suppress(OSError):
            (self._path / folder).rmdir()

    def has(self, folder: str) -> bool:
        return (self._path / folder).is_dir()

    def files(self, folder: str) -> Files:
        return _LocalFiles(self._path / folder)


class _LocalFiles(StateFiles):
    """State files, as the store on disk has them, in a folder that may be unmounted meanwhile."""

    def new_name(self, ref: str) -> str:
        return f"{_digest(ref)}-{secrets.token_hex(8)}"

    def write(self, name: str, parts: Sequence[Buffer]) -> None:
        self._require_there()  # or one would be made below where the share was
        super().write(name, parts)

    def read(self, name: str, nbytes: int | None = None) -> bytes | None:
        return self._there(super().read(name, nbytes))

    def read_start(self, name: str, nbytes: int) -> bytes | None:
        return self._there(super().read_start(name, nbytes))

    def drop_of(self, digests: Collection[str]) -> None:
        self._require_there()
        super().drop_of(digests)

    def all(self) -> Iterator[tuple[str, float]]:
        self._require_there()
        yield from super().all()

    def _there(self, found: bytes | None) -> bytes | None:
        if found is None:
            self._require_there()
        return found

    def _require_there(self) -> None:
        """Tells a folder that is away from a file that is missing.

        Raises:
            StoreError: It is away.
        """
        if not self._root.is_dir():
            raise StoreError(
                f"The folder {self._root} with this tenant's large states is away: is the share "
                "still mounted?"
            )


def _digest(ref: str) -> str:
    """Returns the last 64 digits of a reference."""
    return ref[-64:]


def _not_written(where: str, error: Exception) -> StoreError | StoreFull:
    if isinstance(error, OSError) and is_full(error):
        return StoreFull(
            f"There is no room for a state at {where}: {error}. What was stored before is unharmed."
        )
    return StoreError(f"A state could not be written to {where}: {error}")


class _Remote:
    """A directory that fsspec reaches: an object store, or another machine's."""

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise ImportError(
                "States behind a URL need fsspec: pip install 'langchain-rwkv-state[redis]'."
            ) from error
        self._url = url.rstrip("/")
        with self.told("be reached"):
            # What another machine wrote is not in a listing that was kept here.
            self.fs, path = url_to_fs(self._url, use_listings_cache=False)
        self.path = str(path).rstrip("/")

    def __str__(self) -> str:
        found = urlsplit(self._url)
        return f"{found.scheme}://{found.netloc.rpartition('@')[2]}{found.path}"

    @contextmanager
    def told(self, done: str) -> Iterator[None]:
        """Turns whatever the file system raises into our errors, but for a missing file."""
        try:
            yield
        except (FileNotFoundError, ImportError):
            raise
        except Exception as error:  # each of fsspec's file systems has errors of its own
            if isinstance(error, OSError) and is_full(error):
                raise _not_written(str(self), error) from error
            raise StoreError(f"The states at {self} cannot {done}: {error}") from error

    def join(self, *names: str) -> str:
        return "/".join((self.path, *names))

    def make(self, folder: str) -> None:
        with self.told("be written"):
            self.fs.makedirs(self.join(folder), exist_ok=True)
            self.fs.pipe_file(self.join(folder, _MARK), folder.encode())

    def unmake(self, folder: str) -> None:
        with self.told("be written"), suppress(FileNotFoundError):
            self.fs.rm_file(self.join(folder, _MARK))

    def has(self, folder: str) -> bool:
        with self.told("be read"):
            return bool(self.fs.exists(self.join(folder, _MARK)))

    def files(self, folder: str) -> Files:
        return _RemoteFiles(self, folder)


class _RemoteFiles:
    """A tenant's files there; their names say when they were written, since not all systems do."""

    def __init__(self, root: _Remote, folder: str) -> None:
        self._root = root
        self._folder = folder

    def new_name(self, ref: str) -> str:
        return f"{_digest(ref)}-{int(time.time()):010x}-{secrets.token_hex(8)}"

    def write(self, name: str, parts: Sequence[Buffer]) -> None:
        data = b"".join(parts)
        path = self._path(name)
        with self._root.told("be written"):
            try:
                self._root.fs.pipe_file(path, data)
            except FileNotFoundError:  # an object store has no folders, all others want one
                self._root.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._root.fs.pipe_file(path, data)
            there = self._root.fs.size(path)
        if there != len(data):
            raise StoreError(
                f"A state of {len(data)} bytes was written to {self._root}, and {there} are there."
            )

    def read(self, name: str) -> bytes | None:
        return self._read(name, lambda path: self._root.fs.cat_file(path))

    def read_start(self, name: str, nbytes: int) -> bytes | None:
        return self._read(name, lambda path: self._root.fs.cat_file(path, start=0, end=nbytes))

    def _read(self, name: str, read: Callable[[str], bytes]) -> bytes | None:
        path = self._path(name)
        try:
            with self._root.told("be read"):
                return bytes(read(path))
        except FileNotFoundError:
            return None

    def drop_all(self, names: Sequence[str]) -> None:
        for name in names:
            # One that stays is found by the next sweep: no row names it.
            with suppress(FileNotFoundError, StoreError), self._root.told("be deleted"):
                self._root.fs.rm_file(self._path(name))

    def drop_of(self, digests: Collection[str]) -> None:
        with self._root.told("be deleted"):
            for start in {digest[:2] for digest in digests}:
                with suppress(FileNotFoundError):
                    for path in self._root.fs.find(self._root.join(self._folder, start)):
                        if PurePosixPath(path).name[:64] in digests:
                            self._root.fs.rm_file(path)

    def all(self) -> Iterator[tuple[str, float]]:
        now = time.time()
        with self._root.told("be listed"):
            found = self._root.fs.find(self._root.join(self._folder))
        for path in found:
            name = PurePosixPath(path).name
            if _FILE.fullmatch(name):
                yield name, now - int(name.split("-")[1], 16)

    def _path(self, name: str) -> str:
        if _FILE.fullmatch(name) is None:
            raise StateCorrupt(f"{name!r:.200} is not the name of a state file.")
        return self._root.join(self._folder, name[:2], name)
