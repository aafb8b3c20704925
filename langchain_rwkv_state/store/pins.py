"""Pinned prefixes that all who use one store share: what was read once, each of them begins from.

A pin is a name, the ids that were read, and a state that the store keeps for good. `KeptPins` keeps
the states by the verbs that every store has, and asks the few things that must be one step of the
store's own kind: `PinRows`. A number goes up with each change, so that looking for news is one
cheap read. The easy mistake is to release a state before its row is gone: whoever reads the row
then finds none, so what a row named is noted first and released after.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import secrets
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from langchain_rwkv_state.errors import StateCorrupt, StateNotFound, StoreError
from langchain_rwkv_state.state import LOSSY
from langchain_rwkv_state.store.settings import check_name

if TYPE_CHECKING:
    from langchain_rwkv_state.state import RWKVState
    from langchain_rwkv_state.store.base import StateStore

logger = logging.getLogger("langchain_rwkv_state.store")

_ON_ITS_WAY_SECONDS = 3600.0  # a state whose row never came is gone after that
_CHECK_BYTES = 16


@dataclass(frozen=True)
class SharedPin:
    """A prefix that is pinned in a store.

    Attributes:
        name: As it was pinned.
        namespace: Whose it is, as the prefix cache writes it: model, tenant.
        ids: What was read.
        ref: The state after that.
    """

    name: str
    namespace: str
    ids: tuple[int, ...]
    ref: str


@dataclass(frozen=True)
class PinNews:
    """What is pinned, if that has changed.

    Attributes:
        generation: For the next look.
        pins: All that is pinned; ``None`` where nothing has changed since.
    """

    generation: int
    pins: tuple[SharedPin, ...] | None


class SharedPins(Protocol):
    """Pinned prefixes in a store, for a prefix cache to share."""

    def put_pin(self, name: str, namespace: str, ids: Sequence[int], state: RWKVState) -> str:
        """Pins a prefix; another of that name and namespace is let go.

        Returns:
            The state's reference.

        Raises:
            StoreFull: There is no room.
            StoreError: The store cannot be used, or keeps no exact states.
        """
        ...

    def pins(self, since: int = -1) -> PinNews:
        """Returns what is pinned, if anything has changed since a look before.

        Args:
            since: The generation of that look.
        """
        ...

    def pinned_state(self, pin: SharedPin) -> RWKVState:
        """Returns a pin's state.

        Raises:
            StateNotFound, StateExpired: It was let go meanwhile.
        """
        ...

    def drop_pin(self, name: str, namespace: str | None = None) -> int:
        """Lets a name's pins go, in one namespace or in all; returns how many there were."""
        ...


class PinRows(ABC):
    """Rows of pins as a store of some kind keeps them, each by a key of 16 bytes."""

    @abstractmethod
    def put(self, key: bytes, row: bytes, owner: str) -> None:
        """Writes a row, and notes the owner of the one before it as retired; bears a repeat."""

    @abstractmethod
    def drop(self, keys: Sequence[bytes]) -> None:
        """Deletes rows, and notes their owners as retired."""

    @abstractmethod
    def owner(self, key: bytes) -> str | None:
        """Returns who keeps the state of a row, ``None`` where there is no row."""

    @abstractmethod
    def read(self, since: int) -> tuple[int, Mapping[bytes, bytes] | None]:
        """Returns the generation, and all rows where it is another than `since`."""

    @abstractmethod
    def retired(self) -> Sequence[str]:
        """Returns owners whose states can be released."""

    @abstractmethod
    def released(self, owner: str) -> None:
        """Notes that an owner's states are released."""


class KeptPins:
    """`SharedPins` over the verbs of a store.

    Args:
        store: Keeps the states, for owners ``pin:…``.
        rows: Keeps the rows.
        codec: How that store writes states.
    """

    def __init__(self, store: StateStore, rows: PinRows, codec: str) -> None:
        self._store = store
        self._rows = rows
        self._codec = codec

    def put_pin(self, name: str, namespace: str, ids: Sequence[int], state: RWKVState) -> str:
        """See `SharedPins.put_pin`."""
        check_name(name, "pin")
        if self._codec in LOSSY:
            raise StoreError(
                f"The store keeps its states by the codec {self._codec!r}, and what others begin "
                "from must be exact: pin prefixes in a store of the codec 'exact' or 'zstd'."
            )
        owner = f"pin:{name[:64]}:{secrets.token_hex(8)}"
        ref = self._store.stage(state)
        self._store.keep(ref, owner, ttl=_ON_ITS_WAY_SECONDS)
        key = _key(name, namespace)
        pin = SharedPin(name, namespace, tuple(ids), ref)
        self._rows.put(key, _row(key, pin), owner)
        try:
            self._store.keep(ref, owner, ttl=math.inf)
        except StateNotFound:
            if self._rows.owner(key) == owner:
                raise
        if self._rows.owner(key) != owner:  # another took its place, and released it before that
            self._store.release(owner)
        self._release()
        return ref

    def pins(self, since: int = -1) -> PinNews:
        """See `SharedPins.pins`; a damaged row is told of and hides no other."""
        generation, rows = self._rows.read(since)
        if rows is None:
            return PinNews(generation, None)
        found = []
        for key, row in sorted(rows.items()):
            try:
                found.append(_pin(key, row))
            except StateCorrupt as error:
                logger.warning("A pinned prefix of the store is of no use: %s", error)
        return PinNews(generation, tuple(found))

    def pinned_state(self, pin: SharedPin) -> RWKVState:
        """See `SharedPins.pinned_state`."""
        return self._store.get(pin.ref, renew=False)

    def drop_pin(self, name: str, namespace: str | None = None) -> int:
        """See `SharedPins.drop_pin`."""
        found = self.pins().pins or ()
        keys = [
            _key(pin.name, pin.namespace)
            for pin in found
            if pin.name == name and namespace in (None, pin.namespace)
        ]
        if keys:
            self._rows.drop(keys)
        self._release()
        return len(keys)

    def _release(self) -> None:
        """Releases the states of pins that are gone, those too that somebody left to do."""
        for owner in self._rows.retired():
            self._store.release(owner)
            self._rows.released(owner)


def _key(name: str, namespace: str) -> bytes:
    text = json.dumps([name, namespace]).encode()
    return hashlib.blake2b(text, digest_size=16, person=b"rwkv-pin").digest()


def _row(key: bytes, pin: SharedPin) -> bytes:
    head = json.dumps([pin.name, pin.namespace, pin.ref]).encode()
    body = head + b"\n" + struct.pack(f"<{len(pin.ids)}I", *pin.ids)
    return _check(key, body) + body


def _pin(key: bytes, row: bytes) -> SharedPin:
    """Reads a row.

    Raises:
        StateCorrupt: It was changed, or lies under another key.
    """
    body = row[_CHECK_BYTES:]
    if row[:_CHECK_BYTES] != _check(key, body):
        raise StateCorrupt("Its row was truncated or changed.")
    head, _, ids = body.partition(b"\n")
    name, namespace, ref = json.loads(head)
    return SharedPin(name, namespace, struct.unpack(f"<{len(ids) // 4}I", ids), ref)


def _check(key: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(key + body, digest_size=_CHECK_BYTES).digest()
