"""Keeps states of prompts and finds them by a prompt's ids: `PrefixStateCache`.

It finds, keeps and forgets; it reads nothing and knows no messages. Whatever goes wrong in it is a
miss: a cache may cost time, and never an answer. Its lock is never held while a disk is asked, or
every request of the process would wait for that disk.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path

from langchain_rwkv_state import _markup as markup
from langchain_rwkv_state import _text as words
from langchain_rwkv_state._fork import in_forked_child
from langchain_rwkv_state._free_memory import free_memory_bytes
from langchain_rwkv_state._registry import of_process
from langchain_rwkv_state.errors import StoreError, StoreFull
from langchain_rwkv_state.prefix_cache.disk import DiskSide, logger
from langchain_rwkv_state.prefix_cache.disk_tier import (
    default_cache_directory,
    require_place_for_cache,
)
from langchain_rwkv_state.prefix_cache.entries import CachedState, Entry, Hit, Namespace
from langchain_rwkv_state.prefix_cache.index import Index
from langchain_rwkv_state.prefix_cache.radix_tree import pack
from langchain_rwkv_state.prefix_cache.redacted import StandsOn
from langchain_rwkv_state.prefix_cache.shared import SharedSide
from langchain_rwkv_state.prefix_cache.stats import (
    CacheStats,
    Explanation,
    cause_elsewhere,
    cause_here,
    sentence,
)
from langchain_rwkv_state.store import StateStore
from langchain_rwkv_state.store.clock import TTL, ttl_seconds
from langchain_rwkv_state.store.redacted_ids import RedactedIds, listeners
from langchain_rwkv_state.store.schema import DATABASE

DIRECTORY_VARIABLE = "RWKV_PREFIX_CACHE_DIR"

_RAM_SHARE = 0.05  # of the memory that is free when the cache is made
_RAM_LEAST, _RAM_MOST = 32 << 20, 1 << 30
_DISK_BYTES = 4 << 30
_TTL_SECONDS = 7 * 86_400.0
_MISSES_KEPT = 256


class PrefixStateCache:
    """Keeps states of prompts that were read, so that what begins alike is not read again.

    One cache may serve any number of models, chains and threads; it never changes an answer.

    Args:
        ram_bytes: The most bytes of states in memory; ``None`` for 5 % of the memory that is free
            now, at least 32 MB and at most 1 GB.
        disk: A directory that any number of processes share, ``True`` for the user's own, ``None``
            for none. It holds the ids of prompts, so it is as private as they are.
        disk_bytes: The most bytes of states on disk.
        shared: A store in Redis, or its URL: what is pinned anywhere is pinned for all that share
            it, on every machine. Its states stay in the store until `unpin`.
        device_bytes: The most bytes of states that stay on an accelerator; others are moved to
            memory when they are kept.
        ttl: How long an unused state is kept (seconds or a `timedelta`); pinned ones stay.
        clock: Gives Unix time.

    Raises:
        ValueError: A number is out of range, or the shared store is of a kind that shares no pins.
        StoreError: The directory holds a session store, or other things than a cache.

    Example:
        >>> from langchain_rwkv_state import ChatRWKV, PrefixStateCache
        >>> cache = PrefixStateCache(ram_bytes=512 << 20, disk="prefixes")  # doctest: +SKIP
        >>> chat = ChatRWKV(model="demo", prefix_cache=cache)  # doctest: +SKIP
        >>> chat.invoke([system, question])  # reads all of it  # doctest: +SKIP
        >>> chat.invoke([system, another])  # reads the question  # doctest: +SKIP
        >>> cache.stats().tokens_saved  # doctest: +SKIP
    """

    def __init__(
        self,
        ram_bytes: int | None = None,
        *,
        disk: str | os.PathLike[str] | bool | None = None,
        disk_bytes: int = _DISK_BYTES,
        device_bytes: int = 0,
        shared: StateStore | str | None = None,
        ttl: TTL = None,
        clock: Callable[[], float] = time.time,
        _only_reads: bool = False,
    ) -> None:
        sizes = {"disk_bytes": disk_bytes, "device_bytes": device_bytes, "ram_bytes": ram_bytes}
        for name, value in sizes.items():
            if value is None and name == "ram_bytes":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} is a number of bytes, 0 or more, got {value!r}.")
        self._ttl = ttl_seconds(ttl, _TTL_SECONDS)
        self._ram_bytes = default_ram_bytes() if ram_bytes is None else ram_bytes
        self._device_bytes = device_bytes
        self._disk_bytes = disk_bytes
        if disk is True:
            self._directory: Path | None = default_cache_directory()
        else:
            self._directory = Path(disk).expanduser().absolute() if disk else None
            if self._directory is not None:
                require_place_for_cache(self._directory)
        self._only_reads = _only_reads
        self._clock = clock
        self._disk = DiskSide(self._directory, disk_bytes, self._ttl, clock, only_reads=_only_reads)
        self._shared = SharedSide(shared)
        self._begin_anew()
        _caches.add(self)

    @classmethod
    def reading(cls, directory: str | os.PathLike[str]) -> PrefixStateCache:
        """Returns a cache that finds what is pinned in a directory, and writes nothing there.

        A pinned state is read when a prompt first begins with it; all else is in memory alone.

        Args:
            directory: A cache's directory, as ``rwkv-state warm`` fills it.

        Raises:
            StoreError: It holds a session store, or other things than a cache.

        Example:
            >>> cache = PrefixStateCache.reading("prefixes")  # doctest: +SKIP
            >>> chat = ChatRWKV(model="demo", prefix_cache=cache)  # doctest: +SKIP
        """
        return cls(disk=directory, _only_reads=True)

    def _begin_anew(self) -> None:
        self._lock = threading.RLock()
        self._index = Index(self._device_bytes, self._ram_bytes, self._ttl, self._clock)
        self._disk.begin(self._index, self._lock)
        self._shared.begin(self._index, self._lock, self._unpin)
        self._count = Counter[str]()
        self._misses = Counter[str]()
        self._cold: deque[tuple[Namespace, bytes]] = deque(maxlen=_MISSES_KEPT)

    @property
    def directory(self) -> Path | None:
        """The disk tier's directory, ``None`` for none."""
        return self._directory

    def __repr__(self) -> str:
        if self._only_reads:
            return f"PrefixStateCache.reading({str(self._directory)!r})"
        shared = "" if self._shared.store is None else f", shared={self._shared.store!r}"
        disk = str(self._directory or "") or None
        return f"PrefixStateCache({self._ram_bytes}, disk={disk!r}{shared})"

    def _repr_html_(self) -> str:
        try:
            found = self.stats()
        except Exception as error:  # noqa: BLE001 # a notebook shows it in the value's place
            return markup.sentence(f"{self!r}: {error}")
        known = {
            "prompts looked up": found.lookups,
            "of them found": found.hits,
            "tokens not read again": f"{found.tokens_saved} of {found.tokens_asked}",
            "states held": found.entries,
            "pinned": ", ".join(found.pinned) or "none",
            **{f"in {tier}": words.size(nbytes) for tier, nbytes in found.nbytes.items()},
        }
        return markup.facts(repr(self), known)

    # -- finding -----------------------------------------------------------------------------

    def lookup(
        self,
        namespace: Namespace,
        ids: Sequence[int],
        *,
        limit: int | None = None,
        answer: bool = True,
        count: bool = True,
    ) -> Hit | None:
        """Returns the deepest cached state on a prompt's path.

        Args:
            namespace: The prompt's tree.
            ids: The prompt.
            limit: No state behind so many ids is of use.
            answer: Whether a state at the very end needs the logits of the next token.
            count: Whether the statistics take note.
        """
        key, size = pack(ids), len(ids)
        self._disk.take_in()
        self._shared.look_soon()
        while True:
            with self._lock:
                path = self._index.tree.find(namespace, key)
                most = size if limit is None else limit
                entry = self._index.deepest(path, most, size, answer=answer)
                if entry is None:
                    if count:
                        cause = cause_here(path, 0)
                        self._count.update(lookups=1, asked=size)
                        self._misses[cause] += 1
                        if cause == "cold":
                            self._cold.append((namespace, key))
                    return None
                found = self._index.held(entry)
                row = entry.row
            if found is None:
                loaded = self._disk.load(entry, row)
                found = None if loaded is None else (loaded, "disk")
            if found is not None:
                cached, tier = found
                if answer and entry.node.depth == size and cached.logits is None:
                    continue  # it came from the disk without them
                if count:
                    with self._lock:
                        self._index.touch(entry)
                        self._disk.note_used(entry)
                        self._count.update(lookups=1, hits=1, asked=size, saved=entry.node.depth)
                return Hit(cached, entry.node.depth, tier)

    def depth(
        self, namespace: Namespace, ids: Sequence[int], *, limit: int, answer: bool = True
    ) -> int:
        """Returns for how many ids of a prompt `lookup` has a state; loads and counts nothing."""
        with self._lock:
            path = self._index.tree.find(namespace, pack(ids))
            entry = self._index.deepest(path, limit, len(ids), answer=answer)
            return 0 if entry is None else entry.node.depth

    def note(self, namespace: Namespace, ids: Sequence[int]) -> int | None:
        """Notes that a prompt is read; returns where it parts from those that were."""
        with self._lock:
            return self._index.tree.note(namespace, pack(ids))

    def holds(
        self, namespace: Namespace, ids: Sequence[int], at: int, *, with_logits: bool = False
    ) -> bool:
        """Says whether the state after so many ids of a prompt is kept."""
        with self._lock:
            entry = self._index.at(namespace, pack(ids[:at]))
            return entry is not None and (entry.has_logits or not with_logits)

    def fits(self, nbytes: int) -> bool:
        """Says whether a state of that size could be kept at all."""
        with self._lock:
            return self._index.fits(nbytes)

    def explain(self, namespace: Namespace, ids: Sequence[int]) -> Explanation:
        """Says how much of a prompt is kept, and why not more; changes nothing.

        Example:
            >>> print(cache.explain(namespace, ids).text)  # doctest: +SKIP
            212 of 240 tokens are kept; the prompt differs from what was read from token 212 on.
        """
        self._disk.take_in()
        key, size = pack(ids), len(ids)
        with self._lock:
            path = self._index.tree.find(namespace, key)
            entry = self._index.deepest(path, size, size, answer=False)
            reused = 0 if entry is None else entry.node.depth
            cause = None if reused == size else cause_here(path, reused)
            if cause == "cold" or (cause == "different" and path.known <= reused):
                elsewhere = cause_elsewhere(self._index.tree, namespace, key, beyond=reused)
                cause = elsewhere or cause
        return Explanation(
            size, reused, path.known, cause, sentence(size, reused, path.known, cause)
        )

    # -- keeping -----------------------------------------------------------------------------

    def insert(
        self,
        namespace: Namespace,
        ids: Sequence[int],
        cached: CachedState,
        *,
        private: bool = False,
    ) -> bool:
        """Keeps the state after a prompt; says whether it is kept now.

        Args:
            namespace: The prompt's tree.
            ids: The prompt.
            cached: Its state.
            private: Whether it must stay in memory.
        """
        with self._lock:
            entry = self._index.put(namespace, pack(ids), cached, private=private)
            if entry is None:
                return False
            if not private:
                self._disk.note_new(entry)
            return True

    def pin(self, namespace: Namespace, ids: Sequence[int], cached: CachedState, name: str) -> None:
        """Keeps a state under a name until `unpin`: it is not evicted and does not expire.

        With a disk tier it survives restarts; with a shared store all begin from it that share it.

        Raises:
            StoreFull: It does not fit beside what is pinned already.
            StoreError: The shared store cannot be used; it is pinned in this process alone.
            ValueError: The name is empty.
        """
        if not name:
            raise ValueError("A pinned prefix needs a name, for `unpin` and for people.")
        key = pack(ids)
        with self._lock:
            old = self._index.pinned(name, namespace)
            entry = self._index.put(namespace, key, cached, pin=name)
            if entry is None:
                raise StoreFull(
                    f"A state of {cached.nbytes} bytes does not fit into the prefix cache's budget "
                    f"of {self._ram_bytes} bytes beside what is pinned: unpin something, or give "
                    "it a larger ram_bytes."
                )
        for other in old:
            if other is not entry:
                self._unpin(other)
        if not self._disk.pin(entry, key, cached):
            raise StoreFull(
                f"A state of {cached.nbytes} bytes does not fit into the prefix cache's "
                f"{self._disk_bytes} bytes on disk: unpin something, or give it a larger "
                "disk_bytes."
            )
        self._shared.pin(namespace, ids, cached.state, name)

    def unpin(self, name: str) -> bool:
        """Lets a pinned prefix go the way of others; says whether there was one.

        Raises:
            StoreError: The shared store cannot be used; it is pinned there still.
        """
        elsewhere = self._shared.unpin(name)
        self._disk.take_in()
        with self._lock:
            found = self._index.pinned(name, None)
        for entry in found:
            self._unpin(entry)
        return bool(found or elsewhere)

    def warm(self, fingerprint: str) -> int:
        """Loads a model's pinned states into memory, from the disk and from the shared store.

        Returns:
            How many came from the disk.

        Where the cache only reads, each waits on disk for the first prompt that begins with it.
        """
        self._shared.warm(fingerprint)
        if self._only_reads:
            return 0
        self._disk.take_in()
        with self._lock:
            waiting = [
                entry
                for entry in self._index.entries()
                if entry.pin
                and entry.namespace.fingerprint == fingerprint
                and self._index.held(entry) is None
            ]
        return sum(self._disk.load(entry, entry.row) is not None for entry in waiting)

    def clear(self) -> None:
        """Forgets everything, pinned entries too, and those on disk unless it only reads them.

        What is pinned in a shared store is others', too, and comes back: `unpin` lets it go.
        """
        self._disk.forget_writes()
        with self._lock:
            self._index.clear()
        self._disk.clear()
        self._shared.forget_all()

    def forget(self, redacted: RedactedIds) -> int:
        """Drops what stands on turns that were taken out of a session; returns how much that was.

        On disk it is written over there, too, and pins of a shared store that stand on them go.
        What other processes hold in memory they keep.

        Args:
            redacted: What was taken out, as a store tells.

        Raises:
            StoreError, StoreFull: The directory or the shared store cannot be changed, and holds
                what it held.
        """
        stands = StandsOn(redacted)
        self.flush()
        self._disk.take_in()
        with self._lock:
            gone = [
                entry
                for entry in self._index.entries()
                if stands(entry.namespace, entry.node.key(), pinned=entry.pin is not None)
            ]
            for entry in gone:
                self._index.drop(entry, "evicted")
        on_disk = self._disk.forget(stands)
        return sum(entry.row is None for entry in gone) + on_disk + self._shared.forget(stands)

    def flush(self, seconds: float = 30.0) -> bool:
        """Waits until what is to be written to disk is there; says whether it is."""
        return self._disk.flush(seconds)

    def close(self) -> None:
        """Writes what is to be written, and lets go of memory and disk, and of a named store."""
        self.flush()
        self._disk.close()
        self._shared.close()

    # -- what it did -------------------------------------------------------------------------

    def stats(self, *, causes: bool = True) -> CacheStats:
        """Returns what the cache did, and what it holds.

        Args:
            causes: Whether to look for what was missed among all tenants and models, which takes
                longer the more there are, while requests wait; ``False`` calls it all ``cold``.
        """
        disk_nbytes = 0
        with self._disk.use() as disk:
            if disk is not None:
                disk_nbytes = disk.nbytes
                with self._lock:
                    self._index.evictions["disk"] = disk.evictions
        with self._lock:
            index, count, misses = self._index, self._count, Counter(self._misses)
            for namespace, key in self._cold if causes else ():
                cause = cause_elsewhere(index.tree, namespace, key)
                if cause is not None:
                    misses["cold"] -= 1
                    misses[cause] += 1
            entries = list(index.entries())
            return CacheStats(
                lookups=count["lookups"],
                hits=count["hits"],
                misses={cause: number for cause, number in misses.items() if number},
                tokens_asked=count["asked"],
                tokens_saved=count["saved"],
                shared=count["shared"],
                entries=len(entries),
                pinned=tuple(sorted({entry.pin for entry in entries if entry.pin})),
                nbytes={
                    "device": index.device.nbytes,
                    "ram": index.ram.nbytes,
                    "disk": disk_nbytes,
                },
                budgets={
                    "device": index.device.budget,
                    "ram": index.ram.budget,
                    "disk": self._disk_bytes if self._directory else 0,
                },
                evictions={tier: index.evictions[tier] for tier in ("device", "ram", "disk")},
                expired=index.expired,
                corrupt=self._disk.corrupt,
                errors=self._disk.errors + self._shared.errors,
            )

    def note_shared(self) -> None:
        """Notes that a prompt waited for another one instead of reading the same."""
        with self._lock:
            self._count["shared"] += 1

    def _unpin(self, entry: Entry) -> None:
        with self._lock:
            self._index.unpin(entry)
        self._disk.unpin(entry)


