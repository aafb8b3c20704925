"""Brings pinned prefixes from a store that several machines share into one cache, and back.

What is pinned anywhere is looked for when a model is loaded, and as prompts come, every few
seconds at most and on a thread of its own: no request waits for a network, and a store that is away
costs a warning. The easy mistake is to take a salt's pin for everybody's: it stays in the namespace
that it came from, which holds the salt's digest.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Sequence

from langchain_rwkv_state.errors import (
    StateCorrupt,
    StateExpired,
    StateMismatch,
    StateNotFound,
)
from langchain_rwkv_state.prefix_cache.disk import logger
from langchain_rwkv_state.prefix_cache.entries import CachedState, Entry, Namespace
from langchain_rwkv_state.prefix_cache.index import Index
from langchain_rwkv_state.prefix_cache.radix_tree import pack
from langchain_rwkv_state.state import Derivation, RWKVState
from langchain_rwkv_state.store import StateStore
from langchain_rwkv_state.store.lazy import lazy_store
from langchain_rwkv_state.store.pins import SharedPin, SharedPins

LOOK_SECONDS = 5.0
"""Between two looks for what others pinned."""
_RETRY_SECONDS = 30.0  # after a store could not be asked
_WARM_SECONDS = 10.0  # that loading a model waits for a store at most

_Place = tuple[str, str]


class _Known:
    """What is known of the store's pins.

    Attributes:
        seen: The generation of the last look that took all in.
        listed: All pins, as they were listed last.
        taken: References of those that were taken into memory, or given from there.
    """

    def __init__(self) -> None:
        self.seen = -1
        self.listed: tuple[SharedPin, ...] = ()
        self.taken: dict[_Place, str] = {}


class SharedSide:
    """Shares one cache's pins through a store.

    Args:
        store: Whose pins are shared, or its URL; ``None`` for no sharing.

    Attributes:
        store: The store.
        errors: Times that the store could not be used.

    Raises:
        ValueError: The store shares no pins.
    """

    def __init__(self, store: StateStore | str | None) -> None:
        self._is_named = isinstance(store, str)
        self._closed = False
        if isinstance(store, str):
            store = lazy_store(store)
        if store is not None and not store.shares_pins:
            raise ValueError(
                f"shared is a store in Redis or its URL, and {store!r} shares no pins: on one "
                "machine a directory does, PrefixStateCache(disk=DIR)."
            )
        self.store = store
        self.errors = 0
        self._models: set[str] = set()

    def begin(self, index: Index, lock: threading.RLock, unpin: Callable[[Entry], None]) -> None:
        """Takes over an index; anew in a forked child, where no other thread came along.

        Args:
            index: What is in memory.
            lock: Guards that; it is never held while the store is asked.
            unpin: Lets an entry go the way of others.
        """
        self._index = index
        self._memory = lock
        self._unpin = unpin
        self._looking = threading.Lock()
        self._due = -math.inf
        self.forget_all()

    def forget_all(self) -> None:
        """Forgets what is known of the store: all of it is news again."""
        self._known = _Known()

    def warm(self, fingerprint: str) -> None:
        """Takes in a model's pins; where the store does not answer in time, later."""
        if self.store is None:
            return
        self._models.add(fingerprint)
        thread = threading.Thread(target=self._look, name="rwkv-shared-pins", daemon=True)
        thread.start()
        thread.join(_WARM_SECONDS)

    def look_soon(self) -> None:
        """Has somebody look for news, if that is due; returns at once."""
        if self.store is None or not self._models or time.monotonic() < self._due or self._closed:
            return
        if self._looking.acquire(blocking=False):
            self._looking.release()
            self._due = time.monotonic() + LOOK_SECONDS
            threading.Thread(target=self._look, name="rwkv-shared-pins", daemon=True).start()

    def pin(self, namespace: Namespace, ids: Sequence[int], state: RWKVState, name: str) -> None:
        """Pins a prefix for all that share the store.

        Raises:
            StoreError, StoreFull: The store cannot be used, or has no room.
        """
        if self.store is None:
            return
        text = _written(namespace)
        with self._looking:
            ref = self.store.shared_pins().put_pin(name, text, ids, state)
            self._known.taken[name, text] = ref

    def unpin(self, name: str) -> int:
        """Lets a name's pins go for all that share the store; returns how many there were.

        Raises:
            StoreError: The store cannot be used.
        """
        if self.store is None:
            return 0
        with self._looking:
            return self.store.shared_pins().drop_pin(name)

    def forget(self, stands: Callable[..., bool]) -> int:
        """Lets the pins go that a test says stand on what was redacted; returns how many.

        Raises:
            StoreError: It could not be done: unlike a look that fails, that must be known.
        """
        if self.store is None:
            return 0
        pins = self.store.shared_pins()
        gone = [
            pin
            for pin in pins.pins().pins or ()
            if stands(_read(pin.namespace), pack(pin.ids), pinned=True)
        ]
        return sum(pins.drop_pin(pin.name, pin.namespace) for pin in gone)

    def close(self) -> None:
        """Looks no more, and closes the store where it was named by its URL."""
        self._closed = True
        if self._is_named and self.store is not None:
            self.store.close()

    # -- looking -----------------------------------------------------------------------------

    def _look(self) -> None:
        """Takes in what is new; whatever goes wrong is a warning."""
        store = self.store
        if store is None:
            return
        with self._looking:
            self._due = time.monotonic() + LOOK_SECONDS
            try:
                self._take_in(store.shared_pins())
            except Exception as error:  # noqa: BLE001 # no answer is to fail for it
                if self._closed:
                    return
                self.errors += 1
                self._due = time.monotonic() + _RETRY_SECONDS
                logger.warning("Pins of %r are not shared for a while: %s", store, error)

    def _take_in(self, pins: SharedPins) -> None:
        known = self._known
        news = pins.pins(known.seen)
        if news.pins is not None:
            known.listed = news.pins
            self._let_go(known)
        for pin in known.listed:
            namespace = _read(pin.namespace)
            place = pin.name, pin.namespace
            if namespace.fingerprint in self._models and known.taken.get(place) != pin.ref:
                self._load(pins, pin, namespace)
                known.taken[place] = pin.ref
        known.seen = news.generation  # once all is taken in: what failed is news again

    def _load(self, pins: SharedPins, pin: SharedPin, namespace: Namespace) -> None:
        """Loads a pin into memory; one of no use is told of, once."""
        try:
            state = pins.pinned_state(pin)
            if state.derivation != Derivation(namespace.fingerprint).read(pin.ids):
                raise StateCorrupt("It is the state of another prompt.")
        except (StateNotFound, StateExpired, StateCorrupt, StateMismatch) as error:
            logger.warning("The shared pin %r is of no use: %s", pin.name, error)
            return
        cached = CachedState(state)
        with self._memory:
            old = self._index.pinned(pin.name, namespace)
            entry = self._index.put(namespace, pack(pin.ids), cached, pin=pin.name)
            if entry is None:
                logger.warning(
                    "The shared pin %r does not fit beside what is pinned already: give the prefix "
                    "cache a larger ram_bytes.",
                    pin.name,
                )
                return
        for other in old:
            if other is not entry:
                self._unpin(other)

    def _let_go(self, known: _Known) -> None:
        """Lets what came from the store and is pinned there no more go the way of others."""
        there = {(pin.name, pin.namespace) for pin in known.listed}
        for name, namespace in [place for place in known.taken if place not in there]:
            del known.taken[name, namespace]
            with self._memory:
                gone = self._index.pinned(name, _read(namespace))
            for entry in gone:
                self._unpin(entry)


def _written(namespace: Namespace) -> str:
    return json.dumps([namespace.fingerprint, namespace.base, namespace.salt])


def _read(text: str) -> Namespace:
    return Namespace(*json.loads(text))
