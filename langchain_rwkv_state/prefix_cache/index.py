"""Holds what is known in memory: the paths that were read, and the cached states at their nodes.

It knows no disk but by the rows that entries carry, and is not safe for threads by itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from langchain_rwkv_state.prefix_cache.disk_tier import Row
from langchain_rwkv_state.prefix_cache.entries import CachedState, Entry, Namespace
from langchain_rwkv_state.prefix_cache.eviction import Tier
from langchain_rwkv_state.prefix_cache.radix_tree import Node, Path, RadixTree


class Index:
    """Cached states by namespace and path, in two tiers of memory.

    Args:
        device_bytes: The most bytes of states on an accelerator.
        ram_bytes: The most bytes of states in RAM.
        ttl: Seconds that an unused state is kept.
        clock: Gives Unix time.

    Attributes:
        tree: The paths.
        device: States on an accelerator.
        ram: States in RAM.
        evictions: States that had to leave a tier for others, by tier.
        expired: States whose time ran out.
    """

    def __init__(
        self, device_bytes: int, ram_bytes: int, ttl: float, clock: Callable[[], float]
    ) -> None:
        self.tree = RadixTree[Entry]()
        self.device = Tier[Entry, CachedState](device_bytes)
        self.ram = Tier[Entry, CachedState](ram_bytes)
        self.evictions = Counter[str]()
        self.expired = 0
        self._ttl = ttl
        self._clock = clock

    def entries(self) -> Iterator[Entry]:
        """Yields all entries."""
        return (node.value for node in self.tree.nodes() if node.value is not None)

    def pinned(self, name: str, namespace: Namespace | None) -> list[Entry]:
        """Returns what is pinned under a name, in one namespace or in all."""
        return [e for e in self.entries() if e.pin == name and namespace in (None, e.namespace)]

    def at(self, namespace: Namespace, key: bytes) -> Entry | None:
        """Returns the entry at the very end of a path."""
        for node in self.tree.find(namespace, key).with_values()[:1]:
            if node.depth * 4 == len(key):
                return node.value
        return None

    def deepest(self, path: Path[Entry], limit: int, size: int, *, answer: bool) -> Entry | None:
        """Returns the deepest entry on a prompt's path that is of use; drops what has expired.

        Args:
            path: The prompt's.
            limit: No state behind so many ids is of use.
            size: Number of the prompt's ids.
            answer: Whether a state at the very end needs the logits of the next token.
        """
        now = self._clock()
        for node in path.with_values():
            entry = node.value
            assert entry is not None  # noqa: S101
            if entry.expires <= now:
                self.expired += 1
                self.drop(entry, "expired")
            elif node.depth <= limit and (node.depth < size or entry.has_logits or not answer):
                return entry
        return None

    def held(self, entry: Entry) -> tuple[CachedState, str] | None:
        """Returns an entry's state and the tier that it is in, ``None`` where memory has it not."""
        for tier, name in ((self.device, "device"), (self.ram, "ram")):
            cached = tier.get(entry)
            if cached is not None:
                return cached, name
        return None

    def fits(self, nbytes: int) -> bool:
        """Says whether a state of that size could be held at all."""
        return self.ram.fits(nbytes) or self.device.fits(nbytes)

    def put(
        self,
        namespace: Namespace,
        key: bytes,
        cached: CachedState,
        *,
        private: bool = False,
        pin: str | None = None,
    ) -> Entry | None:
        """Holds the state at the end of a path; ``None`` where there is no room for it."""
        expires = math.inf if pin else self._clock() + self._ttl
        entry = self.at(namespace, key)
        has_logits = cached.logits is not None
        if entry is not None and self.held(entry) is not None and entry.has_logits >= has_logits:
            entry.expires = max(entry.expires, expires)
            if pin:
                self.pin(entry, pin, entry.expires)
            return entry
        if entry is None:
            if not self.fits(cached.nbytes):
                return None
            # It is hung up before it is held, since its score is told by its place.
            entry = Entry(namespace, _NOWHERE, cached.nbytes, has_logits, expires, private, pin=pin)
            entry.node = self.tree.put(namespace, key, entry)
        else:
            entry.nbytes, entry.has_logits = cached.nbytes, has_logits
            entry.expires, entry.pin = max(entry.expires, expires), pin or entry.pin
        return entry if self.hold(entry, cached) else None

    def put_row(self, row: Row) -> None:
        """Takes in what the disk says of an entry; its state is loaded when it is asked for."""
        entry = self.at(row.namespace, row.key)
        if entry is None:
            entry = Entry(row.namespace, _NOWHERE, row.nbytes, row.has_logits, row.expires)
            entry.node = self.tree.put(row.namespace, row.key, entry)
        entry.row = row
        entry.uses = max(entry.uses, row.uses)
        if row.pin:
            self.pin(entry, row.pin, row.expires)

    def hold(self, entry: Entry, cached: CachedState) -> bool:
        """Puts a state into the tier where it belongs; what has to go for it goes a tier down.

        Returns:
            Whether there was room.
        """
        entry.nbytes, entry.has_logits = cached.nbytes, cached.logits is not None
        if cached.state.device.type != "cpu":
            evicted = self.device.put(
                entry, cached, cached.nbytes, score=entry.score, pinned=entry.pin is not None
            )
            if evicted is not None:
                self.evictions["device"] += len(evicted)
                for victim, old in evicted:
                    self._to_ram(victim, old)
                return True
        return self._to_ram(entry, cached)

    def touch(self, entry: Entry) -> None:
        """Notes that a state was used: it is renewed, and not those above it."""
        entry.uses += 1
        if entry.pin is None:
            entry.expires = self._clock() + self._ttl
        for tier in (self.ram, self.device):
            tier.touch(entry, entry.score)

    def pin(self, entry: Entry, name: str, expires: float) -> None:
        """Keeps an entry from being evicted."""
        entry.pin, entry.expires = name, expires
        for tier in (self.ram, self.device):
            tier.pin(entry)

    def unpin(self, entry: Entry) -> None:
        """Lets an entry go the way of others."""
        entry.pin, entry.expires = None, self._clock() + self._ttl
        for tier in (self.ram, self.device):
            tier.unpin(entry, entry.score)

    def drop(self, entry: Entry, reason: str) -> None:
        """Takes an entry out; its path remembers why."""
        self.ram.remove(entry)
        self.device.remove(entry)
        if entry.node.value is entry:
            self.tree.drop(entry.node, reason)

    def clear(self) -> None:
        """Forgets everything."""
        for entry in list(self.entries()):
            self.ram.remove(entry)
            self.device.remove(entry)
            self.tree.forget(entry.node)
        self.tree = RadixTree[Entry]()

    def _to_ram(self, entry: Entry, cached: CachedState) -> bool:
        moved = replace(cached, state=cached.state.to("cpu"))
        evicted = self.ram.put(
            entry, moved, moved.nbytes, score=entry.score, pinned=entry.pin is not None
        )
        for victim, _ in evicted or ():
            self.evictions["ram"] += 1
            self._leave(victim)
        if evicted is None:
            self._leave(entry)
        return evicted is not None

    def _leave(self, entry: Entry) -> None:
        """Notes that memory has a state no more; the disk may have it still."""
        if entry.row is None:
            self.drop(entry, "evicted")
        else:
            entry.has_logits = entry.row.has_logits


_NOWHERE: Node[Entry] = Node(b"", 0, None, None)
