"""`DiskStateStore`: the default store, in a directory on this machine's disk.

Several threads and several processes may use one directory; a network file system will not do,
since SQLite's locks do not work there. A chat object names a store, and `LazyDiskStateStore` opens
it at its first use. The easy mistake is to delete files by hand: delete
sessions, or the directory as a whole while nothing uses it.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from langchain_rwkv_state._registry import of_process
from langchain_rwkv_state.errors import StateCorrupt, StoreError, StoreFull
from langchain_rwkv_state.store.backup import back_up
from langchain_rwkv_state.store.base import StateStore
from langchain_rwkv_state.store.clock import TTL
from langchain_rwkv_state.store.disk_backend import DiskBackend
from langchain_rwkv_state.store.memory import MemoryStateStore
from langchain_rwkv_state.store.place import holds_store
from langchain_rwkv_state.store.records import Backup, Codec, LogKind
from langchain_rwkv_state.store.resources import OPEN_STORES, Resources
from langchain_rwkv_state.store.settings import DEFAULT_TTL, StoreSettings, check_opening
from langchain_rwkv_state.store.staging import STAGED_BUDGET_BYTES, StagedFiles
from langchain_rwkv_state.store.store import TableStore
from langchain_rwkv_state.store.verbs import twin

DIRECTORY_VARIABLE = "RWKV_STATE_DIR"


_URL = re.compile(r"(redis|rediss|unix|file|memory):", re.IGNORECASE)


def default_directory() -> Path:
    """Returns the user's own store: ``$RWKV_STATE_DIR``, or a folder in the user's data.

    Raises:
        StoreError: The variable holds a URL, so that the user's own store is no directory.
    """
    named = os.environ.get(DIRECTORY_VARIABLE)
    if named and _URL.match(named):
        raise StoreError(
            f"{DIRECTORY_VARIABLE} names the user's own store by a URL, and here a directory is "
            "needed: open_store() opens a URL, or name a directory."
        )
    if named:
        return Path(named).expanduser()
    return Path(platformdirs.user_data_dir("langchain-rwkv-state", appauthor=False)) / "states"


class DiskStateStore(TableStore):
    """Keeps states and sessions in a directory, durably, for any number of processes.

    Args:
        path: The directory, made where it is missing; ``None`` for the user's own
            (``$RWKV_STATE_DIR``, or a folder in the user's data).
        ttl: How long sessions and states live, unless said otherwise.
        sliding: Whether commits and reads renew that.
        history: How many states before a session's head are kept.
        log: ``"tokens"`` keeps the token ids, so that `rebuild` can make states again. Such a log
            is a transcript.
        size_limit: The most bytes to store, ``None`` for no limit.
        codec: How states become bytes; ``None`` for as the store was made, and ``"exact"`` for a
            new one. ``"exact"`` and ``"zstd"`` lose nothing. ``"fp16"``, ``"bf16"``, ``"int8"`` and
            ``"int4"`` do, are chosen when a store is made, and give every state a reference of its
            own.
        clock: Gives Unix time.
        staged_bytes: The most bytes of states to hold in memory that nothing has committed yet;
            beyond that they are kept in files of the directory, as long as in memory.
        timeout_seconds: How long to wait for another writer.
        read_only: ``True`` writes nothing: sessions can be listed, read, exported and checked, and
            their states be answered from, and every verb that would write raises `StoreError`; no
            time to live is renewed. ``None`` is for reading and writing, or, where a store's
            directory cannot be written, for reading alone, with a warning. ``False`` never is.
        create: ``None`` makes a store where the directory is missing or empty; ``True`` also among
            other files; ``False`` opens only one that is there.

    Raises:
        ValueError: A value is out of range.
        StoreError: The directory holds something else than a store of this package, or a store that
            is damaged, or that was made with another lossy codec, or with none.
        StoreFull: The disk leaves no room for one.

    Example:
        >>> import tempfile
        >>> from langchain_rwkv_state.state import StateLayout, zero_state
        >>> state = zero_state(StateLayout.of(7, n_layer=1, n_embd=64, head_size=64), "model")
        >>> with tempfile.TemporaryDirectory() as folder, DiskStateStore(folder) as store:
        ...     store.commit("bob", store.stage(state), parent=None)
        ...     store.sessions()
        ['bob']
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        ttl: TTL = DEFAULT_TTL,
        sliding: bool = True,
        history: int = 1,
        log: LogKind = "none",
        size_limit: int | None = None,
        codec: Codec | None = None,
        *,
        clock: Callable[[], float] = time.time,
        staged_bytes: int = STAGED_BUDGET_BYTES,
        timeout_seconds: float = 60.0,
        read_only: bool | None = None,
        create: bool | None = None,
    ) -> None:
        settings = StoreSettings(ttl, sliding, history, log, size_limit, codec, clock, staged_bytes)
        check_opening(path, timeout_seconds, read_only, create)
        if path is not None and not os.fspath(path):
            raise ValueError(
                "An empty path would make a store of the working directory: name a directory, or "
                "leave path out for the user's own store."
            )
        if read_only and create:
            raise ValueError("A store that is opened read_only cannot be made: leave create out.")
        url = None if path is None else _URL.match(str(path))
        if url is not None:  # a folder called "redis:" is nobody's wish
            raise ValueError(
                f"{url[0]}... is a URL and no directory: open_store() opens it, and a directory "
                "that is called so is written with ./ before it."
            )
        self._path = _absolute(default_directory() if path is None else path)
        self._opening: dict[str, Any] = {
            "timeout_seconds": timeout_seconds,
            "read_only": read_only,
            "create": create,
        }

        def opened() -> Resources:
            backend = DiskBackend(self._path, timeout_seconds, read_only=read_only, create=create)
            if backend.read_only:
                return Resources(backend, StagedFiles(None))
            staged = StagedFiles(self._path)
            staged.sweep()
            return Resources(backend, staged)

        def fits(resources: Resources) -> bool:
            backend = resources.backend
            return backend.is_usable and not (read_only is False and backend.read_only)

        key = (os.path.realpath(self._path), bool(read_only))
        super().__init__(OPEN_STORES.held(key, opened, fits=fits), settings)
        if read_only is None and self.read_only:
            warnings.warn(
                f"The store {self._path} cannot be written, so it is open read-only: its sessions "
                "can be read, and no turn can be committed. read_only=True says that this is "
                "meant.",
                stacklevel=2,
            )

    @property
    def path(self) -> Path:
        """The store's directory."""
        return self._path

    @property
    def location(self) -> str | None:
        """See `StateStore.location`."""
        return str(self._path)

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written."""
        return self._backend.read_only

    def backup(self, directory: str | os.PathLike[str]) -> Backup:
        """Copies the store into a new directory, as it stands at one moment, and flushes the copy.

        Threads and processes may go on committing meanwhile. The copy is a store: it opens, holds
        every session as of that moment, and has this store's secret, so its references are the
        same. Staged states are not in it. It takes its name once it is whole: what a killed program
        leaves is a folder ``.NAME.….partial``, which may be deleted. On the same disk a state's
        file is not copied but gets a second name, which takes no room, and outlives a delete but
        not the disk.

        Args:
            directory: A new one, or one that is empty; the directories above it are made.

        Returns:
            What was copied.

        Raises:
            ValueError: The path is empty.
            StoreError: Something stands there, or it cannot be written.
            StateCorrupt: The store is damaged: `check` says how, and mends it.
            StoreFull: The disk leaves no room.

        Example:
            >>> import tempfile
            >>> folder = tempfile.TemporaryDirectory()
            >>> with folder as root, DiskStateStore(f"{root}/a") as store:
            ...     store.backup(f"{root}/b").sessions
            0
        """
        self._check_open()
        return back_up(self._disk, _named(directory))

    abackup = twin(backup)

    @staticmethod
    def restore(backup: str | os.PathLike[str], directory: str | os.PathLike[str]) -> Backup:
        """Makes a store of a backup, once every row and file of that was looked at.

        The backup is only read. What is made is in turn a backup of it, and like one it needs a
        place where no store stands.

        Args:
            backup: A directory that `backup` made, or a copy of one.
            directory: A new one, or one that is empty.

        Returns:
            What was copied.

        Raises:
            ValueError: A path is empty.
            StateCorrupt: The backup is damaged; the message says what is wrong.
            StoreError: There is no backup, or something stands in the store's place.
            StoreFull: The disk leaves no room.
        """
        source = _named(backup)
        if not holds_store(source):
            raise StoreError(f"There is no backup in {source}: name the directory of one.")
        with DiskStateStore(source, read_only=True) as store:
            report = store.check()
            if not report.sound:
                more = len(report.problems) - 1
                raise StateCorrupt(
                    f"The backup {store.path} is damaged, and nothing was restored from it: "
                    f"{report.problems[0]}" + (f" And {more} more." if more else "")
                )
            return store.backup(directory)

    @staticmethod
    async def arestore(backup: str | os.PathLike[str], directory: str | os.PathLike[str]) -> Backup:
        """Async twin of `restore`."""
        return await asyncio.to_thread(DiskStateStore.restore, backup, directory)

    @property
    def _disk(self) -> DiskBackend:
        backend = self._backend
        assert isinstance(backend, DiskBackend)  # noqa: S101 # as the constructor made it
        return backend

    def __repr__(self) -> str:
        return f"DiskStateStore({str(self._path)!r})"

    def __reduce__(self) -> tuple[Callable[[], DiskStateStore], tuple[()]]:
        """Travels as its directory and its settings; a copy in the same process shares all else."""
        return partial(DiskStateStore, self._path, **vars(self._settings), **self._opening), ()


def _absolute(path: str | os.PathLike[str]) -> Path:
    """Returns a directory's whole path.

    Raises:
        StoreError: It begins with the home of a user that there is not.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise StoreError(f"{path} names the home of nobody: {error}") from error


