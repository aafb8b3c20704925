"""`PrefixStateCache`: states of what was read before, in tiers, found by the ids of a prompt.

It finds, keeps and forgets; it reads nothing and knows no messages. Whatever goes wrong in it is a
miss: a cache may cost time, and never an answer. The easy mistake is to hold its lock while a disk
is asked: every request of the process would wait for that disk.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from langchain_rwkv_state import _markup as markup
from langchain_rwkv_state import _text as words
from langchain_rwkv_state.errors import (
    RWKVStateError,
    StateCorrupt,
    StateMismatch,
    StoreError,
    StoreFull,
)
from langchain_rwkv_state.prefix_cache.disk import (
    DiskTier,
    Row,
    default_cache_directory,
    require_place_for_cache,
)
from langchain_rwkv_state.prefix_cache.inflight import InFlight
from langchain_rwkv_state.prefix_cache.policy import worth
from langchain_rwkv_state.prefix_cache.records import (
    CacheStats,
    Cause,
    Explanation,
    Hit,
    Kept,
    Root,
)
from langchain_rwkv_state.prefix_cache.tiers import Tier
from langchain_rwkv_state.prefix_cache.tree import Node, RadixTree, pack
from langchain_rwkv_state.prefix_cache.tree import Path as TreePath
from langchain_rwkv_state.store.clock import TTL, ttl_seconds
from langchain_rwkv_state.store.schema import DATABASE

logger = logging.getLogger("langchain_rwkv_state.prefix_cache")

DIRECTORY_VARIABLE = "RWKV_PREFIX_CACHE_DIR"
_RAM_SHARE = 0.05  # of the memory that is free when the cache is made
_RAM_LEAST, _RAM_MOST = 32 << 20, 1 << 30
_DISK_BYTES = 4 << 30
_TTL_SECONDS = 7 * 86_400.0
_DISK_LEAST_SAVED = 32  # ids; a file is read as fast as a small model reads so many
_RETRY_SECONDS = 30.0  # after the disk failed
_MISSES_KEPT = 256
_WRITES_WAITING = 256


@dataclass(eq=False)
class _Entry:
    """What hangs at a node of the tree."""

    root: Root
    node: Node[_Entry]
    nbytes: int
    has_logits: bool
    expires: float
    private: bool = False
    uses: int = 0
    pin: str | None = None
    row: Row | None = None


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
        self._only_reads = False
        self._clock = clock
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
        cache = cls(disk=directory)
        cache._only_reads = True
        return cache

    def _begin_anew(self) -> None:
        self._lock = threading.RLock()
        self._disk_lock = threading.Lock()
        self._tree = RadixTree[_Entry]()
        self._device = Tier[_Entry, Kept](self._device_bytes)
        self._ram = Tier[_Entry, Kept](self._ram_bytes)
        self._disk: DiskTier | None = None
        self._disk_failed_at = -math.inf
        self._in_flight = InFlight()
        self._count = Counter[str]()
        self._evictions = Counter[str]()
        self._misses = Counter[str]()
        self._cold: deque[tuple[Root, bytes]] = deque(maxlen=_MISSES_KEPT)
        self._writes: deque[_Entry] = deque()
        self._writer: threading.Thread | None = None
        self._wake = threading.Condition(self._lock)
        self._writing = False
        self._closed = False

    @property
    def directory(self) -> Path | None:
        """The disk tier's directory, ``None`` for none."""
        return self._directory

    @property
    def in_flight(self) -> InFlight:
        """Who reads what at this moment."""
        return self._in_flight

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
        root: Root,
        ids: Sequence[int],
        *,
        limit: int | None = None,
        answer: bool = True,
        count: bool = True,
    ) -> Hit | None:
        """Returns the deepest kept state on a prompt's path.

        Args:
            root: The prompt's tree.
            ids: The prompt.
            limit: No state behind so many ids is of use.
            answer: Whether a state at the very end needs the logits of the next token.
            count: Whether the statistics take note.
        """
        key, size = pack(ids), len(ids)
        self._hear_news()
        while True:
            with self._lock:
                path = self._tree.find(root, key)
                entry = self._choose(path, size if limit is None else limit, size, answer)
                if entry is None:
                    if count:
                        self._note_miss(root, key, path, size)
                    return None
                found = self._held(entry)
                row = entry.row
            if found is None:
                found = self._from_disk(entry, row)
            if found is not None:
                kept, tier = found
                if answer and entry.node.depth == size and kept.logits is None:
                    continue  # it came from the disk without them
                if count:
                    with self._lock:
                        self._use(entry)
                        self._count.update(lookups=1, hits=1, asked=size, saved=entry.node.depth)
                return Hit(kept, entry.node.depth, tier)

    def note(self, root: Root, ids: Sequence[int]) -> int | None:
        """Notes that a prompt is read; returns where it parts from those that were."""
        with self._lock:
            return self._tree.note(root, pack(ids))

    def holds(self, root: Root, ids: Sequence[int], at: int, *, with_logits: bool = False) -> bool:
        """Says whether the state after so many ids of a prompt is kept."""
        with self._lock:
            entry = self._at(root, pack(ids[:at]))
            return entry is not None and (entry.has_logits or not with_logits)

    def fits(self, nbytes: int) -> bool:
        """Says whether a state of that size could be kept at all."""
        with self._lock:
            return self._ram.fits(nbytes) or self._device.fits(nbytes)

    def explain(self, root: Root, ids: Sequence[int]) -> Explanation:
        """Says how much of a prompt is kept, and why not more; changes nothing.

        Example:
            >>> print(cache.explain(root, ids).text)  # doctest: +SKIP
            212 of 240 tokens are kept; the prompt differs from what was read from token 212 on.
        """
        self._hear_news()
        key, size = pack(ids), len(ids)
        with self._lock:
            path = self._tree.find(root, key)
            entry = self._choose(path, size, size, answer=False)
            reused = 0 if entry is None else entry.node.depth
            cause = None if reused == size else self._cause(root, key, path, reused)
        return Explanation(size, reused, path.known, cause, _sentence(size, reused, path, cause))

    # -- keeping -----------------------------------------------------------------------------

    def insert(self, root: Root, ids: Sequence[int], kept: Kept, *, private: bool = False) -> bool:
        """Keeps the state after a prompt; says whether it is kept now.

        Args:
            root: The prompt's tree.
            ids: The prompt.
            kept: Its state.
            private: Whether it must stay in memory.
        """
        with self._lock:
            entry = self._insert(root, pack(ids), kept, private=private)
            if entry is None:
                return False
            if not private and self._keeps_on_disk and entry.row is None:
                below = next((n for n in entry.node.above() if n.value and n.value.row), None)
                if entry.node.depth - (below.depth if below else 0) >= _DISK_LEAST_SAVED:
                    self._write_later(entry)
            return True

    def pin(self, root: Root, ids: Sequence[int], kept: Kept, name: str) -> None:
        """Keeps a state under a name until `unpin`: it is not evicted and does not expire.

        With a disk tier it survives restarts.

        Raises:
            StoreFull: It does not fit beside what is pinned already.
            ValueError: The name is empty.
        """
        if not name:
            raise ValueError("A pinned prefix needs a name, for `unpin` and for people.")
        old = self._pinned(name, root)
        key = pack(ids)
        with self._lock:
            entry = self._insert(root, key, kept, pin=name)
            if entry is None:
                raise StoreFull(
                    f"A state of {kept.nbytes} bytes does not fit into the prefix cache's budget "
                    f"of {self._ram_bytes} bytes beside what is pinned: unpin something, or give "
                    "it a larger ram_bytes."
                )
        for other in old:
            if other is not entry:
                self._unpin(other)
        refused = False
        with self._disk_or_none() as disk:
            if disk is not None and self._keeps_on_disk:
                row = disk.save(root, key, kept, saved=len(ids), ttl=self._ttl, pin=name)
                refused = row is None
                with self._lock:
                    entry.row = row
        if refused:
            raise StoreFull(
                f"A state of {kept.nbytes} bytes does not fit into the prefix cache's "
                f"{self._disk_bytes} bytes on disk: unpin something, or give it a larger "
                "disk_bytes."
            )

    def unpin(self, name: str) -> bool:
        """Lets a pinned prefix go the way of others; says whether there was one."""
        self._hear_news()
        found = self._pinned(name, None)
        for entry in found:
            self._unpin(entry)
        return bool(found)

    def warm(self, fingerprint: str) -> int:
        """Loads a model's pinned states from disk into memory; returns how many there are.

        Where the cache only reads, each waits on disk for the first prompt that begins with it.
        """
        if self._only_reads:
            return 0
        self._hear_news()
        with self._lock:
            waiting = [
                entry
                for entry in self._entries()
                if entry.pin and entry.root.fingerprint == fingerprint and self._held(entry) is None
            ]
        return sum(self._from_disk(entry, entry.row) is not None for entry in waiting)

    def clear(self) -> None:
        """Forgets everything, pinned entries too, and those on disk unless it only reads them."""
        with self._lock:
            self._writes.clear()
            for entry in list(self._entries()):
                self._ram.remove(entry)
                self._device.remove(entry)
                self._tree.forget(entry.node)
            self._tree = RadixTree[_Entry]()
        with self._disk_or_none() as disk:
            if disk is not None and self._keeps_on_disk:
                disk.clear()

    def flush(self, seconds: float = 30.0) -> bool:
        """Waits until what is to be written to disk is there; says whether it is."""
        until = time.monotonic() + seconds
        with self._wake:
            while self._writes or self._writing:
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._wake.wait(left)
        return True

    def close(self) -> None:
        """Writes what is to be written, and lets go of memory and disk."""
        self.flush()
        with self._wake:
            self._closed = True
            self._wake.notify_all()
            writer = self._writer
        if writer is not None:
            writer.join(timeout=10.0)
        with self._disk_lock:
            disk, self._disk = self._disk, None
            if disk is not None:
                disk.close()

    # -- what it did -------------------------------------------------------------------------

    def stats(self, *, causes: bool = True) -> CacheStats:
        """Returns what the cache did, and what it holds.

        Args:
            causes: Whether to look for what was missed among all tenants and models, which takes
                longer the more there are, while requests wait; ``False`` calls it all ``cold``.
        """
        disk_nbytes = 0
        with self._disk_or_none() as disk:
            if disk is not None:
                disk_nbytes = disk.nbytes
                with self._lock:
                    self._evictions["disk"] = disk.evictions
        with self._lock:
            misses = Counter(self._misses)
            for root, key in self._cold if causes else ():
                cause = self._elsewhere(root, key)
                if cause is not None:
                    misses["cold"] -= 1
                    misses[cause] += 1
            count = self._count
            return CacheStats(
                lookups=count["lookups"],
                hits=count["hits"],
                misses={cause: number for cause, number in misses.items() if number},
                tokens_asked=count["asked"],
                tokens_saved=count["saved"],
                shared=count["shared"],
                entries=sum(1 for _ in self._entries()),
                pinned=tuple(sorted({e.pin for e in self._entries() if e.pin})),
                nbytes={
                    "device": self._device.nbytes,
                    "ram": self._ram.nbytes,
                    "disk": disk_nbytes,
                },
                budgets={
                    "device": self._device.budget,
                    "ram": self._ram.budget,
                    "disk": self._disk_bytes if self._directory else 0,
                },
                evictions={tier: self._evictions[tier] for tier in ("device", "ram", "disk")},
                expired=count["expired"],
                corrupt=count["corrupt"],
                errors=count["errors"],
            )

    def note_shared(self) -> None:
        """Notes that a prompt waited for another one instead of reading the same."""
        with self._lock:
            self._count["shared"] += 1

    # -- inside, under the lock --------------------------------------------------------------

    def _entries(self) -> Iterator[_Entry]:
        return (node.value for node in self._tree.nodes() if node.value is not None)

    def _choose(self, path: TreePath[_Entry], limit: int, size: int, answer: bool) -> _Entry | None:
        now = self._clock()
        for node in path.kept():
            entry = node.value
            assert entry is not None  # noqa: S101
            if entry.expires <= now:
                self._count["expired"] += 1
                self._drop(entry, "expired")
            elif node.depth <= limit and (node.depth < size or entry.has_logits or not answer):
                return entry
        return None

    def _at(self, root: Root, key: bytes) -> _Entry | None:
        """Returns the entry at the very end of a path."""
        for node in self._tree.find(root, key).kept()[:1]:
            if node.depth * 4 == len(key):
                return node.value
        return None

    def _held(self, entry: _Entry) -> tuple[Kept, str] | None:
        for tier, name in ((self._device, "device"), (self._ram, "ram")):
            kept = tier.get(entry)
            if kept is not None:
                return kept, name
        return None

    def _worth(self, entry: _Entry) -> float:
        above = next((n.depth for n in entry.node.above() if n.value is not None), 0)
        return worth(entry.node.depth - above, entry.uses + 1, entry.nbytes)

    def _use(self, entry: _Entry) -> None:
        """Renews the one state that was consumed, and not those above it."""
        entry.uses += 1
        now = self._clock()
        if entry.pin is None:
            entry.expires = now + self._ttl
        value = self._worth(entry)
        self._ram.touch(entry, value)
        self._device.touch(entry, value)
        if not self._keeps_on_disk or entry.private:
            return
        unwritten = entry.row is None and entry.uses >= 1
        stale = entry.row is not None and now - entry.row.used > 0.1 * min(self._ttl, 86_400.0)
        if unwritten or stale:
            self._write_later(entry)

    def _insert(
        self,
        root: Root,
        key: bytes,
        kept: Kept,
        *,
        private: bool = False,
        pin: str | None = None,
    ) -> _Entry | None:
        expires = math.inf if pin else self._clock() + self._ttl
        entry = self._at(root, key)
        if (
            entry is not None
            and self._held(entry) is not None
            and (entry.has_logits or kept.logits is None)
        ):
            entry.expires = max(entry.expires, expires)
            if pin:
                entry.pin = pin
                self._ram.pin(entry)
                self._device.pin(entry)
            return entry
        if entry is None:
            nbytes, has_logits = kept.nbytes, kept.logits is not None
            if not self.fits(nbytes):
                return None
            # It is hung up before it is held, since its worth is told by its place.
            entry = _Entry(root, _NOWHERE, nbytes, has_logits, expires, private, pin=pin)
            entry.node = self._tree.put(root, key, entry)
        else:
            entry.nbytes, entry.has_logits = kept.nbytes, kept.logits is not None
            entry.expires, entry.pin = max(entry.expires, expires), pin or entry.pin
        if not self._hold(entry, kept):
            if entry.row is None:
                self._drop(entry, "evicted")
            return None
        return entry

    def _hold(self, entry: _Entry, kept: Kept) -> bool:
        """Puts a state into the tier where it belongs; what has to go for it goes a tier down."""
        value, pinned = self._worth(entry), entry.pin is not None
        if kept.state.device.type != "cpu":
            evicted = self._device.put(entry, kept, kept.nbytes, worth=value, pinned=pinned)
            if evicted is not None:
                self._evictions["device"] += len(evicted)
                for victim, old in evicted:
                    self._to_ram(victim, old)
                return True
        return self._to_ram(entry, kept)

    def _to_ram(self, entry: _Entry, kept: Kept) -> bool:
        moved = replace(kept, state=kept.state.to("cpu"))
        evicted = self._ram.put(
            entry,
            moved,
            moved.nbytes,
            worth=self._worth(entry),
            pinned=entry.pin is not None,
        )
        if evicted is None:
            if entry.row is None:
                self._drop(entry, "evicted")
            return False
        for victim, _ in evicted:
            self._evictions["ram"] += 1
            if victim.row is None:
                self._drop(victim, "evicted")
            else:
                victim.has_logits = victim.row.has_logits
        return True

    def _drop(self, entry: _Entry, reason: str) -> None:
        self._ram.remove(entry)
        self._device.remove(entry)
        if entry.node.value is entry:
            self._tree.drop(entry.node, reason)

    def _pinned(self, name: str, root: Root | None) -> list[_Entry]:
        with self._lock:
            return [e for e in self._entries() if e.pin == name and root in (None, e.root)]

    def _unpin(self, entry: _Entry) -> None:
        with self._lock:
            entry.pin = None
            entry.expires = self._clock() + self._ttl
            for tier in (self._ram, self._device):
                tier.unpin(entry, self._worth(entry))
            row, expires = entry.row, entry.expires
        with self._disk_or_none() as disk:
            if disk is not None and row is not None and self._keeps_on_disk:
                changed = disk.update(row, lambda r: replace(r, pin=None, expires=expires))
                with self._lock:
                    entry.row = changed

    def _note_miss(self, root: Root, key: bytes, path: TreePath[_Entry], size: int) -> None:
        cause = self._cause(root, key, path, 0, elsewhere=False)
        self._count.update(lookups=1, asked=size)
        if cause == "cold":
            self._cold.append((root, key))
        self._misses[cause] += 1

    def _cause(
        self,
        root: Root,
        key: bytes,
        path: TreePath[_Entry],
        reused: int,
        *,
        elsewhere: bool = True,
    ) -> Cause:
        """Says why not more of a prompt was found.

        Other tenants' trees are looked at for people alone, and never on the way of a request: how
        long that takes says what they hold.
        """
        for node in reversed(path.nodes):
            if node.depth > reused and node.gone in ("evicted", "expired", "corrupt"):
                found: Cause = node.gone  # type: ignore[assignment]
                return found
        if path.known > reused:
            return "different"
        other = self._elsewhere(root, key, beyond=reused) if elsewhere else None
        return other or ("different" if reused else "cold")

    def _elsewhere(self, root: Root, key: bytes, beyond: int = 0) -> Cause | None:
        """Says under which other root a prompt's beginning is kept, ``None`` for none."""
        for other in self._tree.roots:
            if not isinstance(other, Root) or other == root:
                continue
            kept = self._tree.find(other, key).kept()
            if not kept or kept[0].depth <= beyond:
                continue
            if other.fingerprint != root.fingerprint:
                return "other model"
            return "other salt" if other.base == root.base else "other base"
        return None

    # -- the disk ----------------------------------------------------------------------------

    @property
    def _keeps_on_disk(self) -> bool:
        return self._directory is not None and not self._only_reads

    @contextmanager
    def _disk_or_none(self) -> Iterator[DiskTier | None]:
        """Gives the disk tier where it can be used; an error in the block is told and counted."""
        disk = self._open_disk()
        try:
            yield disk
        except StoreFull as error:
            with self._lock:
                self._count["errors"] += 1
            logger.warning("The prefix cache's disk is full: %s", error)
        except (RWKVStateError, OSError) as error:
            self._disk_failed(error)

    def _open_disk(self) -> DiskTier | None:
        if self._directory is None or self._closed:
            return None
        with self._disk_lock:
            if self._disk is None and time.monotonic() - self._disk_failed_at > _RETRY_SECONDS:
                try:
                    self._disk = DiskTier(
                        self._directory,
                        self._disk_bytes,
                        self._clock,
                        only_reads=self._only_reads,
                    )
                except (RWKVStateError, OSError) as error:
                    self._disk_failed(error)
            return self._disk

    def _disk_failed(self, error: BaseException) -> None:
        with self._lock:
            self._count["errors"] += 1
        self._disk_failed_at = time.monotonic()
        disk, self._disk = self._disk, None
        logger.warning("The prefix cache goes on without its disk for a while: %s", error)
        if disk is not None:
            try:
                disk.close()
            except (RWKVStateError, OSError):
                logger.debug("Closing the disk tier failed too", exc_info=True)

    def _hear_news(self) -> None:
        """Hangs into the tree what other processes wrote to the disk."""
        if self._directory is None:
            return
        with self._disk_or_none() as disk:
            if disk is None:
                return
            rows, bad = disk.news()
            if not rows and not bad:
                return
            now = self._clock()
            with self._lock:
                self._count["corrupt"] += bad
                for row in rows:
                    self._hang(row, now)

    def _hang(self, row: Row, now: float) -> None:
        if row.expires <= now or not row.key or len(row.key) % 4:
            return
        if self._only_reads and row.pin is None:
            return
        entry = self._at(row.root, row.key)
        if entry is None:
            entry = _Entry(row.root, _NOWHERE, row.nbytes, row.has_logits, row.expires)
            entry.node = self._tree.put(row.root, row.key, entry)
        entry.row = row
        entry.uses = max(entry.uses, row.uses)
        if row.pin:
            entry.pin, entry.expires = row.pin, row.expires
            self._ram.pin(entry)
            self._device.pin(entry)

    def _from_disk(self, entry: _Entry, row: Row | None) -> tuple[Kept, str] | None:
        """Loads an entry into memory; what cannot be loaded is taken off the tree."""
        kept = None
        reason = "evicted"
        with self._disk_or_none() as disk:
            if disk is not None and row is not None:
                try:
                    kept = disk.load(row)
                    if kept is None and not disk.is_fresh(row):
                        disk.discard(row)
                except (StateCorrupt, StateMismatch) as error:
                    reason = "corrupt"
                    logger.warning("An entry of the prefix cache is of no use: %s", error)
                    with self._lock:
                        self._count["corrupt"] += 1
                    disk.discard(row)
        with self._lock:
            if kept is None:
                entry.row = None
                if self._held(entry) is None:
                    self._drop(entry, reason)
                return None
            if entry.node.value is entry:
                entry.nbytes, entry.has_logits = kept.nbytes, kept.logits is not None
                self._hold(entry, kept)
        return kept, "disk"

    def _write_later(self, entry: _Entry) -> None:
        if entry in self._writes or len(self._writes) >= _WRITES_WAITING or self._closed:
            return
        self._writes.append(entry)
        if self._writer is None:
            self._writer = threading.Thread(
                target=self._write, name="rwkv-prefix-cache", daemon=True
            )
            self._writer.start()
        self._wake.notify_all()

    def _write(self) -> None:
        """The writer's thread: one entry after another, as long as the cache is open."""
        with self._disk_or_none() as disk:
            if disk is not None:
                disk.sweep()
        while True:
            with self._wake:
                while not self._writes and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                entry = self._writes.popleft()
                self._writing = True
            try:
                self._write_one(entry)
            except Exception:
                logger.warning("An entry of the prefix cache was not written", exc_info=True)
            finally:
                with self._wake:
                    self._writing = False
                    self._wake.notify_all()

    def _write_one(self, entry: _Entry) -> None:
        with self._lock:
            row, held = entry.row, self._held(entry)
            uses, now = entry.uses, self._clock()
            if row is None and (held is None or entry.node.value is not entry):
                return
            key = entry.node.key()
            above = next((n.depth for n in entry.node.above() if n.value is not None), 0)
            saved = entry.node.depth - above
        with self._disk_or_none() as disk:
            if disk is None:
                return
            if row is None:
                assert held is not None  # noqa: S101
                row = disk.save(entry.root, key, held[0], saved=saved, ttl=self._ttl)
            else:
                expires = math.inf if entry.pin else now + self._ttl
                row = disk.update(row, lambda r: replace(r, uses=uses, used=now, expires=expires))
            with self._lock:
                entry.row = row

    def _after_fork(self) -> None:
        """In a forked child: begins anew, since locks and the writer stayed with the parent."""
        disk = self._disk  # it minds forks by itself, and must not be closed here
        self._begin_anew()
        self._disk = disk
        if disk is not None:
            disk.hear_all()


