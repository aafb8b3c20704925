"""`PrefixStateCache`: states of what was read before, found by the ids of a prompt.

It finds, keeps and forgets; it reads nothing and knows no messages. Whatever goes wrong in it is a
miss: a cache may cost time, and never an answer. The easy mistake is to hold its lock while a disk
is asked: every request of the process would wait for that disk.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from langchain_rwkv_state import _markup as markup
from langchain_rwkv_state import _text as words
from langchain_rwkv_state._free_memory import free_memory_bytes
from langchain_rwkv_state._registry import of_process
from langchain_rwkv_state.errors import StateCorrupt, StateMismatch, StoreError, StoreFull
from langchain_rwkv_state.prefix_cache.disk import BackgroundWriter, GuardedDisk, logger
from langchain_rwkv_state.prefix_cache.disk_tier import (
    Row,
    default_cache_directory,
    require_place_for_cache,
)
from langchain_rwkv_state.prefix_cache.entries import CachedState, Entry, Hit, Namespace
from langchain_rwkv_state.prefix_cache.index import Index
from langchain_rwkv_state.prefix_cache.radix_tree import pack
from langchain_rwkv_state.prefix_cache.stats import (
    CacheStats,
    Explanation,
    cause_elsewhere,
    cause_here,
    sentence,
)
from langchain_rwkv_state.store.clock import TTL, ttl_seconds
from langchain_rwkv_state.store.schema import DATABASE

DIRECTORY_VARIABLE = "RWKV_PREFIX_CACHE_DIR"

_RAM_SHARE = 0.05  # of the memory that is free when the cache is made
_RAM_LEAST, _RAM_MOST = 32 << 20, 1 << 30
_DISK_BYTES = 4 << 30
_TTL_SECONDS = 7 * 86_400.0
_DISK_LEAST_SAVED = 32  # ids; a file is read as fast as a small model reads so many
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
        device_bytes: The most bytes of states that stay on an accelerator; others are moved to
            memory when they are kept.
        ttl: How long an unused state is kept (seconds or a `timedelta`); pinned ones stay.
        clock: Gives Unix time.

    Raises:
        ValueError: A number is out of range.
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
        self._disk = GuardedDisk(self._directory, disk_bytes, clock, only_reads=_only_reads)
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
        self._writer = BackgroundWriter(self._sweep_disk, self._write)
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
        return f"PrefixStateCache({self._ram_bytes}, disk={str(self._directory or '') or None!r})"

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
        """Returns the deepest kept state on a prompt's path.

        Args:
            namespace: The prompt's tree.
            ids: The prompt.
            limit: No state behind so many ids is of use.
            answer: Whether a state at the very end needs the logits of the next token.
            count: Whether the statistics take note.
        """
        key, size = pack(ids), len(ids)
        self._take_in_rows()
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
                found = self._from_disk(entry, row)
            if found is not None:
                cached, tier = found
                if answer and entry.node.depth == size and cached.logits is None:
                    continue  # it came from the disk without them
                if count:
                    with self._lock:
                        self._use(entry)
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
        self._take_in_rows()
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
            if not private and self._disk.is_written and entry.row is None:
                below = next((n for n in entry.node.above() if n.value and n.value.row), None)
                if entry.node.depth - (below.depth if below else 0) >= _DISK_LEAST_SAVED:
                    self._writer.put(entry)
            return True

    def pin(self, namespace: Namespace, ids: Sequence[int], cached: CachedState, name: str) -> None:
        """Keeps a state under a name until `unpin`: it is not evicted and does not expire.

        With a disk tier it survives restarts.

        Raises:
            StoreFull: It does not fit beside what is pinned already.
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
        refused = False
        with self._disk.use() as disk:
            if disk is not None and self._disk.is_written:
                row = disk.save(namespace, key, cached, saved=len(ids), ttl=self._ttl, pin=name)
                refused = row is None
                with self._lock:
                    entry.row = row
        if refused:
            raise StoreFull(
                f"A state of {cached.nbytes} bytes does not fit into the prefix cache's "
                f"{self._disk_bytes} bytes on disk: unpin something, or give it a larger "
                "disk_bytes."
            )

    def unpin(self, name: str) -> bool:
        """Lets a pinned prefix go the way of others; says whether there was one."""
        self._take_in_rows()
        with self._lock:
            found = self._index.pinned(name, None)
        for entry in found:
            self._unpin(entry)
        return bool(found)

    def warm(self, fingerprint: str) -> int:
        """Loads a model's pinned states from disk into memory; returns how many there are.

        Where the cache only reads, each waits on disk for the first prompt that begins with it.
        """
        if self._only_reads:
            return 0
        self._take_in_rows()
        with self._lock:
            waiting = [
                entry
                for entry in self._index.entries()
                if entry.pin
                and entry.namespace.fingerprint == fingerprint
                and self._index.held(entry) is None
            ]
        return sum(self._from_disk(entry, entry.row) is not None for entry in waiting)

    def clear(self) -> None:
        """Forgets everything, pinned entries too, and those on disk unless it only reads them."""
        self._writer.clear()
        with self._lock:
            self._index.clear()
        with self._disk.use() as disk:
            if disk is not None and self._disk.is_written:
                disk.clear()

    def flush(self, seconds: float = 30.0) -> bool:
        """Waits until what is to be written to disk is there; says whether it is."""
        return self._writer.flush(seconds)

    def close(self) -> None:
        """Writes what is to be written, and lets go of memory and disk."""
        self.flush()
        self._writer.close()
        self._disk.close()

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
                corrupt=count["corrupt"],
                errors=self._disk.errors,
            )

    def note_shared(self) -> None:
        """Notes that a prompt waited for another one instead of reading the same."""
        with self._lock:
            self._count["shared"] += 1

    # -- between memory and disk -------------------------------------------------------------

    def _use(self, entry: Entry) -> None:
        """Renews the one state that was consumed, on disk too where that is due."""
        self._index.touch(entry)
        if not self._disk.is_written or entry.private:
            return
        row = entry.row
        if row is None or self._clock() - row.used > 0.1 * min(self._ttl, 86_400.0):
            self._writer.put(entry)

    def _unpin(self, entry: Entry) -> None:
        with self._lock:
            self._index.unpin(entry)
            row, expires = entry.row, entry.expires
        with self._disk.use() as disk:
            if disk is not None and row is not None and self._disk.is_written:
                changed = disk.update(row, lambda r: replace(r, pin=None, expires=expires))
                with self._lock:
                    entry.row = changed

    def _take_in_rows(self) -> None:
        """Takes in what other processes wrote to the disk."""
        if self._directory is None:
            return
        with self._disk.use() as disk:
            if disk is None:
                return
            rows, bad = disk.news()
            if not rows and not bad:
                return
            now = self._clock()
            with self._lock:
                self._count["corrupt"] += bad
                for row in rows:
                    whole = row.key and not len(row.key) % 4
                    if whole and row.expires > now and (row.pin or not self._only_reads):
                        self._index.put_row(row)

    def _from_disk(self, entry: Entry, row: Row | None) -> tuple[CachedState, str] | None:
        """Loads an entry into memory; what cannot be loaded is taken off the tree.

        From the directory it goes in the background: a request waits for no other process's lock.
        """
        cached = None
        reason = "evicted"
        with self._disk.use() as disk:
            if disk is not None and row is not None:
                try:
                    cached = disk.load(row)
                    if cached is None and not disk.is_fresh(row):
                        self._discard_later(entry, row)
                except (StateCorrupt, StateMismatch) as error:
                    reason = "corrupt"
                    logger.warning("An entry of the prefix cache is of no use: %s", error)
                    with self._lock:
                        self._count["corrupt"] += 1
                    self._discard_later(entry, row)
        with self._lock:
            if cached is None:
                entry.row = None
                if self._index.held(entry) is None:
                    self._index.drop(entry, reason)
                return None
            if entry.node.value is entry:
                self._index.hold(entry, cached)
        return cached, "disk"

    def _discard_later(self, entry: Entry, row: Row) -> None:
        if self._disk.is_written:
            entry.useless = row
            self._writer.put(entry)

    def _sweep_disk(self) -> None:
        with self._disk.use() as disk:
            if disk is not None:
                disk.sweep()

    def _write(self, entry: Entry) -> None:
        """Writes an entry, or how it was used, or removes it; on the writer's thread."""
        useless, entry.useless = entry.useless, None
        if useless is not None:
            with self._disk.use() as disk:
                if disk is not None:
                    disk.discard(useless)
            return
        with self._lock:
            row, held = entry.row, self._index.held(entry)
            uses, now = entry.uses, self._clock()
            if row is None and (held is None or entry.node.value is not entry):
                return
            key, saved = entry.node.key(), entry.saves
        with self._disk.use() as disk:
            if disk is None:
                return
            if row is None:
                assert held is not None  # noqa: S101
                row = disk.save(entry.namespace, key, held[0], saved=saved, ttl=self._ttl)
            else:
                expires = math.inf if entry.pin else now + self._ttl
                row = disk.update(row, lambda r: replace(r, uses=uses, used=now, expires=expires))
            with self._lock:
                entry.row = row

    def _after_fork(self) -> None:
        """In a forked child: begins anew, since locks and the writer stayed with the parent."""
        self._begin_anew()
        self._disk.after_fork()


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


_caches: weakref.WeakSet[PrefixStateCache] = weakref.WeakSet()


def _after_fork() -> None:
    for cache in list(_caches):
        cache._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