def _named(path: str | os.PathLike[str]) -> Path:
    """Returns the whole path of a directory that has to be named.

    Raises:
        ValueError: It is empty.
        StoreError: As `_absolute`.
    """
    if not os.fspath(path):
        raise ValueError("An empty path is the working directory's: name a directory.")
    return _absolute(path)


class LazyDiskStateStore(DiskStateStore):
    """A `DiskStateStore` that opens its directory at its first use.

    Args:
        path: The directory; ``None`` for the user's own, as it is found when it is opened.

    Raises:
        StoreError, StoreFull: At each use, where it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._named = path

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Opens the store: it is what opening sets that is not there yet."""
            if name.startswith("__") or name == "_named" or "_path" in vars(self):
                raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
            # In one step: where two threads do this, they come to the same.
            vars(self).update(vars(DiskStateStore(self._named)))
            return getattr(self, name)

    @property
    def named(self) -> str | None:
        """The directory as it was given, ``None`` for the user's own."""
        return None if self._named is None else os.fspath(self._named)

    @property
    def location(self) -> str | None:
        """See `StateStore.location`."""
        return self.named

    def opened(self) -> DiskStateStore:
        """Opens the store, if that was not done yet, and returns it."""
        self._check_open()
        return self

    def or_memory(self) -> StateStore:
        """Returns this store, or one in memory where it is the user's own and cannot be opened.

        Answers that need no memory are given all the same then, as in a container whose disk is
        read-only, with one warning: their states cannot be committed.
        """
        try:
            return self.opened()
        except (StoreError, StoreFull) as error:
            if self._named is not None or "_path" in vars(self):
                raise
            mine = object()
            if vars(self).setdefault("_told", mine) is mine:
                warnings.warn(
                    "The user's own store cannot be opened, so that states of answers are kept in "
                    "memory alone, and sessions are not possible: pass store=, or set "
                    f"RWKV_STATE_DIR. {error}",
                    stacklevel=3,
                )
            return of_process("store of those without a home", _in_memory)

    def __repr__(self) -> str:
        return f"DiskStateStore({self.named!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels as its name: where it arrives, it is opened anew."""
        return LazyDiskStateStore, (self.named,)


def _in_memory() -> StateStore:
    return MemoryStateStore(staged_bytes=STAGED_BUDGET_BYTES)