def default_ram_bytes() -> int:
    """Returns 5 % of the memory that is free now, at least 32 MB and at most 1 GB."""
    return min(max(int(free_memory_bytes() * _RAM_SHARE), _RAM_LEAST), _RAM_MOST)


def free_memory_bytes() -> int:
    """Returns how much memory programs can have now; half of all where nobody says."""
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return 4 << 30


def _sentence(size: int, reused: int, path: TreePath[_Entry], cause: Cause | None) -> str:
    begun = f"{reused} of {size} tokens are kept"
    if cause is None:
        return f"{begun}: nothing has to be read."
    return (
        f"{begun}; "
        + {
            "cold": "nothing that begins like it was read yet.",
            "different": f"the prompt differs from what was read from token {path.known} on.",
            "evicted": "more was kept, and had to go for other states: give the cache more bytes.",
            "expired": "more was kept, and its time ran out: give it a longer ttl, or pin it.",
            "corrupt": "more was kept, and was damaged on the disk; it was removed.",
            "other model": "it is kept for another model, tokenizer, template or dtype.",
            "other base": "it is kept behind another state than the one that reading begins from.",
            "other salt": "it is kept under another cache_salt.",
        }[cause]
    )


_NOWHERE: Node[_Entry] = Node(b"", 0, None, None)
_caches: weakref.WeakSet[PrefixStateCache] = weakref.WeakSet()
_default: PrefixStateCache | None = None
_default_lock = threading.Lock()