def default_ram_bytes() -> int:
    """Returns 5 % of the memory that is free now, at least 32 MB and at most 1 GB."""
    return min(max(int(free_memory_bytes() * _RAM_SHARE), _RAM_LEAST), _RAM_MOST)


def default_cache() -> PrefixStateCache:
    """Returns the process's own cache.

    It lives in memory; with ``$RWKV_PREFIX_CACHE_DIR`` set, that directory is its disk tier.
    Without it, what ``rwkv-state warm`` pinned in the user's own directory is found, and
    nothing is kept there: nobody asked this process to. Set and empty, the variable switches that
    off too.
    """
    return of_process("prefix cache", _usual)


def _usual() -> PrefixStateCache:
    named = os.environ.get(DIRECTORY_VARIABLE)
    warmed = default_cache_directory()
    # Not Path.exists: of a directory that may not be looked into it raises, and no answer shall
    # fail for what was never asked for.
    if named is None and os.path.exists(warmed / DATABASE):  # noqa: PTH110
        return _reading_or_none(warmed)
    return PrefixStateCache(disk=named or None)


def _reading_or_none(directory: Path) -> PrefixStateCache:
    """Returns a cache that reads a directory, in memory alone where there is something else."""
    try:
        return PrefixStateCache.reading(directory)
    except StoreError as error:
        logger.warning("What was warmed is not used: %s", error)
        return PrefixStateCache()


def _forget(redacted: RedactedIds) -> int:
    """Drops what the caches of this process keep of turns that were taken out of a session.

    Raises:
        StoreError, StoreFull: One of them could not; all others have.
    """
    dropped, failed = 0, None
    for cache in list(_caches):
        try:
            dropped += cache.forget(redacted)
        except (StoreError, StoreFull) as error:
            failed = error
    if failed is not None:
        raise failed
    return dropped


listeners.append(_forget)

_caches: weakref.WeakSet[PrefixStateCache] = weakref.WeakSet()


def _after_fork() -> None:
    for cache in list(_caches):
        cache._begin_anew()  # locks and the writer stayed with the parent


in_forked_child(_after_fork)
