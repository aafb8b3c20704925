"""The store contract, on disk and in memory."""

from __future__ import annotations

from typing import Any

from langchain_rwkv_state.store import DiskStateStore, MemoryStateStore, StateStore
from tests.store_contract import StoreContract


class TestMemoryStore(StoreContract):
    def open_store(self, **settings: Any) -> StateStore:
        return MemoryStateStore(**settings)


class TestDiskStore(StoreContract):
    opened = 0

    def open_store(self, **settings: Any) -> StateStore:
        self.opened += 1
        return DiskStateStore(self.tmp_path / str(self.opened), **settings)