def _reading_or_none(directory: Path) -> PrefixStateCache:
    """Returns a cache that reads a directory, in memory alone where there is something else."""
    try:
        return PrefixStateCache.reading(directory)
    except StoreError as error:
        logger.warning("What was warmed is not used: %s", error)
        return PrefixStateCache()


def default_cache() -> PrefixStateCache:
    """Returns the process's own cache, made at first use.

    It lives in memory; with ``$RWKV_PREFIX_CACHE_DIR`` set, that directory is its disk tier.
    Without it, what ``rwkv-state warm`` pinned in the user's own directory is found, and
    nothing is kept there: nobody asked this process to. Set and empty, the variable switches that
    off too.
    """
    global _default
    with _default_lock:
        if _default is None:
            named = os.environ.get(DIRECTORY_VARIABLE)
            warmed = default_cache_directory()
            # Not Path.exists: of a directory that may not be looked into it raises, and no answer
            # shall fail for what was never asked for.
            if named is None and os.path.exists(warmed / DATABASE):  # noqa: PTH110
                _default = _reading_or_none(warmed)
            else:
                _default = PrefixStateCache(disk=named or None)
        return _default


def _after_fork() -> None:
    global _default_lock
    _default_lock = threading.Lock()
    for cache in list(_caches):
        cache._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
