"""Staged states: what an answer that was just given stands on until it is kept, in memory or files.

A staged state lives until its time is up, in memory as long as there is room and else in a file of
the store's directory (`over` and `moved`); nothing here is durable, and no other process sees it.
Each process has a folder of its own there, which it holds by a lock as long as it lives; whoever
opens the store removes the folders of those that have died. The easy mistakes: to drop a staged
state at the first commit of it, for two turns with the same text stage one state, and each may need
it; and to let a budget decide whether a state lives, where it only decides where.
"""

from __future__ import annotations

import atexit
import errno
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
import weakref
from array import array
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_rwkv_state import _files
from langchain_rwkv_state._files import NO_LINK, write_new
from langchain_rwkv_state._fork import ForkLock
from langchain_rwkv_state.errors import StateCorrupt, StoreError, StoreFull
from langchain_rwkv_state.state.header import Named
from langchain_rwkv_state.store.files import (
    NO_WAIT,
    SUFFIX,
    is_full,
    make_directories,
    read_regular,
)
from langchain_rwkv_state.store.records import model_named_by

if TYPE_CHECKING:
    from langchain_rwkv_state.state import Buffer, RWKVState

STAGED_TTL_SECONDS = 15 * 60.0
STAGED_BUDGET_BYTES = 256 << 20
_EXPIRED_MAX = 4096  # references whose end is remembered, so that an error can say so
STAGED = "staged"
_LOCK = "lock"
_FOLDER = re.compile(r"\.?[0-9a-f]{16}")
_OLD_SECONDS = 86_400.0  # where there are no locks to tell the dead by
_LEFT_BYTES, _LEFT_SHARE = 1 << 30, 20  # left free of a disk: 1 GB, of a small one a twentieth


@dataclass(frozen=True)
class Staged:
    """A staged state.

    Attributes:
        ref: Its reference.
        parent: The state that it was read from.
        tokens: The ids read since the parent, for whoever keeps them.
        block: Digest of the system block that its conversation began with.
        model: The model that it is of.
        n_tokens: Tokens that it stands for.
        nbytes: Bytes of its tensors.
        since: When it was staged, in seconds of the store.
        uses: How many times it was staged and not yet stored.
        memory: The state itself, on the CPU; ``None`` once it is in a file.
        path: That file.
        path_nbytes: Its size.
        own: Whether the file is this process's, to delete.
    """

    ref: str
    parent: str | None
    tokens: Sequence[int]
    block: str | None
    model: Named
    n_tokens: int
    nbytes: int
    since: float
    uses: int
    memory: RWKVState | None
    path: Path | None = None
    path_nbytes: int = 0
    own: bool = True


