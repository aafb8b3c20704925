"""A store in memory that shares pins as one in Redis does: several objects over one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from langchain_rwkv_state import MemoryStateStore
from langchain_rwkv_state.errors import StoreError
from langchain_rwkv_state.store.pins import KeptPins, PinRows


class DictRows(PinRows):
    """Rows in dicts; counts how often all of them were read."""

    def __init__(self) -> None:
        self.generation = 0
        self.rows: dict[bytes, bytes] = {}
        self.owners: dict[bytes, str] = {}
        self.old: list[str] = []
        self.whole_reads = self.looks = 0

    def put(self, key: bytes, row: bytes, owner: str) -> None:
        if self.owners.get(key) != owner:
            self._retire(key)
            self.rows[key], self.owners[key] = row, owner
            self.generation += 1

    def drop(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._retire(key)
            self.rows.pop(key, None)
        self.generation += 1

    def owner(self, key: bytes) -> str | None:
        return self.owners.get(key)

    def _retire(self, key: bytes) -> None:
        owner = self.owners.pop(key, None)
        if owner is not None:
            self.old.append(owner)

    def read(self, since: int) -> tuple[int, Mapping[bytes, bytes] | None]:
        self.looks += 1
        if since == self.generation:
            return since, None
        self.whole_reads += 1
        return self.generation, dict(self.rows)

    def retired(self) -> Sequence[str]:
        return list(self.old)

    def released(self, owner: str) -> None:
        self.old.remove(owner)


class SharingStore(MemoryStateStore):
    """A store that shares pins.

    Attributes:
        pin_rows: What its pins lie in.
        away: Whether it cannot be asked for them.
    """

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.pin_rows = DictRows()
        self.away = False

    @property
    def shares_pins(self) -> bool:
        return True

    def shared_pins(self) -> KeptPins:
        if self.away:
            raise StoreError("The server is away.")
        return KeptPins(self, self.pin_rows, self.codec)
