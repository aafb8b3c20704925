"""The store contract, on disk and in memory."""

from __future__ import annotations

from typing import Any

from langchain_rwkv_state.store import DiskStateStore, MemoryStateStore, StateStore
from langchain_rwkv_state.testing import StateStoreContract


class TestMemoryStore(StateStoreContract):
    def open_store(self, **settings: Any) -> StateStore:
        return MemoryStateStore(**settings)


class TestDiskStore(StateStoreContract):
    opened = 0

    def open_store(self, **settings: Any) -> StateStore:
        self.opened += 1
        return DiskStateStore(self.tmp_path / str(self.opened), **settings)