class Staging:
    """The staged states of one store in one process. Times are the store's, given at each call.

    Args:
        drop: Deletes a file; called without the lock.
        ttl_seconds: How long a state is held.
    """

    def __init__(
        self,
        drop: Callable[[Path], None] = lambda _: None,
        *,
        ttl_seconds: float = STAGED_TTL_SECONDS,
    ) -> None:
        self._drop_file = drop
        self._ttl = ttl_seconds
        self._lock = ForkLock(self._forked)
        self._states: OrderedDict[str, Staged] = OrderedDict()
        self._moving: set[str] = set()
        self._memory_nbytes = 0
        self._last = -math.inf
        self._dead: list[Path] = []
        self._expired: OrderedDict[str, float] = OrderedDict()
        self._redacted: OrderedDict[str, None] = OrderedDict()

    @property
    def holds_states(self) -> bool:
        """Whether any state is staged whose time is not up; asked without the lock, or a store."""
        return bool(self._states) and time.monotonic() - self._last < self._ttl

    def stage(
        self,
        ref: str,
        state: RWKVState,
        parent: str | None,
        tokens: Sequence[int],
        *,
        now: float,
    ) -> None:
        """Holds a state; the first one staged under a reference stays."""
        with self._lock:
            self._redacted.pop(ref, None)  # it was said anew
            self._forget_old(now)
            self._expired.pop(ref, None)
            self._last = time.monotonic()
            held = self._states.pop(ref, None)
            if held is None or not (held.memory is not None or held.own):  # a file of the parent's
                uses = 0 if held is None else held.uses
                state = state.to("cpu")
                held = Staged(
                    ref=ref,
                    parent=parent,
                    tokens=array("I", tokens),
                    block=state.block,
                    model=model_named_by(state),
                    n_tokens=state.n_tokens,
                    nbytes=state.nbytes,
                    since=now,
                    uses=uses,
                    memory=state,
                )
                self._memory_nbytes += held.nbytes
            self._states[ref] = replace(held, since=now, uses=held.uses + 1)
        self._delete_dead()

    def get(self, ref: str, *, now: float) -> Staged | None:
        """Returns a staged state."""
        with self._lock:
            self._forget_old(now)
            found = self._states.get(ref)
        self._delete_dead()
        return found

    def over(self, budget_bytes: int, coming_bytes: int) -> list[Staged]:
        """Returns states that must leave memory, oldest first; say `moved` of each.

        Args:
            budget_bytes: The most bytes of states in memory.
            coming_bytes: Of one that is about to be staged: it is held whatever its size.
        """
        with self._lock:
            staying = self._memory_nbytes - sum(self._states[ref].nbytes for ref in self._moving)
            chosen: list[Staged] = []
            for held in self._states.values():
                if staying + coming_bytes <= budget_bytes:
                    break
                if held.memory is not None and held.ref not in self._moving:
                    chosen.append(held)
                    staying -= held.nbytes
            self._moving.update(held.ref for held in chosen)
            return chosen

    def moved(self, ref: str, path: Path | None, nbytes: int = 0) -> None:
        """Notes that a state is in a file of so many bytes now; ``None`` leaves it in memory."""
        with self._lock:
            held = self._states.get(ref)
            moving = ref in self._moving
            self._moving.discard(ref)
            if path is not None and held is not None and moving and held.memory is not None:
                self._states[ref] = replace(held, memory=None, path=path, path_nbytes=nbytes)
                self._memory_nbytes -= held.nbytes
            elif path is not None:
                self._dead.append(path)  # it was stored meanwhile, or its time was up
        self._delete_dead()

    def stored(self, ref: str) -> None:
        """Notes that one of those who staged a state has stored it."""
        with self._lock:
            held = self._states.get(ref)
            if held is not None and held.uses > 1:
                self._states[ref] = replace(held, uses=held.uses - 1)
            elif held is not None:
                self._drop(ref)
        self._delete_dead()

    def after(self, refs: Collection[str]) -> set[str]:
        """Returns those of these states that are staged, and what was read on from them."""
        with self._lock:
            found: set[str] = set()
            while True:
                more = {
                    held.ref
                    for held in self._states.values()
                    if held.ref not in found
                    and (held.ref in refs or held.parent in refs or held.parent in found)
                }
                if not more:
                    return found
                found |= more

    def forget(self, refs: Collection[str]) -> None:
        """Drops states, whoever staged them, and that they ever were."""
        with self._lock:
            for ref in refs:
                self._redacted[ref] = None
                if ref in self._states:
                    self._drop(ref)
                self._expired.pop(ref, None)
            while len(self._redacted) > _EXPIRED_MAX:
                self._redacted.popitem(last=False)
        self._delete_dead()

    def is_redacted(self, ref: str) -> bool:
        """Says whether a state was dropped by `forget`, and was not staged again."""
        with self._lock:
            return ref in self._redacted

    def expired_at(self, ref: str, *, now: float) -> float | None:
        """Returns when a staged state's time was up; ``None`` for one that never was staged."""
        with self._lock:
            self._forget_old(now)
            return self._expired.get(ref)

    def clear(self) -> None:
        """Drops everything."""
        with self._lock:
            for ref in list(self._states):
                self._drop(ref)
            self._expired.clear()
        self._delete_dead()

    def size(self, *, now: float) -> tuple[int, int, int]:
        """Returns how many states are staged, their bytes in memory, and those in files."""
        with self._lock:
            self._forget_old(now)
            nbytes = sum(held.nbytes for held in self._states.values())
            found = len(self._states), self._memory_nbytes, nbytes - self._memory_nbytes
        self._delete_dead()
        return found

    def _drop(self, ref: str) -> None:
        held = self._states.pop(ref)
        self._moving.discard(ref)
        if held.memory is not None:
            self._memory_nbytes -= held.nbytes
        if held.path is not None and held.own:
            self._dead.append(held.path)

    def _forget_old(self, now: float) -> None:
        oldest = now - self._ttl
        while self._states and next(iter(self._states.values())).since < oldest:
            ref, held = next(iter(self._states.items()))
            self._drop(ref)
            self._expired[ref] = held.since + self._ttl
        while len(self._expired) > _EXPIRED_MAX:
            self._expired.popitem(last=False)

    def _delete_dead(self) -> None:
        while self._dead:
            try:
                path = self._dead.pop()
            except IndexError:  # another thread took it
                return
            self._drop_file(path)

    def _forked(self) -> None:
        """In a forked child: the files are the parent's to delete."""
        self._dead = []
        self._moving = set()
        for ref, held in self._states.items():
            self._states[ref] = replace(held, own=False)


_all_files: weakref.WeakSet[StagedFiles] = weakref.WeakSet()


class StagedFiles:
    """One process's staged states on disk.

    Args:
        root: The store's directory; ``None`` for a store that writes nothing to its own: then the
            folder lies among the system's temporary files.
    """

    def __init__(self, root: Path | None) -> None:
        self._root = None if root is None else root / STAGED
        self._folder: Path | None = None
        self._held: int | None = None
        self._lock = ForkLock(self._forked)
        _all_files.add(self)

    def write(self, parts: Sequence[Buffer]) -> Path:
        """Writes a state's bytes and returns their file.

        Raises:
            StoreFull: The disk leaves no room.
            StoreError: Nothing can be written there.
        """
        try:
            return self._write(parts)
        except FileNotFoundError:  # somebody removed the folder
            with self._lock:
                self._let_go()
        except OSError as error:
            raise _error(error) from error
        try:
            return self._write(parts)
        except OSError as error:
            raise _error(error) from error

    def _write(self, parts: Sequence[Buffer]) -> Path:
        folder = self._own_folder()
        usage = shutil.disk_usage(folder)
        # What is staged must not take the room that commits need.
        if usage.free - sum(map(len, parts)) < min(_LEFT_BYTES, usage.total // _LEFT_SHARE):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path = folder / f"{secrets.token_hex(16)}{SUFFIX}"
        write_new(path, parts, flush=False)
        return path

    def read(self, path: Path, nbytes: int) -> bytes | None:
        """Returns what a file holds; ``None`` where it is gone.

        Raises:
            StateCorrupt: Something else stands there, or it cannot be read.
        """
        try:
            return read_regular(path, nbytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateCorrupt(f"The staged state {path} cannot be read: {error}.") from error

    def drop(self, path: Path) -> None:
        """Deletes a file, if it is there."""
        with suppress(OSError):
            path.unlink()

    def sweep(self) -> int:
        """Removes what processes left that have died; returns how many folders went."""
        gone = 0
        if self._root is None:
            return gone
        with suppress(OSError):
            if not stat.S_ISDIR(self._root.lstat().st_mode):
                return 0
            for folder in list(self._root.iterdir()):
                if _FOLDER.fullmatch(folder.name) and folder != self._folder:
                    gone += _remove_if_dead(folder)
        return gone

    def close(self) -> None:
        """Removes this process's folder."""
        with self._lock:
            folder = self._let_go()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _let_go(self) -> Path | None:
        folder, held, self._folder, self._held = self._folder, self._held, None, None
        if held is not None:
            os.close(held)
        return folder

    def _own_folder(self) -> Path:
        with self._lock:
            if self._folder is None and self._root is None:
                self._folder = Path(tempfile.mkdtemp(prefix="rwkv-state-staged-"))
            elif self._folder is None and self._root is not None:
                self._folder, self._held = _make_held(self._root)
            assert self._folder is not None  # noqa: S101 # one of the two
            return self._folder

    def _forked(self) -> None:
        """In a forked child: leaves the parent's folder alone, and its lock held."""
        self._folder = self._held = None


def _error(error: OSError) -> StoreError | StoreFull:
    reason = error.strerror or type(error).__name__
    if is_full(error):
        return StoreFull(f"The disk leaves no room for a staged state: {reason}.")
    return StoreError(f"A staged state could not be written: {reason}.")


def _make_held(root: Path) -> tuple[Path, int]:
    """Makes a folder of this process's own, and a lock in it that is held until it ends."""
    name = secrets.token_hex(8)
    made = root / f".{name}"
    make_directories(made)
    if not _files.MOVABLE:  # no sweep takes a young folder there
        made = made.rename(root / name)
    handle = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | NO_LINK, 0o600)
    if not _files.take_lock(handle):
        raise OSError(errno.EAGAIN, f"Somebody holds {made / _LOCK}, which was just made")
    # It takes its name once it is locked, so that no sweep finds it free before.
    return (made.rename(root / name) if _files.MOVABLE else made), handle


def _remove_if_dead(folder: Path) -> bool:
    """Removes a folder whose process has died; says whether it did."""
    if not stat.S_ISDIR(folder.lstat().st_mode):
        return False
    dead = _is_old(folder)
    if not folder.name.startswith("."):  # else it is being made
        dead = (dead or _files.MOVABLE) and _is_free(folder / _LOCK, folder)
    if dead:
        shutil.rmtree(folder, ignore_errors=True)
    return dead


def _is_free(lock: Path, folder: Path) -> bool:
    """Says whether nobody holds a lock; one that is not there yet may be made any moment."""
    try:
        handle = os.open(lock, os.O_RDWR | NO_LINK | NO_WAIT)
    except FileNotFoundError:
        return _is_old(folder)
    try:
        return _files.take_lock(handle)
    except OSError:
        return False
    finally:
        _files.close_locked(handle)


def _is_old(folder: Path) -> bool:
    return time.time() - folder.stat().st_mtime > _OLD_SECONDS


def _close_all() -> None:
    for files in list(_all_files):
        files.close()


atexit.register(_close_all)
